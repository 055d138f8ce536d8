// The epilogue that gemm.cu and convolution.cu share: a tile of accumulators in shared memory is finished and stored.
//
// Bias, per-image bias, residual and result are accessed by 16 bytes and coalesced.
#pragma once

#include "half.cuh"
#include "math.cuh"
#include "swizzle.cuh"

// Result row r: activation(x W^T + bias + rows[image of r]) + residual[r].
struct EpilogueParams {
    const void* bias;      // T [N], or null
    const void* rows;      // T [images, N], or null; the time embedding
    const void* residual;  // T, rows as the result's, or null
    void* out;             // T, or f32 where out_f32 is set
    float* moments;        // of the result's runs of rows, by the kernels of sm_90a (mainloop_sm90.cuh), or null
    i64 residual_stride;  // elements from row to row
    i64 out_stride;
    int rows_of_image;  // consecutive rows of X that share a row of `rows`
    int activation;
    int out_f32;
    int reserved;
};

// BM x BN accumulators in shared memory as f32, in eight-column units placed by swizzle.cuh.
template <int BM, int BN>
struct ResultTile {
    float* shared;

    __device__ __forceinline__ float* at(int row, int unit) const {
        return shared + row * BN + result_unit(row, unit) * 8;
    }

    __device__ __forceinline__ void read(int row, int unit, float (&x)[8]) const {
        const float4* from = (const float4*)at(row, unit);
        float4 low = from[0], high = from[1];
        x[0] = low.x, x[1] = low.y, x[2] = low.z, x[3] = low.w;
        x[4] = high.x, x[5] = high.y, x[6] = high.z, x[7] = high.w;
    }
};

// Finishes the tile and stores the rows from `top` of `rows` and the columns from `left` of `columns`; `place` maps a row of X
// to a row of the result.
template <class T, int THREADS, int BM, int BN, class Place>
__device__ __forceinline__ void store_result(const ResultTile<BM, BN>& tile, const EpilogueParams& f, int top, int rows,
                                             int left, int columns, Place place) {
    const T* added = (const T*)f.rows;
    bool wide = (columns | f.out_stride | f.residual_stride) % 8 == 0;
    for (int i = threadIdx.x; i < BM * (BN / 8); i += THREADS) {
        int row = i / (BN / 8), m = top + row, n = left + i % (BN / 8) * 8, count = columns - n;
        if (m >= rows || count <= 0) continue;
        float x[8], y[8];
        tile.read(row, i % (BN / 8), x);
        if (f.bias) {
            load_up_to_8((const T*)f.bias + n, count, wide, y);
#pragma unroll
            for (int j = 0; j < 8; j++) x[j] += y[j];
        }
        if (added) {
            load_up_to_8(added + (i64)(m / f.rows_of_image) * columns + n, count, wide, y);
#pragma unroll
            for (int j = 0; j < 8; j++) x[j] += y[j];
        }
        if (f.activation != NONE) {
#pragma unroll
            for (int j = 0; j < 8; j++) x[j] = activated(x[j], f.activation);
        }
        i64 to = place(m);
        if (f.residual) {
            load_up_to_8((const T*)f.residual + to * f.residual_stride + n, count, wide, y);
#pragma unroll
            for (int j = 0; j < 8; j++) x[j] += y[j];
        }
        if (f.out_f32) {
            float* out = (float*)f.out + to * f.out_stride + n;
            if (wide) {
                ((float4*)out)[0] = make_float4(x[0], x[1], x[2], x[3]);
                ((float4*)out)[1] = make_float4(x[4], x[5], x[6], x[7]);
            } else {
#pragma unroll
                for (int j = 0; j < 8; j++)
                    if (j < count) out[j] = x[j];
            }
        } else {
            store_up_to_8((T*)f.out + to * f.out_stride + n, count, wide, x);
        }
    }
}
