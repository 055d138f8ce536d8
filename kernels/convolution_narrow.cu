// Convolutions with few channels on one side, where a tensor core would be fed zeros: Y = conv(X) + bias.
//   convolution_few_in    few channels in: a UNet's and a VAE decoder's first convolution (4), a VAE encoder's (3)
//   convolution_few_out   few channels out: the last ones (3, 4, 8)
//
// Shapes     X [B, height, width, channels], W [N, kernel_y, kernel_x, channels] (OHWI), bias [N] or null,
//            Y [B, result_height, result_width, N], of the type or f32 (out_f32). Pixels of all images are numbered through.
// few_in     grid (ceil(pixels / 16), ceil(N / 128)), 128 threads; a thread makes one channel of 16 pixels, whose inputs lie
//            as f32 in shared memory, [K][16], and are read by all threads at once. Any channel count with
//            K = kernel_y * kernel_x * channels <= 144 (16 channels under 3x3). Shared: static 9,216 bytes.
// few_out    grid ceil(pixels / 16), 128 threads; a warp makes all N <= OUT (4 or 8) channels of 4 pixels: its lanes share out
//            the 16-byte units of K and their sums meet in a butterfly of fixed order. channels % 8 == 0, 16-byte aligned
//            pointers. No shared memory.
// Requires   B * height * width < 2^31.
// Source     direct convolution.
#include "half.cuh"

struct NarrowParams {
    const void* x;
    const void* w;
    const void* bias;
    void* out;
    int pixels;
    int n;
    int channels;
    int height;
    int width;
    int result_height;
    int result_width;
    int kernel_y;
    int kernel_x;
    int stride;
    int padding_y;
    int padding_x;
    int out_f32;
    int reserved;
};

// The pixel of X under tap (0, 0) of a result pixel.
struct Corner {
    int image, y, x;

    __device__ __forceinline__ Corner(const NarrowParams& p, int m) {
        int line = m / p.result_width;
        image = line / p.result_height;
        y = (line - image * p.result_height) * p.stride - p.padding_y;
        x = (m - line * p.result_width) * p.stride - p.padding_x;
    }

    // The element where that tap's channels begin, or -1 outside the image.
    __device__ __forceinline__ i64 under(const NarrowParams& p, int ky, int kx) const {
        int row = y + ky, column = x + kx;
        bool there = (u32)row < (u32)p.height && (u32)column < (u32)p.width;
        return there ? ((i64)(image * p.height + row) * p.width + column) * p.channels : -1;
    }
};

template <class T>
__device__ __forceinline__ void put(const NarrowParams& p, i64 at, float x) {
    if (p.out_f32) {
        ((float*)p.out)[at] = x;
    } else {
        ((T*)p.out)[at] = Stored<T>::from(x);
    }
}

constexpr int FEW_IN_PIXELS = 16;
constexpr int FEW_IN_K = 144;

template <class T>
__device__ __forceinline__ void few_in(const NarrowParams& p) {
    __shared__ alignas(16) float inputs[FEW_IN_K][FEW_IN_PIXELS];
    int top = blockIdx.x * FEW_IN_PIXELS, k_all = p.kernel_y * p.kernel_x * p.channels;
    for (int i = threadIdx.x; i < k_all * FEW_IN_PIXELS; i += 128) {
        int k = i / FEW_IN_PIXELS, m = top + i % FEW_IN_PIXELS, tap = k / p.channels;
        i64 from = m < p.pixels ? Corner(p, m).under(p, tap / p.kernel_x, tap % p.kernel_x) : -1;
        inputs[k][i % FEW_IN_PIXELS] = from < 0 ? 0.0f : to_f32(((const T*)p.x)[from + k % p.channels]);
    }
    __syncthreads();
    int n = blockIdx.y * 128 + threadIdx.x;
    if (n >= p.n) return;
    const T* w = (const T*)p.w + (i64)n * k_all;
    float sum[FEW_IN_PIXELS];
#pragma unroll
    for (int i = 0; i < FEW_IN_PIXELS; i++) sum[i] = p.bias ? to_f32(((const T*)p.bias)[n]) : 0.0f;
    for (int k = 0; k < k_all; k++) {
        float weight = to_f32(w[k]);
#pragma unroll
        for (int i = 0; i < FEW_IN_PIXELS; i++) sum[i] += weight * inputs[k][i];
    }
#pragma unroll
    for (int i = 0; i < FEW_IN_PIXELS; i++)
        if (top + i < p.pixels) put<T>(p, (i64)(top + i) * p.n + n, sum[i]);
}

constexpr int FEW_OUT_PIXELS = 4;

template <class T>
__device__ __forceinline__ void load8_or_zeros(bool there, const T* p, float (&x)[8]) {
    Vec8 unit = {};
    if (there) unit = *(const Vec8*)p;
    unpack<T>(unit, x);
}

template <>
__device__ __forceinline__ void load8_or_zeros(bool there, const float* p, float (&x)[8]) {
#pragma unroll
    for (int j = 0; j < 8; j++) x[j] = 0.0f;
    if (there) load8(p, x);
}

template <class T, int OUT>
__device__ __forceinline__ void few_out(const NarrowParams& p) {
    int lane = threadIdx.x % 32, top = (blockIdx.x * 4 + threadIdx.x / 32) * FEW_OUT_PIXELS;
    int units = p.channels / 8, all = p.kernel_y * p.kernel_x * units;
    float sum[FEW_OUT_PIXELS][OUT];
#pragma unroll
    for (int i = 0; i < FEW_OUT_PIXELS; i++)
#pragma unroll
        for (int o = 0; o < OUT; o++) sum[i][o] = 0.0f;
    for (int u = lane; u < all; u += 32) {
        int tap = u / units, c = (u - tap * units) * 8;
        float x[FEW_OUT_PIXELS][8];
#pragma unroll
        for (int i = 0; i < FEW_OUT_PIXELS; i++) {
            i64 from = -1;
            if (top + i < p.pixels) from = Corner(p, top + i).under(p, tap / p.kernel_x, tap % p.kernel_x);
            load8_or_zeros(from >= 0, (const T*)p.x + from + c, x[i]);
        }
#pragma unroll
        for (int o = 0; o < OUT; o++) {
            if (o < p.n) {
                float w[8];
                load8((const T*)p.w + ((i64)o * all + u) * 8, w);
#pragma unroll
                for (int i = 0; i < FEW_OUT_PIXELS; i++)
#pragma unroll
                    for (int j = 0; j < 8; j++) sum[i][o] += w[j] * x[i][j];
            }
        }
    }
#pragma unroll
    for (int i = 0; i < FEW_OUT_PIXELS; i++)
#pragma unroll
        for (int o = 0; o < OUT; o++) {
            float total = sum[i][o];
#pragma unroll
            for (int distance = 16; distance > 0; distance /= 2) total += __shfl_xor_sync(0xffffffffu, total, distance);
            if (lane == i * OUT + o && o < p.n && top + i < p.pixels) {
                if (p.bias) total += to_f32(((const T*)p.bias)[o]);
                put<T>(p, (i64)(top + i) * p.n + o, total);
            }
        }
}

#define NARROW(CALL, NAME)                                                                           \
    extern "C" __global__ __launch_bounds__(128) void NAME(const __grid_constant__ NarrowParams p) { \
        after_last_launch();                                                                         \
        CALL(p);                                                                                     \
    }

NARROW((few_in<f16>), convolution_few_in_f16)
NARROW((few_in<bf16>), convolution_few_in_bf16)
NARROW((few_in<float>), convolution_few_in_f32)
NARROW((few_out<f16, 4>), convolution_few_out_4_f16)
NARROW((few_out<bf16, 4>), convolution_few_out_4_bf16)
NARROW((few_out<float, 4>), convolution_few_out_4_f32)
NARROW((few_out<f16, 8>), convolution_few_out_8_f16)
NARROW((few_out<bf16, 8>), convolution_few_out_8_bf16)
NARROW((few_out<float, 8>), convolution_few_out_8_f32)
