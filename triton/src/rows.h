/* Requests to the server, read into requests to the pipeline. */
#ifndef BRAID_TRITON_ROWS_H
#define BRAID_TRITON_ROWS_H

#include "common.h"

/* An image that is asked for. */
struct row {
    braid_request request;
    braid_image_prompt prompt;
    /* The reference of ip_adapter_image, and those of ip_adapter_image_file. */
    braid_image *pixels;
    braid_image **files;
    size_t num_files;
    braid_output *output;
};

/* A request to the server: a row for each image. */
struct job {
    TRITONBACKEND_Request *request;
    TRITONBACKEND_Response *response;
    /* What it fails with. */
    TRITONSERVER_Error *error;
    struct arena arena;
    struct row *rows;
    size_t num_rows;
};

/* Reads the inputs of job->request. */
TRITONSERVER_Error *rows_read(struct job *job);
/* Frees what belongs to a job, but for the request and the response. */
void job_free(struct job *job);

#endif
