//! Signals, memory and disk: the command's requests to the operating system, and its only unsafe code.

use super::failure::{Failure, stopped};
use super::terminal;
use crate::pipeline::CancelToken;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::time::Duration;

static SIGNAL: AtomicI32 = AtomicI32::new(0);

/// The signal that asked to stop, if one did.
pub fn signalled() -> Option<i32> {
    Some(SIGNAL.load(Ordering::Relaxed)).filter(|s| *s != 0)
}

/// Whether a signal ends the process at once: while files are opened and read, which may wait for ever where one is a
/// pipe, and nothing is half written.
static READING: AtomicBool = AtomicBool::new(false);

/// Runs what reads files; a signal ends the process at once meanwhile.
pub fn reading<T>(work: impl FnOnce() -> T) -> T {
    READING.store(true, Ordering::SeqCst);
    if let Some(signal) = signalled() {
        end(signal);
    }
    let result = work();
    READING.store(false, Ordering::SeqCst);
    result
}

/// Says which signal came and ends the process.
fn end(signal: i32) -> ! {
    terminal::line("braid: ", &stopped(signal));
    std::process::exit(128 + signal)
}

/// A token that SIGINT and SIGTERM set; a second signal ends the process at once.
#[cfg(unix)]
pub fn cancel_on_signal() -> CancelToken {
    use signal_hook::consts::{SIGINT, SIGTERM};
    let token = CancelToken::new();
    if let Ok(mut signals) = signal_hook::iterator::Signals::new([SIGINT, SIGTERM]) {
        let token = token.clone();
        std::thread::spawn(move || {
            for signal in signals.forever() {
                if SIGNAL.swap(signal, Ordering::Relaxed) != 0 {
                    signal_hook::low_level::exit(128 + signal);
                }
                token.cancel();
                if READING.load(Ordering::SeqCst) {
                    end(signal);
                }
            }
        });
    }
    token
}

/// Elsewhere a signal ends the process as it does any other.
#[cfg(not(unix))]
pub fn cancel_on_signal() -> CancelToken {
    CancelToken::new()
}

/// Explains SIGBUS, which a mapped file raises when it is cut short or its disk fails, and exits with 1. SIGXFSZ, of a file larger than
/// `ulimit -f` allows, is ignored: the write fails instead, and what was begun is removed.
#[cfg(unix)]
pub fn install_signals() {
    extern "C" fn explain(_: libc::c_int) {
        const TEXT: &[u8] = b"braid: a model file was cut short or could not be read while it was in use (bus error); \
            leave the files alone while braid runs, check the disk, or use --no-mmap\n";
        static SAID: AtomicBool = AtomicBool::new(false);
        // Several threads may meet it at once; the first one speaks. A lock-free swap is async-signal-safe.
        let first = !SAID.swap(true, Ordering::SeqCst);
        // SAFETY: pause, write and _exit are async-signal-safe; the buffer is static and its length its own.
        unsafe {
            if !first {
                loop {
                    libc::pause();
                }
            }
            libc::write(2, TEXT.as_ptr().cast(), TEXT.len());
            libc::_exit(1);
        }
    }
    // SAFETY: all-zero bytes are a valid sigaction; the handler has the signature that a sigaction without SA_SIGINFO
    // asks for and calls async-signal-safe functions only. SA_ONSTACK uses the alternate stack that std sets up.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = explain as *const () as libc::sighandler_t;
        action.sa_flags = libc::SA_ONSTACK;
        libc::sigemptyset(&mut action.sa_mask);
        libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut());
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
}

/// Nothing to install.
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
        std::thread::spawn(move || {
            while let (Some(peak), Some(now)) = (weak.upgrade(), anonymous()) {
                peak.fetch_max(now, Ordering::Relaxed);
                drop(peak);
                std::thread::sleep(Duration::from_millis(10));
            }
        });
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
