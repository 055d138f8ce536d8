// Layer normalisation of each row: Y = (X - mean) / sqrt(variance + eps) * weight + bias.
//
// Shapes     X and Y [rows, channels]; weight and bias [channels] f32.
// Grid       ceil(rows / 8), 256 threads: a warp takes a row, which stays in its registers; two passes over them (mean, then
//            squared deviations), sums by butterflies of fixed order.
// Shared     none.
// Requires   channels % 8 == 0, channels <= 2048, 16-byte aligned pointers.
// Source     the definition (Ba, Kiros and Hinton 2016).
#include "half.cuh"
#include "reduce.cuh"

struct LayerNormParams {
    const void* x;
    const float* weight;
    const float* bias;
    void* out;
    int rows;
    int channels;
    float eps;
    int reserved;
};

// Units of a lane: 8 * 32 * 8 = 2048 channels.
constexpr int UNITS = 8;

template <class T>
__device__ __forceinline__ void layer_norm(const LayerNormParams& p) {
    int row = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32, units = p.channels / 8;
    if (row >= p.rows) return;
    const T* from = (const T*)p.x + (i64)row * p.channels;
    Vec8 kept[UNITS];
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < UNITS; i++) {
        if (lane + 32 * i < units) {
            kept[i] = *(const Vec8*)(from + (lane + 32 * i) * 8);
            float x[8];
            unpack<T>(kept[i], x);
#pragma unroll
            for (int j = 0; j < 8; j++) sum += x[j];
        }
    }
    float mean = warp_sum(sum) / p.channels;
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < UNITS; i++) {
        if (lane + 32 * i < units) {
            float x[8];
            unpack<T>(kept[i], x);
#pragma unroll
            for (int j = 0; j < 8; j++) squares += (x[j] - mean) * (x[j] - mean);
        }
    }
    float scale = 1.0f / sqrtf(warp_sum(squares) / p.channels + p.eps);
    T* to = (T*)p.out + (i64)row * p.channels;
#pragma unroll
    for (int i = 0; i < UNITS; i++) {
        if (lane + 32 * i < units) {
            int c = (lane + 32 * i) * 8;
            float x[8];
            unpack<T>(kept[i], x);
#pragma unroll
            for (int j = 0; j < 8; j += 4) {
                float4 w = *(const float4*)(p.weight + c + j), b = *(const float4*)(p.bias + c + j);
                x[j] = (x[j] - mean) * scale * w.x + b.x;
                x[j + 1] = (x[j + 1] - mean) * scale * w.y + b.y;
                x[j + 2] = (x[j + 2] - mean) * scale * w.z + b.z;
                x[j + 3] = (x[j + 3] - mean) * scale * w.w + b.w;
            }
            store8(to + c, x);
        }
    }
}

extern "C" __global__ __launch_bounds__(256) void layer_norm_f16(const __grid_constant__ LayerNormParams p) {
    after_last_launch();
    layer_norm<f16>(p);
}

extern "C" __global__ __launch_bounds__(256) void layer_norm_bf16(const __grid_constant__ LayerNormParams p) {
    after_last_launch();
    layer_norm<bf16>(p);
}
