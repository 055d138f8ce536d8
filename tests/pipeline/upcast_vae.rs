//! Values that are not finite: of a VAE in bf16, which is then computed in f32, and of a step. On a GPU's kernels in tests/cuda.

use super::*;
use braid::pipeline::Output;
use braid::tensor::DType;
use common::Tensors;

const VAE: &str = "vae/diffusion_pytorch_model.safetensors";

/// Gives the last convolution of a half a weight that bf16 rounds to infinity, and little to multiply it with.
fn narrow(tensors: &mut Tensors, half: &str) {
    let mut poison = |name: &str, value, at| tensors.get_mut(&format!("{half}.{name}")).unwrap().poison(value, at);
    poison("conv_norm_out.weight", 1e-37, None);
    poison("conv_norm_out.bias", 0.0, None);
    poison("conv_out.weight", f32::MAX, Some(0));
}

fn load(model: &Model, vae: DType) -> Pipeline {
    Pipeline::load(&model.options().with_vae_dtype(vae)).unwrap()
}

fn upcasts(warnings: &[String]) -> usize {
    warnings.iter().filter(|line| line.contains("was decoded in f32")).count()
}

/// The bytes of a VAE in f32, with a word about it; where the values are finite, those of bf16.
#[test]
fn f14_vae_in_bf16() {
    let model = Model::folder();
    let draw = |pipeline: &Pipeline| -> (Output, Vec<String>) {
        let request = request().with_num_images(2).with_capture_intermediates(true);
        warnings(|| pipeline.generate(&request).unwrap())
    };
    let (sound, said) = draw(&load(&model, DType::BF16));
    assert_eq!((sound.upcast_vae, upcasts(&said)), (vec![false; 2], 0));
    assert_ne!(sound.images, draw(&load(&model, DType::F32)).0.images);
    model.edit(VAE, |tensors| narrow(tensors, "decoder"));
    let (want, said) = draw(&load(&model, DType::F32));
    assert_eq!((want.upcast_vae, upcasts(&said)), (vec![false; 2], 0));
    let first = want.images[0].rgb();
    assert!(first.iter().any(|value| *value != first[0]), "one colour: the test shows nothing");
    let pipeline = load(&model, DType::BF16);
    for _ in 0..2 {
        let (got, said) = draw(&pipeline);
        assert_eq!((got.upcast_vae, upcasts(&said)), (vec![true; 2], 2));
        assert_eq!(got.images, want.images);
        assert_eq!(got.intermediates["image"], want.intermediates["image"]);
    }
    // The second time nothing was compiled.
    assert_eq!(compiled(|| draw(&pipeline)).1, 0);
    let tiled = |vae| Pipeline::load(&model.options().with_vae_dtype(vae).with_vae_tiling(64)).unwrap();
    let wide = request().with_width(96);
    let [got, want] = [DType::BF16, DType::F32].map(|vae| tiled(vae).generate(&wide).unwrap());
    assert!(got.upcast_vae == [true] && got.images == want.images);
}

/// The encoder's: latents of f32, kept for the next request with the word.
#[test]
fn f14_vae_encoder_in_bf16() {
    let model = Model::folder();
    model.edit(VAE, |tensors| narrow(tensors, "encoder"));
    let picture = Image::new(32, 32, (0..32 * 32 * 3).map(|i| (i * 7 % 251) as u8).collect()).unwrap();
    let request = request().with_init_image(picture).with_strength(0.5).with_capture_intermediates(true);
    let [want, pipeline] = [DType::F32, DType::BF16].map(|vae| load(&model, vae));
    let want = want.generate(&request).unwrap();
    assert_eq!(want.upcast_vae, [false]);
    for _ in 0..2 {
        let got = pipeline.generate(&request).unwrap();
        assert_eq!(got.upcast_vae, [true]);
        assert_eq!(got.intermediates["init_latents"], want.intermediates["init_latents"]);
    }
}

/// Values that are not finite in f32 either are an error, and so is a step, by its number; the next request is as it was.
#[test]
fn f14_errors() {
    let model = Model::folder();
    let pipeline = load(&model, DType::BF16);
    let request = request().with_steps(4);
    let want = generate(&pipeline, &request).unwrap();
    // More than f32 holds, once it has gone through the layers.
    let late = request.clone().with_scale_change(2, 0, 3e38);
    match refused(generate(&pipeline, &late), "a step") {
        Error::NotFinite { stage, .. } => assert_eq!(stage, "step 3 of 4"),
        other => panic!("{other}"),
    }
    assert_eq!(generate(&pipeline, &request).unwrap(), want);
    for (value, hint) in [(f32::MAX, "the latents are out of its range"), (f32::NAN, "decoder.conv_out.weight")] {
        let model = Model::folder();
        model.edit(VAE, |t| t.get_mut("decoder.conv_out.weight").unwrap().poison(value, None));
        for vae in [DType::BF16, DType::F32] {
            match refused(generate(&load(&model, vae), &request), "the VAE") {
                Error::NotFinite { stage, hint: said } => assert!(stage == "the VAE" && said.contains(hint), "{said}"),
                other => panic!("{other}"),
            }
        }
    }
}
