//! How much memory there is: asked before something large is allocated, because Linux grants more than it has and ends
//! the process later.

use crate::error::{Error, Result};

/// Bytes that can be had without driving others out, by `MemAvailable` of /proc/meminfo; `None` where that is not known.
pub fn available() -> Option<u64> {
    if !cfg!(target_os = "linux") {
        return None;
    }
    parse(&std::fs::read_to_string("/proc/meminfo").ok()?)
}

fn parse(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Refuses what does not fit into the memory that is available; where that is not known, nothing is refused.
///
/// # Errors
/// [`Error::Memory`].
pub fn demand(stage: &'static str, need: u64, hint: impl FnOnce() -> String) -> Result<()> {
    match available() {
        Some(have) if need > have => Err(Error::Memory { stage, need, have, hint: hint() }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_meminfo() {
        let text = "MemTotal:       24684084 kB\nMemFree:            1 kB\nMemAvailable:   24226892 kB\n";
        assert_eq!(parse(text), Some(24_226_892 * 1024));
        for text in ["", "MemAvailable: x kB", "MemAvailable: 1", "MemAvailable: 99999999999999999999 kB"] {
            assert_eq!(parse(text), None, "{text}");
        }
        let text = format!("MemAvailable: {} kB", u64::MAX);
        assert_eq!(parse(&text), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn more_than_there_is_is_refused() {
        demand("loading", 1, String::new).unwrap();
        let text = demand("loading", u64::MAX, || "ask for less".into()).unwrap_err().to_string();
        assert!(text.starts_with("out of memory in loading") && text.ends_with("ask for less"), "{text}");
    }
}
