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

// The exact GELU, x * Phi(x). Phi(-|x|) = erfc(|x| / sqrt 2) / 2 is two to the power of a polynomial, so that no digits cancel
// where it is small: it is right to 1.4e-7, and to 2.2e-5 of itself down to the least numbers of f16. Its last coefficient is
// negative, so that far out it is 0. The coefficients are a weighted minimax fit of log2 Phi(-a) for a from 0 to 6.
__device__ __forceinline__ float gelu(float x) {
    float a = fabsf(x), power = fmaf(a, -5.744226427850663e-7f, 9.874180250335485e-6f);
    power = fmaf(a, power, -3.3935608371393755e-5f);
    power = fmaf(a, power, -5.320616764947772e-4f);
    power = fmaf(a, power, 7.60755967348814e-3f);
    power = fmaf(a, power, -5.288330838084221e-2f);
    power = fmaf(a, power, -4.590801000595093e-1f);
    power = fmaf(a, power, -1.1511204242706299f);
    power = fmaf(a, power, -9.999997019767761e-1f);
    float phi = ex2_approx_ftz_f32(power);
    return x * (x > 0.0f ? 1.0f - phi : phi);
}

__device__ __forceinline__ float quick_gelu(float x) { return x * sigmoid(1.702f * x); }

__device__ __forceinline__ float activated(float x, int kind) {
    switch (kind) {
        case SILU: return silu(x);
        case GELU: return gelu(x);
        case QUICK_GELU: return quick_gelu(x);
        default: return x;
    }
}
