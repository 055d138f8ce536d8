use crate::common::*;
use braid::device::cuda::ops::convolution::ConvolutionParams;
use braid::device::cuda::ops::convolution_narrow::NarrowParams;
use braid::device::cuda::ops::epilogue::EpilogueParams;
use braid::device::cuda::ops::kernel::blocks;
use braid::device::cuda::ops::layout::WeightsParams;
use braid::device::cuda::ops::tile::Tile;
use braid::tensor::DType;

/// A convolution's geometry.
#[derive(Clone, Copy)]
struct Shape {
    images: usize,
    height: usize,
    width: usize,
    /// Channels of the two sources.
    channels: [usize; 2],
    n: usize,
    kernel: usize,
    stride: usize,
    padding: usize,
    /// Rows and columns of zeros after the image.
    after: usize,
}

impl Shape {
    fn result(&self) -> [usize; 2] {
        [self.height, self.width].map(|side| (side + self.padding + self.after - self.kernel) / self.stride + 1)
    }

    fn all(&self) -> usize {
        self.channels[0] + self.channels[1]
    }

    /// The reference result for OHWI weights.
    fn reference<S: Real>(&self, x: &[Vec<f32>; 2], w: &[f32]) -> Vec<S> {
        let ([rows, columns], c) = (self.result(), self.all());
        let mut out = Vec::new();
        for at in 0..self.images * rows * columns {
            let (image, oy, ox) = (at / (rows * columns), at / columns % rows, at % columns);
            for n in 0..self.n {
                let mut sum = S::default();
                for tap in 0..self.kernel * self.kernel {
                    let (y, x0) = (oy * self.stride + tap / self.kernel, ox * self.stride + tap % self.kernel);
                    let (y, x0) = (y.wrapping_sub(self.padding), x0.wrapping_sub(self.padding));
                    if y >= self.height || x0 >= self.width {
                        continue;
                    }
                    let pixel = (image * self.height + y) * self.width + x0;
                    for i in 0..c {
                        let value = if i < self.channels[0] {
                            x[0][pixel * self.channels[0] + i]
                        } else {
                            x[1][pixel * self.channels[1] + i - self.channels[0]]
                        };
                        sum += S::from(value) * S::from(w[(n * self.kernel * self.kernel + tap) * c + i]);
                    }
                }
                out.push(sum);
            }
        }
        out
    }

    fn inputs(&self, dtype: DType) -> ([Vec<f32>; 2], Vec<f32>) {
        let pixels = self.images * self.height * self.width;
        let x = [0, 1].map(|s| rounded(dtype, &values(pixels * self.channels[s], 1 + s as u32)));
        let k = self.kernel * self.kernel * self.all();
        (x, rounded(dtype, &values(self.n * k, 3)))
    }
}

const TILES: [Tile; 4] = [Tile::TALL, Tile::LARGE, Tile::MEDIUM, Tile::SMALL];

fn convolution(dtype: DType, tile: Tile, s: Shape, x: &[Vec<f32>; 2], w: &[f32]) -> Vec<f32> {
    let gpu = Gpu::new();
    let [rows, columns] = s.result();
    let count = s.images * rows * columns;
    let bias = rounded(dtype, &values(s.n, 4));
    let added = rounded(dtype, &values(s.images * s.n, 5));
    let residual = rounded(dtype, &values(count * s.n, 6));
    let out = gpu.room(count * s.n * dtype.size());
    let params = ConvolutionParams {
        x0: gpu.upload(dtype, &x[0]),
        x1: gpu.upload(dtype, &x[1]),
        w: gpu.upload(dtype, w),
        finish: EpilogueParams {
            bias: gpu.upload(dtype, &bias),
            rows: gpu.upload(dtype, &added),
            residual: gpu.upload(dtype, &residual),
            out,
            residual_stride: s.n as i64,
            out_stride: s.n as i64,
            rows_of_image: (rows * columns) as i32,
            ..EpilogueParams::default()
        },
        pixels: count as i32,
        n: s.n as i32,
        channels0: s.channels[0] as i32,
        channels: s.all() as i32,
        height: s.height as i32,
        width: s.width as i32,
        result_height: rows as i32,
        result_width: columns as i32,
        kernel_y: s.kernel as i32,
        kernel_x: s.kernel as i32,
        stride: s.stride as i32,
        padding_y: s.padding as i32,
        padding_x: s.padding as i32,
        phases: 1,
    };
    let [gx, gy] = tile.grid(count, s.n);
    gpu.launch(&format!("convolution_{}", tile.name()), dtype, [gx, gy, 1], &params);
    let sums = |i: usize| {
        let (row, n) = (i / s.n, i % s.n);
        [bias[n], added[row / (rows * columns) * s.n + n], residual[i]]
    };
    let want: Vec<f64> = with(s.reference(x, w), sums);
    let got = gpu.download(dtype, out, want.len());
    let what =
        format!("{dtype} {} {}x{} {:?} to {} kernel {}", tile.name(), s.height, s.width, s.channels, s.n, s.kernel);
    close(&what, dtype, &got, &want);
    if dtype == DType::F32 {
        within_f32(&what, &got, &want, &with(s.reference(x, w), sums));
    }
    got
}

/// The summands of each result.
fn with<S: Real, const N: usize>(mut results: Vec<S>, sums: impl Fn(usize) -> [f32; N]) -> Vec<S> {
    for (i, result) in results.iter_mut().enumerate() {
        sums(i).into_iter().for_each(|sum| *result += S::from(sum));
    }
    results
}

/// The tiles that a type has.
fn tiles(dtype: DType) -> &'static [Tile] {
    if dtype == DType::F32 { &TILES[2..] } else { &TILES }
}

#[test]
fn convolution_geometries() {
    if !compiled() {
        return;
    }
    let plain =
        Shape { images: 1, height: 5, width: 7, channels: [8, 0], n: 8, kernel: 3, stride: 1, padding: 1, after: 1 };
    let shapes = [
        plain,
        Shape { images: 2, height: 9, width: 8, channels: [40, 0], n: 72, ..plain },
        Shape { channels: [16, 24], n: 24, ..plain },
        Shape { channels: [8, 40], n: 13, ..plain },
        // Stride 2 with zeros on both sides and after the image alone.
        Shape { stride: 2, channels: [16, 0], ..plain },
        Shape { stride: 2, height: 8, width: 6, channels: [16, 0], padding: 0, ..plain },
        Shape { kernel: 1, padding: 0, after: 0, channels: [24, 8], n: 16, ..plain },
        Shape { height: 1, width: 1, channels: [32, 0], n: 8, ..plain },
        // More pixels than the tallest tile has rows, the last of which come in its second half.
        Shape { images: 2, height: 15, width: 13, ..plain },
    ];
    for dtype in ALL {
        for s in shapes {
            let (x, w) = s.inputs(dtype);
            let results: Vec<Vec<f32>> = tiles(dtype).iter().map(|&tile| convolution(dtype, tile, s, &x, &w)).collect();
            assert!(results.iter().all(|r| *r == results[0]), "the tile changes the result");
        }
        // An image is the same alone and in a batch.
        let run = |images| {
            let s = Shape { images, channels: [16, 0], ..plain };
            let (x, w) = s.inputs(dtype);
            convolution(dtype, Tile::SMALL, s, &x, &w)
        };
        let (alone, batch) = (run(1), run(4));
        assert_eq!(alone[..], batch[..alone.len()]);
    }
}

/// A pixel that is not finite reaches the nine results around it alone; results in f32, of a width that is not a multiple of 8.
#[test]
fn not_finite_pixel() {
    if !compiled() {
        return;
    }
    let s =
        Shape { images: 1, height: 9, width: 6, channels: [8, 0], n: 13, kernel: 3, stride: 1, padding: 1, after: 1 };
    let (dtype, gpu, count) = (DType::F16, Gpu::new(), 54);
    let (mut x, w) = s.inputs(dtype);
    let want: Vec<f64> = s.reference(&x, &w);
    let bad = 4 * 6 + 3;
    x[0][bad * 8] = f32::NAN;
    let out = gpu.room(count * 13 * 4);
    let params = ConvolutionParams {
        x0: gpu.upload(dtype, &x[0]),
        w: gpu.upload(dtype, &w),
        finish: EpilogueParams {
            out,
            out_stride: 13,
            out_f32: 1,
            rows_of_image: count as i32,
            ..EpilogueParams::default()
        },
        pixels: count as i32,
        n: 13,
        channels0: 8,
        channels: 8,
        height: 9,
        width: 6,
        result_height: 9,
        result_width: 6,
        kernel_y: 3,
        kernel_x: 3,
        stride: 1,
        padding_y: 1,
        padding_x: 1,
        phases: 1,
        ..ConvolutionParams::default()
    };
    gpu.launch("convolution_64x64", dtype, [1, 1, 1], &params);
    let got = gpu.download(DType::F32, out, count * 13);
    for pixel in 0..count {
        let near = (pixel / 6).abs_diff(bad / 6) <= 1 && (pixel % 6).abs_diff(bad % 6) <= 1;
        let at = pixel * 13..pixel * 13 + 13;
        if near {
            assert!(got[at.clone()].iter().all(|x| x.is_nan()), "{pixel}: {:?}", &got[at]);
        } else {
            within(&format!("{pixel}"), 2e-6, &got[at.clone()], &want[at]);
        }
    }
}

/// The kernels of the four phases made by `phases`, then the convolution with them, against doubling and a 3x3 convolution.
#[test]
fn upsampling_in_four_phases() {
    if !compiled() {
        return;
    }
    for dtype in ALL {
        for (images, height, width, c, n) in [(2, 3, 5, 16, 24), (1, 1, 1, 8, 8), (1, 9, 8, 40, 72), (1, 2, 3, 8, 13)] {
            let gpu = Gpu::new();
            let x = rounded(dtype, &values(images * height * width * c, 1));
            let oihw = rounded(dtype, &values(n * c * 9, 2));
            let from = format!("phases_from_{dtype}");
            let w = gpu.room(16 * n * c * dtype.size());
            let source = gpu.upload(dtype, &oihw);
            let prepare =
                WeightsParams { x: source, out: w, n: n as i32, inputs: c as i32, taps: 9, ..Default::default() };
            gpu.launch(&from, dtype, [blocks(16 * n * c, 256), 1, 1], &prepare);
            let out = gpu.room(4 * images * height * width * n * dtype.size());
            let added = rounded(dtype, &values(images * n, 3));
            let params = ConvolutionParams {
                x0: gpu.upload(dtype, &x),
                w,
                finish: EpilogueParams {
                    rows: gpu.upload(dtype, &added),
                    out,
                    out_stride: n as i64,
                    rows_of_image: (height * width) as i32,
                    ..EpilogueParams::default()
                },
                pixels: (images * height * width) as i32,
                n: n as i32,
                channels0: c as i32,
                channels: c as i32,
                height: height as i32,
                width: width as i32,
                result_height: height as i32,
                result_width: width as i32,
                kernel_y: 2,
                kernel_x: 2,
                stride: 1,
                padding_y: 1,
                padding_x: 1,
                phases: 4,
                ..ConvolutionParams::default()
            };
            let [gx, gy] = Tile::SMALL.grid(images * height * width, n);
            gpu.launch("convolution_64x64", dtype, [gx, gy, 4], &params);
            let (h2, w2) = (2 * height, 2 * width);
            let doubled: Vec<f32> = (0..images * h2 * w2)
                .flat_map(|at| {
                    let (image, y, x0) = (at / (h2 * w2), at / w2 % h2, at % w2);
                    x[((image * height + y / 2) * width + x0 / 2) * c..][..c].to_vec()
                })
                .collect();
            let ohwi: Vec<f32> = (0..n * 9 * c).map(|i| oihw[(i / (9 * c) * c + i % c) * 9 + i / c % 9]).collect();
            let s = Shape {
                images,
                height: h2,
                width: w2,
                channels: [c, 0],
                n,
                kernel: 3,
                stride: 1,
                padding: 1,
                after: 1,
            };
            let (doubled, sums) = ([doubled, Vec::new()], |i: usize| [added[i / (h2 * w2 * n) * n + i % n]]);
            let want: Vec<f64> = with(s.reference(&doubled, &ohwi), sums);
            // The sums of taps are rounded once more.
            let (what, got) = (format!("doubling {dtype} {height}x{width}"), gpu.download(dtype, out, want.len()));
            match dtype {
                DType::F16 => within(&what, 8e-4, &got, &want),
                DType::BF16 => within(&what, 6e-3, &got, &want),
                _ => within_f32(&what, &got, &want, &with(s.reference(&doubled, &ohwi), sums)),
            }
        }
    }
}

fn narrow(name: &str, dtype: DType, s: Shape, out_f32: bool, grid: [u32; 3]) {
    let gpu = Gpu::new();
    let (x, w) = s.inputs(dtype);
    let [rows, columns] = s.result();
    let count = s.images * rows * columns;
    let bias = rounded(dtype, &values(s.n, 4));
    let out_type = if out_f32 { DType::F32 } else { dtype };
    let out = gpu.room(count * s.n * out_type.size());
    let params = NarrowParams {
        x: gpu.upload(dtype, &x[0]),
        w: gpu.upload(dtype, &w),
        bias: gpu.upload(dtype, &bias),
        out,
        pixels: count as i32,
        n: s.n as i32,
        channels: s.channels[0] as i32,
        height: s.height as i32,
        width: s.width as i32,
        result_height: rows as i32,
        result_width: columns as i32,
        kernel_y: s.kernel as i32,
        kernel_x: s.kernel as i32,
        stride: s.stride as i32,
        padding_y: s.padding as i32,
        padding_x: s.padding as i32,
        out_f32: out_f32.into(),
        reserved: 0,
    };
    gpu.launch(name, dtype, grid, &params);
    let (what, sums) = (format!("{name} {dtype} {:?}", s.channels), |i: usize| [bias[i % s.n]]);
    let want: Vec<f64> = with(s.reference(&x, &w), sums);
    let got = gpu.download(out_type, out, want.len());
    close(&what, out_type, &got, &want);
    if dtype == DType::F32 {
        within_f32(&what, &got, &want, &with(s.reference(&x, &w), sums));
    }
}

#[test]
fn narrow_convolutions() {
    if !compiled() {
        return;
    }
    let plain =
        Shape { images: 2, height: 5, width: 7, channels: [4, 0], n: 13, kernel: 3, stride: 1, padding: 1, after: 1 };
    for dtype in ALL {
        for s in [
            plain,
            Shape { channels: [3, 0], n: 130, ..plain },
            Shape { kernel: 1, padding: 0, after: 0, n: 4, ..plain },
        ] {
            let [rows, columns] = s.result();
            let grid = [blocks(s.images * rows * columns, 16), blocks(s.n, 128), 1];
            narrow("convolution_few_in", dtype, s, false, grid);
        }
        for (name, channels, n) in [("4", 8, 3), ("4", 40, 4), ("8", 264, 8), ("8", 16, 5)] {
            let s = Shape { channels: [channels, 0], n, ..plain };
            let [rows, columns] = s.result();
            let grid = [blocks(s.images * rows * columns, 16), 1, 1];
            for out_f32 in [false, true] {
                narrow(&format!("convolution_few_out_{name}"), dtype, s, out_f32, grid);
            }
        }
    }
}
