//! Memory of the process, read from Linux; unknown elsewhere.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The interval between two samples.
const EVERY: Duration = Duration::from_millis(2);

/// The greatest numbers of bytes since the last reading.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Peaks {
    /// Resident, mapped files included; absent where the kernel does not let it be reset.
    pub resident: Option<u64>,
    /// Without memory that files back.
    pub anonymous: Option<u64>,
}

/// Samples the memory of this process.
pub struct Gauge(Arc<AtomicU64>);

impl Gauge {
    /// Starts to sample.
    pub fn new() -> Self {
        let peak = Arc::new(AtomicU64::new(0));
        let weak = Arc::downgrade(&peak);
        std::thread::spawn(move || {
            while let (Some(peak), Some(now)) = (weak.upgrade(), anonymous()) {
                peak.fetch_max(now, Ordering::Relaxed);
                drop(peak);
                std::thread::sleep(EVERY);
            }
        });
        reset();
        Self(peak)
    }

    /// Returns the peaks since the last call, or since the start, and resets them.
    pub fn take(&self) -> Peaks {
        let now = anonymous();
        let seen = self.0.swap(now.unwrap_or(0), Ordering::Relaxed);
        let resident = status("VmHWM");
        let known = reset();
        Peaks { resident: resident.filter(|_| known), anonymous: now.map(|now| now.max(seen)) }
    }
}

/// Anonymous bytes now.
pub fn anonymous() -> Option<u64> {
    status("RssAnon")
}

/// Resets `VmHWM` to the present resident size.
fn reset() -> bool {
    cfg!(target_os = "linux") && std::fs::write("/proc/self/clear_refs", "5").is_ok()
}

/// A field of /proc/self/status that is in kB, in bytes.
fn status(field: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let rest = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kb| kb * 1024)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn peaks_begin_anew() {
        const SIZE: usize = 64 << 20;
        let gauge = Gauge::new();
        let before = gauge.take().anonymous.unwrap_or(0);
        let block = vec![1u8; SIZE];
        assert_eq!(std::hint::black_box(&block)[SIZE - 1], 1);
        std::thread::sleep(10 * EVERY);
        drop(block);
        let with = gauge.take();
        let grown = with.anonymous.unwrap_or(0).saturating_sub(before);
        assert!(grown > SIZE as u64 * 9 / 10, "{grown}");
        let without = gauge.take();
        assert!(without.anonymous < with.anonymous.map(|n| n - SIZE as u64 / 2), "{with:?} {without:?}");
        // Some containers forbid the reset.
        if let (Some(with), Some(without)) = (with.resident, without.resident) {
            assert!(without < with - SIZE as u64 / 2, "{with} {without}");
        }
    }
}
