// What the kernels of sm_90a with a warp that copies and groups that compute share.
#pragma once

#include "ptx_sm90.cuh"

__device__ __forceinline__ int divided_up(int x, int by) { return (x + by - 1) / by; }

// A ring's stage and the parity of its present phase.
struct RingPlace {
    int stage = 0, parity = 0;

    __device__ __forceinline__ void advance(int stages) {
        if (++stage == stages) stage = 0, parity ^= 1;
    }

    __device__ __forceinline__ void skip(int steps, int stages) {
        stage += steps;
        parity ^= stage / stages & 1;
        stage %= stages;
    }
};
