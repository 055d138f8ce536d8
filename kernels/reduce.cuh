// Sums and maxima over a warp or a block, always in the same order.
#pragma once

#include "ptx.cuh"

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) x += __shfl_xor_sync(0xffffffffu, x, distance);
    return x;
}

// The sum of four lanes, of which the first one's number is a multiple of 4.
__device__ __forceinline__ float four_lanes_sum(float x) {
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, distance));
    return x;
}

// Number of values, their mean and the sum of their squared deviations.
struct Moments {
    float count, mean, squares;
};

// Chan, Golub and LeVeque 1979.
__device__ __forceinline__ Moments joined(const Moments& a, const Moments& b) {
    if (b.count == 0.0f) return a;
    if (a.count == 0.0f) return b;
    float count = a.count + b.count, delta = b.mean - a.mean, part = b.count / count;
    return Moments{count, a.mean + delta * part, a.squares + b.squares + delta * delta * a.count * part};
}

// The moments of all threads' values in thread 0; `memory` holds one entry for each of the THREADS threads.
template <int THREADS>
__device__ __forceinline__ Moments block_moments(Moments own, Moments* memory) {
    memory[threadIdx.x] = own;
    __syncthreads();
#pragma unroll
    for (int half = THREADS / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) memory[threadIdx.x] = joined(memory[threadIdx.x], memory[threadIdx.x + half]);
        __syncthreads();
    }
    return memory[0];
}
