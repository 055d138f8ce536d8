//! The search for NaN and infinity among weights.

use super::weight::{Weight, Weights};
use crate::cancel;
use crate::parallel;
use crate::tensor::DType;
use std::ops::Range;

/// The words that are judged together.
const BLOCK: usize = 4096;
/// The blocks that one task looks at.
const BLOCKS: usize = 64;

impl Weight {
    /// Whether no element is NaN or infinite.
    pub fn is_finite(&self) -> bool {
        not_finite(&[Span::of(vec![("", self)])], self.len()).is_empty()
    }

    /// Whether every byte of [`Weight::bytes`] belongs to an element; of a transpose, too.
    fn is_full(&self) -> bool {
        self.bytes().len() == self.len() * self.dtype().size()
    }

    /// The bytes of [`Weight::bytes`] in its storage.
    fn range(&self) -> Range<usize> {
        let start = self.location().1;
        start..start + self.bytes().len()
    }
}

impl Weights {
    /// The names of the tensors that hold NaN or infinity, sorted.
    ///
    /// It reads every byte of the tensors once, however many of them share it: for a mapped file, from the disk. Tensors with holes
    /// are looked at element by element where NaN or infinity lies between their ends; where these are more than all tensors' bytes,
    /// the rest of them counts as not finite. Where it is stopped
    /// ([`crate::CancelToken::scope`]) it tells of what it has seen by then.
    pub fn not_finite(&self) -> Vec<String> {
        let spans = spans(self);
        let budget = spans.iter().map(|span| span.bytes.len()).sum();
        let mut names = not_finite(&spans, budget);
        names.sort();
        names
    }
}

/// The names of the tensors that hold NaN or infinity. So many elements are looked at one by one.
fn not_finite(spans: &[Span<'_>], mut budget: usize) -> Vec<String> {
    let mut bad: Vec<Vec<bool>> =
        spans.iter().map(|span| vec![false; span.bytes.len().div_ceil(span.block())]).collect();
    let parts = spans.iter().zip(&mut bad).flat_map(|(span, bad)| {
        let bytes = span.bytes.chunks(BLOCKS * span.block());
        bytes.zip(bad.chunks_mut(BLOCKS)).map(move |(bytes, bad)| (span, bytes, bad))
    });
    let parts: Vec<_> = parts.collect();
    parallel::for_each(usize::MAX, parts.into_iter(), |(span, bytes, bad)| {
        if !cancel::is_cancelled() {
            bytes.chunks(span.block()).zip(bad).for_each(|(block, bad)| *bad = !clean(block, span.dtype));
        }
    });
    spans.iter().zip(&bad).flat_map(|(span, bad)| span.not_finite(bad, &mut budget)).collect()
}

/// Bytes of one storage that tensors of one type share, their words on the same boundaries.
struct Span<'a> {
    bytes: &'a [u8],
    /// The place of the first byte in the storage.
    start: usize,
    dtype: DType,
    tensors: Vec<(&'a str, &'a Weight)>,
}

/// The spans of tensors that overlap; one of each tensor where none do.
fn spans(weights: &Weights) -> Vec<Span<'_>> {
    let place = |weight: &Weight| {
        let (storage, start) = weight.location();
        let size = weight.dtype().size();
        (std::sync::Arc::as_ptr(storage), weight.dtype() as u8, start % size, start)
    };
    let mut tensors: Vec<_> = weights.iter().filter(|(_, weight)| !weight.is_empty()).collect();
    tensors.sort_by_key(|(_, weight)| place(weight));
    let mut spans: Vec<Vec<(&str, &Weight)>> = Vec::new();
    let (mut like, mut end) = (None, 0);
    for (name, weight) in tensors {
        let (storage, dtype, phase, start) = place(weight);
        match spans.last_mut() {
            Some(span) if like == Some((storage, dtype, phase)) && start < end => span.push((name, weight)),
            _ => {
                spans.push(vec![(name, weight)]);
                (like, end) = (Some((storage, dtype, phase)), 0);
            }
        }
        end = end.max(weight.range().end);
    }
    spans.into_iter().map(Span::of).collect()
}

impl<'a> Span<'a> {
    /// The span of tensors of one storage and type, the first of which begins first.
    fn of(tensors: Vec<(&'a str, &'a Weight)>) -> Self {
        let (storage, start) = tensors[0].1.location();
        let end = tensors.iter().map(|(_, weight)| weight.range().end).max().unwrap_or(start);
        let bytes = storage.bytes().get(start..end).unwrap_or_default();
        Self { bytes, start, dtype: tensors[0].1.dtype(), tensors }
    }

    /// The bytes of a block.
    fn block(&self) -> usize {
        BLOCK * self.dtype.size()
    }

    /// The names of its tensors that hold NaN or infinity, given the blocks that do. Elements that are looked at one by one are taken off
    /// `budget`.
    fn not_finite(&self, bad: &[bool], budget: &mut usize) -> Vec<String> {
        let size = self.dtype.size();
        if !bad.contains(&true) {
            return Vec::new();
        }
        // Bad blocks before each block.
        let mut before = vec![0usize];
        before.extend(bad.iter().scan(0, |sum, bad| {
            *sum += usize::from(*bad);
            Some(*sum)
        }));
        let bad = |blocks: Range<usize>| blocks.start < blocks.end && before[blocks.end] > before[blocks.start];
        let mut holds = |weight: &Weight| {
            let range = weight.range();
            let (first, last) = ((range.start - self.start) / size, (range.end - self.start) / size);
            if !bad(first / BLOCK..last.div_ceil(BLOCK)) {
                return false;
            }
            if !weight.is_full() {
                let Some(left) = budget.checked_sub(weight.len()) else { return true };
                *budget = left;
                return weight.to_f32().iter().any(|value| !value.is_finite());
            }
            // Whole blocks, then what is left at both ends of them.
            let whole = first.div_ceil(BLOCK)..last / BLOCK;
            let ends = match whole.start <= whole.end {
                true => [first..whole.start * BLOCK, whole.end * BLOCK..last],
                false => [first..last, last..last],
            };
            bad(whole)
                || ends.into_iter().any(|words| !clean(&self.bytes[words.start * size..words.end * size], self.dtype))
        };
        self.tensors.iter().filter(|(_, weight)| holds(weight)).map(|(name, _)| (*name).to_owned()).collect()
    }
}

/// Whether all words are finite.
fn clean(bytes: &[u8], dtype: DType) -> bool {
    match dtype {
        DType::F32 => all(bytes, |w: [u8; 4]| u32::from_le_bytes(w) & 0x7f80_0000 != 0x7f80_0000),
        DType::F16 => all(bytes, |w: [u8; 2]| u16::from_le_bytes(w) & 0x7c00 != 0x7c00),
        DType::BF16 => all(bytes, |w: [u8; 2]| u16::from_le_bytes(w) & 0x7f80 != 0x7f80),
    }
}

/// Without an early exit, so that the loop becomes vector instructions.
fn all<const N: usize>(bytes: &[u8], finite: impl Fn([u8; N]) -> bool) -> bool {
    bytes.as_chunks::<N>().0.iter().fold(true, |all, &word| all & finite(word))
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
            let chunk = BLOCKS * BLOCK * dtype.size();
            let n = 2 * chunk + 4 * dtype.size();
            for at in [0, BLOCK * dtype.size(), chunk, n - dtype.size()] {
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

    /// Many names for one storage are searched as fast as one, each by its own elements.
    #[test]
    fn shared_bytes() {
        let n = 3 * BLOCK + 100;
        let bad = [5, BLOCK - 1, 2 * BLOCK + 7, n - 1];
        let value = |i| if bad.contains(&i) { f32::INFINITY } else { i as f32 };
        let whole = Weight::from_f32(&(0..n).map(value).collect::<Vec<_>>(), &[n], "t").unwrap();
        let mut weights = Weights::new(std::path::Path::new("f"));
        let mut expected = Vec::new();
        let edges =
            [0, 1, 5, 6, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 2 * BLOCK + 7, 2 * BLOCK + 8, 3 * BLOCK, n - 1, n];
        for (a, b) in edges.iter().flat_map(|a| edges.map(|b| (*a, b))).filter(|(a, b)| a < b) {
            let name = format!("{a:05} to {b:05}");
            if bad.iter().any(|i| (a..b).contains(i)) {
                expected.push(name.clone());
            }
            weights.insert(name, whole.rows(a, b - a).unwrap()).unwrap();
        }
        for i in 0..100_000 {
            weights.insert(format!("x{i}"), whole.rows(6, n - 6 - i % 50).unwrap()).unwrap();
            expected.push(format!("x{i}"));
        }
        expected.sort();
        assert_eq!(weights.not_finite(), expected);
    }

    /// Tensors with holes cost no more than what they lie in.
    #[test]
    fn many_holes() {
        let mut values = vec![0.0; 10_001];
        values[1] = f32::NAN;
        let storage = Weight::from_f32(&values, &[10_001], "t").unwrap().location().0.clone();
        let mut weights = Weights::new(std::path::Path::new("f"));
        for i in 0..1000 {
            let column = Weight::strided(storage.clone(), 0, DType::F32, vec![5000], vec![2], "c").unwrap();
            weights.insert(format!("{i:03}"), column).unwrap();
        }
        // 39,996 bytes pay for 7 of 5,000 elements each.
        assert_eq!(weights.not_finite().len(), 1000 - 7);
    }
}
