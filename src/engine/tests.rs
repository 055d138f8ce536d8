//! The engine over a runner that draws nothing, against what a simple scheduler would do.

use super::worker::{Job, Runner, Shared};
use super::*;
use crate::pipeline::{Callbacks, Jobs, Output, Progress, Stage};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, Weak};
use std::time::{Duration, Instant};

/// Runs so many requests at once, each for as many steps as it asks for; the prompt `panic` makes the whole runner panic, also where it
/// only looks at it.
struct Steps {
    room: usize,
    /// Nothing begins while it is set.
    held: AtomicBool,
    /// The seeds in the order in which requests began.
    begun: Mutex<Vec<u64>>,
    most: AtomicUsize,
    /// The runs that have ended.
    ended: AtomicUsize,
}

impl Steps {
    fn new(room: usize) -> Arc<Self> {
        let held = AtomicBool::new(false);
        let [most, ended] = [0, 0].map(AtomicUsize::new);
        Arc::new(Self { room, held, begun: Mutex::default(), most, ended })
    }

    fn engine(self: &Arc<Self>, options: EngineOptions) -> Engine {
        Engine::over(self.clone(), options).unwrap()
    }

    fn hold(self: &Arc<Self>) -> &Arc<Self> {
        self.held.store(true, Ordering::SeqCst);
        self
    }

    fn release(&self) {
        self.held.store(false, Ordering::SeqCst);
    }

    fn begun(&self) -> Vec<u64> {
        self.begun.lock().unwrap().clone()
    }
}

fn output(seed: u64) -> Output {
    Output {
        images: Vec::new(),
        seeds: vec![seed],
        upcast_vae: Vec::new(),
        seconds: BTreeMap::new(),
        step_seconds: Vec::new(),
        scale_changes: Vec::new(),
        prompt_changes: Vec::new(),
        intermediates: BTreeMap::new(),
        attributions: Vec::new(),
        truncated_tokens: 0,
    }
}

impl Runner for Steps {
    fn run(&self, jobs: &mut dyn Jobs<'static>, done: &mut dyn FnMut(usize, Result<Output>)) {
        let mut running: Vec<(usize, Request, Callbacks<'static>, usize)> = Vec::new();
        loop {
            while self.held.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_micros(50));
            }
            while running.len() < self.room
                && let Some((number, request, callbacks)) = jobs.next()
            {
                let to_come = jobs.to_come(self.room - running.len());
                assert!(to_come.iter().all(|request| request.prompt != "panic"), "planned");
                self.begun.lock().unwrap().push(request.seed);
                running.push((number, request, callbacks, 0));
            }
            self.most.fetch_max(running.len(), Ordering::SeqCst);
            if running.is_empty() {
                self.ended.fetch_add(1, Ordering::SeqCst);
                return;
            }
            let mut rest = Vec::new();
            for (number, request, mut callbacks, step) in running {
                assert!(request.prompt != "panic", "planned");
                let progress =
                    Progress { stage: Stage::Denoise, image: 0, num_images: 1, done: step, steps: request.steps };
                callbacks.on_progress.iter_mut().for_each(|call| call(progress));
                if callbacks.cancel.is_cancelled() {
                    done(number, Err(Error::Cancelled));
                } else if step == request.steps {
                    done(number, Ok(output(request.seed)));
                } else {
                    rest.push((number, request, callbacks, step + 1));
                }
            }
            running = rest;
        }
    }
}

fn request(seed: u64, steps: usize) -> Request {
    let mut request = Request::new("a fox");
    (request.seed, request.steps) = (seed, steps);
    request
}

fn wait_until(what: impl Fn() -> bool) {
    let begin = Instant::now();
    while !what() {
        assert!(begin.elapsed() < Duration::from_secs(20), "nothing happens");
        std::thread::sleep(Duration::from_micros(100));
    }
}

/// A request that has ended lets go of what it holds, also where the engine has had something to do ever since.
#[test]
fn finished_requests_are_dropped() {
    let steps = Steps::new(2);
    let engine = steps.hold().engine(EngineOptions::default());
    let held = Arc::new(());
    let of_callback = held.clone();
    let options = SubmitOptions::new().with_progress(move |_| assert!(Arc::strong_count(&of_callback) > 1));
    let brief = engine.submit_with(request(0, 1), options).unwrap();
    let long = engine.submit(request(1, usize::MAX)).unwrap();
    steps.release();
    brief.wait().unwrap();
    wait_until(|| Arc::strong_count(&held) == 1);
    assert!(matches!(long.status(), TicketStatus::Running { .. }) && steps.ended.load(Ordering::SeqCst) == 0);
    long.cancel();
    engine.drain();
}

#[test]
fn priorities() {
    let steps = Steps::new(1);
    let engine = steps.hold().engine(EngineOptions::default());
    let submit =
        |(seed, priority)| engine.submit_with(request(seed, 3), SubmitOptions::new().with_priority(priority)).unwrap();
    let tickets = [(0, 0), (1, 0), (2, 5), (3, -1), (4, 5), (5, 0)].map(submit);
    let status = tickets.each_ref().map(Ticket::status);
    assert_eq!(status, [2, 3, 0, 5, 1, 4].map(|ahead| TicketStatus::Waiting { ahead }));
    steps.release();
    for (seed, ticket) in tickets.into_iter().enumerate() {
        assert_eq!(ticket.wait().unwrap().seeds, [seed as u64]);
    }
    assert_eq!(steps.begun(), [2, 4, 0, 1, 5, 3]);
    engine.drain();
}

/// Requests as they are taken, and looked at before, against a list that is sorted anew for each call.
#[test]
fn order_against_a_list() {
    const MOST: usize = 4;
    let options = EngineOptions::default().with_aging(Duration::ZERO).with_max_running(MOST).with_max_waiting(2000);
    let (shared, mut x, mut looked) = (Shared::new(options), 1_u64, [0; 3]);
    let mut random = |n: usize| {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (x >> 33) as usize % n
    };
    // Those that wait: priority, id, images.
    let (mut waiting, mut running) = (Vec::<(Reverse<i32>, u64, usize)>::new(), Vec::<Arc<Job>>::new());
    for _ in 0..2000 {
        match random(5) {
            0 | 1 => {
                let (priority, images) = (random(3) as i32, 1 + random(3));
                let options = SubmitOptions::new().with_priority(priority);
                let state = shared.submit(request(0, 1).with_num_images(images), options).unwrap();
                waiting.push((Reverse(priority), state.id, images));
            }
            2 if !waiting.is_empty() => {
                let (_, id, _) = waiting.remove(random(waiting.len()));
                assert!(shared.remove(id));
            }
            3 if !running.is_empty() => shared.finish(&running.remove(random(running.len())), Err(Error::Cancelled)),
            _ => {
                waiting.sort_unstable();
                let next = (running.len() < MOST && !waiting.is_empty()).then(|| waiting.remove(0).1);
                let taken = shared.take();
                assert_eq!(taken.as_ref().map(|job| job.state.id), next);
                running.extend(taken);
            }
        }
        waiting.sort_unstable();
        let (room, mut wanted) = (random(8), Vec::new());
        for (_, _, images) in waiting.iter().take(MOST - running.len()) {
            if wanted.iter().sum::<usize>() < room {
                wanted.push(*images);
            }
        }
        let got: Vec<_> = shared.to_come(room).iter().map(|request| request.num_images).collect();
        assert_eq!((&got, shared.waiting()), (&wanted, waiting.len()));
        looked[got.len().min(2)] += 1;
    }
    assert!(looked.iter().all(|n| *n > 100), "{looked:?}");
}

/// A request joins those that run, as far as there is room, and leaves when it is done.
#[test]
fn joining() {
    let steps = Steps::new(8);
    let engine = steps.engine(EngineOptions::default().with_max_running(3));
    let long = engine.submit(request(0, 1 << 40)).unwrap();
    wait_until(|| matches!(long.status(), TicketStatus::Running { progress: Some(progress) } if progress.done > 2));
    let short: Vec<_> = (1..10).map(|seed| engine.submit(request(seed, 2)).unwrap()).collect();
    for (seed, ticket) in (1..).zip(short) {
        assert_eq!(ticket.wait().unwrap().seeds, [seed]);
    }
    assert!(matches!(long.status(), TicketStatus::Running { .. }) && engine.running() == 1);
    assert_eq!(steps.most.load(Ordering::SeqCst), 3);
    long.cancel();
    assert!(matches!(long.wait(), Err(Error::Cancelled)));
    wait_until(|| engine.running() == 0);
}

/// The first request waits for others, but not for ever.
#[test]
fn gathering() {
    let steps = Steps::new(8);
    let engine = steps.engine(EngineOptions::default().with_gather(Duration::from_secs(3600)).with_max_running(3));
    let tickets = [0, 1, 2].map(|seed| engine.submit(request(seed, 5)).unwrap());
    assert!(tickets.into_iter().all(|ticket| ticket.wait().is_ok()));
    assert_eq!(steps.most.load(Ordering::SeqCst), 3);
    // Until then it would join them.
    wait_until(|| steps.ended.load(Ordering::SeqCst) == 1);
    let alone = engine.submit(request(3, 5)).unwrap();
    let alone = alone.wait_timeout(Duration::from_millis(20)).unwrap_err();
    assert_eq!(alone.status(), TicketStatus::Waiting { ahead: 0 });
    // A drain waits for nobody else.
    let drained = std::thread::spawn(move || engine.drain());
    assert_eq!(alone.wait().unwrap().seeds, [3]);
    drained.join().unwrap();
}

#[test]
fn full_queue_and_cancelled_waiters() {
    let steps = Steps::new(1);
    let engine = steps.hold().engine(EngineOptions::default().with_max_waiting(2));
    let tickets = [0, 1].map(|seed| engine.submit(request(seed, 1)).unwrap());
    let refused = engine.submit(request(2, 1)).unwrap_err();
    assert!(matches!(refused, Error::Busy { waiting: 2 }) && refused.to_string().contains("2 requests wait"));
    let [first, second] = tickets;
    // At once, though nothing is drawn.
    first.cancel();
    assert!(matches!(first.wait(), Err(Error::Cancelled)));
    let third = engine.submit(request(3, 1)).unwrap();
    drop(second);
    assert_eq!(engine.waiting(), 1);
    steps.release();
    assert_eq!(third.wait().unwrap().seeds, [3]);
    assert_eq!(steps.begun(), [3]);
}

/// One thread waits with a ticket, another one cancels by it.
#[test]
fn shared_ticket() {
    let steps = Steps::new(1);
    let engine = steps.hold().engine(EngineOptions::default());
    let ticket = engine.submit(request(0, 3)).unwrap();
    assert!(ticket.wait_for(Duration::ZERO).is_none());
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| ticket.wait_for(Duration::MAX));
        ticket.cancel();
        assert!(matches!(waiting.join().unwrap(), Some(Err(Error::Cancelled))));
    });
    assert_eq!(ticket.status(), TicketStatus::Done);
    assert!(ticket.wait_for(Duration::MAX).is_none(), "taken twice");
    steps.release();
}

#[test]
fn deadlines() {
    let steps = Steps::new(1);
    let engine = steps.hold().engine(EngineOptions::default());
    let now = Instant::now();
    let by = |deadline| engine.submit_with(request(1, 1), SubmitOptions::new().with_deadline(deadline));
    assert!(matches!(by(now), Err(Error::Late)));
    let soon = by(now + Duration::from_millis(30)).unwrap();
    let later = by(now + Duration::from_secs(3600)).unwrap();
    // While nothing is drawn, and without anybody who takes from the queue.
    assert!(matches!(soon.wait(), Err(Error::Late)));
    assert!(now.elapsed() >= Duration::from_millis(30) && engine.waiting() == 1);
    steps.release();
    assert!(later.wait().is_ok());
    assert_eq!(steps.begun().len(), 1);
}

#[test]
fn refused_requests() {
    let engine = Steps::new(1).engine(EngineOptions::default());
    assert!(matches!(engine.submit(request(1, 0)), Err(Error::Parameter { field: crate::error::Field::Steps, .. })));
    engine.shared.close();
    assert!(matches!(engine.submit(request(1, 1)), Err(Error::Stopped)));
}

/// A callback's panic fails its request, a panic of the work the one that it comes from, which may wait still, and neither any other.
#[test]
fn f13_panics() {
    let steps = Steps::new(4);
    let engine = steps.hold().engine(EngineOptions::default());
    let progress = SubmitOptions::new().with_progress(|progress| assert!(progress.done < 2, "in a callback"));
    let bad = engine.submit_with(request(1, 9), progress).unwrap();
    let good = [2, 3].map(|seed| engine.submit(request(seed, 9)).unwrap());
    steps.release();
    let error = bad.wait().unwrap_err();
    assert!(matches!(&error, Error::Panicked(what) if what == "in a callback"), "{error}");
    assert!(good.into_iter().all(|ticket| ticket.wait().is_ok()));
    steps.hold();
    let mut worst = request(4, 9);
    worst.prompt = "panic".into();
    let submitted = [request(5, 9), worst, request(6, 9)].map(|request| engine.submit(request).unwrap());
    let [first, worst, last] = submitted;
    steps.release();
    assert!(matches!(worst.wait(), Err(Error::Panicked(what)) if what == "planned"));
    for (seed, ticket) in [(5, first), (6, last)] {
        assert_eq!(ticket.wait().unwrap().seeds, [seed]);
    }
}

/// A callback that would wait for its own end is refused, for a ticket of its engine, and for the engine itself it does not wait.
#[test]
fn callbacks_that_wait() {
    for drains in [true, false] {
        let steps = Steps::new(1);
        let engine = Arc::new(Mutex::new(Some(steps.engine(EngineOptions::default()))));
        let of_callback = engine.clone();
        let tell = move |progress: Progress| {
            if progress.done != 1 {
                return;
            }
            let mut engine = of_callback.lock().unwrap();
            let submit = |seed| engine.as_ref().unwrap().submit(request(seed, 1)).unwrap();
            let ticket = submit(2);
            assert!(ticket.wait_for(Duration::ZERO).is_none());
            assert!(matches!(ticket.wait_for(Duration::MAX), Some(Err(Error::InCallback))));
            assert!(matches!(ticket.wait_timeout(Duration::from_millis(1)), Ok(Err(Error::InCallback))));
            assert!(matches!(submit(3).wait(), Err(Error::InCallback)));
            let engine = engine.take().unwrap();
            if drains { engine.drain() } else { drop(engine) }
        };
        let submitted = SubmitOptions::new().with_progress(tell);
        let ticket = engine.lock().unwrap().as_ref().unwrap().submit_with(request(1, 3), submitted).unwrap();
        match ticket.wait() {
            Ok(output) => assert!(drains && output.seeds == [1]),
            Err(error) => assert!(!drains && matches!(error, Error::Cancelled), "{error}"),
        }
        wait_until(|| steps.ended.load(Ordering::SeqCst) == 1);
        assert_eq!(steps.begun(), [1]);
    }
}

/// Dropping an engine ends all of its requests; their tickets stay usable.
#[test]
fn dropped_engine() {
    let steps = Steps::new(1);
    let engine = steps.engine(EngineOptions::default());
    let running = engine.submit(request(0, 1 << 40)).unwrap();
    wait_until(|| engine.running() == 1);
    let waiting = engine.submit(request(1, 1)).unwrap();
    drop(engine);
    assert!(matches!(running.wait(), Err(Error::Cancelled)));
    assert!(matches!(waiting.wait(), Err(Error::Stopped)));
}

/// An end that a client gives its request.
#[derive(Clone, Copy, PartialEq)]
enum Act {
    Wait,
    Cancel,
    Drop,
}

/// A submitted request of [`random_requests`].
struct Submitted {
    seed: u64,
    ticket: Ticket,
    act: Act,
    panics: bool,
    deadline: bool,
}

/// Requests of each kind: refused, drawn, cancelled, late, panicked.
#[derive(Debug, Default)]
struct Counts([AtomicUsize; 5]);

impl Counts {
    fn count(&self, kind: usize) {
        self.0[kind].fetch_add(1, Ordering::SeqCst);
    }

    /// Ends a request; its result is one that it may have.
    fn end(&self, Submitted { seed, ticket, act, panics, deadline }: Submitted) {
        match act {
            Act::Drop => return,
            Act::Cancel => ticket.cancel(),
            Act::Wait => {}
        }
        match ticket.wait() {
            Ok(output) => {
                assert!(output.seeds == [seed] && !panics);
                self.count(1);
            }
            Err(Error::Cancelled) => {
                assert!(act == Act::Cancel);
                self.count(2);
            }
            Err(Error::Late) => {
                assert!(deadline);
                self.count(3);
            }
            Err(Error::Panicked(_)) => {
                assert!(panics);
                self.count(4);
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// 10,000 requests of four threads, some cancelled, dropped, late or panicking: each has one result, which is one that it may have,
/// nothing stays behind, and none begins twice.
#[test]
fn random_requests() {
    const EACH: u64 = 2500;
    let steps = Steps::new(3);
    let options =
        EngineOptions::default().with_max_waiting(8).with_max_running(5).with_aging(Duration::from_micros(50));
    let engine = steps.engine(options);
    let (states, counts) = (Mutex::<Vec<Weak<state::TicketState>>>::default(), Counts::default());
    let client = |thread: u64| {
        let mut x = thread * 7919 + 1;
        let mut random = |n: u64| {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (x >> 33) % n
        };
        let mut own = Vec::new();
        for seed in thread * EACH..(thread + 1) * EACH {
            let mut options = SubmitOptions::new().with_priority(random(5) as i32 - 2);
            let (panics, deadline) = (random(20) == 0, random(4) == 0);
            if panics {
                options =
                    options.with_progress(|progress| std::panic::resume_unwind(Box::new(format!("{progress:?}"))));
            }
            if deadline {
                // Some are past already, others pass in the queue or not, as the machine's speed has it.
                options = options.with_deadline(Instant::now() + Duration::from_micros(random(4) * 100));
            }
            let mut busy = false;
            match engine.submit_with(request(seed, 1 + random(6) as usize), options) {
                Ok(ticket) => {
                    states.lock().unwrap().push(Arc::downgrade(&ticket.state));
                    let act = [Act::Wait, Act::Wait, Act::Cancel, Act::Drop][random(4) as usize];
                    own.push(Submitted { seed, ticket, act, panics, deadline });
                }
                Err(Error::Busy { waiting: 8 }) => {
                    counts.count(0);
                    busy = true;
                }
                Err(Error::Late) => {
                    assert!(deadline);
                    counts.count(3);
                }
                Err(error) => panic!("{error}"),
            }
            // A refused client waits, or most requests would find a full queue on a fast machine.
            if own.len() > 4 || busy && !own.is_empty() {
                counts.end(own.remove(random(own.len() as u64) as usize));
            }
        }
        own.into_iter().for_each(|submitted| counts.end(submitted));
    };
    std::thread::scope(|scope| {
        for thread in 0..4 {
            scope.spawn(move || client(thread));
        }
    });
    wait_until(|| engine.waiting() + engine.running() == 0);
    engine.drain();
    println!("refused, drawn, cancelled, late, panicked: {counts:?}");
    assert!(counts.0.iter().all(|n| n.load(Ordering::SeqCst) > 20), "{counts:?}");
    assert!(states.lock().unwrap().iter().all(|state| state.upgrade().is_none()), "a request stayed behind");
    let mut begun = steps.begun();
    let all = begun.len();
    begun.sort_unstable();
    begun.dedup();
    assert_eq!(begun.len(), all, "a request began twice");
}
