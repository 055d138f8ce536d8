// Product of a matrix with a transposed one and what follows it, as gemm.cu's, on sm_90a:
//   gemm_sm90        Y = X W^T + bias + rows + residual
//   gemm_geglu_sm90  Y = (X V^T + v) * gelu(X G^T + g) where W [2 N, K] holds the rows V, then G, and bias the values v, then g
//
// Shapes     X [M, K], in one or in two sources whose columns are joined (x0 has the first k0 columns); W [N, K]; rows
//            [M / rows_of_image, N]; Y and residual [M, N]. gemm_sm90: moments [M / 64, 2, N] f32, of each 64 rows and each column the
//            mean and the sum of squared deviations, for group_norm.cu.
// Maps       of f16 or bf16, rows of 128 bytes swizzled: x0 [M, k0] and x1 [M, K - k0] in tiles of BM / 2 rows by 64 columns; w [N, K] in
//            tiles of BN rows by 64 columns. gemm_geglu_sm90: w [N / 8, 2, 8, K], which is [2 N, K] with 8 rows of V beside 8 of G, in
//            tiles of BN / 16, 2, 8, 64. out [M, N] in tiles of 64 rows by 32 columns, 64 bytes swizzled; gemm_geglu_sm90: by 16
//            columns, 32 bytes swizzled.
// Grid       at most min(tiles, multiprocessors), even, 384 threads, clusters of two; a tile is BM by BN, of gemm_geglu_sm90 BM by BN / 2 of the result.
// Tiling     BM x BN = 128x128 and 128x160 with a tile for each group, 256x160 and 128x256 with one for both; see mainloop_sm90.cuh
// Shared     dynamic: MainloopSm90::SHARED_BYTES, of 1,024-byte alignment.
// Requires   what the maps do: 16-byte aligned pointers, K, k0, strides and N multiples of 8. bias, rows, residual 4-byte aligned.
//            No activation, no f32 result. moments: M a multiple of 64. Columns of W beside those that x0 lacks up to a multiple of 64 are multiplied by zeros.
// Source     persistent GEMM with roles of warps as in NVIDIA's CUTLASS documentation ("Efficient GEMM in CUDA", Hopper).
#include "gemm_sm90.cuh"

#define GEMM(KERNEL, MT, BN, GROUPS, NAME, T)                                                              \
    extern "C" __global__ __cluster_dims__(2, 1, 1) __launch_bounds__(384, 1) void NAME(const __grid_constant__ GemmSm90Params p) {  \
        KERNEL<MainloopSm90<T, MT, BN, GROUPS>, T, MT, BN>(p, Unscaled{});                                   \
    }

GEMM(gemm_sm90, 2, 128, 1, gemm_sm90_128x128_f16, f16)
GEMM(gemm_sm90, 2, 128, 1, gemm_sm90_128x128_bf16, bf16)
GEMM(gemm_sm90, 2, 160, 1, gemm_sm90_128x160_f16, f16)
GEMM(gemm_sm90, 2, 160, 1, gemm_sm90_128x160_bf16, bf16)
GEMM(gemm_sm90, 2, 160, 2, gemm_sm90_256x160_f16, f16)
GEMM(gemm_sm90, 2, 160, 2, gemm_sm90_256x160_bf16, bf16)
GEMM(gemm_sm90, 1, 256, 2, gemm_sm90_128x256_f16, f16)
GEMM(gemm_sm90, 1, 256, 2, gemm_sm90_128x256_bf16, bf16)
GEMM(gemm_geglu_sm90, 2, 128, 1, gemm_geglu_sm90_128x128_f16, f16)
GEMM(gemm_geglu_sm90, 2, 128, 1, gemm_geglu_sm90_128x128_bf16, bf16)
GEMM(gemm_geglu_sm90, 2, 160, 1, gemm_geglu_sm90_128x160_f16, f16)
GEMM(gemm_geglu_sm90, 2, 160, 1, gemm_geglu_sm90_128x160_bf16, bf16)
GEMM(gemm_geglu_sm90, 2, 160, 2, gemm_geglu_sm90_256x160_f16, f16)
GEMM(gemm_geglu_sm90, 2, 160, 2, gemm_geglu_sm90_256x160_bf16, bf16)
GEMM(gemm_geglu_sm90, 1, 256, 2, gemm_geglu_sm90_128x256_f16, f16)
GEMM(gemm_geglu_sm90, 1, 256, 2, gemm_geglu_sm90_128x256_bf16, bf16)
