/* What the test programs share. */
#ifndef CHECK_H
#define CHECK_H

#include <braid.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition) \
    do { \
        if (!(condition)) { \
            char text[1024]; \
            braid_last_error(text, sizeof text); \
            fprintf(stderr, "%s:%d: %s (last error: %s)\n", __FILE__, __LINE__, #condition, text); \
            exit(1); \
        } \
    } while (0)

static inline braid_image *pixels(size_t width, size_t height) {
    uint8_t *rgb = malloc(width * height * 3);
    braid_image *image;
    CHECK(rgb != NULL);
    memset(rgb, 90, width * height * 3);
    CHECK(braid_image_new(width, height, rgb, width * height * 3, &image) == BRAID_OK);
    free(rgb);
    CHECK(braid_image_width(image) == width && braid_image_height(image) == height);
    CHECK(braid_image_rgb(image)[0] == 90);
    return image;
}

static inline braid_pipeline *load(const char *model, const char *adapter) {
    /* The strings may go once the call has returned. */
    char *copy = malloc(strlen(model) + 1);
    const char *adapters[1];
    braid_pipeline_options options;
    braid_pipeline *pipeline;
    CHECK(copy != NULL);
    strcpy(copy, model);
    adapters[0] = adapter;
    CHECK(braid_pipeline_options_init(&options, sizeof options) == BRAID_OK);
    options.model = copy;
    options.adapters = adapters;
    options.num_adapters = 1;
    options.threads = 1;
    CHECK(braid_pipeline_load(&options, &pipeline) == BRAID_OK);
    free(copy);
    return pipeline;
}

static inline braid_request request(size_t steps) {
    braid_request request;
    CHECK(braid_request_init(&request, sizeof request) == BRAID_OK);
    request.prompt = "a fox";
    request.width = 32;
    request.height = 32;
    request.steps = steps;
    return request;
}

#endif /* CHECK_H */
