// Operations element by element and row by row.
//   silu, gelu, quick_gelu, scale_shift   [count] to [count]; scale_shift is scale * x + shift
//   relu, soft_clamp                      [count] to [count]; soft_clamp is scale * tanh(x / scale)
//   from_f32, to_f32                      as scale_shift, between f32 and the type
//   geglu       [rows, 2 C] to [rows, C]: the first half times gelu of the second, clamped to the finite range of the type
//   add         [rows, C] + row row / each % rows_b of b: a sum (each 1, rows_b rows), a sum with b repeated (rows_b fewer),
//               an image's row added to each of its `each` rows
//   scale_rows  [rows, C] times the factor row % rows_factors, f32
//   scale_channels  [rows, C] times C factors of f32
//   concat      [rows, C0] and [rows, C - C0] to [rows, C]
//   upsample    [B, h, w, C] to [B, H, W, C] by nearest neighbour as torch has it: the scale in f32, rounded down
//   timestep_embedding  [rows] f32 to [rows, C]: sines and cosines (cosines first: flip) of x at C / 2 frequencies 10000^(-i / (C / 2 - shift))
//   embedding   ids [B, tokens] to [B, tokens, C]: the table's row (the last one for an id past the end) plus the position's
//   prepend_class_token [B, tokens - 1, C] to [B, tokens, C]: a token first, then positions added to all
//   gather      [B, tokens, C] to [B, C]: the row that index [B] names (the last one past the end), or row 0 without index
//
// Grid       ceil(units / 256), 256 threads; a unit is 8 channels of a row (or 8 values), accessed by 16 bytes where C is a
//            multiple of 8 and one by one otherwise. timestep_embedding: a unit is one frequency of one row.
// Shared     none.
// Requires   16-byte aligned pointers. Any sizes; offsets are 64-bit.
// Source     the definitions in src/graph/op.rs.
#include "half.cuh"
#include "math.cuh"

struct UnaryParams {
    const void* x;
    void* out;
    i64 count;
    float scale;
    float shift;
};

struct GegluParams {
    const void* x;
    void* out;
    i64 rows;
    int channels;
    int reserved;
};

struct AddParams {
    const void* a;
    const void* b;
    void* out;
    i64 rows;
    i64 each;
    i64 rows_b;
    int channels;
    int reserved;
};

struct ScaleRowsParams {
    const void* x;
    const float* factors;
    void* out;
    i64 rows;
    i64 rows_factors;
    int channels;
    int reserved;
};

struct ConcatParams {
    const void* a;
    const void* b;
    void* out;
    i64 rows;
    int channels0;
    int channels;
};

struct UpsampleParams {
    const void* x;
    void* out;
    int images;
    int height;
    int width;
    int result_height;
    int result_width;
    int channels;
};

struct TimestepEmbeddingParams {
    const float* x;
    void* out;
    int rows;
    int channels;
    int flip;
    float shift;
};

struct EmbeddingParams {
    const int* ids;
    const void* table;
    const void* positions;
    void* out;
    i64 rows;
    int tokens;
    int channels;
    int vocabulary;
    int reserved;
};

struct PrependClassTokenParams {
    const void* x;
    const void* token;
    const void* positions;
    void* out;
    i64 rows;
    int tokens;
    int channels;
};

struct GatherParams {
    const void* x;
    const int* index;
    void* out;
    int rows;
    int tokens;
    int channels;
    int reserved;
};

// This thread's 8 channels of a row of the result.
struct Unit {
    i64 row;
    int c, count;
    bool there, wide;

    __device__ __forceinline__ Unit(i64 rows, int channels) {
        int units = (channels + 7) / 8;
        i64 at = (i64)blockIdx.x * 256 + threadIdx.x;
        row = at / units;
        c = (int)(at - row * units) * 8;
        count = min(channels - c, 8);
        there = row < rows;
        wide = channels % 8 == 0;
    }
};

template <class From, class To, class F>
__device__ __forceinline__ void unary(const UnaryParams& p, F f) {
    i64 at = ((i64)blockIdx.x * 256 + threadIdx.x) * 8, left = p.count - at;
    if (left <= 0) return;
    int count = left < 8 ? (int)left : 8;
    float x[8];
    load_up_to_8((const From*)p.x + at, count, count == 8, x);
#pragma unroll
    for (int i = 0; i < 8; i++) x[i] = f(x[i]);
    store_up_to_8((To*)p.out + at, count, count == 8, x);
}

template <class T>
__device__ __forceinline__ void geglu(const GegluParams& p) {
    Unit u(p.rows, p.channels);
    if (!u.there) return;
    const T* from = (const T*)p.x + u.row * 2 * p.channels + u.c;
    float value[8], gate[8];
    load_up_to_8(from, u.count, u.wide, value);
    load_up_to_8(from + p.channels, u.count, u.wide, gate);
#pragma unroll
    for (int i = 0; i < 8; i++) value[i] = clamped<T>(value[i] * gelu(gate[i]));
    store_up_to_8((T*)p.out + u.row * p.channels + u.c, u.count, u.wide, value);
}

template <class T>
__device__ __forceinline__ void add(const AddParams& p) {
    Unit u(p.rows, p.channels);
    if (!u.there) return;
    float a[8], b[8];
    load_up_to_8((const T*)p.a + u.row * p.channels + u.c, u.count, u.wide, a);
    load_up_to_8((const T*)p.b + u.row / p.each % p.rows_b * p.channels + u.c, u.count, u.wide, b);
#pragma unroll
    for (int i = 0; i < 8; i++) a[i] += b[i];
    store_up_to_8((T*)p.out + u.row * p.channels + u.c, u.count, u.wide, a);
}

template <class T>
__device__ __forceinline__ void scale_rows(const ScaleRowsParams& p) {
    Unit u(p.rows, p.channels);
    if (!u.there) return;
    float x[8], factor = p.factors[u.row % p.rows_factors];
    load_up_to_8((const T*)p.x + u.row * p.channels + u.c, u.count, u.wide, x);
#pragma unroll
    for (int i = 0; i < 8; i++) x[i] *= factor;
    store_up_to_8((T*)p.out + u.row * p.channels + u.c, u.count, u.wide, x);
}

template <class T>
__device__ __forceinline__ void concat(const ConcatParams& p) {
    Unit u(p.rows, p.channels);
    if (!u.there) return;
    int rest = p.channels - p.channels0;
    const T *a = (const T*)p.a + u.row * p.channels0, *b = (const T*)p.b + u.row * rest;
    T* to = (T*)p.out + u.row * p.channels + u.c;
    if (u.wide && p.channels0 % 8 == 0) {
        *(Vec8*)to = *(const Vec8*)(u.c < p.channels0 ? a + u.c : b + (u.c - p.channels0));
    } else {
        for (int i = 0; i < u.count; i++) {
            int c = u.c + i;
            to[i] = c < p.channels0 ? a[c] : b[c - p.channels0];
        }
    }
}

__device__ __forceinline__ int nearest(int at, int result, int source) {
    return min((int)((float)at * ((float)source / (float)result)), source - 1);
}

template <class T>
__device__ __forceinline__ void upsample(const UpsampleParams& p) {
    Unit u((i64)p.images * p.result_height * p.result_width, p.channels);
    if (!u.there) return;
    i64 line = u.row / p.result_width, image = line / p.result_height;
    int y = nearest((int)(line - image * p.result_height), p.result_height, p.height);
    int x = nearest((int)(u.row - line * p.result_width), p.result_width, p.width);
    const T* from = (const T*)p.x + ((image * p.height + y) * p.width + x) * p.channels + u.c;
    T* to = (T*)p.out + u.row * p.channels + u.c;
    if (u.wide) {
        *(Vec8*)to = *(const Vec8*)from;
    } else {
        for (int i = 0; i < u.count; i++) to[i] = from[i];
    }
}

// Sine and cosine of an angle below 1e5: the nearest multiple of pi / 2 is taken off in three parts (Cody and Waite), the
// rest goes into the Taylor polynomials, whose error on it is below 3e-9.
__device__ __forceinline__ void sine_cosine(float angle, float& sine, float& cosine) {
    float quarter = rintf(angle * 0.63661977236758134f);
    float r = fmaf(quarter, -1.5703125f, angle);
    r = fmaf(quarter, -4.837512969970703125e-4f, r);
    r = fmaf(quarter, -7.549789954891882e-8f, r);
    float q = r * r;
    float s = fmaf(q, fmaf(q, fmaf(q, 1.0f / 362880.0f, -1.0f / 5040.0f), 1.0f / 120.0f), -1.0f / 6.0f);
    s = fmaf(r * q, s, r);
    float c = fmaf(q, fmaf(q, fmaf(q, -1.0f / 3628800.0f, 1.0f / 40320.0f), -1.0f / 720.0f), 1.0f / 24.0f);
    c = fmaf(q, fmaf(q, c, -0.5f), 1.0f);
    int turn = (int)quarter & 3;
    sine = turn % 2 ? c : s;
    cosine = turn % 2 ? s : c;
    if (turn >= 2) sine = -sine;
    if (turn == 1 || turn == 2) cosine = -cosine;
}

template <class T>
__device__ __forceinline__ void timestep_embedding(const TimestepEmbeddingParams& p) {
    int half = p.channels / 2;
    i64 at = (i64)blockIdx.x * 256 + threadIdx.x, row = at / half;
    if (row >= p.rows) return;
    int i = (int)(at - row * half);
    float angle = p.x[row] * expf(-9.2103403719761836f * (float)i / ((float)half - p.shift));
    float sine, cosine;
    sine_cosine(angle, sine, cosine);
    T* to = (T*)p.out + row * p.channels + i;
    to[0] = Stored<T>::from(p.flip ? cosine : sine);
    to[half] = Stored<T>::from(p.flip ? sine : cosine);
    // An odd width ends with a zero.
    if (i == 0 && p.channels % 2) to[2 * half] = Stored<T>::from(0.0f);
}

// The sum of two rows' units.
template <class T>
__device__ __forceinline__ void store_sum(const Unit& u, const T* a, const T* b, T* to) {
    float x[8], y[8];
    load_up_to_8(a + u.c, u.count, u.wide, x);
    load_up_to_8(b + u.c, u.count, u.wide, y);
#pragma unroll
    for (int i = 0; i < 8; i++) x[i] += y[i];
    store_up_to_8(to + u.c, u.count, u.wide, x);
}

template <class T>
__device__ __forceinline__ void embedding(const EmbeddingParams& p) {
    Unit u(p.rows, p.channels);
    if (!u.there) return;
    i64 id = min(max(p.ids[u.row], 0), p.vocabulary - 1);
    const T* position = (const T*)p.positions + u.row % p.tokens * p.channels;
    store_sum(u, (const T*)p.table + id * p.channels, position, (T*)p.out + u.row * p.channels);
}

template <class T>
__device__ __forceinline__ void prepend_class_token(const PrependClassTokenParams& p) {
    Unit u(p.rows, p.channels);
    if (!u.there) return;
    i64 image = u.row / p.tokens, t = u.row - image * p.tokens;
    const T* from = t == 0 ? (const T*)p.token : (const T*)p.x + (image * (p.tokens - 1) + t - 1) * p.channels;
    store_sum(u, from, (const T*)p.positions + t * p.channels, (T*)p.out + u.row * p.channels);
}

template <class T>
__device__ __forceinline__ void gather(const GatherParams& p) {
    Unit u(p.rows, p.channels);
    if (!u.there) return;
    i64 t = p.index ? min(max(p.index[u.row], 0), p.tokens - 1) : 0;
    const T* from = (const T*)p.x + (u.row * p.tokens + t) * p.channels + u.c;
    T* to = (T*)p.out + u.row * p.channels + u.c;
    if (u.wide) {
        *(Vec8*)to = *(const Vec8*)from;
    } else {
        for (int i = 0; i < u.count; i++) to[i] = from[i];
    }
}

struct ScaleChannelsParams {
    const void* x;
    const float* factors;
    void* out;
    i64 rows;
    int channels;
    int reserved;
};

template <class T>
__device__ __forceinline__ void scale_channels(const ScaleChannelsParams& p) {
    Unit u(p.rows, p.channels);
    if (!u.there) return;
    float x[8];
    load_up_to_8((const T*)p.x + u.row * p.channels + u.c, u.count, u.wide, x);
#pragma unroll
    for (int i = 0; i < 8; i++) x[i] *= i < u.count ? p.factors[u.c + i] : 0.0f;
    store_up_to_8((T*)p.out + u.row * p.channels + u.c, u.count, u.wide, x);
}

#define KERNEL(PARAMS, CALL, NAME) \
    extern "C" __global__ __launch_bounds__(256) void NAME(const __grid_constant__ PARAMS p) { after_last_launch(); CALL; }

#define BOTH(PARAMS, CALL, NAME)                \
    KERNEL(PARAMS, (CALL<f16>(p)), NAME##_f16)  \
    KERNEL(PARAMS, (CALL<bf16>(p)), NAME##_bf16)

#define UNARY(FROM, TO, F, NAME) KERNEL(UnaryParams, (unary<FROM, TO>(p, [&](float x) { return F; })), NAME)

UNARY(f16, f16, silu(x), silu_f16)
UNARY(bf16, bf16, silu(x), silu_bf16)
UNARY(f16, f16, gelu(x), gelu_f16)
UNARY(bf16, bf16, gelu(x), gelu_bf16)
UNARY(f16, f16, quick_gelu(x), quick_gelu_f16)
UNARY(bf16, bf16, quick_gelu(x), quick_gelu_bf16)
UNARY(f16, f16, x < 0.0f ? 0.0f : x, relu_f16)
UNARY(bf16, bf16, x < 0.0f ? 0.0f : x, relu_bf16)
UNARY(float, float, x < 0.0f ? 0.0f : x, relu_f32)
UNARY(f16, f16, p.scale * tanhf(x / p.scale), soft_clamp_f16)
UNARY(bf16, bf16, p.scale * tanhf(x / p.scale), soft_clamp_bf16)
UNARY(float, float, p.scale * tanhf(x / p.scale), soft_clamp_f32)
UNARY(f16, f16, x * p.scale + p.shift, scale_shift_f16)
UNARY(bf16, bf16, x * p.scale + p.shift, scale_shift_bf16)
UNARY(float, float, x * p.scale + p.shift, scale_shift_f32)
UNARY(float, f16, x * p.scale + p.shift, from_f32_f16)
UNARY(float, bf16, x * p.scale + p.shift, from_f32_bf16)
UNARY(float, float, x * p.scale + p.shift, from_f32_f32)
UNARY(f16, float, x * p.scale + p.shift, to_f32_f16)
UNARY(bf16, float, x * p.scale + p.shift, to_f32_bf16)
UNARY(float, float, x * p.scale + p.shift, to_f32_f32)
BOTH(GegluParams, geglu, geglu)
BOTH(AddParams, add, add)
KERNEL(AddParams, add<float>(p), add_f32)
BOTH(ScaleRowsParams, scale_rows, scale_rows)
BOTH(ConcatParams, concat, concat)
BOTH(UpsampleParams, upsample, upsample)
BOTH(TimestepEmbeddingParams, timestep_embedding, timestep_embedding)
BOTH(EmbeddingParams, embedding, embedding)
BOTH(PrependClassTokenParams, prepend_class_token, prepend_class_token)
BOTH(GatherParams, gather, gather)
BOTH(ScaleChannelsParams, scale_channels, scale_channels)
