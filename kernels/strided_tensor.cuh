// An operand of attention.
#pragma once

#include "ptx.cuh"

// Where an operand lies: element (image, token, head, i) is data[image * batch + token * row + head * head_stride + i].
struct StridedTensor {
    const void* data;
    i64 batch;
    i64 row;
    i64 head_stride;
};
