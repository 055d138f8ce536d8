// What attention_sm90.cu and decoupled_sm90.cu share: 64 queries of a group of four warps against N keys, heads of 64 values.
//
// Queries, keys and values are rows of 128 bytes, swizzled over them, in shared memory. Scores stay in the registers: as exponentials,
// packed to 16 bits, the accumulators of Q K^T are the first operand of the product with V.
#pragma once

#include "half.cuh"
#include "ring_sm90.cuh"
#include "softmax.cuh"

template <class T, int N>
struct Scores;
#define SCORES_OF(T, N)                                                                             \
    template <>                                                                                     \
    struct Scores<T, N> {                                                                           \
        static __device__ __forceinline__ void multiply(float(&s)[N / 2], u64 q, u64 k, int add) {  \
            wgmma_m64n##N##k16_f32_##T(s, q, k, add);                                               \
        }                                                                                           \
    };
SCORES_OF(f16, 16)
SCORES_OF(bf16, 16)
SCORES_OF(f16, 80)
SCORES_OF(bf16, 80)
SCORES_OF(f16, 88)
SCORES_OF(bf16, 88)
SCORES_OF(f16, 96)
SCORES_OF(bf16, 96)
SCORES_OF(f16, 128)
SCORES_OF(bf16, 128)

__device__ __forceinline__ void weigh_values(f16, float (&o)[32], const u32 (&p)[4], u64 v, int add) {
    wgmma_ra_m64n64k16_f32_f16(o, p, v, add);
}
__device__ __forceinline__ void weigh_values(bf16, float (&o)[32], const u32 (&p)[4], u64 v, int add) {
    wgmma_ra_m64n64k16_f32_bf16(o, p, v, add);
}

// The first group of warps copies, with COPYING registers a thread; two others compute and share the rest of 168 each.
template <int COPYING, class Kernel>
__device__ __forceinline__ void run_roles(Kernel& kernel) {
    if (kernel.role == 0) {
        setmaxnreg_dec<COPYING>();
        kernel.produce();
    } else {
        setmaxnreg_inc<(3 * 168 - COPYING) / 2>();
        kernel.consume();
    }
}

// Tells the warps that copy that this one is done with a stage.
__device__ __forceinline__ void release(u32 bar) {
    if (threadIdx.x % 32 == 0) mbarrier_arrive(bar);
}

__device__ __forceinline__ void clear(float (&o)[1][8][4]) {
#pragma unroll
    for (int n = 0; n < 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) o[0][n][i] = 0.0f;
}

// Begins s = Q K^T of N = 8 TILES keys as a group of products.
template <class T, int TILES>
__device__ __forceinline__ void multiply_keys(float (&s)[1][TILES][4], u32 q, u32 k) {
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < 4; i++)
        Scores<T, 8 * TILES>::multiply((float(&)[4 * TILES])s, wgmma_descriptor(q + i * 32), wgmma_descriptor(k + i * 32), i > 0);
    wgmma_commit_group();
}

// Begins o = P V of 16 STEPS keys, or o + P V where `add` is set, as a group of products.
template <class T, int STEPS>
__device__ __forceinline__ void multiply_values(float (&o)[1][8][4], const u32 (&pairs)[STEPS][4], u32 v, int add) {
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < STEPS; i++)
        weigh_values(T{}, (float(&)[32])o, pairs[i], wgmma_descriptor(v + i * 16 * 128), add + i > 0);
    wgmma_commit_group();
}

// Scores of keys from `left` on, which are not there.
template <int TILES>
__device__ __forceinline__ void mask_keys(float (&s)[1][TILES][4], int left, int thread) {
    if (left >= 8 * TILES) return;
#pragma unroll
    for (int n = 0; n < TILES; n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (n * 8 + thread % 4 * 2 + i % 2 >= left) s[0][n][i] = -infinity();
}

// Pairs of an odd number of tiles end with a half of zeros.
template <class T, int TILES, int STEPS>
__device__ __forceinline__ void pack_scores(const float (&s)[1][TILES][4], u32 (&pairs)[STEPS][4]) {
    static_assert(STEPS == (TILES + 1) / 2, "16 keys a step");
#pragma unroll
    for (int i = 0; i < STEPS; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
            int tile = 2 * i + j / 2;
            pairs[i][j] = tile < TILES ? Stored<T>::pack(s[0][tile][j % 2 * 2], s[0][tile][j % 2 * 2 + 1]) : 0;
        }
}

// Sends a group's result on its way to the queries from `first` on, through `box`, which its last one has been read from then.
template <class T>
__device__ __forceinline__ void store_head(const float (&o)[1][8][4], const TensorMap& out, u32 box, int first, int head, int image,
                                           int group, int thread) {
    int lane = thread % 32, warp = thread / 32;
    if (thread == 0) bulk_wait_group_read<0>();
    bar_sync<128>(group);
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
        for (int n = 0; n < 8; n += 4) {
            int row = warp * 16 + half * 8 + lane % 8;
            u32 x[4];
#pragma unroll
            for (int j = 0; j < 4; j++) x[j] = Stored<T>::pack(o[0][n + j][2 * half], o[0][n + j][2 * half + 1]);
            stmatrix_x4(box + row * 128 + ((n + lane / 8) ^ row % 8) * 16, x);
        }
    fence_proxy_async();
    bar_sync<128>(group);
    if (thread == 0) {
        store_tensor_4d(out, 0, first, head, image, box);
        bulk_commit_group();
    }
}
