//! A pool of threads that share the items of one operation.

use crate::parallel;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Threads that wait for work; the caller is one of them.
///
/// Items are taken from a counter, so which thread does an item varies from run to run: an operation must not let its
/// result depend on that.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    running: Mutex<()>,
}

type Task = *const (dyn Fn(usize, usize) + Sync);

struct Shared {
    job: Mutex<Job>,
    wake: Condvar,
    epoch: AtomicUsize,
    next: AtomicUsize,
    /// Workers that have joined the job.
    busy: AtomicUsize,
    panicked: AtomicBool,
}

#[derive(Clone, Copy)]
struct Job {
    task: Option<Task>,
    items: usize,
    epoch: usize,
    stop: bool,
}

// SAFETY: the pointer is only followed by workers that joined between the start and the end of `Pool::run`, which waits for
// them and borrows the closure for all that time; the closure is `Sync`.
unsafe impl Send for Job {}

/// Spins of a worker that looks for new work before it sleeps: operations follow one another within microseconds.
const SPINS: usize = 4000;

impl Pool {
    /// A pool of `threads` threads, the caller included.
    pub(crate) fn new(threads: usize) -> Self {
        let shared = Arc::new(Shared {
            job: Mutex::new(Job { task: None, items: 0, epoch: 0, stop: false }),
            wake: Condvar::new(),
            epoch: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
            busy: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
        });
        let start = |worker: usize| {
            let shared = shared.clone();
            std::thread::Builder::new().name(format!("braid-{worker}")).spawn(move || shared.work(worker))
        };
        let mut workers = Vec::new();
        for worker in 1..threads {
            match start(worker) {
                Ok(thread) => workers.push(thread),
                Err(error) => {
                    parallel::tell_of_fewer(worker, threads, &error);
                    break;
                }
            }
        }
        Self { shared, workers, running: Mutex::new(()) }
    }

    /// The number of threads, the caller included.
    pub(crate) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `task(item, thread)` once for every item; `thread` is below [`Pool::threads`] and no two calls with one
    /// thread number run at the same time. A panic in a task is passed on after all threads have ended.
    pub(crate) fn run(&self, items: usize, task: &(dyn Fn(usize, usize) + Sync)) {
        self.run_while(items, task, &|| true);
    }

    /// As [`Pool::run`], as long as `goes_on`, which the caller's thread asks before each of its items: the other items are left out then.
    pub(crate) fn run_while(&self, items: usize, task: &(dyn Fn(usize, usize) + Sync), goes_on: &dyn Fn() -> bool) {
        if self.workers.is_empty() || items <= 1 {
            (0..items).take_while(|_| goes_on()).for_each(|i| task(i, 0));
            return;
        }
        if !goes_on() {
            return;
        }
        let _running = lock(&self.running);
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes; the pointer is dead before this function returns, see `Job`.
        let task: Task = unsafe { std::mem::transmute::<*const (dyn Fn(usize, usize) + Sync + '_), Task>(task) };
        shared.next.store(0, Ordering::Relaxed);
        {
            let mut job = lock(&shared.job);
            *job = Job { task: Some(task), items, epoch: job.epoch + 1, stop: false };
            shared.epoch.store(job.epoch, Ordering::Release);
        }
        shared.wake.notify_all();
        let result = shared.take_items(task, items, 0, goes_on);
        // Nobody joins from here on: a worker that the system has not let run yet is not waited for.
        lock(&shared.job).task = None;
        let mut spins = 0;
        while shared.busy.load(Ordering::Acquire) != 0 {
            spins += 1;
            if spins < SPINS { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
        // Cleared in either case, so that it cannot fail a later run.
        let other = shared.panicked.swap(false, Ordering::Relaxed);
        if let Err(panic) = result {
            resume_unwind(panic);
        }
        if other {
            panic!("an operation failed on another thread");
        }
    }

    /// Calls `task(number, value)` once for every value.
    pub(crate) fn for_each<T: Send>(&self, values: &mut [T], task: &(dyn Fn(usize, &mut T) + Sync)) {
        struct Values<T>(*mut T);
        // SAFETY: each value is given to one item, and `T` may be sent to its thread.
        unsafe impl<T: Send> Sync for Values<T> {}
        let (first, count) = (Values(values.as_mut_ptr()), values.len());
        let first = &first;
        self.run(count, &|i, _| {
            // SAFETY: `run` gives each number below `count` to one call, and `values` is borrowed until it returns.
            task(i, unsafe { &mut *first.0.add(i) });
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        {
            let mut job = lock(&self.shared.job);
            job.stop = true;
            job.epoch += 1;
            self.shared.epoch.store(job.epoch, Ordering::Release);
        }
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn work(&self, worker: usize) {
        let mut seen = 0;
        loop {
            let mut spins = 0;
            while self.epoch.load(Ordering::Acquire) == seen && spins < SPINS {
                spins += 1;
                std::hint::spin_loop();
            }
            let job = {
                let mut job = lock(&self.job);
                while job.epoch == seen {
                    job = self.wake.wait(job).unwrap_or_else(PoisonError::into_inner);
                }
                if job.task.is_some() {
                    // Under the lock, so that `Pool::run` either sees it or has ended the job.
                    self.busy.fetch_add(1, Ordering::Relaxed);
                }
                *job
            };
            seen = job.epoch;
            if job.stop {
                return;
            }
            if let Some(task) = job.task {
                if self.take_items(task, job.items, worker, &|| true).is_err() {
                    self.panicked.store(true, Ordering::Relaxed);
                }
                self.busy.fetch_sub(1, Ordering::Release);
            }
        }
    }

    fn take_items(
        &self,
        task: Task,
        items: usize,
        thread: usize,
        goes_on: &dyn Fn() -> bool,
    ) -> std::thread::Result<()> {
        catch_unwind(AssertUnwindSafe(|| {
            loop {
                if !goes_on() {
                    // Nobody finds an item from here on.
                    self.next.fetch_max(items, Ordering::Relaxed);
                    return;
                }
                let item = self.next.fetch_add(1, Ordering::Relaxed);
                if item >= items {
                    return;
                }
                // SAFETY: `Pool::run` keeps the closure alive until every worker that joined has left this function.
                unsafe { (*task)(item, thread) };
            }
        }))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_once() {
        let pool = Pool::new(4);
        for items in [0, 1, 3, 1000] {
            let seen: Vec<AtomicUsize> = (0..items).map(|_| AtomicUsize::new(0)).collect();
            pool.run(items, &|i, thread| {
                assert!(thread < 4);
                seen[i].fetch_add(1, Ordering::Relaxed);
            });
            assert!(seen.iter().all(|s| s.load(Ordering::Relaxed) == 1));
        }
    }

    /// Threads end with the items that they are at, and the next run is whole.
    #[test]
    fn stopped_run() {
        const ITEMS: usize = 100_000;
        for threads in [1, 4] {
            let pool = Pool::new(threads);
            let (done, asked) = (AtomicUsize::new(0), AtomicUsize::new(0));
            let count = |_: usize, thread: usize| {
                // So that the others could do all of them in half a minute only.
                if thread > 0 {
                    std::thread::sleep(std::time::Duration::from_millis(1));
                }
                done.fetch_add(1, Ordering::SeqCst);
            };
            pool.run_while(ITEMS, &count, &|| asked.fetch_add(1, Ordering::SeqCst) < 10);
            assert!((9..ITEMS).contains(&done.swap(0, Ordering::SeqCst)));
            pool.run_while(ITEMS, &count, &|| false);
            assert_eq!(done.swap(0, Ordering::SeqCst), 0);
            pool.run(100, &count);
            assert_eq!(done.load(Ordering::SeqCst), 100);
        }
    }

    #[test]
    fn every_value_once() {
        let pool = Pool::new(4);
        let mut values: Vec<String> = (0..100).map(|i| i.to_string()).collect();
        pool.for_each(&mut values, &|i, value| *value += &format!(" {i}"));
        assert!(values.iter().enumerate().all(|(i, value)| *value == format!("{i} {i}")));
    }

    #[test]
    fn worker_panic() {
        let pool = Pool::new(3);
        let run = |bad: usize| catch_unwind(AssertUnwindSafe(|| pool.run(64, &|i, _| assert!(i != bad, "planned"))));
        assert!(run(40).is_err());
        assert!(run(64).is_ok());
        let all = catch_unwind(AssertUnwindSafe(|| pool.run(64, &|_, _| panic!("planned"))));
        assert!(all.is_err() && run(64).is_ok());
    }
}
