//! Signals, memory and disk: the command's requests to the operating system, and its only unsafe code.

use super::failure::{Failure, stopped};
use super::terminal;
use crate::pipeline::CancelToken;
#[cfg(unix)]
use crate::weights::with_mapped_file;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

static SIGNAL: AtomicI32 = AtomicI32::new(0);

/// The signal that asked to stop, if one did.
pub fn signalled() -> Option<i32> {
    Some(SIGNAL.load(Ordering::SeqCst)).filter(|s| *s != 0)
}

/// Whether a signal ends the process at once: before anything is written, and while files are opened and read, which may wait for ever
/// where one is a pipe.
static AT_ONCE: AtomicBool = AtomicBool::new(true);

/// Runs what reads files; a signal ends the process at once meanwhile.
pub fn reading<T>(work: impl FnOnce() -> T) -> T {
    let before = AT_ONCE.swap(true, Ordering::SeqCst);
    if let Some(signal) = signalled() {
        end(signal);
    }
    let result = work();
    AT_ONCE.store(before, Ordering::SeqCst);
    result
}

/// Says which signal came and ends the process.
fn end(signal: i32) -> ! {
    static ENDS: AtomicBool = AtomicBool::new(false);
    if ENDS.swap(true, Ordering::SeqCst) {
        // Another thread says it.
        loop {
            std::thread::park();
        }
    }
    terminal::line("braid: ", &stopped(signal));
    std::process::exit(128 + signal)
}

static CANCEL: OnceLock<CancelToken> = OnceLock::new();

/// The token that SIGINT and SIGTERM set from now on, where they ended the process at once before; a second one still does.
pub fn cancel_on_signal() -> CancelToken {
    AT_ONCE.store(false, Ordering::SeqCst);
    CANCEL.get_or_init(CancelToken::new).clone()
}

/// Starts to wait for SIGINT and SIGTERM. Where no thread can be started, they end the process as they do any other.
#[cfg(unix)]
fn wait_for_signals() {
    use signal_hook::consts::{SIGINT, SIGTERM};
    let (tell, told) = std::sync::mpsc::channel();
    let wait = move || {
        let signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM]);
        // It is waited for, so that no signal comes before.
        let _ = tell.send(());
        let Ok(mut signals) = signals else { return };
        for signal in signals.forever() {
            if SIGNAL.swap(signal, Ordering::SeqCst) != 0 {
                signal_hook::low_level::exit(128 + signal);
            }
            CANCEL.get_or_init(CancelToken::new).cancel();
            if AT_ONCE.load(Ordering::SeqCst) {
                end(signal);
            }
        }
    };
    if std::thread::Builder::new().name("signals".into()).spawn(wait).is_ok() {
        let _ = told.recv();
    }
}

/// Waits for SIGINT and SIGTERM, see [`cancel_on_signal`]. Explains SIGBUS, which a mapped file raises when it is cut short or its disk
/// fails, and exits with 1. SIGXFSZ, of a file larger than `ulimit -f` allows, is ignored: the write fails instead, and what was begun is
/// removed.
#[cfg(unix)]
pub fn install_signals() {
    wait_for_signals();
    extern "C" fn explain(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
        const TEXT: &str = ": cut short or not readable while it was in use (bus error); leave a model's files alone while braid runs, \
            check the disk, or use --no-mmap\n";
        static SAID: AtomicBool = AtomicBool::new(false);
        // Several threads may meet it at once; the first one speaks. A lock-free swap is async-signal-safe.
        while SAID.swap(true, Ordering::SeqCst) {
            // SAFETY: pause has no preconditions and is async-signal-safe.
            unsafe { libc::pause() };
        }
        // SAFETY: the kernel gives a handler with SA_SIGINFO the signal's facts, the address among them for SIGBUS.
        let address = unsafe { (*info).si_addr() } as usize;
        with_mapped_file(address, |name| {
            let parts = ["braid: ", name.unwrap_or("a model file"), TEXT];
            let parts =
                parts.map(|part| libc::iovec { iov_base: part.as_ptr().cast_mut().cast(), iov_len: part.len() });
            // SAFETY: the parts are alive, and writev, one system call as write is, reads no further than their lengths.
            unsafe { libc::writev(2, parts.as_ptr(), parts.len() as libc::c_int) };
        });
        // SAFETY: _exit has no preconditions and is async-signal-safe.
        unsafe { libc::_exit(1) };
    }
    // SAFETY: all-zero bytes are a valid sigaction; the handler has the signature that SA_SIGINFO asks for and calls
    // async-signal-safe functions only. SA_ONSTACK uses the alternate stack that std sets up.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = explain as *const () as libc::sighandler_t;
        action.sa_flags = libc::SA_ONSTACK | libc::SA_SIGINFO;
        libc::sigemptyset(&mut action.sa_mask);
        libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut());
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
}

/// Nothing to install: a signal ends the process as it does any other.
#[cfg(not(unix))]
pub fn install_signals() {}

/// Bytes that a folder's file system has left, or `None` where that is unknown.
#[cfg(unix)]
pub fn free_bytes(folder: &Path) -> Option<u64> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(folder.as_os_str().as_bytes()).ok()?;
    // SAFETY: all-zero bytes are a valid statvfs; path is a C string, stats is writable.
    let stats = unsafe {
        let mut stats: libc::statvfs = std::mem::zeroed();
        (libc::statvfs(path.as_ptr(), &mut stats) == 0).then_some(stats)?
    };
    // The fields' types differ between systems.
    #[allow(clippy::unnecessary_cast)]
    Some((stats.f_bavail as u64).saturating_mul(stats.f_frsize as u64))
}

/// Unknown here.
#[cfg(not(unix))]
pub fn free_bytes(_: &Path) -> Option<u64> {
    None
}

/// A field of a file in /proc that gives kB, in bytes.
pub fn proc_bytes(file: &str, field: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let rest = text.lines().find_map(|l| l.strip_prefix(field)?.strip_prefix(':'))?;
    rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kb| kb * 1024)
}

/// Samples the process's anonymous memory, which no file backs.
pub struct MemoryMonitor(Arc<AtomicU64>);

impl MemoryMonitor {
    /// Starts to sample.
    pub fn start() -> Self {
        let peak = Arc::new(AtomicU64::new(anonymous().unwrap_or(0)));
        let weak = Arc::downgrade(&peak);
        let sample = move || {
            while let (Some(peak), Some(now)) = (weak.upgrade(), anonymous()) {
                peak.fetch_max(now, Ordering::Relaxed);
                drop(peak);
                std::thread::sleep(Duration::from_millis(10));
            }
        };
        // Without it the beginning and the end are what was seen.
        let _ = std::thread::Builder::new().name("memory".into()).spawn(sample);
        Self(peak)
    }

    /// The greatest number of bytes seen.
    pub fn anonymous_peak(&self) -> Option<u64> {
        let now = anonymous()?;
        Some(self.0.fetch_max(now, Ordering::Relaxed).max(now))
    }
}

fn anonymous() -> Option<u64> {
    proc_bytes("/proc/self/status", "RssAnon")
}

/// The greatest resident size so far, mapped files included.
pub fn peak_bytes() -> Option<u64> {
    proc_bytes("/proc/self/status", "VmHWM")
}

/// An error where a signal came.
pub fn stop(cancel: &CancelToken) -> Result<(), Failure> {
    match signalled() {
        Some(signal) if cancel.is_cancelled() => Err(Failure::Signal(signal)),
        _ => Ok(()),
    }
}
