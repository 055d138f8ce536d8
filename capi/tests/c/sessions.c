/* Uses sessions, streams, live scales and prompts, images one by one, scopes of tokens, embeddings, noise, maps and metadata, with handles
 * that are freed in unusual orders: run under AddressSanitizer.
 *
 *     sessions MODEL ADAPTER FOLDER */
#include "check.h"
#include <pthread.h>

/* A request with an image prompt of one reference. */
struct asked {
    braid_reference reference;
    braid_image_prompt prompt;
    braid_request request;
};

static void ask(struct asked *asked, const braid_image *image, size_t steps) {
    CHECK(braid_reference_init(&asked->reference, sizeof asked->reference) == BRAID_OK);
    asked->reference.image = image;
    CHECK(braid_image_prompt_init(&asked->prompt, sizeof asked->prompt) == BRAID_OK);
    asked->prompt.references = &asked->reference;
    asked->prompt.num_references = 1;
    asked->request = request(steps);
    asked->request.image_prompts = &asked->prompt;
    asked->request.num_image_prompts = 1;
}

static int same(const braid_image *one, const braid_image *other) {
    const size_t bytes = braid_image_width(one) * braid_image_height(one) * 3;
    CHECK(braid_image_width(one) == braid_image_width(other) && braid_image_height(one) == braid_image_height(other));
    return memcmp(braid_image_rgb(one), braid_image_rgb(other), bytes) == 0;
}

/* Whether the images are those of a request that is drawn alone. */
static int is_drawn(const braid_pipeline *pipeline, const braid_output *output, const braid_request *request) {
    braid_output *alone;
    size_t i;
    int result = 1;
    CHECK(braid_pipeline_generate(pipeline, request, NULL, &alone) == BRAID_OK);
    CHECK(braid_output_num_images(output) == braid_output_num_images(alone));
    for (i = 0; i < braid_output_num_images(alone); i++) {
        result = result && same(braid_output_image(output, i), braid_output_image(alone, i));
    }
    braid_output_free(alone);
    return result;
}

/* Images that a callback was given. */
struct kept {
    braid_image *images[2];
    size_t count;
    size_t stops_after;
};

static int32_t keep(const braid_finished_image *finished, void *user_data) {
    struct kept *kept = user_data;
    const braid_image *image = finished->image;
    const size_t width = braid_image_width(image), height = braid_image_height(image);
    CHECK(finished->struct_size == sizeof *finished && finished->number == kept->count && kept->count < 2);
    CHECK(finished->seed == 7 + kept->count && finished->upcast_vae == 0);
    CHECK(braid_image_new(width, height, braid_image_rgb(image), width * height * 3, &kept->images[kept->count]) == BRAID_OK);
    return ++kept->count == kept->stops_after;
}

static void compare_kept(struct kept *kept, const braid_output *output) {
    size_t i;
    CHECK(kept->count == 2);
    for (i = 0; i < 2; i++) {
        CHECK(same(kept->images[i], braid_output_image(output, i)));
        braid_image_free(kept->images[i]);
    }
    kept->count = 0;
}

/* Alone, stopped after the first, and from an engine's thread. */
static void images_one_by_one(const braid_pipeline *pipeline) {
    struct kept kept = {{NULL, NULL}, 0, 0};
    braid_request asked = request(2);
    braid_callbacks callbacks;
    braid_submit_options submit;
    braid_engine *engine;
    braid_ticket *ticket;
    braid_output *output;
    asked.num_images = 2;
    asked.seed = 7;
    CHECK(braid_callbacks_init(&callbacks, sizeof callbacks) == BRAID_OK);
    callbacks.on_image = keep;
    callbacks.user_data = &kept;
    CHECK(braid_pipeline_generate(pipeline, &asked, &callbacks, &output) == BRAID_OK);
    compare_kept(&kept, output);
    braid_output_free(output);

    CHECK(braid_engine_new(pipeline, NULL, &engine) == BRAID_OK);
    CHECK(braid_submit_options_init(&submit, sizeof submit) == BRAID_OK);
    submit.callbacks = &callbacks;
    CHECK(braid_engine_submit(engine, &asked, &submit, &ticket) == BRAID_OK);
    CHECK(braid_ticket_wait(ticket, -1, &output) == BRAID_OK);
    compare_kept(&kept, output);
    braid_output_free(output);
    braid_ticket_free(ticket);
    braid_engine_free(engine);

    kept.stops_after = 1;
    CHECK(braid_pipeline_generate(pipeline, &asked, &callbacks, &output) == BRAID_ERROR_CANCELLED && output == NULL);
    CHECK(kept.count == 1);
    braid_image_free(kept.images[0]);
}

/* What a callback sets after the first step. */
struct control {
    braid_live_scales *scales;
    braid_live_prompts *prompts;
    const braid_prepared_prompts *prepared;
};

static int32_t control(const braid_progress *progress, void *user_data) {
    const struct control *control = user_data;
    if (progress->stage == BRAID_STAGE_DENOISE && progress->done == 1) {
        CHECK(braid_live_scales_set(control->scales, 0, 0.2f, "style") == BRAID_OK);
        CHECK(braid_live_prompts_set(control->prompts, control->prepared) == BRAID_OK);
    }
    return 0;
}

/* Scales and prompts that change in the middle, and the request that gives the same bytes. */
static void changes(const braid_pipeline *pipeline, const braid_session *session, const struct asked *asked) {
    struct control live = {braid_live_scales_new(), braid_live_prompts_new(), NULL};
    braid_request other = asked->request, again = asked->request;
    braid_prepared_prompts *prepared;
    braid_scale_change scale;
    braid_prompt_change prompt;
    braid_callbacks callbacks;
    braid_output *output;
    float told = 0;
    size_t step = 9, adapter = 9;
    char text[16];
    other.prompt = "a hen";
    CHECK(braid_session_prepare_prompts(session, &other, &prepared) == BRAID_OK);
    live.prepared = prepared;
    CHECK(braid_callbacks_init(&callbacks, sizeof callbacks) == BRAID_OK);
    callbacks.on_progress = control;
    callbacks.user_data = &live;
    callbacks.live_scales = live.scales;
    callbacks.live_prompts = live.prompts;
    CHECK(braid_session_generate(session, NULL, &callbacks, &output) == BRAID_OK);
    braid_live_scales_free(live.scales);
    braid_live_prompts_free(live.prompts);
    braid_prepared_prompts_free(prepared);

    CHECK(braid_output_num_scale_changes(output, 0) == 1 && braid_output_num_prompt_changes(output, 0) == 1);
    CHECK(braid_output_scale_change(output, 0, 0, &step, &adapter, &told) == BRAID_OK);
    CHECK(step == 1 && adapter == 0 && told == 0.2f);
    CHECK(braid_output_prompt_change(output, 0, 0, &step) == BRAID_OK && step == 1);
    CHECK(braid_output_prompt_change_prompt(output, 0, 0, text, sizeof text) == 6 && strcmp(text, "a hen") == 0);
    CHECK(!is_drawn(pipeline, output, &again));
    CHECK(braid_scale_change_init(&scale, sizeof scale) == BRAID_OK && scale.scale == 1);
    scale.step = 1;
    scale.scale = 0.2f;
    scale.blocks = "style";
    again.scale_changes = &scale;
    again.num_scale_changes = 1;
    CHECK(!is_drawn(pipeline, output, &again));
    CHECK(braid_prompt_change_init(&prompt, sizeof prompt) == BRAID_OK);
    prompt.step = 1;
    prompt.prompts = &other;
    again.prompt_changes = &prompt;
    again.num_prompt_changes = 1;
    CHECK(is_drawn(pipeline, output, &again));
    braid_output_free(output);
}

/* Held while a callback is to wait. */
static pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;

static int32_t pass_gate(const braid_progress *progress, void *user_data) {
    (void)progress;
    (void)user_data;
    pthread_mutex_lock(&gate);
    pthread_mutex_unlock(&gate);
    return 0;
}

/* A request in an engine gets other prompts and another scale before its first step. */
static void prompts_of_a_ticket(const braid_pipeline *pipeline, const struct asked *asked) {
    braid_request other = asked->request;
    braid_image_prompt half = asked->prompt;
    braid_prepared_prompts *prepared;
    braid_submit_options submit;
    braid_callbacks callbacks;
    braid_engine *engine;
    braid_ticket *ticket;
    braid_output *output;
    size_t step = 9;
    other.prompt = "a hen";
    CHECK(braid_pipeline_prepare_prompts(pipeline, &asked->request, &other, &prepared) == BRAID_OK);
    CHECK(braid_engine_new(pipeline, NULL, &engine) == BRAID_OK);
    CHECK(braid_submit_options_init(&submit, sizeof submit) == BRAID_OK);
    CHECK(braid_callbacks_init(&callbacks, sizeof callbacks) == BRAID_OK);
    callbacks.on_progress = pass_gate;
    submit.callbacks = &callbacks;
    pthread_mutex_lock(&gate);
    CHECK(braid_engine_submit(engine, &asked->request, &submit, &ticket) == BRAID_OK);
    CHECK(braid_ticket_set_prompts(ticket, prepared) == BRAID_OK);
    CHECK(braid_ticket_set_scales(ticket, 0, 0.5f, NULL) == BRAID_OK);
    half.scale = 0.5f;
    other.image_prompts = &half;
    braid_prepared_prompts_free(prepared);
    pthread_mutex_unlock(&gate);
    CHECK(braid_ticket_wait(ticket, -1, &output) == BRAID_OK);
    CHECK(braid_output_prompt_change(output, 0, 0, &step) == BRAID_OK && step == 0);
    CHECK(is_drawn(pipeline, output, &other));
    braid_output_free(output);
    braid_ticket_free(ticket);
    braid_engine_free(engine);
}

/* A session outlives the struct that it was made of, and an output the session. */
static void sessions(const braid_pipeline *pipeline, const braid_image *image) {
    struct asked asked;
    braid_session *session;
    braid_output *output;
    char text[64];
    ask(&asked, image, 3);
    CHECK(braid_pipeline_session(pipeline, &asked.request, &session) == BRAID_OK);
    CHECK(braid_session_generate(session, NULL, NULL, &output) == BRAID_OK);
    CHECK(is_drawn(pipeline, output, &asked.request));
    braid_output_free(output);
    changes(pipeline, session, &asked);
    prompts_of_a_ticket(pipeline, &asked);
    asked.request.seed = 7;
    asked.prompt.scale = 0.5f;
    CHECK(braid_session_generate(session, &asked.request, NULL, &output) == BRAID_OK);
    CHECK(is_drawn(pipeline, output, &asked.request));
    braid_output_free(output);
    asked.request.steps = 0;
    CHECK(braid_session_generate(session, &asked.request, NULL, &output) == BRAID_ERROR_PARAMETER && output == NULL);
    CHECK(braid_session_last_error(session, text, sizeof text) > 1 && strncmp(text, "steps: 0", 8) == 0);
    braid_session_free(session);
}

/* Gives images until one is to be the last; the third has another size. */
struct camera {
    int taken;
    int last;
    const braid_stream *stream;
    braid_status waited;
};

static braid_image *shoot(void *user_data) {
    struct camera *camera = user_data;
    const int number = camera->taken++;
    if (camera->stream != NULL) {
        /* It would wait for itself, and would end itself. */
        braid_frame *frame;
        camera->waited = braid_stream_next(camera->stream, &frame);
        CHECK(frame == NULL);
        braid_stream_free((braid_stream *)camera->stream);
    }
    return number == camera->last ? NULL : pixels(number == 2 ? 24 : 32, 32);
}

static void streams(braid_pipeline *pipeline, const braid_image *image) {
    struct camera camera = {0, 4, NULL, BRAID_OK}, other = {0, 9, NULL, BRAID_OK};
    braid_image *first = pixels(32, 32);
    braid_stream_options options;
    braid_session *session;
    braid_stream *stream, *overlapping, *none;
    braid_frame *frame = NULL;
    struct asked asked;
    char text[256];
    int i;
    ask(&asked, image, 4);
    CHECK(braid_pipeline_session(pipeline, &asked.request, &session) == BRAID_OK);
    CHECK(braid_session_stream(session, shoot, &camera, NULL, &none) == BRAID_ERROR_PARAMETER && none == NULL);
    CHECK(braid_session_last_error(session, text, sizeof text) > 1 && strncmp(text, "init_image: ", 12) == 0);
    braid_session_free(session);
    asked.request.init_image = first;
    asked.request.strength = 0.5;
    CHECK(braid_pipeline_session(pipeline, &asked.request, &session) == BRAID_OK);

    CHECK(braid_stream_options_init(&options, sizeof options) == BRAID_OK);
    options.seed_per_frame = 1;
    options.live_scales = braid_live_scales_new();
    options.live_prompts = braid_live_prompts_new();
    CHECK(braid_live_scales_set(options.live_scales, 0, 0.5f, NULL) == BRAID_OK);
    CHECK(braid_session_stream(session, shoot, &camera, &options, &stream) == BRAID_OK);
    braid_live_scales_free((braid_live_scales *)options.live_scales);
    braid_live_prompts_free((braid_live_prompts *)options.live_prompts);
    CHECK(braid_stream_options_init(&options, sizeof options) == BRAID_OK);
    CHECK(braid_session_stream(session, NULL, NULL, &options, &none) == BRAID_ERROR_INVALID_ARGUMENT && none == NULL);
    options.overlap = 2;
    CHECK(braid_session_stream(session, shoot, &other, &options, &none) == BRAID_ERROR_INVALID_ARGUMENT && none == NULL);
    options.overlap = 1;
    CHECK(braid_session_stream(session, shoot, &other, &options, &overlapping) == BRAID_OK);
    /* Streams keep their session. */
    braid_session_free(session);

    camera.stream = stream;
    asked.prompt.scale = 0.5f;
    for (i = 0; i < 4; i++) {
        const braid_status status = braid_stream_next(stream, &frame);
        CHECK(status == (i == 2 ? BRAID_ERROR_FRAME : BRAID_OK) && (frame == NULL) == (i == 2));
        CHECK(camera.taken == i + 1 && camera.waited == BRAID_ERROR_INVALID_ARGUMENT);
        if (frame == NULL) {
            CHECK(braid_stream_last_error(stream, text, sizeof text) > 1 && strstr(text, "24x32") != NULL);
            continue;
        }
        CHECK(braid_frame_number(frame) == (uint64_t)i && braid_frame_latency(frame) > 0);
        asked.request.seed = (uint64_t)i;
        CHECK(is_drawn(pipeline, braid_frame_output(frame), &asked.request));
        braid_frame_free(frame);
    }
    for (i = 0; i < 2; i++) {
        CHECK(braid_stream_next(stream, &frame) == BRAID_OK && frame == NULL && camera.taken == 5);
    }
    braid_stream_free(stream);

    /* Others are under way when this one is freed, and the frame outlives all. */
    CHECK(braid_stream_next(overlapping, &frame) == BRAID_OK && frame != NULL && other.taken > 1);
    asked.request.seed = 0;
    asked.prompt.scale = 1;
    CHECK(is_drawn(pipeline, braid_frame_output(frame), &asked.request));
    braid_pipeline_free(pipeline);
    braid_stream_free(overlapping);
    CHECK(braid_output_num_images(braid_frame_output(frame)) == 1);
    braid_frame_free(frame);
    braid_image_free(first);
}

/* Work that a token stops. */
struct work {
    const braid_pipeline_options *options;
    const braid_pipeline *pipeline;
    const struct asked *asked;
    braid_cancel_token *token;
    braid_status expected;
    int calls;
};

static void run(void *user_data) {
    struct work *work = user_data;
    braid_request asked = work->asked->request;
    braid_pipeline *loaded;
    braid_encoded_images *encoded;
    braid_session *session;
    /* Of its own size, as what is there already is found, and costs no work that could be stopped. */
    asked.width = 32 + 16 * (size_t)++work->calls;
    CHECK(braid_pipeline_load(work->options, &loaded) == work->expected);
    braid_pipeline_free(loaded);
    CHECK(braid_pipeline_prepare(work->pipeline, &asked) == work->expected);
    CHECK(braid_pipeline_encode_references(work->pipeline, 0, &work->asked->prompt, &encoded) == work->expected);
    braid_encoded_images_free(encoded);
    CHECK(braid_pipeline_session(work->pipeline, &asked, &session) == work->expected);
    braid_session_free(session);
    if (work->expected != BRAID_OK) {
        /* It is not needed until the end. */
        braid_cancel_token_free(work->token);
    }
}

static void scopes(const braid_pipeline *pipeline, const braid_image *image, const char *model, const char *adapter) {
    struct asked asked;
    struct work work = {NULL, pipeline, &asked, braid_cancel_token_new(), BRAID_OK, 0};
    braid_pipeline_options options;
    ask(&asked, image, 2);
    CHECK(braid_pipeline_options_init(&options, sizeof options) == BRAID_OK);
    options.model = model;
    options.adapters = &adapter;
    options.num_adapters = 1;
    options.threads = 1;
    work.options = &options;
    CHECK(braid_cancel_token_scope(work.token, NULL, &work) == BRAID_ERROR_INVALID_ARGUMENT && work.calls == 0);
    CHECK(braid_cancel_token_scope(work.token, run, &work) == BRAID_OK && work.calls == 1);
    braid_cancel_token_cancel(work.token);
    work.expected = BRAID_ERROR_CANCELLED;
    CHECK(braid_cancel_token_scope(work.token, run, &work) == BRAID_OK && work.calls == 2);
    /* It ends with the scope. */
    CHECK(braid_pipeline_prepare(pipeline, &asked.request) == BRAID_OK);
}

/* An embedding in the place of its image, and noise of another length than the image takes. */
static void numbers(const braid_pipeline *pipeline, const braid_image *image) {
    const float noise[4] = {0, 0, 0, 0};
    struct asked asked, embedded;
    braid_encoded_images *encoded;
    braid_output *output;
    size_t width = 0, height = 0;
    ask(&asked, image, 2);
    ask(&embedded, NULL, 2);
    CHECK(braid_pipeline_generate(pipeline, &asked.request, NULL, &output) == BRAID_OK);
    CHECK(braid_pipeline_encode_references(pipeline, 0, &asked.prompt, &encoded) == BRAID_OK);
    embedded.reference.embedding = braid_encoded_images_embedding(encoded, 0, &embedded.reference.num_embedding_values);
    CHECK(embedded.reference.embedding != NULL && embedded.reference.num_embedding_values > 0);
    CHECK(braid_encoded_images_embedding(encoded, 1, &width) == NULL);
    CHECK(is_drawn(pipeline, output, &embedded.request));
    CHECK(braid_encoded_images_num_tokens(encoded, 0) == 4);
    CHECK(braid_encoded_images_source_size(encoded, 0, &width, &height) == BRAID_OK && width == 30 && height == 20);
    braid_encoded_images_free(encoded);
    braid_output_free(output);
    asked.request.noise = noise;
    asked.request.num_noise_values = 4;
    CHECK(braid_pipeline_generate(pipeline, &asked.request, NULL, &output) == BRAID_ERROR_PARAMETER && output == NULL);
}

static void maps(const braid_pipeline *pipeline, const braid_image *image) {
    struct asked asked;
    const braid_attribution_map *map;
    braid_image *heat;
    braid_output *output;
    const float *values;
    size_t i, count;
    char group[32], expected[32];
    ask(&asked, image, 2);
    asked.request.attribution = 1;
    CHECK(braid_pipeline_generate(pipeline, &asked.request, NULL, &output) == BRAID_OK);
    asked.request.attribution = 0;
    CHECK(is_drawn(pipeline, output, &asked.request));
    count = braid_output_num_attributions(output);
    CHECK(count > 0 && braid_output_attribution(output, count) == NULL);
    map = braid_output_attribution(output, 0);
    CHECK(braid_attribution_map_image(map) == 0 && braid_attribution_map_adapter(map) == 0);
    CHECK(braid_attribution_map_reference(map) == 0);
    count = braid_attribution_map_width(map) * braid_attribution_map_height(map);
    snprintf(expected, sizeof expected, "down %ux%u", (unsigned)braid_attribution_map_width(map),
        (unsigned)braid_attribution_map_height(map));
    CHECK(braid_attribution_map_group(map, group, sizeof group) == strlen(expected) + 1 && strcmp(group, expected) == 0);
    values = braid_attribution_map_values(map);
    for (i = 0; i < count; i++) {
        CHECK(values[i] > 0 && values[i] < 1);
    }
    CHECK(braid_attribution_map_heat_map(map, 16, 24, 1, &heat) == BRAID_OK && braid_image_height(heat) == 24);
    braid_output_free(output);
    braid_image_free(heat);
}

static int32_t count_preview(const braid_preview *preview, void *user_data) {
    int *counts = user_data;
    CHECK(preview->image < 2);
    counts[preview->image]++;
    return 0;
}

/* The second image, adapter and reference, where the first one would be a mistake. */
static void second_of_each(const char *model, const char *adapter, const braid_image *image) {
    const char *adapters[2];
    braid_pipeline_options options;
    braid_pipeline *pipeline;
    struct asked asked;
    braid_reference references[2];
    braid_image_prompt prompts[2];
    braid_callbacks callbacks;
    braid_scale_change change;
    braid_live_scales *live = braid_live_scales_new();
    braid_output *output;
    char words[400] = "";
    int counts[2] = {0, 0}, found = 0;
    size_t i, step = 9, number = 9;
    uint64_t seed = 0;
    float scale = 0;
    double seconds = -1;
    adapters[0] = adapters[1] = adapter;
    CHECK(braid_pipeline_options_init(&options, sizeof options) == BRAID_OK);
    options.model = model;
    options.adapters = adapters;
    options.num_adapters = 2;
    options.threads = 1;
    CHECK(braid_pipeline_load(&options, &pipeline) == BRAID_OK && braid_pipeline_num_adapters(pipeline) == 2);
    ask(&asked, image, 2);
    references[0] = references[1] = asked.reference;
    prompts[0] = prompts[1] = asked.prompt;
    prompts[1].references = references;
    prompts[1].num_references = 2;
    for (i = 0; i < 90; i++) {
        strcat(words, "fox ");
    }
    asked.request.prompt = words;
    asked.request.image_prompts = prompts;
    asked.request.num_image_prompts = 2;
    asked.request.num_images = 2;
    asked.request.seed = 7;
    asked.request.attribution = 1;
    CHECK(braid_callbacks_init(&callbacks, sizeof callbacks) == BRAID_OK);
    callbacks.on_preview = count_preview;
    callbacks.user_data = counts;
    callbacks.live_scales = live;
    CHECK(braid_live_scales_set(live, 1, 0.2f, NULL) == BRAID_OK);
    CHECK(braid_pipeline_generate(pipeline, &asked.request, &callbacks, &output) == BRAID_OK);
    braid_live_scales_free(live);

    CHECK(counts[0] == 2 && counts[1] == 2);
    CHECK(braid_output_seed(output, 1, &seed) == BRAID_OK && seed == 8);
    CHECK(braid_output_truncated_tokens(output) > 0);
    CHECK(braid_output_seconds(output, BRAID_STAGE_IMAGE, &seconds) == BRAID_OK && seconds > 0);
    CHECK(braid_output_seconds(output, BRAID_STAGE_ENCODE, &seconds) == BRAID_OK && seconds == 0);
    CHECK(braid_output_scale_change(output, 1, 0, &step, &number, &scale) == BRAID_OK);
    CHECK(step == 0 && number == 1 && scale == 0.2f);
    for (i = 0; i < braid_output_num_attributions(output); i++) {
        const braid_attribution_map *map = braid_output_attribution(output, i);
        const size_t image_number = braid_attribution_map_image(map), reference = braid_attribution_map_reference(map);
        found += image_number == 1 && braid_attribution_map_adapter(map) == 1 && reference == 1;
    }
    CHECK(found > 0);
    CHECK(braid_scale_change_init(&change, sizeof change) == BRAID_OK);
    change.adapter = 1;
    change.scale = 0.2f;
    asked.request.scale_changes = &change;
    asked.request.num_scale_changes = 1;
    CHECK(is_drawn(pipeline, output, &asked.request));
    braid_output_free(output);
    braid_pipeline_free(pipeline);
}

static void free_nothing(void) {
    braid_session_free(NULL);
    braid_stream_free(NULL);
    braid_frame_free(NULL);
    braid_live_scales_free(NULL);
    braid_live_prompts_free(NULL);
    braid_prepared_prompts_free(NULL);
}

int main(int argc, char **argv) {
    braid_pipeline *pipeline;
    braid_image *image;
    char path[2048];
    CHECK(argc == 4);
    free_nothing();
    pipeline = load(argv[1], argv[2]);
    image = pixels(30, 20);
    images_one_by_one(pipeline);
    sessions(pipeline, image);
    scopes(pipeline, image, argv[1], argv[2]);
    numbers(pipeline, image);
    maps(pipeline, image);
    second_of_each(argv[1], argv[2], image);
    snprintf(path, sizeof path, "%s/metadata.png", argv[3]);
    CHECK(braid_image_save_with_metadata(image, path, "a fox\nSteps: 2", "{\"prompt\":\"a fox\"}") == BRAID_OK);
    streams(pipeline, image);
    braid_image_free(image);
    return 0;
}
