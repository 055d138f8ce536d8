//! Ordinary C compiled by NVRTC: calls, tables, switches, local memory, the math library.

use super::common::{download, module, upload};
use braid_ptx::{GlobalMemory, Launch, Module, run};

const N: usize = 77;

fn apply(module: &Module, which: u32, input: impl Fn(usize) -> f32) -> (Vec<f32>, Vec<f32>) {
    let memory = GlobalMemory::new();
    let x: Vec<f32> = (0..N).map(input).collect();
    let pin = upload(&memory, x.iter().map(|v| v.to_le_bytes()));
    let pout = memory.alloc((N + 1) as u64 * 4);
    memory.write(pout + N as u64 * 4, &[0; 4]).unwrap();
    let factor = memory.symbol(module, "factor").unwrap();
    memory.write(factor + 4, &3f32.to_le_bytes()).unwrap();
    let mut params: Vec<u8> = [pin, pout].iter().flat_map(|p| p.to_le_bytes()).collect();
    params.extend([N as u32, which].iter().flat_map(|v| v.to_le_bytes()));
    run(module, "functions", &memory, &Launch::new([3, 1, 1], [32, 1, 1], &params))
        .unwrap_or_else(|f| panic!("{which}: {f}"));
    (x, download(&memory, pout, N + 1))
}

#[test]
fn host_parity() {
    let module = module("functions");
    type Input = fn(usize) -> f32;
    type Host = fn(f64, usize) -> f64;
    let cases: [(u32, Input, Host); 10] = [
        (
            0,
            |i| i as f32 * 0.5,
            |x, i| {
                let helper = |b: usize| x * b as f64 + [1.0, 2.0, 3.0, 4.0][b % 4];
                if i == 5 { -1.0 } else { helper(i) + helper(i + 1) }
            },
        ),
        // Beyond 105615 the reduction uses local memory and a table of 2/pi.
        (1, |i| (i as f32 - 20.0) * if i % 3 == 0 { 1e7 } else { 0.3 }, |x, _| x.sin() * 3.0),
        (2, |i| (i as f32 - 40.0) * 0.7, |x, _| x.exp()),
        (3, |i| (i as f32 - 40.0) * 0.1, |x, _| x.tanh()),
        (4, |i| i as f32 + 0.5, |x, _| 1.0 / x.sqrt()),
        (5, |i| i as f32 - 9.3, |x, _| x / f64::from(3.1f32)),
        (6, |i| (i as f32 - 40.0) * 0.1, |x, _| erf(x)),
        (7, |i| i as f32 * 1.7, |x, _| ((f64::from(x as f32 * 1e6f32) as u64) / 7 % 1000) as f64),
        (8, |i| i as f32 + 0.25, |x, _| x.ln() + x.powf(1.5)),
        (
            9,
            |i| i as f32,
            |x, i| {
                let mut ring = [0.0; 8];
                (0..8).for_each(|k| ring[(k * 3 + i) % 8] = x + k as f64);
                ring[i % 8]
            },
        ),
    ];
    for (which, input, host) in cases {
        let (x, y) = apply(&module, which, input);
        for i in 0..N {
            let exact = host(f64::from(x[i]), i);
            let error = (f64::from(y[i]) - exact).abs();
            assert!(error <= 3e-7 * exact.abs().max(1e-3), "case {which}, x = {}: {} but {exact}", x[i], y[i]);
        }
    }
}

#[test]
fn atomic_sum() {
    let (x, y) = apply(&module("functions"), 10, |i| i as f32);
    assert_eq!(y[N], x.iter().sum::<f32>());
}

/// The error function by its series, for small arguments.
fn erf(x: f64) -> f64 {
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}
