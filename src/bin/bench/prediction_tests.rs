//! The division of operations into blocks.

use super::*;
use crate::gpus;
use crate::work::{ModelSize, Setting, hollow};

fn operation(part: Part, kind: &str, shape: &str) -> Predicted {
    operation_of((128, 2), part, kind, shape)
}

fn operation_of((side, batch): (usize, usize), part: Part, kind: &str, shape: &str) -> Predicted {
    let setting = Setting { model: ModelSize::Sdxl, side, batch, steps: 1, adapter: false, fp8: false };
    let operations = setting.operations(part, &hollow()).unwrap();
    let found = operations.iter().find(|o| o.label.kind == kind && o.label.shape == shape).unwrap();
    Predicted::of(found, &gpus::find("h200").unwrap(), None).unwrap()
}

#[test]
fn waves() {
    // 80 blocks on 132 multiprocessors: 61 % of them have work. 133: a second wave for one block more.
    assert!((wave_count(80, 132) - 80.0 / 132.0).abs() < 1e-12);
    assert_eq!(wave_count(132, 132), 1.0);
    assert!((wave_count(133, 132) - 133.0 / 264.0).abs() < 1e-12);
}

/// Few channels on one side have kernels of their own: 16 pixels by 128 channels, and 16 pixels.
#[test]
fn first_and_last_convolutions() {
    let first = operation(Part::Unet, "convolution", "2x128x128x4 > 2x128x128x320").cut.unwrap();
    assert_eq!((first.kernel.as_str(), first.blocks), ("convolution_few_in", 2 * 128 * 128 / 16 * 3));
    assert!((first.tile_efficiency - 320.0 / 384.0).abs() < 1e-12);
    let last = operation(Part::Unet, "convolution", "2x128x128x320 > 2x128x128x4").cut.unwrap();
    assert_eq!((last.kernel.as_str(), last.blocks), ("convolution_few_out_4", 2 * 128 * 128 / 16));
    assert_eq!(last.tile_efficiency, 1.0);
}

/// The VAE's one head of 512: products of 1024 queries at a time, in 512 blocks of 256x128 for the scores and in 128 of
/// 64x64 for the values.
#[test]
fn a_wide_head() {
    let cut = operation(Part::Vae, "attention", "1x16384x512 over 16384").cut.unwrap();
    assert_eq!((cut.kernel.as_str(), cut.blocks), ("gemm_256x128", 16 * (512 + 128)));
    assert!((cut.wave_efficiency - 512.0 / 528.0).abs() < 1e-12, "{cut:?}");
}

/// An upsample by two leaves 4 of 9 taps.
#[test]
fn an_enlarging_convolution() {
    let up = operation(Part::Unet, "convolution", "2x32x32x1280 > 2x64x64x1280");
    assert!((up.kernel_flops / up.flops - 4.0 / 9.0).abs() < 1e-12);
    assert!(up.cut.unwrap().tile_efficiency > 0.99);
}

/// Products of one row of 512x512 have 256 or 1024 rows, and so fewer blocks than an H200 has multiprocessors.
#[test]
fn blocks_of_one_row() {
    let blocks = |shape: &str| {
        let cut = operation_of((64, 1), Part::Unet, "linear", shape).cut.unwrap();
        (cut.kernel, cut.blocks)
    };
    assert_eq!(blocks("256x1280x1280"), ("gemm_sm90_128x128".into(), 2 * 10));
    assert_eq!(blocks("1024x640x640"), ("gemm_sm90_128x128".into(), 8 * 5));
}

/// In FP8 a product is a launch that rounds its rows and one that multiplies, at twice the rate, with half the bytes of weights.
#[test]
fn products_in_fp8() {
    let setting = Setting { model: ModelSize::Sdxl, side: 128, batch: 2, steps: 1, adapter: false, fp8: true };
    let operations = setting.operations(Part::Unet, &hollow()).unwrap();
    let of = |shape: &str| {
        let found = operations.iter().find(|o| o.label.shape == shape).unwrap();
        (
            Predicted::of(found, &gpus::find("h200").unwrap(), None).unwrap(),
            operation(Part::Unet, found.label.kind, shape),
        )
    };
    for (shape, kernel) in [
        ("2048x1280x5120", "gemm_fp8_sm90_128x160"),
        ("2048x10240x1280", "gemm_geglu_fp8_sm90_256x128"),
        ("2x32x32x1280 > 2x32x32x1280", "convolution_fp8_sm90_128x160"),
        ("2x32x32x1280 > 2x64x64x1280", "convolution_fp8_sm90_256x160"),
    ] {
        let (fp8, halves) = of(shape);
        assert_eq!((fp8.cut.as_ref().unwrap().kernel.as_str(), fp8.nodes), (kernel, 2), "{shape}");
        assert!((fp8.floor_seconds / halves.floor_seconds - 0.5).abs() < 1e-9 && fp8.bytes < halves.bytes, "{shape}");
        assert_eq!(fp8.kernel_flops, halves.kernel_flops, "{shape}");
    }
}

/// TAESD's convolutions have 64 channels, its latents 4: at 512x512 all of the image's tiles are full.
#[test]
fn tiny_decoder() {
    let last = operation_of((64, 1), Part::TaesdDecoder, "convolution", "1x512x512x64 > 1x512x512x64");
    assert_eq!(last.flops, 2.0 * 512.0 * 512.0 * 64.0 * 576.0);
    let cut = last.cut.unwrap();
    assert_eq!((cut.tile_efficiency, cut.kernel.starts_with("convolution_")), (1.0, true), "{cut:?}");
}

/// On an H200 a norm after the first convolution takes its moments itself, those after others find them there; an A100's take them all.
#[test]
fn norms_with_moments() {
    let setting = Setting { model: ModelSize::Sdxl, side: 128, batch: 2, steps: 1, adapter: false, fp8: false };
    let operations = setting.operations(Part::Unet, &hollow()).unwrap();
    let like = |o: &&Operation| o.label.kind == "group norm" && o.label.shape == "2x128x128x320";
    let nodes = |gpu| -> Vec<(usize, usize)> {
        let gpu = gpus::find(gpu).unwrap();
        let of = |o: &Operation| (o.label.count, Predicted::of(o, &gpu, None).unwrap().nodes);
        operations.iter().filter(like).map(of).collect()
    };
    assert_eq!([nodes("h200"), nodes("a100")], [[(1, 3), (7, 2)], [(1, 3), (7, 3)]]);
}
