//! Results that stay on the device for the next executable, and images that come back as bytes.

use super::common;
use super::ptx::PtxDriver;
use super::{compiled, outputs, scope, values};
use braid::device::cuda::CudaDevice;
use braid::device::{Device, PixelRounding, TensorRef};
use braid::graph::{Builder, Graph};
use braid::pipeline::{Callbacks, Progress, Stage};
use braid::tensor::DType;
use braid::{Error, Pipeline};
use std::sync::Arc;

/// The byte of a decoder's value, by the CPU's rule.
fn byte(value: f32, truncate: bool) -> u8 {
    let value = (value / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0;
    if truncate { value as u8 } else { value.round_ties_even() as u8 }
}

/// A decoder in small: `[1, H, W, 4]` to `[1, H, W, 3]`, some values beyond -1 and 1.
fn decoder([h, w]: [usize; 2]) -> Graph {
    let s = scope(&[("in.weight", &[16, 4, 3, 3], 1), ("out.weight", &[3, 16, 3, 3], 2), ("out.bias", &[3], 3)]);
    let mut b = Builder::new();
    let x = b.input("latents", &[1, h, w, 4]);
    let x = b.scale_shift(x, 3.0, 0.0);
    let x = b.conv2d_no_bias(x, &s.pp("in"), 16, 3, 1);
    let x = b.conv2d(x, &s.pp("out"), 3, 3, 1);
    b.output("image", x);
    b.finish().unwrap()
}

/// Three results, of 140 values in the middle.
fn condition() -> Graph {
    let s = scope(&[("a.weight", &[8, 16], 1), ("b.weight", &[20, 16], 2), ("c.weight", &[24, 16], 3)]);
    let mut b = Builder::new();
    let x = b.input("x", &[1, 7, 16]);
    for (name, width) in [("a", 8), ("b", 20), ("c", 24)] {
        let y = b.linear_no_bias(x, &s.pp(name), width);
        b.output(name, y);
    }
    b.finish().unwrap()
}

fn device() -> CudaDevice {
    CudaDevice::new(Arc::new(PtxDriver::new()), DType::F16).unwrap().with_cublaslt(false)
}

#[test]
fn pixel_parity() {
    if !compiled() {
        return;
    }
    let device = device();
    let x = values(140, 5);
    // The decoder's type is bf16 where nothing else is said.
    let plain = CudaDevice::new(Arc::new(PtxDriver::new()), DType::BF16).unwrap().with_cublaslt(false);
    let image = outputs(plain.compile(decoder([5, 7])).unwrap().as_mut(), &[&x]).remove(0);
    for (truncate, rounding) in [(false, PixelRounding::Nearest), (true, PixelRounding::Truncate)] {
        let mut executable = device.compile_image_decoder(decoder([5, 7]), rounding).unwrap();
        assert!(image.iter().any(|v| *v > 1.0) && image.iter().any(|v| *v < -1.0));
        let wanted: Vec<u8> = image.iter().map(|v| byte(*v, truncate)).collect();
        let given = TensorRef::from(x.as_slice());
        // The same after the capture.
        for keep in [true, false, true] {
            let decoded = executable.decode(&given, keep).unwrap();
            assert_eq!((&decoded.rgb, decoded.finite), (&wanted, true));
            assert_eq!(decoded.image, if keep { image.as_slice() } else { &[] });
        }
        // What is not finite is told once.
        let mut bad = x.clone();
        bad[70] = f32::INFINITY;
        assert!(!executable.decode(&bad.into(), false).unwrap().finite);
        assert!(executable.decode(&given, false).unwrap().finite);
        let text = executable.decode(&TensorRef::from(&x[1..]), false).unwrap_err().to_string();
        assert!(text.contains("`latents` is f32 [1, 5, 7, 4], bound to 139 values of f32"), "{text}");
    }
}

/// Pixels of more than one block, of which the last alone is not finite.
#[test]
fn last_pixel() {
    if !compiled() {
        return;
    }
    let mut executable = device().compile_image_decoder(decoder([1, 350]), PixelRounding::Nearest).unwrap();
    let mut x = values(1400, 5);
    let decoded = executable.decode(&x.clone().into(), true).unwrap();
    let wanted: Vec<u8> = decoded.image.iter().map(|v| byte(*v, false)).collect();
    assert_eq!((decoded.rgb, decoded.finite), (wanted, true));
    x[1399] = f32::INFINITY;
    assert!(!executable.decode(&x.into(), false).unwrap().finite);
}

#[test]
fn resident_outputs() {
    if !compiled() {
        return;
    }
    let driver = Arc::new(PtxDriver::new());
    let device = CudaDevice::new(driver.clone(), DType::F16).unwrap().with_cublaslt(false);
    let mut executable = device.compile_conditioner(condition()).unwrap();
    let x = values(112, 5);
    let wanted = outputs(executable.as_mut(), &[&x]);
    let before = driver.moved();
    let left = executable.run_resident(&[(&x).into()]).unwrap();
    let after = driver.moved();
    assert_eq!((after[0] - before[0], after[1] - before[1]), (448, 4), "x up, whether all is finite down");
    assert!(left.finite);
    for (left, wanted) in left.values.iter().zip(&wanted) {
        assert!(matches!(left, TensorRef::Device(_)));
        assert_eq!(*left.read().unwrap(), **wanted);
    }
    // A decoder takes them as they lie, and no other device's.
    let latents = left.values[1].clone();
    let mut decoder_here = device.compile_image_decoder(decoder([5, 7]), PixelRounding::Nearest).unwrap();
    let from_host = decoder_here.decode(&wanted[1].clone().into(), true).unwrap();
    let before = driver.moved();
    assert_eq!(decoder_here.decode(&latents, true).unwrap(), from_host);
    // 105 bytes and the flag, then the values that were asked for.
    let after = driver.moved();
    assert_eq!((after[0] - before[0], after[1] - before[1]), (0, 108 + 4 + 420));
    let mut elsewhere = self::device().compile_image_decoder(decoder([5, 7]), PixelRounding::Nearest).unwrap();
    let elsewhere = elsewhere.decode(&latents, true);
    assert!(elsewhere.unwrap_err().to_string().contains("another device"));
    let mut bad = x.clone();
    bad[3] = f32::NAN;
    assert!(!executable.run_resident(&[(&bad).into()]).unwrap().finite);
    assert!(executable.run_resident(&[(&x).into()]).unwrap().finite);
    assert!(executable.run_resident(&[(&x[1..]).into()]).is_err());
    assert!(executable.run_resident(&[(&[1; 112]).into()]).is_err());
    // Those of a plain executable are the host's.
    let here = device.compile(condition()).unwrap().run_resident(&[(&x).into()]).unwrap();
    assert!(here.finite && here.values.iter().all(|values| matches!(values, TensorRef::Host(_))));
    assert!(here.values.iter().zip(&wanted).all(|(here, wanted)| *here.read().unwrap() == **wanted));
    // They hold for as long as anyone has them, whatever becomes of the executable.
    drop((executable, decoder_here));
    assert!(driver.held() > 0);
    assert_eq!(latents.read().unwrap().len(), 140);
    drop((latents, left));
    assert_eq!(driver.held(), 0);
}

/// After the encoders, a request downloads only flags and bytes, and never uploads the conditioning's results.
#[test]
fn resident_request() {
    if !compiled() {
        return;
    }
    let model = common::Model::folder();
    for truncate in [false, true] {
        let driver = Arc::new(PtxDriver::new());
        let device = CudaDevice::new(driver.clone(), DType::F16).unwrap().with_cublaslt(false);
        let mut options = model.options();
        options.compat.truncates_pixels = truncate;
        let pipeline = Pipeline::load_with_device(&options, Some(Box::new(device))).unwrap();
        let mut request = common::request();
        pipeline.prepare(&pipeline.workload_shape(&request).unwrap()).unwrap();
        let mut at = Vec::new();
        let mut tell = |progress: Progress| {
            if progress.done == 0 {
                at.push((progress.stage, driver.moved()));
            }
        };
        let output = pipeline.generate_with(&request, Callbacks::new().with_progress(&mut tell)).unwrap();
        at.push((Stage::Decode, driver.moved()));
        let stages: Vec<(Stage, [u64; 2])> =
            at.windows(2).map(|w| (w[0].0, [w[1].1[0] - w[0].1[0], w[1].1[1] - w[0].1[1]])).collect();
        let [_, _, condition, denoise, decode] = stages.as_slice() else { panic!("{stages:?}") };
        println!("{stages:?}");
        // Whether each part of the conditioning is finite; step and first step that is not; the image and whether it is.
        assert_eq!((condition.0, condition.1[1]), (Stage::Condition, 12));
        assert_eq!((denoise.0, denoise.1[1]), (Stage::Denoise, 8));
        assert_eq!((decode.0, decode.1), (Stage::Decode, [0, 32 * 32 * 3 + 4]));
        // Latents of 4x4x4, two rows of 36 coefficients, guidance, counters, addresses of two places for images; then scales and token
        // counts.
        assert!((256 + 288 + 16 + 192..1200).contains(&denoise.1[0]), "{stages:?}");
        // The stages that are kept say the same.
        request.capture_intermediates = true;
        let kept = pipeline.generate(&request).unwrap();
        assert_eq!(kept.images, output.images);
        let image = &kept.intermediates["image"].data;
        let rule = |v: &f32| if truncate { (v * 255.0) as u8 } else { (v * 255.0).round_ties_even() as u8 };
        assert_eq!(output.images[0].rgb(), image.iter().map(rule).collect::<Vec<_>>());
        assert!(kept.intermediates["latents"].data.iter().all(|v| v.is_finite()));
    }
}

/// A damaged model is found without the host looking at any tensor.
#[test]
fn not_finite_values() {
    if !compiled() {
        return;
    }
    for (file, tensor, stage) in [
        ("unet/diffusion_pytorch_model.safetensors", "time_embedding.linear_2.bias", "the conditioning"),
        ("vae/diffusion_pytorch_model.safetensors", "decoder.conv_in.bias", "the VAE"),
    ] {
        let model = common::Model::folder();
        model.edit(file, |tensors| tensors.get_mut(tensor).unwrap().poison(f32::NAN, None));
        let device = Box::new(device());
        let pipeline = Pipeline::load_with_device(&model.options(), Some(device)).unwrap();
        match pipeline.generate(&common::request()) {
            Err(Error::NotFinite { stage: found, hint }) => {
                assert_eq!(found, stage);
                assert!(hint.contains(tensor), "{hint}");
            }
            other => panic!("{other:?}"),
        }
    }
}
