//! Maps of where each reference acted.

use crate::error::Result;
use crate::inputs::image::Image;
use crate::models::unet::{BlockId, UnetConfig, UnetShape};

/// A map of where a reference acted in an image, of the cross-attentions of one side of the UNet and of one size.
///
/// In a cross-attention the text and each reference add a vector to a query's result, a reference's with its scale, weight and mask, before
/// the attention's last layer. A value is the Euclidean norm of the reference's vector, divided by the sum of the norms of the text's and
/// of all references' vectors: 0 where it does not act, 1 where nothing else does. Norms are means over the model evaluations, those of
/// the positive row; a value is the mean over the cross-attentions of the group.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct AttributionMap {
    /// The image of the request, from 0.
    pub image: usize,
    /// The adapter, by its number in the pipeline.
    pub adapter: usize,
    /// The reference, by its number in the image prompt; 0 for all of them where they are averaged.
    pub reference: usize,
    /// The group: `down`, `mid` or `up` with width and height, as in `down 64x64`.
    pub group: String,
    /// The width of the map: a query for each pixel of the group's feature maps.
    pub width: usize,
    /// Its height.
    pub height: usize,
    /// The values, 0 to 1, row by row.
    pub values: Vec<f32>,
}

impl AttributionMap {
    /// The map as an image of that size: from black for 0 by way of red and yellow to white for `most` and above, each query a rectangle.
    ///
    /// # Errors
    /// Those of [`Image::new`].
    pub fn heat_map(&self, width: usize, height: usize, most: f32) -> Result<Image> {
        let color = |value: f32| {
            let heat = if most > 0.0 { 3.0 * (value / most).clamp(0.0, 1.0) } else { 0.0 };
            [heat, heat - 1.0, heat - 2.0].map(|part| (255.0 * part.clamp(0.0, 1.0)).round() as u8)
        };
        let at = |pixel: usize| {
            let (x, y) = (pixel % width * self.width / width, pixel / width * self.height / height);
            color(self.values[y * self.width + x])
        };
        Image::new(width, height, (0..width * height).flat_map(at).collect())
    }
}

/// Cross-attentions of one side of the UNet and of one size.
struct Group {
    name: String,
    /// Height and width.
    size: [usize; 2],
    /// Cross-attentions so far.
    layers: usize,
    /// The sums of each reference's values.
    sums: Vec<Vec<f64>>,
}

/// The maps of an image, group by group in the order of evaluation. `references` has the numbers of each one's adapter and of itself,
/// `norms` for each cross-attention the norms of the text and of each reference, `[T, 1 + R]`; without them there are no maps.
pub(super) fn maps(
    (config, shape): (&UnetConfig, &UnetShape),
    references: &[(usize, usize)],
    image: usize,
    norms: &[Vec<f32>],
) -> Vec<AttributionMap> {
    let mut layers: Vec<_> = config.cross_layers().into_iter().map(|layer| layer.block).zip(norms).collect();
    layers.sort_by_key(|(block, _)| side(*block).0);
    let mut groups: Vec<Group> = Vec::new();
    for (block, norms) in layers {
        let [height, width] = shape.feature_map(config, block);
        let name = format!("{} {width}x{height}", side(block).1);
        let at = groups.iter().position(|group| group.name == name).unwrap_or_else(|| {
            let sums = vec![vec![0.0; height * width]; references.len()];
            groups.push(Group { name, size: [height, width], layers: 0, sums });
            groups.len() - 1
        });
        add_shares(&mut groups[at].sums, norms);
        groups[at].layers += 1;
    }
    let map = |group: &Group, number: usize| {
        let mean = |sum: &f64| (sum / group.layers as f64) as f32;
        let ([height, width], (adapter, reference)) = (group.size, references[number]);
        let values = group.sums[number].iter().map(mean).collect();
        AttributionMap { image, adapter, reference, group: group.name.clone(), width, height, values }
    };
    groups.iter().flat_map(|group| (0..references.len()).map(move |number| map(group, number))).collect()
}

/// The side of the UNet that a transformer belongs to: its place in the order of evaluation and its name.
fn side(block: BlockId) -> (usize, &'static str) {
    match block {
        BlockId::Down { .. } => (0, "down"),
        BlockId::Mid => (1, "mid"),
        BlockId::Up { .. } => (2, "up"),
    }
}

/// Adds each reference's share of the norms of every query, `[T, 1 + R]`, to its sums.
fn add_shares(sums: &mut [Vec<f64>], norms: &[f32]) {
    for (query, norms) in norms.chunks_exact(1 + sums.len()).enumerate() {
        let all: f64 = norms.iter().map(|norm| f64::from(*norm)).sum();
        for (sums, norm) in sums.iter_mut().zip(&norms[1..]) {
            sums[query] += if all > 0.0 { f64::from(*norm) / all } else { 0.0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares() {
        let mut sums = vec![vec![0.0; 3]; 2];
        add_shares(&mut sums, &[3.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 2.0, 6.0]);
        add_shares(&mut sums, &[1.0, 0.0, 1.0, 0.0, 0.0, 2.0, 1.0, 0.0, 0.0]);
        assert_eq!(sums, [[0.25, 0.0, 0.25], [0.5, 1.0, 0.75]]);
    }

    /// A group's value is the mean of its cross-attentions': those of one side and size, however many they are.
    #[test]
    fn means_of_groups() {
        let (config, tokens) = (crate::models::published::unet(), 77);
        let shape = UnetShape { batch: 1, height: 8, width: 8, tokens, branches: Vec::new(), attribution: Vec::new() };
        let layers = config.cross_layers();
        // A quarter in a transformer's first layer, a half in the others.
        let norms = layers.iter().enumerate().map(|(i, layer)| {
            let [height, width] = shape.feature_map(&config, layer.block);
            let first = i == 0 || layers[i - 1].block != layer.block;
            [if first { 3.0 } else { 1.0 }, 1.0].repeat(height * width)
        });
        let maps = maps((&config, &shape), &[(0, 0)], 0, &norms.collect::<Vec<_>>());
        let found: Vec<_> = maps.iter().map(|map| (map.group.as_str(), map.values[0])).collect();
        // Transformers of 2 and of 10 layers.
        let (two, ten) = (0.375, 0.475);
        assert_eq!(found, [("down 4x4", two), ("down 2x2", ten), ("mid 2x2", ten), ("up 2x2", ten), ("up 4x4", two)]);
    }

    #[test]
    fn colors() {
        let values = vec![0.0, 0.1, 0.2, 0.3];
        let group = "mid 2x2".to_owned();
        let map = AttributionMap { image: 0, adapter: 0, reference: 0, group, width: 2, height: 2, values };
        let image = map.heat_map(4, 2, 0.3).unwrap();
        let [black, red, yellow, white] = [[0u8, 0, 0], [255, 0, 0], [255, 255, 0], [255, 255, 255]];
        assert_eq!(image.rgb(), [black, black, red, red, yellow, yellow, white, white].concat());
        // Above the most it is white, and nothing at all is black.
        assert_eq!(map.heat_map(2, 2, 0.05).unwrap().rgb()[3..6], white);
        assert!(map.heat_map(2, 2, 0.0).unwrap().rgb().iter().all(|v| *v == 0));
    }

    /// Maps that are no squares: each value keeps its row and its column.
    #[test]
    fn wide_and_tall_maps() {
        for (width, height) in [(3, 2), (2, 3)] {
            let values: Vec<f32> = (0..6).map(|i| i as f32 / 25.0).collect();
            let group = format!("up {width}x{height}");
            let map = AttributionMap { image: 0, adapter: 0, reference: 0, group, width, height, values };
            let red: Vec<u8> = map.heat_map(width, height, 1.0).unwrap().rgb().chunks(3).map(|rgb| rgb[0]).collect();
            assert_eq!(red, [0, 31, 61, 92, 122, 153], "{width}x{height}");
        }
    }
}
