//! Textual inversions: files that cannot be, words that cannot be, words that are told, and what changes between requests.

use super::*;
use braid::error::Field;
use braid::{LongPrompts, PromptWeights};
use common::Tensor;

const STYLE: &str = "mat-style.safetensors";
const SEA: &str = "<sea>.safetensors";

fn model() -> Model {
    Model::golden("diffusers", "embeddings")
}

fn options(model: &Model, files: &[&str]) -> PipelineOptions {
    let options = PipelineOptions::new(model.dir.path()).with_threads(1);
    files.iter().fold(options, |options, file| options.with_embedding(model.path(file)))
}

fn plain(prompt: &str) -> Request {
    let mut plain = request();
    (plain.image_prompts, plain.prompt) = (Vec::new(), prompt.into());
    plain
}

fn tensor(shape: &[usize]) -> Tensor {
    let bytes = vec![0; 4 * shape.iter().product::<usize>()];
    Tensor { dtype: safetensors::Dtype::F32, shape: shape.to_vec(), bytes }
}

fn write(model: &Model, file: &str, tensors: &[(&str, Tensor)]) {
    std::fs::create_dir_all(model.path(file).parent().unwrap()).unwrap();
    let view = |(name, t): &(&str, Tensor)| {
        let view = safetensors::tensor::TensorView::new(t.dtype, t.shape.clone(), t.bytes.clone().leak()).unwrap();
        ((*name).to_owned(), view)
    };
    let bytes = safetensors::serialize(tensors.iter().map(view), None).unwrap();
    std::fs::write(model.path(file), bytes).unwrap();
}

/// Other prompts, with the words and without, compile nothing, and read no file: they are gone by then.
#[test]
fn words_change_between_requests() {
    let model = model();
    let options = options(&model, &[STYLE, SEA]).with_mmap(false);
    let pipeline = Pipeline::load(&options).unwrap();
    let without = generate(&model_without(&model), &plain("a kite")).unwrap();
    let path = model.dir.path().to_owned();
    drop(model);
    assert!(!path.exists());
    let (first, count) = compiled(|| generate(&pipeline, &plain("a kite in mat-style")).unwrap());
    assert!(count >= 5);
    let image = |request: &Request| {
        let (image, count) = compiled(|| generate(&pipeline, request).unwrap());
        assert_eq!(count, 0, "{request:?}");
        image
    };
    assert_eq!(image(&plain("a kite in MAT-style")), first);
    assert_eq!(image(&plain("a kite in mat-style mat-style_1")).len(), first.len());
    assert_ne!(image(&plain("a kite in <sea>")), first);
    // Without its words a pipeline is as if it had none, to the byte.
    assert_eq!(image(&plain("a kite")), without);
    let weighted = |prompt: &str| plain(prompt).with_prompt_weights(PromptWeights::A1111);
    assert_eq!(image(&weighted("a kite in mat-style")), first);
    assert_ne!(image(&weighted("a kite in (mat-style:1.4)")), first);
    assert_eq!(image(&plain("a kite in mat-style").with_long_prompts(LongPrompts::Chunks)), first);
    assert_ne!(image(&plain("a kite in mat-style").with_negative_prompt("<sea>")), first);
    assert_ne!(image(&plain("a kite in mat-style").with_prompt_2("<sea>")), first);
}

fn model_without(model: &Model) -> Pipeline {
    Pipeline::load(&options(model, &[]).with_mmap(false)).unwrap()
}

/// Files that are something else, for another model or damaged: each is refused with the true reason.
#[test]
fn files_that_cannot_be() {
    let model = model();
    let double = Tensor { dtype: safetensors::Dtype::F64, shape: vec![8], bytes: vec![0; 64] };
    let mut nan = tensor(&[2, 24]);
    nan.poison(f32::NAN, Some(30));
    type Row<'a> = (&'a [(&'a str, Tensor)], &'a [&'a str]);
    let cases: [Row<'_>; 13] = [
        (&[("emb_params", tensor(&[2, 768]))], &["Stable Diffusion 1.x", "768 wide", "16 and 24"]),
        (&[("<x>", tensor(&[1024]))], &["Stable Diffusion 2.x", "1024 wide"]),
        (&[("<x>", tensor(&[1, 1280]))], &["second text encoder", "1280 wide"]),
        (&[("<x>", tensor(&[40]))], &["another model", "40 wide"]),
        (&[("<x>", tensor(&[16]))], &["first text encoder alone", "Stable Diffusion 1.x", "clip_g"]),
        (&[("clip_l", tensor(&[16])), ("clip_g", tensor(&[16]))], &["`clip_g` is 16 wide", "second text encoder 24"]),
        (
            &[("clip_l", tensor(&[768])), ("clip_g", tensor(&[1280]))],
            &["`clip_l` is 768 wide", "first text encoder 16"],
        ),
        (&[("clip_l", tensor(&[1, 2, 16]))], &["`clip_l` is [1, 2, 16]"]),
        (&[("clip_g", tensor(&[0, 24]))], &["`clip_g` is [0, 24]"]),
        (&[("clip_l", tensor(&[16])), ("clip_g", nan)], &["`clip_g` holds NaN"]),
        (&[("clip_l", double)], &["`clip_l` is of type F64"]),
        (&[("a.weight", tensor(&[16]))], &["unknown kind", "a textual inversion is needed"]),
        (&[("a", tensor(&[16])), ("b", tensor(&[16]))], &["a textual inversion is needed"]),
    ];
    for (i, (tensors, texts)) in cases.into_iter().enumerate() {
        write(&model, "bad-word.safetensors", tensors);
        let error = refused(Pipeline::load(&options(&model, &["bad-word.safetensors"])), "a file");
        let text = error.to_string();
        assert!(matches!(error, Error::Mismatch { .. } | Error::Malformed { .. }), "{i}: {text}");
        assert!(text.contains("bad-word.safetensors") && texts.iter().all(|part| text.contains(part)), "{i}: {text}");
    }
    for (file, part) in [
        ("vae/diffusion_pytorch_model.safetensors", "a VAE"),
        ("unet/diffusion_pytorch_model.safetensors", "UNet"),
        ("text_encoder/model.safetensors", "a CLIP text encoder"),
    ] {
        let error = refused(Pipeline::load(&options(&model, &[file])), file);
        assert!(error.to_string().contains(part), "{error}");
    }
    // A textual inversion where another file is expected is named, too.
    let loras = options(&model, &[]).with_lora(model.path(STYLE));
    let error = refused(Pipeline::load(&loras), "no LoRA");
    assert!(error.to_string().contains("this is a textual inversion"), "{error}");
}

/// Words that cannot be, vectors that no prompt has room for, a profile without them: the field is named.
#[test]
fn words_that_cannot_be() {
    let model = model();
    let both = |count: usize| [("clip_l", tensor(&[count, 16])), ("clip_g", tensor(&[count, 24]))];
    for (file, tensors) in [("in.safetensors", both(1)), ("long.safetensors", both(76)), ("dir/mat-style.bin", both(1))]
        .into_iter()
        .chain([("<SEA>.safetensors", both(2)), ("<sea>_1.safetensors", both(1)), (" .pt", both(1))])
    {
        write(&model, file, &tensors);
    }
    for (files, part) in [
        (&["in.safetensors"][..], "`in` is a token of the model already"),
        (&["long.safetensors"], "76 vectors of `long`; a prompt has room for 75"),
        (&[STYLE, "dir/mat-style.bin"], "have the same word `mat-style`"),
        (&[SEA, "<SEA>.safetensors"], "`<SEA>` is a token of the model already"),
        (&["<sea>_1.safetensors", "<sea>.safetensors"], "`<sea>_1` is a token of the model already"),
        (&[" .pt"], "a word without letters"),
    ] {
        let error = refused(Pipeline::load(&options(&model, files)), part);
        assert!(matches!(error, Error::Parameter { field: Field::Embeddings, .. }), "{error}");
        assert!(error.to_string().contains(part), "{error}");
    }
    let diffsynth = options(&model, &[STYLE]).with_compat("diffsynth".parse().unwrap());
    let error = refused(Pipeline::load(&diffsynth), "a profile");
    assert!(matches!(error, Error::Parameter { field: Field::Compat, .. }), "{error}");
}

/// Warnings of what a user would not see: a word in no prompt, one that an encoder reads as text, the file's own word, tensors beside.
#[test]
fn what_is_told() {
    let model = model();
    write(&model, "only-g.safetensors", &[("clip_g", tensor(&[24])), ("t5xxl", tensor(&[8]))]);
    write(&model, "own/wet.safetensors", &[("<mark>", tensor(&[24]))]);
    let (pipeline, told) =
        warnings(|| Pipeline::load(&options(&model, &["only-g.safetensors", "own/wet.safetensors"])));
    let all = told.join("\n");
    for part in ["no vectors for the first text encoder, which reads `only-g`", "calls its word `<mark>`", "`t5xxl`"] {
        assert!(all.contains(part), "{all}");
    }
    let pipeline = pipeline.unwrap();
    let (_, told) = warnings(|| generate(&pipeline, &plain("a WET kite").with_negative_prompt("fog")).unwrap());
    assert!(told.len() == 1 && told[0].contains("`only-g`") && told[0].contains("in no prompt"), "{told:?}");
    let (_, told) = warnings(|| generate(&pipeline, &plain("wet").with_negative_prompt("only-g")).unwrap());
    assert!(told.is_empty(), "{told:?}");
}
