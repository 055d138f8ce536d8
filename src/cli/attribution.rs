//! The sheets of `--attribution`: each image beside the maps of its references.

use super::grid::Grid;
use super::labels;
use super::options::Options;
use crate::error::Result;
use crate::inputs::image::Image;
use crate::inputs::resize::{Resampling, resize};
use crate::pipeline::{AttributionMap, Output};

/// The sheet of an image: a row for each reference, with the image and the map of each group of cross-attentions. White stands for the
/// greatest value of the sheet.
///
/// # Errors
/// Those of [`Image::new`].
pub fn sheet(options: &Options, output: &Output, number: usize) -> Result<Image> {
    let image = &output.images[number];
    let maps: Vec<&AttributionMap> = output.attributions.iter().filter(|map| map.image == number).collect();
    let of = |map: &AttributionMap| (map.adapter, map.reference);
    let mut references: Vec<(usize, usize)> = maps.iter().map(|map| of(map)).collect();
    references.sort_unstable();
    references.dedup();
    let mut groups: Vec<&str> = maps.iter().map(|map| map.group.as_str()).collect();
    groups.dedup();
    let columns = std::iter::once("image").chain(groups.iter().copied()).map(str::to_owned).collect();
    let count = |adapter: usize| references.iter().filter(|reference| reference.0 == adapter).count();
    let rows = references.iter().map(|reference| label(options, *reference, count(reference.0))).collect();
    let (grid, (width, height)) = grid(columns, rows, (image.width(), image.height()))?;
    let most = maps.iter().flat_map(|map| &map.values).copied().fold(0.0, f32::max);
    let image = resize(image, width, height, Resampling::Bicubic)?;
    let mut tiles = Vec::new();
    for reference in references {
        tiles.push(image.clone());
        for group in &groups {
            let map = maps.iter().find(|map| of(map) == reference && map.group == *group);
            tiles.extend(map.map(|map| map.heat_map(width, height, most)).transpose()?);
        }
    }
    grid.draw(tiles.iter())
}

/// The grid with the largest tiles that an image file has room for: whole, or a half, a third and so on of the image's sides.
fn grid(columns: Vec<String>, rows: Vec<String>, (width, height): (usize, usize)) -> Result<(Grid, (usize, usize))> {
    let mut part = 1;
    loop {
        let tile = ((width / part).max(1), (height / part).max(1));
        match Grid::new(columns.clone(), rows.clone(), tile) {
            Err(_) if tile != (1, 1) => part += 1,
            grid => return Ok((grid?, tile)),
        }
    }
}

/// The name of a reference among `count` of its adapter: its file's without extension, or its number where files hold several.
fn label(options: &Options, (adapter, reference): (usize, usize), count: usize) -> String {
    let files = options.adapters.all.get(adapter).map(|adapter| &adapter.images);
    let file = files.filter(|files| files.len() == count).and_then(|files| files.get(reference));
    file.map_or_else(|| (reference + 1).to_string(), |file| labels::stem(&file.path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smaller_tiles() {
        let labels = |count: usize| vec!["a".to_owned(); count];
        let tile = |columns, rows, size| grid(labels(columns), labels(rows), size).unwrap().1;
        assert_eq!(tile(6, 2, (1024, 768)), (1024, 768));
        assert_eq!(tile(6, 2, (4096, 2048)), (2048, 1024));
        assert_eq!(tile(3, 20, (1000, 1000)), (500, 500));
    }
}
