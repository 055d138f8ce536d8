// The tile that attention.cu and decoupled.cu share: 64 MT queries of one head against 64 keys at a time, online softmax.
//
// Four warps; warp w owns the query rows 16 MT w .. 16 MT (w + 1), so softmax needs no other warp. Q stays in registers as
// A fragments of Q K^T. The scores' accumulators are, packed to 16 bits, the A fragments of P V: no trip through memory.
// Shared memory: Q, then two stages of a K and a V tile. Rows hold D values and 8 of padding: D / 8 is even, so the pitch is
// an odd number of 16-byte units and the eight rows of an ldmatrix lie in eight different bank groups.
#pragma once

#include "half.cuh"
#include "math.cuh"
#include "softmax.cuh"
#include "strided_tensor.cuh"

template <class T, int D, int MT>
struct Flash {
    static constexpr int THREADS = 128;
    static constexpr int QUERIES = 64 * MT;
    static constexpr int KEYS = 64;
    static constexpr int PITCH = D + 8;
    static constexpr int TILE = KEYS * PITCH;
    static constexpr int SHARED_BYTES = (QUERIES * PITCH + 4 * TILE) * 2;

    T* shared;
    int lane, warp;
    u32 q[MT][D / 16][4];
    float o[MT][D / 8][4];
    OnlineSoftmax<MT> softmax;

    static __device__ __forceinline__ const T* place(const StridedTensor& rows, int image, int head) {
        return (const T*)rows.data + image * rows.batch + head * rows.head_stride;
    }

    __device__ __forceinline__ Flash(T* shared_memory)
        : shared(shared_memory), lane(threadIdx.x % 32), warp(threadIdx.x / 32) {}

    __device__ __forceinline__ T* key_tile(int stage) const { return shared + QUERIES * PITCH + stage * 2 * TILE; }

    // Starts the copy of rows first .. first + R; rows from `count` and columns from `dim` on become zeros.
    template <int R>
    static __device__ __forceinline__ void copy(T* to, const T* from, i64 row_stride, int first, int count, int dim) {
        constexpr int CHUNKS = D / 8;
        static_assert(R * CHUNKS % THREADS == 0, "every thread copies equally many chunks");
        u32 target = shared_address(to);
#pragma unroll
        for (int i = 0; i < R * CHUNKS / THREADS; i++) {
            int at = threadIdx.x + i * THREADS;
            int row = at / CHUNKS, column = at % CHUNKS * 8;
            bool there = first + row < count && column < dim;
            const T* source = there ? from + (first + row) * row_stride + column : from;
            cp_async_16(target + (row * PITCH + column) * 2, source, there ? 16 : 0);
        }
    }

    __device__ __forceinline__ void copy_queries(const T* from, i64 row_stride, int first, int count, int dim) {
        copy<QUERIES>(shared, from, row_stride, first, count, dim);
    }

    __device__ __forceinline__ void copy_keys_values(
        int stage, const T* k, i64 k_row, const T* v, i64 v_row, int first, int count, int dim) {
        copy<KEYS>(key_tile(stage), k, k_row, first, count, dim);
        copy<KEYS>(key_tile(stage) + TILE, v, v_row, first, count, dim);
    }

    // Q has arrived in shared memory.
    __device__ __forceinline__ void load_queries() {
        // Matrices: rows 0-7 and 8-15 of columns 0-7, then of columns 8-15, which is the order a0..a3.
        u32 row = shared_address(shared + (warp * 16 * MT + lane % 16) * PITCH + lane / 16 * 8);
#pragma unroll
        for (int m = 0; m < MT; m++)
#pragma unroll
            for (int k = 0; k < D / 16; k++) ldmatrix_x4(q[m][k], row + (m * 16 * PITCH + k * 16) * 2);
    }

    __device__ __forceinline__ void begin_branch() {
#pragma unroll
        for (int m = 0; m < MT; m++) {
#pragma unroll
            for (int n = 0; n < D / 8; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) o[m][n][i] = 0.0f;
            softmax.reset(m);
        }
    }

    // One tile of `left` (1 to 64) keys. `scale` is log2(e) / sqrt(dim). Query row r of the block sees the keys up to
    // r + `diagonal` of this tile; without a causal mask `diagonal` is at least KEYS.
    __device__ __forceinline__ void tile(int stage, int left, float scale, int diagonal) {
        float s[MT][KEYS / 8][4];
        const T* keys = key_tile(stage);
        // Matrices: keys 0-7 with columns 0-7 and 8-15 (b0, b1 of the first 8 keys), then keys 8-15.
        u32 key = shared_address(keys + (lane / 16 * 8 + lane % 8) * PITCH + lane / 8 % 2 * 8);
#pragma unroll
        for (int j = 0; j < KEYS / 16; j++) {
#pragma unroll
            for (int m = 0; m < MT; m++)
#pragma unroll
                for (int i = 0; i < 4; i++) s[m][2 * j][i] = s[m][2 * j + 1][i] = 0.0f;
            if (j * 16 < left) {
#pragma unroll
                for (int k = 0; k < D / 16; k++) {
                    u32 b[4];
                    ldmatrix_x4(b, key + (j * 16 * PITCH + k * 16) * 2);
#pragma unroll
                    for (int m = 0; m < MT; m++) {
                        Stored<T>::mma(s[m][2 * j], q[m][k], b[0], b[1]);
                        Stored<T>::mma(s[m][2 * j + 1], q[m][k], b[2], b[3]);
                    }
                }
            }
        }
        int top = warp * 16 * MT + lane / 4;
        if (left < KEYS || warp * 16 * MT + diagonal < KEYS - 1) {
#pragma unroll
            for (int m = 0; m < MT; m++)
#pragma unroll
                for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        int at = n * 8 + lane % 4 * 2 + i % 2, row = top + m * 16 + i / 2 * 8;
                        if (at >= left || at > row + diagonal) s[m][n][i] = -infinity();
                    }
        }
        softmax.update(s, o, scale);
        // Matrices: keys 0-7 and 8-15 of columns 0-7 (b0, b1 of the first 8 columns), then of columns 8-15; transposed.
        u32 value = shared_address(keys + TILE + lane % 16 * PITCH + lane / 16 * 8);
#pragma unroll
        for (int j = 0; j < KEYS / 16; j++) {
            if (j * 16 < left) {
                u32 p[MT][4];
#pragma unroll
                for (int m = 0; m < MT; m++) {
                    p[m][0] = Stored<T>::pack(s[m][2 * j][0], s[m][2 * j][1]);
                    p[m][1] = Stored<T>::pack(s[m][2 * j][2], s[m][2 * j][3]);
                    p[m][2] = Stored<T>::pack(s[m][2 * j + 1][0], s[m][2 * j + 1][1]);
                    p[m][3] = Stored<T>::pack(s[m][2 * j + 1][2], s[m][2 * j + 1][3]);
                }
#pragma unroll
                for (int n = 0; n < D / 16; n++) {
                    u32 b[4];
                    ldmatrix_x4_trans(b, value + (j * 16 * PITCH + n * 16) * 2);
#pragma unroll
                    for (int m = 0; m < MT; m++) {
                        Stored<T>::mma(o[m][2 * n], p[m], b[0], b[1]);
                        Stored<T>::mma(o[m][2 * n + 1], p[m], b[2], b[3]);
                    }
                }
            }
        }
    }

    // Stores `x` to the rows first .. count of `to`; through this warp's own rows of Q, which nothing reads any more.
    __device__ __forceinline__ void store(
        const float (&x)[MT][D / 8][4], T* to, i64 row_stride, int first, int count, int dim) {
        constexpr int CHUNKS = D / 8;
        T* rows = shared + warp * 16 * MT * PITCH;
        __syncwarp();
#pragma unroll
        for (int m = 0; m < MT; m++)
#pragma unroll
            for (int n = 0; n < CHUNKS; n++)
#pragma unroll
                for (int r = 0; r < 2; r++)
                    *(u32*)(rows + (m * 16 + r * 8 + lane / 4) * PITCH + n * 8 + lane % 4 * 2) =
                        Stored<T>::pack(x[m][n][2 * r], x[m][n][2 * r + 1]);
        __syncwarp();
        for (int at = lane; at < 16 * MT * CHUNKS; at += 32) {
            int row = at / CHUNKS, column = at % CHUNKS * 8, token = first + warp * 16 * MT + row;
            if (token < count && column < dim)
                *(Vec8*)(to + token * row_stride + column) = *(const Vec8*)(rows + row * PITCH + column);
        }
    }
};
