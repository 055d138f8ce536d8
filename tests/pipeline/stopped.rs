//! Work that is stopped while an executable runs: it ends there, with a typed error, and the pipeline goes on as before.

use super::*;
use braid::device::cpu::Cpu;
use braid::device::{Compiled, Device, Executable, TensorData};
use braid::graph::Graph;
use braid::weights::MappedBytes;
use braid::{Callbacks, CancelToken};
use std::sync::Mutex;

/// Called with a graph as its executable begins to run.
type Before = Arc<dyn Fn(&Graph) + Send + Sync>;

/// The CPU, with a function that is called before each run.
pub struct Watched(Cpu, Before);

struct WatchedExecutable(Box<dyn Executable>, Before);

impl Watched {
    /// A pipeline on it.
    pub fn load(options: &PipelineOptions, before: impl Fn(&Graph) + Send + Sync + 'static) -> Pipeline {
        let device = Self(Cpu::new(Some(2)), Arc::new(before));
        Pipeline::load_with_device(options, Some(Box::new(device))).unwrap()
    }
}

impl Device for Watched {
    fn name(&self) -> String {
        self.0.name()
    }

    fn compile(&self, graph: Graph) -> braid::Result<Box<dyn Executable>> {
        Ok(Box::new(WatchedExecutable(self.0.compile(graph)?, self.1.clone())))
    }
}

impl Compiled for WatchedExecutable {
    fn graph(&self) -> &Graph {
        self.0.graph()
    }

    fn bytes(&self) -> usize {
        self.0.bytes()
    }
}

impl Executable for WatchedExecutable {
    fn run(&mut self, inputs: &[TensorData<'_>], outputs: &mut [&mut [f32]]) -> braid::Result<()> {
        (self.1)(self.graph());
        self.0.run(inputs, outputs)
    }
}

/// The rows that a denoiser evaluates; none for other graphs.
pub fn denoised_rows(graph: &Graph) -> Option<usize> {
    graph.inputs.first().filter(|(name, _)| name == "sample").map(|(_, id)| graph.node(*id).shape[0])
}

/// A token that is set as the run of that number begins, and the runs that have begun.
#[derive(Default)]
struct Countdown(Mutex<(usize, usize, CancelToken)>);

impl Countdown {
    fn set(&self, run: usize) -> CancelToken {
        let token = CancelToken::new();
        *self.0.lock().unwrap() = (run, 0, token.clone());
        token
    }

    fn begins(&self) {
        let (run, begun, token) = &mut *self.0.lock().unwrap();
        if run == begun {
            token.cancel();
        }
        *begun += 1;
    }

    fn begun(&self) -> usize {
        self.0.lock().unwrap().1
    }
}

fn picture(seed: usize) -> Image {
    let rgb = (0..32 * 32 * 3).map(|i| ((i + seed).wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    Image::new(32, 32, rgb).unwrap()
}

/// A request that runs every executable.
fn every_stage() -> Request {
    let mut request = request().with_init_image(picture(1)).with_strength(1.0).with_num_images(2);
    request.image_prompts[0] = ImagePrompt::new(picture(2));
    request
}

type Work<'a> = &'a dyn Fn(&CancelToken) -> braid::Result<()>;

/// Whatever runs an executable is stopped in each of its runs, and not before the end of the last one where nothing stops it.
#[test]
fn f11_stopped_in_every_run() {
    let model = Model::folder();
    let countdown = Arc::new(Countdown::default());
    let begins = countdown.clone();
    let pipeline = Watched::load(&model.options().with_max_cache_bytes(0), move |_| begins.begins());
    let request = every_stage();
    let whole = generate(&pipeline, &request).unwrap();
    let works: [(&str, usize, Work<'_>); 7] = [
        ("generate_with", 9, &|cancel| {
            pipeline.generate_with(&request, Callbacks::new().with_cancel(cancel)).map(drop)
        }),
        ("generate", 9, &|cancel| cancel.scope(|| pipeline.generate(&request)).map(drop)),
        ("generate_batch", 9, &|cancel| {
            cancel.scope(|| pipeline.generate_batch(std::slice::from_ref(&request))).remove(0).map(drop)
        }),
        ("encode_image", 1, &|cancel| cancel.scope(|| pipeline.encode_image(&picture(3))).map(drop)),
        ("encode_references", 2, &|cancel| {
            cancel.scope(|| pipeline.encode_references(0, &request.image_prompts[0])).map(drop)
        }),
        ("session", 6, &|cancel| cancel.scope(|| pipeline.session(&request)).map(drop)),
        ("prepare_prompts", 5, &|cancel| {
            cancel.scope(|| pipeline.prepare_prompts(&request, request.prompts())).map(drop)
        }),
    ];
    for (name, least, work) in works {
        let runs = (0..).find(|run| {
            let cancel = countdown.set(*run);
            match work(&cancel) {
                Ok(()) => {
                    assert!(!cancel.is_cancelled(), "{name}: not stopped in run {run}");
                    true
                }
                Err(error) => {
                    assert!(matches!(error, Error::Cancelled), "{name}: {error}");
                    // The second text encoder begins after the first one, and ends at once.
                    assert!(countdown.begun() <= run + 2, "{name}: not stopped in run {run}");
                    false
                }
            }
        });
        assert!(runs >= Some(least), "{name}: {runs:?} runs");
        assert_eq!(generate(&pipeline, &request).unwrap(), whole, "after {name}");
    }
}

/// Of requests that share an evaluation, one that is cancelled meanwhile does not stop the others'; all of them do.
#[test]
fn f11_stopped_in_a_shared_evaluation() {
    let model = Model::folder();
    let tokens: Arc<Mutex<Vec<CancelToken>>> = Arc::default();
    let evaluations = Arc::new(AtomicUsize::new(0));
    let (of_test, count) = (tokens.clone(), evaluations.clone());
    let pipeline = Watched::load(&model.options().with_max_batch(2), move |graph| {
        if denoised_rows(graph) == Some(4) {
            count.fetch_add(1, Ordering::SeqCst);
            of_test.lock().unwrap().iter().for_each(CancelToken::cancel);
        }
    });
    let requests = [request().with_steps(4), request().with_steps(4).with_seed(90)];
    let alone = requests.each_ref().map(|request| generate(&pipeline, request).unwrap());
    for stopped in [vec![1], vec![0], vec![0, 1], vec![]] {
        let cancel = [(); 2].map(|()| CancelToken::new());
        *tokens.lock().unwrap() = stopped.iter().map(|&i| cancel[i].clone()).collect();
        evaluations.store(0, Ordering::SeqCst);
        let jobs = requests.iter().zip(&cancel).map(|(r, cancel)| (r.clone(), Callbacks::new().with_cancel(cancel)));
        let mut results = [None, None];
        pipeline.generate_batch_with(jobs, |number, result| results[number] = Some(result));
        for (number, result) in results.into_iter().enumerate() {
            match result.unwrap() {
                Ok(output) => {
                    assert!(!stopped.contains(&number));
                    assert!(output.images[0].rgb() == alone[number], "{number} beside {stopped:?}");
                }
                Err(error) => assert!(matches!(error, Error::Cancelled) && stopped.contains(&number), "{error}"),
            }
        }
        assert_eq!(evaluations.load(Ordering::SeqCst), if stopped.is_empty() { 4 } else { 1 }, "{stopped:?}");
    }
}

/// Loading and preparing stop, too, and nothing is left behind.
#[test]
fn f11_stopped_loading() {
    let model = Model::folder();
    let set = CancelToken::new();
    set.cancel();
    for mmap in [true, false] {
        let options = model.options().with_mmap(mmap);
        assert!(matches!(set.scope(|| Pipeline::load(&options)), Err(Error::Cancelled)));
        assert!(matches!(set.scope(|| MappedBytes::read(&model.path(ADAPTER))), Err(Error::Cancelled)));
        let pipeline = CancelToken::new().scope(|| Pipeline::load(&options)).unwrap();
        let shape = pipeline.workload_shape(&request()).unwrap();
        assert!(matches!(set.scope(|| pipeline.prepare(&shape)), Err(Error::Cancelled)));
        assert_eq!(pipeline.device_memory_used(), 0);
        pipeline.prepare(&shape).unwrap();
        assert_eq!(pipeline.generate(&request()).unwrap().images.len(), 1);
    }
}
