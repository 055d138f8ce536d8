// Product of a matrix with a transposed one and what follows it:
//   gemm        Y = activation(X W^T + bias + rows) + residual
//   gemm_geglu  Y = (X V^T + v) * gelu(X G^T + g) where W [2 N, K] holds the rows V, then G, and bias the values v, then g
//
// Shapes     X [M, K], in one or in two sources whose columns are joined (x0 has the first k0 columns); W [N, K] as PyTorch
//            stores Linear; rows [M / rows_of_image, N]; Y and residual [M, N]. Row strides in elements.
// Grid       (ceil(M / BM), ceil(N / BN)), 128 threads, 256 where BM = 256; gemm_geglu: (ceil(M / BM), ceil(N / (BN / 2))).
// Tiling     BM x BN = 256x128, 128x128, 128x64, 64x64 (f32: the last two); K by 64 bytes; see mainloop.cuh, epilogue.cuh. A tile
//            of gemm_geglu alternates 8 rows of V with 8 of G, so that a block holds both factors, and W is read as it is published.
// Shared     dynamic: 4 (BM + BN) 64 bytes: 98,304, 65,536, 49,152, 32,768.
// Requires   K, k0, and the strides of x0, x1, w multiples of 8; 16-byte aligned pointers; M, N < 2^31. N is any number
//            (columns are stored one by one where N or a stride is not a multiple of 8); gemm_geglu: N % 8 == 0.
//            gemm_geglu clamps its result to the finite range of the type: SDXL's can pass that of f16.
// Source     multi-stage GEMM on mma.sync as in NVIDIA's CUTLASS documentation ("Efficient GEMM in CUDA").
#include "mainloop.cuh"

struct GemmParams {
    const void* x0;
    const void* x1;
    const void* w;
    i64 x0_stride;
    i64 x1_stride;
    i64 w_stride;
    EpilogueParams finish;
    int m;
    int n;
    int k;
    int k0;
};

// Rows of X, of one source, then of the other; a thread's lie COPY apart.
template <class T, int COPY>
struct Matrix {
    const T *at, *x1;
    i64 step, stride1;  // elements from one of this thread's rows to the next, from row to row of x1
    int row, rows, k, k0, end;

    __device__ __forceinline__ Matrix(const GemmParams& p, int top)
        : at((const T*)p.x0), x1((const T*)p.x1), step(COPY * p.x0_stride), stride1(p.x1_stride), row(top + threadIdx.x / 4),
          rows(p.m), k(threadIdx.x % 4 * UNIT<T>), k0(p.k0), end(p.k) {
        at += row * p.x0_stride + k;
        if (k >= k0) enter_second();
    }

    __device__ __forceinline__ void enter_second() {
        at = x1 + row * stride1 + (k - k0);
        step = COPY * stride1;
    }

    __device__ __forceinline__ bool unit(int i, const T*& from) const {
        from = at + i * step;
        return k < end && row + COPY * i < rows;
    }

    __device__ __forceinline__ void advance() {
        at += STEP<T>, k += STEP<T>;
        // Once: this thread's unit has just left the first source.
        if (k >= k0 && k < k0 + STEP<T>) enter_second();
    }
};

template <class T, int BM, int BN>
__device__ __forceinline__ void gemm(const GemmParams& p) {
    extern __shared__ Vec8 memory[];
    using Loop = Mainloop<T, BM, BN>;
    Loop loop(memory);
    int top = blockIdx.x * BM, left = blockIdx.y * BN;
    Matrix<T, COPIED<BM>> x(p, top);
    Weights<T> w((const T*)p.w, left + threadIdx.x / 4, COPIED<BM>, p.n, p.k, p.w_stride);
    loop.run(p.k, x, w, [&](const typename Loop::Result& tile, int first) {
        store_result<T, THREADS<BM>>(tile, p.finish, top + first, p.m, left, p.n, [](int m) { return (i64)m; });
    });
}

// A thread holds value and gate of the same elements in neighbouring fragments, so the result passes through shared memory as T.
template <class T, int BM, int BN>
__device__ __forceinline__ void store_geglu(const Fragments<T, BM, BN>& fragments, char* shared, const GemmParams& p, int top,
                                            int left) {
    using Held = Fragments<T, BM, BN>;
    constexpr int UNITS = BN / 16;
    const EpilogueParams& f = p.finish;
    auto at = [&](int row, int unit) {
        int placed = UNITS == 8 ? result_unit(row, unit) : stage_unit(row, unit);
        return shared + (row * UNITS + placed) * 16;
    };
    // All are done with the stages, in whose place the result goes.
    __syncthreads();
    int lane = fragments.lane, first = fragments.row_warp * Held::ROWS + lane / 4;
#pragma unroll
    for (int u = 0; u < Held::NT / 2; u++) {
        int unit = fragments.column_warp * (UNITS / 2) + u, n = left + unit * 8 + lane % 4 * 2;
        u32 values = 0, gates = 0;
        if (f.bias && n < p.n) {
            values = *(const u32*)((const T*)f.bias + n);
            gates = *(const u32*)((const T*)f.bias + p.n + n);
        }
#pragma unroll
        for (int i = 0; i < 2 * Held::MT; i++) {
            const float* value = &fragments.acc[i / 2][2 * u][i % 2 * 2];
            const float* gate = &fragments.acc[i / 2][2 * u + 1][i % 2 * 2];
            float low = (value[0] + Stored<T>::low(values)) * gelu(gate[0] + Stored<T>::low(gates));
            float high = (value[1] + Stored<T>::high(values)) * gelu(gate[1] + Stored<T>::high(gates));
            *(u32*)(at(first + 8 * i, unit) + lane % 4 * 4) = Stored<T>::pack(clamped<T>(low), clamped<T>(high));
        }
    }
    __syncthreads();
    // A thread's unit is the same in each of its rows.
    constexpr int ROWS = THREADS<BM> / UNITS;
    int row = threadIdx.x / UNITS, unit = threadIdx.x % UNITS, n = left + unit * 8;
    if (n >= p.n) return;
    T* out = (T*)f.out + (top + row) * f.out_stride + n;
#pragma unroll
    for (int i = 0; i < BM / ROWS; i++) {
        if (top + row + i * ROWS < p.m) *(uint4*)out = *(const uint4*)at(row + i * ROWS, unit);
        out += ROWS * f.out_stride;
    }
}

template <class T, int BM, int BN>
__device__ __forceinline__ void gemm_geglu(const GemmParams& p) {
    extern __shared__ Vec8 memory[];
    Mainloop<T, BM, BN> loop(memory);
    int top = blockIdx.x * BM, left = blockIdx.y * (BN / 2);
    Matrix<T, COPIED<BM>> x(p, top);
    // Row r of the tile is channel r / 16 * 8 + r % 8 of V where r % 16 < 8, else of G.
    int row = threadIdx.x / 4;
    const T* half = (const T*)p.w + (row % 16 < 8 ? 0 : p.n * p.w_stride);
    Weights<T> w(half, left + row / 16 * 8 + row % 8, COPIED<BM> / 2, p.n, p.k, p.w_stride);
    loop.multiply(p.k, x, w);
    store_geglu<T, BM, BN>(loop.fragments, (char*)memory, p, top, left);
}

#define GEMM(KERNEL, BM, BN, NAME, T)                                                                      \
    extern "C" __global__ __launch_bounds__(THREADS<BM>) void NAME(const __grid_constant__ GemmParams p) { \
        after_last_launch();                                                                               \
        KERNEL<T, BM, BN>(p);                                                                              \
    }

GEMM(gemm, 256, 128, gemm_256x128_f16, f16)
GEMM(gemm, 256, 128, gemm_256x128_bf16, bf16)
GEMM(gemm, 128, 128, gemm_128x128_f16, f16)
GEMM(gemm, 128, 128, gemm_128x128_bf16, bf16)
GEMM(gemm, 128, 64, gemm_128x64_f16, f16)
GEMM(gemm, 128, 64, gemm_128x64_bf16, bf16)
GEMM(gemm, 128, 64, gemm_128x64_f32, float)
GEMM(gemm, 64, 64, gemm_64x64_f16, f16)
GEMM(gemm, 64, 64, gemm_64x64_bf16, bf16)
GEMM(gemm, 64, 64, gemm_64x64_f32, float)
GEMM(gemm_geglu, 256, 128, gemm_geglu_256x128_f16, f16)
GEMM(gemm_geglu, 256, 128, gemm_geglu_256x128_bf16, bf16)
GEMM(gemm_geglu, 128, 128, gemm_geglu_128x128_f16, f16)
GEMM(gemm_geglu, 128, 128, gemm_geglu_128x128_bf16, bf16)
GEMM(gemm_geglu, 64, 64, gemm_geglu_64x64_f16, f16)
GEMM(gemm_geglu, 64, 64, gemm_geglu_64x64_bf16, bf16)
