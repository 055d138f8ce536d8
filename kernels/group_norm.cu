// Group normalisation, optionally followed by SiLU, in three launches that share one parameter struct:
//   group_norm_moments  the mean and the sum of squared deviations of each channel over each chunk of pixels; not for a source whose
//                       kernel has left them (convolution_sm90.cu, gemm_sm90.cu)
//   group_norm_lines    joins those of a group, in a fixed order, to a factor and a summand for each channel
//   group_norm_apply    Y = factor * X + summand, then SiLU
//
// Shapes     X [B, pixels, channels], in one or in two sources whose channels are joined (x0 has the first channels0; a group
//            may lie in both), Y [B, pixels, channels]; weight, bias [channels] f32; scratch: moments [B, chunks, 2, channels] of
//            each source and lines [B, 2, channels] f32.
// Grid       moments: (chunks, ceil(channels / 128), B); lines: (groups, B); apply: (ceil(pixels / 128), ceil(channels / 128),
//            B); 256 threads. In the first and the last, 16 threads read 16 bytes each of a row, and there are 16 such rows.
// Shared     static: 16,384 bytes (moments), 3,072 (lines), none (apply).
// Accuracy   f32. Deviations are taken from the chunk's first value of the channel, so that a mean far from zero costs no
//            digits; chunks and channels are joined by Chan's formula. Nothing depends on B or on the schedule.
// Requires   channels0 and channels multiples of 8, channels % groups == 0, 16-byte aligned pointers, chunks =
//            ceil(pixels / chunk).
// Source     Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979.
#include "half.cuh"
#include "math.cuh"
#include "reduce.cuh"

struct GroupNormParams {
    const void* x0;
    const void* x1;
    const float* weight;
    const float* bias;
    float* moments0;
    float* moments1;
    float* lines;
    void* out;
    int pixels;
    int channels0;
    int channels;
    int groups;
    int chunk;
    int chunks;
    int silu;
    float eps;
};

// The unit of 8 channels from c on of one pixel of one image.
template <class T>
__device__ __forceinline__ const T* unit_of(const GroupNormParams& p, int image, int pixel, int c) {
    i64 at = (i64)image * p.pixels + pixel;
    if (c < p.channels0) return (const T*)p.x0 + at * p.channels0 + c;
    return (const T*)p.x1 + at * (p.channels - p.channels0) + (c - p.channels0);
}

// The mean of channel c over a chunk of an image; the sum of squared deviations lies `width` further.
__device__ __forceinline__ float* moments_of(const GroupNormParams& p, int image, int chunk, int c, int& width) {
    bool first = c < p.channels0;
    width = first ? p.channels0 : p.channels - p.channels0;
    float* at = (first ? p.moments0 : p.moments1) + ((i64)image * p.chunks + chunk) * 2 * width;
    return at + (first ? c : c - p.channels0);
}

template <class T>
__device__ __forceinline__ void moments(const GroupNormParams& p) {
    __shared__ float sums[16][128], squares[16][128];
    int image = blockIdx.z, begin = blockIdx.x * p.chunk, end = min(begin + p.chunk, p.pixels);
    int column = threadIdx.x % 16 * 8, lane = threadIdx.x / 16, c = blockIdx.y * 128 + column;
    float pivot[8], sum[8], square[8];
#pragma unroll
    for (int j = 0; j < 8; j++) pivot[j] = sum[j] = square[j] = 0.0f;
    if (c < p.channels) {
        load8(unit_of<T>(p, image, begin, c), pivot);
        for (int pixel = begin + lane; pixel < end; pixel += 16) {
            float x[8];
            load8(unit_of<T>(p, image, pixel, c), x);
#pragma unroll
            for (int j = 0; j < 8; j++) {
                float d = x[j] - pivot[j];
                sum[j] += d;
                square[j] += d * d;
            }
        }
    }
#pragma unroll
    for (int j = 0; j < 8; j++) {
        sums[lane][column + j] = sum[j];
        squares[lane][column + j] = square[j];
    }
    __syncthreads();
    int channel = blockIdx.y * 128 + threadIdx.x;
    if (threadIdx.x >= 128 || channel >= p.channels) return;
    float s = 0.0f, q = 0.0f, count = end - begin;
#pragma unroll
    for (int i = 0; i < 16; i++) {
        s += sums[i][threadIdx.x];
        q += squares[i][threadIdx.x];
    }
    float first = to_f32(unit_of<T>(p, image, begin, channel / 8 * 8)[channel % 8]);
    int width;
    float* to = moments_of(p, image, blockIdx.x, channel, width);
    to[0] = first + s / count;
    to[width] = fmaxf(q - s * s / count, 0.0f);
}

__device__ __forceinline__ void lines(const GroupNormParams& p) {
    __shared__ Moments memory[256];
    int group = blockIdx.x, image = blockIdx.y, width = p.channels / p.groups;
    Moments own = {0.0f, 0.0f, 0.0f};
    // Several are under way at a time, and joined in their order.
    constexpr int AHEAD = 8;
    for (int begin = threadIdx.x; begin < p.chunks * width; begin += AHEAD * 256) {
        Moments next[AHEAD];
#pragma unroll
        for (int j = 0; j < AHEAD; j++) {
            int i = begin + j * 256, chunk = i / width, further;
            next[j] = {0.0f, 0.0f, 0.0f};
            if (chunk < p.chunks) {
                const float* at = moments_of(p, image, chunk, group * width + i - chunk * width, further);
                next[j] = {(float)min(p.chunk, p.pixels - chunk * p.chunk), at[0], at[further]};
            }
        }
#pragma unroll
        for (int j = 0; j < AHEAD; j++) own = joined(own, next[j]);
    }
    Moments all = block_moments<256>(own, memory);
    float scale = 1.0f / sqrtf(all.squares / all.count + p.eps);
    for (int i = threadIdx.x; i < width; i += 256) {
        int c = group * width + i;
        float factor = scale * p.weight[c], *to = p.lines + (i64)image * 2 * p.channels + c;
        to[0] = factor;
        to[p.channels] = p.bias[c] - all.mean * factor;
    }
}

template <class T>
__device__ __forceinline__ void apply(const GroupNormParams& p) {
    int image = blockIdx.z, c = blockIdx.y * 128 + threadIdx.x % 16 * 8;
    if (c >= p.channels) return;
    float factor[8], summand[8];
    const float4* line = (const float4*)(p.lines + (i64)image * 2 * p.channels + c);
    const float4* second = (const float4*)(p.lines + ((i64)image * 2 + 1) * p.channels + c);
#pragma unroll
    for (int j = 0; j < 2; j++) {
        float4 f = line[j], s = second[j];
        factor[4 * j] = f.x, factor[4 * j + 1] = f.y, factor[4 * j + 2] = f.z, factor[4 * j + 3] = f.w;
        summand[4 * j] = s.x, summand[4 * j + 1] = s.y, summand[4 * j + 2] = s.z, summand[4 * j + 3] = s.w;
    }
#pragma unroll
    for (int i = 0; i < 8; i++) {
        int pixel = blockIdx.x * 128 + i * 16 + threadIdx.x / 16;
        if (pixel < p.pixels) {
            float x[8];
            load8(unit_of<T>(p, image, pixel, c), x);
#pragma unroll
            for (int j = 0; j < 8; j++) {
                x[j] = x[j] * factor[j] + summand[j];
                if (p.silu) x[j] = sizeof(T) == 4 ? exact_silu(x[j]) : silu(x[j]);
            }
            store8((T*)p.out + ((i64)image * p.pixels + pixel) * p.channels + c, x);
        }
    }
}

#define GROUP_NORM(CALL, NAME)                                                                          \
    extern "C" __global__ __launch_bounds__(256) void NAME(const __grid_constant__ GroupNormParams p) { \
        after_last_launch();                                                                            \
        CALL(p);                                                                                        \
    }

GROUP_NORM(moments<f16>, group_norm_moments_f16)
GROUP_NORM(moments<bf16>, group_norm_moments_bf16)
GROUP_NORM(moments<float>, group_norm_moments_f32)
GROUP_NORM(lines, group_norm_lines_f32)
GROUP_NORM(apply<f16>, group_norm_apply_f16)
GROUP_NORM(apply<bf16>, group_norm_apply_bf16)
GROUP_NORM(apply<float>, group_norm_apply_f32)
