//! The devices that the kernels' tests run on: BRAID_TEST_DRIVER.

#![allow(dead_code)]

use braid::device::cuda::driver::Driver;
use std::io::Write;
use std::sync::Arc;

/// The values of BRAID_TEST_DRIVER.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Where {
    /// Nothing, or `ptx`: the interpreter.
    Interpreter,
    /// `cuda`: the first GPU.
    Cuda,
    /// `both`: the interpreter, and beside it the first GPU, whose results are compared.
    Both,
    /// `alone`: as `cuda`, with an interpreter behind the driver's calls in place of the GPU.
    Alone,
    /// `twice`: as `both`, with a second interpreter in place of the GPU.
    Twice,
}

pub fn chosen() -> Where {
    match std::env::var("BRAID_TEST_DRIVER").unwrap_or_default().as_str() {
        "" | "ptx" => Where::Interpreter,
        "cuda" => Where::Cuda,
        "both" => Where::Both,
        "alone" => Where::Alone,
        "twice" => Where::Twice,
        other => panic!("BRAID_TEST_DRIVER is {other}; ptx, cuda, both, alone and twice are known"),
    }
}

/// Says that this test is skipped, past the harness, which keeps what a passing test prints to itself. `false`.
pub fn skip(why: &str) -> bool {
    let thread = std::thread::current();
    let line = format!("{}: skipped: {why}\n", thread.name().unwrap_or("a test"));
    // In one piece, so that no other test's words come between.
    let _ = std::io::stderr().write_all(line.as_bytes());
    false
}

/// The first GPU, opened once for the whole process; the tests take turns by themselves.
pub fn cuda() -> Option<Arc<dyn Driver>> {
    #[cfg(feature = "cuda")]
    {
        use std::sync::OnceLock;
        static GPU: OnceLock<Option<Arc<dyn Driver>>> = OnceLock::new();
        let open = || match braid::device::cuda::NvidiaDriver::new(0) {
            Ok(driver) => Some(Arc::new(driver) as Arc<dyn Driver>),
            Err(why) => {
                println!("{why}");
                None
            }
        };
        GPU.get_or_init(open).clone()
    }
    #[cfg(not(feature = "cuda"))]
    None
}

/// Whether the device that BRAID_TEST_DRIVER names is there; says which test is skipped where it is not.
pub fn there() -> bool {
    match chosen() {
        Where::Interpreter | Where::Alone | Where::Twice => true,
        Where::Cuda | Where::Both => cuda().is_some() || skip("no CUDA device"),
    }
}
