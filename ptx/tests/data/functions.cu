// A function that is called, a table, constant and local memory, the slow path of sinf, a switch.

__device__ int table[4] = {1, 2, 3, 4};
__constant__ float factor[2];

__device__ __noinline__ float helper(float a, int b) { return a * b + table[b & 3]; }

__device__ __noinline__ float twice(float a, int b) {
  if (b == 5) return -1.f;
  return helper(a, b) + helper(a, b + 1);
}

extern "C" __global__ void functions(const float* in, float* out, int n, int which) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  float x = in[i];
  switch (which) {
    case 0: x = twice(x, i); break;
    case 1: x = sinf(x) * factor[1]; break;
    case 2: x = expf(x); break;
    case 3: x = tanhf(x); break;
    case 4: x = rsqrtf(x); break;
    case 5: x = x / 3.1f; break;
    case 6: x = erff(x); break;
    case 7: x = (float)((unsigned long long)(x * 1e6f) / 7ull % 1000ull); break;
    case 8: x = logf(x) + powf(x, 1.5f); break;
    case 9: {
      float ring[8];
      for (int k = 0; k < 8; k++) ring[(k * 3 + i) % 8] = x + k;
      x = ring[i % 8];
      break;
    }
    case 10: atomicAdd(out + n, x); break;
    case 11: x = __int_as_float(__float2int_rn(x) ^ 3) * 1e30f; break;
  }
  out[i] = x;
}
