//! Every likely machine: which driver, GPU, cuBLASLt and NVRTC work together, on mocks that judge as NVIDIA's libraries do. Each
//! cell runs in a child process, and ends with a product or with one line that names the remedy. docs/reliability.md has the tables.

#![cfg(all(feature = "cuda", target_os = "linux"))]
#![allow(clippy::unwrap_used)]

#[path = "common/mod.rs"]
mod common;
#[path = "common/mock.rs"]
mod mock;

use braid::device::cuda::NvidiaDriver;
use braid::device::cuda::driver::{Driver, Gemm, GemmEpilogue, MatrixRef};
use braid::device::cuda::ops::registry::kernels;
use braid::tensor::DType;
use std::collections::BTreeMap;
use std::env;
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use tempfile::TempDir;

const DRIVERS: [&str; 4] = ["12.2", "12.8", "12.9", "13.0"];
const ARCHITECTURES: [&str; 7] = ["80", "86", "87", "89", "90", "100", "120"];
const LIBRARIES: [&str; 6] = ["none", "12", "13", "12 and 13", "does not start", "in a wheel"];
const COMPILERS: [&str; 3] = ["none", "12", "13"];
const FOLDER: &str = "MACHINE_FOLDER";

/// A machine. Without a compiler that is named, the kernels are those of the build.
#[derive(Clone, Copy)]
struct Machine {
    driver: &'static str,
    architecture: &'static str,
    cublaslt: &'static str,
    compiler: Option<&'static str>,
}

/// Copies of the mock under names that say which version they are: loaders take links to one file for one library.
fn copies() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["libcuda.so.1", "libcublasLt.so.12", "libcublasLt.so.13", "libnvrtc.so.12", "libnvrtc.so.13"] {
        fs::copy(mock::library(), folder.path().join(name)).unwrap();
    }
    folder
}

impl Machine {
    /// The libraries in a folder, and the variables of a process on the machine.
    fn set_up(&self, copies: &Path, folder: &Path) -> Vec<(&'static str, String)> {
        let link = |name: &str, to: &Path| {
            fs::create_dir_all(to).unwrap();
            fs::hard_link(copies.join(name), to.join(name)).unwrap();
        };
        link("libcuda.so.1", folder);
        let python = folder.join("env/lib/python3.11/site-packages/nvidia");
        match self.cublaslt {
            "none" => {}
            "in a wheel" if self.driver.starts_with("12") => link("libcublasLt.so.12", &python.join("cublas/lib")),
            "in a wheel" => link("libcublasLt.so.13", &python.join("cu13/lib")),
            which => {
                let versions = ["12", "13"].into_iter().filter(|v| which.contains(v) || which == "does not start");
                versions.for_each(|version| link(&format!("libcublasLt.so.{version}"), folder));
            }
        }
        if let Some(version) = self.compiler.filter(|version| *version != "none") {
            link(&format!("libnvrtc.so.{version}"), folder);
        }
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        let (major, minor) = self.driver.split_once('.').unwrap();
        let starts = if self.cublaslt == "does not start" { "broken" } else { "" };
        vec![
            (FOLDER, text(folder)),
            ("LD_LIBRARY_PATH", text(folder)),
            ("HOME", text(folder)),
            ("VIRTUAL_ENV", text(&folder.join("env"))),
            ("MOCK_LOG", text(&folder.join("log"))),
            ("MOCK_DRIVER", format!("{major}0{minor}0")),
            ("MOCK_CAPABILITY", self.architecture.into()),
            ("MOCK_CUBLASLT", starts.into()),
            ("MOCK_TIMES", "5".into()),
            ("BRAID_TRIALS", "0".into()),
            ("BRAID_CACHE", String::new()),
            ("MACHINE_SOURCES", if self.compiler.is_some() { "1".into() } else { String::new() }),
        ]
    }

    /// The outcome on it: images and products, or an error.
    fn outcome(&self, copies: &Path) -> String {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["--exact", "machine", "--nocapture", "--include-ignored"]);
        for name in ["BRAID_NVRTC", "BRAID_CUBLASLT", "CUDA_PATH", "CUDA_HOME", "CONDA_PREFIX"] {
            command.env_remove(name);
        }
        let output = command.envs(self.set_up(copies, folder.path())).output().unwrap();
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        let outcome = said.lines().find_map(|line| line.split_once("OUTCOME "));
        let outcome = outcome.unwrap_or_else(|| panic!("{said}")).1.to_owned();
        let lines = mock::log(folder.path());
        assert!(mock::complaints(&lines).is_empty(), "{lines:?}");
        outcome
    }
}

/// The machine's own process: opens the driver, loads every kernel file, computes a product.
#[test]
#[ignore = "the child of `matrix`"]
fn machine() {
    let Some(folder) = env::var_os(FOLDER) else { return };
    let (result, warnings) = common::warnings(run);
    let log = mock::log(Path::new(&folder));
    let said = |begins: &str| log.iter().find_map(|line| line.strip_prefix(begins).map(str::to_owned));
    let outcome = match result {
        Err(error) => format!("no: {error}"),
        Ok(gemm) => {
            let compiled = log.iter().any(|line| line.starts_with("compile "));
            let compiler = if compiled { " by NVRTC" } else { "" };
            let image = said("taken: ").unwrap();
            let library = log.iter().find_map(|line| line.strip_suffix(" starts"));
            assert_eq!((gemm, gemm), (library.is_some(), warnings.is_empty()), "{warnings:?}");
            // A library that is not used costs one warning, which says how to get one that is.
            assert!(warnings.iter().all(|w| w.contains("slower") && w.contains("pip install")), "{warnings:?}");
            format!("{image}{compiler}; {}", library.unwrap_or("own products"))
        }
    };
    println!("OUTCOME {outcome}");
}

/// Whether products are the library's.
fn run() -> braid::Result<bool> {
    let sources = !env::var("MACHINE_SOURCES").unwrap().is_empty();
    let driver = if sources { NvidiaDriver::from_sources(0)? } else { NvidiaDriver::new(0)? };
    let mut loaded: Vec<&str> = Vec::new();
    for kernel in kernels().filter(|kernel| kernel.runs_on(driver.properties().capability)) {
        if !loaded.contains(&kernel.module) {
            loaded.push(kernel.module);
            driver.function(kernel, &kernel.entry(kernel.types.each()[0]))?;
        }
    }
    let gemm = driver.properties().gemm;
    if gemm {
        let data = driver.allocate_zeroed(32 * 32 * 2)?;
        let matrix = MatrixRef { data, leading: 32, stride: 0 };
        let (dtype, epilogue, out_f32) = (DType::F16, GemmEpilogue::None, false);
        let (m, n, k, batch, transpose_a, transpose_b) = (32, 32, 32, 1, true, false);
        let (a, b, d) = (matrix, matrix, MatrixRef { data: driver.allocate_zeroed(32 * 32 * 2)?, ..matrix });
        let plan = driver.prepare_gemm(&Gemm {
            dtype,
            m,
            n,
            k,
            batch,
            transpose_a,
            transpose_b,
            a,
            b,
            d,
            out_f32,
            epilogue,
        })?;
        driver.gemm(plan)?;
        driver.synchronize()?;
    }
    Ok(gemm)
}

/// The outcomes of machines, two at a time.
fn outcomes(machines: &[Machine]) -> Vec<String> {
    let copies = copies();
    let next = Mutex::new(0);
    let results = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let at = {
                        let mut next = next.lock().unwrap();
                        *next += 1;
                        *next - 1
                    };
                    let Some(machine) = machines.get(at) else { return };
                    let outcome = machine.outcome(copies.path());
                    results.lock().unwrap().insert(at, outcome);
                }
            });
        }
    });
    let results = results.into_inner().unwrap();
    assert_eq!(results.len(), machines.len());
    results.into_values().collect()
}

/// A table in Markdown: a row for each driver, a column for each of the others.
fn table(corner: &str, columns: &[&str], cell: impl Fn(&str, &str) -> String) -> String {
    let mut text = format!("| {corner} | {} |\n|---|{}\n", columns.join(" | "), "---|".repeat(columns.len()));
    for driver in DRIVERS {
        let cells: Vec<String> = columns.iter().map(|column| cell(driver, column)).collect();
        let _ = writeln!(text, "| {driver} | {} |", cells.join(" | "));
    }
    text
}

/// An error in one line, which says what to do.
fn remedy(error: &str) -> String {
    assert!(!error.contains('\n'), "{error}");
    let update = error.contains("update the driver");
    let install = error.contains("install NVRTC") || error.contains("pip install");
    assert!(update || install, "no remedy: {error}");
    assert!(error.contains("device: cpu"), "no way out: {error}");
    let to_install = if install { "NVRTC to install" } else { "" };
    [if update && !install { "driver to update" } else { to_install }].concat()
}

#[test]
fn matrix() {
    if braid::device::cuda::compile::images::compiler().is_none() || Path::new("/usr/local/cuda").exists() {
        let why = "matrix: skipped: the kernels are not embedded, or CUDA is installed here";
        let _ = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("{why}\n"));
        return;
    }
    let mut machines = Vec::new();
    for (driver, architecture) in DRIVERS.iter().flat_map(|d| ARCHITECTURES.map(|a| (*d, a))) {
        machines.extend(LIBRARIES.map(|cublaslt| Machine { driver, architecture, cublaslt, compiler: None }));
        let compiled = |compiler| Machine { driver, architecture, cublaslt: "none", compiler: Some(compiler) };
        machines.extend(COMPILERS.map(compiled));
    }
    let outcomes = outcomes(&machines);
    let all: Vec<(&Machine, &String)> = machines.iter().zip(&outcomes).collect();
    let short = |outcome: &str| match outcome.strip_prefix("no: ") {
        Some(error) => remedy(error),
        None => outcome.split("; ").next().unwrap().to_owned(),
    };
    // One answer of all cells that agree in what is named.
    let agreed = |cells: Vec<String>| {
        assert!(!cells.is_empty() && cells.iter().all(|cell| *cell == cells[0]), "{cells:?}");
        cells[0].clone()
    };
    let images = |compiler: Option<&str>| {
        table("driver for CUDA", &ARCHITECTURES, |driver, architecture| {
            let of =
                all.iter().filter(|(m, _)| (m.driver, m.architecture, m.compiler) == (driver, architecture, compiler));
            agreed(of.map(|(_, outcome)| short(outcome)).collect())
        })
    };
    let products = table("driver for CUDA", &LIBRARIES, |driver, library| {
        let of = all.iter().filter(|(m, _)| (m.driver, m.cublaslt, m.compiler) == (driver, library, None));
        let runs = of.filter(|(_, outcome)| !outcome.starts_with("no: "));
        agreed(runs.filter_map(|(_, outcome)| Some(outcome.split_once("; ")?.1.to_owned())).collect())
    });
    let mut text = format!("Kernels, as a release has them:\n\n{}\nProducts:\n\n{products}", images(None));
    for compiler in COMPILERS {
        let _ =
            write!(text, "\nA build without NVRTC, NVRTC on the machine: {compiler}.\n\n{}", images(Some(compiler)));
    }
    let document =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reliability.md")).unwrap_or_default();
    assert!(document.contains(&text), "docs/reliability.md does not have these tables:\n{text}");
}
