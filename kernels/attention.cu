// Attention: out = softmax(Q K^T / sqrt(dim)) V for each image and head; causal on request.
//
// Shapes     Q [B, queries, heads, dim], K and V [B, keys, heads, dim], out as Q; each by base pointer and strides in
//            elements (image, token, head), so that a fused [B, T, 3 C] tensor is read in place.
// Grid       (ceil(queries / QUERIES), heads, B), 128 threads. Blocks are independent; no result depends on B.
// Tiling     QUERIES = 128 (attention_64, attention_80) or 64 (attention_112) by 64 keys; mma m16n8k16; two stages of
//            cp.async, one barrier a tile. Heads narrower than the variant's width are padded with zeros in shared memory.
// Shared     dynamic: (QUERIES + 256) (D + 8) 2 bytes: 55,296 (64), 67,584 (80), 76,800 (112).
// Requires   dim % 8 == 0 and dim <= D; 16-byte aligned pointers; strides that are multiples of 8; 1 <= queries, keys < 2^31.
//            counts is null or holds for each image how many keys count (0: the result is zero), at most `keys`.
// Source     online softmax (Milakov and Gimelshein 2018), tiling as FlashAttention-2 (Dao 2023).
#include "attention.cuh"

struct AttentionParams {
    StridedTensor q;
    StridedTensor k;
    StridedTensor v;
    StridedTensor out;
    const int* counts;
    int queries;
    int keys;
    int dim;
    int causal;
    float scale;  // log2(e) / sqrt(dim)
    int reserved;
};

template <class T, int D, int MT>
__device__ __forceinline__ void attention(const AttentionParams& p) {
    using F = Flash<T, D, MT>;
    extern __shared__ Vec8 memory[];
    F flash((T*)memory);
    int first = blockIdx.x * F::QUERIES, head = blockIdx.y, image = blockIdx.z;
    int count = p.counts ? min(p.counts[image], p.keys) : p.keys;
    // Keys after the block's last query are seen by none.
    int seen = p.causal ? min(count, first + F::QUERIES) : count;
    const T* k = F::place(p.k, image, head);
    const T* v = F::place(p.v, image, head);

    flash.copy_queries(F::place(p.q, image, head), p.q.row, first, p.queries, p.dim);
    cp_async_commit_group();
    flash.copy_keys_values(0, k, p.k.row, v, p.v.row, 0, count, p.dim);
    cp_async_commit_group();
    cp_async_wait_group<1>();
    __syncthreads();
    flash.load_queries();
    flash.begin_branch();
    for (int from = 0, stage = 0; from < seen; from += F::KEYS, stage ^= 1) {
        cp_async_wait_group<0>();
        // The tile has arrived for all, and all are done with the one before, whose place the next copy takes.
        __syncthreads();
        if (from + F::KEYS < seen) {
            flash.copy_keys_values(stage ^ 1, k, p.k.row, v, p.v.row, from + F::KEYS, count, p.dim);
            cp_async_commit_group();
        }
        flash.tile(stage, min(count - from, F::KEYS), p.scale, p.causal ? first - from : F::KEYS);
    }
    cp_async_wait_group<0>();
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float total = flash.softmax.row_sum(m, r), factor = total > 0.0f ? 1.0f / total : 0.0f;
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
                flash.o[m][n][2 * r] *= factor;
                flash.o[m][n][2 * r + 1] *= factor;
            }
        }
    flash.store(flash.o, (T*)F::place(p.out, image, head), p.out.row, first, p.queries, p.dim);
}

#define ATTENTION(D, MT, NAME, T)                                                                 \
    extern "C" __global__ __launch_bounds__(128) void NAME(const __grid_constant__ AttentionParams p) { \
        after_last_launch();                                                                      \
        attention<T, D, MT>(p);                                                                   \
    }

ATTENTION(64, 2, attention_64_f16, f16)
ATTENTION(64, 2, attention_64_bf16, bf16)
ATTENTION(80, 2, attention_80_f16, f16)
ATTENTION(80, 2, attention_80_bf16, bf16)
ATTENTION(112, 1, attention_112_f16, f16)
ATTENTION(112, 1, attention_112_bf16, bf16)
