//! The hardware's arithmetic beside the exact one: what differs, by how much, and that nothing else does.

use braid_ptx::{Arithmetic, GlobalMemory, Launch, Module, run};

/// Runs a body on a warp whose lane loads `%x` from its word of the input and stores `%y`.
fn lanes(arithmetic: Arithmetic, body: &str, input: &[f32; 32]) -> [f32; 32] {
    let text = format!(
        ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 data) {{
        .reg .f32 %x; .reg .f32 %y; .reg .f32 %f<4>; .reg .b32 %t; .reg .b32 %r<8>; .reg .b64 %d<3>;
        ld.param.u64 %d0, [data]; mov.u32 %t, %tid.x; mul.wide.u32 %d1, %t, 4; add.s64 %d0, %d0, %d1;
        ld.global.f32 %x, [%d0]; {body} st.global.f32 [%d0], %y; ret; }}"
    );
    let module = Module::parse(&text).unwrap_or_else(|e| panic!("{body}: {e}"));
    let memory = GlobalMemory::new();
    let data = memory.alloc(128);
    let bytes: Vec<u8> = input.iter().flat_map(|x| x.to_le_bytes()).collect();
    memory.write(data, &bytes).unwrap();
    let params = data.to_le_bytes();
    let mut launch = Launch::new([1, 1, 1], [32, 1, 1], &params);
    launch.arithmetic = arithmetic;
    run(&module, "k", &memory, &launch).unwrap_or_else(|f| panic!("{f}"));
    let mut out = [0; 128];
    memory.read(data, &mut out).unwrap();
    std::array::from_fn(|i| f32::from_le_bytes(out[4 * i..4 * i + 4].try_into().unwrap()))
}

/// Units in the last place of f32 between a result and the value.
fn units(got: f32, exact: f64) -> f64 {
    let unit = f64::from(f32::from_bits(got.to_bits() + 1)) - f64::from(got);
    (f64::from(got) - exact).abs() / unit
}

#[test]
fn approximations() {
    let inputs: Vec<[f32; 32]> =
        (0..64).map(|n| std::array::from_fn(|i| 0.01 + (32 * n + i) as f32 * 0.007_3)).collect();
    type Function = fn(f64) -> f64;
    let cases: [(&str, f64, Function); 3] = [
        ("ex2.approx.ftz.f32 %y, %x;", 2.0, f64::exp2),
        ("ex2.approx.f32 %y, %x;", 2.0, f64::exp2),
        ("rcp.approx.ftz.f32 %y, %x;", 1.0, f64::recip),
    ];
    for (body, allowed, f) in cases {
        let mut worst = 0f64;
        for x in &inputs {
            let y = lanes(Arithmetic::Hardware, body, x);
            worst = y.iter().zip(x).map(|(y, x)| units(*y, f(f64::from(*x)))).fold(worst, f64::max);
            // The same operands give the same results, wherever they stand.
            let mut turned = *x;
            turned.rotate_left(5);
            let mut again = lanes(Arithmetic::Hardware, body, &turned);
            again.rotate_right(5);
            assert_eq!(y, again, "{body}");
            assert!(lanes(Arithmetic::Exact, body, x).iter().zip(x).all(|(y, x)| units(*y, f(f64::from(*x))) < 0.51));
        }
        // Up to what is allowed, and half a unit of rounding.
        assert!((allowed - 0.2..allowed + 0.51).contains(&worst), "{body}: {worst}");
    }
}

#[test]
fn results_that_the_manual_fixes() {
    let mut x = [1.0f32; 32];
    x[..4].copy_from_slice(&[0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY]);
    let y = lanes(Arithmetic::Hardware, "ex2.approx.ftz.f32 %y, %x;", &x);
    assert_eq!(y[..4], [1.0, 1.0, f32::INFINITY, 0.0]);
    let y = lanes(Arithmetic::Hardware, "rcp.approx.ftz.f32 %y, %x;", &x);
    assert_eq!(y[..4], [f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0]);
    x[0] = f32::NAN;
    assert!(lanes(Arithmetic::Hardware, "ex2.approx.ftz.f32 %y, %x;", &x)[0].is_nan());
}

#[test]
fn rounded_operations_stay() {
    let x = std::array::from_fn(|i| 0.3 + i as f32 * 0.171);
    for body in [
        "rcp.rn.f32 %y, %x;",
        "sqrt.rn.f32 %y, %x;",
        "div.rn.f32 %y, 0f3F800000, %x;",
        "fma.rn.f32 %y, %x, %x, 0f3DCCCCCD;",
        "add.f32 %y, %x, 0f3DCCCCCD;",
    ] {
        assert_eq!(lanes(Arithmetic::Hardware, body, &x), lanes(Arithmetic::Exact, body, &x), "{body}");
    }
}

#[test]
fn sums_of_tensor_cores() {
    // A is x at (0, 0) and 2^-12 elsewhere in row 0, B 2^-12 everywhere but for k = 0, where it is 1; C is 0.
    let body = |kind: &str| {
        format!(
            "mov.b32 %r0, 0; mov.b32 %r1, 0; mov.b32 %r2, 0; mov.b32 %r3, 0;
             setp.eq.u32 %first, %t, 0; setp.lt.u32 %row, %t, 4;
             @%row mov.b32 %r0, {small}; @%row mov.b32 %r2, {small}; @%first mov.b32 %r0, {mixed};
             mov.b32 %r4, {small}; mov.b32 %r5, {small}; and.b32 %r6, %t, 3; setp.eq.u32 %top, %r6, 0;
             @%top mov.b32 %r4, {mixed};
             mma.sync.aligned.m16n8k16.row.col.f32.{kind}.{kind}.f32 {{%y, %f1, %f2, %f3}}, {{%r0, %r1, %r2, %r3}},
             {{%r4, %r5}}, {{0f00000000, 0f00000000, 0f00000000, 0f00000000}};",
            small = if kind == "f16" { "0x0c000c00" } else { "0x39803980" },
            mixed = if kind == "f16" { "0x0c003c00" } else { "0x39803f80" },
        )
    };
    for kind in ["f16", "bf16"] {
        let body = format!(".reg .pred %first; .reg .pred %row; .reg .pred %top; {}", body(kind));
        // 1 + 15 products of 2^-24: in f32 each is half a unit's, and a tie that goes to even; a tensor core adds 7 of them to
        // 1 and cuts to 3 units, then the next 8 to 7.
        let y = lanes(Arithmetic::Hardware, &body, &[0.0; 32])[0];
        assert_eq!(y, 1.0 + 7.0 * f32::EPSILON, "{kind}");
        assert_eq!(lanes(Arithmetic::Exact, &body, &[0.0; 32])[0], 1.0, "{kind}");
        // One of them beside the 1, one among the next 8: each is cut off by itself.
        let two =
            body.replace("@%row mov.b32", "@%never mov.b32").replace("@%never mov.b32 %r2", "@%first mov.b32 %r2");
        let low = if kind == "f16" { "%r2, 0x00000c00" } else { "%r2, 0x00003980" };
        let two = two.replace(if kind == "f16" { "%r2, 0x0c000c00" } else { "%r2, 0x39803980" }, low);
        let two = format!(".reg .pred %never; setp.ne.u32 %never, 0, 0; {two}");
        assert_eq!(lanes(Arithmetic::Hardware, &two, &[0.0; 32])[0], 1.0, "{kind}");
    }
}
