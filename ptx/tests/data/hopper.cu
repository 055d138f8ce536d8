// A product C = A B^T of halves on sm_90a: a warp that loads tiles with TMA into a ring of stages, two groups of warps that multiply
// them with wgmma, results through shared memory and TMA. With CLUSTER two blocks share B, of which each loads one half for both.

struct alignas(64) TensorMap {
    char bytes[128];
};

constexpr int STAGES = 3, ROWS = 128, COLUMNS = 64, DEPTH = 64;
constexpr int BYTES_A = ROWS * DEPTH * 2, BYTES_B = COLUMNS * DEPTH * 2;

__device__ unsigned shared_address(const void* p) { return (unsigned)__cvta_generic_to_shared(p); }

__device__ void init(unsigned bar, int count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count));
}

__device__ void expect(unsigned bar, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory");
}

__device__ void arrive(unsigned bar, unsigned block) {
#ifdef CLUSTER
    asm volatile(
        "{ .reg .b32 at; mapa.shared::cluster.u32 at, %0, %1; mbarrier.arrive.release.cluster.shared::cluster.b64 _, [at]; }" ::"r"(bar),
        "r"(block)
        : "memory");
#else
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
#endif
}

// Their labels tell the two waits apart in the PTX.
__device__ void wait_full(unsigned bar, unsigned parity) {
    asm volatile(
        "{ .reg .pred done; full: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1; @!done bra full; }" ::"r"(bar), "r"(parity)
        : "memory");
}

__device__ void wait_empty(unsigned bar, unsigned parity) {
    asm volatile(
        "{ .reg .pred done; empty: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1; @!done bra empty; }" ::"r"(bar), "r"(parity)
        : "memory");
}

__device__ void load(unsigned to, const TensorMap* map, int x, int y, unsigned bar) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(to),
                 "l"(map), "r"(x), "r"(y), "r"(bar)
                 : "memory"); // FAULT load
}

__device__ void multicast(unsigned to, const TensorMap* map, int x, int y, unsigned bar, unsigned short blocks) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
        "l"(map), "r"(x), "r"(y), "r"(bar), "h"(blocks)
        : "memory");
}

__device__ unsigned long long descriptor(unsigned at) {
    const unsigned long long stride = 1024, swizzle = 1;
    return (at >> 4 & 0x3fff) | 1ull << 16 | (stride >> 4) << 32 | swizzle << 62;
}

__device__ void multiply(float (&d)[32], unsigned long long a, unsigned long long b) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, "
        "%26, %27, %28, %29, %30, %31}, %32, %33, 1, 1, 1, 0, 0;"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]),
          "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]),
          "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]),
          "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
        : "l"(a), "l"(b));
}

__device__ unsigned pack(float low, float high) {
    unsigned out;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
    return out;
}

extern "C" __global__ void
#ifdef CLUSTER
    __cluster_dims__(2, 1, 1)
#endif
    __launch_bounds__(384, 1)
        hopper(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const __grid_constant__ TensorMap c, int depth) {
    extern __shared__ __align__(1024) char memory[];
    __shared__ __align__(8) unsigned long long full[STAGES], empty[STAGES];
    const unsigned stages = shared_address(memory), results = stages + STAGES * (BYTES_A + BYTES_B);
    const int group = threadIdx.x / 128, steps = depth / DEPTH, row = blockIdx.x * ROWS, column = blockIdx.y * COLUMNS;
#ifdef CLUSTER
    const unsigned blocks = 2;
    unsigned rank;
    asm("mov.u32 %0, %cluster_ctarank;" : "=r"(rank));
#else
    const unsigned blocks = 1;
#endif
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            init(shared_address(full + i), 1);
            init(shared_address(empty + i), 2 * blocks);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
#ifdef CLUSTER
    asm volatile("barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
    __syncthreads();
#endif
    if (group == 0) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (threadIdx.x == 0) {
#pragma unroll 1
            for (int i = 0; i < steps; i++) {
                const int stage = i % STAGES;
                const unsigned bar = shared_address(full + stage), to = stages + stage * (BYTES_A + BYTES_B);
                wait_empty(shared_address(empty + stage), (i / STAGES & 1) ^ 1);
                expect(bar, BYTES_A + BYTES_B);
                load(to, &a, i * DEPTH, row, bar);
#ifdef CLUSTER
                const int half = COLUMNS / 2 * rank;
                multicast(to + BYTES_A + BYTES_B / 2 * rank, &b, i * DEPTH, column + half, bar, 3);
#else
                load(to + BYTES_A, &b, i * DEPTH, column, bar);
#endif
            }
        }
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        const int consumer = group - 1, thread = threadIdx.x % 128;
        float d[32] = {};
#pragma unroll 1
        for (int i = 0; i < steps; i++) {
            const int stage = i % STAGES;
            const unsigned from = stages + stage * (BYTES_A + BYTES_B);
            wait_full(shared_address(full + stage), i / STAGES & 1);
            asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
            for (int k = 0; k < DEPTH; k += 16) {
                multiply(d, descriptor(from + consumer * BYTES_A / 2 + 2 * k), descriptor(from + BYTES_A + 2 * k));
            }
            asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
            asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
            if (thread < blocks) {
                arrive(shared_address(empty + stage), thread);
            }
        }
        const unsigned tile = results + consumer * 64 * COLUMNS * 2, line = thread / 32 * 16 + thread % 32 / 4;
        for (int j = 0; j < 32; j += 4) {
            const unsigned at = tile + line * COLUMNS * 2 + (2 * j + thread % 4 * 2) * 2;
            asm volatile("st.shared.b32 [%0], %1;" ::"r"(at), "r"(pack(d[j], d[j + 1])) : "memory"); // FAULT store
            asm volatile("st.shared.b32 [%0], %1;" ::"r"(at + 8 * COLUMNS * 2), "r"(pack(d[j + 2], d[j + 3])) : "memory");
        }
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
        asm volatile("bar.sync %0, 128;" ::"r"(1 + consumer) : "memory");
        if (thread == 0) {
            asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];" ::"l"(&c), "r"(column),
                         "r"(row + consumer * 64), "r"(tile)
                         : "memory"); // FAULT out
            asm volatile("cp.async.bulk.commit_group;" ::: "memory");
            asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
        }
    }
#ifdef CLUSTER
    asm volatile("barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

// One row of pixels of a convolution through an im2col map: lane l of the first warp writes element l of each row that arrived.
extern "C" __global__ void pixels(const __grid_constant__ TensorMap map, int x, int y, int image, int tap_x, int tap_y, int rows, unsigned short* out) {
    extern __shared__ __align__(1024) char memory[];
    __shared__ __align__(8) unsigned long long full;
    const unsigned bar = shared_address(&full);
    if (threadIdx.x == 0) {
        init(bar, 1);
        expect(bar, rows * 64);
        asm volatile(
            "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, %5}], [%6], {%7, %8};" ::"r"(
                shared_address(memory)),
            "l"(&map), "r"(0), "r"(x), "r"(y), "r"(image), "r"(bar), "h"((unsigned short)tap_x), "h"((unsigned short)tap_y)
            : "memory");
    }
    __syncthreads();
    wait_full(bar, 0);
    for (int row = 0; row < rows; row++) {
        out[row * 32 + threadIdx.x] = ((unsigned short*)memory)[row * 32 + threadIdx.x];
    }
}

// A tensor map made on the device: a tile of 16 by 8 words from (4, 2).
extern "C" __global__ void made_map(char* map, const int* data, int* out) {
    __shared__ __align__(128) char made[128];
    __shared__ __align__(128) int tile[8 * 16];
    __shared__ __align__(8) unsigned long long full;
    const unsigned at = shared_address(made), bar = shared_address(&full);
    ((int*)made)[threadIdx.x] = 0;
    __syncwarp();
    if (threadIdx.x == 0) {
        asm volatile("tensormap.replace.tile.global_address.shared::cta.b1024.b64 [%0], %1;" ::"r"(at), "l"(data) : "memory");
        asm volatile("tensormap.replace.tile.rank.shared::cta.b1024.b32 [%0], 1;" ::"r"(at) : "memory");
        asm volatile("tensormap.replace.tile.box_dim.shared::cta.b1024.b32 [%0], 0, %1;" ::"r"(at), "r"(16) : "memory");
        asm volatile("tensormap.replace.tile.box_dim.shared::cta.b1024.b32 [%0], 1, %1;" ::"r"(at), "r"(8) : "memory");
        asm volatile("tensormap.replace.tile.global_dim.shared::cta.b1024.b32 [%0], 0, %1;" ::"r"(at), "r"(18) : "memory");
        asm volatile("tensormap.replace.tile.global_dim.shared::cta.b1024.b32 [%0], 1, %1;" ::"r"(at), "r"(12) : "memory");
        asm volatile("tensormap.replace.tile.global_stride.shared::cta.b1024.b64 [%0], 0, %1;" ::"r"(at), "l"(96ull) : "memory");
        asm volatile("tensormap.replace.tile.element_stride.shared::cta.b1024.b32 [%0], 0, 1;" ::"r"(at) : "memory");
        asm volatile("tensormap.replace.tile.element_stride.shared::cta.b1024.b32 [%0], 1, 1;" ::"r"(at) : "memory");
        asm volatile("tensormap.replace.tile.elemtype.shared::cta.b1024.b32 [%0], 3;" ::"r"(at) : "memory");
        asm volatile("tensormap.replace.tile.interleave_layout.shared::cta.b1024.b32 [%0], 0;" ::"r"(at) : "memory");
        asm volatile("tensormap.replace.tile.swizzle_mode.shared::cta.b1024.b32 [%0], 0;" ::"r"(at) : "memory");
        asm volatile("tensormap.replace.tile.fill_mode.shared::cta.b1024.b32 [%0], 0;" ::"r"(at) : "memory");
        init(bar, 1);
    }
    __syncwarp();
    asm volatile("tensormap.cp_fenceproxy.global.shared::cta.tensormap::generic.release.gpu.sync.aligned [%0], [%1], 128;" ::"l"(map), "r"(at)
                 : "memory");
    asm volatile("fence.proxy.tensormap::generic.acquire.gpu [%0], 128;" ::"l"(map) : "memory");
    if (threadIdx.x == 0) {
        expect(bar, sizeof tile);
        load(shared_address(tile), (const TensorMap*)map, 4, 2, bar);
    }
    __syncwarp();
    wait_full(bar, 0);
    for (int i = threadIdx.x; i < 8 * 16; i += 32) {
        out[i] = tile[i];
    }
}
