//! The CPU's executables, beyond the table of cases in tests/ops.

use super::fp_math::Operands;
use super::*;
use crate::cancel::CancelToken;
use crate::device::rows::rows_of;
use crate::device::{RowAxis, TensorData};
use crate::error::Error;
use crate::graph::{Builder, NodeId};
use crate::tensor::DType;
use crate::weights::{MappedBytes, Scope, Weight, Weights};
use half::{bf16, f16};

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

/// The rows of a graph in parts, as many in each or not: the bytes of all rows together, for inputs whose rows are the first dimension or
/// that all rows share.
#[test]
fn rows_in_parts() {
    let graph = |rows: usize| {
        let mut b = Builder::new();
        let x = b.input("x", &[rows, 5, 3]);
        let each = b.input("each", &[rows, 3]);
        let shared = b.input("shared", &[4]);
        let token = b.input_i32("token", &[rows]);
        let y = b.broadcast_add(x, each);
        let y = b.scale_channels(y, shared, 1);
        let z = b.gather(y, Some(token));
        b.output("y", y);
        b.output("z", z);
        b.finish().unwrap()
    };
    let axes = [RowAxis::First, RowAxis::First, RowAxis::Shared];
    let cut = [
        (1, 8, vec![8]),
        (2, 2, vec![1, 1]),
        (2, 3, vec![3]),
        (2, 4, vec![2, 2]),
        (2, 5, vec![3, 2]),
        (3, 2, vec![2]),
        (3, 5, vec![2, 2, 1]),
        (3, 8, vec![3, 3, 2]),
    ];
    for (threads, rows, numbers) in cut {
        let cpu = Cpu::new(Some(threads));
        assert_eq!(cpu.row_parts(&graph(rows)), numbers);
        let parts = numbers.into_iter().map(|rows| cpu.compile(graph(rows)).unwrap()).collect();
        let mut in_parts = RowParts::new(cpu.pool.clone(), graph(rows), parts, &axes);
        let token: Vec<i32> = (0..rows as i32).map(|row| row % 5).collect();
        let inputs = [values(rows * 15, 1).into(), values(rows * 3, 2).into(), values(4, 3).into(), token.into()];
        let run = |executable: &mut dyn Executable| {
            let (mut y, mut z) = (vec![0.0; rows * 15], vec![0.0; rows * 3]);
            executable.run(&inputs, &mut [&mut y, &mut z]).unwrap();
            (y, z)
        };
        assert_eq!(run(&mut in_parts), run(cpu.compile(graph(rows)).unwrap().as_mut()));
        let cancel = CancelToken::new();
        cancel.cancel();
        let stopped = cancel.scope(|| in_parts.run_resident(&inputs).map(drop));
        assert!(matches!(stopped, Err(Error::Cancelled)));
    }
    let scales = TensorData::from(vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
    assert_eq!(rows_of(&scales, (RowAxis::Last, 4), 1..3).unwrap(), vec![1.0, 2.0, 5.0, 6.0].into());
}

/// A model whose layers are large is not cut, however many rows it has.
#[test]
fn large_layers() {
    for (width, rows, numbers) in [(256, 4, vec![2, 2]), (512, 4, vec![4]), (512, 64, vec![64])] {
        let mut weights = Weights::new("w");
        let weight = Weight::from_f32(&vec![0.0; width * width], &[width, width], "weight").unwrap();
        weights.insert("weight", weight).unwrap();
        let mut b = Builder::new();
        let x = b.input("x", &[rows, 1, width]);
        let y = b.linear_no_bias(x, &Scope::new(weights), width);
        b.output("y", y);
        assert_eq!(Cpu::new(Some(2)).row_parts(&b.finish().unwrap()), numbers);
    }
}

/// Values of either sign between 2^-3 and 2, with every bit of an f32 in use.
fn values(len: usize, seed: u32) -> Vec<f32> {
    let mut x = seed;
    let mut next = || {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f32::from_bits(x & 0x807f_ffff | (124 + x % 4) << 23)
    };
    (0..len).map(|_| next()).collect()
}

fn rounded(values: &[f32]) -> Vec<f32> {
    values.iter().map(|v| bf16::from_f32(*v).to_f32()).collect()
}

/// Runs a graph of one input with these operands.
fn run(
    weights: &[(&str, &[usize], &[f32])],
    x: (&[usize], &[f32]),
    operands: Operands,
    threads: usize,
    f: &Build,
) -> Vec<f32> {
    let mut all = Weights::new("w");
    for (name, shape, values) in weights {
        all.insert(*name, Weight::from_f32(values, shape, name).unwrap()).unwrap();
    }
    let mut b = Builder::new();
    let id = b.input("x", x.0);
    let y = f(&mut b, id, &Scope::new(all));
    b.output("y", y);
    let pool = Arc::new(Pool::new(threads));
    let arithmetic = Arithmetic { operands, int8: None };
    let mut executable = CpuExecutable::new(pool, fuse(b.finish().unwrap()), arithmetic).unwrap();
    let mut out = vec![f32::NAN; executable.graph.node(executable.graph.outputs[0].1).len()];
    executable.run(&[x.1.into()], &mut [&mut out]).unwrap();
    out
}

type Build = dyn Fn(&mut Builder, NodeId, &Scope) -> NodeId;

/// A layer on operands of bf16 is f32's layer on rounded weights and inputs, but for the order of its sums; its bits depend on no
/// number of threads.
fn rounds_operands(name: &str, x: &[usize], weight: &[usize], f: &Build) {
    let (w, b) = (values(weight.iter().product(), 1), values(weight[0], 2));
    let input = values(x.iter().product(), 3);
    let layer = |w: &[f32], input: &[f32], operands, threads| {
        run(&[("weight", weight, w), ("bias", &weight[..1], &b)], (x, input), operands, threads, f)
    };
    let want = layer(&rounded(&w), &rounded(&input), Operands::F32, 1);
    let length = want.iter().map(|v| v * v).sum::<f32>();
    for operands in [Operands::Rounded, Operands::Pairs] {
        let got = layer(&w, &input, operands, 1);
        let error = got.iter().zip(&want).map(|(g, w)| (g - w) * (g - w)).sum::<f32>();
        assert!((error / length).sqrt() < 1e-6, "{name} {operands:?}: {:e}", (error / length).sqrt());
        assert_eq!(
            got,
            layer(&w, &input, operands, 3),
            "{name} {operands:?}: the number of threads changes the result"
        );
    }
}

#[test]
fn linear_in_bf16() {
    for (m, k, n) in [(1, 1, 1), (5, 3, 33), (13, 17, 31), (12, 64, 32), (25, 1153, 70), (37, 2311, 300), (3, 4608, 34)]
    {
        let f = move |b: &mut Builder, x, s: &Scope| b.linear(x, s, n);
        rounds_operands(&format!("linear {m} {k} {n}"), &[1, m, k], &[n, k], &f);
    }
}

#[test]
fn convolutions_in_bf16() {
    for (h, w, c, o, kernel, stride) in [
        (5, 7, 3, 33, 3, 1),
        (6, 5, 129, 34, 3, 2),
        (9, 4, 260, 20, 3, 1),
        (4, 3, 37, 40, 1, 1),
        (28, 28, 3, 5, 14, 14),
    ] {
        let f = move |b: &mut Builder, x, s: &Scope| b.conv2d(x, s, o, kernel, stride);
        rounds_operands(&format!("conv {h} {w} {c} {o} {kernel}"), &[2, h, w, c], &[o, c, kernel, kernel], &f);
    }
}

/// A row by itself has the bits that it has among others, so an image has those that it has in a batch.
#[test]
fn rows_alone_in_bf16() {
    let (k, n) = (700, 290);
    let (w, b, x) = (values(n * k, 4), values(n, 5), values(40 * k, 6));
    let weights: [(&str, &[usize], &[f32]); 2] = [("weight", &[n, k], &w), ("bias", &[n], &b)];
    for operands in [Operands::Rounded, Operands::Pairs] {
        let all = run(&weights, (&[1, 40, k], &x), operands, 2, &move |b, x, s| b.linear(x, s, n));
        for rows in [0..1, 7..20, 33..40] {
            let some = &x[rows.start * k..rows.end * k];
            let some = run(&weights, (&[1, rows.len(), k], some), operands, 2, &move |b, x, s| b.linear(x, s, n));
            assert_eq!(some, all[rows.start * n..rows.end * n], "{operands:?} {rows:?}");
        }
    }
}

/// A query by itself has the bits that it has among others, whichever tile it falls into.
#[test]
fn queries_alone() {
    let (heads, width, keys) = (2, 80, 301);
    let (k, v, x) = (values(keys * width, 7), values(keys * width, 8), values(40 * width, 9));
    let weights: [(&str, &[usize], &[f32]); 2] = [("k", &[keys, width], &k), ("v", &[keys, width], &v)];
    for operands in [Operands::F32, Operands::Rounded, Operands::Pairs] {
        let attention = |rows: std::ops::Range<usize>, threads| {
            run(
                &weights,
                (&[1, rows.len(), width], &x[rows.start * width..rows.end * width]),
                operands,
                threads,
                &move |b, q, s| {
                    let [k, v] = ["k", "v"].map(|name| b.repeat(s.get(name, &[keys, width]), 1));
                    b.attention(q, k, v, heads, false)
                },
            )
        };
        let all = attention(0..40, 1);
        assert_eq!(all, attention(0..40, 3), "{operands:?}: the number of threads changes the result");
        for rows in [0..1, 7..20, 33..40] {
            assert_eq!(attention(rows.clone(), 1), all[rows.start * width..rows.end * width], "{operands:?} {rows:?}");
        }
    }
}
