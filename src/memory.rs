//! Available memory: checked before something large is allocated, because Linux grants more than it has and kills the
//! process later.

use crate::error::{Error, Message, Result};
use std::path::Path;

/// Reads the bytes that this process may still take without swapping, whichever is least: `MemAvailable` of /proc/meminfo, the rest of
/// the limit of each control group that it is in, of either version, and the rest of its address space (`ulimit -v`) and of its data
/// (`ulimit -d`); `None` where none is known.
pub fn available() -> Option<u64> {
    if cfg!(target_os = "linux") { available_below(Path::new("/")) } else { None }
}

/// [`available`] of a file system mounted at `root`.
fn available_below(root: &Path) -> Option<u64> {
    let text = |name: &str| std::fs::read_to_string(root.join(name)).unwrap_or_default();
    let mut all: Vec<u64> = parse(&text("proc/meminfo")).into_iter().collect();
    let groups = root.join("sys/fs/cgroup");
    for line in text("proc/self/cgroup").lines() {
        // `ID:CONTROLLERS:PATH`; version 2 has no controllers.
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let (mount, left): (_, fn(&Path) -> Option<u64>) = match controllers {
            "" => (groups.clone(), left_in_group),
            _ if controllers.split(',').any(|name| name == "memory") => (groups.join("memory"), left_in_old_group),
            _ => continue,
        };
        // A group is bounded by those that it lies in. A container may see its own at the mount, and others' paths nowhere.
        let own = mount.join(path.trim_start_matches('/'));
        all.extend(own.ancestors().take_while(|group| group.starts_with(&mount)).filter_map(left));
    }
    let (limits, status) = (text("proc/self/limits"), text("proc/self/status"));
    for (limit, used) in [("Max address space", "VmSize:"), ("Max data size", "VmData:")] {
        let limit =
            limits.lines().find_map(|line| line.strip_prefix(limit)?.split_whitespace().next()?.parse::<u64>().ok());
        let used = status.lines().find_map(|line| kilobytes(line.strip_prefix(used)?));
        all.extend(limit.map(|limit| limit.saturating_sub(used.unwrap_or(0))));
    }
    all.into_iter().min()
}

fn number(path: &Path) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// A group's anonymous memory. Pages of files count as free: the kernel takes them back.
fn anonymous(folder: &Path, field: &str) -> Option<u64> {
    let stat = std::fs::read_to_string(folder.join("memory.stat")).ok()?;
    stat.lines().find_map(|line| line.strip_prefix(field)?.trim().parse().ok())
}

/// Reads the rest of the limit of a control group of version 2.
fn left_in_group(folder: &Path) -> Option<u64> {
    let limit = number(&folder.join("memory.max"))?;
    Some(limit.saturating_sub(anonymous(folder, "anon ").or_else(|| number(&folder.join("memory.current")))?))
}

/// The same of version 1.
fn left_in_old_group(folder: &Path) -> Option<u64> {
    let limit = number(&folder.join("memory.limit_in_bytes"))?;
    let used = anonymous(folder, "total_rss ").or_else(|| number(&folder.join("memory.usage_in_bytes")))?;
    Some(limit.saturating_sub(used))
}

fn parse(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    kilobytes(line)
}

fn kilobytes(text: &str) -> Option<u64> {
    text.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
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

    /// The bytes left by files below /proc and /sys/fs/cgroup.
    fn left(files: &[(&str, &str)]) -> Option<u64> {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        available_below(dir.path())
    }

    #[test]
    fn control_groups() {
        const SYSTEM: (&str, &str) = ("proc/meminfo", "MemAvailable: 10 kB\n");
        assert_eq!(left(&[]), None);
        assert_eq!(left(&[SYSTEM]), Some(10_240));
        // Version 2, a container's own group at the mount.
        let own = ("proc/self/cgroup", "0::/\n");
        let limit = |text| ("sys/fs/cgroup/memory.max", text);
        assert_eq!(left(&[SYSTEM, own, limit("max\n")]), Some(10_240));
        let used = ("sys/fs/cgroup/memory.current", "900\n");
        assert_eq!(left(&[SYSTEM, own, limit("1000\n"), used]), Some(100));
        assert_eq!(left(&[SYSTEM, own, limit("1000000\n"), used]), Some(10_240));
        let stat = ("sys/fs/cgroup/memory.stat", "anon 300\nfile 600\n");
        assert_eq!(left(&[own, limit("1000\n"), used, stat]), Some(700));
        // Nested groups: the outer one bounds the inner ones, which have no limit.
        let nested = ("proc/self/cgroup", "1:name=systemd:/x\n0::/a/b\n");
        let outer = [("sys/fs/cgroup/a/memory.max", "2000"), ("sys/fs/cgroup/a/memory.current", "500")];
        let inner = [("sys/fs/cgroup/a/b/memory.max", "max"), ("sys/fs/cgroup/a/b/memory.current", "400")];
        assert_eq!(left(&[nested, outer[0], outer[1], inner[0], inner[1]]), Some(1500));
        // Version 1, with paths that are not visible.
        let old = ("proc/self/cgroup", "4:cpu,memory:/docker/1\n3:cpuset:/\n0::/\n");
        let limit = ("sys/fs/cgroup/memory/memory.limit_in_bytes", "3000");
        assert_eq!(left(&[old, limit, ("sys/fs/cgroup/memory/memory.usage_in_bytes", "2000")]), Some(1000));
        assert_eq!(left(&[old, limit, ("sys/fs/cgroup/memory/memory.stat", "rss 1\ntotal_rss 500\n")]), Some(2500));
        let deeper = ("sys/fs/cgroup/memory/docker/1/memory.limit_in_bytes", "900");
        let stat = ("sys/fs/cgroup/memory/docker/1/memory.stat", "total_rss 500\n");
        assert_eq!(left(&[old, limit, deeper, stat]), Some(400));
        // Another controller's group has no say.
        assert_eq!(left(&[("proc/self/cgroup", "3:cpuset,memory_x:/\n"), limit, stat]), None);
    }

    #[test]
    fn limits_of_the_process() {
        let status = ("proc/self/status", "VmSize:\t    4 kB\nVmData:\t    1 kB\n");
        let limits = |space: &str, data: &str| {
            let text = format!(
                "Max data size             {data}            unlimited            bytes     \nMax address space         {space}    {space}    bytes\n"
            );
            left(&[status, ("proc/self/limits", &text)])
        };
        assert_eq!(limits("unlimited", "unlimited"), None);
        assert_eq!(limits("8192", "unlimited"), Some(4096));
        assert_eq!(limits("8192", "2048"), Some(1024));
        assert_eq!(limits("1024", "unlimited"), Some(0));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn refusal_beyond_memory() {
        require("loading", 1, || "".into()).unwrap();
        let text = require("loading", u64::MAX, || "ask for less".into()).unwrap_err().to_string();
        assert!(text.starts_with("out of memory in loading") && text.ends_with("ask for less"), "{text}");
    }
}
