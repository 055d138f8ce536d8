// Parameters, copies and ways out of the products that gemm_sm90.cu and gemm_fp8_sm90.cu share. `scale(loop, sums, top, left)` brings a
// group's sums, from that row and that column of the result on, to what the products add up to.
#pragma once

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
    // Of e4m3: the factors of X's rows [M] and of W's.
    const float* x_scales;
    const float* w_scales;
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

template <class Loop, class T, int MT, int BN, class Scale>
__device__ __forceinline__ void gemm_sm90(const GemmSm90Params& p, Scale scale) {
    extern __shared__ __align__(1024) char memory[];
    Loop loop(memory);
    int turn = 0;
    loop.template run<24>(
        TileOrder::of(divided_up(p.m, Loop::BM), divided_up(p.n, BN)), steps_of(p, Loop::DEPTH),
        [&](int step, int row, int column, u32 to, u32 bar) {
            copy_step(loop, p, step, row, column, to, bar,
                      [&](u32 at, int k, int c, u32 b) { load_tensor_2d(at, p.w, k, c * BN, b); });
        },
        Unscaled{},
        [&](float(&acc)[MT][BN / 2], int row, int column, int first) {
            scale(loop, acc, row * Loop::BM + first, column * BN);
            finish_tile<false, Loop, T, MT, BN>(
                loop, acc, p.finish, row * Loop::BM + first, p.m, column * BN, p.n, turn, [](int m) { return (i64)m; },
                [&](u32 box, int left, int top) { loop.store_box(p.out, left, top, box); }, [](int m) { return m / RUN; });
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

template <class Loop, class T, int MT, int BN, class Scale>
__device__ __forceinline__ void gemm_geglu_sm90(const GemmSm90Params& p, Scale scale) {
    extern __shared__ __align__(1024) char memory[];
    Loop loop(memory);
    int turn = 0;
    loop.template run<24>(
        TileOrder::of(divided_up(p.m, Loop::BM), divided_up(p.n, BN / 2)), steps_of(p, Loop::DEPTH),
        [&](int step, int row, int column, u32 to, u32 bar) {
            copy_step(loop, p, step, row, column, to, bar,
                      [&](u32 at, int k, int c, u32 b) { load_tensor_4d(at, p.w, k, 0, 0, c * (BN / 16), b); });
        },
        Unscaled{},
        [&](float(&acc)[MT][BN / 2], int row, int column, int first) {
            scale(loop, acc, row * Loop::BM + first, column * (BN / 2));
            finish_geglu<Loop, T, MT, BN>(loop, acc, p, row * Loop::BM + first, column * (BN / 2), turn);
        });
}
