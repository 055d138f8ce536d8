//! The search for NVIDIA's libraries beside the driver's own; for NVRTC in build.rs, which includes this file, too.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::{env, fs};

/// A library that is sought.
pub(crate) struct Sought<'a> {
    /// The environment variable that names its file or folder.
    pub(crate) variable: &'a str,
    /// File names, those that are liked best first.
    pub(crate) names: &'a [&'a str],
    /// Its folders within `site-packages`, as NVIDIA's wheels for Python have them.
    pub(crate) wheels: &'a [&'a str],
    /// More folders, before those of Python.
    pub(crate) more: &'a [PathBuf],
}

/// Folders of a toolkit in which libraries lie.
const TOOLKIT: [&str; 7] = ["", "lib64", "lib", "bin", "bin/x64", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib"];

impl Sought<'_> {
    /// The files that are there, and then the bare names, for the system's own search: what the variable names first, then by
    /// name, and those of one name in the order of CUDA_PATH, `/usr/local/cuda*`, `more`, and Python's packages.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        let own = set(self.variable);
        let mut files: Vec<PathBuf> = own.iter().filter(|file| file.is_file()).cloned().collect();
        if let Some(folder) = own.filter(|folder| folder.is_dir()) {
            files.extend(self.names.iter().flat_map(|name| self.within(&folder, name)));
        }
        let mut folders: Vec<PathBuf> = ["CUDA_PATH", "CUDA_HOME"].iter().filter_map(|name| set(name)).collect();
        folders.extend(children(Path::new("/usr/local"), "cuda"));
        folders.extend_from_slice(self.more);
        folders.extend(site_packages());
        files.extend(self.names.iter().flat_map(|name| folders.iter().flat_map(|folder| self.within(folder, name))));
        files.extend(self.names.iter().map(PathBuf::from));
        files
    }

    /// The files of that name in a folder, that of a toolkit or of Python's packages.
    fn within(&self, folder: &Path, name: &str) -> Vec<PathBuf> {
        let inner = TOOLKIT.iter().chain(self.wheels);
        inner.map(|inner| folder.join(inner).join(name)).filter(|file| file.is_file()).collect()
    }
}

/// A sentence for the user where the variable names neither a file nor a folder.
pub(crate) fn named_in_vain(variable: &str) -> Option<String> {
    let path = set(variable).filter(|path| !path.exists())?;
    Some(format!("{variable} names {}, which is not there", path.display()))
}

/// The path in an environment variable that is set and not empty.
fn set(variable: &str) -> Option<PathBuf> {
    env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// The folders in which Python keeps packages: those of the active environment, of the user, of the system.
fn site_packages() -> Vec<PathBuf> {
    let mut prefixes: Vec<PathBuf> = ["VIRTUAL_ENV", "CONDA_PREFIX"].iter().filter_map(|name| set(name)).collect();
    prefixes.extend(set("HOME").map(|home| home.join(".local")));
    prefixes.extend(["/usr/local", "/usr"].map(PathBuf::from));
    let mut folders = Vec::new();
    for prefix in prefixes {
        folders.push(prefix.join("Lib").join("site-packages"));
        for python in children(&prefix.join("lib"), "python3") {
            folders.extend(["site-packages", "dist-packages"].map(|name| python.join(name)));
        }
    }
    folders.retain(|folder| folder.is_dir());
    folders
}

/// The entries of a folder whose names begin so, the greatest name first.
fn children(folder: &Path, begins: &str) -> Vec<PathBuf> {
    let begins = |path: &PathBuf| path.file_name().and_then(OsStr::to_str).is_some_and(|name| name.starts_with(begins));
    let mut found: Vec<PathBuf> = fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path()).collect();
    found.retain(begins);
    found.sort_unstable_by(|a, b| b.cmp(a));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_a_toolkit_and_of_packages() {
        let root = tempfile::tempdir().unwrap();
        let file = |path: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "").unwrap();
            path
        };
        let (new, old, wheel) = (file("bin/x64/new"), file("lib64/old"), file("nvidia/cublas/lib/new"));
        let more = [root.path().to_owned()];
        let sought = |names| Sought { variable: "BRAID_NONE", names, wheels: &["nvidia/cublas/lib"], more: &more };
        let found = sought(&["new", "old"]).files();
        assert_eq!(found, [new.clone(), wheel, old.clone(), "new".into(), "old".into()]);
        assert_eq!(sought(&["old"]).files(), [old, "old".into()]);
        assert_eq!(children(&root.path().join("bin"), "x"), [root.path().join("bin/x64")]);
    }
}
