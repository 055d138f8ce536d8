// Inline PTX, all of it: a wrapper for each instruction, named after it. Nothing else in this folder writes assembly.
//
// Fragment layouts of mma.m16n8k16 (PTX manual, "Matrix fragments for mma.m16n8k16"), with g = lane / 4, t = lane % 4:
//   A, row-major 16x16:  a0 = (g, 2t..2t+1)   a1 = (g + 8, 2t..)   a2 = (g, 2t + 8..)   a3 = (g + 8, 2t + 8..)
//   B, column-major 16x8: b0 = (k 2t..2t+1, n g)   b1 = (k 2t + 8.., n g)
//   C and D, 16x8 f32:    c0, c1 = (g, 2t..2t+1)   c2, c3 = (g + 8, 2t..2t+1)
// ldmatrix: lanes 8i..8i+7 give the addresses of the eight 16-byte rows of matrix i; lane l receives in register i the
// elements (row g, columns 2t..2t+1) of matrix i, and with .trans the elements (rows 2t..2t+1, column g).
#pragma once

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

// Where a launch may begin before the one before it has ended: waits until that has, and what it wrote is seen. Nothing before sm_90.
__device__ __forceinline__ void griddepcontrol_wait() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Lets the launch after this one begin, once every block has come here or ended.
__device__ __forceinline__ void griddepcontrol_launch_dependents() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// The beginning of every kernel, for all of its threads: before it nothing of global memory is read or written. The next launch is let in
// at once, since it begins when the last block has come here and so takes no block's place; but not before the wait, so that no more than
// two launches are there at a time. A launch that ended without a wait would let the next one overtake the last one.
__device__ __forceinline__ void after_last_launch() {
    griddepcontrol_wait();
    griddepcontrol_launch_dependents();
}

// The address of shared memory as the instructions below take it.
__device__ __forceinline__ u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

__device__ __forceinline__ u16 cvt_rn_f16_f32(float x) {
    u16 y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ float cvt_f32_f16(u16 x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
    return y;
}

__device__ __forceinline__ u16 cvt_rn_bf16_f32(float x) {
    u16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
}

// `low` goes to the lower half.
__device__ __forceinline__ u32 cvt_rn_f16x2_f32(float high, float low) {
    u32 y;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}

// `low` goes to the lower half.
__device__ __forceinline__ u32 cvt_rn_bf16x2_f32(float high, float low) {
    u32 y;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}

// 2^x to 2 ulp; exactly 0 for -infinity.
__device__ __forceinline__ float ex2_approx_ftz_f32(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// 1 / x to 1 ulp.
__device__ __forceinline__ float rcp_approx_ftz_f32(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ void mma_m16n8k16_f32_f16(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void mma_m16n8k16_f32_bf16(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void ldmatrix_x4(u32 (&r)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

__device__ __forceinline__ void ldmatrix_x4_trans(u32 (&r)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

// Copies the first `bytes` (0 to 16) of 16 bytes to shared memory, zeros after them; `from` is not read where it is 0.
__device__ __forceinline__ void cp_async_16(u32 to, const void* from, u32 bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(__cvta_generic_to_global(from)), "r"(bytes)
                 : "memory");
}

__device__ __forceinline__ void cp_async_commit_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most N of this thread's groups are under way.
template <int N>
__device__ __forceinline__ void cp_async_wait_group() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}
