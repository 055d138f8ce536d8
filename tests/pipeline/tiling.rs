//! Decoding and encoding in tiles: sizes, memory, and that no seam is seen on the bundled model. The arithmetic is compared with
//! diffusers in tests/goldens.rs.

use super::*;
use braid::error::Field;
use braid::pipeline::WorkloadShape;

fn pipeline(model: &Model, tile: Option<usize>) -> braid::Result<Pipeline> {
    let mut options = PipelineOptions::new(model.dir.path());
    (options.vae_tiling, options.threads) = (tile, Some(1));
    Pipeline::load(&options)
}

#[test]
fn sizes_of_tiles() {
    let model = Model::golden("diffusers", "vae-file");
    for side in [0, 1, 56, 63, 68, 100] {
        let error = refused(pipeline(&model, Some(side)), "a tile");
        assert!(matches!(&error, Error::Parameter { field: Field::VaeTiling, .. }), "{error}");
        assert!(error.to_string().contains("a multiple of 8 is needed, 64 at least"), "{error}");
    }
    // An image that fits a tile is decoded whole, and a side that does is not cut.
    let r = Request::new("a red fox").with_steps(1).with_width(64).with_height(48);
    let [whole, tiled, large] = [None, Some(64), Some(4096)].map(|tile| pipeline(&model, tile).unwrap());
    let same = generate(&whole, &r).unwrap();
    assert!(generate(&tiled, &r).unwrap() == same && generate(&large, &r).unwrap() == same);
    let wide = r.with_width(72);
    let (a, b) = (generate(&whole, &wide).unwrap(), generate(&tiled, &wide).unwrap());
    assert!(a != b && a.len() == b.len());
    assert!(generate(&large, &wide).unwrap() == a);
}

/// The memory of decoder and encoder is that of a tile, whatever the image.
#[test]
fn memory_of_a_tile() {
    let model = Model::golden("diffusers", "vae-file");
    let used = |tile: Option<usize>, width: usize, height: usize| {
        let pipeline = pipeline(&model, tile).unwrap();
        let picture = Image::new(8, 8, vec![7; 192]).unwrap();
        let r = Request::new("a red fox").with_steps(1).with_width(width).with_height(height).with_init_image(picture);
        let mut shape: WorkloadShape = pipeline.workload_shape(&r).unwrap();
        pipeline.prepare(&shape).unwrap();
        let both = pipeline.device_memory_used();
        shape.init_image = false;
        pipeline.clear_cache();
        pipeline.prepare(&shape).unwrap();
        (both, both - pipeline.device_memory_used())
    };
    let (whole, whole_encoder) = used(None, 256, 192);
    let (tiled, tiled_encoder) = used(Some(64), 256, 192);
    let (_, tile_encoder) = used(None, 64, 64);
    println!("256x192 whole {whole} bytes, in tiles of 64x64 {tiled}; the encoder {whole_encoder} and {tiled_encoder}");
    assert_eq!(tiled_encoder, tile_encoder);
    // Twelve times the pixels; what does not grow with them is the biases.
    assert!(whole_encoder > 8 * tiled_encoder);
    assert!(whole - tiled > 2 * (whole_encoder - tiled_encoder) * 9 / 10, "{whole} {tiled}");
}

/// Steps from pixel to pixel of a difference of images, their mean over each column.
fn steps(difference: &[f32], width: usize) -> Vec<f32> {
    let rows = difference.chunks_exact(width * 3);
    let count = (rows.len() * 3) as f32;
    let mut steps = vec![0.0; width - 1];
    for row in rows {
        for (x, step) in steps.iter_mut().enumerate() {
            *step += (0..3).map(|c| (row[(x + 1) * 3 + c] - row[x * 3 + c]).abs()).sum::<f32>() / count;
        }
    }
    steps
}

/// On the bundled model, whose VAE is trained: what tiles change is smooth. At no column, where tiles begin and end among them, does the
/// difference from the whole image step by much of what the image does there, and it is small everywhere.
#[test]
fn no_seams() {
    let root = |path: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo").join(path);
    let decoded = |tile: Option<usize>| {
        let mut options = PipelineOptions::new(root("sdxl.safetensors")).with_config(root("config"));
        options.vae_tiling = tile;
        let pipeline = Pipeline::load(&options).unwrap();
        let mut r =
            Request::new("three hearts on a blue striped background").with_width(256).with_height(160).with_seed(5);
        (r.steps, r.guidance_scale, r.capture_intermediates) = (6, 3.0, true);
        let output = pipeline.generate(&r).unwrap();
        output.intermediates["image"].data.iter().map(|v| v * 255.0).collect::<Vec<_>>()
    };
    let (whole, tiled) = (decoded(None), decoded(Some(96)));
    let difference: Vec<f32> = tiled.iter().zip(&whole).map(|(a, b)| a - b).collect();
    let rms = (difference.iter().map(|d| d * d).sum::<f32>() / difference.len() as f32).sqrt();
    let (of_tiles, of_image) = (steps(&difference, 256), steps(&whole, 256));
    let most = of_tiles.iter().copied().fold(0.0, f32::max);
    let mean = |values: &[f32]| values.iter().sum::<f32>() / values.len() as f32;
    println!(
        "tiles of 96 pixels: {rms:.3} of 255 from the whole image; steps of the difference {:.3}, {most:.3} at most, of the image {:.3}",
        mean(&of_tiles),
        mean(&of_image)
    );
    assert!(rms > 0.0 && most <= 1.5 && rms <= 8.0, "{rms} {most}");
    // A tile's tones change the image's own edges, too; a seam would stand where the image has none.
    let share = of_tiles.iter().zip(&of_image).map(|(tiles, image)| tiles / image).fold(0.0, f32::max);
    assert!(share <= 0.4, "a column where the difference steps by {share} of what the image does");
}
