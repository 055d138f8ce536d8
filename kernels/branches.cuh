// The branches of decoupled attention, as decoupled.cu describes them.
#pragma once

#include "strided_tensor.cuh"

constexpr int MAX_BRANCHES = 17;

struct KvBranch {
    StridedTensor k;
    StridedTensor v;
    const float* mask;
    i64 mask_batch;
    int capacity;
    int reserved;
};

struct DecoupledParams {
    StridedTensor q;
    StridedTensor out;
    const int* counts;
    const float* scales;
    int queries;
    int dim;
    int branches;
    int batch;
    float scale;  // log2(e) / sqrt(dim)
    int reserved;
    KvBranch branch[MAX_BRANCHES];
};

// The weight of a branch, the text's being 1.
__device__ __forceinline__ float weight_of(const DecoupledParams& p, int s, int image) {
    return s == 0 ? 1.0f : p.scales[(i64)(s - 1) * p.batch + image];
}

// The keys of a branch that count.
__device__ __forceinline__ int count_of(const DecoupledParams& p, int s, int image) {
    return min(p.counts[(i64)s * p.batch + image], p.branch[s].capacity);
}

// The first branch from `s` on that is not skipped, or the number of branches.
__device__ __forceinline__ int active(const DecoupledParams& p, int s, int image) {
    for (; s < p.branches; s++) {
        bool weighs = s == 0 || p.scales[(i64)(s - 1) * p.batch + image] != 0.0f;
        if (weighs && p.counts[(i64)s * p.batch + image] > 0) break;
    }
    return s;
}
