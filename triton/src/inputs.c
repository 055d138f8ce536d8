#include "inputs.h"
#include "rows.h"
#include <string.h>

#define REQUEST(name, kind) {#name, kind, offsetof(struct row, request) + offsetof(braid_request, name)}
#define PROMPT(name, kind) {"ip_adapter_" #name, kind, offsetof(struct row, prompt) + offsetof(braid_image_prompt, name)}

static const struct input INPUTS[] = {
    REQUEST(prompt, TEXT),
    REQUEST(negative_prompt, TEXT),
    REQUEST(prompt_2, TEXT),
    REQUEST(negative_prompt_2, TEXT),
    REQUEST(long_prompts, NAME),
    REQUEST(prompt_weights, NAME),
    REQUEST(width, SIZE),
    REQUEST(height, SIZE),
    REQUEST(steps, SIZE),
    REQUEST(seed, U64),
    REQUEST(guidance_scale, F32),
    REQUEST(guidance_rescale, F32),
    REQUEST(guidance_start, F64),
    REQUEST(guidance_end, F64),
    REQUEST(scheduler, NAME),
    REQUEST(sigma_schedule, NAME),
    REQUEST(prediction_type, NAME),
    REQUEST(timestep_spacing, NAME),
    REQUEST(rng, NAME),
    REQUEST(noise_dtype, NAME),
    REQUEST(eta, F32),
    REQUEST(clip_skip, U32),
    REQUEST(lora_scales, LIST),
    PROMPT(scale, F32),
    PROMPT(blocks, NAME),
    PROMPT(combine, NAME),
    PROMPT(fit, NAME),
    PROMPT(start, F64),
    PROMPT(end, F64),
    {"ip_adapter_image", PIXELS, offsetof(struct row, pixels)},
    {"ip_adapter_image_file", FILES, offsetof(struct row, files)},
};

const struct input *inputs_find(const char *name) {
    size_t i = 0;
    while (i < sizeof INPUTS / sizeof *INPUTS && strcmp(INPUTS[i].name, name) != 0) {
        i++;
    }
    return i < sizeof INPUTS / sizeof *INPUTS ? &INPUTS[i] : NULL;
}

/* The data types that an input may be declared with. */
static bool is_fit(enum kind kind, const char *datatype) {
    const char *fit = kind == TEXT || kind == NAME || kind == FILES ? "TYPE_STRING"
                      : kind == PIXELS                              ? "TYPE_UINT8"
                      : kind == LIST                                ? "TYPE_FP32"
                      : kind == F32 || kind == F64
                          ? "TYPE_FP32 TYPE_FP64"
                          : "TYPE_UINT8 TYPE_UINT16 TYPE_UINT32 TYPE_UINT64 TYPE_INT8 TYPE_INT16 TYPE_INT32 TYPE_INT64";
    const char *at = *datatype != '\0' ? strstr(fit, datatype) : NULL;
    return at != NULL && strchr(" ", at[strlen(datatype)]) != NULL;
}

static TRITONSERVER_Error *check_input(const struct json *input) {
    const char *name = json_text(json_member(input, "name")), *datatype = json_text(json_member(input, "data_type"));
    const struct input *known = inputs_find(name);
    const struct json *dims = json_member(input, "dims"), *dim = dims != NULL ? dims->first : NULL;
    const bool is_image = known != NULL && known->kind == PIXELS;
    const bool is_list = known != NULL && (known->kind == LIST || known->kind == FILES);
    if (known == NULL) {
        return refuse(TRITONSERVER_ERROR_INVALID_ARG, "input: there is no `%s`; triton/README.md lists those that there are", name);
    }
    if (!is_fit(known->kind, datatype)) {
        return refuse(TRITONSERVER_ERROR_INVALID_ARG, "input: %s cannot be %s; triton/README.md has its type", name, datatype);
    }
    if (is_image ? dim == NULL || dim->next == NULL || dim->next->next == NULL || json_number(dim->next->next) != 3 || dim->next->next->next
                 : dim == NULL || dim->next != NULL || (!is_list && json_number(dim) != 1)) {
        return refuse(TRITONSERVER_ERROR_INVALID_ARG, "input: %s: dims: %s is expected", name,
            is_image  ? "[ -1, -1, 3 ]"
            : is_list ? "[ -1 ]"
                      : "[ 1 ]");
    }
    return NULL;
}

static TRITONSERVER_Error *check_output(const struct json *output) {
    const char *name = json_text(json_member(output, "name")), *datatype = json_text(json_member(output, "data_type"));
    const bool is_image = strcmp(name, "image") == 0;
    if (!is_image && strcmp(name, "seed") != 0) {
        return refuse(TRITONSERVER_ERROR_INVALID_ARG, "output: there is no `%s`; there are image and seed", name);
    }
    if (strcmp(datatype, is_image ? "TYPE_UINT8" : "TYPE_UINT64") != 0) {
        return refuse(TRITONSERVER_ERROR_INVALID_ARG, "output: %s cannot be %s; it is %s", name, datatype,
            is_image ? "TYPE_UINT8, dims: [ -1, -1, 3 ]" : "TYPE_UINT64, dims: [ 1 ]");
    }
    return NULL;
}

TRITONSERVER_Error *inputs_check(const struct json *config) {
    const struct json *inputs = json_member(config, "input"), *outputs = json_member(config, "output");
    const struct json *each;
    TRITONSERVER_Error *error = NULL;
    bool has_prompt = false;
    if (json_number(json_member(config, "max_batch_size")) < 1) {
        return refuse(TRITONSERVER_ERROR_INVALID_ARG,
            "max_batch_size: 1 or more is needed: each request has its rows in the first dimension, an image a row");
    }
    for (each = inputs != NULL ? inputs->first : NULL; each != NULL && error == NULL; each = each->next) {
        has_prompt |= strcmp(json_text(json_member(each, "name")), "prompt") == 0;
        error = check_input(each);
    }
    for (each = outputs != NULL ? outputs->first : NULL; each != NULL && error == NULL; each = each->next) {
        error = check_output(each);
    }
    if (error == NULL && !has_prompt) {
        error = refuse(TRITONSERVER_ERROR_INVALID_ARG, "input: prompt is missing: TYPE_STRING, dims: [ 1 ]");
    }
    return error;
}

