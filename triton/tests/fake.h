/* Stand-ins for the server and for libbraid, which note what the backend does with them and fail on demand. */
#ifndef BRAID_TRITON_FAKE_H
#define BRAID_TRITON_FAKE_H

#include "../src/triton.h"
#include <braid.h>
#include <stdio.h>
#include <stdlib.h>

#define CHECK(condition) \
    do { \
        if (!(condition)) { \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
            exit(1); \
        } \
    } while (0)

struct TRITONSERVER_Error {
    TRITONSERVER_Error_Code code;
    char text[1024];
};

struct TRITONBACKEND_Model {
    const char *config;
    void *state;
};

struct TRITONBACKEND_ModelInstance {
    TRITONBACKEND_Model *model;
    TRITONSERVER_InstanceGroupKind kind;
    int32_t device;
    void *state;
    /* The sizes that were reported. */
    uint64_t batches[8];
    int num_batches;
};

struct TRITONBACKEND_Input {
    const char *name;
    TRITONSERVER_DataType datatype;
    int64_t shape[5];
    uint32_t num_dims;
    const char *buffers[3];
    uint64_t sizes[3];
    uint32_t num_buffers;
    /* What the server says too much of the size. */
    uint64_t excess;
    TRITONSERVER_MemoryType memory;
};

struct TRITONBACKEND_Output {
    char name[16];
    int64_t shape[4];
    uint32_t num_dims;
    uint64_t size;
    TRITONSERVER_MemoryType memory;
    unsigned char bytes[256];
};

struct TRITONBACKEND_Request {
    TRITONBACKEND_Input inputs[8];
    uint32_t num_inputs;
    const char *outputs[3];
    uint32_t num_outputs;
    TRITONSERVER_MemoryType output_memory;
    /* How often it is not cancelled yet. */
    int patience;

    /* What the backend did with it. */
    int released, release_failed, response_failed, sent, succeeded, counted;
    TRITONSERVER_Error_Code code;
    char error[1024];
    TRITONBACKEND_Output answers[2];
    int num_answers;
    int64_t truncated;
};

struct TRITONBACKEND_Response {
    TRITONBACKEND_Request *request;
    TRITONBACKEND_Output outputs[2];
    int num_outputs;
    int64_t truncated;
};

/* The call of the server's functions, and of calloc, that fails, counted from 1; and those that there were. */
extern long fail_call, calls, fail_calloc, callocs;
/* The end of the log. */
extern char logged[1024];

/* The options that a pipeline was loaded with, the pipelines and images that are there, the requests of each call that drew some, and
 * all such calls. */
extern char loaded[512];
extern int pipelines, images;
extern size_t drawn[16];
extern int num_drawn, num_batches;

#endif
