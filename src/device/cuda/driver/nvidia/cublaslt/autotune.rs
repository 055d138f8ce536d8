//! The choice of a library's algorithm for a product: the fastest of its first suggestions, tried once and kept on disk.
//!
//! A choice depends on the product of one image and never on how many there are, so an image's bytes do not depend on its batch.
//! Two algorithms may round differently, and times differ from run to run. So a choice by trial is made once for a device and a
//! library, times that are nearly equal count as equal, and where the choice cannot be kept the library's first suggestion, which
//! is always the same, is taken instead.

use super::super::error::DEVICE;
use crate::device::cuda::compile::cache::Cache;
use crate::device::cuda::driver::gemm::Gemm;
use crate::error::{Error, Result};
use crate::tensor::DType;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

/// Suggestions that are tried.
const SUGGESTIONS: usize = 8;
/// Times within this factor of the shortest count as equal to it.
const TIE: f32 = 1.02;
/// The beginning of the names of the cache's files.
const FILE: &str = "product";

/// One process's trials at a time, so that those of two devices' drivers do not disturb each other, and the second finds what
/// the first has kept.
static LOCK: Mutex<()> = Mutex::new(());

/// A product of one image: all that a choice depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct GemmShape {
    dtype: DType,
    /// `m`, `n`, `k`.
    sizes: [usize; 3],
    transposed: [bool; 2],
    /// From column to column, of A, B, C, D.
    leading: [usize; 4],
    out_f32: bool,
    bias: bool,
    residual: bool,
}

impl GemmShape {
    /// The shape of a product without its batch and addresses.
    pub(crate) fn of(gemm: &Gemm) -> Self {
        let residual = gemm.epilogue.residual();
        Self {
            dtype: gemm.dtype,
            sizes: [gemm.m, gemm.n, gemm.k],
            transposed: [gemm.transpose_a, gemm.transpose_b],
            leading: [gemm.a.leading, gemm.b.leading, residual.unwrap_or(gemm.d).leading, gemm.d.leading],
            out_f32: gemm.out_f32,
            bias: gemm.epilogue.bias().is_some(),
            residual: residual.is_some(),
        }
    }
}

/// For the key on disk: every field.
impl fmt::Display for GemmShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ([m, n, k], [a, b, c, d]) = (self.sizes, self.leading);
        let letter = |transposed| if transposed { 't' } else { 'n' };
        let out = if self.out_f32 { DType::F32 } else { self.dtype };
        write!(f, "{} to {out}, {m}x{n}x{k} {}", self.dtype, letter(self.transposed[0]))?;
        write!(f, "{}, columns {a} {b} {c} {d}", letter(self.transposed[1]))?;
        write!(f, "{}", if self.bias { ", bias" } else { "" })?;
        write!(f, "{}", if self.residual { ", residual" } else { "" })
    }
}

/// An algorithm as the library has it: 64 bytes that it alone reads. Its manual allows to store them for the same version.
pub(crate) type Algorithm = [u64; 8];

/// The questions that a choice asks a library about one product.
pub(crate) trait GemmLibrary {
    /// Up to that many algorithms for one image, the best by the library's own estimate first.
    fn suggest(&mut self, most: usize) -> Result<Vec<Algorithm>>;

    /// Whether an algorithm computes this product with the memory that it may use.
    fn takes(&mut self, algorithm: &Algorithm) -> bool;

    /// A run's mean time in each of some rounds on scratch memory; `None` where the library does not run it after all, or where
    /// an image's bytes depend on the number of images.
    fn time(&mut self, algorithm: &Algorithm) -> Result<Option<Vec<f32>>>;
}

/// The choices of one device and library.
pub(crate) struct Autotuner {
    /// Names both.
    identity: String,
    cache: Cache,
    trials: AtomicBool,
    /// The choices of this process: it never chooses twice for one shape.
    known: Mutex<HashMap<GemmShape, Algorithm>>,
}

/// Whether trials are wanted, by the environment's `BRAID_TRIALS`: `0` or `off` for none.
pub(crate) fn wanted(setting: Option<&OsStr>) -> bool {
    !setting.is_some_and(|value| value == "0" || value.eq_ignore_ascii_case("off"))
}

impl Autotuner {
    /// `identity` names device, driver and library with their versions, and what else the trials depend on.
    pub(crate) fn new(identity: String, cache: Cache, trials: bool) -> Self {
        let trials = AtomicBool::new(trials && cache.is_there());
        Self { identity, cache, trials, known: Mutex::default() }
    }

    /// The algorithm for a product: one that this process has chosen before, one kept on disk, or the fastest now.
    ///
    /// # Errors
    /// [`Error::Fault`] where the library has none, or where the device is lost.
    pub(crate) fn choose(&self, shape: GemmShape, library: &mut dyn GemmLibrary) -> Result<Algorithm> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(algorithm) = known.get(&shape).filter(|algorithm| library.takes(algorithm)) {
            return Ok(*algorithm);
        }
        let algorithm = self.decide(&shape, library)?;
        known.insert(shape, algorithm);
        Ok(algorithm)
    }

    fn decide(&self, shape: &GemmShape, library: &mut dyn GemmLibrary) -> Result<Algorithm> {
        let none = || Error::Fault {
            device: DEVICE.into(),
            call: "cublasLtMatmulAlgoGetHeuristic".into(),
            what: format!("no algorithm for {shape}"),
            lost: false,
        };
        if !self.trials.load(Relaxed) {
            return library.suggest(1)?.first().copied().ok_or_else(none);
        }
        let _lock = LOCK.lock().unwrap_or_else(PoisonError::into_inner);
        let key = self.key(shape);
        if let Some(kept) = self.kept(&key, library) {
            return Ok(kept);
        }
        let suggested = library.suggest(SUGGESTIONS)?;
        let first = suggested.first().copied().ok_or_else(none)?;
        let best = match fastest(&suggested, library) {
            Ok(Some(best)) => best,
            // The product's own run will say what is wrong.
            Ok(None) => return Ok(first),
            Err(error @ Error::Fault { lost: true, .. }) => {
                tracing::warn!(%shape, "an algorithm of cuBLASLt ended the device at its trial; BRAID_TRIALS=0 does without trials");
                return Err(error);
            }
            Err(error) => {
                tracing::warn!(%shape, %error, "not tried: cuBLASLt's first suggestion is taken");
                return Ok(first);
            }
        };
        // Another process may have come first.
        if let Some(kept) = self.kept(&key, library) {
            return Ok(kept);
        }
        if self.cache.store(FILE, &key, encode(&best).as_bytes()) {
            let rank = suggested.iter().position(|algorithm| *algorithm == best);
            tracing::debug!(%shape, rank, of = suggested.len(), "chosen by trial");
            return Ok(best);
        }
        tracing::info!(
            "no cache can be written: cuBLASLt's first suggestions are taken, as trials would choose anew each time"
        );
        self.trials.store(false, Relaxed);
        Ok(first)
    }

    fn key(&self, shape: &GemmShape) -> Vec<u8> {
        format!("{}; {SUGGESTIONS} suggestions; {shape}", self.identity).into_bytes()
    }

    /// The choice on disk, where it is whole and the library takes it.
    fn kept(&self, key: &[u8], library: &mut dyn GemmLibrary) -> Option<Algorithm> {
        let algorithm = decode(&self.cache.load(FILE, key)?)?;
        library.takes(&algorithm).then_some(algorithm)
    }
}

/// The first, in the library's order, of those whose time is the shortest or nearly so; `None` where none runs.
fn fastest(suggested: &[Algorithm], library: &mut dyn GemmLibrary) -> Result<Option<Algorithm>> {
    let mut times = Vec::new();
    for algorithm in suggested {
        if let Some(time) = library.time(algorithm)?.and_then(smallest) {
            times.push((*algorithm, time));
        }
    }
    let shortest = times.iter().map(|(_, time)| *time).fold(f32::INFINITY, f32::min);
    Ok(times.into_iter().find(|(_, time)| *time <= shortest * TIE).map(|(algorithm, _)| algorithm))
}

/// The smallest: what disturbs a round only makes it longer. `None` where there is none that is a time.
fn smallest(times: Vec<f32>) -> Option<f32> {
    times.into_iter().filter(|time| time.is_finite() && *time >= 0.0).min_by(f32::total_cmp)
}

/// 128 hexadecimal digits: the bytes in their order.
fn encode(algorithm: &Algorithm) -> String {
    algorithm.iter().flat_map(|word| word.to_le_bytes()).map(|byte| format!("{byte:02x}")).collect()
}

fn decode(text: &[u8]) -> Option<Algorithm> {
    let digit = |byte: u8| char::from(byte).to_digit(16).filter(|_| !byte.is_ascii_uppercase());
    if text.len() != 128 {
        return None;
    }
    let digits = text.iter().map(|byte| digit(*byte)).collect::<Option<Vec<u32>>>()?;
    let byte = |at: usize| u64::from(digits[2 * at] << 4 | digits[2 * at + 1]);
    Some(std::array::from_fn(|word| (0..8).fold(0, |value, at| value | byte(8 * word + at) << (8 * at))))
}

#[cfg(test)]
#[path = "autotune_tests.rs"]
mod tests;
