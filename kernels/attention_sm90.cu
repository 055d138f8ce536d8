// Attention with heads of 64 values on sm_90a: out = softmax(Q K^T / sqrt(64)) V for each image and head.
//
// Shapes     Q [B, queries, heads, 64], K and V [B, keys, heads, 64], out as Q.
// Maps       of f16 or bf16, dimensions 64, tokens, heads, B with any strides, rows of 128 bytes swizzled: q in tiles of 128 tokens, k and v
//            of 128, out of 64.
// Grid       min(tiles, multiprocessors), 384 threads; a tile is 128 queries of a head. Tiles are independent; no result depends on B.
// Tiling     a warp copies Q, then K and V by 128 keys into rings of STAGES; two groups of 128 threads have 64 queries each. Scores of the
//            next keys are multiplied while this group's softmax of the last ones is computed, and the groups issue their products in
//            turn, so that one's softmax lies under the other's products. Scores never leave the registers: as exponentials they
//            are the first operand of the product with V.
// Shared     dynamic: AttentionSm90::SHARED_BYTES, of 1,024-byte alignment.
// Requires   what the maps do: 16-byte aligned pointers, strides that are multiples of 8; 1 <= queries, keys < 2^31. All keys count.
// Source     online softmax (Milakov and Gimelshein 2018), roles and order of products as FlashAttention-3 (Shah et al. 2024).
#include "attention_sm90.cuh"

struct AttentionSm90Params {
    TensorMap q;
    TensorMap k;
    TensorMap v;
    TensorMap out;
    int queries;
    int keys;
    int heads;
    int batch;
    float scale;  // log2(e) / sqrt(64)
};

template <class T>
struct AttentionSm90 {
    static constexpr int QUERIES = 128, KEYS = 128, STAGES = 4, TILE_BYTES = 128 * 128, GROUP_BYTES = TILE_BYTES / 2;
    static constexpr int SHARED_BYTES = (2 + 2 * STAGES) * TILE_BYTES + 8 * (2 + 4 * STAGES);

    const AttentionSm90Params& p;
    u32 q, out, k, v, barriers;
    int role, thread, tiles_of_head;

    __device__ __forceinline__ AttentionSm90(const AttentionSm90Params& params, const void* memory)
        : p(params), q(shared_address(memory)), out(q + TILE_BYTES), k(out + TILE_BYTES), v(k + STAGES * TILE_BYTES),
          barriers(v + STAGES * TILE_BYTES), role(threadIdx.x / 128), thread(threadIdx.x % 128),
          tiles_of_head(divided_up(params.queries, QUERIES)) {
        if (threadIdx.x == 0) {
            mbarrier_init(q_full(), 1);
            mbarrier_init(q_empty(), 8);
            for (int i = 0; i < 2 * STAGES; i++) {
                mbarrier_init(full(0, i), 1);
                mbarrier_init(empty(0, i), 8);
            }
            fence_mbarrier_init();
        }
        __syncthreads();
        after_last_launch();
    }

    __device__ __forceinline__ u32 q_full() const { return barriers; }
    __device__ __forceinline__ u32 q_empty() const { return barriers + 8; }
    // Of K (0) or V (1).
    __device__ __forceinline__ u32 full(int values, int stage) const { return barriers + 16 + 8 * (values * STAGES + stage); }
    __device__ __forceinline__ u32 empty(int values, int stage) const { return full(2 + values, stage); }

    __device__ __forceinline__ int tiles() const { return tiles_of_head * p.heads * p.batch; }
    __device__ __forceinline__ int steps() const { return divided_up(p.keys, KEYS); }

    __device__ __forceinline__ void place(int tile, int& query, int& head, int& image) const {
        int of_image = tile / tiles_of_head;
        query = (tile - of_image * tiles_of_head) * QUERIES;
        image = of_image / p.heads;
        head = of_image - image * p.heads;
    }

    __device__ __forceinline__ void copy(int values, int step, RingPlace& ring, int head, int image) {
        mbarrier_wait(empty(values, ring.stage), ring.parity ^ 1);
        mbarrier_arrive_expect_tx(full(values, ring.stage), TILE_BYTES);
        load_tensor_4d((values ? v : k) + ring.stage * TILE_BYTES, values ? p.v : p.k, 0, step * KEYS, head, image,
                       full(values, ring.stage));
        ring.advance(STAGES);
    }

    __device__ __forceinline__ void produce() {
        if (thread != 0) return;
        RingPlace keys, values;
        int parity = 1, count = steps();
#pragma unroll 1
        for (int tile = blockIdx.x; tile < tiles(); tile += gridDim.x, parity ^= 1) {
            int query, head, image;
            place(tile, query, head, image);
            mbarrier_wait(q_empty(), parity);
            mbarrier_arrive_expect_tx(q_full(), TILE_BYTES);
            load_tensor_4d(q, p.q, 0, query, head, image, q_full());
            // In the order in which they are multiplied.
            copy(0, 0, keys, head, image);
#pragma unroll 1
            for (int step = 1; step <= count; step++) {
                if (step < count) copy(0, step, keys, head, image);
                copy(1, step - 1, values, head, image);
            }
        }
    }

    __device__ __forceinline__ void consume() {
        RingPlace keys, values;
        int parity = 0, count = steps();
        u32 rows = q + (role - 1) * GROUP_BYTES;
        // The first group begins.
        if (role == 2) bar_arrive<256>(3);
#pragma unroll 1
        for (int tile = blockIdx.x; tile < tiles(); tile += gridDim.x, parity ^= 1) {
            int query, head, image;
            place(tile, query, head, image);
            float s[1][KEYS / 8][4], o[1][8][4], decays[1][2];
            u32 pairs[KEYS / 16][4];
            OnlineSoftmax<1> softmax;
            clear(o);
            mbarrier_wait(q_full(), parity);
            mbarrier_wait(full(0, keys.stage), keys.parity);
            multiply_keys<T>(s, rows, k + keys.stage * TILE_BYTES);
            wgmma_wait_group<0>();
            release(empty(0, keys.stage));
            keys.advance(STAGES);
            mask_keys(s, p.keys, thread);
            softmax.first_exponentials(s, p.scale);
            pack_scores<T>(s, pairs);
#pragma unroll 1
            for (int step = 1; step < count; step++) {
                mbarrier_wait(full(0, keys.stage), keys.parity);
                bar_sync<256>(2 + role);
                multiply_keys<T>(s, rows, k + keys.stage * TILE_BYTES);
                mbarrier_wait(full(1, values.stage), values.parity);
                multiply_values<T>(o, pairs, v + values.stage * TILE_BYTES, 1);
                bar_arrive<256>(5 - role);
                wgmma_wait_group<1>();
                release(empty(0, keys.stage));
                keys.advance(STAGES);
                mask_keys(s, p.keys - step * KEYS, thread);
                // The assembler would move the exponentials behind the wait, where nothing is multiplied meanwhile. So the wait comes
                // after a branch that depends on all of them: no sum is negative.
                bool moved = softmax.exponentials(s, p.scale, decays);
                if (__any_sync(0xffffffffu, moved || softmax.sum[0][0] < 0.0f || softmax.sum[0][1] < 0.0f)) {
                    wgmma_wait_group<0>();
                    softmax.shrink(o, decays);
                } else {
                    wgmma_wait_group<0>();
                }
                release(empty(1, values.stage));
                values.advance(STAGES);
                pack_scores<T>(s, pairs);
            }
            release(q_empty());
            mbarrier_wait(full(1, values.stage), values.parity);
            multiply_values<T>(o, pairs, v + values.stage * TILE_BYTES, 1);
            wgmma_wait_group<0>();
            release(empty(1, values.stage));
            values.advance(STAGES);
            float factors[1][2] = {{1.0f / softmax.row_sum(0, 0), 1.0f / softmax.row_sum(0, 1)}};
            softmax.shrink(o, factors);
            store_head<T>(o, p.out, out + (role - 1) * GROUP_BYTES, query + (role - 1) * 64, head, image, role, thread);
        }
        if (thread == 0) bulk_wait_group_read<0>();
    }
};

#define ATTENTION(NAME, T)                                                                                      \
    extern "C" __global__ __launch_bounds__(384, 1) void NAME(const __grid_constant__ AttentionSm90Params p) {  \
        extern __shared__ __align__(1024) char memory[];                                                        \
        AttentionSm90<T> kernel(p, memory);                                                                     \
        run_roles<24>(kernel);                                                                                  \
    }

ATTENTION(attention_sm90_64_f16, f16)
ATTENTION(attention_sm90_64_bf16, bf16)
