// Softmax of each row of scores: P = softmax(scale * S). For heads too wide for attention.cu (the VAE's 512), between the
// products S = Q K^T (f32) and P V.
//
// Shapes     S [rows, columns] f32, P [rows, columns], each with a row stride. P's columns from `columns` up to its stride
//            become zeros, so that it is a first operand of a product whose K is the stride.
// Grid       (rows), 256 threads: a block takes a row and reads it three times (greatest, sum, result), from cache but once.
// Shared     static: 64 bytes.
// Requires   columns >= 1. P must not overlap S.
// Source     the definition, with the greatest score subtracted.
#include "half.cuh"
#include "math.cuh"
#include "reduce.cuh"

struct SoftmaxParams {
    const float* scores;
    void* out;
    i64 scores_stride;
    i64 out_stride;
    int columns;
    float scale;  // log2(e) times the factor of the scores
};

template <class T>
__device__ __forceinline__ void softmax_rows(const SoftmaxParams& p) {
    __shared__ float maxima[8], sums[8];
    int warp = threadIdx.x / 32;
    const float* from = p.scores + blockIdx.x * p.scores_stride;
    float greatest = __uint_as_float(0xff800000u);
    for (int i = threadIdx.x; i < p.columns; i += 256) greatest = fmaxf(greatest, from[i] * p.scale);
    greatest = warp_max(greatest);
    if (threadIdx.x % 32 == 0) maxima[warp] = greatest;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 8; i++) greatest = fmaxf(greatest, maxima[i]);
    float sum = 0.0f;
    for (int i = threadIdx.x; i < p.columns; i += 256) sum += ex2_approx_ftz_f32(from[i] * p.scale - greatest);
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) sums[warp] = sum;
    __syncthreads();
    float total = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; i++) total += sums[i];
    float factor = 1.0f / total;
    T* to = (T*)p.out + blockIdx.x * p.out_stride;
    for (int i = threadIdx.x; i < p.out_stride; i += 256) {
        float x = i < p.columns ? ex2_approx_ftz_f32(from[i] * p.scale - greatest) * factor : 0.0f;
        to[i] = Stored<T>::from(x);
    }
}

extern "C" __global__ __launch_bounds__(256) void softmax_rows_f16(const __grid_constant__ SoftmaxParams p) {
    after_last_launch();
    softmax_rows<f16>(p);
}

extern "C" __global__ __launch_bounds__(256) void softmax_rows_bf16(const __grid_constant__ SoftmaxParams p) {
    after_last_launch();
    softmax_rows<bf16>(p);
}

extern "C" __global__ __launch_bounds__(256) void softmax_rows_f32(const __grid_constant__ SoftmaxParams p) {
    after_last_launch();
    softmax_rows<float>(p);
}
