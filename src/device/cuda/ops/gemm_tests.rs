//! The choice of a product's computation, and its translation for cuBLASLt.

use super::*;

const H100: TileDevice = TileDevice { multiprocessors: 132, capability: (9, 0) };
/// As large, without wgmma.
const OTHER: TileDevice = TileDevice { capability: (10, 0), ..H100 };

fn desc(m: usize, n: usize) -> GemmDesc {
    GemmDesc {
        shape: GemmShape { m, n, k: 64 },
        images: 2,
        dtype: DType::F16,
        two_sources: false,
        bias: true,
        per_image_bias: false,
        activation: EpilogueActivation::None,
        residual: true,
        out_f32: false,
        cublaslt: true,
        device: OTHER,
    }
}

#[test]
fn cublaslt_products() {
    let plain = desc(8192, 640);
    assert_eq!(choose(&plain), GemmConfig::CublasLt);
    let ours = |desc| matches!(choose(&desc), GemmConfig::Tiled(_));
    assert!(ours(GemmDesc { cublaslt: false, ..plain }));
    assert!(ours(GemmDesc { dtype: DType::F32, ..plain }));
    assert!(ours(GemmDesc { two_sources: true, ..plain }));
    assert!(ours(GemmDesc { per_image_bias: true, ..plain }));
    assert!(ours(GemmDesc { activation: EpilogueActivation::Pointwise(crate::graph::Activation::Gelu), ..plain }));
    assert!(ours(desc(8192, 636)));
    // C and the bias would have to be f32.
    assert!(ours(GemmDesc { out_f32: true, ..plain }));
    assert_eq!(choose(&GemmDesc { out_f32: true, bias: false, residual: false, ..plain }), GemmConfig::CublasLt);
}

#[test]
fn geglu_epilogue() {
    let geglu = |m, n| choose(&GemmDesc { activation: EpilogueActivation::Geglu, ..desc(m, n) });
    assert_eq!(geglu(2 * 1024, 5120), GemmConfig::Geglu(Tile::TALL));
    assert_eq!(geglu(4, 64), GemmConfig::Geglu(Tile::SMALL));
    assert_eq!(geglu(4, 60), GemmConfig::ThenGeglu(Tile::SMALL));
    assert_eq!(geglu_tile(2 * 1024, 5120, OTHER).n, 128);
    assert_eq!(geglu_tile(4, 64, OTHER).n, 64);
}

#[test]
fn products_by_wgmma() {
    let on = |desc| choose(&GemmDesc { device: H100, ..desc });
    let geglu = |m, n| GemmDesc { activation: EpilogueActivation::Geglu, ..desc(m, n) };
    assert_eq!(on(geglu(2 * 1024, 5120)), GemmConfig::GegluSm90(Tile { m: 256, n: 160 }));
    assert_eq!(on(geglu(4, 64)), GemmConfig::Geglu(Tile::SMALL));
    // Those that the library does not take, or takes clearly longer for; the others stay with it.
    let rows = GemmDesc { per_image_bias: true, ..desc(2 * 1024, 1280) };
    assert_eq!(on(rows), GemmConfig::Sm90(Tile { m: 128, n: 160 }));
    assert_eq!(on(desc(2 * 4096, 640)), GemmConfig::Sm90(Tile { m: 256, n: 160 }));
    assert_eq!(on(desc(2 * 1024, 1280)), GemmConfig::Sm90(Tile { m: 128, n: 160 }));
    let wide = GemmDesc { shape: GemmShape { m: 2 * 1024, n: 3840, k: 1280 }, ..desc(2 * 1024, 3840) };
    assert_eq!(on(wide), GemmConfig::CublasLt);
    assert_eq!(on(GemmDesc { cublaslt: false, ..wide }), GemmConfig::Sm90(Tile { m: 128, n: 160 }));
    // What the kernels do not do.
    let pointwise = EpilogueActivation::Pointwise(crate::graph::Activation::Silu);
    for desc in [
        GemmDesc { activation: pointwise, ..rows },
        GemmDesc { out_f32: true, ..rows },
        GemmDesc { dtype: DType::F32, ..rows },
        GemmDesc { shape: GemmShape { n: 1284, ..rows.shape }, ..rows },
    ] {
        assert!(matches!(on(desc), GemmConfig::Tiled(_)), "{desc:?}");
    }
}

/// The tile may depend on the images that share a batch, but not whose kernel it is.
#[test]
fn same_kernels_for_every_batch() {
    for (rows, n) in [(1, 1280), (77, 640), (256, 1280), (1024, 640), (1024, 1280), (4096, 640), (4096, 1920)] {
        for activation in [EpilogueActivation::None, EpilogueActivation::Geglu] {
            for cublaslt in [false, true] {
                let of = |images| {
                    let all = GemmDesc { images, device: H100, activation, cublaslt, ..desc(images * rows, n) };
                    std::mem::discriminant(&choose(&all))
                };
                assert!([2, 3, 8, 64].into_iter().all(|images| of(images) == of(1)), "{rows} {n} {activation:?}");
            }
        }
    }
}

/// Computes a [`Gemm`] as its documentation says, on addresses that are places in one vector.
fn column_major(gemm: &Gemm, memory: &mut [f64]) {
    for batch in 0..gemm.batch {
        let at =
            |m: &MatrixRef, row: usize, column: usize| m.data as usize + batch * m.stride + column * m.leading + row;
        for column in 0..gemm.n {
            for row in 0..gemm.m {
                let a = |l| if gemm.transpose_a { at(&gemm.a, l, row) } else { at(&gemm.a, row, l) };
                let b = |l| if gemm.transpose_b { at(&gemm.b, column, l) } else { at(&gemm.b, l, column) };
                let mut sum: f64 = (0..gemm.k).map(|l| memory[a(l)] * memory[b(l)]).sum();
                sum += gemm.epilogue.bias().map_or(0.0, |bias| memory[bias as usize + row]);
                sum += gemm.epilogue.residual().map_or(0.0, |c| memory[at(&c, row, column)]);
                memory[at(&gemm.d, row, column)] = sum;
            }
        }
    }
}

#[test]
fn linear_column_major() {
    let (images, rows, n, k) = (2, 3, 4, 5);
    // X with a stride of 6, W, bias, residual, Y with a stride of 7, one after the other; address 0 means none.
    let (x, w, bias, residual, out) = (1, 1 + 36, 1 + 36 + 20, 61, 61 + 24);
    let mut memory: Vec<f64> = (0..out + 42).map(|i| f64::from((i * 37 % 23) as u32)).collect();
    let linear = RowMajorGemm {
        dtype: DType::F16,
        images,
        rows,
        n,
        k,
        x: (x as u64, 6),
        w: (w as u64, k),
        out: (out as u64, 7),
        out_f32: false,
        bias: bias as u64,
        residual: (residual as u64, n),
    };
    let before = memory.clone();
    column_major(&linear.column_major(), &mut memory);
    for row in 0..images * rows {
        for column in 0..n {
            let dot: f64 = (0..k).map(|l| before[x + row * 6 + l] * before[w + column * k + l]).sum();
            let want = dot + before[bias + column] + before[residual + row * n + column];
            assert_eq!(memory[out + row * 7 + column], want);
        }
    }
}
