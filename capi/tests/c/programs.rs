//! The examples, and programs that free handles in unusual orders: run, their images compared with the library's, and without leaks.

use super::compiler::{
    Language, adapter, compile, has_compilers, model, program, reference, root, sanitizer, skip, succeed,
};
use braid::{AlphaMode, Image, ImagePrompt, Pipeline, PipelineOptions, Request};
use std::path::Path;

fn image(path: &Path) -> Image {
    Image::open(path, AlphaMode::Ignore).unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn sanitizer_is_there() {
    if has_compilers() && sanitizer().is_none() {
        skip("no AddressSanitizer that finds leaks: programs run without it");
    }
}

#[test]
fn generate() {
    if !has_compilers() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (example, drawn) = (folder.path().join("generate"), folder.path().join("drawn.png"));
    compile(Language::C99, &root().join("examples/c/generate.c"), &example);
    let output = succeed(program(&example, folder.path()).arg(model()).arg(adapter()).arg(reference()).arg(&drawn));
    assert!(text(&output.stdout).ends_with("step 20 of 20\n"), "{}", text(&output.stdout));

    let pipeline = Pipeline::load(&PipelineOptions::new(model()).with_adapter(adapter())).unwrap();
    let reference = Image::open(reference(), AlphaMode::CompositeOnWhite).unwrap();
    let request = Request::new("a garden at dawn")
        .with_negative_prompt("text, watermark")
        .with_image_prompt(ImagePrompt::new(reference).with_scale(0.6))
        .with_steps(20)
        .with_seed(7);
    assert!(image(&drawn) == pipeline.generate(&request).unwrap().images[0], "C and Rust draw different bytes");

    // A failure is told by name and text.
    let mut wrong = program(&example, folder.path());
    let output = wrong.arg(folder.path().join("none")).arg(adapter()).arg("r").arg(&drawn).output().unwrap();
    let said = text(&output.stderr);
    assert!(output.status.code() == Some(1) && said.starts_with("load: BRAID_ERROR_IO: "), "{said}");
}

#[test]
fn engine() {
    if !has_compilers() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let example = folder.path().join("engine");
    compile(Language::Cpp11, &root().join("examples/c/engine.cpp"), &example);
    let output = succeed(program(&example, folder.path()).arg(model()).arg(folder.path().join("drawn")));
    let said = text(&output.stdout);
    assert!(said.starts_with("seed 3: ") && said.ends_with(" reports, 1 image\nBRAID_ERROR_CANCELLED\n"), "{said}");

    let pipeline = Pipeline::load(&PipelineOptions::new(model())).unwrap();
    for seed in 0..3 {
        let request = Request::new("a lighthouse").with_steps(4).with_seed(seed);
        let drawn = image(&folder.path().join(format!("drawn{seed}.png")));
        assert!(drawn == pipeline.generate(&request).unwrap().images[0], "seed {seed}");
    }
}

#[test]
fn session() {
    if !has_compilers() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (example, drawn) = (folder.path().join("session"), |name: &str| image(&folder.path().join(name)));
    compile(Language::C99, &root().join("examples/c/session.c"), &example);
    let prefix = folder.path().join("drawn");
    let output = succeed(program(&example, folder.path()).arg(model()).arg(adapter()).arg(reference()).arg(prefix));
    assert_eq!(text(&output.stdout).matches(" after ").count(), 3);

    let pipeline = Pipeline::load(&PipelineOptions::new(model()).with_adapter(adapter())).unwrap();
    let reference = Image::open(reference(), AlphaMode::CompositeOnWhite).unwrap();
    let request = |scale: f32, seed| {
        let prompt = ImagePrompt::new(reference.clone()).with_scale(scale);
        Request::new("a garden at dawn").with_image_prompt(prompt).with_steps(4).with_seed(seed)
    };
    let generate = |request: Request| pipeline.generate(&request).unwrap().images.remove(0);
    assert!(drawn("drawn0.png") == generate(request(1.0, 7)));
    let mut last = generate(request(0.6, 8));
    assert!(drawn("drawn1.png") == last);
    for (number, scale) in [(0, 0.6), (1, 0.6), (2, 0.2)] {
        last = generate(request(scale, 8 + number).with_init_image(last).with_strength(0.5));
        assert!(drawn(&format!("drawn-frame{number}.png")) == last, "frame {number}");
    }
}

fn run(name: &str, folder: &Path) {
    let built = folder.join(name);
    compile(Language::C99, &root().join(format!("capi/tests/c/{name}.c")), &built);
    succeed(program(&built, folder).arg(model()).arg(adapter()).arg(folder));
}

#[test]
fn lifetimes() {
    if has_compilers() {
        run("lifetimes", tempfile::tempdir().unwrap().path());
    }
}

#[test]
fn sessions() {
    if !has_compilers() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    run("sessions", folder.path());
    let written = std::fs::read(folder.path().join("metadata.png")).unwrap();
    let written = String::from_utf8_lossy(&written);
    for part in ["parameters\0a fox\nSteps: 2", "braid\0{\"prompt\":\"a fox\"}"] {
        assert!(written.contains(part), "{part}");
    }
}
