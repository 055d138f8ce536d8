//! The sheets of `--attribution`: each image beside the maps of its references.

use super::adapters::ReferenceFile;
use super::grid::Grid;
use super::labels;
use super::options::Options;
use crate::error::Result;
use crate::inputs::image::Image;
use crate::inputs::resize::{Resampling, resize};
use crate::pipeline::{AttributionMap, Combine, ImagePrompt, Output, Reference, ReferenceImage};
use std::path::Path;

/// The sheet of an image: a row for each reference, with the image and the map of each group of cross-attentions. White stands for the
/// greatest value of the sheet.
///
/// # Errors
/// Those of [`Image::new`].
pub fn sheet(options: &Options, prompts: &[ImagePrompt], output: &Output, number: usize) -> Result<Image> {
    let image = &output.images[number];
    let maps: Vec<&AttributionMap> = output.attributions.iter().filter(|map| map.image == number).collect();
    let of = |map: &AttributionMap| (map.adapter, map.reference);
    let mut references: Vec<(usize, usize)> = maps.iter().map(|map| of(map)).collect();
    references.sort_unstable();
    references.dedup();
    let mut groups: Vec<&str> = maps.iter().map(|map| map.group.as_str()).collect();
    groups.dedup();
    let columns = std::iter::once("image").chain(groups.iter().copied()).map(str::to_owned).collect();
    let names: Vec<Vec<String>> =
        options.adapters.all.iter().zip(prompts).map(|(adapter, prompt)| names(&adapter.images, prompt)).collect();
    let label = |(adapter, reference): &(usize, usize)| {
        let name = names.get(*adapter).and_then(|names| names.get(*reference));
        name.cloned().unwrap_or_else(|| (reference + 1).to_string())
    };
    let rows = references.iter().map(label).collect();
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

/// The names of the references that the maps of an adapter tell apart: their files' without extension, and a number where a file
/// holds several.
fn names(files: &[ReferenceFile], prompt: &ImagePrompt) -> Vec<String> {
    let references = &prompt.references;
    if prompt.combine == Combine::Average && references.len() > 1 {
        return vec![format!("average of {}", references.len())];
    }
    let encoded_in = |reference: &Reference, path: &Path| match &reference.image {
        ReferenceImage::Encoded(image) => image.path() == path,
        _ => false,
    };
    let mut names = Vec::new();
    for same in files.chunk_by(|a, b| a.path == b.path) {
        let (path, rest) = (&same[0].path, references.get(names.len()..).unwrap_or_default());
        // Of one file as often as it is named.
        let all = rest.iter().take_while(|reference| encoded_in(reference, path)).count().max(same.len());
        let (each, stem) = (all / same.len(), labels::stem(path));
        names.extend((0..all).map(|i| if each > 1 { format!("{stem} {}", i % each + 1) } else { stem.clone() }));
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Files with one image, the same twice, and averages; files with several in tests/cli/image_prompts.rs.
    #[test]
    fn names_of_references() {
        let file = |path: &str| ReferenceFile { path: path.into(), ..ReferenceFile::default() };
        let prompt = |combine| {
            let mut prompt = ImagePrompt { combine, ..ImagePrompt::default() };
            prompt.references = vec![Reference::from(ReferenceImage::Embedding(vec![0.0])); 3];
            prompt
        };
        let files = [file("a/fox.png"), file("a/fox.png"), file("b.png")];
        assert_eq!(names(&files, &prompt(Combine::Concat)), ["fox", "fox", "b"]);
        assert_eq!(names(&files, &prompt(Combine::Average)), ["average of 3"]);
    }

    #[test]
    fn smaller_tiles() {
        let labels = |count: usize| vec!["a".to_owned(); count];
        let tile = |columns, rows, size| grid(labels(columns), labels(rows), size).unwrap().1;
        assert_eq!(tile(6, 2, (1024, 768)), (1024, 768));
        assert_eq!(tile(6, 2, (4096, 2048)), (2048, 1024));
        assert_eq!(tile(3, 20, (1000, 1000)), (500, 500));
    }
}
