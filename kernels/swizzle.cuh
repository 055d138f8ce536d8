// The order of 16-byte units in shared memory, by which neighbouring rows lie in different bank groups without padding.
#pragma once

// A stage of the main loop: a row is 64 bytes, four units. Unit u of row r lies at u ^ (r / 2 % 4), so that the eight rows of an
// ldmatrix and the two rows of a copy lie in eight different bank groups.
__device__ __forceinline__ int stage_unit(int row, int unit) { return unit ^ (row / 2 % 4); }

// The accumulators on their way out, as f32: unit u of eight columns of row r lies at u ^ r % 8.
__device__ __forceinline__ int result_unit(int row, int unit) { return unit ^ (row % 8); }
