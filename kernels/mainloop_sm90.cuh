// The main loop that gemm_sm90.cu and convolution_sm90.cu share on sm_90a: tiles of BM rows by BN columns of X W^T.
//
// A block stays and takes every gridDim.x-th tile. Its first warp copies tiles of X and W (TMA) into a ring of stages, 64 values of K
// each; two groups of 128 threads multiply them (wgmma) and finish the result. GROUPS = 2: both work on one tile, 64 MT rows each.
// GROUPS = 1: each takes every second tile, so that one finishes its result while the other multiplies. The copies run ahead into the
// next tile in both.
// Two blocks are a cluster and have neighbouring columns of tiles. Each copies half of the rows of X for both, since what L2 gives would
// not feed the tensor cores otherwise.
// Each element is one chain of m64nNk16 in order of K whatever the tile, the grid and the number of rows, so none of them changes a
// result. Rows and columns that are not there arrive as zeros, and are not stored.
// Barriers: `full` of a stage ends its phase when all bytes have arrived, `empty` when each warp of both blocks that multiplies it is
// done.
#pragma once

#include "epilogue.cuh"
#include "reduce.cuh"
#include "ring_sm90.cuh"

template <class T, int BN>
struct Wgmma;
#define WGMMA_OF(T, N)                                                                              \
    template <>                                                                                     \
    struct Wgmma<T, N> {                                                                            \
        static __device__ __forceinline__ void multiply(float(&d)[N / 2], u64 a, u64 b, int add) {  \
            wgmma_m64n##N##k16_f32_##T(d, a, b, add);                                               \
        }                                                                                           \
    };
WGMMA_OF(f16, 128)
WGMMA_OF(bf16, 128)
WGMMA_OF(f16, 160)
WGMMA_OF(bf16, 160)
WGMMA_OF(f16, 256)
WGMMA_OF(bf16, 256)

// The order of a cluster's tiles: bands of eight rows of them, each band column by column, so that blocks at work share what they read
// in L2. `across` counts pairs of columns; where their number is odd, one block of the last pair has zeros and stores nothing.
struct TileOrder {
    static constexpr int BAND = 8;
    int down, across;

    static __device__ __forceinline__ TileOrder of(int down, int columns) { return TileOrder{down, (columns + 1) / 2}; }

    __device__ __forceinline__ int count() const { return down * across; }

    __device__ __forceinline__ void place(int tile, int& row, int& column) const {
        int band = tile / (BAND * across) * BAND, height = min(BAND, down - band), i = tile - band * across;
        column = i / height;
        row = band + i - column * height;
    }
};

// Sums that are what the products add up to.
struct Unscaled {
    template <class Loop, class Sums>
    __device__ __forceinline__ void operator()(const Loop&, Sums&, int, int) const {}
};

template <class T, int MT, int BN, int GROUPS>
struct MainloopSm90 {
    static constexpr int BM = 64 * MT * GROUPS, DEPTH = 64, THREADS = 384;
    static constexpr bool E4M3 = false;
    static constexpr int A_BYTES = BM * 128, STAGE_BYTES = A_BYTES + BN * 128;
    // Results leave in boxes of 64 rows by 64 bytes, two of them under way for each group.
    static constexpr int BOX_BYTES = 64 * 64, BOXES = 2;
    static constexpr int ROOM = 232448 - 2 * BOXES * BOX_BYTES - 256;
    static constexpr int STAGES = ROOM / STAGE_BYTES < 6 ? ROOM / STAGE_BYTES : 6;
    static constexpr int SHARED_BYTES = STAGES * STAGE_BYTES + 2 * BOXES * BOX_BYTES + 16 * STAGES;
    static_assert(STAGES >= 3 && 16 * STAGES <= 256, "stages and their barriers");

    u32 shared, boxes, full, empty;
    // 0: copies, 1 and 2: multiply.
    int role, thread, rank;

    __device__ __forceinline__ MainloopSm90(const void* memory)
        : shared(shared_address(memory)), boxes(shared + STAGES * STAGE_BYTES), full(boxes + 2 * BOXES * BOX_BYTES),
          empty(full + 8 * STAGES), role(threadIdx.x / 128), thread(threadIdx.x % 128), rank(cluster_rank()) {
        if (threadIdx.x == 0) {
            for (int i = 0; i < STAGES; i++) {
                mbarrier_init(full + 8 * i, 1);
                mbarrier_init(empty + 8 * i, 2 * 4 * GROUPS);
            }
            fence_mbarrier_init();
        }
        barrier_cluster();
        after_last_launch();
    }

    // `copy(step, row, column, to, bar)` begins the copies of a step of the tile at that row and column of tiles: X's part of this
    // block, for both, to its place behind `to`, and W behind X.
    template <class Copy>
    __device__ __forceinline__ void produce(TileOrder order, int steps, Copy copy) {
        RingPlace ring;
#pragma unroll 1
        for (int tile = blockIdx.x / 2; tile < order.count(); tile += gridDim.x / 2) {
            int row, column;
            order.place(tile, row, column);
            column = 2 * column + rank;
#pragma unroll 1
            for (int step = 0; step < steps; step++) {
                mbarrier_wait(empty + 8 * ring.stage, ring.parity ^ 1);
                mbarrier_arrive_expect_tx(full + 8 * ring.stage, STAGE_BYTES);
                copy(step, row, column, shared + ring.stage * STAGE_BYTES, full + 8 * ring.stage);
                ring.advance(STAGES);
            }
        }
    }

    __device__ __forceinline__ void release(int stage) {
        int lane = thread % 32;
        if (lane < 2) mbarrier_arrive_cluster(empty + 8 * stage, lane);
    }

    // `done` is called when all of the tile's stages have arrived.
    template <class Done>
    __device__ __forceinline__ void multiply(float (&acc)[MT][BN / 2], int steps, RingPlace& ring, Done done) {
        int before = 0;
        u32 mine = GROUPS == 2 ? (role - 1) * MT * 64 * 128 : 0;
#pragma unroll 1
        for (int step = 0; step < steps; step++) {
            u32 a = shared + ring.stage * STAGE_BYTES + mine, b = shared + ring.stage * STAGE_BYTES + A_BYTES;
            mbarrier_wait(full + 8 * ring.stage, ring.parity);
            wgmma_fence();
#pragma unroll
            for (int k = 0; k < DEPTH / 16; k++)
#pragma unroll
                for (int m = 0; m < MT; m++)
                    Wgmma<T, BN>::multiply(acc[m], wgmma_descriptor(a + m * 64 * 128 + k * 32), wgmma_descriptor(b + k * 32),
                                           step + k > 0);
            wgmma_commit_group();
            // The step before is done.
            wgmma_wait_group<1>();
            if (step > 0) release(before);
            before = ring.stage;
            ring.advance(STAGES);
        }
        done();
        wgmma_wait_group<0>();
        release(before);
    }

    // `finish(acc, row, column, first)` gets the accumulators of 64 MT rows, of which `first` is the first one in the tile.
    template <class Finish>
    __device__ __forceinline__ void consume(TileOrder order, int steps, Finish finish) {
        RingPlace ring;
        int clusters = gridDim.x / 2, first = blockIdx.x / 2, mine = role - 1, tile = first;
        if (GROUPS == 1 && mine == 1) tile += clusters, ring.skip(steps, STAGES);
#pragma unroll 1
        for (; tile < order.count(); tile += clusters * (3 - GROUPS)) {
            int row, column;
            order.place(tile, row, column);
            // The groups multiply in turn. Not only for speed: a stage's parity tells its present phase from the one before alone, so a
            // group must not look for its own phase before the other's, which it skips, has ended.
            if (GROUPS == 1 && tile != first) bar_sync<256>(2 + role);
            float acc[MT][BN / 2];
            multiply(acc, steps, ring, [&] {
                if (GROUPS == 1 && tile + clusters < order.count()) bar_arrive<256>(5 - role);
            });
            finish(acc, row, 2 * column + rank, GROUPS == 1 ? 0 : mine * MT * 64);
            if (GROUPS == 1) ring.skip(steps, STAGES);
        }
        if (thread == 0) bulk_wait_group_read<0>();
    }

    // COPYING registers a thread for the warps that copy; the others, which `work`, share the rest of 168 each.
    template <int COPYING, class Copy, class Work>
    __device__ __forceinline__ void run_roles(TileOrder order, int steps, Copy copy, Work work) {
        if (role == 0) {
            setmaxnreg_dec<COPYING>();
            if (thread == 0) produce(order, steps, copy);
        } else {
            setmaxnreg_inc<(3 * 168 - COPYING) / 2>();
            work();
        }
        // The other block may still copy into this one and arrive at its barriers.
        __syncwarp();
        barrier_cluster();
    }

    template <int COPYING, class Copy, class Finish>
    __device__ __forceinline__ void run(TileOrder order, int steps, Copy copy, Unscaled, Finish finish) {
        run_roles<COPYING>(order, steps, copy, [&] { consume(order, steps, finish); });
    }

    // Puts 64 rows by COLUMNS (32 or 16) columns of this group's results in shared memory and calls `store` with their address; `pairs`
    // holds for each eight columns two of row g of this warp, then two of row g + 8. `turn` counts these boxes.
    template <int COLUMNS, class Store>
    __device__ __forceinline__ void send(const u32 (&pairs)[COLUMNS / 8][2], int& turn, Store store) {
        u32 box = boxes + ((role - 1) * BOXES + turn % BOXES) * BOX_BYTES;
        int lane = thread % 32, warp = thread / 32;
        // What left from here before has been read.
        if (thread == 0) bulk_wait_group_read<BOXES - 1>();
        bar_sync<128>(role);
        if constexpr (COLUMNS == 32) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int row = warp * 16 + half * 8 + lane % 8;
                stmatrix_x4(box + row * 64 + ((lane / 8 ^ row / 2 % 4) * 16),
                            {pairs[0][half], pairs[1][half], pairs[2][half], pairs[3][half]});
            }
        } else {
            int row = warp * 16 + lane / 16 * 8 + lane % 8;
            stmatrix_x4(box + row * 32 + ((lane / 8 % 2 ^ row / 4 % 2) * 16), {pairs[0][0], pairs[1][0], pairs[0][1], pairs[1][1]});
        }
        fence_proxy_async();
        bar_sync<128>(role);
        store(box);
        turn++;
    }

    // Sends a box on its way to the columns from `left` and the rows from `top`, of which those that are not there are left out.
    __device__ __forceinline__ void store_box(const TensorMap& out, int left, int top, u32 box) const {
        if (thread == 0) {
            store_tensor_2d(out, left, top, box);
            bulk_commit_group();
        }
    }
};

// A row's bias of its image and its residual, at a pair of columns; zeros where there is none or nothing is stored.
template <class T>
struct Addends {
    const T *rows, *residual;

    template <class Place>
    __device__ __forceinline__ Addends(const EpilogueParams& f, int m, int end, int columns, Place place) {
        bool there = m < end;
        rows = there && f.rows ? (const T*)f.rows + (i64)(m / f.rows_of_image) * columns : nullptr;
        residual = there && f.residual ? (const T*)f.residual + place(m) * f.residual_stride : nullptr;
    }

    static __device__ __forceinline__ u32 pair(const T* at, int n) { return at ? *(const u32*)(at + n) : 0; }
};

// Rows of one image whose moments are taken together: those of a box, which no tile divides.
static constexpr int RUN = 64;

// The sum of a column of a box, or of its squared deviations from a mean: of 16 of its 64 values in each of four lanes.
template <class T, bool SQUARES>
__device__ __forceinline__ float column_sum(u32 from, float mean) {
    float sums[2] = {};
#pragma unroll
    for (int i = 0; i < 2; i++) {
        u32 pairs[4];
        ldmatrix_x4_trans(pairs, from + i * 32 * 64);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            float low = Stored<T>::low(pairs[j]) - mean, high = Stored<T>::high(pairs[j]) - mean;
            sums[0] += SQUARES ? low * low : low;
            sums[1] += SQUARES ? high * high : high;
        }
    }
    return four_lanes_sum(sums[0] + sums[1]);
}

// Stores the moments of a box's columns, from `left` on of so many: of each the mean of the values as they are stored, and `columns`
// further the sum of their squared deviations from it. A warp takes eight columns and reads them twice, since beside the accumulators
// there are no registers to hold them.
template <class T>
__device__ __forceinline__ void store_moments(u32 box, int thread, int left, int columns, float* to) {
    int lane = thread % 32, unit = thread / 32, n = left + unit * 8 + lane / 4;
    u32 from = box + lane * 64 + (unit ^ lane / 2 % 4) * 16;
    float mean = column_sum<T, false>(from, 0.0f) / RUN;
    float squares = column_sum<T, true>(from, mean);
    if (lane % 4 == 0 && n < columns) {
        to[n] = mean;
        to[columns + n] = squares;
    }
}

// X W^T + bias + rows + residual of a group's accumulators, as store_result computes it. `place` maps a row of X to one of the result
// and the residual; `store(box, left, top)` stores 32 columns of 64 rows. `run(row)` is the number of the run that begins at a row of X,
// where there are moments: then each image has whole runs.
template <bool ALWAYS, class Loop, class T, int MT, int BN, class Place, class Store, class Run>
__device__ __forceinline__ void finish_tile(Loop& loop, const float (&acc)[MT][BN / 2], const EpilogueParams& f, int top, int end,
                                            int left, int columns, int& turn, Place place, Store store, Run run) {
    int first = top + loop.thread / 32 * 16 + loop.thread % 32 / 4;
#pragma unroll
    for (int m = 0; m < MT; m++) {
        Addends<T> low(f, first + 64 * m, end, columns, place), high(f, first + 64 * m + 8, end, columns, place);
        bool measured = f.moments && top + 64 * m < end;
#pragma unroll
        for (int i = 0; i < BN / 32; i++) {
            u32 pairs[4][2];
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const float* x = &acc[m][(i * 4 + j) * 4];
                int n = left + i * 32 + j * 8 + loop.thread % 4 * 2;
                bool there = n < columns;
                u32 bias = Addends<T>::pair(there ? (const T*)f.bias : nullptr, n);
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    const Addends<T>& added = half ? high : low;
                    u32 rows = Addends<T>::pair(there ? added.rows : nullptr, n);
                    u32 residual = Addends<T>::pair(there ? added.residual : nullptr, n);
                    float a = x[2 * half] + Stored<T>::low(bias) + Stored<T>::low(rows) + Stored<T>::low(residual);
                    float b = x[2 * half + 1] + Stored<T>::high(bias) + Stored<T>::high(rows) + Stored<T>::high(residual);
                    pairs[j][half] = Stored<T>::pack(a, b);
                }
            }
            loop.template send<32>(pairs, turn, [&](u32 box) {
                store(box, left + i * 32, top + 64 * m);
                // A branch around them would make the assembler spill in a convolution of e4m3: those that nobody reads are not stored.
                if (!ALWAYS && !measured) return;
                float* to = f.moments + (i64)run(fresh(top + 64 * m)) * 2 * columns;
                store_moments<T>(box, fresh(loop.thread), left + i * 32, measured ? columns : 0, to);
            });
        }
    }
}
