//! A pipeline of tensors in memory.

use super::load::ModelTensors;
use super::{Pipeline, PipelineOptions};
use crate::device::cpu::Cpu;
use crate::synthetic::{Sizes, in_memory};

/// Problems of tensors in memory are named as those of files.
#[test]
fn tensors_in_memory() {
    let sizes = Sizes::small();
    let mut tensors = ModelTensors::default();
    let mut options = PipelineOptions::new("unread");
    options.threads = Some(1);
    let load = |tensors: &ModelTensors| Pipeline::from_tensors(tensors, &options, Some(Box::new(Cpu::new(Some(1)))));
    let fails = |tensors: &ModelTensors, part: &str| {
        let text = load(tensors).unwrap_err().to_string();
        assert!(text.contains(part), "{text}");
    };
    fails(&tensors, "an SDXL base checkpoint is needed");
    tensors.checkpoint = in_memory("made", &sizes.checkpoint()).unwrap();
    tensors.clip_vision = Some(in_memory("made", &sizes.image_encoder()).unwrap());
    fails(&tensors, "no IP-Adapter");
    let adapter = in_memory("adapter", &sizes.ip_adapter()).unwrap();
    tensors.adapters = vec![adapter.clone(); 9];
    fails(&tensors, "8 are allowed");
    tensors.adapters = vec![tensors.checkpoint.clone()];
    fails(&tensors, "made: this is an SDXL base checkpoint, not an IP-Adapter");
    tensors.adapters = vec![adapter; 2];
    let pipeline = load(&tensors).unwrap();
    assert_eq!((pipeline.num_adapters(), pipeline.threads()), (2, 1));
    assert!(format!("{pipeline:?}").starts_with("Pipeline(made, cpu"), "{pipeline:?}");
}
