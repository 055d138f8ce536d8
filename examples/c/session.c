/* Draw a request again from its prepared conditioning, then frames, each from the one before, with another scale on the way.
 *
 *     session MODEL ADAPTER REFERENCE PREFIX
 *
 * MODEL is a diffusers folder with an image encoder. Writes PREFIX0.png and PREFIX1.png, then PREFIX-frame0.png to PREFIX-frame2.png.
 * docs/c.md says how to compile it. */
#include <braid.h>
#include <stdio.h>

/* Prints the text of the last failure. */
static int failed(const char *what, braid_status status) {
    char text[1024];
    braid_last_error(text, sizeof text);
    fprintf(stderr, "%s: %s: %s\n", what, braid_status_name(status), text);
    return 1;
}

static braid_status save(const braid_image *image, const char *prefix, const char *name, unsigned number) {
    char path[4096];
    snprintf(path, sizeof path, "%s%s%u.png", prefix, name, number);
    return braid_image_save(image, path);
}

/* The frame that was drawn last, or what the first one is drawn from. */
struct loop {
    const braid_image *last;
    unsigned left;
};

/* A camera would give its images here. The library frees what this returns. */
static braid_image *next_image(void *user_data) {
    struct loop *loop = user_data;
    const braid_image *last = loop->last;
    const size_t width = braid_image_width(last), height = braid_image_height(last);
    braid_image *copy = NULL;
    if (loop->left > 0 && braid_image_new(width, height, braid_image_rgb(last), width * height * 3, &copy) == BRAID_OK) {
        loop->left--;
    }
    return copy;
}

static int draw_frames(const braid_stream *stream, struct loop *loop, const braid_live_scales *live, const char *prefix) {
    /* The frame that the next one is drawn from lasts until that is there. */
    braid_frame *frame = NULL, *before = NULL;
    braid_status status = braid_stream_next(stream, &frame);
    while (status == BRAID_OK && frame != NULL) {
        const unsigned number = (unsigned)braid_frame_number(frame);
        braid_frame_free(before);
        before = frame;
        loop->last = braid_output_image(braid_frame_output(frame), 0);
        printf("frame %u after %.3f s\n", number, braid_frame_latency(frame));
        status = save(loop->last, prefix, "-frame", number);
        if (status == BRAID_OK && number == 1) {
            /* A program would do this where its user moves a slider, on any thread. */
            status = braid_live_scales_set(live, 0, 0.2f, NULL);
        }
        if (status == BRAID_OK) {
            status = braid_stream_next(stream, &frame);
        }
    }
    braid_frame_free(before);
    return status == BRAID_OK ? 0 : failed("stream", status);
}

static int stream_from(const braid_pipeline *pipeline, braid_request request, const braid_image *first, const char *prefix) {
    struct loop loop = {first, 3};
    braid_stream_options options;
    braid_live_scales *live;
    braid_session *session;
    braid_stream *stream;
    braid_status status;
    int result = 1;

    request.init_image = first;
    request.strength = 0.5;
    status = braid_pipeline_session(pipeline, &request, &session);
    if (status != BRAID_OK) {
        return failed("session", status);
    }
    live = braid_live_scales_new();
    braid_stream_options_init(&options, sizeof options);
    options.live_scales = live;
    options.seed_per_frame = 1;
    status = braid_session_stream(session, next_image, &loop, &options, &stream);
    if (status == BRAID_OK) {
        result = draw_frames(stream, &loop, live, prefix);
        braid_stream_free(stream);
    } else {
        failed("stream", status);
    }
    braid_live_scales_free(live);
    braid_session_free(session);
    return result;
}

static int draw(const braid_pipeline *pipeline, const braid_image *image, const char *prefix) {
    braid_reference reference;
    braid_image_prompt prompt;
    braid_request request;
    braid_session *session;
    braid_output *output = NULL;
    braid_status status;
    unsigned i;
    int result;

    braid_reference_init(&reference, sizeof reference);
    reference.image = image;
    braid_image_prompt_init(&prompt, sizeof prompt);
    prompt.references = &reference;
    prompt.num_references = 1;
    braid_request_init(&request, sizeof request);
    request.prompt = "a garden at dawn";
    request.image_prompts = &prompt;
    request.num_image_prompts = 1;
    request.steps = 4;

    /* The encoders run here; each image costs its steps and its decoding. */
    status = braid_pipeline_session(pipeline, &request, &session);
    for (i = 0; status == BRAID_OK && i < 2; i++) {
        request.seed = 7 + i;
        prompt.scale = i == 0 ? 1.0f : 0.6f;
        braid_output_free(output);
        status = braid_session_generate(session, &request, NULL, &output);
        if (status == BRAID_OK) {
            status = save(braid_output_image(output, 0), prefix, "", i);
        }
    }
    braid_session_free(session);
    result = status == BRAID_OK ? stream_from(pipeline, request, braid_output_image(output, 0), prefix) : failed("session", status);
    braid_output_free(output);
    return result;
}

int main(int argc, char **argv) {
    braid_pipeline_options options;
    braid_pipeline *pipeline = NULL;
    braid_image *image = NULL;
    braid_status status;
    const char *adapters[1];
    int result;

    if (argc != 5) {
        fprintf(stderr, "usage: %s MODEL ADAPTER REFERENCE PREFIX\n", argv[0]);
        return 2;
    }
    adapters[0] = argv[2];
    braid_pipeline_options_init(&options, sizeof options);
    options.model = argv[1];
    options.adapters = adapters;
    options.num_adapters = 1;
    status = braid_pipeline_load(&options, &pipeline);
    if (status != BRAID_OK) {
        return failed("load", status);
    }
    status = braid_image_open(argv[3], BRAID_ALPHA_ON_WHITE, &image);
    result = status == BRAID_OK ? draw(pipeline, image, argv[4]) : failed("open", status);
    braid_image_free(image);
    braid_pipeline_free(pipeline);
    return result;
}
