//! The context of one GPU and its stream, which every call goes through.

use super::error::{DEVICE, early, is_sticky};
use super::ffi::{Cuda, StatusCode, describe};
use crate::device::cuda::driver::calls::{Call, CallCounter};
use crate::device::cuda::driver::interface::DeviceProperties;
use crate::error::{Error, Field, Message, Result};
use ::cudarc::driver::sys;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// The call by which a device was lost, and the driver's words.
pub(crate) type Loss = Arc<OnceLock<(String, String)>>;

/// The place for a device's loss, the same for all of its contexts: the driver gives a process one primary context of each device, and no
/// work on it is possible after such a fault (CUDA's manual, `CUDA_ERROR_ILLEGAL_ADDRESS` and its like).
fn loss_of(device: sys::CUdevice) -> Loss {
    static LOSSES: Mutex<BTreeMap<sys::CUdevice, Loss>> = Mutex::new(BTreeMap::new());
    LOSSES.lock().unwrap_or_else(PoisonError::into_inner).entry(device).or_default().clone()
}

/// The error of a device that was lost.
fn require(loss: &Loss) -> Result<()> {
    match loss.get() {
        Some((call, what)) => {
            Err(Error::Fault { device: DEVICE.into(), call: call.clone(), what: what.clone(), lost: true })
        }
        None => Ok(()),
    }
}

/// The primary context of a GPU, and one stream in it. The driver releases both on drop.
pub(crate) struct Context {
    pub(crate) cuda: &'static Cuda,
    pub(crate) properties: DeviceProperties,
    /// The CUDA that the driver is for: 12040 is 12.4.
    pub(crate) driver_version: i32,
    pub(crate) device: sys::CUdevice,
    pub(crate) handle: sys::CUcontext,
    /// Null until [`Context::open_stream`].
    pub(crate) stream: sys::CUstream,
    pub(crate) counter: CallCounter,
    /// Whether new memory is filled with 0xff, which no result survives: `BRAID_POISON=1` finds what is read unwritten.
    poison: bool,
    /// The fault that has made the device unusable, whichever of its contexts met it.
    pub(crate) loss: Loss,
}

impl Context {
    /// Retains the primary context of a device.
    ///
    /// # Errors
    /// [`Error::Device`] where the driver refuses; [`Error::Fault`] where the device was lost before.
    pub(crate) fn retain(
        (cuda, driver_version): (&'static Cuda, i32),
        device: sys::CUdevice,
        properties: DeviceProperties,
    ) -> Result<Self> {
        let loss = loss_of(device);
        require(&loss)?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: the device is one that the driver gave; released when the driver is dropped.
        unsafe { cuda.cuDevicePrimaryCtxRetain(&mut handle, device) }
            .map_err(|code| early(cuda, "cuDevicePrimaryCtxRetain", code))?;
        let (stream, counter) = (std::ptr::null_mut(), CallCounter::default());
        let poison = std::env::var_os("BRAID_POISON").is_some_and(|value| value == "1");
        Ok(Self { cuda, properties, driver_version, device, handle, stream, counter, poison, loss })
    }

    /// Creates the stream on which everything happens in order.
    ///
    /// # Errors
    /// Those of the driver.
    pub(crate) fn open_stream(&mut self) -> Result<()> {
        self.enter()?;
        let mut stream = std::ptr::null_mut();
        // SAFETY: writes one handle, destroyed when the driver is dropped.
        let made = unsafe { self.cuda.cuStreamCreate(&mut stream, sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32) };
        self.check("cuStreamCreate", made)?;
        self.stream = stream;
        Ok(())
    }

    /// Refuses a device that was lost; asks nothing of the driver.
    ///
    /// # Errors
    /// The fault that has made it unusable.
    pub(crate) fn require(&self) -> Result<()> {
        require(&self.loss)
    }

    /// Makes the context this thread's own.
    ///
    /// # Errors
    /// The fault that has made it unusable, if there was one.
    pub(crate) fn enter(&self) -> Result<()> {
        self.require()?;
        // SAFETY: the context is retained for as long as `self` lives.
        self.check("cuCtxSetCurrent", unsafe { self.cuda.cuCtxSetCurrent(self.handle) })
    }

    /// Turns an error of the driver into one of this crate; remembers it where it has made the context unusable.
    pub(crate) fn check<T>(&self, call: &str, outcome: Result<T, StatusCode>) -> Result<T> {
        outcome.map_err(|code| {
            if code == StatusCode::MEMORY {
                return self.out_of_memory(0);
            }
            let what = describe(self.cuda, code);
            let lost = is_sticky(code);
            if lost {
                let _ = self.loss.set((call.to_owned(), what.clone()));
            }
            Error::Fault { device: DEVICE.into(), call: call.to_owned(), what, lost }
        })
    }

    /// The error of a call that took memory; `need` is 0 where the driver does not say how much.
    fn out_of_memory(&self, need: usize) -> Error {
        let (need, have) = (need as u64, self.free_and_total().map_or(0, |(free, _)| free as u64));
        let why = if need > 0 && need <= have { "what is free lies in pieces: " } else { "" };
        let name = &self.properties.name;
        let hint = Message::from(format!("{why}free memory of {name}, ask for a smaller image, or use "));
        Error::Memory { stage: "the GPU", need, have, hint: hint.setting(Field::Device, "cpu") }
    }

    /// Bytes of the device's memory: free, and in all.
    ///
    /// # Errors
    /// The driver's status.
    pub(crate) fn free_and_total(&self) -> Result<(usize, usize), StatusCode> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: writes two integers.
        unsafe { self.cuda.cuMemGetInfo_v2(&mut free, &mut total) }.map(|()| (free, total))
    }

    /// Allocates device memory, which holds what was there before, or 0xff in each byte where the context poisons.
    pub(crate) fn allocate(&self, bytes: usize) -> Result<u64> {
        self.enter()?;
        self.counter.count(Call::Allocation);
        let bytes = bytes.max(1);
        let mut address = 0;
        // SAFETY: writes one address.
        match unsafe { self.cuda.cuMemAlloc_v2(&mut address, bytes) } {
            Err(StatusCode::MEMORY) => return Err(self.out_of_memory(bytes)),
            outcome => self.check("cuMemAlloc", outcome)?,
        }
        if self.poison
            && let Err(error) = self.memset(address, bytes, 0xff)
        {
            self.free(address);
            return Err(error);
        }
        Ok(address)
    }

    /// Frees device memory; a failure is logged.
    pub(crate) fn free(&self, address: u64) {
        if self.enter().is_err() {
            return; // A lost context's memory goes with it.
        }
        // SAFETY: an address from `allocate`, given back once; the driver waits for work that uses it.
        let freed = self.check("cuMemFree", unsafe { self.cuda.cuMemFree_v2(address) });
        if let Err(error) = freed {
            tracing::warn!("{error}");
        }
    }

    /// Sets bytes of device memory.
    pub(crate) fn memset(&self, to: u64, bytes: usize, value: u8) -> Result<()> {
        self.enter()?;
        // SAFETY: the caller gives a range of that length.
        self.check("cuMemsetD8Async", unsafe { self.cuda.cuMemsetD8Async(to, value, bytes, self.stream) })
    }

    /// Copies bytes to the device; they are there when it returns.
    pub(crate) fn upload(&self, to: u64, bytes: &[u8]) -> Result<()> {
        // SAFETY: the bytes stay until the wait is over.
        unsafe { self.upload_async(to, bytes) }?;
        self.wait()
    }

    /// Begins to copy bytes to the device.
    ///
    /// # Safety
    /// The bytes stay where and as they are until the stream has passed this point.
    pub(crate) unsafe fn upload_async(&self, to: u64, bytes: &[u8]) -> Result<()> {
        self.enter()?;
        self.counter.count(Call::Copy);
        let (from, len) = (bytes.as_ptr().cast(), bytes.len());
        // SAFETY: the caller gives an address with room for the bytes, and keeps them.
        let copied = unsafe { self.cuda.cuMemcpyHtoDAsync_v2(to, from, len, self.stream) };
        self.check("cuMemcpyHtoDAsync", copied)
    }

    /// Copies bytes to the host.
    pub(crate) fn download(&self, from: u64, bytes: &mut [u8]) -> Result<()> {
        self.enter()?;
        self.counter.count(Call::Copy);
        let (to, len) = (bytes.as_mut_ptr().cast(), bytes.len());
        // SAFETY: the caller gives an address of that many bytes; the wait below ends the loan of `bytes`. Where the copy
        // could not be enqueued, nothing writes to it.
        let copied = unsafe { self.cuda.cuMemcpyDtoHAsync_v2(to, from, len, self.stream) };
        self.check("cuMemcpyDtoHAsync", copied)?;
        self.wait()
    }

    /// Copies within the device.
    pub(crate) fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        self.enter()?;
        self.counter.count(Call::Copy);
        // SAFETY: the caller gives two ranges of that length.
        let copied = unsafe { self.cuda.cuMemcpyDtoDAsync_v2(to, from, bytes, self.stream) };
        self.check("cuMemcpyDtoDAsync", copied)
    }

    /// Creates an event, for the caller to destroy.
    pub(crate) fn create_event(&self, flags: u32) -> Result<sys::CUevent> {
        let mut event = std::ptr::null_mut();
        // SAFETY: writes one handle.
        self.check("cuEventCreate", unsafe { self.cuda.cuEventCreate(&mut event, flags) })?;
        Ok(event)
    }

    /// Waits for the stream. Where the driver refuses, it is asked once more, since what is under way may use the host's memory; where it
    /// refuses again, nobody knows when that ends, and the device counts as lost.
    pub(crate) fn wait(&self) -> Result<()> {
        const CALL: &str = "cuStreamSynchronize";
        self.counter.count(Call::Synchronize);
        // SAFETY: the stream lives as long as `self`.
        let wait = || unsafe { self.cuda.cuStreamSynchronize(self.stream) };
        let Err(error) = self.check(CALL, wait()) else { return Ok(()) };
        self.require()?;
        if let Err(code) = wait() {
            let _ = self.loss.set((CALL.to_owned(), describe(self.cuda, code)));
            self.require()?;
        }
        Err(error)
    }
}
