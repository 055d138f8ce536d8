//! Coding of images in overlapping tiles of one size, so that memory does not grow with the image.

use super::executable::{Executable, ResidentOutputs, compiled_by};
use super::image_decoder::{DecodedImage, ImageDecoder, PixelRounding};
use super::tensors::{TensorData, TensorRef};
use crate::error::{Error, Result};

/// One side of an image in tiles, counted in latents. Neighbours overlap by a quarter of a tile at least; all tiles are of one size, so
/// that one executable decodes them.
#[derive(Debug, Clone, PartialEq, Eq)]
struct TiledSide {
    side: usize,
    tile: usize,
    starts: Vec<usize>,
}

impl TiledSide {
    fn new(side: usize, tile: usize) -> Self {
        if side <= tile {
            return Self { side, tile: side, starts: vec![0] };
        }
        let (rest, step) = (side - tile, tile - tile / 4);
        let further = rest.div_ceil(step);
        Self { side, tile, starts: (0..=further).map(|k| (k * rest + further / 2) / further).collect() }
    }

    /// The weight of tile `k` at `at`, where the tiles before it have the rest: from 0 to 1 over what it shares with the one before.
    fn weight(&self, k: usize, at: usize, scale: usize) -> f32 {
        let shared = match k {
            0 => 0,
            _ => (self.starts[k - 1] + self.tile - self.starts[k]) * scale,
        };
        if at < shared { at as f32 / shared as f32 } else { 1.0 }
    }
}

/// The tiles of an image, and what they are made of and into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tiling {
    /// Rows, then columns.
    sides: [TiledSide; 2],
}

impl Tiling {
    /// Tiles of at most `tile` latents a side over latents of `height` and `width`.
    pub fn new([height, width]: [usize; 2], tile: usize) -> Self {
        Self { sides: [height, width].map(|side| TiledSide::new(side, tile)) }
    }

    /// Height and width of a tile in latents.
    pub fn tile(&self) -> [usize; 2] {
        [self.sides[0].tile, self.sides[1].tile]
    }

    /// Whether one tile is all there is.
    pub fn is_whole(&self) -> bool {
        self.sides.iter().all(|side| side.starts.len() == 1)
    }

    /// Runs each tile of `input` and blends the results, linearly and one side after the other, as diffusers' `blend_h` and `blend_v`.
    fn run(
        &self,
        input: &Pixels<'_>,
        [scale, channels]: [usize; 2],
        mut run: impl FnMut(Vec<f32>) -> Result<Vec<f32>>,
    ) -> Result<Vec<f32>> {
        let [rows, columns] = &self.sides;
        let width = columns.side * scale * channels;
        let mut out = vec![0.0; rows.side * scale * width];
        let mut strip = vec![0.0; rows.tile * scale * width];
        for (i, &y) in rows.starts.iter().enumerate() {
            for (j, &x) in columns.starts.iter().enumerate() {
                let part = run(input.part([y, x], self.tile()))?;
                if part.len() != rows.tile * columns.tile * scale * scale * channels {
                    return Err(Error::Graph(format!("a tile's result of {} values", part.len())));
                }
                let line = columns.tile * scale * channels;
                for (to, from) in strip.chunks_exact_mut(width).zip(part.chunks_exact(line)) {
                    let to = &mut to[x * scale * channels..][..line];
                    for (at, (to, from)) in to.chunks_exact_mut(channels).zip(from.chunks_exact(channels)).enumerate() {
                        blend(to, from, columns.weight(j, at, scale));
                    }
                }
            }
            let to = &mut out[y * scale * width..];
            for (at, (to, from)) in to.chunks_exact_mut(width).zip(strip.chunks_exact(width)).enumerate() {
                blend(to, from, rows.weight(i, at, scale));
            }
        }
        Ok(out)
    }
}

fn blend(to: &mut [f32], from: &[f32], weight: f32) {
    if weight == 1.0 {
        to.copy_from_slice(from);
    } else {
        to.iter_mut().zip(from).for_each(|(to, from)| *to = *to * (1.0 - weight) + from * weight);
    }
}

/// The values that are cut into tiles: rows of `width` latents, each of `scale` pixels a side with their channels.
struct Pixels<'a> {
    values: &'a [f32],
    width: usize,
    scale: usize,
    channels: usize,
}

impl Pixels<'_> {
    /// The tile that begins at row and column, in latents.
    fn part(&self, [y, x]: [usize; 2], [height, width]: [usize; 2]) -> Vec<f32> {
        let line = self.scale * self.channels;
        let rows = self.values.chunks_exact((self.width * line).max(1)).skip(y * self.scale).take(height * self.scale);
        rows.flat_map(|row| &row[x * line..][..width * line]).copied().collect()
    }
}

/// Decodes tile by tile.
pub struct TiledDecoder {
    decoder: Box<dyn ImageDecoder>,
    tiling: Tiling,
    rounding: PixelRounding,
    scale: usize,
}

impl TiledDecoder {
    /// Wraps the decoder of a tile; `scale` is the pixels to a latent.
    pub fn new(decoder: Box<dyn ImageDecoder>, tiling: Tiling, rounding: PixelRounding, scale: usize) -> Self {
        Self { decoder, tiling, rounding, scale }
    }
}

compiled_by!(TiledDecoder, decoder);

impl ImageDecoder for TiledDecoder {
    fn decode(&mut self, latents: &TensorRef<'_>, capture: bool) -> Result<DecodedImage> {
        let [height, width] = self.tiling.sides.each_ref().map(|side| side.side);
        let values = latents.read()?;
        let channels = values.len() / (height * width).max(1);
        if channels == 0 || values.len() != height * width * channels {
            return Err(Error::Graph(format!("{} latents for an image of {height} by {width}", values.len())));
        }
        let input = Pixels { values: &values, width, scale: 1, channels };
        let decoder = &mut self.decoder;
        let image = self.tiling.run(&input, [self.scale, 3], |tile| Ok(decoder.decode(&tile.into(), true)?.image))?;
        let finite = image.iter().all(|value| value.is_finite());
        let rgb = image.iter().map(|value| self.rounding.pixel(*value)).collect();
        Ok(DecodedImage { rgb, finite, image: if capture { image } else { Vec::new() } })
    }
}

/// Encodes tile by tile: one image, one output.
pub struct TiledEncoder {
    encoder: Box<dyn Executable>,
    tiling: Tiling,
    scale: usize,
}

impl TiledEncoder {
    /// Wraps the encoder of a tile; `scale` is the pixels to a latent.
    pub fn new(encoder: Box<dyn Executable>, tiling: Tiling, scale: usize) -> Self {
        Self { encoder, tiling, scale }
    }
}

compiled_by!(TiledEncoder, encoder);

impl Executable for TiledEncoder {
    fn run(&mut self, inputs: &[TensorData<'_>], outputs: &mut [&mut [f32]]) -> Result<()> {
        let [height, width] = self.tiling.sides.each_ref().map(|side| side.side);
        let ([TensorData::F32(values)], [output]) = (inputs, outputs) else {
            return Err(Error::Graph("an encoder in tiles takes one image and gives one result".into()));
        };
        let (latents, pixels) = (height * width, height * width * self.scale * self.scale);
        let channels = values.len() / pixels.max(1);
        if channels == 0 || values.len() != pixels * channels || !output.len().is_multiple_of(latents) {
            return Err(Error::Graph(format!("{} values for an image of {pixels} pixels", values.len())));
        }
        let input = Pixels { values, width, scale: self.scale, channels };
        let each = output.len() / latents;
        let [h, w] = self.tiling.tile();
        let encoder = &mut self.encoder;
        let result = self.tiling.run(&input, [1, each], |tile| {
            let mut part = vec![0.0; h * w * each];
            encoder.run(&[(&tile).into()], &mut [&mut part])?;
            Ok(part)
        })?;
        output.copy_from_slice(&result);
        Ok(())
    }

    fn run_resident(&mut self, _: &[TensorData<'_>]) -> Result<ResidentOutputs> {
        Err(Error::Graph("an encoder in tiles leaves nothing on a device".into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every tile is whole and inside, neighbours share a quarter at least, and the tiles are as few as that allows.
    #[test]
    fn tiles_of_every_side() {
        for tile in [8, 16, 64] {
            for side in 1..6 * tile {
                let tiled = TiledSide::new(side, tile);
                let last = tiled.starts.last().copied().unwrap();
                assert_eq!((tiled.starts[0], last + tiled.tile), (0, side), "{side} in {tile}");
                let steps: Vec<_> = tiled.starts.windows(2).map(|pair| pair[1] - pair[0]).collect();
                assert!(steps.iter().all(|step| (1..=tile - tile / 4).contains(step)), "{side} in {tile}: {steps:?}");
                let fewer = tile + (tiled.starts.len().saturating_sub(2)) * (tile - tile / 4);
                assert!(tiled.starts.len() == 1 || fewer < side, "{side} in {tile}");
            }
        }
    }

    /// The result is that of the whole where every tile computes the same of a pixel, at any scale.
    #[test]
    fn blending_of_equal_tiles() {
        let (h, w, tile) = (21, 13, 8);
        let values: Vec<f32> = (0..h * w * 2).map(|i| (i * 37 % 101) as f32).collect();
        let tiling = Tiling::new([h, w], tile);
        assert!(!tiling.is_whole() && Tiling::new([8, 3], 8).is_whole());
        let input = Pixels { values: &values, width: w, scale: 1, channels: 2 };
        let same = tiling.run(&input, [1, 2], Ok).unwrap();
        assert!(same.iter().zip(&values).all(|(a, b)| (a - b).abs() <= 1e-4));
        let large = |tile: Vec<f32>| {
            let rows = tile.chunks_exact(16).flat_map(|row| [row, row]);
            Ok(rows.flat_map(|row| row.chunks_exact(2).flat_map(|pixel| [pixel[0], pixel[0]])).collect())
        };
        let large = tiling.run(&input, [2, 1], large).unwrap();
        let nearest = |at: usize| values[(at / (2 * w) / 2 * w + at % (2 * w) / 2) * 2];
        assert!(large.iter().enumerate().all(|(at, value)| (value - nearest(at)).abs() <= 1e-4));
        // And back: the first of 2 by 2 pixels.
        let input = Pixels { values: &large, width: w, scale: 2, channels: 1 };
        let first =
            |tile: Vec<f32>| Ok(tile.chunks_exact(32).flat_map(|rows| rows[..16].iter().step_by(2)).copied().collect());
        let small = tiling.run(&input, [1, 1], first).unwrap();
        assert!(small.iter().zip(values.iter().step_by(2)).all(|(a, b)| (a - b).abs() <= 1e-3));
    }

    /// A step between two tiles becomes a ramp: no pixel differs from its neighbour by more than its part of the overlap.
    #[test]
    fn ramps_between_tiles() {
        let mut count = 0.0;
        let values = vec![0.0; 20 * 8];
        let tiling = Tiling::new([8, 20], 8);
        let input = Pixels { values: &values, width: 20, scale: 1, channels: 1 };
        let out = tiling
            .run(&input, [1, 1], |tile| {
                count += 1.0;
                Ok(vec![count; tile.len()])
            })
            .unwrap();
        assert_eq!(count, 3.0);
        assert!(out[..20].windows(2).all(|pair| (0.0..=0.5).contains(&(pair[1] - pair[0]))), "{:?}", &out[..20]);
        assert_eq!((out[0], out[19]), (1.0, 3.0));
    }
}
