// Rows of values to e4m3: Q = X / scales, the scale of a row being its largest magnitude / 448.
//
// Shapes     X [rows, columns], Q [rows, columns] of e4m3, scales [rows] of f32.
// Grid       ceil(rows / 8), 256 threads: a warp takes a row and reads it twice, the second time from L1.
// Shared     none.
// Requires   columns % 8 == 0; X 16-byte and Q 8-byte aligned.
// A row with a value that is not finite has the scale NaN, and so have its results. No scale is that of a magnitude below 1e-30, whose
// inverse would not be finite.
// Source     the definition; e4m3 as in "FP8 formats for deep learning" (Micikevicius and others 2022).
#include "half.cuh"
#include "ptx_sm90.cuh"

struct QuantizeParams {
    const void* x;
    void* out;
    float* scales;
    int rows;
    int columns;
};

constexpr float LARGEST = 448.0f, LEAST = 1e-30f;

__device__ __forceinline__ u32 magnitude(float x) { return __float_as_uint(x) & 0x7fffffffu; }

template <class T>
__device__ __forceinline__ void quantize_rows(const QuantizeParams& p) {
    int row = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= p.rows) return;
    const T* from = (const T*)p.x + (i64)row * p.columns;
    // As integers, of which those of infinities and NaN are the largest.
    u32 most = 0;
    for (int c = lane * 8; c < p.columns; c += 256) {
        float x[8];
        load8(from + c, x);
#pragma unroll
        for (int j = 0; j < 8; j++) most = max(most, magnitude(x[j]));
    }
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) most = max(most, __shfl_xor_sync(0xffffffffu, most, distance));
    bool finite = most < 0x7f800000u;
    float largest = finite ? fmaxf(__uint_as_float(most), LEAST) : __uint_as_float(0x7fffffffu), inverse = LARGEST / largest;
    if (lane == 0) p.scales[row] = largest / LARGEST;
    uint2* to = (uint2*)((char*)p.out + (i64)row * p.columns);
    for (int c = lane * 8; c < p.columns; c += 256) {
        float x[8];
        load8(from + c, x);
        u32 pairs[4];
#pragma unroll
        for (int j = 0; j < 4; j++) pairs[j] = cvt_rn_satfinite_e4m3x2_f32(x[2 * j + 1] * inverse, x[2 * j] * inverse);
        to[c / 8] = make_uint2(pairs[0] | pairs[1] << 16, pairs[2] | pairs[3] << 16);
    }
}

extern "C" __global__ __launch_bounds__(256) void quantize_rows_f16(const __grid_constant__ QuantizeParams p) {
    after_last_launch();
    quantize_rows<f16>(p);
}

extern "C" __global__ __launch_bounds__(256) void quantize_rows_bf16(const __grid_constant__ QuantizeParams p) {
    after_last_launch();
    quantize_rows<bf16>(p);
}

extern "C" __global__ __launch_bounds__(256) void quantize_rows_f32(const __grid_constant__ QuantizeParams p) {
    after_last_launch();
    quantize_rows<float>(p);
}
