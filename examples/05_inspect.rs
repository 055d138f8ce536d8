//! Describe weight files and list what they fit, without loading a model.
//!
//!     cargo run --release --example 05_inspect -- FILE...

mod common;

use braid::Result;
use braid::inspect::inspect;
use braid::weights::{OpenOptions, open};
use std::path::PathBuf;

fn main() -> Result<()> {
    let mut paths: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let small = if paths.is_empty() { Some(common::Files::from_args()?) } else { None };
    if let Some(files) = &small {
        // A file, or a folder of the diffusers layout that holds one model.
        paths = vec![files.adapter.clone(), files.model.join("unet"), files.model.join("image_encoder")];
    }
    for path in paths {
        // Files are told apart by their contents: safetensors or torch, whatever the name.
        let weights = open(&path, &OpenOptions::default())?;
        print!("{}", inspect(&path, &weights)?);
    }
    Ok(())
}
