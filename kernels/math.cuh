// Activation functions in f32.
#pragma once

#include "ptx.cuh"

constexpr float LOG2_E = 1.4426950408889634f;

enum Activation { NONE = 0, SILU = 1, GELU = 2, QUICK_GELU = 3 };

// 1 / (1 + exp(-x)); 0 and 1 far out, without an overflow on the way.
__device__ __forceinline__ float sigmoid(float x) {
    return rcp_approx_ftz_f32(1.0f + ex2_approx_ftz_f32(-LOG2_E * x));
}

__device__ __forceinline__ float silu(float x) { return x * sigmoid(x); }

// To a few units in the last place of f32, for results that are stored as f32.
__device__ __forceinline__ float exact_silu(float x) { return x / (1.0f + expf(-x)); }

// The exact GELU, by erf: x * Phi(x).
__device__ __forceinline__ float gelu(float x) { return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f)); }

__device__ __forceinline__ float quick_gelu(float x) { return x * sigmoid(1.702f * x); }

__device__ __forceinline__ float activated(float x, int kind) {
    switch (kind) {
        case SILU: return silu(x);
        case GELU: return gelu(x);
        case QUICK_GELU: return quick_gelu(x);
        default: return x;
    }
}
