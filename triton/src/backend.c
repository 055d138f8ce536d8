/*
 * The backend: Triton's server loads it as libtriton_braid.so, and calls the functions at the end of this file. A model is a folder with a
 * config.pbtxt, an instance of it a pipeline on a device; the requests that an instance gets at once share evaluations of the model.
 */
#include "inputs.h"
#include "rows.h"
#include "settings.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static uint64_t now(void) {
    struct timespec time = {0, 0};
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

/* ---- Answers ---- */

/* Asks for the memory of an output. */
static TRITONSERVER_Error *output_buffer(struct job *job, const char *name, TRITONSERVER_DataType datatype, const int64_t *shape,
    uint32_t num_dims, uint64_t size, void **buffer) {
    TRITONBACKEND_Output *output = NULL;
    TRITONSERVER_MemoryType memory = TRITONSERVER_MEMORY_CPU;
    int64_t memory_id = 0;
    TRITONSERVER_Error *error = TRITONBACKEND_ResponseOutput(job->response, &output, name, datatype, shape, num_dims);
    if (error == NULL) {
        error = TRITONBACKEND_OutputBuffer(output, buffer, size, &memory, &memory_id);
    }
    if (error == NULL && memory == TRITONSERVER_MEMORY_GPU) {
        error = refuse(TRITONSERVER_ERROR_UNSUPPORTED, "%s: the memory for it is a GPU's; ask for it in the host's", name);
    }
    return error;
}

static TRITONSERVER_Error *put_images(struct job *job) {
    const braid_image *first = braid_output_image(job->rows[0].output, 0);
    const size_t width = braid_image_width(first), height = braid_image_height(first), size = width * height * 3;
    const int64_t shape[4] = {(int64_t)job->num_rows, (int64_t)height, (int64_t)width, 3};
    void *buffer = NULL;
    TRITONSERVER_Error *error;
    size_t row;
    for (row = 1; row < job->num_rows; row++) {
        const braid_image *image = braid_output_image(job->rows[row].output, 0);
        if (braid_image_width(image) != width || braid_image_height(image) != height) {
            return refuse(TRITONSERVER_ERROR_INVALID_ARG,
                "width, height: row %zu has %zux%zu, row 0 %zux%zu; the rows of a request must have one size: send them one by one", row,
                braid_image_width(image), braid_image_height(image), width, height);
        }
    }
    error = output_buffer(job, "image", TRITONSERVER_TYPE_UINT8, shape, 4, job->num_rows * size, &buffer);
    for (row = 0; row < job->num_rows && error == NULL; row++) {
        memcpy((char *)buffer + row * size, braid_image_rgb(braid_output_image(job->rows[row].output, 0)), size);
    }
    return error;
}

static TRITONSERVER_Error *put_seeds(struct job *job) {
    const int64_t shape[2] = {(int64_t)job->num_rows, 1};
    void *buffer = NULL;
    TRITONSERVER_Error *error =
        output_buffer(job, "seed", TRITONSERVER_TYPE_UINT64, shape, 2, job->num_rows * sizeof(uint64_t), &buffer);
    size_t row;
    for (row = 0; row < job->num_rows && error == NULL; row++) {
        memcpy((char *)buffer + row * sizeof(uint64_t), &job->rows[row].request.seed, sizeof(uint64_t));
    }
    return error;
}

/* Tells of a prompt that was cut, which no image shows. */
static TRITONSERVER_Error *put_truncated_tokens(struct job *job) {
    size_t most = 0, row;
    for (row = 0; row < job->num_rows; row++) {
        const size_t truncated = braid_output_truncated_tokens(job->rows[row].output);
        most = truncated > most ? truncated : most;
    }
    return most == 0 ? NULL : TRITONBACKEND_ResponseSetIntParameter(job->response, "truncated_tokens", (int64_t)most);
}

/* Writes what is asked for into the response. */
static TRITONSERVER_Error *fill(struct job *job) {
    uint32_t count = 0, i;
    TRITONSERVER_Error *error = TRITONBACKEND_RequestOutputCount(job->request, &count);
    for (i = 0; i < count && error == NULL; i++) {
        const char *name = "";
        error = TRITONBACKEND_RequestOutputName(job->request, i, &name);
        if (error == NULL) {
            error = strcmp(name, "image") == 0  ? put_images(job)
                    : strcmp(name, "seed") == 0 ? put_seeds(job)
                                                : refuse(TRITONSERVER_ERROR_INVALID_ARG, "there is no output `%s`", name);
        }
    }
    return error == NULL ? put_truncated_tokens(job) : error;
}

/* ---- Drawing ---- */

static bool is_cancelled(TRITONBACKEND_Request *request) {
    bool cancelled = false;
    TRITONSERVER_Error *error = TRITONBACKEND_RequestIsCancelled == NULL ? NULL : TRITONBACKEND_RequestIsCancelled(request, &cancelled);
    if (error != NULL) {
        TRITONSERVER_ErrorDelete(error);
        return false;
    }
    return cancelled;
}

static TRITONSERVER_Error *cancelled(void) {
    return refuse(TRITONSERVER_ERROR_CANCELLED, "cancelled");
}

static int32_t on_progress(const braid_progress *progress, void *user_data) {
    (void)progress;
    return is_cancelled(((const struct job *)user_data)->request);
}

/* All rows of the requests that can be drawn, side by side. */
struct drawing {
    const braid_pipeline *pipeline;
    struct job **jobs;
    struct row **rows;
    braid_request *requests;
    braid_callbacks *callbacks;
    size_t count;
};

/* Tells a request of the first of its rows that failed. */
static void fail_row(const struct drawing *drawing, size_t index, braid_status status) {
    struct job *job = drawing->jobs[index];
    char where[32] = "";
    if (job->error != NULL) {
        return;
    }
    if (job->num_rows > 1 && status != BRAID_ERROR_CANCELLED) {
        snprintf(where, sizeof where, "row %zu: ", (size_t)(drawing->rows[index] - job->rows));
    }
    job->error = status == BRAID_ERROR_CANCELLED ? cancelled() : of_status(status, where);
}

static void draw(const struct drawing *drawing, size_t first, size_t count) {
    braid_batch *batch = NULL;
    const braid_status status = braid_pipeline_generate_batch(
        drawing->pipeline, drawing->requests + first, count, drawing->callbacks + first, &batch);
    size_t i;
    if (status == BRAID_OK) {
        for (i = 0; i < count; i++) {
            const braid_status taken = braid_batch_take(batch, i, &drawing->rows[first + i]->output);
            if (taken != BRAID_OK) {
                fail_row(drawing, first + i, taken);
            }
        }
        braid_batch_free(batch);
    } else if (count > 1 && (status == BRAID_ERROR_PARAMETER || status == BRAID_ERROR_INVALID_ARGUMENT)) {
        /* One that cannot be read, as with a scheduler that there is not, fails the call before anything is drawn: the halves without it
         * are drawn together. */
        draw(drawing, first, count / 2);
        draw(drawing, first + count / 2, count - count / 2);
    } else {
        for (i = 0; i < count; i++) {
            fail_row(drawing, first + i, status);
        }
    }
}

/* Draws the rows of the requests that have not failed; returns how many. */
static size_t draw_all(const braid_pipeline *pipeline, struct job *jobs, uint32_t num_jobs) {
    struct arena arena = {NULL};
    struct drawing drawing = {pipeline, NULL, NULL, NULL, NULL, 0};
    size_t total = 0, row;
    uint32_t i;
    for (i = 0; i < num_jobs; i++) {
        total += jobs[i].error == NULL ? jobs[i].num_rows : 0;
    }
    drawing.jobs = arena_take(&arena, total, sizeof *drawing.jobs);
    drawing.rows = arena_take(&arena, total, sizeof *drawing.rows);
    drawing.requests = arena_take(&arena, total, sizeof *drawing.requests);
    drawing.callbacks = arena_take(&arena, total, sizeof *drawing.callbacks);
    for (i = 0; i < num_jobs; i++) {
        if (jobs[i].error != NULL) {
            continue;
        }
        if (drawing.jobs == NULL || drawing.rows == NULL || drawing.requests == NULL || drawing.callbacks == NULL) {
            jobs[i].error = no_memory();
            continue;
        }
        for (row = 0; row < jobs[i].num_rows; row++, drawing.count++) {
            braid_callbacks *callbacks = &drawing.callbacks[drawing.count];
            braid_callbacks_init(callbacks, sizeof *callbacks);
            callbacks->on_progress = on_progress;
            callbacks->user_data = &jobs[i];
            drawing.jobs[drawing.count] = &jobs[i];
            drawing.rows[drawing.count] = &jobs[i].rows[row];
            drawing.requests[drawing.count] = jobs[i].rows[row].request;
        }
    }
    if (drawing.count > 0) {
        draw(&drawing, 0, drawing.count);
    }
    arena_free(&arena);
    return drawing.count;
}

/* Reads a request; what is wrong with it is kept in the job. */
static void begin(struct job *job, TRITONBACKEND_Request *request) {
    job->request = request;
    job->error = is_cancelled(request) ? cancelled() : rows_read(job);
}

/* Makes the response. */
static void answer(struct job *job) {
    TRITONSERVER_Error *error = TRITONBACKEND_ResponseNew(&job->response, job->request);
    if (error != NULL) {
        job->response = NULL;
        log_error("a request stays without a response", error);
        if (job->error == NULL) {
            job->error = no_memory();
        }
    } else if (job->error == NULL) {
        job->error = fill(job);
    }
}

/* Sends the response, and gives the request back. */
static void finish(struct job *job) {
    if (job->response != NULL) {
        log_error("sending a response", TRITONBACKEND_ResponseSend(job->response, TRITONSERVER_RESPONSE_COMPLETE_FINAL, job->error));
    }
    log_error("releasing a request", TRITONBACKEND_RequestRelease(job->request, TRITONSERVER_REQUEST_RELEASE_ALL));
    job_free(job);
}

/* ---- What the server calls ---- */

static void on_warning(const char *text, void *user_data) {
    (void)user_data;
    say(TRITONSERVER_LOG_WARN, text);
}

TRITONSERVER_Error *TRITONBACKEND_Initialize(TRITONBACKEND_Backend *backend) {
    uint32_t major = 0, minor = 0;
    char text[96];
    TRITONSERVER_Error *error = TRITONBACKEND_ApiVersion(&major, &minor);
    (void)backend;
    if (error != NULL) {
        return error;
    }
    if (major != 1) {
        return refuse(TRITONSERVER_ERROR_UNSUPPORTED, "braid: the server's backend interface is version %u.%u; 1 is needed", major, minor);
    }
    braid_set_warning_callback(on_warning, NULL);
    snprintf(text, sizeof text, "braid %s", braid_version());
    say(TRITONSERVER_LOG_INFO, text);
    return NULL;
}

TRITONSERVER_Error *TRITONBACKEND_Finalize(TRITONBACKEND_Backend *backend) {
    (void)backend;
    braid_set_warning_callback(NULL, NULL);
    return NULL;
}

/* Reads the configuration of a model, whose paths begin at the folder of its version. */
static TRITONSERVER_Error *read_model(TRITONBACKEND_Model *model, const char *config_text, size_t size, struct settings *settings) {
    TRITONBACKEND_ArtifactType kind = TRITONBACKEND_ARTIFACT_FILESYSTEM;
    const char *folder = "";
    uint64_t version = 0;
    char *whole;
    size_t room;
    const struct json *config;
    TRITONSERVER_Error *error = TRITONBACKEND_ModelRepository(model, &kind, &folder);
    if (error == NULL) {
        error = TRITONBACKEND_ModelVersion(model, &version);
    }
    if (error != NULL) {
        return error;
    }
    room = strlen(folder) + 24;
    whole = arena_take(&settings->arena, room, 1);
    config = json_parse(&settings->arena, config_text, size);
    if (whole == NULL || config == NULL) {
        return refuse(TRITONSERVER_ERROR_INTERNAL, "braid: the model's configuration cannot be read: it is no JSON, or no memory is left");
    }
    snprintf(whole, room, "%s/%llu", folder, (unsigned long long)version);
    error = inputs_check(config);
    return error == NULL ? settings_read(settings, config, whole) : error;
}

TRITONSERVER_Error *TRITONBACKEND_ModelInitialize(TRITONBACKEND_Model *model) {
    TRITONSERVER_Message *message = NULL;
    const char *text = NULL;
    size_t size = 0;
    struct settings *settings = calloc(1, sizeof *settings);
    TRITONSERVER_Error *error = settings != NULL ? TRITONBACKEND_ModelConfig(model, 1, &message) : no_memory();
    if (error == NULL) {
        error = TRITONSERVER_MessageSerializeToJson(message, &text, &size);
    }
    if (error == NULL) {
        error = read_model(model, text, size, settings);
    }
    if (message != NULL) {
        log_error("deleting a message", TRITONSERVER_MessageDelete(message));
    }
    if (error == NULL) {
        error = TRITONBACKEND_ModelSetState(model, settings);
    }
    if (error != NULL && settings != NULL) {
        arena_free(&settings->arena);
        free(settings);
    }
    return error;
}

TRITONSERVER_Error *TRITONBACKEND_ModelFinalize(TRITONBACKEND_Model *model) {
    void *state = NULL;
    TRITONSERVER_Error *error = TRITONBACKEND_ModelState(model, &state);
    struct settings *settings = state;
    if (error == NULL && settings != NULL) {
        error = TRITONBACKEND_ModelSetState(model, NULL);
        arena_free(&settings->arena);
        free(settings);
    }
    return error;
}

/* Chooses the device of an instance. */
static TRITONSERVER_Error *device_of(TRITONBACKEND_ModelInstance *instance, const char *given, char *device, size_t size) {
    TRITONSERVER_InstanceGroupKind kind = TRITONSERVER_INSTANCEGROUPKIND_AUTO;
    int32_t id = 0;
    TRITONSERVER_Error *error = TRITONBACKEND_ModelInstanceKind(instance, &kind);
    if (error == NULL) {
        error = TRITONBACKEND_ModelInstanceDeviceId(instance, &id);
    }
    if (error != NULL) {
        return error;
    }
    if (kind == TRITONSERVER_INSTANCEGROUPKIND_MODEL) {
        snprintf(device, size, "%s", given != NULL ? given : "auto");
        return NULL;
    }
    if (given != NULL) {
        return refuse(TRITONSERVER_ERROR_INVALID_ARG,
            "parameters: device: instance_group chooses the device; leave the parameter out, or give the group kind: KIND_MODEL");
    }
    if (kind == TRITONSERVER_INSTANCEGROUPKIND_GPU) {
        snprintf(device, size, "cuda:%ld", (long)id);
    } else {
        snprintf(device, size, "cpu");
    }
    return NULL;
}

/* Logs where an instance runs, and what its pipeline has to say. */
static void introduce(const char *name, const braid_pipeline *pipeline) {
    char text[2048];
    const int length = snprintf(text, sizeof text, "%s: device ", name);
    braid_pipeline_device(pipeline, text + length, sizeof text - (size_t)length);
    say(TRITONSERVER_LOG_INFO, text);
    if (braid_pipeline_notes(pipeline, text, sizeof text) > 1) {
        say(TRITONSERVER_LOG_INFO, text);
    }
}

TRITONSERVER_Error *TRITONBACKEND_ModelInstanceInitialize(TRITONBACKEND_ModelInstance *instance) {
    TRITONBACKEND_Model *model = NULL;
    void *state = NULL;
    const char *name = "";
    char device[64];
    braid_pipeline_options options;
    braid_pipeline *pipeline = NULL;
    braid_status status;
    TRITONSERVER_Error *error = TRITONBACKEND_ModelInstanceName(instance, &name);
    if (error == NULL) {
        error = TRITONBACKEND_ModelInstanceModel(instance, &model);
    }
    if (error == NULL) {
        error = TRITONBACKEND_ModelState(model, &state);
    }
    if (error != NULL) {
        return error;
    }
    options = ((const struct settings *)state)->options;
    error = device_of(instance, options.device, device, sizeof device);
    if (error != NULL) {
        return error;
    }
    options.device = device;
    status = braid_pipeline_load(&options, &pipeline);
    if (status != BRAID_OK) {
        return of_status(status, "braid: ");
    }
    introduce(name, pipeline);
    error = TRITONBACKEND_ModelInstanceSetState(instance, pipeline);
    if (error != NULL) {
        braid_pipeline_free(pipeline);
    }
    return error;
}

TRITONSERVER_Error *TRITONBACKEND_ModelInstanceFinalize(TRITONBACKEND_ModelInstance *instance) {
    void *state = NULL;
    TRITONSERVER_Error *error = TRITONBACKEND_ModelInstanceState(instance, &state);
    if (error == NULL && state != NULL) {
        error = TRITONBACKEND_ModelInstanceSetState(instance, NULL);
        braid_pipeline_free(state);
    }
    return error;
}

TRITONSERVER_Error *TRITONBACKEND_ModelInstanceExecute(
    TRITONBACKEND_ModelInstance *instance, TRITONBACKEND_Request **requests, const uint32_t request_count) {
    const uint64_t start = now();
    uint64_t compute_start, compute_end, end;
    void *pipeline = NULL;
    size_t rows;
    uint32_t i;
    struct job *jobs;
    TRITONSERVER_Error *error = TRITONBACKEND_ModelInstanceState(instance, &pipeline);
    if (error != NULL) {
        return error;
    }
    jobs = calloc(request_count, sizeof *jobs);
    if (jobs == NULL) {
        return no_memory();
    }
    for (i = 0; i < request_count; i++) {
        begin(&jobs[i], requests[i]);
    }
    compute_start = now();
    rows = draw_all(pipeline, jobs, request_count);
    compute_end = now();
    for (i = 0; i < request_count; i++) {
        answer(&jobs[i]);
    }
    end = now();
    /* Before the responses, so that a client that has its answer finds it counted. */
    for (i = 0; i < request_count; i++) {
        log_error("statistics", TRITONBACKEND_ModelInstanceReportStatistics(
                                    instance, jobs[i].request, jobs[i].error == NULL, start, compute_start, compute_end, end));
    }
    if (rows > 0) {
        log_error("statistics",
            TRITONBACKEND_ModelInstanceReportBatchStatistics(instance, rows, start, compute_start, compute_end, end));
    }
    for (i = 0; i < request_count; i++) {
        finish(&jobs[i]);
    }
    free(jobs);
    return NULL;
}
