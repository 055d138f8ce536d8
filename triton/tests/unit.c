/* The backend beside a server and a library that fail on demand: run under AddressSanitizer.
 *
 *     unit */
#include "../src/json.h"
#include "fake.h"
#include <string.h>

/* ---- Requests ---- */

static TRITONBACKEND_Input *add(TRITONBACKEND_Request *request, const char *name, TRITONSERVER_DataType datatype, const void *data,
    size_t size, int64_t rows, int64_t per_row) {
    TRITONBACKEND_Input *input = &request->inputs[request->num_inputs++];
    CHECK(request->num_inputs <= 8);
    input->name = name;
    input->datatype = datatype;
    input->shape[0] = rows;
    input->shape[1] = per_row;
    input->num_dims = 2;
    input->buffers[0] = data;
    input->sizes[0] = size;
    input->num_buffers = 1;
    return input;
}

/* One text for each row, in Triton's form; the last byte is the literal's own NUL. */
#define TEXTS(name, rows, literal) add(request, name, TRITONSERVER_TYPE_BYTES, literal, sizeof(literal) - 1, rows, 1)

static TRITONBACKEND_Request *ask(TRITONBACKEND_Request *request) {
    memset(request, 0, sizeof *request);
    request->outputs[0] = "image";
    request->outputs[1] = "seed";
    request->num_outputs = 2;
    request->patience = 1000;
    return request;
}

/* "a fox" with a seed. */
static TRITONBACKEND_Request *ask_fox(TRITONBACKEND_Request *request, const uint64_t *seed) {
    ask(request);
    TEXTS("prompt", 1, "\5\0\0\0a fox");
    add(request, "seed", TRITONSERVER_TYPE_UINT64, seed, sizeof *seed, 1, 1);
    return request;
}

static struct braid_pipeline *pipeline(void) {
    static char fake;
    return (struct braid_pipeline *)(void *)&fake;
}

/* Runs requests at once; each must be answered and released once. */
static TRITONBACKEND_ModelInstance execute(TRITONBACKEND_Request *requests, uint32_t count) {
    TRITONBACKEND_ModelInstance instance;
    TRITONBACKEND_Request *pointers[8];
    uint32_t i;
    memset(&instance, 0, sizeof instance);
    instance.state = pipeline();
    num_drawn = num_batches = 0;
    for (i = 0; i < count; i++) {
        pointers[i] = &requests[i];
    }
    CHECK(TRITONBACKEND_ModelInstanceExecute(&instance, pointers, count) == NULL);
    for (i = 0; i < count; i++) {
        CHECK(requests[i].released == 1 && requests[i].sent == 1 && requests[i].counted == 1);
    }
    CHECK(images == 0);
    return instance;
}

static void expect_tone(const TRITONBACKEND_Request *request, int tone) {
    CHECK(request->error[0] == '\0' && request->num_answers == 2 && strcmp(request->answers[0].name, "image") == 0);
    CHECK(request->answers[0].bytes[0] == tone);
}

/* Runs one request, which must fail so. */
static void expect_failure(TRITONBACKEND_Request *request, TRITONSERVER_Error_Code code, const char *text) {
    execute(request, 1);
    if (request->code != code || strstr(request->error, text) == NULL) {
        fprintf(stderr, "%d `%s` where `%s` was expected\n", (int)request->code, request->error, text);
        exit(1);
    }
}

static void good_requests(void) {
    TRITONBACKEND_Request requests[3], *request = requests;
    TRITONBACKEND_ModelInstance instance;
    static const uint64_t seeds[2] = {7, 9};
    static const uint8_t pixels[12] = {50, 0, 0, 0, 0, 0, 60, 0, 0, 0, 0, 0};
    static const float scales[2] = {3, 4};
    TRITONBACKEND_Input *input;
    uint64_t seed = 0;

    ask_fox(&requests[0], &seeds[0]);

    /* Two rows: pixels, and files of which the second row has one; a text in two pieces. */
    request = ask(&requests[1]);
    input = add(request, "prompt", TRITONSERVER_TYPE_BYTES, "\2\0\0\0a", 5, 2, 1);
    input->buffers[1] = "b\31\0\0\0a prompt that is too long";
    input->sizes[1] = 30;
    input->num_buffers = 2;
    add(request, "seed", TRITONSERVER_TYPE_INT64, seeds, sizeof seeds, 2, 1);
    add(request, "guidance_scale", TRITONSERVER_TYPE_FP32, scales, sizeof scales, 2, 1);
    input = add(request, "ip_adapter_image", TRITONSERVER_TYPE_UINT8, pixels, sizeof pixels, 2, 1);
    input->shape[2] = 2;
    input->shape[3] = 3;
    input->num_dims = 4;
    add(request, "ip_adapter_image_file", TRITONSERVER_TYPE_BYTES, "\0\0\0\0\3\0\0\0XXX", 11, 2, 1);
    TEXTS("scheduler", 2, "\4\0\0\0ddim\0\0\0\0");

    /* No reference, of no pixels, and the image alone. */
    request = ask_fox(&requests[2], &seeds[1]);
    request->num_outputs = 1;
    input = add(request, "ip_adapter_image", TRITONSERVER_TYPE_UINT8, NULL, 0, 1, 0);
    input->shape[3] = 3;
    input->num_dims = 4;
    input->num_buffers = 0;

    instance = execute(requests, 3);
    CHECK(num_drawn == 1 && drawn[0] == 4 && instance.num_batches == 1 && instance.batches[0] == 4);
    expect_tone(&requests[0], 7);
    expect_tone(&requests[1], 7 + 3 + 50);
    CHECK(requests[1].answers[0].bytes[6] == 9 + 4 + 60 + 2 * 3);
    CHECK(requests[1].answers[0].size == 12 && memcmp(requests[1].answers[0].shape, (int64_t[4]){2, 1, 2, 3}, 32) == 0);
    CHECK(requests[1].truncated == 5 && requests[0].truncated == 0);
    memcpy(&seed, requests[1].answers[1].bytes + 8, 8);
    CHECK(strcmp(requests[1].answers[1].name, "seed") == 0 && seed == 9 && requests[1].answers[1].num_dims == 2);
    CHECK(requests[2].num_answers == 1 && requests[2].answers[0].bytes[0] == 9);
}

/* What is wrong with one concerns no other. */
static void failures_stay_alone(void) {
    TRITONBACKEND_Request requests[8], *request;
    TRITONBACKEND_ModelInstance instance;
    static const uint64_t seed = 7, zero = 0;
    static const int32_t sizes[2] = {1, 2};
    int i;
    for (i = 0; i < 8; i++) {
        ask_fox(&requests[i], &seed);
    }
    request = &requests[1];
    TEXTS("scheduler", 1, "\4\0\0\0eulr");
    add(&requests[2], "steps", TRITONSERVER_TYPE_UINT64, &zero, 8, 1, 1);
    /* Two rows of two sizes. */
    request = ask(&requests[3]);
    TEXTS("prompt", 2, "\1\0\0\0a\1\0\0\0b");
    add(request, "width", TRITONSERVER_TYPE_INT32, sizes, 8, 2, 1);
    requests[4].patience = 0;
    requests[5].patience = 2;
    instance = execute(requests, 8);
    CHECK(instance.num_batches == 1 && instance.batches[0] == 8);
    /* 8 rows, the second one unreadable: 4 and 4, of the first 1 and 1 and 2. */
    CHECK(num_drawn == 3 && drawn[0] == 1 && drawn[1] == 2 && drawn[2] == 4);
    CHECK(requests[1].code == TRITONSERVER_ERROR_INVALID_ARG);
    CHECK(strcmp(requests[1].error, "scheduler: unknown (BRAID_ERROR_PARAMETER)") == 0);
    CHECK(strcmp(requests[2].error, "steps: 0 given (BRAID_ERROR_PARAMETER)") == 0);
    CHECK(strstr(requests[3].error, "width, height: row 1 has 2x1, row 0 1x1;") != NULL);
    for (i = 4; i < 6; i++) {
        CHECK(requests[i].code == TRITONSERVER_ERROR_CANCELLED && strcmp(requests[i].error, "cancelled") == 0);
    }
    for (i = 0; i < 8; i++) {
        CHECK(requests[i].succeeded == (i == 0 || i > 5));
        if (i == 0 || i > 5) {
            expect_tone(&requests[i], 7);
        }
    }

    /* A row is named; a defect of the library is not tried again. */
    request = ask(&requests[0]);
    TEXTS("prompt", 2, "\1\0\0\0a\1\0\0\0b");
    TEXTS("scheduler", 2, "\0\0\0\0\4\0\0\0eulr");
    expect_failure(request, TRITONSERVER_ERROR_INVALID_ARG, "row 1: scheduler: unknown (");
    request = ask(&requests[0]);
    TEXTS("prompt", 2, "\5\0\0\0panic\5\0\0\0panic");
    expect_failure(request, TRITONSERVER_ERROR_INTERNAL, "row 0: a defect of the library");
    CHECK(num_drawn == 0 && num_batches == 1);
}

static void wrong_inputs(void) {
    TRITONBACKEND_Request made, *request = &made;
    static const uint64_t seed = 7;
    static const int8_t negative = -1;
    static const uint64_t large = (uint64_t)UINT32_MAX + 1;
    TRITONBACKEND_Input *input;

    request = ask(&made);
    expect_failure(request, TRITONSERVER_ERROR_INVALID_ARG, "prompt: it is missing");
    request = ask(&made);
    add(request, "seed", TRITONSERVER_TYPE_UINT64, &seed, 8, 1, 1);
    expect_failure(request, TRITONSERVER_ERROR_INVALID_ARG, "prompt: it is missing");
    request = ask(&made);
    TEXTS("prompt", 0, "");
    expect_failure(request, TRITONSERVER_ERROR_INVALID_ARG, "prompt: its first dimension is the number of rows");
    request = ask(&made);
    TEXTS("prompt", 1, "\5\0\0\0a\0fox");
    expect_failure(request, TRITONSERVER_ERROR_INVALID_ARG, "prompt: byte 1 is 0, which ends texts");
    request = ask(&made);
    TEXTS("promt", 1, "\1\0\0\0a");
    expect_failure(request, TRITONSERVER_ERROR_INVALID_ARG, "there is no input `promt`");

    /* Strings whose lengths lie. */
    request = ask(&made);
    TEXTS("prompt", 1, "\6\0\0\0a fox");
    expect_failure(request, TRITONSERVER_ERROR_INVALID_ARG, "prompt: 9 bytes do not fit its shape and type");
    request = ask(&made);
    TEXTS("prompt", 1, "\1\0\0\0ab");
    expect_failure(request, TRITONSERVER_ERROR_INVALID_ARG, "prompt: 6 bytes do not fit");
    request = ask(&made);
    TEXTS("prompt", 1, "\1\0");
    expect_failure(request, TRITONSERVER_ERROR_INVALID_ARG, "prompt: 2 bytes do not fit");
    request = ask(&made);
    TEXTS("prompt", 1, "\377\377\377\377a");
    expect_failure(request, TRITONSERVER_ERROR_INVALID_ARG, "prompt: 5 bytes do not fit");
    request = ask_fox(&made, &seed);
    add(request, "ip_adapter_image_file", TRITONSERVER_TYPE_BYTES, "\1\0\0\0X", 5, 1, (int64_t)1 << 60);
    expect_failure(request, TRITONSERVER_ERROR_INVALID_ARG, "ip_adapter_image_file: 5 bytes do not fit");
    request = ask_fox(&made, &seed);
    add(request, "ip_adapter_image_file", TRITONSERVER_TYPE_BYTES, "\1\0\0\0X\1\0\0\0?", 10, 1, 2);
    expect_failure(request, TRITONSERVER_ERROR_INVALID_ARG, "ip_adapter_image_file: no image");

    /* Rows, shapes, types and numbers. */
    request = ask_fox(&made, &seed);
    TEXTS("negative_prompt", 2, "\1\0\0\0a\1\0\0\0b");
    expect_failure(request, TRITONSERVER_ERROR_INVALID_ARG, "negative_prompt: 2 rows, where another input has 1");
    request = ask_fox(&made, &seed);
    add(request, "clip_skip", TRITONSERVER_TYPE_UINT64, &large, 8, 1, 1);
    expect_failure(request, TRITONSERVER_ERROR_INVALID_ARG, "clip_skip: a number from 0 to 4294967295 is expected");
    request = ask_fox(&made, &seed);
    add(request, "steps", TRITONSERVER_TYPE_INT8, &negative, 1, 1, 1);
    expect_failure(request, TRITONSERVER_ERROR_INVALID_ARG, "steps: a number from 0 to ");
    request = ask_fox(&made, &seed);
    add(request, "steps", TRITONSERVER_TYPE_BOOL, &negative, 1, 1, 1);
    expect_failure(request, TRITONSERVER_ERROR_INVALID_ARG, "steps: 1 bytes do not fit");
    request = ask_fox(&made, &seed);
    input = add(request, "ip_adapter_image", TRITONSERVER_TYPE_UINT8, "123456", 6, 1, 1);
    input->shape[2] = 3;
    input->shape[3] = 2;
    input->num_dims = 4;
    expect_failure(request, TRITONSERVER_ERROR_INVALID_ARG, "ip_adapter_image: 6 bytes do not fit");
    request = ask_fox(&made, &seed);
    input = add(request, "lora_scales", TRITONSERVER_TYPE_FP32, "1234", 4, 1, INT64_MAX);
    expect_failure(request, TRITONSERVER_ERROR_INVALID_ARG, "lora_scales: 4 bytes do not fit");
    request = ask_fox(&made, &seed);
    request->inputs[1].shape[1] = request->inputs[1].shape[2] = -1;
    request->inputs[1].num_dims = 3;
    expect_failure(request, TRITONSERVER_ERROR_INVALID_ARG, "seed: 8 bytes do not fit");
    request = ask_fox(&made, &seed);
    add(request, "ip_adapter_image_file", TRITONSERVER_TYPE_BYTES, "\1\0\0\0X", 5, 1, 2)->excess = 5;
    expect_failure(request, TRITONSERVER_ERROR_INVALID_ARG, "ip_adapter_image_file: 10 bytes do not fit");
    request = ask_fox(&made, &seed);
    request->inputs[1].shape[1] = 2;
    expect_failure(request, TRITONSERVER_ERROR_INVALID_ARG, "seed: 8 bytes do not fit");

    /* Memory of a GPU, and outputs that there are not. */
    request = ask_fox(&made, &seed);
    request->inputs[0].memory = TRITONSERVER_MEMORY_GPU;
    expect_failure(request, TRITONSERVER_ERROR_UNSUPPORTED, "prompt: it lies in a GPU's memory");
    request = ask_fox(&made, &seed);
    request->output_memory = TRITONSERVER_MEMORY_GPU;
    expect_failure(request, TRITONSERVER_ERROR_UNSUPPORTED, "image: the memory for it is a GPU's");
    request = ask_fox(&made, &seed);
    request->outputs[1] = "mask";
    expect_failure(request, TRITONSERVER_ERROR_INVALID_ARG, "there is no output `mask`");
}

/* ---- Failures of the server, and of memory ---- */

/* Three requests, of which one has a reference; each must be released once, and answered once where a response could be made. */
static void run_with_failure(void) {
    TRITONBACKEND_Request requests[3], *request, *pointers[3];
    TRITONBACKEND_ModelInstance instance;
    TRITONSERVER_Error *error;
    static const uint64_t seed = 7;
    int failures = 0, i;
    memset(&instance, 0, sizeof instance);
    instance.state = pipeline();
    for (i = 0; i < 3; i++) {
        pointers[i] = ask_fox(&requests[i], &seed);
    }
    request = &requests[1];
    TEXTS("ip_adapter_image_file", 1, "\1\0\0\0X");
    request->inputs[0].buffers[1] = "";
    request->inputs[0].num_buffers = 2;
    num_drawn = 0;
    calls = callocs = 0;
    error = TRITONBACKEND_ModelInstanceExecute(&instance, pointers, 3);
    for (i = 0; i < 3; i++) {
        if (error != NULL) {
            CHECK(requests[i].released == 0 && requests[i].sent == 0 && requests[i].counted == 0);
            continue;
        }
        CHECK(requests[i].released + requests[i].release_failed == 1);
        CHECK(requests[i].sent + requests[i].response_failed == 1);
        CHECK(requests[i].counted == 1);
        failures += !requests[i].succeeded;
        if (requests[i].sent && requests[i].succeeded) {
            expect_tone(&requests[i], i == 1 ? 8 : 7);
        }
    }
    /* A call of the server's concerns one request. */
    CHECK(failures <= 1 || fail_calloc > 0);
    CHECK(images == 0);
    if (error != NULL) {
        TRITONSERVER_ErrorDelete(error);
    }
}

static const char CONFIG[] =
    "{\"name\": \"sdxl\", \"max_batch_size\": 8, \"input\": [{\"name\": \"prompt\", \"data_type\": \"TYPE_STRING\", \"dims\": [1]}],"
    "\"output\": [{\"name\": \"image\", \"data_type\": \"TYPE_UINT8\", \"dims\": [-1, -1, 3]}], \"parameters\": {"
    "\"model\": {\"string_value\": \"a.safetensors\"}, \"adapters\": {\"string_value\": \"/b\"},"
    "\"loras\": {\"string_value\": \"c\\n\\nd\\n\"},"
    "\"clip_vision\": {\"string_value\": \"..\\/\\u00e9\"}, \"threads\": {\"string_value\": \"2\"}, \"mmap\": {\"string_value\": \"0\"},"
    "\"max_cache_bytes\": {\"string_value\": \"18446744073709551615\"}, \"TRITON_X\": {\"string_value\": \"y\"}}}";

/* Loads a model and an instance, and unloads them. */
static TRITONSERVER_Error *load(const char *config, TRITONSERVER_InstanceGroupKind kind) {
    TRITONBACKEND_Model model;
    TRITONBACKEND_ModelInstance instance;
    TRITONSERVER_Error *error;
    long plan;
    memset(&model, 0, sizeof model);
    memset(&instance, 0, sizeof instance);
    model.config = config;
    instance.model = &model;
    instance.kind = kind;
    instance.device = 1;
    error = TRITONBACKEND_ModelInitialize(&model);
    if (error == NULL) {
        error = TRITONBACKEND_ModelInstanceInitialize(&instance);
    }
    /* The server finalizes what failed to begin, too. */
    plan = fail_call;
    fail_call = 0;
    CHECK(TRITONBACKEND_ModelInstanceFinalize(&instance) == NULL && TRITONBACKEND_ModelFinalize(&model) == NULL);
    CHECK(pipelines == 0 && model.state == NULL && instance.state == NULL);
    fail_call = plan;
    return error;
}

static void failures_of_the_server(void) {
    long number, total;
    int memory;
    run_with_failure();
    total = calls;
    CHECK(total > 60 && num_drawn == 1);
    for (number = 1; number <= total; number++) {
        fail_call = number;
        run_with_failure();
    }
    fail_call = 0;
    run_with_failure();
    total = callocs;
    CHECK(total > 10);
    for (number = 1; number <= total; number++) {
        fail_calloc = number;
        run_with_failure();
    }
    fail_calloc = 0;

    /* Loading. */
    for (memory = 0; memory < 2; memory++) {
        long *plan = memory ? &fail_calloc : &fail_call;
        TRITONSERVER_Error *error = load(CONFIG, TRITONSERVER_INSTANCEGROUPKIND_CPU);
        CHECK(error == NULL);
        for (number = 1; number < 100; number++) {
            calls = callocs = 0;
            *plan = number;
            error = load(CONFIG, TRITONSERVER_INSTANCEGROUPKIND_CPU);
            *plan = 0;
            if (error != NULL) {
                TRITONSERVER_ErrorDelete(error);
            }
        }
    }
}

/* ---- Configurations ---- */

static void expect_config(const char *config, TRITONSERVER_InstanceGroupKind kind, const char *text) {
    TRITONSERVER_Error *error = load(config, kind);
    if (error == NULL || strstr(TRITONSERVER_ErrorMessage(error), text) == NULL) {
        fprintf(stderr, "`%s` where `%s` was expected\n", error == NULL ? "no error" : TRITONSERVER_ErrorMessage(error), text);
        exit(1);
    }
    TRITONSERVER_ErrorDelete(error);
}

#define PROMPT "{\"name\": \"prompt\", \"data_type\": \"TYPE_STRING\", \"dims\": [1]}"
#define WITH(inputs, outputs, parameters) \
    "{\"max_batch_size\": 1, \"input\": [" inputs "], \"output\": [" outputs "], \"parameters\": {" parameters "}}"
#define PARAMETER(name, value) "\"" name "\": {\"string_value\": \"" value "\"}"
#define INPUT(name, type, dims) "{\"name\": \"" name "\", \"data_type\": \"" type "\", \"dims\": " dims "}"

static void configurations(void) {
    const TRITONSERVER_InstanceGroupKind cpu = TRITONSERVER_INSTANCEGROUPKIND_CPU, own = TRITONSERVER_INSTANCEGROUPKIND_MODEL;
    TRITONBACKEND_Backend *backend = NULL;
    CHECK(TRITONBACKEND_Initialize(backend) == NULL && strcmp(logged, "braid 0.0.0") == 0);
    CHECK(load(CONFIG, TRITONSERVER_INSTANCEGROUPKIND_GPU) == NULL);
    CHECK(strcmp(loaded, "/models/sdxl/3/a.safetensors /b "
                         "/models/sdxl/3/../\303\251 2 /models/sdxl/3/d cuda:1 2 0 18446744073709551615") == 0);
    CHECK(load(CONFIG, cpu) == NULL && strstr(loaded, " cpu ") != NULL);
    CHECK(load(CONFIG, own) == NULL && strstr(loaded, " auto ") != NULL);
    CHECK(strcmp(logged, "a note") == 0);

    expect_config("{", cpu, "it is no JSON");
    expect_config("{\"max_batch_size\": 0}", cpu, "max_batch_size: 1 or more is needed");
    expect_config(WITH("", "", PARAMETER("model", "m")), cpu, "input: prompt is missing");
    expect_config(WITH(INPUT("promt", "TYPE_STRING", "[1]"), "", ""), cpu, "input: there is no `promt`");
    expect_config(WITH(INPUT("prompt", "TYPE_INT8", "[1]"), "", ""), cpu, "input: prompt cannot be TYPE_INT8");
    expect_config(WITH(INPUT("steps", "TYPE_FP32", "[1]"), "", ""), cpu, "input: steps cannot be TYPE_FP32");
    expect_config(WITH(INPUT("steps", "TYPE_INT", "[1]"), "", ""), cpu, "input: steps cannot be TYPE_INT");
    expect_config(WITH(INPUT("eta", "TYPE_INT32", "[1]"), "", ""), cpu, "input: eta cannot be TYPE_INT32");
    expect_config(WITH(INPUT("prompt", "TYPE_STRING", "[2]"), "", ""), cpu, "input: prompt: dims: [ 1 ] is expected");
    expect_config(WITH(INPUT("ip_adapter_image", "TYPE_UINT8", "[3, -1, -1]"), "", ""), cpu, "dims: [ -1, -1, 3 ] is expected");
    expect_config(WITH(INPUT("ip_adapter_image_file", "TYPE_STRING", "[-1, 1]"), "", ""), cpu, "dims: [ -1 ] is expected");
    expect_config(WITH(PROMPT, INPUT("mask", "TYPE_UINT8", "[1]"), ""), cpu, "output: there is no `mask`");
    expect_config(WITH(PROMPT, INPUT("image", "TYPE_FP32", "[1]"), ""), cpu, "output: image cannot be TYPE_FP32");
    expect_config(WITH(PROMPT, "", ""), cpu, "parameters: model is missing");
    expect_config(WITH(PROMPT, "", PARAMETER("threds", "1")), cpu, "parameters: there is no `threds`; known are model, config, ");
    expect_config(WITH(PROMPT, "", PARAMETER("the number of threads that a pipeline has to draw its images", "1")), cpu,
        ", vae_tiling, mmap");
    expect_config(WITH(PROMPT, "", PARAMETER("max_cache_bytes", "18446744073709551616")), cpu,
        "max_cache_bytes: `18446744073709551616` given");
    expect_config(WITH(PROMPT, "", PARAMETER("threads", "two")), cpu, "parameters: threads: `two` given; a whole number");
    expect_config(WITH(PROMPT, "", PARAMETER("threads", "-2")), cpu, "parameters: threads: `-2` given; a whole number");
    expect_config(WITH(PROMPT, "", PARAMETER("vae_tiling", "4294967296")), cpu,
        "vae_tiling: `4294967296` given; a whole number up to 4294967295");
    expect_config(WITH(PROMPT, "", PARAMETER("dtype", "")), cpu, "parameters: dtype: an empty text given");
    expect_config(WITH(PROMPT, "", PARAMETER("model", "m") "," PARAMETER("adapters", "a\\nb")), cpu, "parameters: adapters: 2 given");
    expect_config(WITH(PROMPT, "", PARAMETER("model", "m") "," PARAMETER("device", "cpu")), cpu,
        "parameters: device: instance_group chooses");
    expect_config(WITH(PROMPT, "", PARAMETER("model", "missing")), cpu, "braid: model: no such file (BRAID_ERROR_SOME)");
    CHECK(TRITONBACKEND_Finalize(backend) == NULL);
}

static void json(void) {
    struct arena arena = {NULL};
    const struct json *read;
    static const char *const wrong[] = {"", "{", "[1", "[1,]", "{\"a\"}", "{\"a\":}", "{a:1}", "\"", "\"\\", "\"\\x\"", "\"\\u12\"",
        "\"\\ud800\"", "\"\\udc00\"", "\"\\ud800\\u0041\"", "\"\\u0000\"", "1 2", "]", "[1}"};
    char deep[200];
    size_t i;
    for (i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        /* In memory of its own, so that a byte too many is seen. */
        char *text = malloc(strlen(wrong[i]) + 1);
        CHECK(text != NULL);
        memcpy(text, wrong[i], strlen(wrong[i]));
        read = json_parse(&arena, text, strlen(wrong[i]));
        if (read != NULL) {
            fprintf(stderr, "`%s` was read\n", wrong[i]);
            exit(1);
        }
        free(text);
    }
    memset(deep, '[', 100);
    memset(deep + 100, ']', 100);
    CHECK(json_parse(&arena, deep, 200) == NULL);
    CHECK(json_parse(&arena, deep + 60, 80) != NULL);
    read = json_parse(&arena, " {\"a\\n\\u00e9\\ud83d\\ude00\": [ -2, true, \"\\\"\\\\\" ] } ", 49);
    read = json_member(read, "a\n\303\251\360\237\230\200");
    CHECK(read != NULL && json_number(read->first) == -2 && read->first->next->kind == JSON_WORD);
    CHECK(strcmp(json_text(read->first->next->next), "\"\\") == 0 && json_member(read, "a") == NULL);
    arena_free(&arena);
}

int main(void) {
    json();
    configurations();
    good_requests();
    failures_stay_alone();
    wrong_inputs();
    failures_of_the_server();
    puts("as it should be");
    return 0;
}
