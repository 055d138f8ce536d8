//! Opening weight files: safetensors, torch's pickle in a zip, and a single-file checkpoint's key map. `cargo bench --bench loaders`.
//!
//! The files have the published names, all of them, and small tensors: what is timed is reading headers and checking them.

use braid::synthetic::{Sizes, write_safetensors, write_torch};
use braid::weights::{OpenOptions, open, single_file};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::collections::BTreeMap;
use std::hint::black_box;

/// The published layers with narrow widths.
fn narrow() -> Sizes {
    let mut sizes = Sizes::published();
    (sizes.unet.block_out_channels, sizes.unet.num_attention_heads) = (vec![32, 64, 96], vec![1, 2, 3]);
    (
        sizes.unet.cross_attention_dim,
        sizes.unet.addition_time_embed_dim,
        sizes.unet.projection_class_embeddings_input_dim,
    ) = (32, 8, 32 + 48);
    sizes.vae.block_out_channels = vec![32, 32, 64, 64];
    for text in [&mut sizes.text, &mut sizes.text_2] {
        (text.hidden_size, text.num_attention_heads, text.intermediate_size, text.vocab_size) = (32, 1, 64, 64);
    }
    sizes.text_2.projection_dim = Some(32);
    sizes.adapter.cross_attention_dim = 32;
    sizes.adapter.widths = sizes.unet.cross_layers().iter().map(|layer| layer.width).collect();
    sizes
}

fn loaders(c: &mut Criterion) {
    let dir = tempfile::tempdir().expect("a folder");
    let sizes = narrow();
    let (checkpoint, adapter) = (dir.path().join("sdxl.safetensors"), dir.path().join("adapter.bin"));
    let (tensors, pickled) = (sizes.checkpoint(), sizes.ip_adapter());
    write_safetensors(&checkpoint, &tensors, &BTreeMap::new()).expect("a file");
    write_torch(&adapter, &pickled).expect("a file");
    let options = OpenOptions::default();
    let weights = open(&checkpoint, &options).expect("it opens");
    let split = single_file::split(&weights).expect("it is an SDXL");
    // The position ids are integers and left out. The UNet has 1,680 tensors.
    assert_eq!((weights.len() + 1, split.unet.len()), (tensors.len(), 1680));
    assert_eq!(open(&adapter, &options).expect("it opens").len(), pickled.len());

    let mut group = c.benchmark_group("loaders");
    group.throughput(Throughput::Elements(tensors.len() as u64));
    group.bench_function("safetensors, open and check", |b| {
        b.iter(|| black_box(open(&checkpoint, &options).expect("it opens")));
    });
    group.bench_function("single file, key map", |b| {
        b.iter(|| black_box(single_file::split(&weights).expect("it is an SDXL")));
    });
    group.throughput(Throughput::Elements(pickled.len() as u64));
    group.bench_function("torch, open and check", |b| {
        b.iter(|| black_box(open(&adapter, &options).expect("it opens")));
    });
    group.finish();
}

criterion_group!(benches, loaders);
criterion_main!(benches);
