//! Products, computed as their descriptors say.

use braid_ptx::GlobalMemory;
use half::{bf16, f16};
use std::ffi::c_int;

/// The type of a matrix, cudaDataType: 0 is f32, 2 is f16, 14 is bf16.
pub type Kind = c_int;

/// The layout of a matrix: column by column.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Layout {
    pub kind: Kind,
    pub rows: usize,
    pub columns: usize,
    pub leading: usize,
    pub images: usize,
    pub stride: usize,
}

/// `D = alpha op(A) op(B) + bias + beta C` for each image. cuBLASLt hands it to libcuda, which may be another library.
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

    /// The bytes from the first element to the last of all images.
    pub fn bytes(&self) -> usize {
        ((self.images - 1) * self.stride + (self.columns - 1) * self.leading + self.rows) * self.size()
    }

    /// One image, without what lies between its columns.
    fn read(&self, memory: &GlobalMemory, data: u64, image: usize) -> Result<Vec<f32>, String> {
        let mut values = Vec::with_capacity(self.rows * self.columns);
        let mut bytes = vec![0; self.rows * self.size()];
        for column in 0..self.columns {
            let at = (image * self.stride + column * self.leading) * self.size();
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

    /// Computes it; sums are in f32 in the order of the inner index, so that they do not depend on the batch.
    pub fn compute(&self, memory: &GlobalMemory) -> Result<(), String> {
        let [al, bl, cl, dl] = &self.layouts;
        let k = self.depth();
        let bias = match self.biased {
            // Of D's type, as cuBLASLt has it unless told otherwise.
            true => Layout { columns: 1, images: 1, ..*dl }.read(memory, self.bias, 0)?,
            false => vec![0.0; dl.rows],
        };
        for image in 0..dl.images {
            let (a, b) = (al.read(memory, self.operands[0], image)?, bl.read(memory, self.operands[1], image)?);
            let c = if self.factors[1] == 0.0 { None } else { Some(cl.read(memory, self.operands[2], image)?) };
            for column in 0..dl.columns {
                let mut bytes = Vec::with_capacity(dl.rows * dl.size());
                for row in 0..dl.rows {
                    let mut sum = 0.0;
                    for l in 0..k {
                        let x = if self.transposed[0] { a[row * al.rows + l] } else { a[l * al.rows + row] };
                        let y = if self.transposed[1] { b[l * bl.rows + column] } else { b[column * bl.rows + l] };
                        sum += x * y;
                    }
                    let mut value = bias[row];
                    value += self.factors[0] * sum;
                    if let Some(c) = &c {
                        value += self.factors[1] * c[column * cl.rows + row];
                    }
                    bytes.extend(narrow(value, dl.kind));
                }
                let at = (image * dl.stride + column * dl.leading) * dl.size();
                let written = memory.write(self.operands[3] + at as u64, &bytes);
                written.map_err(|fault| format!("the result of a product: {fault}"))?;
            }
        }
        Ok(())
    }
}
