// The main loop that gemm.cu and convolution.cu share on sm_80 and up: a tile of BM rows by BN columns of X W^T.
//
// Four warps, two by two, each with BM/2 x BN/2 accumulators; a tile of 256 rows has eight, four by two, with 64 x BN/2. K goes by
// in steps of 64 bytes (32 values, 16 of f32) through STAGES stages of shared memory (cp.async), one barrier a step; swizzle.cuh
// places the units of a stage.
// f16 and bf16 are multiplied by tensor cores, f32 by fma, exactly: see Fragments. Each element is one chain of m16n8k16, or of
// fma, in order of K whatever the tile, so the choice of tile never changes a result.
// At the end the accumulators pass through the same memory as f32, in two halves where it would not hold them all: the result is
// an epilogue.cuh ResultTile, which is all that its epilogue knows of the loop. GEGLU's takes them from the registers (gemm.cu).
#pragma once

#include "epilogue.cuh"
#include "half.cuh"
#include "swizzle.cuh"

// Values of a 16-byte unit, and of a step of K.
template <class T>
constexpr int UNIT = 16 / sizeof(T);
template <class T>
constexpr int STEP = 4 * UNIT<T>;

// Threads of a block, and rows of a stage that they copy at a time, each thread one unit.
template <int BM>
constexpr int THREADS = BM == 256 ? 256 : 128;
template <int BM>
constexpr int COPIED = THREADS<BM> / 4;

// A warp's accumulators, and where they belong in the tile. On tensor cores: fragments of m16n8k16.
template <class T, int BM, int BN>
struct Fragments {
    static constexpr int ROWS = BM / (THREADS<BM> / 64), MT = ROWS / 16, NT = BN / 16;

    int lane, row_warp, column_warp;
    float acc[MT][NT][4];

    __device__ __forceinline__ Fragments()
        : lane(threadIdx.x % 32), row_warp(threadIdx.x / 64), column_warp(threadIdx.x / 32 % 2) {
#pragma unroll
        for (int m = 0; m < MT; m++)
#pragma unroll
            for (int n = 0; n < NT; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) acc[m][n][i] = 0.0f;
    }

    // One step of K, whose stage holds BM rows of X, then BN of W.
    __device__ __forceinline__ void multiply(const char* stage) {
        u32 base = shared_address(stage);
        // A: rows 0-7 and 8-15 of the first 8 columns, then of the next 8: a0..a3.
        int a_row = row_warp * ROWS + lane % 16;
        // B: columns' rows 0-7 with the first and the next 8 values of K (b0, b1), then rows 8-15.
        int b_row = column_warp * (BN / 2) + lane / 16 * 8 + lane % 8;
#pragma unroll
        for (int k = 0; k < STEP<T> / 16; k++) {
            u32 a_from = base + a_row * 64 + stage_unit(a_row, k * 2 + lane / 16) * 16;
            u32 b_from = base + BM * 64 + b_row * 64 + stage_unit(b_row, k * 2 + lane / 8 % 2) * 16;
            u32 a[MT][4];
#pragma unroll
            for (int m = 0; m < MT; m++) ldmatrix_x4(a[m], a_from + m * 16 * 64);
#pragma unroll
            for (int n = 0; n < NT / 2; n++) {
                u32 b[4];
                ldmatrix_x4(b, b_from + n * 16 * 64);
#pragma unroll
                for (int m = 0; m < MT; m++) {
                    Stored<T>::mma(acc[m][2 * n], a[m], b[0], b[1]);
                    Stored<T>::mma(acc[m][2 * n + 1], a[m], b[2], b[3]);
                }
            }
        }
    }

    // Writes the values of the rows from `top`, of `rows`, to their places, which `at` gives by row from there and unit of 8
    // columns. A warp's rows are all there, or none.
    template <class At>
    __device__ __forceinline__ void put(int top, int rows, At at) const {
        int first = row_warp * ROWS - top;
        if (rows < BM && (u32)first >= (u32)rows) return;
#pragma unroll
        for (int m = 0; m < MT; m++)
#pragma unroll
            for (int n = 0; n < NT; n++)
#pragma unroll
                for (int r = 0; r < 2; r++) {
                    int row = first + m * 16 + r * 8 + lane / 4;
                    float* to = at(row, column_warp * (BN / 16) + n) + lane % 4 * 2;
                    *(float2*)to = make_float2(acc[m][n][2 * r], acc[m][n][2 * r + 1]);
                }
    }
};

// By fma: a warp's lanes are 8 rows by 4 columns, and a lane has every 8th row and every 4th column of the warp's part. So eight
// lanes in a row read a unit of eight rows, which lie in eight bank groups, or the same unit; a unit of a row serves 4 * NT fma.
template <int BM, int BN>
struct Fragments<float, BM, BN> {
    static constexpr int MT = BM / 16, NT = BN / 8;

    int row, column;
    float acc[MT][NT];

    __device__ __forceinline__ Fragments()
        : row(threadIdx.x / 64 * (BM / 2) + threadIdx.x % 8),
          column(threadIdx.x / 32 % 2 * (BN / 2) + threadIdx.x / 8 % 4) {
#pragma unroll
        for (int m = 0; m < MT; m++)
#pragma unroll
            for (int n = 0; n < NT; n++) acc[m][n] = 0.0f;
    }

    __device__ __forceinline__ void multiply(const char* stage) {
#pragma unroll 1
        for (int k = 0; k < 4; k++) {
            float4 b[NT];
#pragma unroll
            for (int n = 0; n < NT; n++) {
                int from = column + 4 * n;
                b[n] = *(const float4*)(stage + (BM + from) * 64 + stage_unit(from, k) * 16);
            }
#pragma unroll
            for (int m = 0; m < MT; m++) {
                float4 a = *(const float4*)(stage + (row + 8 * m) * 64 + stage_unit(row, k) * 16);
#pragma unroll
                for (int n = 0; n < NT; n++) {
                    float sum = fmaf(a.y, b[n].y, fmaf(a.x, b[n].x, acc[m][n]));
                    acc[m][n] = fmaf(a.w, b[n].w, fmaf(a.z, b[n].z, sum));
                }
            }
        }
    }

    template <class At>
    __device__ __forceinline__ void put(int, int, At at) const {
#pragma unroll
        for (int m = 0; m < MT; m++)
#pragma unroll
            for (int n = 0; n < NT; n++) {
                int to = column + 4 * n;
                at(row + 8 * m, to / 8)[to % 8] = acc[m][n];
            }
    }
};

template <class T, int BM, int BN>
struct Mainloop {
    static constexpr int STAGES = 4;
    static constexpr int A_BYTES = BM * 64;
    static constexpr int STAGE_BYTES = (BM + BN) * 64;
    static constexpr int SHARED_BYTES = STAGES * STAGE_BYTES;
    // Rows of the result that pass through the stages' memory at a time.
    static constexpr int PASSED = BM * BN * 4 <= SHARED_BYTES ? BM : BM / 2;
    using Result = ResultTile<PASSED, BN>;
    static_assert(PASSED * BN * 4 <= SHARED_BYTES, "the result passes through the stages' memory");

    char* shared;
    Fragments<T, BM, BN> fragments;

    __device__ __forceinline__ Mainloop(void* memory) : shared((char*)memory) {}

    // Copies one step. `x` and `w` give the address of this thread's unit in the i-th row (threadIdx.x / 4 + COPIED i) and
    // whether it is there, and are then moved on by a step.
    template <class X, class W>
    __device__ __forceinline__ void copy(int stage, X& x, W& w) {
        // stage_unit written out: as a call it makes NVRTC keep one more address in registers.
        int row = threadIdx.x / 4, unit = threadIdx.x % 4 ^ (row / 2 % 4);
        u32 to = shared_address(shared + stage * STAGE_BYTES + row * 64 + unit * 16);
#pragma unroll
        for (int i = 0; i < BM / COPIED<BM>; i++) {
            const T* from;
            bool there = x.unit(i, from);
            cp_async_16(to + i * COPIED<BM> * 64, from, there ? 16 : 0);
        }
#pragma unroll
        for (int i = 0; i < BN / COPIED<BM>; i++) {
            const T* from;
            bool there = w.unit(i, from);
            cp_async_16(to + A_BYTES + i * COPIED<BM> * 64, from, there ? 16 : 0);
        }
        x.advance();
        w.advance();
    }

    // Multiplies. Other warps may still read the stages at its end.
    template <class X, class W>
    __device__ __forceinline__ void multiply(int k, X& x, W& w) {
        int steps = (k + STEP<T> - 1) / STEP<T>;
#pragma unroll
        for (int s = 0; s < STAGES - 1; s++) {
            if (s < steps) copy(s, x, w);
            cp_async_commit_group();
        }
        int stage = 0, into = STAGES - 1;
        // Assemblers for sm_100 would unroll short bodies, which only costs instruction cache.
#pragma unroll 1
        for (int step = 0; step < steps; step++) {
            cp_async_wait_group<STAGES - 2>();
            // The step has arrived for all, and all are done with the one before, whose place the next copy takes.
            __syncthreads();
            if (step + STAGES - 1 < steps) copy(into, x, w);
            cp_async_commit_group();
            fragments.multiply(shared + stage * STAGE_BYTES);
            into = stage;
            stage = stage + 1 == STAGES ? 0 : stage + 1;
        }
    }

    // Multiplies, and calls `finish` with the result, complete for all threads, in shared memory, and its first row in the tile.
    template <class X, class W, class Finish>
    __device__ __forceinline__ void run(int k, X& x, W& w, Finish finish) {
        multiply(k, x, w);
        Result tile{(float*)shared};
#pragma unroll 1
        for (int top = 0; top < BM; top += PASSED) {
            // All are done with the stages, or with the rows before, in whose place the result goes now; the last step's wait left
            // only empty groups.
            __syncthreads();
            fragments.put(top, PASSED, [&](int row, int unit) { return tile.at(row, unit); });
            __syncthreads();
            finish(tile, top);
        }
    }
};

// Rows of W [N, K] as the second operand.
template <class T>
struct Weights {
    const T* at;
    i64 step;  // elements from one of this thread's rows to the next
    int k, end, row, row_step, rows;

    // This thread's rows are row, row + row_step, ..; those from `rows` on are not there.
    __device__ __forceinline__ Weights(const T* w, int row, int row_step, int rows, int width, i64 stride)
        : step((i64)row_step * stride), k(threadIdx.x % 4 * UNIT<T>), end(width), row(row), row_step(row_step), rows(rows) {
        at = w + row * stride + k;
    }

    __device__ __forceinline__ bool unit(int i, const T*& from) const {
        from = at + i * step;
        return k < end && row + i * row_step < rows;
    }

    __device__ __forceinline__ void advance() { at += STEP<T>, k += STEP<T>; }
};
