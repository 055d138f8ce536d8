//! Weights are on the device once, however many executables read them.

use super::common;
use super::ptx::PtxDriver;
use super::{compiled, outputs, scope, values};
use braid::device::cuda::driver::Driver;
use braid::device::cuda::{CudaDevice, CudaExecutable};
use braid::device::{Compiled, Device};
use braid::graph::{Builder, Graph};
use braid::pipeline::{EncoderResidency, MemoryEstimate, WorkloadShape};
use braid::tensor::DType;
use braid::weights::Scope;
use braid::{Error, Pipeline, PipelineOptions};
use std::sync::Arc;
use std::time::Duration;

fn weights() -> Scope {
    scope(&[
        ("in.weight", &[16, 16, 3, 3], 1),
        ("in.bias", &[16], 2),
        ("up.weight", &[16, 16, 3, 3], 3),
        ("norm.weight", &[16], 4),
        ("norm.bias", &[16], 5),
        ("out.weight", &[24, 16], 6),
    ])
}

/// An image of that side, enlarged to that one.
fn graph(s: &Scope, side: usize, to: usize) -> Graph {
    let mut b = Builder::new();
    let x = b.input("x", &[1, side, side, 16]);
    let x = b.conv2d(x, &s.pp("in"), 16, 3, 1);
    let x = b.group_norm(x, &s.pp("norm"), 4, 1e-5);
    let x = b.upsample(x, to, to);
    let x = b.conv2d_no_bias(x, &s.pp("up"), 16, 3, 1);
    let x = b.linear_no_bias(x, &s.pp("out"), 24);
    b.output("y", x);
    b.finish().unwrap()
}

fn device(driver: &Arc<PtxDriver>) -> CudaDevice {
    CudaDevice::new(driver.clone(), DType::F16).unwrap().with_cublaslt(false)
}

#[test]
fn second_size_memory() {
    if !compiled() {
        return;
    }
    let (driver, s) = (Arc::new(PtxDriver::new()), weights());
    let device = device(&driver);
    let (x, y) = (values(16 * 16, 7), values(36 * 16, 8));
    // The bytes uploaded, the executable, and the bytes that are held in addition.
    let load = |device: &CudaDevice, graph: Graph| -> (u64, CudaExecutable, usize) {
        let (moved, held) = (driver.moved()[0], driver.held());
        let executable = device.compile_graph(graph).unwrap();
        (driver.moved()[0] - moved, executable, driver.held() - held)
    };
    let (bytes, mut small, held) = load(&device, graph(&s, 4, 8));
    // Every tensor in f32, once.
    assert_eq!(bytes, 4 * (2 * 16 * 16 * 9 + 3 * 16 + 24 * 16));
    assert_eq!(held, small.report().bytes());
    let wanted = outputs(&mut small, &[&x]);
    let (bytes, mut large, held) = load(&device, graph(&s, 6, 12));
    assert_eq!((bytes, held), (0, large.report().work()));
    assert_eq!((large.bytes(), large.shared()), (large.report().bytes(), small.shared()));
    let alone = self::device(&Arc::new(PtxDriver::new())).compile_graph(graph(&s, 6, 12));
    assert_eq!(outputs(&mut large, &[&y]), outputs(&mut alone.unwrap(), &[&y]));
    // Not twice the size: the convolution after it is no longer one of four phases, and it alone is taken up again.
    let (bytes, mut odd, held) = load(&device, graph(&s, 4, 7));
    assert_eq!((bytes, held), (4 * 16 * 16 * 9, odd.report().work() + 2 * 16 * 16 * 9));
    let other = weights();
    let alone = self::device(&Arc::new(PtxDriver::new())).compile_graph(graph(&other, 4, 7));
    assert_eq!(outputs(&mut odd, &[&x]), outputs(&mut alone.unwrap(), &[&x]));
    // Another model's tensors are others, and so are those of another type.
    let (bytes, same, _) = load(&device, graph(&other, 4, 8));
    assert!(bytes > 0 && same.shared() != small.shared());
    let bf16 = CudaDevice::new(driver.clone(), DType::BF16).unwrap();
    assert!(load(&bf16, graph(&s, 4, 8)).0 > 0);
    drop(same);
    // Weights that one executable uploaded stay for the other.
    drop(odd);
    drop(large);
    assert_eq!(outputs(&mut small, &[&x]), wanted);
    let (bytes, again, _) = load(&device, graph(&s, 5, 10));
    assert_eq!(bytes, 0);
    drop(small);
    assert!(driver.held() > again.report().work());
    drop(again);
    assert_eq!(driver.held(), 0);
    // And goes with the last.
    assert!(load(&device, graph(&s, 4, 8)).0 > 0);
}

/// Weights whose upload failed are not taken to be there.
#[test]
fn failed_load_memory() {
    if !compiled() {
        return;
    }
    let s = weights();
    let needed = {
        let executable = device(&Arc::new(PtxDriver::new())).compile_graph(graph(&s, 4, 8)).unwrap();
        (executable.report().bytes() + executable.report().staging) as u64
    };
    let driver = Arc::new(PtxDriver::new().room(needed - 1));
    let short = device(&driver);
    // Weights, tensors and staging are counted together, before the first of them is allocated.
    match short.compile(graph(&s, 4, 8)).map(|_| ()) {
        Err(Error::Memory { stage: "loading", need, have, .. }) => assert_eq!((need, have), (needed, needed - 1)),
        other => panic!("{other:?}"),
    }
    assert_eq!((driver.held(), driver.calls().allocations), (0, 0));
    let driver = Arc::new(PtxDriver::new().room(needed));
    let enough = device(&driver);
    let executable = enough.compile(graph(&s, 4, 8)).unwrap();
    // A second one of the same weights needs room for no more than its tensors.
    drop(executable);
    assert!(enough.compile(graph(&s, 4, 8)).is_ok());
}

/// Two threads, each with an executable of its own on one device: neither's work is in what the other captures, and no result is
/// the other's.
#[test]
fn executables_in_two_threads() {
    if !compiled() {
        return;
    }
    let (driver, s) = (Arc::new(PtxDriver::new().pausing(Duration::from_millis(20))), weights());
    let device = device(&driver);
    let work = |side: usize, seed: u32| {
        let mut executable = device.compile_graph(graph(&s, side, 2 * side)).unwrap();
        let x = values(side * side * 16, seed);
        let first = outputs(&mut executable, &[&x]);
        move || (0..10).for_each(|run| assert_eq!(outputs(&mut executable, &[&x]), first, "{side}, run {run}"))
    };
    let mut both = [work(4, 7), work(6, 8)];
    std::thread::scope(|scope| both.iter_mut().for_each(|work| drop(scope.spawn(work))));
}

fn pipeline(options: &PipelineOptions) -> (Arc<PtxDriver>, Pipeline) {
    let driver = Arc::new(PtxDriver::new());
    let device = device(&driver);
    (driver, Pipeline::load_with_device(options, Some(Box::new(device))).unwrap())
}

/// The estimate is what is held, for one shape and for two.
#[test]
fn second_shape_memory() {
    if !compiled() {
        return;
    }
    let model = common::Model::folder();
    // What is kept for later requests would be held beside the executables.
    let options = model.options().with_max_cache_bytes(0);
    let (driver, pipeline) = pipeline(&options);
    let mut request = common::request();
    request.steps = 1;
    // With a layer less the positive prompt has an executable of its own.
    request.clip_skip = 1;
    let shape = |width, steps| -> WorkloadShape {
        let mut shape = pipeline.workload_shape(&request).unwrap();
        (shape.width, shape.height, shape.steps) = (Some(width), Some(16), steps);
        shape
    };
    let estimate = |shape: &WorkloadShape| -> MemoryEstimate { pipeline.estimate(shape).unwrap().unwrap() };
    let (first, second) = (shape(16, 1), shape(24, 65));
    let held = |e: MemoryEstimate| (e.peak_resident() - e.staging) as usize;
    pipeline.prepare(&first).unwrap();
    let (taken, one) = (driver.moved()[0], estimate(&first));
    assert_eq!((driver.held(), pipeline.device_memory_used()), (held(one), held(one)));
    let before = driver.calls().allocations;
    pipeline.prepare(&second).unwrap();
    // Two slabs each for conditioning, UNet and decoder, an image's memory; one, and its staging, for the convolutions after 2 to 3
    // columns, which are no doubling and so have another form.
    assert_eq!(driver.calls().allocations - before, 7 + 2);
    let more = driver.moved()[0] - taken;
    println!("{taken} bytes up for the first shape, {more} for the second");
    // Besides them the inputs of the runs that warm.
    assert!(more < taken / 4, "{more} of {taken}");
    let two = driver.held();
    assert_eq!(two, pipeline.device_memory_used());
    let (_, fresh) = self::pipeline(&options);
    fresh.prepare(&second).unwrap();
    let (alone, both) = (held(estimate(&second)), held(one));
    assert_eq!(alone, fresh.device_memory_used());
    assert!(two < both + alone / 2, "{two} for both, {both} and {alone} alone");
    // The decoder of that size and the conditioning of that many steps are there.
    pipeline.prepare(&shape(24, 1)).unwrap();
    assert_eq!(driver.calls().allocations - before, 7 + 2 + 3);
    // What is released is taken up again.
    pipeline.clear_cache();
    assert_eq!((driver.held(), pipeline.device_memory_used()), (0, 0));
    (request.width, request.height) = (Some(16), Some(16));
    // One that is zeros has no executable.
    request.negative_prompt = Some("rain".into());
    pipeline.generate(&request).unwrap();
    assert_eq!(driver.held(), held(one));
}

/// Encoders that go take their weights with them, and those of the negative prompt's with them.
#[test]
fn freed_encoders() {
    if !compiled() {
        return;
    }
    let model = common::Model::folder();
    let mut options = model.options();
    options.encoders = EncoderResidency::Free;
    let (driver, pipeline) = pipeline(&options);
    let mut request = common::request();
    (request.steps, request.clip_skip, request.width, request.height) = (1, 1, Some(16), Some(16));
    let e = pipeline.estimate(&pipeline.workload_shape(&request).unwrap()).unwrap().unwrap();
    for _ in 0..2 {
        pipeline.generate(&request).unwrap();
        assert_eq!(driver.held() as u64, e.condition + e.denoise + e.decode);
        assert_eq!(driver.held(), pipeline.device_memory_used());
    }
}

/// A LoRA's memory is told by the estimate, its factors lie beside the model's own weights, and another scale takes none of them up.
#[test]
fn lora_memory() {
    if !compiled() {
        return;
    }
    let model = common::Model::golden("diffusers", "lora-kohya");
    let (_, plain) = pipeline(&model.options());
    // Hidden states of the first scale would be there still for the third request.
    let options = model.options().with_lora(model.path("kohya.safetensors")).with_max_cache_bytes(0);
    let (driver, with) = pipeline(&options);
    let mut request = common::request();
    (request.steps, request.width, request.height) = (1, Some(16), Some(16));
    // The shape counts its row, which goes through the encoders with the prompt's; one that is zeros has none.
    request.negative_prompt = Some("rain".into());
    let estimate = |pipeline: &Pipeline| -> MemoryEstimate {
        pipeline.estimate(&pipeline.workload_shape(&request).unwrap()).unwrap().unwrap()
    };
    let (without, e) = (estimate(&plain), estimate(&with));
    assert!(e.text > without.text && e.condition > without.condition && e.denoise > without.denoise);
    assert_eq!((e.image, e.decode), (without.image, without.decode));
    let first = with.generate(&request).unwrap().images;
    assert_eq!(driver.held() as u64, e.peak_resident() - e.staging);
    let (calls, moved) = (driver.calls().allocations, driver.moved()[0]);
    let other = with.generate(&request.clone().with_lora_scales([-0.5])).unwrap().images;
    assert_ne!(first, other);
    // No more goes up than for a request of the same scales.
    let second = driver.moved()[0] - moved;
    assert_eq!(with.generate(&request).unwrap().images, first);
    assert_eq!((driver.calls().allocations, driver.moved()[0] - moved), (calls, 2 * second));
    assert!(second < moved / 4, "{second} of {moved}");
}
