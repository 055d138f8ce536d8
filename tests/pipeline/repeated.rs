//! Requests that repeat a part of an earlier one: what was computed then is not computed again.

use super::common::{Model, request};
use braid::device::cpu::Cpu;
use braid::device::{Compiled, Device, Executable, TensorData};
use braid::graph::Graph;
use braid::pipeline::ImagePrompt;
use braid::{Image, Pipeline, PipelineOptions, Request};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The CPU, and how often it ran text encoders and image encoders.
struct Counting {
    cpu: Cpu,
    runs: Arc<[AtomicUsize; 2]>,
}

struct Counted {
    executable: Box<dyn Executable>,
    /// The place of its count.
    kind: Option<usize>,
    runs: Arc<[AtomicUsize; 2]>,
}

impl Device for Counting {
    fn name(&self) -> String {
        self.cpu.name()
    }

    fn compile(&self, graph: Graph) -> braid::Result<Box<dyn Executable>> {
        let kind = graph.inputs.first().and_then(|(name, _)| ["ids", "pixels"].iter().position(|kind| kind == name));
        Ok(Box::new(Counted { executable: self.cpu.compile(graph)?, kind, runs: self.runs.clone() }))
    }
}

impl Compiled for Counted {
    fn graph(&self) -> &Graph {
        self.executable.graph()
    }

    fn bytes(&self) -> usize {
        self.executable.bytes()
    }
}

impl Executable for Counted {
    fn run(&mut self, inputs: &[TensorData<'_>], outputs: &mut [&mut [f32]]) -> braid::Result<()> {
        if let Some(kind) = self.kind {
            self.runs[kind].fetch_add(1, Ordering::SeqCst);
        }
        self.executable.run(inputs, outputs)
    }
}

/// A pipeline, and its counts.
struct Case {
    pipeline: Pipeline,
    runs: Arc<[AtomicUsize; 2]>,
}

impl Case {
    fn new(options: &PipelineOptions) -> Self {
        let runs: Arc<[AtomicUsize; 2]> = Arc::default();
        let device = Counting { cpu: Cpu::new(Some(1)), runs: runs.clone() };
        Self { pipeline: Pipeline::load_with_device(options, Some(Box::new(device))).unwrap(), runs }
    }

    /// The runs of text encoders and image encoders for a request whose images are those of a pipeline that has drawn nothing before.
    fn runs(&self, options: &PipelineOptions, request: &Request) -> [usize; 2] {
        self.runs.iter().for_each(|count| count.store(0, Ordering::SeqCst));
        let images = self.pipeline.generate(request).unwrap().images;
        let runs = [0, 1].map(|kind| self.runs[kind].load(Ordering::SeqCst));
        assert_eq!(images, Pipeline::load(options).unwrap().generate(request).unwrap().images);
        runs
    }
}

fn image(seed: u8) -> ImagePrompt {
    let rgb = (0..40 * 30 * 3).map(|i| (i as u8).wrapping_mul(seed)).collect();
    ImagePrompt::new(Image::new(40, 30, rgb).unwrap())
}

#[test]
fn prompts_and_references() {
    let model = Model::folder();
    let options = model.options();
    let case = Case::new(&options);
    let mut request = request();
    (request.steps, request.image_prompts) = (1, vec![image(3)]);
    request.negative_prompt = Some("fog".into());
    // Both encoders on both prompts.
    assert_eq!(case.runs(&options, &request), [4, 1]);
    assert_eq!(case.runs(&options, &request), [0, 0]);
    (request.seed, request.steps, request.guidance_scale) = (9, 2, 3.0);
    request.image_prompts = vec![image(3).with_scale(0.5)];
    assert_eq!(case.runs(&options, &request), [0, 0]);
    request.prompt = "a boat".into();
    assert_eq!(case.runs(&options, &request), [2, 0]);
    request.image_prompts = vec![image(5)];
    assert_eq!(case.runs(&options, &request), [0, 1]);
    let [a, b] = [5, 3].map(|seed| image(seed).references.remove(0));
    request.image_prompts[0].references = vec![a, b];
    assert_eq!(case.runs(&options, &request), [0, 0]);
    // The prompt by fewer layers, not the negative one.
    request.clip_skip = 1;
    assert_eq!(case.runs(&options, &request), [2, 0]);
    request.negative_prompt = Some("rain".into());
    assert_eq!(case.runs(&options, &request), [2, 0]);
    request.image_prompts = vec![image(5).with_resize((31, 17))];
    assert_eq!(case.runs(&options, &request), [0, 1]);
    case.pipeline.clear_cache();
    assert_eq!(case.runs(&options, &request), [4, 1]);
}

/// Nothing is kept where nothing may be, and no more than may.
#[test]
fn bounded() {
    let model = Model::folder();
    let mut request = request();
    (request.steps, request.image_prompts) = (1, vec![image(3)]);
    request.negative_prompt = Some("fog".into());
    for (bytes, again) in [(0, [4, 1]), (1 << 30, [0, 0])] {
        let options = model.options().with_max_cache_bytes(bytes);
        let case = Case::new(&options);
        assert_eq!(case.runs(&options, &request), [4, 1]);
        assert_eq!(case.runs(&options, &request), again, "{bytes} bytes");
    }
}

/// The text encoders' updates by LoRAs count.
#[test]
fn scales_of_loras() {
    let model = Model::golden("diffusers", "lora-text");
    let mut options = model.options().with_lora(model.path("text.safetensors"));
    (options.adapters, options.clip_vision) = (Vec::new(), None);
    let case = Case::new(&options);
    let mut request = request().with_lora_scales([1.0]);
    (request.steps, request.guidance_scale) = (1, 1.0);
    request.image_prompts.clear();
    let first = case.runs(&options, &request);
    assert!(first[0] >= 2, "{first:?}");
    assert_eq!(case.runs(&options, &request), [0, 0]);
    request.lora_scales = vec![0.5];
    assert_eq!(case.runs(&options, &request), first);
}
