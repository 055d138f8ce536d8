// Product of a matrix with a transposed one and what follows it, as gemm.cu's, on sm_90a:
//   gemm_sm90        Y = X W^T + bias + rows + residual
//   gemm_geglu_sm90  Y = (X V^T + v) * gelu(X G^T + g) where W [2 N, K] holds the rows V, then G, and bias the values v, then g
//
// Shapes     X [M, K], in one or in two sources whose columns are joined (x0 has the first k0 columns); W [N, K]; rows
//            [M / rows_of_image, N]; Y and residual [M, N].
// Maps       of f16 or bf16, rows of 128 bytes swizzled: x0 [M, k0] and x1 [M, K - k0] in tiles of BM / 2 rows by 64 columns; w [N, K] in
//            tiles of BN rows by 64 columns. gemm_geglu_sm90: w [N / 8, 2, 8, K], which is [2 N, K] with 8 rows of V beside 8 of G, in
//            tiles of BN / 16, 2, 8, 64. out [M, N] in tiles of 64 rows by 32 columns, 64 bytes swizzled; gemm_geglu_sm90: by 16
//            columns, 32 bytes swizzled.
// Grid       at most min(tiles, multiprocessors), even, 384 threads, clusters of two; a tile is BM by BN, of gemm_geglu_sm90 BM by BN / 2 of the result.
// Tiling     BM x BN = 128x128 and 128x160 with a tile for each group, 256x160 and 128x256 with one for both; see mainloop_sm90.cuh
// Shared     dynamic: MainloopSm90::SHARED_BYTES, of 1,024-byte alignment.
// Requires   what the maps do: 16-byte aligned pointers, K, k0, strides and N multiples of 8. bias, rows, residual 4-byte aligned.
//            No activation, no f32 result. Columns of W beside those that x0 lacks up to a multiple of 64 are multiplied by zeros.
// Source     persistent GEMM with roles of warps as in NVIDIA's CUTLASS documentation ("Efficient GEMM in CUDA", Hopper).
#include "mainloop_sm90.cuh"

struct GemmSm90Params {
    TensorMap x0;
    TensorMap x1;
    TensorMap w;
    TensorMap out;
    EpilogueParams finish;
    int m;
    int n;
    int k;
    int k0;
};

// The copies of a step: X of the source that it lies in, and W by `copy_w(to, column of K, column of tiles, bar)`.
template <class Loop, class CopyW>
__device__ __forceinline__ void copy_step(const Loop& loop, const GemmSm90Params& p, int step, int row, int column, u32 to, u32 bar, CopyW copy_w) {
    int first = divided_up(p.k0, Loop::DEPTH), k = (step < first ? step : step - first) * Loop::DEPTH;
    int half = loop.rank * (Loop::BM / 2);
    load_tensor_2d_both(to + half * 128, step < first ? p.x0 : p.x1, k, row * Loop::BM + half, bar);
    copy_w(to + Loop::A_BYTES, step < first ? k : p.k0 + k, column, bar);
}

__device__ __forceinline__ int steps_of(const GemmSm90Params& p, int depth) {
    return divided_up(p.k0, depth) + divided_up(p.k - p.k0, depth);
}

template <class T, int MT, int BN, int GROUPS>
__device__ __forceinline__ void gemm_sm90(const GemmSm90Params& p) {
    extern __shared__ __align__(1024) char memory[];
    using Loop = MainloopSm90<T, MT, BN, GROUPS>;
    Loop loop(memory);
    int turn = 0;
    loop.run(
        TileOrder::of(divided_up(p.m, Loop::BM), divided_up(p.n, BN)), steps_of(p, Loop::DEPTH),
        [&](int step, int row, int column, u32 to, u32 bar) {
            copy_step(loop, p, step, row, column, to, bar,
                      [&](u32 at, int k, int c, u32 b) { load_tensor_2d(at, p.w, k, c * BN, b); });
        },
        [&](const float(&acc)[MT][BN / 2], int row, int column, int first) {
            finish_tile<Loop, T, MT, BN>(
                loop, acc, p.finish, row * Loop::BM + first, p.m, column * BN, p.n, turn, [](int m) { return (i64)m; },
                [&](u32 box, int left, int top) { loop.store_box(p.out, left, top, box); });
        });
}

// Value and gate of an element lie in neighbouring fragments of a thread.
template <class Loop, class T, int MT, int BN>
__device__ __forceinline__ void finish_geglu(Loop& loop, const float (&acc)[MT][BN / 2], const GemmSm90Params& p, int top, int left,
                                             int& turn) {
    const T* bias = (const T*)p.finish.bias;
#pragma unroll
    for (int m = 0; m < MT; m++) {
#pragma unroll
        for (int box = 0; box < BN / 32; box++) {
            u32 pairs[2][2];
#pragma unroll
            for (int j = 0; j < 2; j++) {
                const float *value = &acc[m][(box * 2 + j) * 8], *gate = value + 4;
                int n = left + box * 16 + j * 8 + loop.thread % 4 * 2;
                u32 values = 0, gates = 0;
                if (bias && n < p.n) values = *(const u32*)(bias + n), gates = *(const u32*)(bias + p.n + n);
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    float low = (value[2 * half] + Stored<T>::low(values)) * gelu(gate[2 * half] + Stored<T>::low(gates));
                    float high = (value[2 * half + 1] + Stored<T>::high(values)) * gelu(gate[2 * half + 1] + Stored<T>::high(gates));
                    pairs[j][half] = Stored<T>::pack(clamped<T>(low), clamped<T>(high));
                }
            }
            loop.template send<16>(pairs, turn, [&](u32 at) { loop.store_box(p.out, left + box * 16, top + 64 * m, at); });
        }
    }
}

template <class T, int MT, int BN, int GROUPS>
__device__ __forceinline__ void gemm_geglu_sm90(const GemmSm90Params& p) {
    extern __shared__ __align__(1024) char memory[];
    using Loop = MainloopSm90<T, MT, BN, GROUPS>;
    Loop loop(memory);
    int turn = 0;
    loop.run(
        TileOrder::of(divided_up(p.m, Loop::BM), divided_up(p.n, BN / 2)), steps_of(p, Loop::DEPTH),
        [&](int step, int row, int column, u32 to, u32 bar) {
            copy_step(loop, p, step, row, column, to, bar,
                      [&](u32 at, int k, int c, u32 b) { load_tensor_4d(at, p.w, k, 0, 0, c * (BN / 16), b); });
        },
        [&](const float(&acc)[MT][BN / 2], int row, int column, int first) {
            finish_geglu<Loop, T, MT, BN>(loop, acc, p, row * Loop::BM + first, column * (BN / 2), turn);
        });
}

#define GEMM(KERNEL, MT, BN, GROUPS, NAME, T)                                                              \
    extern "C" __global__ __cluster_dims__(2, 1, 1) __launch_bounds__(384, 1) void NAME(const __grid_constant__ GemmSm90Params p) {  \
        KERNEL<T, MT, BN, GROUPS>(p);                                                                      \
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
