//! The maps of registers to matrix elements, against tables written out from the PTX manual.

use braid_ptx::{GlobalMemory, Launch, Module, run};
use half::{bf16, f16};

/// Runs a kernel whose lane `l` loads `words` 32-bit words from `16 w l` on, and stores 4 at `out + 16 l`.
fn run_warp(body: &str, input: &[[u32; 16]; 32]) -> Vec<[u32; 4]> {
    let text = format!(
        ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 in, .param .u64 out) {{
        .reg .b32 %r<16>; .reg .b32 %o<4>; .reg .b32 %t; .reg .b32 %s; .reg .b64 %d<4>; .shared .align 16 .b8 sh[2048];
        ld.param.u64 %d0, [in]; ld.param.u64 %d1, [out]; mov.u32 %t, %tid.x;
        mul.wide.u32 %d2, %t, 64; add.s64 %d0, %d0, %d2; mul.wide.u32 %d2, %t, 16; add.s64 %d1, %d1, %d2;
        ld.global.v4.u32 {{%r0, %r1, %r2, %r3}}, [%d0]; ld.global.v4.u32 {{%r4, %r5, %r6, %r7}}, [%d0+16];
        ld.global.v4.u32 {{%r8, %r9, %r10, %r11}}, [%d0+32]; ld.global.v4.u32 {{%r12, %r13, %r14, %r15}}, [%d0+48];
        mov.u32 %s, sh; mov.u32 %o0, 0; mov.u32 %o1, 0; mov.u32 %o2, 0; mov.u32 %o3, 0;
        {body}
        st.global.v4.u32 [%d1], {{%o0, %o1, %o2, %o3}}; ret; }}"
    );
    let module = Module::parse(&text).unwrap();
    let memory = GlobalMemory::new();
    let from = super::common::upload(&memory, input.iter().flatten().map(|w| w.to_le_bytes()));
    let to = memory.alloc(512);
    let params: Vec<u8> = [from, to].iter().flat_map(|p| p.to_le_bytes()).collect();
    run(&module, "k", &memory, &Launch::new([1, 1, 1], [32, 1, 1], &params)).unwrap_or_else(|f| panic!("{f}"));
    let mut bytes = [0; 512];
    memory.read(to, &mut bytes).unwrap();
    let word = |b: &[u8]| u32::from_le_bytes(b.try_into().unwrap());
    bytes.chunks_exact(16).map(|b| std::array::from_fn(|i| word(&b[4 * i..4 * i + 4]))).collect()
}

/// A of m16n8k16, 16-bit types: which of a0..a7 lies at each row and column, for the lanes of the first row of the manual's
/// table (rows 0 and 8), columns 0 to 15: (lane, index).
const A_ROW_0: [(usize, usize); 16] = [
    (0, 0),
    (0, 1),
    (1, 0),
    (1, 1),
    (2, 0),
    (2, 1),
    (3, 0),
    (3, 1),
    (0, 4),
    (0, 5),
    (1, 4),
    (1, 5),
    (2, 4),
    (2, 5),
    (3, 4),
    (3, 5),
];
const A_ROW_8: [(usize, usize); 16] = [
    (0, 2),
    (0, 3),
    (1, 2),
    (1, 3),
    (2, 2),
    (2, 3),
    (3, 2),
    (3, 3),
    (0, 6),
    (0, 7),
    (1, 6),
    (1, 7),
    (2, 6),
    (2, 7),
    (3, 6),
    (3, 7),
];
/// B of m16n8k16: column 0, rows 0 to 15.
const B_COL_0: [(usize, usize); 16] = [
    (0, 0),
    (0, 1),
    (1, 0),
    (1, 1),
    (2, 0),
    (2, 1),
    (3, 0),
    (3, 1),
    (0, 2),
    (0, 3),
    (1, 2),
    (1, 3),
    (2, 2),
    (2, 3),
    (3, 2),
    (3, 3),
];
/// C: row 0 and row 8, columns 0 to 7.
const C_ROW_0: [(usize, usize); 8] = [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1), (3, 0), (3, 1)];
const C_ROW_8: [(usize, usize); 8] = [(0, 2), (0, 3), (1, 2), (1, 3), (2, 2), (2, 3), (3, 2), (3, 3)];

/// Each further row of A and C, and column of B, belongs to the next four lanes.
fn a_at(row: usize, col: usize) -> (usize, usize) {
    let (lane, i) = if row < 8 { A_ROW_0[col] } else { A_ROW_8[col] };
    (lane + row % 8 * 4, i)
}

fn b_at(k: usize, n: usize) -> (usize, usize) {
    (B_COL_0[k].0 + n * 4, B_COL_0[k].1)
}

fn c_at(row: usize, col: usize) -> (usize, usize) {
    let (lane, i) = if row < 8 { C_ROW_0[col] } else { C_ROW_8[col] };
    (lane + row % 8 * 4, i)
}

fn put16(words: &mut [[u32; 16]; 32], (lane, i): (usize, usize), first: usize, bits: u16) {
    words[lane][first + i / 2] |= u32::from(bits) << (16 * (i % 2));
}

fn a_value(r: usize, c: usize) -> f32 {
    (r as f32 - 7.0) * 0.5 + c as f32
}

fn b_value(k: usize, n: usize) -> f32 {
    (k as f32 - 3.0) - n as f32 * 0.25
}

fn product(k: usize, r: usize, n: usize) -> f32 {
    (0..k).map(|i| a_value(r, i) * b_value(i, n)).sum::<f32>() + (r * 8 + n) as f32
}

#[test]
fn mma_16_bit() {
    for (ty, k) in [("f16", 16), ("bf16", 16), ("f16", 8), ("bf16", 8)] {
        let bits = |x: f32| if ty == "f16" { f16::from_f32(x).to_bits() } else { bf16::from_f32(x).to_bits() };
        let mut words = [[0; 16]; 32];
        for r in 0..16 {
            for c in 0..k {
                put16(&mut words, a_at(r, c), 0, bits(a_value(r, c)));
            }
            for n in 0..8 {
                let (lane, i) = c_at(r, n);
                words[lane][8 + i] = ((r * 8 + n) as f32).to_bits();
            }
        }
        for i in 0..k {
            for n in 0..8 {
                put16(&mut words, b_at(i, n), 4, bits(b_value(i, n)));
            }
        }
        let (a, b) = if k == 16 { ("%r0, %r1, %r2, %r3", "%r4, %r5") } else { ("%r0, %r1", "%r4") };
        let out = run_warp(
            &format!(
                "mma.sync.aligned.m16n8k{k}.row.col.f32.{ty}.{ty}.f32 {{%o0, %o1, %o2, %o3}}, {{{a}}}, {{{b}}}, \
                 {{%r8, %r9, %r10, %r11}};"
            ),
            &words,
        );
        for r in 0..16 {
            for n in 0..8 {
                let (lane, i) = c_at(r, n);
                assert_eq!(f32::from_bits(out[lane][i]), product(k, r, n), "{ty} k{k} at {r}, {n}");
            }
        }
    }
}

#[test]
fn mma_f16_accumulators() {
    let mut words = [[0; 16]; 32];
    for r in 0..16 {
        for c in 0..16 {
            put16(&mut words, a_at(r, c), 0, f16::from_f32(a_value(r, c)).to_bits());
        }
        for n in 0..8 {
            put16(&mut words, c_at(r, n), 8, f16::from_f32((r * 8 + n) as f32).to_bits());
        }
    }
    for i in 0..16 {
        for n in 0..8 {
            put16(&mut words, b_at(i, n), 4, f16::from_f32(b_value(i, n)).to_bits());
        }
    }
    let out = run_warp(
        "mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%o0, %o1}, {%r0, %r1, %r2, %r3}, {%r4, %r5}, {%r8, %r9};",
        &words,
    );
    for r in 0..16 {
        for n in 0..8 {
            let (lane, i) = c_at(r, n);
            let got = f16::from_bits((out[lane][i / 2] >> (16 * (i % 2))) as u16);
            assert_eq!(got, f16::from_f32(product(16, r, n)), "{r}, {n}");
        }
    }
}

#[test]
fn mma_tf32() {
    // m16n8k8: a0 (row g, k t), a1 (g + 8, t), a2 (g, t + 4), a3 (g + 8, t + 4); b0 (k t, column g), b1 (t + 4, g).
    let mut words = [[0; 16]; 32];
    for (lane, w) in words.iter_mut().enumerate() {
        let (g, t) = (lane / 4, lane % 4);
        w[..4].copy_from_slice(&[(g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4)].map(|(r, c)| a_value(r, c).to_bits()));
        w[4..6].copy_from_slice(&[t, t + 4].map(|k| b_value(k, g).to_bits()));
        // The last 13 bits are none of tf32's.
        w[..6].iter_mut().for_each(|word| *word |= 0x1abc);
        w[8..12].copy_from_slice(
            &[(g, 2 * t), (g, 2 * t + 1), (g + 8, 2 * t), (g + 8, 2 * t + 1)]
                .map(|(r, n)| ((r * 8 + n) as f32).to_bits()),
        );
    }
    let out = run_warp(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%o0, %o1, %o2, %o3}, {%r0, %r1, %r2, %r3}, {%r4, %r5}, \
         {%r8, %r9, %r10, %r11};",
        &words,
    );
    assert_eq!(f32::from_bits(out[5][3]), product(8, 9, 3));
    assert_eq!(f32::from_bits(out[30][0]), product(8, 7, 4));
}

/// Each lane stores 16 bytes: row `lane % 8` of matrix `lane / 8`, whose element (row, column) is 64 matrix + 8 row + column.
fn matrices() -> [[u32; 16]; 32] {
    let mut words = [[0; 16]; 32];
    for (lane, w) in words.iter_mut().enumerate() {
        for (i, word) in w.iter_mut().enumerate().take(4) {
            let e = 8 * lane + 2 * i;
            *word = (e | (e + 1) << 16) as u32;
        }
    }
    words
}

#[test]
fn ldmatrix() {
    let load = |form: &str, regs: &str| {
        run_warp(
            &format!(
                "shl.b32 %r15, %t, 4; add.u32 %s, %s, %r15; st.shared.v4.u32 [%s], {{%r0, %r1, %r2, %r3}};
                 bar.warp.sync -1; ldmatrix.sync.aligned.m8n8.{form}.shared.b16 {{{regs}}}, [%s];"
            ),
            &matrices(),
        )
    };
    let pair = |low: u32, high: u32| low | high << 16;
    let plain = load("x4", "%o0, %o1, %o2, %o3");
    // Thread 0 has elements 0 and 1 of row 0, thread 3 elements 6 and 7, thread 4 begins row 1, thread 31 ends row 7.
    assert_eq!(plain[0], [pair(0, 1), pair(64, 65), pair(128, 129), pair(192, 193)]);
    assert_eq!(plain[3][0], pair(6, 7));
    assert_eq!(plain[4][0], pair(8, 9));
    assert_eq!(plain[31], [pair(62, 63), pair(126, 127), pair(190, 191), pair(254, 255)]);
    let trans = load("x4.trans", "%o0, %o1, %o2, %o3");
    // Of the transposed matrix: thread 0 has column 0, rows 0 and 1.
    assert_eq!(trans[0], [pair(0, 8), pair(64, 72), pair(128, 136), pair(192, 200)]);
    assert_eq!(trans[5][0], pair(17, 25));
    assert_eq!(load("x1", "%o0")[9], [pair(18, 19), 0, 0, 0]);
    assert_eq!(load("x2", "%o0, %o1")[9][1], pair(82, 83));
}

#[test]
fn stmatrix() {
    for trans in ["", ".trans"] {
        let out = run_warp(
            &format!(
                "shl.b32 %r15, %t, 4; add.u32 %s, %s, %r15;
                 stmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 [%s], {{%r0, %r1, %r2, %r3}}; bar.warp.sync -1;
                 ldmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 {{%o0, %o1, %o2, %o3}}, [%s];"
            ),
            &matrices(),
        );
        assert!(out.iter().zip(matrices()).all(|(o, w)| o[..] == w[..4]), "{trans}");
    }
}
