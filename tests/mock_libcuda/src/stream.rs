//! Work on streams: done late, and captured.

use super::gpu::{Gpu, violation};
use super::launch::Launch;
use super::product::Product;
use super::settings::{times, works};
use super::status::*;
use braid_ptx::FaultKind;
use std::collections::VecDeque;
use std::ffi::c_int;
use std::thread::ThreadId;

/// A piece of work for the device.
#[derive(Clone)]
pub enum Work {
    /// From the host, to the device, bytes. The host's bytes are read when it is done.
    ToDevice(usize, u64, usize),
    /// From the device, to the host, bytes.
    ToHost(u64, usize, usize),
    /// Within the device: from, to, bytes.
    Within(u64, u64, usize),
    /// Address, bytes, value.
    Fill(u64, usize, u8),
    Launch(Launch),
    Product(Product),
    /// An event, and the number of this record of it.
    Mark(u64, u64),
}

/// A capture under way.
pub struct Capture {
    pub thread: ThreadId,
    pub work: Vec<Work>,
    pub broken: bool,
}

/// A stream.
#[derive(Default)]
pub struct Stream {
    pub queue: VecDeque<Work>,
    pub capture: Option<Capture>,
}

/// An event: its flags, its records, those that the device has come to, and the clock at the last of these.
#[derive(Default)]
pub struct Event {
    pub flags: u32,
    pub recorded: u64,
    pub reached: u64,
    pub at: u64,
}

/// The code of a fault, by its kind. What only the interpreter sees, such as a race, has none on a device.
pub fn code_of(fault: &FaultKind) -> c_int {
    match fault {
        FaultKind::OutOfBounds { .. } => ILLEGAL_ADDRESS,
        FaultKind::Misaligned { .. } => MISALIGNED_ADDRESS,
        _ => LAUNCH_FAILED,
    }
}

impl Gpu {
    /// Puts work on a stream, or into its capture.
    pub fn enqueue(&mut self, stream: u64, work: Work, call: &str) -> Result<(), c_int> {
        let Some(stream) = self.streams.get_mut(&stream) else {
            return Err(violation(INVALID_HANDLE, &format!("{call} on a stream that is not there")));
        };
        let Some(capture) = &mut stream.capture else {
            stream.queue.push_back(work);
            return self.some();
        };
        if capture.thread != std::thread::current().id() {
            capture.broken = true;
            return Err(violation(CAPTURE_UNSUPPORTED, &format!("{call} of another thread in a capture")));
        }
        if let Work::ToDevice(..) | Work::ToHost(..) = work {
            capture.broken = true;
            return Err(violation(CAPTURE_UNSUPPORTED, &format!("{call} during a capture")));
        }
        if capture.broken {
            return Err(CAPTURE_INVALIDATED);
        }
        capture.work.push(work);
        Ok(())
    }

    /// Does some of the work that waits: none, a little or much of it.
    pub fn some(&mut self) -> Result<(), c_int> {
        let streams: Vec<u64> = self.streams.keys().copied().collect();
        for stream in streams {
            let portion = [0, 0, 1, 3, 100][self.random(5) as usize];
            self.advance(stream, |_| true, portion)?;
        }
        Ok(())
    }

    /// Does all work of a stream.
    pub fn drain(&mut self, stream: u64) -> Result<(), c_int> {
        self.advance(stream, |_| true, usize::MAX)
    }

    /// Does all work of all streams.
    pub fn drain_all(&mut self) -> Result<(), c_int> {
        let streams: Vec<u64> = self.streams.keys().copied().collect();
        streams.into_iter().try_for_each(|stream| self.drain(stream))
    }

    /// Does work until the device has come to the last record of an event.
    pub fn reach(&mut self, event: u64) -> Result<(), c_int> {
        let streams: Vec<u64> = self.streams.keys().copied().collect();
        let waits = |gpu: &Self| gpu.events.get(&event).is_some_and(|e| e.reached < e.recorded);
        streams.into_iter().try_for_each(|stream| self.advance(stream, waits, usize::MAX))
    }

    fn advance(&mut self, stream: u64, wanted: impl Fn(&Self) -> bool, most: usize) -> Result<(), c_int> {
        for _ in 0..most {
            if !wanted(self) {
                break;
            }
            let Some(work) = self.streams.get_mut(&stream).and_then(|stream| stream.queue.pop_front()) else { break };
            if let Err((code, why)) = self.perform(&work) {
                self.lose(code, &why);
            }
            self.lost().map_or(Ok(()), Err)?;
        }
        Ok(())
    }

    /// Does a piece of work; where it fails, with the code that the device is lost by.
    fn perform(&mut self, work: &Work) -> Result<(), (c_int, String)> {
        let failed = |what: &str, fault: FaultKind| (code_of(&fault), format!("{what}: {fault}"));
        match work {
            work if !works() && !matches!(work, Work::Mark(..)) => Ok(()),
            Work::ToDevice(from, to, bytes) => {
                // SAFETY: the caller of the copy lends the bytes until it has waited.
                let bytes = unsafe { std::slice::from_raw_parts(*from as *const u8, *bytes) };
                self.memory.write(*to, bytes).map_err(|f| failed("copy to the device", f))
            }
            Work::ToHost(from, to, bytes) => {
                // SAFETY: as above.
                let to = unsafe { std::slice::from_raw_parts_mut(*to as *mut u8, *bytes) };
                self.memory.read(*from, to).map_err(|f| failed("copy to the host", f))
            }
            Work::Within(from, to, bytes) => {
                let mut buffer = vec![0; *bytes];
                self.memory.read(*from, &mut buffer).map_err(|f| failed("copy", f))?;
                self.memory.write(*to, &buffer).map_err(|f| failed("copy", f))
            }
            Work::Fill(to, bytes, value) => {
                self.memory.fill(*to, *bytes as u64, *value).map_err(|f| failed("memset", f))
            }
            Work::Launch(launch) => launch.run(self),
            Work::Product(product) => {
                self.clock += times().get(product.algorithm as usize).copied().unwrap_or(1);
                product.compute(&self.memory).map_err(|why| (ILLEGAL_ADDRESS, why))
            }
            Work::Mark(event, number) => {
                let clock = self.clock;
                // One that was destroyed has no one who waits for it.
                if let Some(event) = self.events.get_mut(event) {
                    (event.reached, event.at) = (*number, clock);
                }
                Ok(())
            }
        }
    }
}
