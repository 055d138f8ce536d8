// Online softmax over tiles of scores in the accumulators of m16n8k16 (Milakov and Gimelshein 2018): a thread has the columns
// 2 (lane % 4) and the next of each group of 8, of the rows g = lane / 4 and g + 8; the four lanes of a row agree by shuffles.
#pragma once

#include "math.cuh"
#include "ptx.cuh"

__device__ __forceinline__ float infinity() { return __uint_as_float(0x7f800000u); }

// The state of MT tiles of 16 rows.
template <int MT>
struct OnlineSoftmax {
    // Greatest score and this thread's part of the sum of the exponentials, rows g and g + 8.
    float greatest[MT][2], sum[MT][2];

    __device__ __forceinline__ void reset(int m) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            greatest[m][r] = -infinity();
            sum[m][r] = 0.0f;
        }
    }

    // Scores become exponentials; earlier sums and outputs shrink to the new greatest score. `scale` is log2(e) / sqrt(dim).
    template <int SCORES, int OUTPUTS>
    __device__ __forceinline__ void update(float (&s)[MT][SCORES][4], float (&o)[MT][OUTPUTS][4], float scale) {
        float decays[MT][2];
        // Multiplying by one changes nothing; after the first tiles a greatest score rarely moves.
        if (__any_sync(0xffffffffu, exponentials(s, scale, decays))) shrink(o, decays);
    }

    // Scores become exponentials, earlier sums shrink; `decays` is what outputs shrink by. Whether any of this thread's does.
    template <int SCORES>
    __device__ __forceinline__ bool exponentials(float (&s)[MT][SCORES][4], float scale, float (&decays)[MT][2]) {
        bool moved = false;
#pragma unroll
        for (int m = 0; m < MT; m++)
#pragma unroll
            for (int r = 0; r < 2; r++) {
                float top = greatest_of(s[m], r, greatest[m][r]);
                float decay = ex2_approx_ftz_f32((greatest[m][r] - top) * scale);
                greatest[m][r] = top;
                sum[m][r] = sum[m][r] * decay + exponentials_of(s[m], r, top * scale, scale);
                decays[m][r] = decay;
                moved |= decay != 1.0f;
            }
        return moved;
    }

    // The same of a softmax's first scores, before which nothing has to shrink, nor to be reset.
    template <int SCORES>
    __device__ __forceinline__ void first_exponentials(float (&s)[MT][SCORES][4], float scale) {
#pragma unroll
        for (int m = 0; m < MT; m++)
#pragma unroll
            for (int r = 0; r < 2; r++) {
                greatest[m][r] = greatest_of(s[m], r, -infinity());
                sum[m][r] = exponentials_of(s[m], r, greatest[m][r] * scale, scale);
            }
    }

    // The greatest of `top` and the scores of row g (r = 0) or g + 8 (r = 1), on which its four lanes agree.
    template <int SCORES>
    static __device__ __forceinline__ float greatest_of(const float (&s)[SCORES][4], int r, float top) {
#pragma unroll
        for (int n = 0; n < SCORES; n++) top = fmaxf(top, fmaxf(s[n][2 * r], s[n][2 * r + 1]));
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
        return fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
    }

    // This thread's scores of such a row become exponentials; their sum.
    template <int SCORES>
    static __device__ __forceinline__ float exponentials_of(float (&s)[SCORES][4], int r, float base, float scale) {
        float total = 0.0f;
#pragma unroll
        for (int n = 0; n < SCORES; n++)
#pragma unroll
            for (int i = 2 * r; i < 2 * r + 2; i++) {
                s[n][i] = ex2_approx_ftz_f32(s[n][i] * scale - base);
                total += s[n][i];
            }
        return total;
    }

    template <int OUTPUTS>
    static __device__ __forceinline__ void shrink(float (&o)[MT][OUTPUTS][4], const float (&decays)[MT][2]) {
#pragma unroll
        for (int m = 0; m < MT; m++)
#pragma unroll
            for (int n = 0; n < OUTPUTS; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) o[m][n][i] *= decays[m][i / 2];
    }

    // The sum of the exponentials of row g (r = 0) or g + 8 (r = 1) of row tile m.
    __device__ __forceinline__ float row_sum(int m, int r) const {
        float total = sum[m][r] + __shfl_xor_sync(0xffffffffu, sum[m][r], 1);
        return total + __shfl_xor_sync(0xffffffffu, total, 2);
    }
};
