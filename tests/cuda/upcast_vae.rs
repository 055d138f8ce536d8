//! Values that are not finite: of a VAE in f16 or bf16, which is then computed in f32, and of a step.

use super::ptx::PtxDriver;
use super::{common, compiled};
use braid::device::cuda::CudaDevice;
use braid::tensor::DType;
use braid::{Error, Image, Pipeline, Request};
use common::Model;
use std::sync::Arc;

const VAE: &str = "vae/diffusion_pytorch_model.safetensors";

fn load(model: &Model, driver: PtxDriver, vae: DType) -> Pipeline {
    let device = CudaDevice::new(Arc::new(driver), DType::F16).unwrap().with_decoder(vae);
    Pipeline::load_with_device(&model.options(), Some(Box::new(device))).unwrap()
}

fn request() -> Request {
    let request = common::request().with_width(16).with_height(16).with_guidance_scale(1.0);
    request.with_steps(1).with_capture_intermediates(true)
}

/// The same bytes as of a VAE in f32, decoder and encoder; the UNet's type is the same.
#[test]
fn f14_vae_in_half_precision() {
    if !compiled() {
        return;
    }
    // A weight that is too large for the type, and little to multiply it with.
    for (dtype, large, little) in [(DType::F16, 1e5, 1e-3), (DType::BF16, f32::MAX, 1e-37)] {
        let model = Model::folder();
        model.edit(VAE, |tensors| {
            for half in ["encoder", "decoder"] {
                let mut poison =
                    |name, value, at| tensors.get_mut(&format!("{half}.{name}")).unwrap().poison(value, at);
                poison("conv_norm_out.weight", little, None);
                poison("conv_norm_out.bias", 0.0, None);
                poison("conv_out.weight", large, Some(0));
            }
        });
        let picture = Image::new(16, 16, (0..16 * 16 * 3).map(|i| (i * 7 % 251) as u8).collect()).unwrap();
        let begun = request().with_init_image(picture).with_strength(1.0);
        let [want, got] = [DType::F32, dtype].map(|vae| {
            let pipeline = load(&model, PtxDriver::new(), vae);
            [request(), begun.clone()].map(|request| pipeline.generate(&request).unwrap())
        });
        for (want, got) in want.iter().zip(&got) {
            assert_eq!((&want.upcast_vae[..], &got.upcast_vae[..]), (&[false][..], &[true][..]), "{dtype}");
            assert_eq!(got.intermediates, want.intermediates, "{dtype}");
            assert_eq!(got.images, want.images, "{dtype}");
        }
    }
}

/// A step that is not finite ends the request with its number; the next request is as it was.
#[test]
fn f14_step() {
    if !compiled() {
        return;
    }
    let pipeline = load(&Model::folder(), PtxDriver::new(), DType::BF16);
    let request = request().with_steps(2);
    let want = pipeline.generate(&request).unwrap();
    match pipeline.generate(&request.clone().with_scale_change(1, 0, 3e38)) {
        Err(Error::NotFinite { stage, .. }) => assert_eq!(stage, "step 2 of 2"),
        other => panic!("{:?}", other.map(|_| ())),
    }
    let again = pipeline.generate(&request).unwrap();
    assert!(again.images == want.images && again.intermediates == want.intermediates);
}
