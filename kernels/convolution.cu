// Convolution as an implicit product: Y = activation(conv(X) + bias + rows) + residual.
//
// Shapes     X [B, height, width, channels], in one or in two sources whose channels are joined (x0 has the first channels0),
//            so that a skip concatenation is never written. W [N, kernel_y, kernel_x, channels] (OHWI), K = kernel_y *
//            kernel_x * channels. Y and residual [B, result_height, result_width, N], rows [B, N].
//            With `phases` = 4 the image is first doubled by nearest neighbour: result row 2 y + a comes of source rows
//            y - 1 + a and y + a alone, a in {0, 1}; so four 2x2 convolutions over the source (blockIdx.z = 2 a + b), with W
//            [4, N, 2, 2, channels] as layout.cu's `phases` makes it, Y [B, 2 height, 2 width, N], and 4 / 9 of the work.
// Grid       (ceil(pixels / BM), ceil(N / BN), phases), 128 threads, 256 where BM = 256; `pixels` are those of all images, B *
//            result_height * result_width, before doubling. An image's results do not depend on B.
// Tiling     BM x BN = 256x128, 128x128, 128x64, 64x64 (f32: the last two); K by 64 bytes; see mainloop.cuh, epilogue.cuh. A
//            16-byte unit never crosses a tap or the seam between the sources. Borders are cp.async's zero fill.
// Shared     dynamic: 4 (BM + BN) 64 bytes: 98,304, 65,536, 49,152, 32,768.
// Requires   channels0 and channels multiples of 8 (else convolution_narrow.cu); 16-byte aligned pointers; B * height * width
//            < 2^31. Any kernel, stride and padding; padding only says where row and column 0 begin, so an asymmetric one (0
//            before, 1 after) is padding 0 with the larger result. phases = 4: kernel 2, stride 1, padding 1.
// Source     implicit GEMM as in NVIDIA's CUTLASS documentation; the four phases are arithmetic on the taps.
#include "mainloop.cuh"

struct ConvolutionParams {
    const void* x0;
    const void* x1;
    const void* w;
    EpilogueParams finish;
    int pixels;
    int n;
    int channels0;
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
    int phases;
};

// Pixels of ROWS rows of the product, which lie COPY apart. Whatever depends on the tap or the source is computed where they
// change.
template <class T, int ROWS, int COPY>
struct Picture {
    // This thread's unit of pixel 0 under the present tap.
    const T *at, *x0, *x1;
    int channels0, channels, height, width, kernel_y, kernel_x;
    // The tap and the channel of this thread's unit; the channel at which it leaves the source, and that source's channels.
    int ky = 0, kx = 0, c, end, stride;
    // Bit i: the i-th row has a pixel under the present tap.
    u32 inside;
    // Of each of this thread's rows the pixel, row and column under tap 0; far outside for a row that is not there.
    int pixel[ROWS], y[ROWS], x[ROWS];

    __device__ __forceinline__ Picture(const ConvolutionParams& p, int top)
        : x0((const T*)p.x0), x1((const T*)p.x1), channels0(p.channels0), channels(p.channels), height(p.height),
          width(p.width), kernel_y(p.kernel_y), kernel_x(p.kernel_x), c(threadIdx.x % 4 * UNIT<T>) {
        // Phase 2 a + b begins a rows and b columns later.
        int down = blockIdx.z / 2, right = blockIdx.z % 2;
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
            int m = top + threadIdx.x / 4 + COPY * i, line = m / p.result_width, image = line / p.result_height;
            y[i] = (line - image * p.result_height) * p.stride - p.padding_y + down;
            x[i] = (m - line * p.result_width) * p.stride - p.padding_x + right;
            pixel[i] = (image * p.height + y[i]) * p.width + x[i];
            if (m >= p.pixels) y[i] = -0x40000000;
        }
        enter();
    }

    __device__ __forceinline__ bool unit(int i, const T*& from) const {
        from = at + (i64)pixel[i] * stride;
        return inside >> i & 1;
    }

    __device__ __forceinline__ void advance() {
        at += STEP<T>, c += STEP<T>;
        if (c >= end) enter();
    }

    // Begins with another source or tap.
    __device__ __forceinline__ void enter() {
        while (c >= channels) {
            c -= channels;
            if (++kx == kernel_x) kx = 0, ky++;
        }
        bool first = c < channels0;
        end = first ? channels0 : channels;
        stride = first ? channels0 : channels - channels0;
        at = (first ? x0 + c : x1 + (c - channels0)) + (i64)(ky * width + kx) * stride;
        inside = 0;
#pragma unroll
        for (int i = 0; i < ROWS; i++)
            if (ky < kernel_y && (u32)(y[i] + ky) < (u32)height && (u32)(x[i] + kx) < (u32)width) inside |= 1u << i;
    }
};

template <class T, int BM, int BN>
__device__ __forceinline__ void convolution(const ConvolutionParams& p) {
    extern __shared__ Vec8 memory[];
    using Loop = Mainloop<T, BM, BN>;
    Loop loop(memory);
    int top = blockIdx.x * BM, left = blockIdx.y * BN, k = p.kernel_y * p.kernel_x * p.channels;
    Picture<T, BM / COPIED<BM>, COPIED<BM>> x(p, top);
    const T* weights = (const T*)p.w + blockIdx.z * (i64)p.n * k;
    Weights<T> w(weights, left + threadIdx.x / 4, COPIED<BM>, p.n, k, k);
    auto place = [&](int m) {
        if (p.phases == 1) return (i64)m;
        int line = m / p.result_width, column = m - line * p.result_width;
        return (i64)(2 * line + blockIdx.z / 2) * (2 * p.result_width) + 2 * column + blockIdx.z % 2;
    };
    loop.run(k, x, w, [&](const typename Loop::Result& tile, int first) {
        store_result<T, THREADS<BM>>(tile, p.finish, top + first, p.pixels, left, p.n, place);
    });
}

#define CONVOLUTION(BM, BN, NAME, T)                                                                              \
    extern "C" __global__ __launch_bounds__(THREADS<BM>) void NAME(const __grid_constant__ ConvolutionParams p) { \
        after_last_launch();                                                                                      \
        convolution<T, BM, BN>(p);                                                                                \
    }

CONVOLUTION(256, 128, convolution_256x128_f16, f16)
CONVOLUTION(256, 128, convolution_256x128_bf16, bf16)
CONVOLUTION(128, 128, convolution_128x128_f16, f16)
CONVOLUTION(128, 128, convolution_128x128_bf16, bf16)
CONVOLUTION(128, 64, convolution_128x64_f16, f16)
CONVOLUTION(128, 64, convolution_128x64_bf16, bf16)
CONVOLUTION(128, 64, convolution_128x64_f32, float)
CONVOLUTION(64, 64, convolution_64x64_f16, f16)
CONVOLUTION(64, 64, convolution_64x64_bf16, bf16)
CONVOLUTION(64, 64, convolution_64x64_f32, float)
