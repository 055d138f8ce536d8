//! Robustness: damaged models, wrong files and senseless requests through the whole pipeline. The numbers are
//! those of the catalogue of bad inputs; the readers' own cases are in tests/weights and tests/inputs. Also:
//! the bundled model does what an image prompt promises.

#![allow(clippy::unwrap_used)]

mod attribution;
mod batches;
#[path = "../common/mod.rs"]
mod common;
mod counting;
#[path = "../common/demo_goldens.rs"]
#[allow(dead_code)] // Latents are compared in tests/goldens.
mod demo_goldens;
mod demo_model;
mod embeddings;
mod encoded_images;
mod engine;
mod folders;
mod guidance_interval;
mod image_prompts;
mod init_image;
mod live;
mod live_prompts;
mod loras;
mod mapped_files;
mod plus;
mod previews;
mod previous;
mod reference_texts;
mod repeated;
mod requests;
mod stated;
mod stopped;
mod stream;
mod taesd;
mod tiling;
mod upcast_vae;
mod vae_file;
mod waiting;
mod weights;

use braid::error::Error;
use braid::inputs::image::Image;
use braid::pipeline::{EXECUTABLES, ImagePrompt, ReferenceImage, Scales};
use braid::{Pipeline, PipelineOptions, Request};
use common::{Model, generate, read, request, warnings};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const PARTS: [(&str, &str); 5] = [
    ("UNet", "unet/diffusion_pytorch_model.safetensors"),
    ("VAE decoder", "vae/diffusion_pytorch_model.safetensors"),
    ("text encoder", "text_encoder/model.safetensors"),
    ("text encoder", "text_encoder_2/model.safetensors"),
    ("image encoder", "image_encoder/model.safetensors"),
];
const ADAPTER: &str = "ip-adapter.safetensors";

/// The error, or a panic that says what was accepted.
fn refused<T>(result: braid::Result<T>, what: &str) -> Error {
    match result {
        Ok(_) => panic!("{what} was accepted"),
        Err(error) => {
            let text = error.to_string();
            assert!(!text.contains(|c: char| c.is_control()), "{what}: {text:?}");
            error
        }
    }
}

/// Counts the executables that `work` has compiled.
fn compiled<T>(work: impl FnOnce() -> T) -> (T, usize) {
    struct Count(Arc<AtomicUsize>);
    impl tracing::Subscriber for Count {
        fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
            metadata.target() == EXECUTABLES
        }
        fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
            tracing::span::Id::from_u64(1)
        }
        fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
        fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
        fn event(&self, _: &tracing::Event<'_>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
        fn enter(&self, _: &tracing::span::Id) {}
        fn exit(&self, _: &tracing::span::Id) {}
    }
    let count = Arc::new(AtomicUsize::new(0));
    let result = tracing::subscriber::with_default(Count(count.clone()), work);
    (result, count.load(Ordering::Relaxed))
}

/// Whether the image depends on a tensor of a folder: not on what follows the layer whose state is taken, nor on rows of
/// tokens that the prompt lacks.
fn matters(part: &str, name: &str) -> bool {
    let unused = match part {
        "VAE decoder" => name.starts_with("encoder.") || name.starts_with("quant_conv."),
        "text encoder" => {
            name.contains("layers.2.") || name.contains("final_layer_norm") || name.contains("text_projection")
        }
        _ => false,
    };
    !unused && !name.contains("position_ids") && !name.contains("token_embedding")
}

/// Whether no value is further than 1 from the other's.
fn close(a: &[u8], b: &[u8]) -> bool {
    a.iter().zip(b).all(|(a, b)| a.abs_diff(*b) <= 1)
}

/// The relative error in the L2 norm.
fn relative(got: &[f32], want: &[f32]) -> f64 {
    let square = |v: f32| f64::from(v) * f64::from(v);
    let error: f64 = got.iter().zip(want).map(|(g, w)| square(g - w)).sum();
    (error / want.iter().map(|w| square(*w)).sum::<f64>()).sqrt()
}
