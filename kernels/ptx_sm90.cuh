// Inline PTX of sm_90a: tensor copies (TMA), barriers in shared memory, wgmma. A wrapper for each instruction, named after it.
//
// Accumulators of wgmma.m64nNk16 (PTX manual, "Matrix fragments for wgmma"): warp w of the group has rows 16 w to 16 w + 15; with
// g = lane / 4, t = lane % 4, registers 4 j + {0, 1} are (row g, columns 8 j + 2t + {0, 1}), 4 j + {2, 3} the same of row g + 8.
#pragma once

#include "ptx.cuh"

// A descriptor of a tensor, which the driver encodes.
struct alignas(64) TensorMap {
    char bytes[128];
};

__device__ __forceinline__ void prefetch_tensormap(const TensorMap& map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

__device__ __forceinline__ void mbarrier_init(u32 bar, int count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count) : "memory");
}

// Lets the other proxy and other blocks see the barriers that were made.
__device__ __forceinline__ void fence_mbarrier_init() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void mbarrier_arrive(u32 bar) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}

// The same of the barrier at that address in another block of the cluster.
__device__ __forceinline__ void mbarrier_arrive_cluster(u32 bar, int block) {
    asm volatile(
        "{ .reg .b32 at; mapa.shared::cluster.u32 at, %0, %1; mbarrier.arrive.release.cluster.shared::cluster.b64 _, [at]; }" ::"r"(bar),
        "r"(block)
        : "memory");
}

__device__ __forceinline__ int cluster_rank() {
    u32 rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

// A barrier of all threads of a cluster.
__device__ __forceinline__ void barrier_cluster() {
    asm volatile("barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

__device__ __forceinline__ void mbarrier_arrive_expect_tx(u32 bar, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory");
}

// Waits for the end of the phase of that parity; a new barrier is past the one of parity 1.
__device__ __forceinline__ void mbarrier_wait(u32 bar, int parity) {
    asm volatile(
        "{ .reg .pred done; again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1; @!done bra again; }" ::"r"(bar),
        "r"(parity)
        : "memory");
}

// Tensor copies: coordinates from the innermost dimension; their bytes count for `bar`.
__device__ __forceinline__ void load_tensor_2d(u32 to, const TensorMap& map, int x, int y, u32 bar) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(to),
        "l"(&map), "r"(x), "r"(y), "r"(bar)
        : "memory");
}

__device__ __forceinline__ void load_tensor_4d(u32 to, const TensorMap& map, int x, int y, int z, int w, u32 bar) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, %5}], [%6];" ::"r"(
            to),
        "l"(&map), "r"(x), "r"(y), "r"(z), "r"(w), "r"(bar)
        : "memory");
}

// The same to this address in both blocks of a cluster, for the barrier of each.
__device__ __forceinline__ void load_tensor_2d_both(u32 to, const TensorMap& map, int x, int y, u32 bar) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%2, %3}], [%4], "
        "%5;" ::"r"(to),
        "l"(&map), "r"(x), "r"(y), "r"(bar), "h"((u16)3)
        : "memory");
}

// Consecutive base pixels from (x, y) of an image on, moved by the offsets of the tap.
__device__ __forceinline__ void load_tensor_im2col_both(u32 to, const TensorMap& map, int channel, int x, int y, int image, int tap_x,
                                                        int tap_y, u32 bar) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%2, %3, %4, "
        "%5}], [%6], {%7, %8}, %9;" ::"r"(to),
        "l"(&map), "r"(channel), "r"(x), "r"(y), "r"(image), "r"(bar), "h"((u16)tap_x), "h"((u16)tap_y), "h"((u16)3)
        : "memory");
}

__device__ __forceinline__ void store_tensor_2d(const TensorMap& map, int x, int y, u32 from) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];" ::"l"(&map), "r"(x), "r"(y),
                 "r"(from)
                 : "memory");
}

__device__ __forceinline__ void store_tensor_4d(const TensorMap& map, int x, int y, int z, int w, u32 from) {
    asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%1, %2, %3, %4}], [%5];" ::"l"(&map), "r"(x), "r"(y),
                 "r"(z), "r"(w), "r"(from)
                 : "memory");
}

__device__ __forceinline__ void bulk_commit_group() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

// Waits until all but N of this thread's stores have read their shared memory.
template <int N>
__device__ __forceinline__ void bulk_wait_group_read() {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(N) : "memory");
}

// Orders this thread's writes to shared memory before tensor copies and wgmma that read them.
__device__ __forceinline__ void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// A barrier of so many threads, of which those of `bar_arrive` do not wait.
template <int THREADS>
__device__ __forceinline__ void bar_sync(int id) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "n"(THREADS) : "memory");
}

template <int THREADS>
__device__ __forceinline__ void bar_arrive(int id) {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "n"(THREADS) : "memory");
}

template <int REGISTERS>
__device__ __forceinline__ void setmaxnreg_dec() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

template <int REGISTERS>
__device__ __forceinline__ void setmaxnreg_inc() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

__device__ __forceinline__ uint4 load_shared_16(u32 address) {
    uint4 x;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "r"(address) : "memory");
    return x;
}

// The mirror image of ldmatrix_x4.
__device__ __forceinline__ void stmatrix_x4(u32 address, const u32 (&r)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(r[0]), "r"(r[1]), "r"(r[2]),
                 "r"(r[3])
                 : "memory");
}

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit_group() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until all but N of the warp's groups are done.
template <int N>
__device__ __forceinline__ void wgmma_wait_group() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

// Describes rows of 128 bytes, eight to 1,024 bytes, swizzled over these (PTX manual, "Matrix descriptor"). 16 values further
// along a row are 32 bytes further.
__device__ __forceinline__ u64 wgmma_descriptor(u32 address) {
    return (u64)(address >> 4 & 0x3fff) | 1ull << 16 | 64ull << 32 | 1ull << 62;
}

// Operands of a product of N columns: names and registers.
#define WGMMA_NAMES_8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define WGMMA_NAMES_32 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define WGMMA_NAMES_40 WGMMA_NAMES_32 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define WGMMA_NAMES_44 WGMMA_NAMES_40 ", %40, %41, %42, %43"
#define WGMMA_NAMES_48 WGMMA_NAMES_44 ", %44, %45, %46, %47"
#define WGMMA_NAMES_64 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15" ", " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31" ", " \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47" ", " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define WGMMA_NAMES_80 WGMMA_NAMES_64 ", " \
    "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define WGMMA_NAMES_128 WGMMA_NAMES_80 ", " \
    "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95" ", " \
    "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111" ", " \
    "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define WGMMA_4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define WGMMA_16(i) WGMMA_4(i), WGMMA_4(i + 4), WGMMA_4(i + 8), WGMMA_4(i + 12)
#define WGMMA_REGISTERS_8 WGMMA_4(0), WGMMA_4(4)
#define WGMMA_REGISTERS_32 WGMMA_16(0), WGMMA_16(16)
#define WGMMA_REGISTERS_40 WGMMA_REGISTERS_32, WGMMA_4(32), WGMMA_4(36)
#define WGMMA_REGISTERS_44 WGMMA_REGISTERS_40, WGMMA_4(40)
#define WGMMA_REGISTERS_48 WGMMA_REGISTERS_44, WGMMA_4(44)
#define WGMMA_REGISTERS_64 WGMMA_REGISTERS_32, WGMMA_16(32), WGMMA_16(48)
#define WGMMA_REGISTERS_80 WGMMA_REGISTERS_64, WGMMA_16(64)
#define WGMMA_REGISTERS_128 WGMMA_REGISTERS_80, WGMMA_16(80), WGMMA_16(96), WGMMA_16(112)

// d = A B^T, or d + A B^T where `add` is set; both by rows of K in shared memory. HALF is N / 2; A, B, ADD name the operands after d.
#define WGMMA(N, HALF, T, A, B, ADD)                                                                         \
    __device__ __forceinline__ void wgmma_m64n##N##k16_f32_##T(float(&d)[HALF], u64 a, u64 b, int add) {     \
        asm volatile("{ .reg .pred add; setp.ne.b32 add, %" #ADD ", 0; wgmma.mma_async.sync.aligned.m64n" #N \
                     "k16.f32." #T "." #T " {" WGMMA_NAMES_##HALF "}, %" #A ", %" #B ", add, 1, 1, 0, 0; }"   \
                     : WGMMA_REGISTERS_##HALF                                                                \
                     : "l"(a), "l"(b), "r"(add));                                                            \
    }

WGMMA(16, 8, f16, 8, 9, 10)
WGMMA(16, 8, bf16, 8, 9, 10)
WGMMA(80, 40, f16, 40, 41, 42)
WGMMA(80, 40, bf16, 40, 41, 42)
WGMMA(88, 44, f16, 44, 45, 46)
WGMMA(88, 44, bf16, 44, 45, 46)
WGMMA(96, 48, f16, 48, 49, 50)
WGMMA(96, 48, bf16, 48, 49, 50)
WGMMA(128, 64, f16, 64, 65, 66)
WGMMA(128, 64, bf16, 64, 65, 66)
WGMMA(160, 80, f16, 80, 81, 82)
WGMMA(160, 80, bf16, 80, 81, 82)
WGMMA(256, 128, f16, 128, 129, 130)
WGMMA(256, 128, bf16, 128, 129, 130)

// d = A B, or d + A B where `add` is set: A [64, 16] in registers, as the accumulators of 16 columns packed by pairs; B by rows of N in
// shared memory, of which eight rows of 128 bytes are 1,024 bytes.
#define WGMMA_REGISTER_A(N, HALF, T)                                                                                      \
    __device__ __forceinline__ void wgmma_ra_m64n##N##k16_f32_##T(float(&d)[HALF], const u32 (&a)[4], u64 b, int add) {   \
        asm volatile("{ .reg .pred add; setp.ne.b32 add, %37, 0; wgmma.mma_async.sync.aligned.m64n" #N                    \
                     "k16.f32." #T "." #T " {" WGMMA_NAMES_##HALF "}, {%32, %33, %34, %35}, %36, add, 1, 1, 1; }"         \
                     : WGMMA_REGISTERS_##HALF                                                                             \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));                                     \
    }

WGMMA_REGISTER_A(64, 32, f16)
WGMMA_REGISTER_A(64, 32, bf16)

// The same of e4m3, of which a row of 128 bytes holds 128 values.
#define WGMMA_E4M3(N, HALF, A, B, ADD)                                                                       \
    __device__ __forceinline__ void wgmma_m64n##N##k32_f32_e4m3(float(&d)[HALF], u64 a, u64 b, int add) {    \
        asm volatile("{ .reg .pred add; setp.ne.b32 add, %" #ADD ", 0; wgmma.mma_async.sync.aligned.m64n" #N \
                     "k32.f32.e4m3.e4m3 {" WGMMA_NAMES_##HALF "}, %" #A ", %" #B ", add, 1, 1; }"            \
                     : WGMMA_REGISTERS_##HALF                                                                \
                     : "l"(a), "l"(b), "r"(add));                                                            \
    }

WGMMA_E4M3(80, 40, 40, 41, 42)
WGMMA_E4M3(128, 64, 64, 65, 66)
WGMMA_E4M3(160, 80, 80, 81, 82)

// Keeps uses of accumulators behind the wait that it follows: the compiler does not know that it is for them.
template <int N>
__device__ __forceinline__ void settled(float (&d)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i])::"memory");
}

// A value from which nothing is computed earlier than here: what the compiler would compute ahead of a loop would take registers in it.
__device__ __forceinline__ int fresh(int x) {
    asm volatile("" : "+r"(x));
    return x;
}

// Rounds to e4m3, to nearest and ties to even; beyond 448 it is 448. `low` goes to the lower byte.
__device__ __forceinline__ u16 cvt_rn_satfinite_e4m3x2_f32(float high, float low) {
    u16 y;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(y) : "f"(high), "f"(low));
    return y;
}
