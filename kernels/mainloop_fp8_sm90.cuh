// The main loop that gemm_fp8_sm90.cu and convolution_fp8_sm90.cu share: mainloop_sm90.cuh's, with X and W in e4m3.
//
// The maps copy e4m3 by pairs, as values of two bytes: 64 of these are 128 values of K, a stage. wgmma sums e4m3 with fewer bits than
// f32 has, so the sums of each stage are made anew and then added in f32. They are sums of `PN` columns at a time, as many as there are
// registers for beside the accumulators. Both groups work on one tile, 64 MT rows each: one multiplies while the other adds.
// Each element is one chain of sums of 128 values in order of K whatever the tile, the grid and the number of rows.
#pragma once

#include "mainloop_sm90.cuh"

struct e4m3 {
    unsigned char bits;
};

#define WGMMA_OF_E4M3(N)                                                                            \
    template <>                                                                                     \
    struct Wgmma<e4m3, N> {                                                                         \
        static __device__ __forceinline__ void multiply(float(&d)[N / 2], u64 a, u64 b, int add) {  \
            wgmma_m64n##N##k32_f32_e4m3(d, a, b, add);                                              \
        }                                                                                           \
    };
WGMMA_OF_E4M3(80)
WGMMA_OF_E4M3(128)
WGMMA_OF_E4M3(160)

// Factors of a stage's sums that are ones.
struct Ones {
    __device__ __forceinline__ void next() {}
    __device__ __forceinline__ float of(int, int) const { return 1.0f; }
};

template <int MT, int BN, int PN>
struct MainloopFp8Sm90 : MainloopSm90<e4m3, MT, BN, 2> {
    using Loop = MainloopSm90<e4m3, MT, BN, 2>;
    static constexpr bool E4M3 = true;

    __device__ __forceinline__ MainloopFp8Sm90(const void* memory) : Loop(memory) {}

    // `factors.of(m, half)` is that of rows g and g + 8 of this warp's part of the rows from 64 m on, after `next()` for each stage.
    template <class Factors>
    __device__ __forceinline__ void multiply(float (&acc)[MT][BN / 2], int steps, RingPlace& ring, Factors factors) {
        u32 mine = (this->role - 1) * MT * 64 * 128;
#pragma unroll 1
        for (int step = 0; step < steps; step++) {
            u32 a = this->shared + ring.stage * Loop::STAGE_BYTES + mine, b = this->shared + ring.stage * Loop::STAGE_BYTES + Loop::A_BYTES;
            factors.next();
            mbarrier_wait(this->full + 8 * ring.stage, ring.parity);
#pragma unroll
            for (int m = 0; m < MT; m++)
#pragma unroll
                for (int n = 0; n < BN / PN; n++) {
                    float sums[PN / 2];
                    wgmma_fence();
#pragma unroll
                    for (int k = 0; k < 4; k++)
                        Wgmma<e4m3, PN>::multiply(sums, wgmma_descriptor(a + m * 64 * 128 + k * 32),
                                                  wgmma_descriptor(b + n * PN * 128 + k * 32), k > 0);
                    wgmma_commit_group();
                    wgmma_wait_group<0>();
                    settled(sums);
                    if (m == MT - 1 && n == BN / PN - 1) this->release(ring.stage);
#pragma unroll
                    for (int i = 0; i < PN / 2; i++) {
                        float& sum = acc[m][n * (PN / 2) + i];
                        sum = fmaf(sums[i], factors.of(m, i / 2 % 2), sum);
                    }
                }
            ring.advance(Loop::STAGES);
        }
    }

    // `factors(row, first)` are those of the tiles of that row, `finish` as MainloopSm90's.
    template <int COPYING, class Copy, class Factors, class Finish>
    __device__ __forceinline__ void run(TileOrder order, int steps, Copy copy, Factors factors, Finish finish) {
        this->template run_roles<COPYING>(order, steps, copy, [&] {
            RingPlace ring;
#pragma unroll 1
            for (int tile = blockIdx.x / 2; tile < order.count(); tile += gridDim.x / 2) {
                int row, column, first = (this->role - 1) * MT * 64;
                order.place(tile, row, column);
                float acc[MT][BN / 2] = {};
                multiply(acc, steps, ring, factors(row, first));
                finish(acc, row, 2 * column + this->rank, first);
            }
            if (this->thread == 0) bulk_wait_group_read<0>();
        });
    }

    template <int COPYING, class Copy, class Finish>
    __device__ __forceinline__ void run(TileOrder order, int steps, Copy copy, Unscaled, Finish finish) {
        run<COPYING>(order, steps, copy, [](int, int) { return Ones{}; }, finish);
    }
};

// Multiplies sums by the factors of their rows from `top` to `end`, where there are any, and of their columns: `column(j)` is the address
// of those of eight columns from 8 j on, null where they are not there.
template <int MT, int BN, class Column>
__device__ __forceinline__ void scale_sums(float (&acc)[MT][BN / 2], int thread, const float* rows, int top, int end, Column column) {
    int first = top + thread / 32 * 16 + thread % 32 / 4;
    float factor[MT][2];
#pragma unroll
    for (int i = 0; i < 2 * MT; i++) {
        int row = first + i / 2 * 64 + i % 2 * 8;
        factor[i / 2][i % 2] = rows && row < end ? rows[row] : 1.0f;
    }
#pragma unroll
    for (int j = 0; j < BN / 8; j++) {
        const float* at = column(j);
        float2 w = at ? *(const float2*)(at + thread % 4 * 2) : make_float2(1.0f, 1.0f);
#pragma unroll
        for (int i = 0; i < 2 * MT; i++) {
            float* x = &acc[i / 2][4 * j + i % 2 * 2];
            x[0] *= factor[i / 2][i % 2] * w.x;
            x[1] *= factor[i / 2][i % 2] * w.y;
        }
    }
}
