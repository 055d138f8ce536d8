/* Triton's server, as far as the backend calls it. */
#include "fake.h"
#include <string.h>

long fail_call = 0, calls = 0, fail_calloc = 0, callocs = 0;
char logged[1024];

/* The linker puts it in calloc's place, in the backend's files too. */
void *__real_calloc(size_t count, size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_calloc(size_t count, size_t size) {
    return ++callocs == fail_calloc ? NULL : __real_calloc(count, size);
}

TRITONSERVER_Error *TRITONSERVER_ErrorNew(TRITONSERVER_Error_Code code, const char *msg) {
    TRITONSERVER_Error *error = malloc(sizeof *error);
    CHECK(error != NULL && msg != NULL);
    error->code = code;
    snprintf(error->text, sizeof error->text, "%s", msg);
    return error;
}

void TRITONSERVER_ErrorDelete(TRITONSERVER_Error *error) {
    CHECK(error != NULL);
    free(error);
}

const char *TRITONSERVER_ErrorMessage(TRITONSERVER_Error *error) {
    return error->text;
}

static TRITONSERVER_Error *planted(void) {
    return ++calls == fail_call ? TRITONSERVER_ErrorNew(TRITONSERVER_ERROR_INTERNAL, "planted") : NULL;
}

#define MAY_FAIL() \
    do { \
        TRITONSERVER_Error *error = planted(); \
        if (error != NULL) { \
            return error; \
        } \
    } while (0)

TRITONSERVER_Error *TRITONSERVER_LogMessage(TRITONSERVER_LogLevel level, const char *filename, const int line, const char *msg) {
    (void)level, (void)filename, (void)line;
    MAY_FAIL();
    snprintf(logged, sizeof logged, "%s", msg);
    return NULL;
}

TRITONSERVER_Error *TRITONSERVER_MessageSerializeToJson(TRITONSERVER_Message *message, const char **base, size_t *byte_size) {
    MAY_FAIL();
    *base = *(char **)message;
    *byte_size = strlen(*base);
    return NULL;
}

TRITONSERVER_Error *TRITONSERVER_MessageDelete(TRITONSERVER_Message *message) {
    free(message);
    return planted();
}

TRITONSERVER_Error *TRITONBACKEND_ApiVersion(uint32_t *major, uint32_t *minor) {
    MAY_FAIL();
    *major = 1;
    *minor = 19;
    return NULL;
}

TRITONSERVER_Error *TRITONBACKEND_ModelVersion(TRITONBACKEND_Model *model, uint64_t *version) {
    (void)model;
    MAY_FAIL();
    *version = 3;
    return NULL;
}

TRITONSERVER_Error *TRITONBACKEND_ModelRepository(
    TRITONBACKEND_Model *model, TRITONBACKEND_ArtifactType *artifact_type, const char **location) {
    (void)model;
    MAY_FAIL();
    *artifact_type = TRITONBACKEND_ARTIFACT_FILESYSTEM;
    *location = "/models/sdxl";
    return NULL;
}

TRITONSERVER_Error *TRITONBACKEND_ModelConfig(
    TRITONBACKEND_Model *model, const uint32_t config_version, TRITONSERVER_Message **model_config) {
    const char **message;
    CHECK(config_version == 1);
    MAY_FAIL();
    message = malloc(sizeof *message);
    CHECK(message != NULL);
    *message = model->config;
    *model_config = (TRITONSERVER_Message *)message;
    return NULL;
}

#define STATE(of) \
    TRITONSERVER_Error *of##State(of *owner, void **state) { \
        MAY_FAIL(); \
        *state = owner->state; \
        return NULL; \
    } \
    TRITONSERVER_Error *of##SetState(of *owner, void *state) { \
        MAY_FAIL(); \
        owner->state = state; \
        return NULL; \
    }

STATE(TRITONBACKEND_Model)
STATE(TRITONBACKEND_ModelInstance)

TRITONSERVER_Error *TRITONBACKEND_ModelInstanceName(TRITONBACKEND_ModelInstance *instance, const char **name) {
    (void)instance;
    MAY_FAIL();
    *name = "sdxl_0";
    return NULL;
}

TRITONSERVER_Error *TRITONBACKEND_ModelInstanceKind(TRITONBACKEND_ModelInstance *instance, TRITONSERVER_InstanceGroupKind *kind) {
    MAY_FAIL();
    *kind = instance->kind;
    return NULL;
}

TRITONSERVER_Error *TRITONBACKEND_ModelInstanceDeviceId(TRITONBACKEND_ModelInstance *instance, int32_t *device_id) {
    MAY_FAIL();
    *device_id = instance->device;
    return NULL;
}

TRITONSERVER_Error *TRITONBACKEND_ModelInstanceModel(TRITONBACKEND_ModelInstance *instance, TRITONBACKEND_Model **model) {
    MAY_FAIL();
    *model = instance->model;
    return NULL;
}

TRITONSERVER_Error *TRITONBACKEND_ModelInstanceReportStatistics(TRITONBACKEND_ModelInstance *instance, TRITONBACKEND_Request *request,
    const bool success, const uint64_t exec_start_ns, const uint64_t compute_start_ns, const uint64_t compute_end_ns,
    const uint64_t exec_end_ns) {
    (void)instance;
    CHECK(request->released == 0 && request->sent == 0);
    CHECK(0 < exec_start_ns && exec_start_ns <= compute_start_ns && compute_start_ns <= compute_end_ns && compute_end_ns <= exec_end_ns);
    request->counted++;
    request->succeeded = success;
    return planted();
}

TRITONSERVER_Error *TRITONBACKEND_ModelInstanceReportBatchStatistics(TRITONBACKEND_ModelInstance *instance, const uint64_t batch_size,
    const uint64_t exec_start_ns, const uint64_t compute_start_ns, const uint64_t compute_end_ns, const uint64_t exec_end_ns) {
    CHECK(0 < exec_start_ns && compute_start_ns <= compute_end_ns && compute_end_ns <= exec_end_ns);
    CHECK(instance->num_batches < 8);
    instance->batches[instance->num_batches++] = batch_size;
    return planted();
}

TRITONSERVER_Error *TRITONBACKEND_RequestIsCancelled(TRITONBACKEND_Request *request, bool *is_cancelled) {
    CHECK(request->released == 0);
    MAY_FAIL();
    *is_cancelled = request->patience-- <= 0;
    return NULL;
}

TRITONSERVER_Error *TRITONBACKEND_RequestInputCount(TRITONBACKEND_Request *request, uint32_t *count) {
    CHECK(request->released == 0);
    MAY_FAIL();
    *count = request->num_inputs;
    return NULL;
}

TRITONSERVER_Error *TRITONBACKEND_RequestInputByIndex(TRITONBACKEND_Request *request, const uint32_t index, TRITONBACKEND_Input **input) {
    MAY_FAIL();
    CHECK(index < request->num_inputs);
    *input = &request->inputs[index];
    return NULL;
}

TRITONSERVER_Error *TRITONBACKEND_RequestOutputCount(TRITONBACKEND_Request *request, uint32_t *count) {
    CHECK(request->released == 0);
    MAY_FAIL();
    *count = request->num_outputs;
    return NULL;
}

TRITONSERVER_Error *TRITONBACKEND_RequestOutputName(TRITONBACKEND_Request *request, const uint32_t index, const char **output_name) {
    MAY_FAIL();
    CHECK(index < request->num_outputs);
    *output_name = request->outputs[index];
    return NULL;
}

TRITONSERVER_Error *TRITONBACKEND_RequestRelease(TRITONBACKEND_Request *request, uint32_t release_flags) {
    TRITONSERVER_Error *error = planted();
    CHECK(release_flags == TRITONSERVER_REQUEST_RELEASE_ALL && request->released == 0);
    request->release_failed += error != NULL;
    request->released += error == NULL;
    return error;
}

TRITONSERVER_Error *TRITONBACKEND_InputProperties(TRITONBACKEND_Input *input, const char **name, TRITONSERVER_DataType *datatype,
    const int64_t **shape, uint32_t *dims_count, uint64_t *byte_size, uint32_t *buffer_count) {
    uint32_t i;
    MAY_FAIL();
    *name = input->name;
    *datatype = input->datatype;
    *shape = input->shape;
    *dims_count = input->num_dims;
    *buffer_count = input->num_buffers;
    *byte_size = input->excess;
    for (i = 0; i < input->num_buffers; i++) {
        *byte_size += input->sizes[i];
    }
    return NULL;
}

TRITONSERVER_Error *TRITONBACKEND_InputBuffer(TRITONBACKEND_Input *input, const uint32_t index, const void **buffer,
    uint64_t *buffer_byte_size, TRITONSERVER_MemoryType *memory_type, int64_t *memory_type_id) {
    MAY_FAIL();
    CHECK(index < input->num_buffers);
    *buffer = input->buffers[index];
    *buffer_byte_size = input->sizes[index];
    *memory_type = input->memory;
    *memory_type_id = 0;
    return NULL;
}

TRITONSERVER_Error *TRITONBACKEND_ResponseNew(TRITONBACKEND_Response **response, TRITONBACKEND_Request *request) {
    TRITONSERVER_Error *error = planted();
    CHECK(request->released == 0);
    *response = NULL;
    if (error != NULL) {
        request->response_failed++;
        return error;
    }
    *response = malloc(sizeof **response);
    CHECK(*response != NULL);
    memset(*response, 0, sizeof **response);
    (*response)->request = request;
    return NULL;
}

TRITONSERVER_Error *TRITONBACKEND_ResponseSetIntParameter(TRITONBACKEND_Response *response, const char *name, const int64_t value) {
    CHECK(strcmp(name, "truncated_tokens") == 0);
    MAY_FAIL();
    response->truncated = value;
    return NULL;
}

TRITONSERVER_Error *TRITONBACKEND_ResponseOutput(TRITONBACKEND_Response *response, TRITONBACKEND_Output **output, const char *name,
    const TRITONSERVER_DataType datatype, const int64_t *shape, const uint32_t dims_count) {
    TRITONBACKEND_Output *made = &response->outputs[response->num_outputs];
    MAY_FAIL();
    CHECK(response->num_outputs++ < 2 && dims_count <= 4);
    CHECK(datatype == (strcmp(name, "image") == 0 ? TRITONSERVER_TYPE_UINT8 : TRITONSERVER_TYPE_UINT64));
    snprintf(made->name, sizeof made->name, "%s", name);
    memcpy(made->shape, shape, dims_count * sizeof *shape);
    made->num_dims = dims_count;
    made->memory = response->request->output_memory;
    *output = made;
    return NULL;
}

TRITONSERVER_Error *TRITONBACKEND_OutputBuffer(TRITONBACKEND_Output *output, void **buffer, const uint64_t buffer_byte_size,
    TRITONSERVER_MemoryType *memory_type, int64_t *memory_type_id) {
    MAY_FAIL();
    CHECK(buffer_byte_size <= sizeof output->bytes && *memory_type == TRITONSERVER_MEMORY_CPU && *memory_type_id == 0);
    output->size = buffer_byte_size;
    *buffer = output->bytes;
    *memory_type = output->memory;
    return NULL;
}

TRITONSERVER_Error *TRITONBACKEND_ResponseSend(TRITONBACKEND_Response *response, const uint32_t send_flags, TRITONSERVER_Error *error) {
    TRITONBACKEND_Request *request = response->request;
    CHECK(send_flags == TRITONSERVER_RESPONSE_COMPLETE_FINAL && request->released == 0 && request->sent == 0);
    CHECK(request->counted == 1 && request->succeeded == (error == NULL));
    request->sent++;
    if (error != NULL) {
        request->code = error->code;
        snprintf(request->error, sizeof request->error, "%s", error->text);
    } else {
        memcpy(request->answers, response->outputs, sizeof response->outputs);
        request->num_answers = response->num_outputs;
        request->truncated = response->truncated;
    }
    free(response);
    return planted();
}
