// gemm_sm90.cu's products of X and W in e4m3, whose rows have a factor each (quantize_sm90.cu):
//   gemm_fp8_sm90        Y = (X W^T) x_scales w_scales + bias + rows + residual
//   gemm_geglu_fp8_sm90  Y = (values + v) * gelu(gates + g)
//
// Shapes     X [M, K] and W [N, K] of e4m3, x_scales [M] and w_scales [N] of f32; GEGLU: W [2 N, K] and w_scales [2 N]; one source. All
//            else is of f16 or bf16, as in gemm_sm90.cu.
// Maps       gemm_sm90.cu's over pairs of e4m3 as values of two bytes, so k and k0 are K / 2.
// Grid       gemm_sm90.cu's.
// Tiling     BM x BN = 128x128, 128x160, 256x128 and 256x160 for both groups, whose sums of 128 values of K are of 128, 160, 128 and 80
//            columns at a time; see mainloop_fp8_sm90.cuh
// Shared     dynamic: MainloopSm90::SHARED_BYTES, of 1,024-byte alignment.
// Requires   K a multiple of 16, N of 8, 8-byte aligned w_scales; else gemm_sm90.cu's.
// Source     sums in f32 every 128 of K as in DeepSeek's technical report (DeepSeek-V3, section 3.3.2).
#include "gemm_sm90.cuh"
#include "mainloop_fp8_sm90.cuh"

template <class T, int MT, int BN, int PN>
__device__ __forceinline__ void gemm_fp8_sm90(const GemmSm90Params& p) {
    using Loop = MainloopFp8Sm90<MT, BN, PN>;
    gemm_sm90<Loop, T, MT, BN>(p, [&](const Loop& loop, float(&acc)[MT][BN / 2], int top, int left) {
        scale_sums<MT, BN>(acc, loop.thread, p.x_scales, top, p.m,
                           [&](int j) { return left + 8 * j < p.n ? p.w_scales + left + 8 * j : nullptr; });
    });
}

template <class T, int MT, int BN, int PN>
__device__ __forceinline__ void gemm_geglu_fp8_sm90(const GemmSm90Params& p) {
    using Loop = MainloopFp8Sm90<MT, BN, PN>;
    gemm_geglu_sm90<Loop, T, MT, BN>(p, [&](const Loop& loop, float(&acc)[MT][BN / 2], int top, int left) {
        // Eight columns of values, then those of their gates.
        scale_sums<MT, BN>(acc, loop.thread, p.x_scales, top, p.m, [&](int j) {
            int n = left + j / 2 * 8;
            return n < p.n ? p.w_scales + j % 2 * p.n + n : nullptr;
        });
    });
}

#define GEMM(KERNEL, MT, BN, PN, NAME, T)                                                                  \
    extern "C" __global__ __cluster_dims__(2, 1, 1) __launch_bounds__(384, 1) void NAME(const __grid_constant__ GemmSm90Params p) {  \
        KERNEL<T, MT, BN, PN>(p);                                                                          \
    }

GEMM(gemm_fp8_sm90, 1, 128, 128, gemm_fp8_sm90_128x128_f16, f16)
GEMM(gemm_fp8_sm90, 1, 128, 128, gemm_fp8_sm90_128x128_bf16, bf16)
GEMM(gemm_fp8_sm90, 1, 160, 160, gemm_fp8_sm90_128x160_f16, f16)
GEMM(gemm_fp8_sm90, 1, 160, 160, gemm_fp8_sm90_128x160_bf16, bf16)
GEMM(gemm_fp8_sm90, 2, 128, 128, gemm_fp8_sm90_256x128_f16, f16)
GEMM(gemm_fp8_sm90, 2, 128, 128, gemm_fp8_sm90_256x128_bf16, bf16)
GEMM(gemm_fp8_sm90, 2, 160, 80, gemm_fp8_sm90_256x160_f16, f16)
GEMM(gemm_fp8_sm90, 2, 160, 80, gemm_fp8_sm90_256x160_bf16, bf16)
GEMM(gemm_geglu_fp8_sm90, 1, 128, 128, gemm_geglu_fp8_sm90_128x128_f16, f16)
GEMM(gemm_geglu_fp8_sm90, 1, 128, 128, gemm_geglu_fp8_sm90_128x128_bf16, bf16)
GEMM(gemm_geglu_fp8_sm90, 1, 160, 160, gemm_geglu_fp8_sm90_128x160_f16, f16)
GEMM(gemm_geglu_fp8_sm90, 1, 160, 160, gemm_geglu_fp8_sm90_128x160_bf16, bf16)
GEMM(gemm_geglu_fp8_sm90, 2, 128, 128, gemm_geglu_fp8_sm90_256x128_f16, f16)
GEMM(gemm_geglu_fp8_sm90, 2, 128, 128, gemm_geglu_fp8_sm90_256x128_bf16, bf16)
GEMM(gemm_geglu_fp8_sm90, 2, 160, 80, gemm_geglu_fp8_sm90_256x160_f16, f16)
GEMM(gemm_geglu_fp8_sm90, 2, 160, 80, gemm_geglu_fp8_sm90_256x160_bf16, bf16)
