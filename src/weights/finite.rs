//! The search for NaN and infinity among weights.

use super::weight::{Weight, Weights};
use crate::tensor::DType;
use rayon::prelude::*;

/// The bytes that one task looks at.
const CHUNK: usize = 1 << 20;

impl Weight {
    /// Whether no element is NaN or infinite.
    pub fn is_finite(&self) -> bool {
        // A transpose of a full matrix also has as many elements as its span, so the order does not matter.
        if self.bytes().len() != self.len() * self.dtype().size() {
            return self.to_f32().iter().all(|v| v.is_finite());
        }
        self.bytes().par_chunks(CHUNK).all(match self.dtype() {
            DType::F32 => |chunk: &[u8]| clean(chunk, |w: [u8; 4]| u32::from_le_bytes(w) & 0x7f80_0000 != 0x7f80_0000),
            DType::F16 => |chunk: &[u8]| clean(chunk, |w: [u8; 2]| u16::from_le_bytes(w) & 0x7c00 != 0x7c00),
            DType::BF16 => |chunk: &[u8]| clean(chunk, |w: [u8; 2]| u16::from_le_bytes(w) & 0x7f80 != 0x7f80),
        })
    }
}

impl Weights {
    /// The names of the tensors that hold NaN or infinity, sorted.
    ///
    /// It reads every byte of the tensors: for a mapped file, from the disk.
    pub fn not_finite(&self) -> Vec<String> {
        let tensors: Vec<_> = self.iter().collect();
        tensors.into_par_iter().filter(|(_, w)| !w.is_finite()).map(|(n, _)| n.to_owned()).collect()
    }
}

/// Whether all words are finite. Without an early exit inside a block, so that the loop becomes vector instructions.
fn clean<const N: usize>(chunk: &[u8], finite: impl Fn([u8; N]) -> bool) -> bool {
    let (words, _) = chunk.as_chunks::<N>();
    words.chunks(4096).all(|block| block.iter().fold(true, |all, &w| all & finite(w)))
}

#[cfg(test)]
mod tests {
    use super::super::mmap::MappedBytes;
    use super::*;
    use std::sync::Arc;

    fn tensor(bytes: Vec<u8>, dtype: DType) -> Weight {
        let n = bytes.len() / dtype.size();
        Weight::new(Arc::new(MappedBytes::owned(bytes)), 0, dtype, vec![n], "t").unwrap()
    }

    #[test]
    fn one_word_anywhere() {
        for (dtype, bad, good) in [
            (DType::F32, &f32::NEG_INFINITY.to_le_bytes()[..], &f32::MAX.to_le_bytes()[..]),
            (DType::F16, &half::f16::NAN.to_le_bytes(), &half::f16::MIN.to_le_bytes()),
            (DType::BF16, &half::bf16::INFINITY.to_le_bytes(), &half::bf16::MAX.to_le_bytes()),
        ] {
            let n = 2 * CHUNK + 4 * dtype.size();
            for at in [0, CHUNK, n - dtype.size()] {
                let mut bytes = vec![0x11; n];
                bytes[at..at + good.len()].copy_from_slice(good);
                assert!(tensor(bytes.clone(), dtype).is_finite());
                bytes[at..at + bad.len()].copy_from_slice(bad);
                assert!(!tensor(bytes, dtype).is_finite(), "{dtype} at {at}");
            }
        }
    }

    #[test]
    fn view_holes() {
        let w = Weight::from_f32(&[1.0, f32::NAN, 2.0, f32::NAN], &[2, 2], "t").unwrap();
        assert!(!w.is_finite() && !w.transposed().unwrap().is_finite());
        let column = Weight::strided(w.location().0.clone(), 0, DType::F32, vec![2], vec![2], "c").unwrap();
        assert!(column.is_finite());
    }
}
