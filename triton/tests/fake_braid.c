/* libbraid, whose images are grey in a tone that tells what was asked for. */
#include "fake.h"
#include <string.h>

char loaded[512];
int pipelines = 0, images = 0;
size_t drawn[16];
int num_drawn = 0, num_batches = 0;

static char last[512];

struct braid_pipeline {
    int one;
};

struct braid_image {
    size_t width, height;
    uint8_t rgb[];
};

struct braid_output {
    braid_image *image;
    size_t truncated;
};

struct braid_batch {
    size_t count;
    braid_output *outputs[16];
    braid_status statuses[16];
    char texts[16][512];
};

static braid_status failed(braid_status status, const char *text) {
    snprintf(last, sizeof last, "%s", text);
    return status;
}

const char *braid_version(void) {
    return "0.0.0";
}

const char *braid_status_name(braid_status status) {
    return status == BRAID_ERROR_PARAMETER ? "BRAID_ERROR_PARAMETER" : "BRAID_ERROR_SOME";
}

size_t braid_last_error(char *buffer, size_t size) {
    if (size > 0) {
        snprintf(buffer, size, "%s", last);
    }
    return strlen(last) + 1;
}

braid_status braid_set_warning_callback(braid_warning_fn on_warning, void *user_data) {
    if (on_warning != NULL) {
        on_warning("a warning", user_data);
    }
    return BRAID_OK;
}

#define INIT(of) \
    braid_status of##_init(of *made, size_t struct_size) { \
        CHECK(struct_size == sizeof *made); \
        memset(made, 0, struct_size); \
        made->struct_size = struct_size; \
        return BRAID_OK; \
    }

INIT(braid_pipeline_options)
INIT(braid_reference)
INIT(braid_callbacks)

braid_status braid_request_init(braid_request *made, size_t struct_size) {
    CHECK(struct_size == sizeof *made);
    memset(made, 0, struct_size);
    made->struct_size = struct_size;
    made->steps = 3;
    return BRAID_OK;
}

braid_status braid_image_prompt_init(braid_image_prompt *made, size_t struct_size) {
    CHECK(struct_size == sizeof *made);
    memset(made, 0, struct_size);
    made->struct_size = struct_size;
    made->scale = 1;
    return BRAID_OK;
}

braid_status braid_pipeline_load(const braid_pipeline_options *options, braid_pipeline **pipeline) {
    *pipeline = NULL;
    if (strstr(options->model, "missing") != NULL) {
        return failed(BRAID_ERROR_IO, "model: no such file");
    }
    snprintf(loaded, sizeof loaded, "%s %s %s %zu %s %s %zu %u %llu", options->model, options->adapters[0], options->clip_vision,
        options->num_loras, options->num_loras > 1 ? options->loras[1] : "", options->device, options->threads, (unsigned)options->mmap,
        (unsigned long long)options->max_cache_bytes);
    *pipeline = malloc(sizeof **pipeline);
    pipelines++;
    return BRAID_OK;
}

void braid_pipeline_free(braid_pipeline *pipeline) {
    pipelines -= pipeline != NULL;
    free(pipeline);
}

size_t braid_pipeline_device(const braid_pipeline *pipeline, char *buffer, size_t size) {
    CHECK(pipeline != NULL);
    return (size_t)snprintf(buffer, size, "somewhere") + 1;
}

size_t braid_pipeline_notes(const braid_pipeline *pipeline, char *buffer, size_t size) {
    CHECK(pipeline != NULL);
    return (size_t)snprintf(buffer, size, "a note") + 1;
}

braid_status braid_image_new(size_t width, size_t height, const uint8_t *rgb, size_t rgb_size, braid_image **image) {
    CHECK(rgb_size == width * height * 3 && rgb_size > 0);
    *image = malloc(sizeof **image + rgb_size);
    CHECK(*image != NULL);
    (*image)->width = width;
    (*image)->height = height;
    memcpy((*image)->rgb, rgb, rgb_size);
    images++;
    return BRAID_OK;
}

braid_status braid_image_decode(const uint8_t *bytes, size_t size, int32_t alpha, braid_image **image) {
    uint8_t rgb[3];
    *image = NULL;
    CHECK(alpha == BRAID_ALPHA_ON_WHITE);
    if (bytes[0] == '?') {
        return failed(BRAID_ERROR_MALFORMED, "no image");
    }
    memset(rgb, (int)size, 3);
    return braid_image_new(1, 1, rgb, 3, image);
}

size_t braid_image_width(const braid_image *image) {
    return image->width;
}

size_t braid_image_height(const braid_image *image) {
    return image->height;
}

const uint8_t *braid_image_rgb(const braid_image *image) {
    return image->rgb;
}

void braid_image_free(braid_image *image) {
    images -= image != NULL;
    free(image);
}

/* Draws one: its tone is the seed, the guidance scale, and of each reference its place and first byte. */
static braid_status draw(const braid_request *request, const braid_callbacks *callbacks, braid_output **output) {
    const size_t width = request->width ? request->width : 2, height = request->height ? request->height : 1;
    size_t step, i, tone = (size_t)request->seed + (size_t)request->guidance_scale;
    uint8_t *rgb;
    if (request->steps == 0) {
        return failed(BRAID_ERROR_PARAMETER, "steps: 0 given");
    }
    for (step = 0; step < request->steps; step++) {
        if (callbacks->on_progress(NULL, callbacks->user_data) != 0) {
            return failed(BRAID_ERROR_CANCELLED, "cancelled");
        }
    }
    for (i = 0; request->num_image_prompts > 0 && i < request->image_prompts->num_references; i++) {
        tone += (i + 1) * request->image_prompts->references[i].image->rgb[0];
    }
    rgb = malloc(width * height * 3);
    CHECK(rgb != NULL);
    memset(rgb, (int)tone, width * height * 3);
    *output = malloc(sizeof **output);
    CHECK(*output != NULL);
    braid_image_new(width, height, rgb, width * height * 3, &(*output)->image);
    (*output)->truncated = strlen(request->prompt) > 20 ? strlen(request->prompt) - 20 : 0;
    free(rgb);
    return BRAID_OK;
}

braid_status braid_pipeline_generate_batch(const braid_pipeline *pipeline, const braid_request *requests, size_t num_requests,
    const braid_callbacks *callbacks, braid_batch **batch) {
    size_t i;
    CHECK(pipeline != NULL && num_requests > 0 && num_requests <= 16);
    *batch = NULL;
    num_batches++;
    for (i = 0; i < num_requests; i++) {
        CHECK(requests[i].prompt != NULL);
        if (requests[i].scheduler != NULL && strcmp(requests[i].scheduler, "ddim") != 0) {
            return failed(BRAID_ERROR_PARAMETER, "scheduler: unknown");
        }
        if (strcmp(requests[i].prompt, "panic") == 0) {
            return failed(BRAID_ERROR_PANIC, "a defect of the library");
        }
    }
    CHECK(num_drawn < 16);
    drawn[num_drawn++] = num_requests;
    *batch = malloc(sizeof **batch);
    CHECK(*batch != NULL);
    memset(*batch, 0, sizeof **batch);
    (*batch)->count = num_requests;
    for (i = 0; i < num_requests; i++) {
        (*batch)->statuses[i] = draw(&requests[i], &callbacks[i], &(*batch)->outputs[i]);
        snprintf((*batch)->texts[i], sizeof (*batch)->texts[i], "%s", last);
    }
    return BRAID_OK;
}

braid_status braid_batch_take(const braid_batch *batch, size_t index, braid_output **output) {
    CHECK(index < batch->count);
    *output = batch->outputs[index];
    return batch->statuses[index] == BRAID_OK ? BRAID_OK : failed(batch->statuses[index], batch->texts[index]);
}

void braid_batch_free(braid_batch *batch) {
    free(batch);
}

const braid_image *braid_output_image(const braid_output *output, size_t index) {
    CHECK(index == 0);
    return output->image;
}

size_t braid_output_truncated_tokens(const braid_output *output) {
    return output->truncated;
}

void braid_output_free(braid_output *output) {
    if (output != NULL) {
        braid_image_free(output->image);
    }
    free(output);
}
