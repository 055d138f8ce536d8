//! Single instructions against the semantics of the PTX manual; the lanes of the warp hold the same operands.

use braid_ptx::{Fault, FaultKind, GlobalMemory, Launch, Module, run};

/// A kernel around a body; `%o` (32 bits) and `%q` (64 bits) hold the result. The body has registers of each type.
fn source(body: &str) -> String {
    format!(
        ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 out) {{
        .reg .pred %p<8>; .reg .b16 %h<8>; .reg .b32 %r<16>; .reg .f32 %f<8>; .reg .b64 %d<8>; .reg .f64 %g<4>;
        .reg .b32 %o; .reg .b64 %q; .reg .b64 %base; .reg .b64 %at; .reg .b32 %t;
        .shared .align 16 .b8 sh[1024];
        mov.u32 %o, 0; mov.u64 %q, 0;
        ld.param.u64 %base, [out]; mov.u32 %t, %tid.x; mul.wide.u32 %at, %t, 16; add.s64 %at, %at, %base;
        {body}
        st.global.u32 [%at], %o; st.global.u64 [%at+8], %q; ret; }}"
    )
}

/// The results of all lanes.
fn lanes(body: &str) -> Result<Vec<(u32, u64)>, Fault> {
    let module = Module::parse(&source(body)).unwrap_or_else(|e| panic!("{body}: {e}"));
    let memory = GlobalMemory::new();
    let out = memory.alloc(512);
    memory.fill(out, 512, 0).unwrap();
    run(&module, "k", &memory, &Launch::new([1, 1, 1], [32, 1, 1], &out.to_le_bytes()))?;
    let mut bytes = [0; 512];
    memory.read(out, &mut bytes).unwrap();
    let result =
        |b: &[u8]| (u32::from_le_bytes(b[..4].try_into().unwrap()), u64::from_le_bytes(b[8..].try_into().unwrap()));
    Ok(bytes.chunks_exact(16).map(result).collect())
}

fn one(body: &str) -> (u32, u64) {
    let all = lanes(body).unwrap_or_else(|f| panic!("{body}: {f}"));
    assert!(all.iter().all(|l| *l == all[0]), "{body}: the lanes differ");
    all[0]
}

fn check32(cases: &[(&str, u32)]) {
    for (body, expected) in cases {
        let got = one(body).0;
        assert_eq!(got, *expected, "{body}: {got:#x}, expected {expected:#x}");
    }
}

fn check64(cases: &[(&str, u64)]) {
    for (body, expected) in cases {
        let got = one(body).1;
        assert_eq!(got, *expected, "{body}: {got:#x}, expected {expected:#x}");
    }
}

#[test]
fn integers() {
    check32(&[
        ("add.s32 %o, -1, 3;", 2),
        ("sub.u32 %o, 1, 2;", 0xffff_ffff),
        ("mul.lo.s32 %o, 65537, 65537;", 0x0002_0001),
        ("mul.hi.u32 %o, 0xffffffff, 2;", 1),
        ("mul.hi.s32 %o, -1, 2;", 0xffff_ffff),
        ("mad.hi.u32 %o, 0xffffffff, 0xffffffff, 1;", 0xffff_ffff),
        ("mad.hi.s32 %o, -1, 2, 0x7fffffff;", 0x7fff_fffe),
        ("mul24.lo.s32 %o, 0xffffff, 3;", 0xffff_fffd),
        ("mul24.lo.u32 %o, 0xffffff, 3;", 0x02ff_fffd),
        ("mad.lo.s32 %o, -3, 4, 5;", 0xffff_fff9),
        ("mul.wide.u16 %o, 0xffff, 0xffff;", 0xfffe_0001),
        ("mul.wide.s16 %o, 0xffff, 2;", 0xffff_fffe),
        ("div.s32 %o, -7, 2;", 0xffff_fffd),
        ("rem.u32 %o, 7, 4;", 3),
        ("min.s32 %o, -1, 1;", 0xffff_ffff),
        ("min.u32 %o, -1, 1;", 1),
        ("abs.s32 %o, -5;", 5),
        ("neg.s32 %o, 5;", 0xffff_fffb),
        ("and.b32 %o, 12, 10;", 8),
        ("xor.b32 %o, 12, 10;", 6),
        ("not.b32 %o, 0;", 0xffff_ffff),
        ("cnot.b32 %o, 0;", 1),
        ("cnot.b32 %o, 8;", 0),
        ("shl.b32 %o, 1, 32;", 0),
        ("shr.s32 %o, 0x80000000, 100;", 0xffff_ffff),
        ("shr.u32 %o, 0x80000000, 31;", 1),
        ("shr.u32 %o, 0x80000000, 32;", 0),
        ("shr.u32 %o, 0x80000000, 35;", 0),
        ("shf.l.wrap.b32 %o, 0x80000000, 1, 1;", 3),
        ("bfe.s32 %o, 0xf0, 4, 4;", 0xffff_ffff),
        ("bfi.b32 %o, 0xff, 0, 8, 8;", 0xff00),
        ("brev.b32 %o, 1;", 0x8000_0000),
        ("popc.b32 %o, 0xff00ff;", 16),
        ("clz.b32 %o, 1;", 31),
        ("bfind.u32 %o, 0x100;", 8),
        ("prmt.b32 %o, 0x33221100, 0x77665544, 0x5410;", 0x5544_1100),
        // LUT 0x96 is a ^ b ^ c, 0xe8 the majority, 0xca the choice a ? b : c.
        ("lop3.b32 %o, 0xf0, 0xcc, 0xaa, 0x96;", 0x96),
        ("lop3.b32 %o, 0xf0, 0xcc, 0xaa, 0xe8;", 0xe8),
        ("lop3.b32 %o, 0xf0, 0xcc, 0xaa, 0xca;", 0xca),
        ("dp4a.s32.s32 %o, 0x01ff0203, 0x01010101, 10;", 15),
        ("dp4a.u32.s32 %o, 0x000000ff, 0x000000ff, 0;", (-255i32) as u32),
        ("add.sat.s32 %o, 0x7fffffff, 5;", 0x7fff_ffff),
        ("mov.u16 %h1, 0xffff; add.s16 %h2, %h1, 2; cvt.u32.u16 %o, %h2;", 1),
        // What does not fit a register of 16 bits is not in it.
        ("mov.u16 %h1, 0xffff; add.u16 %h1, %h1, 1; mov.u16 %h2, 0; mov.b32 %o, {%h1, %h2};", 0),
        ("mov.u16 %h1, 0x100; mul.lo.u16 %h1, %h1, %h1; mov.u16 %h2, 0; mov.b32 %o, {%h1, %h2};", 0),
        ("mov.u32 %r1, 0x12345; cvt.u16.u32 %h1, %r1; mov.u16 %h2, 0; mov.b32 %o, {%h1, %h2};", 0x2345),
        ("mov.u32 %r1, 0x1ff; cvt.u32.u8 %o, %r1;", 0xff),
        ("mov.u32 %r1, 0x5ff; cvt.u16.u8 %h1, %r1; cvt.u32.u16 %o, %h1;", 0xff),
        ("mov.u16 %h1, 0x8000; shr.s16 %h2, %h1, 15; cvt.u32.u16 %o, %h2;", 0xffff),
        ("mov.u16 %h1, 0xfffe; cvt.s32.s16 %o, %h1;", 0xffff_fffe),
        ("mov.u32 %r1, 0x180; cvt.s16.s8 %h1, %r1; cvt.s32.s16 %o, %h1;", 0xffff_ff80),
    ]);
    check64(&[
        ("mul.wide.s32 %q, -2, 3;", (-6i64) as u64),
        ("mul.wide.u32 %q, 0xffffffff, 0xffffffff;", 0xffff_fffe_0000_0001),
        ("mad.wide.u32 %q, 0xffffffff, 2, 3;", 0x2_0000_0001),
        ("mul.hi.u64 %q, 0xffffffffffffffff, 2;", 1),
        ("shl.b64 %q, 1, 63;", 1 << 63),
        ("shr.s64 %q, 0x8000000000000000, 63;", u64::MAX),
        ("shl.b64 %q, 1, 64;", 0),
        ("shr.u64 %q, 0x8000000000000000, 64;", 0),
        ("shr.s64 %q, 0x8000000000000000, 64;", u64::MAX),
        ("bfe.u64 %q, 0xabcd00000000, 32, 8;", 0xcd),
        ("bfi.b64 %q, 5, 0, 32, 32;", 5 << 32),
        ("div.u64 %q, 100, 7;", 14),
        ("rem.s64 %q, -100, 7;", (-2i64) as u64),
        ("cvt.s64.s32 %q, -1;", u64::MAX),
        ("cvt.u64.u32 %q, -1;", 0xffff_ffff),
        ("min.s64 %q, -1, 1;", u64::MAX),
    ]);
}

#[test]
fn floats() {
    let f = f32::to_bits;
    check32(&[
        ("mov.f32 %f1, 0f3F800000; add.f32 %f2, %f1, %f1; mov.b32 %o, %f2;", f(2.0)),
        ("mov.f32 %f1, 0f00000001; mul.ftz.f32 %f2, %f1, 0f3F800000; mov.b32 %o, %f2;", 0),
        ("mov.f32 %f1, 0f80000001; mul.ftz.f32 %f2, %f1, 0f3F800000; mov.b32 %o, %f2;", 0x8000_0000),
        ("mov.f32 %f1, 0f00000001; mul.f32 %f2, %f1, 0f3F800000; mov.b32 %o, %f2;", 1),
        // Subnormal results and operands, of products, sums and both.
        ("mul.ftz.f32 %f2, 0f0D800000, 0fB0000000; mov.b32 %o, %f2;", 0x8000_0000),
        ("mul.f32 %f2, 0f0D800000, 0f30000000; mov.b32 %o, %f2;", 0x0004_0000),
        ("sub.ftz.f32 %f2, 0f00800001, 0f00800000; mov.b32 %o, %f2;", 0),
        ("fma.rn.ftz.f32 %f2, 0f00400000, 0f40000000, 0f00000000; mov.b32 %o, %f2;", 0),
        ("fma.rn.f32 %f2, 0f00400000, 0f40000000, 0f00000000; mov.b32 %o, %f2;", 0x0080_0000),
        ("fma.rn.ftz.f32 %f2, 0f0D800000, 0f30000000, 0f00000000; mov.b32 %o, %f2;", 0),
        // (1 + u)(1 - u) 2^-24 + 1 + u, u = 2^-23: just below the middle, which f64 cannot tell from it.
        ("fma.rn.f32 %f2, 0f39800001, 0f397FFFFE, 0f3F800001; mov.b32 %o, %f2;", 0x3f80_0001),
        ("add.sat.f32 %f2, 0f7FC00000, 0f3F800000; mov.b32 %o, %f2;", 0),
        ("mov.f32 %f1, 0f3FA00000; ex2.approx.f32 %f2, %f1; mov.b32 %o, %f2;", 0x4018_37f0),
        ("mov.f32 %f1, 0f40400000; add.sat.f32 %f2, %f1, %f1; mov.b32 %o, %f2;", f(1.0)),
        // 0 * inf: the canonical NaN.
        ("mov.f32 %f1, 0f7F800000; mul.f32 %f2, %f1, 0f00000000; mov.b32 %o, %f2;", 0x7fff_ffff),
        ("mov.f32 %f1, 0f3F800000; add.rp.f32 %f2, %f1, 0f00000001; mov.b32 %o, %f2;", 0x3f80_0001),
        ("mov.f32 %f1, 0f3F800000; fma.rz.f32 %f2, %f1, 0f3F7FFFFF, 0f3F800000; mov.b32 %o, %f2;", 0x3fff_ffff),
        ("min.f32 %f2, 0f7FC00000, 0f3F800000; mov.b32 %o, %f2;", f(1.0)),
        ("min.NaN.f32 %f2, 0f7FC00000, 0f3F800000; mov.b32 %o, %f2;", 0x7fff_ffff),
        ("max.f32 %f2, 0f80000000, 0f00000000; mov.b32 %o, %f2;", 0),
        ("ex2.approx.ftz.f32 %f2, 0f40400000; mov.b32 %o, %f2;", f(8.0)),
        // 2^-130 is subnormal.
        ("ex2.approx.f32 %f2, 0fC3020000; mov.b32 %o, %f2;", 1 << 19),
        ("ex2.approx.ftz.f32 %f2, 0fC3020000; mov.b32 %o, %f2;", 0),
        ("lg2.approx.f32 %f2, 0f41000000; mov.b32 %o, %f2;", f(3.0)),
        ("rcp.approx.ftz.f32 %f2, 0f40800000; mov.b32 %o, %f2;", f(0.25)),
        ("rsqrt.approx.f32 %f2, 0f41800000; mov.b32 %o, %f2;", f(0.25)),
        ("sqrt.rn.f32 %f2, 0f41800000; mov.b32 %o, %f2;", f(4.0)),
        ("sin.approx.f32 %f2, 0f00000000; mov.b32 %o, %f2;", 0),
        ("tanh.approx.f32 %f2, 0f42C80000; mov.b32 %o, %f2;", f(1.0)),
        ("div.rn.f32 %f2, 0f3F800000, 0f40400000; mov.b32 %o, %f2;", f(1.0 / 3.0)),
        ("neg.f32 %f2, 0f00000000; mov.b32 %o, %f2;", 0x8000_0000),
        (
            "mov.f64 %g1, 0d3FF0000000000000; div.rn.f64 %g2, %g1, 0d4008000000000000; cvt.rn.f32.f64 %f1, %g2; mov.b32 %o, %f1;",
            f(1.0 / 3.0),
        ),
    ]);
}

#[test]
fn halves() {
    check32(&[
        // Pairs: the first source is the upper half.
        ("cvt.rn.f16x2.f32 %o, 0f3F800000, 0f40000000;", 0x3c00_4000),
        ("cvt.rn.bf16x2.f32 %o, 0f3F800000, 0f40000000;", 0x3f80_4000),
        ("cvt.rn.relu.f16x2.f32 %o, 0fBF800000, 0f40000000;", 0x0000_4000),
        ("cvt.rn.f16.f32 %h1, 0f477FF000; cvt.u32.u16 %o, %h1;", 0x7c00),
        ("cvt.rz.f16.f32 %h1, 0f477FF000; cvt.u32.u16 %o, %h1;", 0x7bff),
        ("cvt.rm.f16.f32 %h1, 0f47C35000; cvt.u32.u16 %o, %h1;", 0x7bff),
        ("cvt.rp.f16.f32 %h1, 0f47C35000; cvt.u32.u16 %o, %h1;", 0x7c00),
        ("cvt.rm.f16.f32 %h1, 0fC7C35000; cvt.u32.u16 %o, %h1;", 0xfc00),
        ("cvt.rp.f16.f32 %h1, 0fC7C35000; cvt.u32.u16 %o, %h1;", 0xfbff),
        // Above, in and below the middle between two.
        ("cvt.rn.bf16.f32 %h1, 0f3F808001; cvt.u32.u16 %o, %h1;", 0x3f81),
        ("cvt.rn.bf16.f32 %h1, 0f3F808000; cvt.u32.u16 %o, %h1;", 0x3f80),
        ("cvt.rn.bf16.f32 %h1, 0f3F818000; cvt.u32.u16 %o, %h1;", 0x3f82),
        ("cvt.rn.bf16x2.f32 %o, 0f3F807FFF, 0f3F818000;", 0x3f80_3f82),
        ("cvt.rn.f16x2.f32 %o, 0f3F801000, 0f3F803000;", 0x3c00_3c02),
        ("cvt.rz.f16x2.f32 %o, 0f3F801FFF, 0f3F803000;", 0x3c00_3c01),
        ("mov.b16 %h1, 0x4200; mov.b16 %h2, 0x3c00; sub.f16 %h1, %h1, %h2; cvt.u32.u16 %o, %h1;", 0x4000),
        ("mov.b16 %h1, 0x0001; cvt.f32.f16 %f1, %h1; mov.b32 %o, %f1;", 0x3380_0000),
        ("mov.b16 %h1, 0x3f80; cvt.f32.bf16 %f1, %h1; mov.b32 %o, %f1;", 0x3f80_0000),
        ("mov.b32 %r1, 0x3c004000; mov.b32 %r2, 0x3c003c00; add.f16x2 %o, %r1, %r2;", 0x4000_4200),
        ("mov.b32 %r1, 0x3c004000; fma.rn.f16x2 %o, %r1, %r1, %r1;", 0x4000_4600),
        ("mov.b32 %r1, 0x3f804000; mov.b32 %r2, 0x3f80; fma.rn.bf16x2 %o, %r1, %r1, %r2;", 0x3f80_40a0),
        ("mov.b32 %r1, 0x3c00c000; max.f16x2 %o, %r1, 0;", 0x3c00_0000),
        ("mov.b32 %r1, 0x3c00c000; neg.f16x2 %o, %r1;", 0xbc00_4000),
        ("mov.b16 %h1, 0x3c00; mul.f16 %h2, %h1, %h1; cvt.u32.u16 %o, %h2;", 0x3c00),
        (
            "mov.b32 %r1, 0x3c004000; mov.b32 %r2, 0x40003c00; setp.gt.f16x2 %p1|%p2, %r1, %r2; selp.u32 %r3, 1, 0, %p1; selp.u32 %r4, 2, 0, %p2; or.b32 %o, %r3, %r4;",
            1,
        ),
        ("cvt.rna.tf32.f32 %o, 0f3F801000;", 0x3f80_2000),
        ("ex2.approx.f16x2 %o, 0x3c004000;", 0x4000_4400),
    ]);
}

#[test]
fn conversions() {
    check32(&[
        ("cvt.rzi.s32.f32 %o, 0fC0333333;", 0xffff_fffe),
        ("cvt.rni.s32.f32 %o, 0f40200000;", 2),
        ("cvt.rpi.s32.f32 %o, 0f40000001;", 3),
        ("cvt.rmi.f32.f32 %f1, 0fC0200000; mov.b32 %o, %f1;", (-3f32).to_bits()),
        ("cvt.sat.f32.f32 %f1, 0fC0200000; mov.b32 %o, %f1;", 0),
        ("cvt.sat.f32.f32 %f1, 0f40200000; mov.b32 %o, %f1;", 1f32.to_bits()),
        ("cvt.sat.f32.f32 %f1, 0f7FC00000; mov.b32 %o, %f1;", 0),
        ("cvt.rzi.s32.f32 %o, 0f7FC00000;", 0),
        // 2^62 + 2^38 + 1: just above the middle.
        ("cvt.rn.f32.u64 %f1, 0x4000004000000001; mov.b32 %o, %f1;", 0x5e80_0001),
        ("cvt.rn.f32.u64 %f1, 0x4000004000000000; mov.b32 %o, %f1;", 0x5e80_0000),
        ("cvt.rn.f32.s64 %f1, 0xBFFFFFBFFFFFFFFF; mov.b32 %o, %f1;", 0xde80_0001),
        ("cvt.rni.sat.u8.f32 %r1, 0f43960000; mov.b32 %o, %r1;", 255),
        ("cvt.sat.s8.s32 %r1, 300; mov.b32 %o, %r1;", 127),
        ("cvt.rn.f32.u32 %f1, 0xffffffff; mov.b32 %o, %f1;", 4_294_967_296f32.to_bits()),
        ("cvt.rn.f32.s64 %f1, -3; mov.b32 %o, %f1;", (-3f32).to_bits()),
        ("cvt.u32.u64 %o, 0x1234567800000009;", 9),
        ("mov.b32 %o, {5, 7};", 0x0007_0005),
        ("mov.b32 {%h1, %h2}, 0x00070005; cvt.u32.u16 %o, %h2;", 7),
        ("mov.b64 {%r1, %o}, 0x0000000700000005;", 7),
        ("mov.b64 {_, %o}, 0x0000000700000005;", 7),
    ]);
    check64(&[
        ("mov.b64 %q, {5, 7};", 7 << 32 | 5),
        ("mov.b64 %q, {1, 2, 3, 4};", 0x0004_0003_0002_0001),
        ("cvt.rzi.u64.f32 %q, 0f5F000000;", 1 << 63),
        ("cvt.rzi.u64.f32 %q, 0f7FC00000;", 1 << 63),
    ]);
}

#[test]
fn predicates() {
    // NaN on either side: only what is unordered holds.
    for name in ["eq", "ne", "lt", "le", "gt", "ge", "num", "equ", "neu", "ltu", "leu", "gtu", "geu", "nan"] {
        let unordered = u32::from(name.len() == 3 && name != "num");
        for operands in ["0f7FC00000, 0f3F800000", "0f3F800000, 0f7FC00000", "0f7FC00000, 0f7FC00000"] {
            let body = format!("setp.{name}.f32 %p1, {operands}; selp.b32 %o, 1, 0, %p1;");
            assert_eq!(one(&body).0, unordered, "{body}");
        }
    }
    check32(&[
        ("setp.lt.s32 %p1, -1, 0; selp.b32 %o, 1, 2, %p1;", 1),
        ("setp.lt.u32 %p1, -1, 0; selp.b32 %o, 1, 2, %p1;", 2),
        ("setp.eq.s32 %p1|%p2, 1, 1; selp.b32 %o, 1, 2, %p2;", 2),
        ("setp.eq.s32 %p3, 0, 1; setp.lt.and.s32 %p1|%p2, 0, 1, !%p3; selp.b32 %o, 1, 2, %p1;", 1),
        // With a boolean operation the second result is (not the comparison) and c.
        ("setp.eq.s32 %p3, 1, 1; setp.lt.and.s32 %p1|%p2, 1, 0, %p3; selp.b32 %o, 1, 2, %p2;", 1),
        ("setp.ne.f32 %p1, 0f7FC00000, 0f3F800000; selp.b32 %o, 1, 2, %p1;", 2),
        ("setp.neu.f32 %p1, 0f7FC00000, 0f3F800000; selp.b32 %o, 1, 2, %p1;", 1),
        ("setp.gtu.f32 %p1, 0f7FC00000, 0f3F800000; selp.b32 %o, 1, 2, %p1;", 1),
        ("setp.num.f32 %p1, 0f7FC00000, 0f3F800000; selp.b32 %o, 1, 2, %p1;", 2),
        // The third operand is part of both results.
        ("setp.ne.s32 %p3, 1, 1; setp.eq.and.s32 %p1|%p2, 1, 1, %p3; selp.b32 %o, 1, 2, %p1;", 2),
        ("setp.ne.s32 %p3, 1, 1; setp.lt.and.s32 %p1|%p2, 1, 0, %p3; selp.b32 %o, 1, 2, %p2;", 2),
        ("setp.eq.s32 %p3, 1, 1; setp.lt.xor.s32 %p1, 0, 1, %p3; selp.b32 %o, 1, 2, %p1;", 2),
        ("setp.eq.s32 %p3, 1, 1; setp.lt.or.s32 %p1, 1, 0, %p3; selp.b32 %o, 1, 2, %p1;", 1),
        ("setp.eq.s32 %p3, 1, 1; setp.eq.s32 %p4, 2, 2; xor.pred %p1, %p3, %p4; selp.b32 %o, 1, 2, %p1;", 2),
        // Equal numbers, of each width.
        ("setp.le.s32 %p1, 5, 5; selp.b32 %o, 1, 2, %p1;", 1),
        ("setp.ge.s32 %p1, 5, 5; selp.b32 %o, 1, 2, %p1;", 1),
        ("setp.ls.u32 %p1, 5, 5; selp.b32 %o, 1, 2, %p1;", 1),
        ("setp.hs.u32 %p1, 5, 5; selp.b32 %o, 1, 2, %p1;", 1),
        ("setp.le.u64 %p1, 5, 5; selp.b32 %o, 1, 2, %p1;", 1),
        ("mov.b16 %h1, 5; setp.ge.u16 %p1, %h1, %h1; selp.b32 %o, 1, 2, %p1;", 1),
        ("mov.b16 %h1, -1; mov.b16 %h2, 0; setp.lt.s16 %p1, %h1, %h2; selp.b32 %o, 1, 2, %p1;", 1),
        ("mov.b16 %h1, -1; mov.b16 %h2, 0; setp.lt.u16 %p1, %h1, %h2; selp.b32 %o, 1, 2, %p1;", 2),
        ("setp.lt.s64 %p1, -1, 0; selp.b32 %o, 1, 2, %p1;", 1),
        ("setp.lt.u64 %p1, -1, 0; selp.b32 %o, 1, 2, %p1;", 2),
        // A subnormal number is zero where it is flushed.
        ("setp.eq.ftz.f32 %p1, 0f00000001, 0f00000000; selp.b32 %o, 1, 2, %p1;", 1),
        ("setp.eq.f32 %p1, 0f00000001, 0f00000000; selp.b32 %o, 1, 2, %p1;", 2),
        ("slct.s32.s32 %o, 1, 2, 0;", 1),
        ("slct.s32.s32 %o, 1, 2, -1;", 2),
        (
            "setp.eq.s32 %p1, 1, 1; not.pred %p2, %p1; or.pred %p3, %p1, %p2; and.pred %p4, %p3, !%p2; selp.b32 %o, 1, 2, %p4;",
            1,
        ),
        ("set.lt.u32.s32 %o, 1, 2;", 0xffff_ffff),
        ("set.gt.f32.s32 %f1, 1, 2; mov.b32 %o, %f1;", 0),
        ("slct.b32.s32 %o, 1, 2, -1;", 2),
        ("setp.eq.s32 %p1, 1, 2; @%p1 mov.u32 %o, 5; @!%p1 mov.u32 %o, 6;", 6),
        ("setp.eq.s32 %p1, 1, 1; @%p1 bra over; mov.u32 %o, 5; over: add.u32 %o, %o, 1;", 1),
    ]);
}

#[test]
fn divergence() {
    let all = lanes(
        "and.b32 %r1, %t, 3; mov.u32 %o, 100;
         loop: setp.eq.s32 %p1, %r1, 0; @%p1 bra done; add.s32 %o, %o, 1; sub.s32 %r1, %r1, 1; bra loop;
         done: activemask.b32 %r2; cvt.u64.u32 %q, %r2;",
    )
    .unwrap();
    for (lane, (o, q)) in all.iter().enumerate() {
        assert_eq!((*o, *q), (100 + lane as u32 % 4, 0xffff_ffff));
    }
    let all = lanes(
        "and.b32 %r1, %t, 3; ts: .branchtargets l0, l1, l2, l3; brx.idx %r1, ts;
         l0: mov.u32 %o, 10; bra end; l1: mov.u32 %o, 11; bra end; l2: mov.u32 %o, 12; bra end; l3: mov.u32 %o, 13; end:",
    )
    .unwrap();
    assert!(all.iter().enumerate().all(|(lane, l)| l.0 == 10 + lane as u32 % 4));
}

#[test]
fn collectives() {
    let all = lanes("shfl.sync.bfly.b32 %o|%p1, %t, 3, 31, -1; selp.u64 %q, 1, 0, %p1;").unwrap();
    assert!(all.iter().enumerate().all(|(lane, l)| *l == (lane as u32 ^ 3, 1)));
    let all = lanes("shfl.sync.up.b32 %o|%p1, %t, 1, 0, -1; selp.u64 %q, 1, 0, %p1;").unwrap();
    assert!(all[0] == (0, 0) && all[9] == (8, 1));
    let all = lanes(
        "setp.lt.u32 %p1, %t, 5; vote.sync.ballot.b32 %o, %p1, -1; vote.sync.any.pred %p2, %p1, -1; selp.u64 %q, 1, 0, %p2;",
    );
    assert_eq!(all.unwrap()[31], (0x1f, 1));
    assert_eq!(lanes("redux.sync.add.s32 %o, %t, -1;").unwrap()[3].0, 496);
    assert_eq!(lanes("and.b32 %r1, %t, 7; match.any.sync.b32 %o, %r1, -1;").unwrap()[9].0, 0x0202_0202);
    // Half a warp each, with its own mask.
    let all = lanes("setp.lt.u32 %p1, %t, 16; selp.b32 %r1, 0xffff, 0xffff0000, %p1; redux.sync.max.u32 %o, %t, %r1;")
        .unwrap();
    assert_eq!((all[0].0, all[16].0), (15, 31));
    // A branch around, and all meet at one shuffle.
    let all = lanes(
        "setp.lt.u32 %p1, %t, 16; @%p1 bra skip; add.u32 %o, %t, 100; skip: shfl.sync.idx.b32 %o, %o, 20, 31, -1;",
    );
    assert!(all.unwrap().iter().all(|l| l.0 == 120));
}

#[test]
fn special_registers() {
    let all = lanes("mov.u32 %r1, %laneid; mov.u32 %r2, %lanemask_lt; add.u32 %o, %r1, %r2;").unwrap();
    assert!(all.iter().enumerate().all(|(l, x)| x.0 == l as u32 + (1 << l) - 1));
    assert_eq!(one("mov.u32 %r1, %ntid.x; mov.u32 %r2, %nctaid.y; mad.lo.u32 %o, %r1, 10, %r2;").0, 321);
}

#[test]
fn memory_spaces() {
    check32(&[
        ("st.shared.v2.u32 [sh+16], {3, 4}; bar.warp.sync -1; ld.shared.u32 %o, [sh+20]; bar.warp.sync -1;", 4),
        (
            "mov.u64 %d1, sh; cvta.shared.u64 %d2, %d1; st.u16 [%d2], 0xfffe; bar.warp.sync -1; ld.s16 %o, [%d2];",
            0xffff_fffe,
        ),
        (
            "mov.u32 %r1, sh; mov.u32 %r2, 513; st.shared.u32 [%r1+4], %r2; bar.warp.sync -1; ld.shared.u8 %o, [%r1+5];",
            2,
        ),
        (
            "{ .local .align 8 .b8 mine[16]; st.local.u32 [mine+8], %t; ld.local.u32 %r1, [mine+8]; sub.u32 %o, %r1, %t; }",
            0,
        ),
        (
            "{ .local .align 8 .b8 mine[16]; mov.u64 %d1, mine; cvta.local.u64 %d2, %d1; st.b32 [%d2], 7; ld.b32 %o, [%d2]; }",
            7,
        ),
        ("ld.param.u32 %r1, [out+4]; shr.u64 %d1, %base, 32; cvt.u32.u64 %r2, %d1; sub.u32 %o, %r1, %r2;", 0),
    ]);
    let all = lanes(
        "st.shared.u32 [sh], 0; bar.warp.sync -1; atom.shared.add.u32 %r1, [sh], 2; bar.warp.sync -1; ld.shared.u32 %o, [sh];",
    );
    assert_eq!(all.unwrap()[7].0, 64);
    let all = lanes("atom.global.max.u32 %o, [%base+4], %t; atom.global.cas.b64 %q, [%at+8], 0, 9; ").unwrap();
    assert!(all.iter().enumerate().all(|(l, x)| x.0 == (l as u32).saturating_sub(1)));
    // Each lane's own word: what it was, and what it is then.
    let atomic = |first: u64, operation: &str, wide: bool| {
        let (ty, width) = if wide { ("b64", "%d") } else { ("b32", "%r") };
        one(&format!(
            "mov.{ty} {width}1, {first}; st.global.{ty} [%at+8], {width}1; atom.global.{operation};
             ld.global.{ty} {width}4, [%at+8]; {}",
            if wide { "mov.b64 %q, %d4;" } else { "mov.b32 %o, %r4; cvt.u64.u32 %q, %r2;" }
        ))
    };
    for (first, operation, old, new) in [
        (5, "inc.u32 %r2, [%at+8], 5", 5, 0),
        (4, "inc.u32 %r2, [%at+8], 5", 4, 5),
        (0, "dec.u32 %r2, [%at+8], 5", 0, 5),
        (9, "dec.u32 %r2, [%at+8], 5", 9, 5),
        (5, "dec.u32 %r2, [%at+8], 5", 5, 4),
        (7, "exch.b32 %r2, [%at+8], 5", 7, 5),
        (7, "cas.b32 %r2, [%at+8], 7, 5", 7, 5),
        (7, "cas.b32 %r2, [%at+8], 6, 5", 7, 7),
        (0xffff_fffb, "min.s32 %r2, [%at+8], 3", 0xffff_fffb, 0xffff_fffb),
        (0xffff_fffb, "max.s32 %r2, [%at+8], 3", 0xffff_fffb, 3),
        (0xffff_fffb, "min.u32 %r2, [%at+8], 3", 0xffff_fffb, 3),
        (3, "max.u32 %r2, [%at+8], -5", 3, 0xffff_fffb),
        (12, "and.b32 %r2, [%at+8], 10", 12, 8),
        (12, "xor.b32 %r2, [%at+8], 10", 12, 6),
        (0x4000_3c00, "add.noftz.f16x2 %r2, [%at+8], 0x3c003c00", 0x4000_3c00, 0x4200_4000),
        (0x4000_3f80, "add.noftz.bf16x2 %r2, [%at+8], 0x3f803f80", 0x4000_3f80, 0x4040_4000),
        (0x3f80_0000, "add.f32 %r2, [%at+8], 0f33800001", 0x3f80_0000, 0x3f80_0001),
    ] {
        assert_eq!(atomic(first, operation, false), (new, old), "{operation} of {first:#x}");
    }
    let high = 1 << 40;
    assert_eq!(atomic(high, "cas.b64 %d2, [%at+8], 0, 9", true).1, high);
    assert_eq!(atomic(high, "cas.b64 %d2, [%at+8], 1099511627776, 9", true).1, 9);
    assert_eq!(atomic(high, "min.s64 %d2, [%at+8], -1", true).1, u64::MAX);
    assert_eq!(atomic(1, "add.u64 %d2, [%at+8], -1", true).1, 0);
    let fault = lanes("{ .local .align 4 .b8 mine[4]; ld.local.u32 %o, [mine]; }").unwrap_err();
    assert!(matches!(fault.kind, FaultKind::Uninitialised { .. }), "{fault}");
}

#[test]
fn async_copies() {
    // 16 bytes of zeros lie at %at; what is beyond the source size, or ignored, is zero too.
    let with = |form: &str, size: u32| {
        format!(
            "mul.lo.u32 %r1, %t, 16; mov.u32 %r2, sh; add.u32 %r2, %r2, %r1; st.global.v4.u32 [%at], {{1, 2, 3, 4}};
             setp.eq.s32 %p1, 0, 0; setp.eq.s32 %p2, 0, 1; mov.u32 %r5, 8; mov.u32 %r6, 0;
             st.shared.v4.u32 [%r2], {{9, 9, 9, 9}};
             cp.async.{form}; cp.async.commit_group; cp.async.wait_group 0; ld.shared.u32 %o, [%r2+{}]; ld.shared.u32 %r7, [%r2];
             cvt.u64.u32 %q, %r7;",
            size - 4
        )
    };
    assert_eq!(one(&with("cg.shared.global [%r2], [%at], 16", 16)), (4, 1));
    assert_eq!(one(&with("ca.shared.global.L2::128B [%r2], [%at], 8", 8)), (2, 1));
    assert_eq!(one(&with("ca.shared.global [%r2], [%at], 4", 16)), (9, 1));
    assert_eq!(one(&with("cg.shared.global [%r2], [%at], 16, %r5", 16)), (0, 1));
    assert_eq!(one(&with("cg.shared.global [%r2], [%at], 16, %r6", 16)), (0, 0));
    assert_eq!(one(&with("cg.shared.global [%r2], [%at], 16, %p1", 16)), (0, 0));
    assert_eq!(one(&with("cg.shared.global [%r2], [%at], 16, %p2", 16)), (4, 1));
    // With a size of zero the source is not looked at.
    assert_eq!(one(&with("cg.shared.global [%r2], [7], 16, 0", 16)), (0, 0));
    // A group that is not committed is not waited for.
    let fault = lanes(
        "mov.u32 %r2, sh; mad.lo.u32 %r2, %t, 16, %r2; cp.async.cg.shared.global [%r2], [%at], 16;
         cp.async.wait_group 0; ld.shared.u32 %o, [%r2];",
    )
    .unwrap_err();
    assert!(matches!(fault.kind, FaultKind::Race { .. }), "{fault}");
    one("mov.u32 %r2, sh; mad.lo.u32 %r2, %t, 16, %r2; cp.async.cg.shared.global [%r2], [%at], 16;
         cp.async.wait_all; ld.shared.u32 %o, [%r2];");
    let fault = lanes("mov.u32 %r2, sh; add.u32 %r2, %r2, 8; cp.async.cg.shared.global [%r2], [%at], 16;").unwrap_err();
    assert!(matches!(fault.kind, FaultKind::Misaligned { align: 16, .. }), "{fault}");
}

#[test]
fn unknown_instructions() {
    let fault = lanes("mov.u32 %o, 1;\nfrobnicate.b32 %o, %o;").unwrap_err();
    assert!(matches!(&fault.kind, FaultKind::Unknown { what } if what.contains("frobnicate.b32")), "{fault}");
    let fault = lanes("add.wobbly.s32 %o, %o, 1;").unwrap_err();
    assert!(fault.to_string().contains("PTX line") && fault.to_string().contains("`add` with `.wobbly`"), "{fault}");
    assert!(Module::parse(&source("bra nowhere;")).is_err());
    assert!(Module::parse("hello").is_err());
}
