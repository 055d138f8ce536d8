// C = A B^T for A [M, K], B [N, K], half precision, accumulators and C in f32: a tile of 64 x 64 a block, K in steps of 32
// in two stages of cp.async, fragments by ldmatrix, products by mma.sync m16n8k16. M, N multiples of 64, K of 32.
//
// Grid (N / 64, M / 64), block 128: each of four warps makes 32 x 32.
//
// Defines plant faults: NO_WAIT (no cp.async.wait_group), NO_BARRIER (none after the wait), NO_TRAILING (none before the
// buffer is filled again), SWAP (two registers of the A fragment exchanged), SHIFT (A is read past its end).

typedef unsigned short half_t;
typedef unsigned int u32;

__device__ __forceinline__ u32 shared_address(const void* p) {
  return (u32)__cvta_generic_to_shared(p);
}

__device__ __forceinline__ void copy16(u32 to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}

__device__ __forceinline__ void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int N> __device__ __forceinline__ void wait_group() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

__device__ __forceinline__ void load4(u32 (&r)[4], u32 at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
}

__device__ __forceinline__ void mma(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
               "{%0, %1, %2, %3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

struct Params {
  const half_t* a;
  const half_t* b;
  float* c;
  int m, n, k;
};

// Rows of 32 halves, padded to 40 so that the eight rows of a matrix lie in different banks.
#define PITCH 40

extern "C" __global__ void __launch_bounds__(128) gemm(const Params p) {
  __shared__ __align__(16) half_t a_tile[2][64 * PITCH];
  __shared__ __align__(16) half_t b_tile[2][64 * PITCH];
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const int row0 = blockIdx.y * 64, col0 = blockIdx.x * 64;
  const int wm = warp / 2 * 32, wn = warp % 2 * 32;
  float acc[2][4][4] = {};

  auto fill = [&](int stage, int k0) {
    for (int i = thread; i < 256; i += 128) {
      const int row = i / 4, chunk = i % 4 * 8;
#ifdef SHIFT
      const int skew = 8;
#else
      const int skew = 0;
#endif
      copy16(shared_address(&a_tile[stage][row * PITCH + chunk]), p.a + (size_t)(row0 + row) * p.k + k0 + chunk + skew);
      copy16(shared_address(&b_tile[stage][row * PITCH + chunk]), p.b + (size_t)(col0 + row) * p.k + k0 + chunk);
    }
    commit();
  };

  fill(0, 0);
  const int steps = p.k / 32;
  for (int step = 0; step < steps; step++) {
    if (step + 1 < steps) {
      fill((step + 1) % 2, (step + 1) * 32);
    } else {
      commit();
    }
#ifndef NO_WAIT
    wait_group<1>();
#endif
#ifndef NO_BARRIER
    __syncthreads();
#endif
    const half_t* at = a_tile[step % 2];
    const half_t* bt = b_tile[step % 2];
    for (int k = 0; k < 32; k += 16) {
      u32 a[2][4], b[2][4];
      for (int i = 0; i < 2; i++) {
        load4(a[i], shared_address(at + (wm + i * 16 + lane % 16) * PITCH + k + lane / 16 * 8));
        load4(b[i], shared_address(bt + (wn + i * 16 + lane % 8 + lane / 16 * 8) * PITCH + k + lane / 8 % 2 * 8));
#ifdef SWAP
        u32 t = a[i][1];
        a[i][1] = a[i][2];
        a[i][2] = t;
#endif
      }
      for (int i = 0; i < 2; i++) {
        for (int j = 0; j < 4; j++) mma(acc[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
      }
    }
#ifndef NO_TRAILING
    __syncthreads();
#endif
  }
  for (int i = 0; i < 2; i++) {
    for (int j = 0; j < 4; j++) {
      const int row = row0 + wm + i * 16 + lane / 4, col = col0 + wn + j * 8 + lane % 4 * 2;
      *(float2*)(p.c + (size_t)row * p.n + col) = make_float2(acc[i][j][0], acc[i][j][1]);
      *(float2*)(p.c + (size_t)(row + 8) * p.n + col) = make_float2(acc[i][j][2], acc[i][j][3]);
    }
  }
}
