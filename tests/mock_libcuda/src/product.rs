//! Products, computed as their descriptors say.

use braid_ptx::GlobalMemory;
use half::{bf16, f16};
use std::ffi::c_int;

/// The type of a matrix, cudaDataType: 0 is f32, 2 is f16, 14 is bf16.
pub type Kind = c_int;

/// The algorithm that splits sums where there are more columns than a layout was created with, and needs nothing for it: one that
/// no limit excludes.
pub const COLUMNS_DECIDE: u64 = 3;

/// The layout of a matrix: column by column.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Layout {
    pub kind: Kind,
    pub rows: usize,
    pub columns: usize,
    pub leading: usize,
    /// The columns with which it was created: those of one image.
    pub created: usize,
}

/// `D = alpha op(A) op(B) + bias + beta C`. cuBLASLt hands it to libcuda, which may be another library.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Product {
    pub algorithm: u64,
    pub transposed: [bool; 2],
    pub biased: bool,
    pub bias: u64,
    pub factors: [f32; 2],
    /// A, B, C, D.
    pub operands: [u64; 4],
    pub layouts: [Layout; 4],
    pub workspace: u64,
    pub workspace_bytes: usize,
}

impl Layout {
    pub fn size(&self) -> usize {
        if self.kind == 0 { 4 } else { 2 }
    }

    /// The bytes from the first element to the last.
    pub fn bytes(&self) -> usize {
        ((self.columns - 1) * self.leading + self.rows) * self.size()
    }

    /// The elements, without what lies between columns.
    fn read(&self, memory: &GlobalMemory, data: u64) -> Result<Vec<f32>, String> {
        let mut values = Vec::with_capacity(self.rows * self.columns);
        let mut bytes = vec![0; self.rows * self.size()];
        for column in 0..self.columns {
            let at = column * self.leading * self.size();
            memory.read(data + at as u64, &mut bytes).map_err(|fault| format!("an operand of a product: {fault}"))?;
            values.extend(bytes.chunks_exact(self.size()).map(|element| widen(element, self.kind)));
        }
        Ok(values)
    }
}

fn widen(element: &[u8], kind: Kind) -> f32 {
    match (element, kind) {
        (&[a, b], 2) => f16::from_le_bytes([a, b]).to_f32(),
        (&[a, b], _) => bf16::from_le_bytes([a, b]).to_f32(),
        (bytes, _) => f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
    }
}

fn narrow(value: f32, kind: Kind) -> Vec<u8> {
    match kind {
        2 => f16::from_f32(value).to_le_bytes().to_vec(),
        0 => value.to_le_bytes().to_vec(),
        _ => bf16::from_f32(value).to_le_bytes().to_vec(),
    }
}

impl Product {
    /// The inner size.
    pub fn depth(&self) -> usize {
        if self.transposed[0] { self.layouts[0].rows } else { self.layouts[0].columns }
    }

    /// Computes it; sums are in f32 in the order of the inner index, so that they do not depend on the number of columns, but for
    /// the algorithm whose halves are joined in D's type where there are more columns than one image has.
    pub fn compute(&self, memory: &GlobalMemory) -> Result<(), String> {
        let [al, bl, cl, dl] = &self.layouts;
        let k = self.depth();
        let bias = match self.biased {
            // Of D's type, as cuBLASLt has it unless told otherwise.
            true => Layout { columns: 1, ..*dl }.read(memory, self.bias)?,
            false => vec![0.0; dl.rows],
        };
        let (a, b) = (al.read(memory, self.operands[0])?, bl.read(memory, self.operands[1])?);
        let c = if self.factors[1] == 0.0 { None } else { Some(cl.read(memory, self.operands[2])?) };
        let split = self.algorithm == COLUMNS_DECIDE && dl.columns > dl.created;
        // A's columns one after the other, so that the sums of a column of D are next to each other.
        let element = |l, row| if self.transposed[0] { row * al.rows + l } else { l * al.rows + row };
        let left: Vec<f32> = (0..k * dl.rows).map(|i| a[element(i / dl.rows, i % dl.rows)]).collect();
        for column in 0..dl.columns {
            let sums = |range: std::ops::Range<usize>| {
                let mut sums = vec![0.0f32; dl.rows];
                for l in range {
                    let y = if self.transposed[1] { b[l * bl.rows + column] } else { b[column * bl.rows + l] };
                    sums.iter_mut().zip(&left[l * dl.rows..]).for_each(|(sum, x)| *sum += x * y);
                }
                sums
            };
            let sums: Vec<f32> = if split {
                let half = |sum: f32| widen(&narrow(sum, dl.kind), dl.kind);
                sums(0..k / 2).into_iter().zip(sums(k / 2..k)).map(|(first, last)| half(first) + half(last)).collect()
            } else {
                sums(0..k)
            };
            let mut bytes = Vec::with_capacity(dl.rows * dl.size());
            for (row, (bias, sum)) in bias.iter().zip(sums).enumerate() {
                let mut value = bias + self.factors[0] * sum;
                if let Some(c) = &c {
                    value += self.factors[1] * c[column * cl.rows + row];
                }
                bytes.extend(narrow(value, dl.kind));
            }
            let at = column * dl.leading * dl.size();
            let written = memory.write(self.operands[3] + at as u64, &bytes);
            written.map_err(|fault| format!("the result of a product: {fault}"))?;
        }
        Ok(())
    }
}
