// Small kernels, each with a defect; FAULT marks the line that a report must name.

#define KERNEL extern "C" __global__ void

KERNEL no_barrier(float* out) {
  __shared__ float s[64];
  s[threadIdx.x] = 0.f;
  __syncthreads();
  out[threadIdx.x] = s[63 - threadIdx.x];
  __syncthreads();
  s[threadIdx.x] = threadIdx.x;
  out[threadIdx.x] = s[63 - threadIdx.x];  // FAULT no_barrier
}

KERNEL overwrite(float* out) {
  __shared__ float s[64];
  s[threadIdx.x] = threadIdx.x;
  __syncthreads();
  const float x = s[63 - threadIdx.x];
  s[threadIdx.x] = 2.f * x;  // FAULT overwrite
  __syncthreads();
  out[threadIdx.x] = s[threadIdx.x];
}

KERNEL same_place(float* out) {
  __shared__ float s[2];
  s[threadIdx.x / 64] = threadIdx.x;
  if (threadIdx.x % 32 == 0) s[1] = 3.f;  // FAULT same_place
  __syncthreads();
  out[threadIdx.x] = s[0] + s[1];
}

KERNEL warp_order(float* out) {
  __shared__ float s[32];
  s[threadIdx.x] = threadIdx.x;
  out[threadIdx.x] = s[threadIdx.x ^ 1];  // FAULT warp_order
}

KERNEL warp_order_right(float* out) {
  __shared__ float s[32];
  s[threadIdx.x] = threadIdx.x;
  __syncwarp();
  out[threadIdx.x] = s[threadIdx.x ^ 1];
}

KERNEL past_end(float* out) {
  out[threadIdx.x + 1] = 1.f;  // FAULT past_end
}

KERNEL past_shared(float* out) {
  __shared__ float s[32];
  s[threadIdx.x + blockIdx.x] = 1.f;  // FAULT past_shared
  __syncthreads();
  out[blockIdx.x * 32 + threadIdx.x] = s[31 - threadIdx.x];
}

KERNEL crooked(float* out) {
  *(float4*)(out + threadIdx.x) = make_float4(1.f, 2.f, 3.f, 4.f);  // FAULT crooked
}

KERNEL unwritten(float* out) {
  __shared__ float s[64];
  if (threadIdx.x < 40) s[threadIdx.x] = 1.f;
  __syncthreads();
  out[threadIdx.x] = s[threadIdx.x];  // FAULT unwritten
}

KERNEL unwritten_global(const float* in, float* out) {
  out[threadIdx.x] = in[threadIdx.x];  // FAULT unwritten_global
}

KERNEL split_barrier(float* out) {
  if (threadIdx.x % 2 == 0) {
    out[threadIdx.x] = 1.f;
    asm volatile("bar.sync 0;" ::: "memory");  // FAULT split_barrier
  } else {
    out[threadIdx.x] = 2.f;
    asm volatile("bar.sync 0;" ::: "memory");
    out[threadIdx.x] = 3.f;
  }
}

KERNEL warps_apart(float* out) {
  if (threadIdx.x < 32) {
    asm volatile("bar.sync 0;" ::: "memory");
    out[threadIdx.x] = 1.f;
  } else {
    out[threadIdx.x] = 2.f;
    asm volatile("bar.sync 0;" ::: "memory");  // FAULT warps_apart
    out[threadIdx.x] = 3.f;
  }
}

KERNEL stuck(float* out) {
  if (threadIdx.x < 32) {
    asm volatile("bar.sync 1, 64;" ::: "memory");  // FAULT stuck
  } else {
    asm volatile("bar.sync 2, 64;" ::: "memory");
  }
  out[threadIdx.x] = 1.f;
}

KERNEL endless(float* out) {
  volatile float* flag = out;
  while (*flag == 0.f) {  // FAULT endless
  }
}

KERNEL blocks_meet(float* out) {
  out[threadIdx.x] = blockIdx.x;  // FAULT blocks_meet
}

KERNEL blocks_read(float* out) {
  if (blockIdx.x == 0) {
    out[threadIdx.x] = 1.f;
  } else {
    out[64 + threadIdx.x] = out[threadIdx.x];  // FAULT blocks_read
  }
}

KERNEL half_shuffle(float* out) {
  float x = threadIdx.x;
  if (threadIdx.x < 16) x = __shfl_xor_sync(0xffffffffu, x, 1);  // FAULT half_shuffle
  __syncthreads();
  out[threadIdx.x] = x;
}

KERNEL trapped(float* out) {
  if (out[0] > 0.f) __trap();  // FAULT trapped
}
