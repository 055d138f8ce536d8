/* Generate an image from a prompt and a reference image.
 *
 *     generate MODEL ADAPTER REFERENCE OUTPUT.png
 *
 * MODEL is a diffusers folder with an image encoder. docs/c.md says how to compile it. */
#include <braid.h>
#include <stdio.h>

/* Prints the text of the last failure. */
static int failed(const char *what, braid_status status) {
    char text[1024];
    braid_last_error(text, sizeof text);
    fprintf(stderr, "%s: %s: %s\n", what, braid_status_name(status), text);
    return 1;
}

/* Anything but 0 would stop the request. */
static int32_t show(const braid_progress *progress, void *user_data) {
    if (progress->stage == BRAID_STAGE_DENOISE) {
        fprintf((FILE *)user_data, "step %u of %u\n", (unsigned)progress->done, (unsigned)progress->steps);
    }
    return 0;
}

static int generate(const braid_pipeline *pipeline, const braid_image *image, const char *path) {
    braid_reference reference;
    braid_image_prompt prompt;
    braid_request request;
    braid_callbacks callbacks;
    braid_output *output;
    braid_status status;

    braid_reference_init(&reference, sizeof reference);
    reference.image = image;
    braid_image_prompt_init(&prompt, sizeof prompt);
    prompt.references = &reference;
    prompt.num_references = 1;
    prompt.scale = 0.6f;
    braid_request_init(&request, sizeof request);
    request.prompt = "a garden at dawn";
    request.negative_prompt = "text, watermark";
    request.image_prompts = &prompt;
    request.num_image_prompts = 1;
    request.steps = 20;
    request.seed = 7;
    braid_callbacks_init(&callbacks, sizeof callbacks);
    callbacks.on_progress = show;
    callbacks.user_data = stdout;

    status = braid_pipeline_generate(pipeline, &request, &callbacks, &output);
    if (status != BRAID_OK) {
        return failed("generate", status);
    }
    status = braid_image_save(braid_output_image(output, 0), path);
    braid_output_free(output);
    return status == BRAID_OK ? 0 : failed("save", status);
}

int main(int argc, char **argv) {
    braid_pipeline_options options;
    braid_pipeline *pipeline = NULL;
    braid_image *image = NULL;
    braid_status status;
    const char *adapters[1];
    int result;

    if (argc != 5) {
        fprintf(stderr, "usage: %s MODEL ADAPTER REFERENCE OUTPUT.png\n", argv[0]);
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
    result = status == BRAID_OK ? generate(pipeline, image, argv[4]) : failed("open", status);
    braid_image_free(image);
    braid_pipeline_free(pipeline);
    return result;
}
