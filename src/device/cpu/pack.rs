//! Widening and transposing weights into panels for the innermost loop.

use super::fp_math::{Operands, pair_row, pair_taps, round_in_place};
use super::microkernel::{Lanes, NR};
#[cfg(target_arch = "x86_64")]
use super::pack_avx512::{pack_pairs, pack_words, transpose};
use super::simd::for_every_isa;
#[cfg(target_arch = "x86_64")]
use super::simd::{Isa, isa};
use crate::tensor::DType;
use crate::weights::Weight;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use std::ops::Range;

/// The right-hand side of a GEMM: matrices `[N, C * taps]` whose rows are joined, cut into panels of 32 rows.
pub(crate) struct Panel {
    /// Each with the number of the first joined row that it holds.
    parts: Vec<(usize, Weight)>,
    taps: usize,
    rows: usize,
    /// The joined rows that the matrices have; all others are zero.
    present: Range<usize>,
    /// A panel holds 16 rows of the first half and the 16 matching ones of the second.
    halves: bool,
}

/// Elements of a row that are widened at a time: 32 rows of them stay in the first-level cache.
const CHUNK: usize = 144;

/// Packs whole blocks of lanes, each of so many channels with so many taps, fetches others, and gives the number of channels done.
#[cfg(target_arch = "x86_64")]
type BlockPacking = unsafe fn(&Lanes<'_>, DType, (usize, usize), &mut [f32], &Lanes<'_>) -> usize;

impl Panel {
    /// Joins `parts`, each `[N, C]` or `[N, C, kh, kw]` with kh * kw = taps.
    pub(crate) fn new(parts: Vec<Weight>, taps: usize, halves: bool) -> Self {
        let mut rows = 0;
        let mut place = |w: Weight| {
            rows += w.shape()[0];
            (rows - w.shape()[0], w)
        };
        let parts = parts.into_iter().map(&mut place).collect();
        Self { parts, taps, rows, present: 0..rows, halves }
    }

    /// One matrix `[N, C]` whose first row is joined row `first` of as many as `like` has, cut as those are.
    pub(crate) fn within(like: &Self, first: usize, matrix: Weight) -> Self {
        let present = first..first + matrix.shape()[0];
        Self { parts: vec![(first, matrix)], taps: 1, rows: like.rows, present, halves: like.halves }
    }

    /// Whether a panel holds 16 rows of the first half and the 16 matching ones of the second.
    pub(crate) fn has_halves(&self) -> bool {
        self.halves
    }

    /// Whether panel `p` has a row that is not zero.
    pub(crate) fn is_present(&self, p: usize) -> bool {
        (0..NR).any(|j| self.row(p, j).is_some())
    }

    /// The number of panels.
    pub(crate) fn count(&self) -> usize {
        if self.halves { (self.rows / 2).div_ceil(NR / 2) } else { self.rows.div_ceil(NR) }
    }

    /// The joined row in lane `j` of panel `p`, where there is one that is not zero.
    pub(crate) fn row(&self, p: usize, j: usize) -> Option<usize> {
        let joined = if self.halves {
            let (half, inner) = (NR / 2, self.rows / 2);
            let row = p * half + j % half;
            (row < inner).then_some(row + if j >= half { inner } else { 0 })
        } else {
            Some(p * NR + j)
        };
        joined.filter(|row| self.present.contains(row))
    }

    /// Writes channels `start..start + len` of panel `p` in words of `operands`: `out[(tap * words + word) * 32 + j]`. Meanwhile the lanes
    /// `next` are fetched, where [`Panel::fetches`] says so.
    pub(crate) fn pack(
        &self,
        operands: Operands,
        p: usize,
        (start, len): (usize, usize),
        out: &mut [f32],
        next: &Lanes<'_>,
    ) {
        let done = self.pack_blocks(operands, p, (start, len), out, next);
        if done < len {
            self.pack_rest(operands, p, start, done..len, out);
        }
    }

    /// [`Panel::pack`] of the channels from `start + rest.start` on.
    fn pack_rest(&self, operands: Operands, p: usize, start: usize, rest: Range<usize>, out: &mut [f32]) {
        let len = rest.end;
        let step = match operands {
            // An even number, so that no pair lies in two chunks.
            Operands::Pairs => (CHUNK / self.taps / 2 * 2).max(2),
            _ => (CHUNK / self.taps).max(1),
        };
        let step = step.min(len.max(1));
        let (length, width) = (step * self.taps, operands.words(step) * self.taps);
        let mut buffer = [0f32; (NR + 1) * CHUNK];
        let mut long = Vec::new();
        // Only a patch embedding has more taps than a chunk has elements.
        let buffer: &mut [f32] = if length <= CHUNK {
            &mut buffer[..NR * width + length]
        } else {
            long.resize(NR * width + length, 0.0);
            &mut long
        };
        let (lanes, row) = buffer.split_at_mut(NR * width);
        for c0 in rest.step_by(step) {
            let count = step.min(len - c0);
            for j in 0..NR {
                let lane = &mut lanes[j * width..][..operands.words(count) * self.taps];
                match self.row(p, j) {
                    Some(at) if operands == Operands::Pairs => {
                        let row = &mut row[..count * self.taps];
                        self.widen(at, start + c0, row);
                        match self.taps {
                            1 => pair_row(row, bytemuck::cast_slice_mut(lane)),
                            taps => pair_taps(row, taps, bytemuck::cast_slice_mut(lane)),
                        }
                    }
                    Some(at) => self.widen(at, start + c0, lane),
                    None => lane.fill(0.0),
                }
            }
            if operands == Operands::Rounded {
                round_in_place(lanes);
            }
            let place = Place { first: operands.words(c0), count: operands.words(count), of: operands.words(len) };
            spread(lanes, width, self.taps, place, out);
        }
    }

    /// The packing of blocks of 16 by 16 words, where the processor has it.
    #[cfg(target_arch = "x86_64")]
    fn block_packing(&self, operands: Operands) -> Option<BlockPacking> {
        match operands {
            Operands::F32 if isa() >= Isa::Avx512 => Some(pack_words),
            Operands::Pairs if self.taps == 1 && isa() == Isa::Avx512Bf16 => Some(pack_pairs),
            _ => None,
        }
    }

    /// Whether [`Panel::pack`] fetches the lanes that come next.
    pub(crate) fn fetches(&self, operands: Operands) -> bool {
        #[cfg(target_arch = "x86_64")]
        let fetches = self.block_packing(operands).is_some();
        #[cfg(not(target_arch = "x86_64"))]
        let (fetches, _) = (false, operands);
        fetches
    }

    /// [`Panel::pack`] of as many channels as blocks of 16 by 16 words have, from memory through registers to `out`; their number.
    fn pack_blocks(
        &self,
        operands: Operands,
        p: usize,
        (start, len): (usize, usize),
        out: &mut [f32],
        next: &Lanes<'_>,
    ) -> usize {
        #[cfg(target_arch = "x86_64")]
        if let Some(pack) = self.block_packing(operands)
            && let Some(lanes) = self.lanes(p, start, len)
        {
            // SAFETY: `isa` has found AVX-512 F, and BF16 where there are pairs.
            return unsafe { pack(&lanes, self.parts[0].1.dtype(), (len, self.taps), out, next) };
        }
        let _ = (operands, p, start, len, out, next);
        0
    }

    /// The bytes of each lane's channels; none where they are of several types or do not follow one another.
    pub(crate) fn lanes(&self, p: usize, start: usize, len: usize) -> Option<Lanes<'_>> {
        let dtype = self.parts.first()?.1.dtype();
        let (size, width) = (dtype.size(), len * self.taps);
        let mut lanes = [None; NR];
        // The matrix of the lane before, which most lanes are of, with its first joined row.
        let mut last: Option<(usize, &Weight, &[u8])> = None;
        for (j, lane) in lanes.iter_mut().enumerate() {
            let Some(joined) = self.row(p, j) else { continue };
            let same = last.filter(|(first, weight, _)| joined.wrapping_sub(*first) < weight.shape()[0]);
            let (first, weight, bytes) = same.unwrap_or_else(|| {
                let (weight, row) = self.part(joined);
                (joined - row, weight, weight.bytes())
            });
            last = Some((first, weight, bytes));
            let strides = weight.strides();
            if weight.dtype() != dtype || strides[strides.len() - 1] != 1 {
                return None;
            }
            let from = (joined - first) * strides[0] + start * self.taps;
            *lane = Some(&bytes[from * size..][..width * size]);
        }
        Some(lanes)
    }

    /// The matrix that has a joined row, and the row's number there.
    fn part(&self, row: usize) -> (&Weight, usize) {
        let at = self.parts.partition_point(|(first, _)| *first <= row) - 1;
        let (first, weight) = &self.parts[at];
        (weight, row - first)
    }

    /// Elements of a row from channel `start` on, as f32.
    pub(crate) fn widen(&self, row: usize, start: usize, out: &mut [f32]) {
        let (weight, row) = self.part(row);
        let size = weight.dtype().size();
        let strides = weight.strides();
        let bytes = weight.bytes();
        if strides[strides.len() - 1] == 1 {
            let from = (row * strides[0] + start * self.taps) * size;
            widen(&bytes[from..from + out.len() * size], weight.dtype(), out);
        } else {
            // A transposed matrix: element by element.
            for (i, o) in out.iter_mut().enumerate() {
                let from = (row * strides[0] + (start + i) * strides[1]) * size;
                widen(&bytes[from..from + size], weight.dtype(), std::slice::from_mut(o));
            }
        }
    }
}

/// Little-endian elements to f32; they need not be aligned.
pub(crate) fn widen(bytes: &[u8], dtype: DType, out: &mut [f32]) {
    match dtype {
        DType::F32 => match bytemuck::try_cast_slice::<u8, f32>(bytes) {
            Ok(values) if cfg!(target_endian = "little") => out.copy_from_slice(values),
            _ => each(bytes, out, |b: [u8; 4]| f32::from_le_bytes(b)),
        },
        DType::F16 => match bytemuck::try_cast_slice::<u8, f16>(bytes) {
            Ok(values) if cfg!(target_endian = "little") => widen_f16(values, out),
            _ => each(bytes, out, |b| f16::from_le_bytes(b).to_f32()),
        },
        DType::BF16 => match bytemuck::try_cast_slice::<u8, bf16>(bytes) {
            Ok(values) if cfg!(target_endian = "little") => widen_bf16(values, out),
            _ => each(bytes, out, |b| bf16::from_le_bytes(b).to_f32()),
        },
    }
}

fn each<const N: usize>(bytes: &[u8], out: &mut [f32], value: impl Fn([u8; N]) -> f32) {
    for (chunk, o) in bytes.chunks_exact(N).zip(out) {
        let mut b = [0; N];
        b.copy_from_slice(chunk);
        *o = value(b);
    }
}

fn widen_f16(values: &[f16], out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if isa() >= Isa::Avx512 {
        // SAFETY: `isa` has found AVX-512 F.
        unsafe { widen_f16_avx512(values, out) };
        return;
    }
    values.convert_to_f32_slice(out);
}

/// Sixteen at a time; the library's way of eight through a call each took an eighth of a denoising step.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn widen_f16_avx512(values: &[f16], out: &mut [f32]) {
    use std::arch::x86_64::*;
    let (chunks, rest) = values.as_chunks::<16>();
    for (from, to) in chunks.iter().zip(out.as_chunks_mut::<16>().0) {
        // SAFETY: both hold sixteen elements.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast()))) };
    }
    let done = chunks.len() * 16;
    rest.iter().zip(&mut out[done..]).for_each(|(v, o)| *o = v.to_f32());
}

for_every_isa! {
    fn widen_bf16(values: &[bf16], out: &mut [f32]) {
        for (v, o) in values.iter().zip(out) {
            *o = f32::from_bits(u32::from(v.to_bits()) << 16);
        }
    }
}

/// The place of a chunk among the words of a row.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    /// Its first word.
    pub(crate) first: usize,
    /// Its words.
    pub(crate) count: usize,
    /// Words of the row.
    pub(crate) of: usize,
}

/// Transposes `lanes` (32 rows of `width`, word w * taps + t) into rows `t * place.of + place.first + w` of `out`.
pub(crate) fn spread(lanes: &[f32], width: usize, taps: usize, place: Place, out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if isa() >= Isa::Avx512 {
        // SAFETY: `isa` has found AVX-512 F.
        return unsafe { spread_avx512(lanes, width, taps, place, out) };
    }
    spread_any(lanes, width, taps, place, out);
}

for_every_isa! {
    /// [`spread`], word by word.
    fn spread_any(lanes: &[f32], width: usize, taps: usize, place: Place, out: &mut [f32]) {
        for t in 0..taps {
            for c in 0..place.count {
                let row = &mut out[(t * place.of + place.first + c) * NR..][..NR];
                for (j, o) in row.iter_mut().enumerate() {
                    *o = lanes[j * width + c * taps + t];
                }
            }
        }
    }
}

/// [`spread`] by transposing blocks of 16 by 16 in registers, or, with several taps, by gathering 16 lanes at a time.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn spread_avx512(lanes: &[f32], width: usize, taps: usize, place: Place, out: &mut [f32]) {
    use std::arch::x86_64::*;
    let Place { first, count, of } = place;
    let whole = if taps == 1 { count / 16 * 16 } else { 0 };
    for half in [0, 16] {
        for c in (0..whole).step_by(16) {
            let rows: [__m512; 16] = std::array::from_fn(|j| {
                let row = &lanes[(half + j) * width + c..][..16];
                // SAFETY: 16 floats follow.
                unsafe { _mm512_loadu_ps(row.as_ptr()) }
            });
            for (i, column) in transpose(rows).into_iter().enumerate() {
                let row = &mut out[(first + c + i) * NR + half..][..16];
                // SAFETY: 16 floats follow.
                unsafe { _mm512_storeu_ps(row.as_mut_ptr(), column) };
            }
        }
        assert!(lanes.len() >= NR * width && width >= count * taps && width <= 1 << 20);
        let steps = _mm512_mullo_epi32(
            _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0),
            _mm512_set1_epi32(width as i32),
        );
        for t in 0..taps {
            for c in whole..count {
                let row = &mut out[(t * of + first + c) * NR + half..][..16];
                // SAFETY: the furthest element read is (half + 15) * width + count * taps - 1, inside `lanes` by the check
                // above; 16 floats follow `row`.
                unsafe {
                    let from = lanes.as_ptr().add(half * width + c * taps + t);
                    _mm512_storeu_ps(row.as_mut_ptr(), _mm512_i32gather_ps::<4>(steps, from));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::MappedBytes;
    use std::sync::Arc;

    /// The elements that a word holds, and what they are where the panel's own are `values`.
    fn elements(operands: Operands, word: f32) -> Vec<f32> {
        let bits = word.to_bits();
        match operands {
            Operands::Pairs => vec![f32::from_bits(bits << 16), f32::from_bits(bits & 0xffff_0000)],
            _ => vec![word],
        }
    }

    /// A matrix of elements of that type, with the values that they have.
    fn matrix(values: &[f32], shape: &[usize], dtype: DType) -> (Weight, Vec<f32>) {
        let bytes = |v: &f32| match dtype {
            DType::F32 => v.to_le_bytes().to_vec(),
            DType::F16 => f16::from_f32(*v).to_le_bytes().to_vec(),
            DType::BF16 => bf16::from_f32(*v).to_le_bytes().to_vec(),
        };
        let bytes = MappedBytes::owned(values.iter().flat_map(bytes).collect());
        let w = Weight::new(Arc::new(bytes), 0, dtype, shape.to_vec(), "w").unwrap();
        let values = w.to_f32();
        (w, values)
    }

    #[test]
    fn panel_contents() {
        for (n, c, taps, halves) in
            [(40, 7, 9, false), (34, 300, 1, false), (40, 150, 1, true), (40, 48, 9, false), (5, 2, 196, false)]
        {
            for (first, second) in [
                (DType::F32, DType::F32),
                (DType::F16, DType::F16),
                (DType::BF16, DType::BF16),
                (DType::F16, DType::F32),
            ] {
                let (split, width) = (n - 3, c * taps);
                let values: Vec<f32> = (0..n * width).map(|i| i as f32 + 0.25).collect();
                let (w, mut values_first) = matrix(&values[..split * width], &[split, width], first);
                let (last, values_last) = matrix(&values[split * width..], &[3, width], second);
                values_first.extend(values_last);
                contents(&Panel::new(vec![w, last], taps, halves), &values_first, (c, taps));
            }
        }
    }

    /// Each word of each panel has the elements that it should.
    fn contents(panel: &Panel, values: &[f32], (c, taps): (usize, usize)) {
        let (start, len) = (1, c - 1);
        for (p, operands) in (0..panel.count())
            .flat_map(|p| [Operands::F32, Operands::Rounded, Operands::Pairs].map(|operands| (p, operands)))
        {
            let words = operands.words(len);
            let mut out = vec![-1.0; words * taps * NR];
            panel.pack(operands, p, (start, len), &mut out, &[None; NR]);
            for (i, word) in out.iter().enumerate() {
                let (t, w, j) = (i / NR / words, i / NR % words, i % NR);
                let got = elements(operands, *word);
                for (k, got) in got.iter().enumerate().map(|(k, v)| (w * got.len() + k, *v)) {
                    let want = panel.row(p, j).filter(|_| k < len);
                    let want = want.map_or(0.0, |r| values[r * c * taps + (start + k) * taps + t]);
                    let want = if operands == Operands::F32 { want } else { bf16::from_f32(want).to_f32() };
                    assert_eq!(got, want, "{operands:?}, panel {p} tap {t} channel {k} lane {j}");
                }
            }
        }
    }

    #[test]
    fn every_half_value() {
        let values: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).filter(|v| !v.is_nan()).collect();
        let mut out = vec![0.0; values.len()];
        widen(bytemuck::cast_slice(&values), DType::F16, &mut out);
        assert!(values.iter().zip(&out).all(|(v, o)| v.to_f32().to_bits() == o.to_bits()));
    }

    #[test]
    fn transposed_and_unaligned() {
        let w = Weight::from_f32(&[1., 2., 3., 4., 5., 6.], &[3, 2], "w").unwrap().transposed().unwrap();
        let panel = Panel::new(vec![w], 1, false);
        let mut out = vec![0.0; 3 * NR];
        panel.pack(Operands::F32, 0, (0, 3), &mut out, &[None; NR]);
        assert_eq!([out[0], out[NR], out[2 * NR], out[1], out[NR + 1]], [1., 3., 5., 2., 4.]);
        let mut bytes = vec![0u8];
        bytes.extend([1.5f32, -2.0].iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()));
        let mut out = [0.0; 2];
        widen(&bytes[1..], DType::F16, &mut out);
        assert_eq!(out, [1.5, -2.0]);
    }
}
