// The 16-bit storage types f16 and bf16 and what is done to them: nothing but conversion. Arithmetic is f32, which is a storage
// type, too, where exactness is asked for.
#pragma once

#include "ptx.cuh"

struct f16 {
    u16 bits;
};

struct bf16 {
    u16 bits;
};

// Eight 16-bit values: the unit of every wide access.
struct alignas(16) Vec8 {
    u32 pair[4];
};

__device__ __forceinline__ float to_f32(float x) { return x; }
__device__ __forceinline__ float to_f32(f16 x) { return cvt_f32_f16(x.bits); }
__device__ __forceinline__ float to_f32(bf16 x) { return __uint_as_float((u32)x.bits << 16); }

template <class T>
struct Stored;

template <>
struct Stored<f16> {
    // Beyond this a conversion gives infinity.
    static constexpr float MAX = 65504.0f;
    static __device__ __forceinline__ f16 from(float x) { return f16{cvt_rn_f16_f32(x)}; }
    static __device__ __forceinline__ u32 pack(float low, float high) { return cvt_rn_f16x2_f32(high, low); }
    static __device__ __forceinline__ float low(u32 pair) { return cvt_f32_f16((u16)pair); }
    static __device__ __forceinline__ float high(u32 pair) { return cvt_f32_f16((u16)(pair >> 16)); }
    static __device__ __forceinline__ void mma(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
        mma_m16n8k16_f32_f16(c, a, b0, b1);
    }
};

template <>
struct Stored<bf16> {
    static constexpr float MAX = 3.3895313892515355e38f;
    static __device__ __forceinline__ bf16 from(float x) { return bf16{cvt_rn_bf16_f32(x)}; }
    static __device__ __forceinline__ u32 pack(float low, float high) { return cvt_rn_bf16x2_f32(high, low); }
    static __device__ __forceinline__ float low(u32 pair) { return __uint_as_float(pair << 16); }
    static __device__ __forceinline__ float high(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }
    static __device__ __forceinline__ void mma(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
        mma_m16n8k16_f32_bf16(c, a, b0, b1);
    }
};

template <>
struct Stored<float> {
    static constexpr float MAX = 3.4028234663852886e38f;
    static __device__ __forceinline__ float from(float x) { return x; }
};

template <class T>
__device__ __forceinline__ void unpack(const Vec8& from, float (&x)[8]) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        x[2 * i] = Stored<T>::low(from.pair[i]);
        x[2 * i + 1] = Stored<T>::high(from.pair[i]);
    }
}

template <class T>
__device__ __forceinline__ Vec8 pack(const float (&x)[8]) {
    Vec8 to;
#pragma unroll
    for (int i = 0; i < 4; i++) to.pair[i] = Stored<T>::pack(x[2 * i], x[2 * i + 1]);
    return to;
}

// `p` is 16-byte aligned. A vector type, since the compiler makes four loads of a struct whose parts are used apart.
template <class T>
__device__ __forceinline__ void load8(const T* p, float (&x)[8]) {
    uint4 unit = *(const uint4*)p;
    unpack<T>(Vec8{{unit.x, unit.y, unit.z, unit.w}}, x);
}

template <>
__device__ __forceinline__ void load8(const float* p, float (&x)[8]) {
    float4 low = ((const float4*)p)[0], high = ((const float4*)p)[1];
    x[0] = low.x, x[1] = low.y, x[2] = low.z, x[3] = low.w;
    x[4] = high.x, x[5] = high.y, x[6] = high.z, x[7] = high.w;
}

template <class T>
__device__ __forceinline__ void store8(T* p, const float (&x)[8]) {
    *(Vec8*)p = pack<T>(x);
}

template <>
__device__ __forceinline__ void store8(float* p, const float (&x)[8]) {
    ((float4*)p)[0] = make_float4(x[0], x[1], x[2], x[3]);
    ((float4*)p)[1] = make_float4(x[4], x[5], x[6], x[7]);
}

// The first `count` of 8 values, 8 where `wide` is set (then 16-byte aligned), and zeros after them.
template <class T>
__device__ __forceinline__ void load_up_to_8(const T* p, int count, bool wide, float (&x)[8]) {
    if (wide) {
        load8(p, x);
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++) x[i] = i < count ? to_f32(p[i]) : 0.0f;
    }
}

template <class T>
__device__ __forceinline__ void store_up_to_8(T* p, int count, bool wide, const float (&x)[8]) {
    if (wide) {
        store8(p, x);
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++)
            if (i < count) p[i] = Stored<T>::from(x[i]);
    }
}

// Keeps a value in the finite range of T; NaN stays NaN.
template <class T>
__device__ __forceinline__ float clamped(float x) {
    return fabsf(x) > Stored<T>::MAX ? copysignf(Stored<T>::MAX, x) : x;
}
