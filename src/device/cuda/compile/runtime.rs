//! Kernels compiled at run time, where the build embedded no binary for the device; the results are cached on disk.

use super::cache::Cache;
use super::images::{self, Module};
use super::log::flaw;
use super::nvrtc::{File, Nvrtc};
use super::search::named_in_vain;
use super::targets::is_sm_90a_alone;
use std::sync::{Mutex, Once};

/// One compilation at a time: a second caller finds the first one's result in the cache.
static LOCK: Mutex<()> = Mutex::new(());

/// The targets of a kernel file for a device of that compute capability: its own architecture, with what that one alone has; and,
/// for a compiler that does not know it yet, PTX that every later one takes, unless the file is for one architecture alone.
fn targets(file: &str, (major, minor): (u32, u32)) -> Vec<String> {
    let own = if (major, minor) == (9, 0) { "sm_90a".to_owned() } else { format!("sm_{major}{minor}") };
    let every = (!is_sm_90a_alone(file)).then(|| "compute_80".to_owned());
    [own].into_iter().chain(every).collect()
}

/// The cache's key: all that the result depends on.
fn key(unit: &File, headers: &[File], target: &str, version: (i32, i32)) -> Vec<u8> {
    format!("{version:?} {target} {:?} {unit:?} {headers:?}", images::flags()).into_bytes()
}

/// The cubin of a kernel file, or PTX with its terminator, for a device of that compute capability whose driver is for a CUDA of
/// that major number, and its target.
///
/// # Errors
/// The places where NVRTC was sought in vain; its log, where the kernel does not compile.
pub(crate) fn compile(module: &Module, capability: (u32, u32), driver: i32) -> Result<(String, Vec<u8>), String> {
    static SAID: Once = Once::new();
    if let Some(why) = named_in_vain("BRAID_NVRTC") {
        SAID.call_once(|| tracing::warn!("{why}"));
    }
    compiled(&Nvrtc::find(Some(driver), &[])?, &Cache::user(), module, capability)
        .map(|(target, code, _)| (target, code))
}

/// As [`compile`]; the last value says whether it was compiled now.
fn compiled(
    nvrtc: &Nvrtc,
    cache: &Cache,
    module: &Module,
    capability: (u32, u32),
) -> Result<(String, Vec<u8>, bool), String> {
    let _lock = LOCK.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let version = nvrtc.version()?;
    let unit = (module.name.to_owned(), module.source.text.to_owned());
    let headers: Vec<File> = images::headers().iter().map(|(name, text)| ((*name).into(), (*text).into())).collect();
    let mut said = String::new();
    for target in targets(module.name, capability).into_iter().filter(|target| nvrtc.knows(target)) {
        let name = format!("{}.{target}", module.name);
        let key = key(&unit, &headers, &target, version);
        if let Some(code) = cache.load(&name, &key) {
            return Ok((target, code, false));
        }
        tracing::info!(kernel = module.name, target, "compiling");
        match nvrtc.compile(&unit, &headers, &target, images::flags()) {
            Ok((code, log)) => {
                if let Some(flaw) = flaw(&log) {
                    tracing::warn!(kernel = module.name, target, "{flaw}");
                }
                cache.store(&name, &key, &code);
                return Ok((target, code, true));
            }
            Err(why) => said = format!("kernels/{}.cu for {target}: {}", module.name, why.replace('\n', " | ")),
        }
    }
    Err(said)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// NVRTC, or a line that says which test is skipped.
    fn compiler() -> Option<Nvrtc> {
        let found = Nvrtc::find(None, &[]).ok();
        if found.is_none() {
            let thread = std::thread::current();
            let _ = writeln!(std::io::stderr(), "{}: skipped: no NVRTC", thread.name().unwrap_or("a test"));
        }
        found
    }

    fn small() -> &'static Module {
        images::modules().iter().find(|module| module.name == "pointwise").unwrap()
    }

    #[test]
    fn cache_key() {
        let unit = ("a".to_owned(), "text".to_owned());
        let headers = [("h".to_owned(), "x".to_owned())];
        let one = key(&unit, &headers, "sm_80", (12, 9));
        assert_ne!(one, key(&unit, &headers, "sm_86", (12, 9)));
        assert_ne!(one, key(&unit, &headers, "sm_80", (13, 0)));
        assert_ne!(one, key(&unit, &[("h".to_owned(), "y".to_owned())], "sm_80", (12, 9)));
        assert_ne!(one, key(&("a".to_owned(), "other".to_owned()), &headers, "sm_80", (12, 9)));
        assert_eq!(targets("gemm", (9, 0)), ["sm_90a", "compute_80"]);
        assert_eq!(targets("gemm", (12, 1)), ["sm_121", "compute_80"]);
        assert_eq!(targets("gemm_sm90", (9, 0)), ["sm_90a"]);
    }

    #[test]
    fn cache_hit_and_damage() {
        let Some(nvrtc) = compiler() else { return };
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path());
        let (target, code, now) = compiled(&nvrtc, &cache, small(), (8, 0)).unwrap();
        assert!(target == "sm_80" && now && code.starts_with(b"\x7fELF"));
        assert_eq!(compiled(&nvrtc, &cache, small(), (8, 0)).unwrap(), (target.clone(), code.clone(), false));
        let file = std::fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
        let mut bytes = std::fs::read(&file).unwrap();
        let middle = bytes.len() - 100;
        bytes[middle] ^= 1;
        std::fs::write(&file, bytes).unwrap();
        assert_eq!(compiled(&nvrtc, &cache, small(), (8, 0)).unwrap(), (target.clone(), code.clone(), true));
        assert_eq!(compiled(&nvrtc, &cache, small(), (8, 0)).unwrap(), (target, code, false));
    }

    #[test]
    fn concurrent_compilation() {
        let Some(nvrtc) = compiler() else { return };
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path());
        let both = std::thread::scope(|scope| {
            let each = [(); 2].map(|()| scope.spawn(|| compiled(&nvrtc, &cache, small(), (8, 6)).unwrap()));
            each.map(|thread| thread.join().unwrap())
        });
        assert_eq!(both[0].1, both[1].1);
        assert_ne!(both[0].2, both[1].2);
    }

    #[test]
    fn future_architecture_without_cache() {
        let Some(nvrtc) = compiler() else { return };
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("file"), b"").unwrap();
        let cache = Cache::at(folder.path().join("file"));
        let (target, code, now) = compiled(&nvrtc, &cache, small(), (99, 0)).unwrap();
        assert!(target == "compute_80" && now && code.ends_with(b"\0"));
        assert!(String::from_utf8_lossy(&code).contains(".visible .entry"));
    }
}
