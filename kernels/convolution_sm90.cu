// Convolution as an implicit product, as convolution.cu's, on sm_90a: Y = X * W + bias + rows + residual.
//
// Shapes     X [B, height, width, channels], in one or in two sources whose channels are joined (x0 has the first channels0); W [N,
//            kernel_y, kernel_x, channels] (OHWI). Y and residual [B, result_height, result_width, N], rows [B, N].
//            `phases` = 4: the image is first doubled by nearest neighbour, as four 2x2 convolutions (convolution.cu); W [4, N, 2, 2,
//            channels], Y [B, 2 height, 2 width, N].
// Maps       of f16 or bf16: x0 and x1 [B, height, width, channels of the source] by im2col, rows of 64 channels, 128 bytes swizzled, BM
//            / 2 of them; the first base pixel is at -padding, the last at (result - 1) * stride - padding, steps of `stride`. w [phases N,
//            K] in tiles of BN rows by 64 columns, 128 bytes swizzled. out [pixels, N] in tiles of 64 rows by 32 columns, 64 bytes
//            swizzled; not read where phases = 4.
// Grid       at most min(tiles, multiprocessors), even, 384 threads, clusters of two; a tile is BM pixels of one phase by BN. `pixels` are those of all images, B *
//            result_height * result_width, before doubling. An image's results do not depend on B.
// Tiling     as gemm_sm90.cu. A step of K is 64 channels of a source under a tap; the last one of a source is filled with zeros. Borders
//            are the map's zeros.
// Shared     dynamic: MainloopSm90::SHARED_BYTES, of 1,024-byte alignment.
// Requires   channels0, channels and N multiples of 8; 16-byte aligned pointers; B * height * width < 2^31; padding at most 128, taps at
//            most 256 apart. phases = 4: kernel 2, stride 1, padding 1. No activation, no f32 result.
// Source     implicit GEMM by im2col maps as in the CUDA driver's and the PTX manual ("Im2col mode").
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
    int result_height;
    int result_width;
    int kernel_y;
    int kernel_x;
    int stride;
    int padding_y;
    int padding_x;
    int phases;
};

// Where the copies of a tile begin.
struct TileOfPixels {
    int phase, x, y, image;

    // `row` is that of the tile of `rows` pixels, whose copies begin `first` pixels later.
    __device__ __forceinline__ void begin(const ConvolutionSm90Params& p, int row, int down, int rows, int first) {
        phase = row / down;
        int m = (row - phase * down) * rows + first, line = m / p.result_width;
        image = line / p.result_height;
        x = (m - line * p.result_width) * p.stride - p.padding_x;
        y = (line - image * p.result_height) * p.stride - p.padding_y;
    }
};

template <class T, int MT, int BN, int GROUPS>
__device__ __forceinline__ void convolution_sm90(const ConvolutionSm90Params& p) {
    extern __shared__ __align__(1024) char memory[];
    using Loop = MainloopSm90<T, MT, BN, GROUPS>;
    Loop loop(memory);
    int down = divided_up(p.pixels, Loop::BM), turn = 0;
    int first = divided_up(p.channels0, Loop::DEPTH), both = first + divided_up(p.channels - p.channels0, Loop::DEPTH);
    TileOfPixels at;
    loop.template run<40>(
        TileOrder::of(down * p.phases, divided_up(p.n, BN)), p.kernel_y * p.kernel_x * both,
        [&](int step, int row, int column, u32 to, u32 bar) {
            int half = loop.rank * (Loop::BM / 2);
            if (step == 0) at.begin(p, row, down, Loop::BM, half);
            int tap = step / both, part = step - tap * both, ky = tap / p.kernel_x, kx = tap - ky * p.kernel_x;
            bool second = part >= first;
            int channel = (second ? part - first : part) * Loop::DEPTH;
            // Phase 2 a + b begins a rows and b columns later.
            load_tensor_im2col_both(to + half * 128, second ? p.x1 : p.x0, channel, at.x, at.y, at.image, kx + at.phase % 2,
                                    ky + at.phase / 2, bar);
            int k = tap * p.channels + channel + (second ? p.channels0 : 0);
            load_tensor_2d(to + Loop::A_BYTES, p.w, k, at.phase * p.n + column * BN, bar);
        },
        [&](const float(&acc)[MT][BN / 2], int row, int column, int in_tile) {
            int phase = row / down;
            auto place = [&](int m) {
                if (p.phases == 1) return (i64)m;
                int line = m / p.result_width, x = m - line * p.result_width;
                return (i64)(2 * line + phase / 2) * (2 * p.result_width) + 2 * x + phase % 2;
            };
            finish_tile<Loop, T, MT, BN>(
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
                });
        });
}

#define CONVOLUTION(MT, BN, GROUPS, NAME, T)                                                                      \
    extern "C" __global__ __cluster_dims__(2, 1, 1) __launch_bounds__(384, 1) void NAME(const __grid_constant__ ConvolutionSm90Params p) {  \
        convolution_sm90<T, MT, BN, GROUPS>(p);                                                                   \
    }

CONVOLUTION(2, 128, 1, convolution_sm90_128x128_f16, f16)
CONVOLUTION(2, 128, 1, convolution_sm90_128x128_bf16, bf16)
CONVOLUTION(2, 160, 1, convolution_sm90_128x160_f16, f16)
CONVOLUTION(2, 160, 1, convolution_sm90_128x160_bf16, bf16)
CONVOLUTION(2, 160, 2, convolution_sm90_256x160_f16, f16)
CONVOLUTION(2, 160, 2, convolution_sm90_256x160_bf16, bf16)
CONVOLUTION(1, 256, 2, convolution_sm90_128x256_f16, f16)
CONVOLUTION(1, 256, 2, convolution_sm90_128x256_bf16, bf16)
