// Parameters, copies and the way out of the convolutions that convolution_sm90.cu and convolution_fp8_sm90.cu share. `scale(loop, sums,
// phase, left)` brings a group's sums, from that column of the result on, to what the products add up to; `factors` are the loop's.
#pragma once

#include "mainloop_sm90.cuh"

struct ConvolutionSm90Params {
    TensorMap x0;
    TensorMap x1;
    TensorMap w;
    TensorMap out;
    EpilogueParams finish;
    int pixels;
    int n;
    int channels0;
    int channels;
    int height;
    int width;
    int result_height;
    int result_width;
    int kernel;
    int stride;
    int padding;
    int phases;
    // Of e4m3: the factors of X's pixels [B, height, width] and of W's rows.
    const float* x_scales;
    const float* w_scales;
};

// Where the copies of a tile begin.
struct TileOfPixels {
    int phase, x, y, image;

    // `row` is that of the tile of `rows` pixels, whose copies begin `first` pixels later.
    __device__ __forceinline__ void begin(const ConvolutionSm90Params& p, int row, int down, int rows, int first) {
        phase = row / down;
        int m = (row - phase * down) * rows + first, line = m / p.result_width;
        image = line / p.result_height;
        x = (m - line * p.result_width) * p.stride - p.padding;
        y = (line - image * p.result_height) * p.stride - p.padding;
    }
};

template <class Loop, class T, int MT, int BN, class Factors, class Scale>
__device__ __forceinline__ void convolution_sm90(const ConvolutionSm90Params& p, Factors factors, Scale scale) {
    extern __shared__ __align__(1024) char memory[];
    Loop loop(memory);
    int down = divided_up(p.pixels, Loop::BM), turn = 0;
    int first = divided_up(p.channels0, Loop::DEPTH), both = first + divided_up(p.channels - p.channels0, Loop::DEPTH);
    TileOfPixels at;
    loop.template run<40>(
        TileOrder::of(down * p.phases, divided_up(p.n, BN)), p.kernel * p.kernel * both,
        [&](int step, int row, int column, u32 to, u32 bar) {
            int half = loop.rank * (Loop::BM / 2);
            if (step == 0) at.begin(p, row, down, Loop::BM, half);
            int tap = step / both, part = step - tap * both, ky = tap / p.kernel, kx = tap - ky * p.kernel;
            bool second = part >= first;
            int channel = (second ? part - first : part) * Loop::DEPTH;
            // Phase 2 a + b begins a rows and b columns later.
            load_tensor_im2col_both(to + half * 128, second ? p.x1 : p.x0, channel, at.x, at.y, at.image, kx + at.phase % 2,
                                    ky + at.phase / 2, bar);
            int k = tap * p.channels + channel + (second ? p.channels0 : 0);
            load_tensor_2d(to + Loop::A_BYTES, p.w, k, at.phase * p.n + column * BN, bar);
        },
        factors,
        [&](float(&acc)[MT][BN / 2], int row, int column, int in_tile) {
            int phase = row / down;
            scale(loop, acc, phase, column * BN);
            auto place = [&](int m) {
                if (p.phases == 1) return (i64)m;
                int line = m / p.result_width, x = m - line * p.result_width;
                return (i64)(2 * line + phase / 2) * (2 * p.result_width) + 2 * x + phase % 2;
            };
            finish_tile<Loop::E4M3, Loop, T, MT, BN>(
                loop, acc, p.finish, (row - phase * down) * Loop::BM + in_tile, p.pixels, column * BN, p.n, turn, place,
                [&](u32 box, int left, int top) {
                    if (p.phases == 1) return loop.store_box(p.out, left, top, box);
                    // The rows of a phase lie apart.
#pragma unroll
                    for (int i = loop.thread; i < 64 * 4; i += 128) {
                        int r = i / 4, unit = i % 4, m = top + r, n = left + unit * 8;
                        if (m >= p.pixels || n >= p.n) continue;
                        uint4 values = load_shared_16(box + r * 64 + (unit ^ r / 2 % 4) * 16);
                        *(uint4*)((T*)p.finish.out + place(m) * p.finish.out_stride + n) = values;
                    }
                },
                [&](int m) {
                    // Those of an image follow each other, phase by phase.
                    if (p.phases == 1) return m / RUN;
                    int rows = fresh(p.finish.rows_of_image);
                    return m / RUN + (m / rows * (p.phases - 1) + phase) * (rows / RUN);
                });
        });
}
