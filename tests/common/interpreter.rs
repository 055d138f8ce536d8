//! Shared by the tests on the PTX interpreter: the kernels' PTX, test values, values in a kernel's type.

use braid::device::cuda::compile::images;
use braid::tensor::DType;
use braid_ptx::Module;
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};

/// Values in -1..1 from a small generator.
pub fn values(n: usize, seed: u32) -> Vec<f32> {
    let mut x = seed.wrapping_mul(2_654_435_769) | 1;
    (0..n)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 17;
            x ^= x << 5;
            (x >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

/// Values of a weight, scaled so that a product's results stay about as large as its operands.
#[allow(dead_code)] // Not of the tests of kernels.
pub fn weight_values(shape: &[usize], seed: u32) -> Vec<f32> {
    let fan: usize = shape[1..].iter().product();
    let scale = (3.0 / fan as f32).sqrt().min(1.0);
    values(shape.iter().product(), seed).iter().map(|v| v * scale).collect()
}

/// Whether the kernels were compiled; says which test is skipped where they were not.
pub fn compiled() -> bool {
    images::compiler().is_some() || super::device::skip("no NVRTC when this was built")
}

/// A compiled kernel file as the oldest devices that it is for run it, see [`module_on`].
#[allow(dead_code)] // Not of all tests.
pub fn module(name: &str) -> Arc<Module> {
    module_on(name, if name.ends_with("_sm90") { (9, 0) } else { (8, 0) })
}

/// A compiled kernel file, parsed once, as devices of that compute capability run it. `NAME.ptx` in the folder that BRAID_KERNELS_PTX
/// names takes the place of what was built: for mutants.
pub fn module_on(name: &str, capability: (u32, u32)) -> Arc<Module> {
    type Parsed = HashMap<(String, &'static str), Arc<Module>>;
    static PARSED: OnceLock<Mutex<Parsed>> = OnceLock::new();
    let built = images::modules().iter().find(|module| module.name == name).unwrap().ptx(capability).unwrap();
    let mut parsed = PARSED.get_or_init(Default::default).lock().unwrap();
    let parse = || {
        let other = std::env::var_os("BRAID_KERNELS_PTX").map(|folder| Path::new(&folder).join(format!("{name}.ptx")));
        let text = other.and_then(|file| std::fs::read_to_string(file).ok());
        let text = text.unwrap_or_else(|| String::from_utf8(built.unpack().unwrap()).unwrap());
        Arc::new(Module::parse(text.trim_end_matches('\0')).unwrap_or_else(|e| panic!("{name}: {e}")))
    };
    parsed.entry((name.to_owned(), built.target)).or_insert_with(parse).clone()
}

/// Values of a type as f32.
pub fn wide(bytes: &[u8], dtype: DType) -> Vec<f32> {
    match dtype {
        DType::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
        DType::F16 => bytes.chunks_exact(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        _ => bytes.chunks_exact(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
    }
}

/// The bytes of values in a type.
pub fn narrow(values: &[f32], dtype: DType) -> Vec<u8> {
    match dtype {
        DType::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        DType::F16 => values.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect(),
    }
}
