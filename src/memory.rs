//! Available memory: checked before something large is allocated, because Linux grants more than it has and kills the
//! process later.

use crate::error::{Error, Message, Result};
use std::path::Path;

/// Reads the bytes that are available without swapping: `MemAvailable` of /proc/meminfo, or the rest of the limit of a
/// control group of version 2, whichever is less; `None` where neither is known.
pub fn available() -> Option<u64> {
    if !cfg!(target_os = "linux") {
        return None;
    }
    let system = std::fs::read_to_string("/proc/meminfo").ok().as_deref().and_then(parse);
    match (system, left_in_group(Path::new("/sys/fs/cgroup"))) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// Reads the rest of the limit of the control group mounted at `folder`, as a container sees its own. Pages of files
/// count as free: the kernel takes them back.
fn left_in_group(folder: &Path) -> Option<u64> {
    let number = |name: &str| std::fs::read_to_string(folder.join(name)).ok()?.trim().parse::<u64>().ok();
    let limit = number("memory.max")?;
    let stat = std::fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
    let anonymous = stat.lines().find_map(|l| l.strip_prefix("anon ")).and_then(|v| v.trim().parse().ok());
    Some(limit.saturating_sub(anonymous.or_else(|| number("memory.current"))?))
}

fn parse(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Checks that `need` bytes are available; where that is unknown, nothing is refused.
///
/// # Errors
/// [`Error::Memory`].
pub fn require(stage: &'static str, need: u64, hint: impl FnOnce() -> Message) -> Result<()> {
    match available() {
        Some(have) if need > have => Err(Error::Memory { stage, need, have, hint: hint() }),
        _ => Ok(()),
    }
}

/// Allocates `len` zeros, or returns an error instead of aborting; `need` is the number of bytes that the error names,
/// which may be more than this allocation's.
///
/// # Errors
/// [`Error::Memory`].
pub fn zeroed<T: Clone + Default>(
    stage: &'static str,
    len: usize,
    need: u64,
    hint: impl FnOnce() -> Message,
) -> Result<Vec<T>> {
    let mut memory = Vec::new();
    let short = |_| Error::Memory { stage, need, have: available().unwrap_or(0), hint: hint() };
    memory.try_reserve_exact(len).map_err(short)?;
    memory.resize(len, T::default());
    Ok(memory)
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

    #[test]
    fn container_limit() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        assert_eq!(left_in_group(dir.path()), None);
        write("memory.max", "max\n");
        assert_eq!(left_in_group(dir.path()), None);
        write("memory.max", "1000\n");
        write("memory.current", "900\n");
        assert_eq!(left_in_group(dir.path()), Some(100));
        write("memory.stat", "anon 300\nfile 600\n");
        assert_eq!(left_in_group(dir.path()), Some(700));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn refusal_beyond_memory() {
        require("loading", 1, || "".into()).unwrap();
        let text = require("loading", u64::MAX, || "ask for less".into()).unwrap_err().to_string();
        assert!(text.starts_with("out of memory in loading") && text.ends_with("ask for less"), "{text}");
    }
}
