// Changes of layout: uploaded weights, images into patches, a transposition.
//   weights     [N, I, taps] (OIHW; taps 1 for a matrix) to [N, pitch]: element (n, tap, i) at n * pitch + tap * I + i, zeros
//               from taps * I up to the pitch; from f16, bf16 or f32
//   phases      [N, I, 3, 3] to [4, N, 2, 2, I]: the kernels of a 3x3 convolution after a doubling by nearest neighbour, one for
//               each parity (a, b) of the result's row and column; the taps that meet one source pixel are added in f32
//   patches     [B, height, width, C] f32 to [B, rows of patches * columns of patches, pitch]: element (ky, kx, c) of a patch at
//               (ky * side + kx) * C + c, zeros up to the pitch
//   transpose   [rows, columns] to [columns, pitch], zeros from `rows` up to the pitch; for B images
//
// Grid       ceil(elements of the result / 256), 256 threads; transpose: (ceil(pitch / 32), ceil(columns / 32), B), 256 threads,
//            a tile of 32x32 each.
// Shared     static: 2,112 bytes (transpose; f32 4,224), none else.
// Requires   nothing of sizes or alignment; offsets are 64-bit.
// Source     the definitions.
#include "half.cuh"

struct WeightsParams {
    const void* x;
    void* out;
    i64 pitch;
    int n;
    int inputs;
    int taps;
    int reserved;
};

struct PatchesParams {
    const float* x;
    void* out;
    i64 pitch;
    int images;
    int height;
    int width;
    int channels;
    int side;
    int reserved;
};

struct TransposeParams {
    const void* x;
    void* out;
    i64 x_stride;
    i64 x_image;
    i64 pitch;
    i64 out_image;
    int rows;
    int columns;
};

__device__ __forceinline__ i64 element() { return (i64)blockIdx.x * 256 + threadIdx.x; }

template <class From, class T>
__device__ __forceinline__ void weights(const WeightsParams& p) {
    i64 at = element(), n = at / p.pitch, k = at - n * p.pitch;
    if (n >= p.n) return;
    int tap = (int)(k / p.inputs), i = (int)(k - (i64)tap * p.inputs);
    float x = tap < p.taps ? to_f32(((const From*)p.x)[(n * p.inputs + i) * p.taps + tap]) : 0.0f;
    ((T*)p.out)[at] = Stored<T>::from(x);
}

template <class From, class T>
__device__ __forceinline__ void phases(const WeightsParams& p) {
    i64 at = element(), row = at / p.inputs, matrix = row / 4, phase = matrix / p.n, n = matrix - phase * p.n;
    if (phase >= 4) return;
    int i = (int)(at - row * p.inputs), dy = (int)(row % 4 / 2), dx = (int)(row % 2);
    // Parity 0: tap 0, then taps 1 and 2. Parity 1: taps 0 and 1, then tap 2.
    auto begin = [](int parity, int d) { return d == 0 ? 0 : 1 + parity; };
    auto end = [](int parity, int d) { return d == 0 ? 1 + parity : 3; };
    int a = (int)phase / 2, b = (int)phase % 2;
    const From* from = (const From*)p.x + (n * p.inputs + i) * 9;
    float sum = 0.0f;
    for (int y = begin(a, dy); y < end(a, dy); y++)
        for (int x = begin(b, dx); x < end(b, dx); x++) sum += to_f32(from[y * 3 + x]);
    ((T*)p.out)[at] = Stored<T>::from(sum);
}

template <class T>
__device__ __forceinline__ void patches(const PatchesParams& p) {
    int down = p.height / p.side, across = p.width / p.side;
    i64 at = element(), patch = at / p.pitch, image = patch / (down * across);
    if (image >= p.images) return;
    int k = (int)(at - patch * p.pitch), place = (int)(patch - image * (down * across));
    int tap = k / p.channels, c = k - tap * p.channels;
    float x = 0.0f;
    if (tap < p.side * p.side) {
        int row = place / across * p.side + tap / p.side, column = place % across * p.side + tap % p.side;
        x = p.x[((image * p.height + row) * p.width + column) * p.channels + c];
    }
    ((T*)p.out)[at] = Stored<T>::from(x);
}

template <class T>
__device__ __forceinline__ void transpose(const TransposeParams& p) {
    __shared__ T tile[32][33];
    int left = blockIdx.x * 32, top = blockIdx.y * 32, lane = threadIdx.x % 32;
    const T* from = (const T*)p.x + blockIdx.z * p.x_image;
    for (int i = threadIdx.x / 32; i < 32; i += 8) {
        int row = left + i, column = top + lane;
        tile[i][lane] = row < p.rows && column < p.columns ? from[row * p.x_stride + column] : T{};
    }
    __syncthreads();
    T* to = (T*)p.out + blockIdx.z * p.out_image;
    for (int i = threadIdx.x / 32; i < 32; i += 8) {
        int row = top + i, column = left + lane;
        if (row < p.columns && column < p.pitch) to[row * p.pitch + column] = tile[lane][i];
    }
}

#define KERNEL(PARAMS, CALL, NAME) \
    extern "C" __global__ __launch_bounds__(256) void NAME(const __grid_constant__ PARAMS p) { after_last_launch(); CALL(p); }

#define FROM_ALL(OP, NAME)                                            \
    KERNEL(WeightsParams, (OP<f16, f16>), NAME##_from_f16_f16)        \
    KERNEL(WeightsParams, (OP<bf16, f16>), NAME##_from_bf16_f16)      \
    KERNEL(WeightsParams, (OP<float, f16>), NAME##_from_f32_f16)      \
    KERNEL(WeightsParams, (OP<f16, bf16>), NAME##_from_f16_bf16)      \
    KERNEL(WeightsParams, (OP<bf16, bf16>), NAME##_from_bf16_bf16)    \
    KERNEL(WeightsParams, (OP<float, bf16>), NAME##_from_f32_bf16)    \
    KERNEL(WeightsParams, (OP<f16, float>), NAME##_from_f16_f32)      \
    KERNEL(WeightsParams, (OP<bf16, float>), NAME##_from_bf16_f32)    \
    KERNEL(WeightsParams, (OP<float, float>), NAME##_from_f32_f32)

FROM_ALL(weights, weights)
FROM_ALL(phases, phases)
KERNEL(PatchesParams, (patches<f16>), patches_f16)
KERNEL(PatchesParams, (patches<bf16>), patches_bf16)
KERNEL(TransposeParams, (transpose<f16>), transpose_f16)
KERNEL(TransposeParams, (transpose<bf16>), transpose_bf16)
KERNEL(TransposeParams, (transpose<float>), transpose_f32)
