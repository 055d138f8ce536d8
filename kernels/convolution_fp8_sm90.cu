// convolution_sm90.cu's convolution of X and W in e4m3, X with a factor for each pixel and W with one for each row (quantize_sm90.cu).
//
// Shapes     X [B, height, width, channels] and W [N, kernel, kernel, channels] of e4m3, x_scales [B, height, width] and w_scales [N] of
//            f32; phases = 4: W [4, N, 2, 2, channels], w_scales [4, N]; one source. All else is of f16 or bf16, as in convolution_sm90.cu.
// Maps       convolution_sm90.cu's over pairs of e4m3 as values of two bytes, so channels and channels0 are halved.
// Grid       convolution_sm90.cu's.
// Tiling     as gemm_fp8_sm90.cu. A stage is 128 channels under a tap: its sums are those of one pixel for each row, whose factor they
//            are multiplied by as they are added.
// Shared     dynamic: MainloopSm90::SHARED_BYTES, of 1,024-byte alignment.
// Requires   channels a multiple of 16, N of 8, 8-byte aligned w_scales, height and width below 2^14; else convolution_sm90.cu's.
// Source     as convolution_sm90.cu and gemm_fp8_sm90.cu.
#include "convolution_sm90.cuh"
#include "mainloop_fp8_sm90.cuh"

// The factors of the pixels under the present tap of a thread's rows, zeros beyond the borders.
template <int MT>
struct PixelFactors {
    const ConvolutionSm90Params& p;
    int step = 0, parts, phase;
    // The pixels under tap 0, and their row and column, 16 bits each.
    int at[MT][2], place[MT][2];
    float factor[MT][2];

    // `first` is the row of X of this thread's first one.
    __device__ __forceinline__ PixelFactors(const ConvolutionSm90Params& p, int phase, int first, int parts)
        : p(p), parts(parts), phase(phase) {
#pragma unroll
        for (int i = 0; i < 2 * MT; i++) {
            int m = first + i / 2 * 64 + i % 2 * 8, line = m / p.result_width, image = line / p.result_height;
            int left = (m - line * p.result_width) * p.stride - p.padding;
            int top = (line - image * p.result_height) * p.stride - p.padding;
            at[i / 2][i % 2] = (image * p.height + top) * p.width + left;
            // No tap of a row that is not there lies in the image.
            if (m >= p.pixels) top = -(1 << 14);
            place[i / 2][i % 2] = top << 16 | (left & 0xffff);
        }
    }

    __device__ __forceinline__ void next() {
        int tap = step / parts;
        if (step == tap * parts) {
            int ky = tap / p.kernel, kx = tap - ky * p.kernel + phase % 2;
            ky += phase / 2;
#pragma unroll
            for (int i = 0; i < 2 * MT; i++) {
                int row = (place[i / 2][i % 2] >> 16) + ky, column = (short)place[i / 2][i % 2] + kx;
                bool there = (u32)row < (u32)p.height && (u32)column < (u32)p.width;
                factor[i / 2][i % 2] = there ? p.x_scales[at[i / 2][i % 2] + ky * p.width + kx] : 0.0f;
            }
        }
        step++;
    }

    __device__ __forceinline__ float of(int m, int half) const { return factor[m][half]; }
};

template <class T, int MT, int BN, int PN>
__device__ __forceinline__ void convolution_fp8_sm90(const ConvolutionSm90Params& p) {
    using Loop = MainloopFp8Sm90<MT, BN, PN>;
    int down = divided_up(p.pixels, Loop::BM), thread = threadIdx.x % 128;
    convolution_sm90<Loop, T, MT, BN>(
        p,
        [&](int row, int first) {
            int phase = row / down, top = (row - phase * down) * Loop::BM + first;
            return PixelFactors<MT>(p, phase, top + thread / 32 * 16 + thread % 32 / 4, divided_up(p.channels, Loop::DEPTH));
        },
        [&](const Loop&, float(&acc)[MT][BN / 2], int phase, int left) {
            scale_sums<MT, BN>(acc, thread, nullptr, 0, 0, [&](int j) {
                int n = left + 8 * j;
                return n < p.n ? p.w_scales + phase * p.n + n : nullptr;
            });
        });
}

#define CONVOLUTION(MT, BN, PN, NAME, T)                                                                          \
    extern "C" __global__ __cluster_dims__(2, 1, 1) __launch_bounds__(384, 1) void NAME(const __grid_constant__ ConvolutionSm90Params p) {  \
        convolution_fp8_sm90<T, MT, BN, PN>(p);                                                                   \
    }

CONVOLUTION(1, 128, 128, convolution_fp8_sm90_128x128_f16, f16)
CONVOLUTION(1, 128, 128, convolution_fp8_sm90_128x128_bf16, bf16)
CONVOLUTION(1, 160, 160, convolution_fp8_sm90_128x160_f16, f16)
CONVOLUTION(1, 160, 160, convolution_fp8_sm90_128x160_bf16, bf16)
CONVOLUTION(2, 128, 128, convolution_fp8_sm90_256x128_f16, f16)
CONVOLUTION(2, 128, 128, convolution_fp8_sm90_256x128_bf16, bf16)
CONVOLUTION(2, 160, 80, convolution_fp8_sm90_256x160_f16, f16)
CONVOLUTION(2, 160, 80, convolution_fp8_sm90_256x160_bf16, bf16)
