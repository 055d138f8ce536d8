//! The CPU's executables, beyond the table of cases in tests/ops.

use super::*;
use crate::graph::Builder;
use crate::tensor::DType;
use crate::weights::{MappedBytes, Weight};
use half::f16;

#[test]
fn wrong_binding() {
    let mut b = Builder::new();
    let x = b.input("x", &[2, 3]);
    let y = b.scale_shift(x, 2.0, 1.0);
    b.output("y", y);
    let mut executable = Cpu::new(Some(1)).compile(b.finish().unwrap()).unwrap();
    let mut out = [0.0; 6];
    let text = executable.run(&[(&[0.0; 5]).into()], &mut [&mut out]).unwrap_err().to_string();
    assert!(text.contains("`x` is f32 [2, 3], bound to 5 values of f32"), "{text}");
    let text = executable.run(&[(&[1; 6]).into()], &mut [&mut out]).unwrap_err().to_string();
    assert!(text.contains("`x` is f32 [2, 3], bound to 6 values of i32"), "{text}");
    executable.run(&[(&[1.0; 6]).into()], &mut [&mut out]).unwrap();
    assert_eq!(out, [3.0; 6]);
}

/// Ids that no f32 holds name their own rows; negative ones name the first, those past the end the last.
#[test]
fn large_ids() {
    const ROWS: usize = (1 << 24) + 4;
    let mut table = vec![0; 2 * ROWS];
    for (row, value) in [(0, 1.0), (1 << 24, 2.0), ((1 << 24) + 1, 3.0), ((1 << 24) + 2, 4.0), (ROWS - 1, 5.0)] {
        table[2 * row..][..2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
    }
    let table = Weight::new(Arc::new(MappedBytes::owned(table)), 0, DType::F16, vec![ROWS, 1], "table").unwrap();
    let positions = Weight::from_f32(&[0.0; 6], &[6, 1], "positions").unwrap();
    let mut b = Builder::new();
    let ids = b.input_i32("ids", &[1, 6]);
    let y = b.embedding(ids, vec![table], positions);
    b.output("y", y);
    let mut executable = Cpu::new(Some(1)).compile(b.finish().unwrap()).unwrap();
    let mut out = [0.0; 6];
    let last = (1 << 24) + 3;
    executable.run(&[(&[(1 << 24) + 1, 1 << 24, (1 << 24) + 2, -7, last, i32::MAX]).into()], &mut [&mut out]).unwrap();
    assert_eq!(out, [3.0, 2.0, 4.0, 1.0, 5.0, 5.0]);
    let text = executable.run(&[(&[0.0; 6]).into()], &mut [&mut out]).unwrap_err().to_string();
    assert!(text.contains("`ids` is i32 [1, 6], bound to 6 values of f32"), "{text}");
}
