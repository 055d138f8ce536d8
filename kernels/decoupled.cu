// Decoupled cross-attention in one launch: out = sum over branches s of w_s softmax(Q K_s^T / sqrt(dim)) V_s, each branch with
// a softmax of its own. Branch 0 is the text (weight 1), the others are image branches.
//
// Shapes     Q [B, queries, heads, dim], branch s: K and V [B, capacity_s, heads, dim], out as Q; by base pointer and strides.
//            counts [branches, B]: keys that count, device values, at most the capacity. scales [branches - 1, B]: weights of
//            the image branches, device values. mask of a branch: null or [B, queries] by its image stride, f32: a factor a
//            query row, for regional prompts.
//            So w_s = scales[s - 1, image] * mask_s[image, row]; a weight in `scales` of 0, or a count of 0, jumps around
//            the whole branch: its K and V are not read and may be unwritten.
// Grid       (ceil(queries / 64), heads, B), 128 threads.
// Tiling     64 queries, loaded once and kept in registers, by 64 keys; the tiles of all active branches form one sequence, so
//            that the first tile of a branch is on its way while the last one of the branch before is worked on. Of a tile
//            with few keys (4 image tokens, the 13 last of 77) only the needed groups of 16 keys are multiplied.
// Shared     dynamic: (64 + 256) (D + 8) 2 bytes: 46,080 (64), 56,320 (80), 76,800 (112).
// Requires   dim % 8 == 0 and dim <= D; 16-byte aligned pointers; strides that are multiples of 8; 1 <= branches <= 17.
// Source     IP-Adapter's decoupled cross-attention (Ye et al. 2023); attention.cuh for the softmax.
#include "attention.cuh"
#include "branches.cuh"

template <class T, int D>
__device__ __forceinline__ void decoupled(const DecoupledParams& p) {
    using F = Flash<T, D, 1>;
    extern __shared__ Vec8 memory[];
    F flash((T*)memory);
    int first = blockIdx.x * F::QUERIES, head = blockIdx.y, image = blockIdx.z;
    auto copy = [&](int stage, int s, int from, int count) {
        const KvBranch& branch = p.branch[s];
        const T *k = F::place(branch.k, image, head), *v = F::place(branch.v, image, head);
        flash.copy_keys_values(stage, k, branch.k.row, v, branch.v.row, from, count, p.dim);
        cp_async_commit_group();
    };
    float total[1][D / 8][4];
#pragma unroll
    for (int n = 0; n < D / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) total[0][n][i] = 0.0f;

    flash.copy_queries(F::place(p.q, image, head), p.q.row, first, p.queries, p.dim);
    cp_async_commit_group();
    int s = active(p, 0, image), from = 0, stage = 0;
    int count = s < p.branches ? count_of(p, s, image) : 0;
    if (s < p.branches) copy(0, s, 0, count);
    cp_async_wait_group<0>();
    __syncthreads();
    flash.load_queries();
    flash.begin_branch();
    while (s < p.branches) {
        // The next tile: of this branch, or the first of the next active one.
        bool last = from + F::KEYS >= count;
        int next = last ? active(p, s + 1, image) : s;
        int next_from = last ? 0 : from + F::KEYS, next_count = count;
        if (last && next < p.branches) next_count = count_of(p, next, image);
        cp_async_wait_group<0>();
        // The tile has arrived for all, and all are done with the one before, whose place the next copy takes.
        __syncthreads();
        if (next < p.branches) copy(stage ^ 1, next, next_from, next_count);
        flash.tile(stage, min(count - from, F::KEYS), p.scale, F::KEYS);
        if (last) {
            float weight = weight_of(p, s, image);
            const float* mask = p.branch[s].mask;
#pragma unroll
            for (int r = 0; r < 2; r++) {
                int token = first + flash.warp * 16 + r * 8 + flash.lane / 4;
                float factor = weight / flash.softmax.row_sum(0, r);
                if (mask && token < p.queries) factor *= mask[image * p.branch[s].mask_batch + token];
#pragma unroll
                for (int n = 0; n < D / 8; n++) {
                    total[0][n][2 * r] += factor * flash.o[0][n][2 * r];
                    total[0][n][2 * r + 1] += factor * flash.o[0][n][2 * r + 1];
                }
            }
            flash.begin_branch();
        }
        s = next, from = next_from, count = next_count, stage ^= 1;
    }
    flash.store(total, (T*)F::place(p.out, image, head), p.out.row, first, p.queries, p.dim);
}

#define DECOUPLED(D, NAME, T)                                                                           \
    extern "C" __global__ __launch_bounds__(128) void NAME(const __grid_constant__ DecoupledParams p) { \
        after_last_launch();                                                                            \
        decoupled<T, D>(p);                                                                             \
    }

DECOUPLED(64, decoupled_64_f16, f16)
DECOUPLED(64, decoupled_64_bf16, bf16)
DECOUPLED(80, decoupled_80_f16, f16)
DECOUPLED(80, decoupled_80_bf16, bf16)
DECOUPLED(112, decoupled_112_f16, f16)
DECOUPLED(112, decoupled_112_bf16, bf16)
