//! The preprocessing of a request's prompts and images. `cargo bench --bench inputs`.

use braid::inputs::image::{AlphaMode, Image};
use braid::inputs::tokenizer::Tokenizer;
use braid::inputs::{clip_image_processor, resize};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use std::path::Path;

const PROMPT: &str = "a photograph of an astronaut riding a horse through a field of wild flowers, golden hour, 35 mm film, \
                      highly detailed, shallow depth of field";

fn tokens(c: &mut Criterion) {
    let tokenizer = Tokenizer::clip().expect("the embedded vocabulary");
    assert_eq!(tokenizer.encode_padded(PROMPT).ids.len(), 77);
    let mut group = c.benchmark_group("tokenizer");
    group.throughput(Throughput::Bytes(PROMPT.len() as u64));
    group.bench_function("a prompt", |b| b.iter(|| tokenizer.encode_padded(black_box(PROMPT))));
    let long = PROMPT.repeat(40);
    group.throughput(Throughput::Bytes(long.len() as u64));
    group.bench_function("rows of a long prompt", |b| b.iter(|| tokenizer.encode_rows(black_box(&long))));
    group.finish();
}

fn images(c: &mut Criterion) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/astronaut.jpg");
    let bytes = std::fs::read(&path).expect("the image");
    let load = || Image::decode(&bytes, &path, AlphaMode::Ignore).expect("an image");
    let image = load();
    let values = clip_image_processor::preprocess(&image, 224);
    assert!(values.len() == 224 * 224 * 3 && values.iter().all(|v| v.abs() < 3.0));
    let mut group = c.benchmark_group("image");
    group.throughput(Throughput::Elements((image.width() * image.height()) as u64));
    group.bench_function("decode a JPEG", |b| b.iter(|| black_box(load())));
    group.bench_function("CLIP's resize and crop to 224", |b| {
        b.iter(|| clip_image_processor::preprocess(black_box(&image), 224))
    });
    group.bench_function("stretch to 1024x1024", |b| {
        b.iter(|| resize::resize(black_box(&image), 1024, 1024, resize::Resampling::Bicubic).expect("an image"));
    });
    group.finish();
}

criterion_group!(benches, tokens, images);
criterion_main!(benches);
