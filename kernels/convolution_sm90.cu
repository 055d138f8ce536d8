// Convolution as an implicit product, as convolution.cu's, on sm_90a: Y = X * W + bias + rows + residual.
//
// Shapes     X [B, height, width, channels], in one or in two sources whose channels are joined (x0 has the first channels0); W [N,
//            kernel_y, kernel_x, channels] (OHWI). Y and residual [B, result_height, result_width, N], rows [B, N].
//            moments [B, phases, result_height * result_width / 64, 2, N] f32: of each run of 64 pixels of one phase of an image and each
//            channel the mean and the sum of squared deviations, for group_norm.cu.
//            `phases` = 4: the image is first doubled by nearest neighbour, as four 2x2 convolutions (convolution.cu); W [4, N, 2, 2,
//            channels], Y [B, 2 height, 2 width, N].
// Maps       of f16 or bf16: x0 and x1 [B, height, width, channels of the source] by im2col, rows of 64 channels, 128 bytes swizzled, BM
//            / 2 of them; the first base pixel is at -padding, the last at (result - 1) * stride - padding, steps of `stride`. w [phases N,
//            K] in tiles of BN rows by 64 columns, 128 bytes swizzled. out [pixels, N] in tiles of 64 rows by 32 columns, 64 bytes
//            swizzled; not read where phases = 4.
// Grid       at most min(tiles, multiprocessors), even, 384 threads, clusters of two; a tile is BM pixels of one phase by BN. `pixels` are those of all images, B *
//            result_height * result_width, before doubling. An image's results do not depend on B.
// Tiling     as gemm_sm90.cu. A step of K is 64 channels of a source under a tap; the last one of a source is filled with zeros. Borders
//            are the map's zeros.
// Shared     dynamic: MainloopSm90::SHARED_BYTES, of 1,024-byte alignment.
// Requires   channels0, channels and N multiples of 8; 16-byte aligned pointers; B * height * width < 2^31; padding at most 128, taps at
//            most 256 apart. phases = 4: kernel 2, stride 1, padding 1. No activation, no f32 result. moments: result_height *
//            result_width a multiple of 64.
// Source     implicit GEMM by im2col maps as in the CUDA driver's and the PTX manual ("Im2col mode").
#include "convolution_sm90.cuh"

#define CONVOLUTION(MT, BN, GROUPS, NAME, T)                                                                      \
    extern "C" __global__ __cluster_dims__(2, 1, 1) __launch_bounds__(384, 1) void NAME(const __grid_constant__ ConvolutionSm90Params p) {  \
        convolution_sm90<MainloopSm90<T, MT, BN, GROUPS>, T, MT, BN>(p, Unscaled{}, Unscaled{});                  \
    }

CONVOLUTION(2, 128, 1, convolution_sm90_128x128_f16, f16)
CONVOLUTION(2, 128, 1, convolution_sm90_128x128_bf16, bf16)
CONVOLUTION(2, 160, 1, convolution_sm90_128x160_f16, f16)
CONVOLUTION(2, 160, 1, convolution_sm90_128x160_bf16, bf16)
CONVOLUTION(2, 160, 2, convolution_sm90_256x160_f16, f16)
CONVOLUTION(2, 160, 2, convolution_sm90_256x160_bf16, bf16)
CONVOLUTION(1, 256, 2, convolution_sm90_128x256_f16, f16)
CONVOLUTION(1, 256, 2, convolution_sm90_128x256_bf16, bf16)
