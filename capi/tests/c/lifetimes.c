/* Uses every function with handles that are freed in unusual orders, and stops requests in every way: run under AddressSanitizer.
 *
 *     lifetimes MODEL ADAPTER FOLDER */
#include "check.h"
#include <pthread.h>
#include <time.h>

/* Stops at the report of this number. */
struct stopper {
    int left;
    int previews;
    const braid_pipeline *pipeline;
    braid_status waited;
};

static int32_t stop(const braid_progress *progress, void *user_data) {
    struct stopper *stopper = user_data;
    CHECK(progress->struct_size == sizeof *progress && progress->num_images > progress->image);
    if (stopper->pipeline != NULL) {
        /* It would wait for itself. */
        const braid_request other = request(1);
        braid_output *output;
        stopper->waited = braid_pipeline_generate(stopper->pipeline, &other, NULL, &output);
        CHECK(output == NULL);
    }
    if (progress->stage != BRAID_STAGE_DENOISE || progress->done == 0) {
        return 0;
    }
    return stopper->left-- == 0;
}

static int32_t preview(const braid_preview *preview, void *user_data) {
    struct stopper *stopper = user_data;
    CHECK(preview->struct_size == sizeof *preview && braid_image_width(preview->pixels) > 0);
    CHECK(preview->done == (size_t)(2 * ++stopper->previews));
    return 0;
}

static void callbacks_and_tokens(const braid_pipeline *pipeline) {
    const braid_request asked = request(6);
    struct stopper stopper = {-1, 0, NULL, BRAID_OK};
    braid_callbacks callbacks;
    braid_cancel_token *token = braid_cancel_token_new();
    braid_output *output;
    double seconds = -1;
    uint64_t seed = 1;
    int32_t upcast = 1;
    CHECK(braid_callbacks_init(&callbacks, sizeof callbacks) == BRAID_OK);
    callbacks.user_data = &stopper;
    callbacks.on_progress = stop;
    callbacks.on_preview = preview;
    callbacks.preview_every = 2;
    stopper.pipeline = pipeline;
    CHECK(braid_pipeline_generate(pipeline, &asked, &callbacks, &output) == BRAID_OK);
    CHECK(stopper.waited == BRAID_ERROR_INVALID_ARGUMENT && stopper.previews == 3);
    CHECK(braid_output_num_images(output) == 1 && braid_output_image(output, 1) == NULL);
    CHECK(braid_output_seconds(output, BRAID_STAGE_DENOISE, &seconds) == BRAID_OK && seconds > 0);
    CHECK(braid_output_seconds(output, 6, &seconds) == BRAID_ERROR_INVALID_ARGUMENT);
    CHECK(braid_output_seed(output, 0, &seed) == BRAID_OK && seed == 0);
    CHECK(braid_output_upcast_vae(output, 0, &upcast) == BRAID_OK && upcast == 0);
    CHECK(braid_output_truncated_tokens(output) == 0);
    braid_output_free(output);

    /* By the callback, which sets no token that is not there. */
    stopper.left = 1;
    stopper.previews = 0;
    stopper.pipeline = NULL;
    CHECK(braid_pipeline_generate(pipeline, &asked, &callbacks, &output) == BRAID_ERROR_CANCELLED && output == NULL);

    /* By a token. */
    CHECK(braid_cancel_token_is_cancelled(token) == 0);
    braid_cancel_token_cancel(token);
    CHECK(braid_cancel_token_is_cancelled(token) == 1);
    CHECK(braid_callbacks_init(&callbacks, sizeof callbacks) == BRAID_OK);
    callbacks.cancel = token;
    CHECK(braid_pipeline_generate(pipeline, &asked, &callbacks, &output) == BRAID_ERROR_CANCELLED);
    braid_cancel_token_free(token);
    CHECK(braid_pipeline_prepare(pipeline, &asked) == BRAID_OK);
}

static void encoded(const braid_pipeline *pipeline, const char *path) {
    braid_image *image = pixels(30, 20);
    braid_reference references[2];
    braid_image_prompt prompt;
    braid_encoded_images *made, *read;
    braid_request asked = request(2);
    braid_output *first, *second;
    const size_t bytes = 32 * 32 * 3;
    int i;
    for (i = 0; i < 2; i++) {
        CHECK(braid_reference_init(&references[i], sizeof references[i]) == BRAID_OK);
        references[i].image = image;
    }
    CHECK(braid_image_prompt_init(&prompt, sizeof prompt) == BRAID_OK);
    prompt.references = references;
    prompt.num_references = 2;
    asked.image_prompts = &prompt;
    asked.num_image_prompts = 1;
    CHECK(braid_pipeline_generate(pipeline, &asked, NULL, &first) == BRAID_OK);
    CHECK(braid_pipeline_encode_references(pipeline, 0, &prompt, &made) == BRAID_OK);
    CHECK(braid_pipeline_encode_references(pipeline, 9, &prompt, &read) == BRAID_ERROR_PARAMETER && read == NULL);
    CHECK(braid_encoded_images_save(made, path) == BRAID_OK);
    braid_encoded_images_free(made);
    braid_image_free(image);
    CHECK(braid_encoded_images_load(path, &read) == BRAID_OK && braid_encoded_images_count(read) == 2);
    references[0].image = NULL;
    references[0].encoded = read;
    prompt.num_references = 1;
    CHECK(braid_pipeline_generate(pipeline, &asked, NULL, &second) == BRAID_OK);
    braid_encoded_images_free(read);
    CHECK(memcmp(braid_image_rgb(braid_output_image(first, 0)), braid_image_rgb(braid_output_image(second, 0)), bytes) == 0);
    braid_output_free(first);
    braid_output_free(second);
}

static void batch(const braid_pipeline *pipeline) {
    braid_request requests[3];
    struct stopper stoppers[3];
    braid_callbacks callbacks[3];
    braid_batch *results;
    braid_output *first, *output;
    int i;
    for (i = 0; i < 3; i++) {
        requests[i] = request(4);
        memset(&stoppers[i], 0, sizeof stoppers[i]);
        stoppers[i].left = i == 1 ? 1 : -1;
        CHECK(braid_callbacks_init(&callbacks[i], sizeof callbacks[i]) == BRAID_OK);
        callbacks[i].user_data = &stoppers[i];
        callbacks[i].on_progress = stop;
    }
    requests[2].width = 33;
    CHECK(braid_pipeline_generate_batch(pipeline, requests, 3, callbacks, &results) == BRAID_OK);
    CHECK(braid_batch_num_results(results) == 3);
    CHECK(braid_batch_take(results, 0, &first) == BRAID_OK);
    CHECK(braid_batch_take(results, 0, &output) == BRAID_ERROR_INVALID_ARGUMENT && output == NULL);
    CHECK(braid_batch_take(results, 3, &output) == BRAID_ERROR_INVALID_ARGUMENT && output == NULL);
    CHECK(braid_batch_take(results, 1, &output) == BRAID_ERROR_CANCELLED && output == NULL);
    CHECK(braid_batch_take(results, 2, &output) == BRAID_ERROR_PARAMETER && output == NULL);
    /* An output outlives its batch, and what is not taken goes with it. */
    braid_batch_free(results);
    CHECK(braid_image_width(braid_output_image(first, 0)) == 32);
    braid_output_free(first);
    CHECK(braid_pipeline_generate_batch(pipeline, requests, 1, NULL, &results) == BRAID_OK);
    braid_batch_free(results);
    CHECK(braid_pipeline_generate_batch(pipeline, NULL, 0, NULL, &results) == BRAID_OK);
    CHECK(braid_batch_num_results(results) == 0);
    braid_batch_free(results);
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

static pthread_mutex_t entered_lock = PTHREAD_MUTEX_INITIALIZER;
static int entered = 0;

/* Whether a callback has said so: `sets` is 1 where one does, -1 to begin anew. */
static int has_entered(int sets) {
    int value;
    pthread_mutex_lock(&entered_lock);
    entered = sets == 0 ? entered : sets > 0;
    value = entered;
    pthread_mutex_unlock(&entered_lock);
    return value;
}

/* A request that holds its pipeline until the gate opens, and the same of its own while it does. */
struct holder {
    const braid_pipeline *pipeline;
    braid_status tried;
    braid_status drawn;
};

static int32_t hold(const braid_progress *progress, void *user_data) {
    struct holder *holder = user_data;
    if (!has_entered(0)) {
        const braid_request asked = request(1);
        braid_output *output;
        holder->tried = braid_pipeline_try_generate(holder->pipeline, &asked, NULL, &output);
        CHECK(output == NULL);
        has_entered(1);
    }
    return pass_gate(progress, NULL);
}

static void *draw_held(void *given) {
    struct holder *holder = given;
    const braid_request asked = request(2);
    braid_callbacks callbacks;
    braid_output *output;
    CHECK(braid_callbacks_init(&callbacks, sizeof callbacks) == BRAID_OK && callbacks.deadline_ms == -1);
    callbacks.on_progress = hold;
    callbacks.user_data = holder;
    holder->drawn = braid_pipeline_generate(holder->pipeline, &asked, &callbacks, &output);
    braid_output_free(output);
    return NULL;
}

/* While another request is drawn: at once or not at all, and no longer than a deadline. */
static void busy_pipeline(const braid_pipeline *pipeline) {
    struct holder holder = {pipeline, BRAID_OK, BRAID_ERROR_OTHER};
    const braid_request asked = request(3);
    braid_callbacks callbacks;
    braid_output *output, *other;
    const double *seconds;
    size_t count = 0, ahead = 9;
    int32_t state = -1;
    braid_engine *engine;
    braid_ticket *first, *urgent;
    braid_submit_options submit;
    pthread_t thread;
    CHECK(braid_callbacks_init(&callbacks, sizeof callbacks) == BRAID_OK);
    CHECK(braid_submit_options_init(&submit, sizeof submit) == BRAID_OK);
    pthread_mutex_lock(&gate);
    CHECK(pthread_create(&thread, NULL, draw_held, &holder) == 0);
    while (!has_entered(0)) {
    }
    CHECK(braid_pipeline_try_generate(pipeline, &asked, NULL, &output) == BRAID_ERROR_BUSY && output == NULL);
    callbacks.deadline_ms = 1;
    CHECK(braid_pipeline_generate(pipeline, &asked, &callbacks, &output) == BRAID_ERROR_LATE && output == NULL);
    CHECK(braid_engine_new(pipeline, NULL, &engine) == BRAID_OK);
    CHECK(braid_engine_submit(engine, &asked, &submit, &first) == BRAID_OK);
    submit.priority = 1;
    CHECK(braid_engine_submit(engine, &asked, &submit, &urgent) == BRAID_OK);
    CHECK(braid_ticket_state(first, &state, &ahead) == BRAID_OK && state == BRAID_TICKET_WAITING && ahead == 1);
    braid_ticket_free(first);
    braid_ticket_free(urgent);
    pthread_mutex_unlock(&gate);
    CHECK(pthread_join(thread, NULL) == 0);
    braid_engine_free(engine);
    CHECK(holder.drawn == BRAID_OK && holder.tried == BRAID_ERROR_IN_CALLBACK);
    has_entered(-1);

    callbacks.deadline_ms = 0;
    CHECK(braid_pipeline_generate(pipeline, &asked, &callbacks, &output) == BRAID_ERROR_LATE && output == NULL);
    /* None that a clock reaches. */
    callbacks.deadline_ms = INT64_MAX;
    CHECK(braid_pipeline_generate(pipeline, &asked, &callbacks, &output) == BRAID_OK);
    callbacks.deadline_ms = 1000000;
    CHECK(braid_pipeline_try_generate(pipeline, &asked, &callbacks, &other) == BRAID_OK);
    CHECK(memcmp(braid_image_rgb(braid_output_image(output, 0)), braid_image_rgb(braid_output_image(other, 0)), 32 * 32 * 3) == 0);
    seconds = braid_output_step_seconds(output, &count);
    CHECK(count == 3 && seconds[0] > 0 && seconds[1] > 0 && seconds[2] > 0);
    braid_output_free(output);
    braid_output_free(other);
}

/* Frees the ticket of its own request, which cancels that. */
static int32_t free_own(const braid_progress *progress, void *user_data) {
    braid_ticket **ticket = user_data;
    pass_gate(progress, NULL);
    braid_ticket_free(*ticket);
    *ticket = NULL;
    return 0;
}

/* One runs, one waits, one is too many. */
static void queue(const braid_engine *engine) {
    const braid_request asked = request(500);
    braid_submit_options submit;
    braid_callbacks callbacks;
    braid_ticket *running, *waiting, *refused;
    braid_output *output;
    int32_t state = -1;
    size_t ahead = 9;
    CHECK(braid_submit_options_init(&submit, sizeof submit) == BRAID_OK);
    CHECK(braid_callbacks_init(&callbacks, sizeof callbacks) == BRAID_OK);
    callbacks.on_progress = pass_gate;
    submit.callbacks = &callbacks;
    pthread_mutex_lock(&gate);
    CHECK(braid_engine_submit(engine, &asked, &submit, &running) == BRAID_OK);
    while (braid_engine_running(engine) == 0) {
    }
    CHECK(braid_ticket_state(running, &state, NULL) == BRAID_OK && state == BRAID_TICKET_RUNNING);
    CHECK(braid_engine_submit(engine, &asked, NULL, &waiting) == BRAID_OK);
    CHECK(braid_engine_submit(engine, &asked, NULL, &refused) == BRAID_ERROR_BUSY && refused == NULL);
    CHECK(braid_ticket_state(waiting, &state, &ahead) == BRAID_OK && state == BRAID_TICKET_WAITING && ahead == 0);
    CHECK(braid_engine_waiting(engine) == 1);
    CHECK(braid_ticket_wait(waiting, 1, &output) == BRAID_ERROR_TIMEOUT && output == NULL);
    CHECK(braid_ticket_set_scales(waiting, 0, 0.5f, "style") == BRAID_OK);
    CHECK(braid_ticket_set_scales(waiting, 0, 0.5f, "all") == BRAID_ERROR_PARAMETER);
    CHECK(braid_ticket_cancel(waiting) == BRAID_OK);
    CHECK(braid_ticket_wait(waiting, -1, &output) == BRAID_ERROR_CANCELLED);
    braid_ticket_free(waiting);
    CHECK(braid_ticket_cancel(running) == BRAID_OK);
    pthread_mutex_unlock(&gate);
    CHECK(braid_ticket_wait(running, -1, &output) == BRAID_ERROR_CANCELLED && output == NULL);
    braid_ticket_free(running);
}

/* A ticket with the data of its callback. */
struct called {
    braid_ticket *ticket;
    int *calls;
};

static int32_t enter(const braid_progress *progress, void *user_data) {
    has_entered(1);
    pass_gate(progress, NULL);
    ++*(int *)user_data;
    return 0;
}

static void *free_called(void *given) {
    struct called *called = given;
    braid_ticket_free(called->ticket);
    free(called->calls);
    return NULL;
}

/* Data may go as soon as the ticket is freed, which waits for a callback under way. */
static void freed_while_called(const braid_engine *engine) {
    const braid_request asked = request(500);
    const struct timespec moment = {0, 20000000};
    braid_submit_options submit;
    braid_callbacks callbacks;
    struct called called;
    pthread_t thread;
    called.calls = calloc(1, sizeof *called.calls);
    CHECK(called.calls != NULL);
    CHECK(braid_submit_options_init(&submit, sizeof submit) == BRAID_OK);
    CHECK(braid_callbacks_init(&callbacks, sizeof callbacks) == BRAID_OK);
    callbacks.on_progress = enter;
    callbacks.user_data = called.calls;
    submit.callbacks = &callbacks;
    pthread_mutex_lock(&gate);
    CHECK(braid_engine_submit(engine, &asked, &submit, &called.ticket) == BRAID_OK);
    while (!has_entered(0)) {
    }
    CHECK(pthread_create(&thread, NULL, free_called, &called) == 0);
    /* Time for the mistake of not waiting; nothing depends on it. */
    nanosleep(&moment, NULL);
    pthread_mutex_unlock(&gate);
    CHECK(pthread_join(thread, NULL) == 0);
}

static void engine(braid_pipeline *pipeline) {
    const braid_request asked = request(500);
    const braid_request brief = request(2);
    braid_engine_options options;
    braid_submit_options submit;
    braid_callbacks callbacks;
    struct stopper *stopper = calloc(1, sizeof *stopper);
    braid_engine *engine;
    braid_ticket *ticket, *last;
    braid_output *output;
    int32_t state = -1;
    char text[256];
    CHECK(stopper != NULL);
    CHECK(braid_engine_options_init(&options, sizeof options) == BRAID_OK);
    options.max_running = 1;
    options.max_waiting = 1;
    CHECK(braid_engine_new(pipeline, &options, &engine) == BRAID_OK);
    /* The engine keeps its pipeline. */
    braid_pipeline_free(pipeline);

    CHECK(braid_submit_options_init(&submit, sizeof submit) == BRAID_OK);
    submit.deadline_ms = 0;
    CHECK(braid_engine_submit(engine, &asked, &submit, &ticket) == BRAID_ERROR_LATE && ticket == NULL);
    CHECK(braid_engine_last_error(engine, text, sizeof text) > 1 && strstr(text, "deadline") != NULL);
    submit.deadline_ms = -1;

    /* Stopped by its callback. */
    CHECK(braid_callbacks_init(&callbacks, sizeof callbacks) == BRAID_OK);
    callbacks.user_data = stopper;
    callbacks.on_progress = stop;
    submit.callbacks = &callbacks;
    stopper->left = 2;
    CHECK(braid_engine_submit(engine, &asked, &submit, &ticket) == BRAID_OK);
    CHECK(braid_ticket_wait(ticket, -1, &output) == BRAID_ERROR_CANCELLED && output == NULL);
    CHECK(braid_ticket_last_error(ticket, text, sizeof text) == 10 && strcmp(text, "cancelled") == 0);
    CHECK(braid_ticket_wait(ticket, -1, &output) == BRAID_ERROR_INVALID_ARGUMENT);
    CHECK(braid_ticket_state(ticket, &state, NULL) == BRAID_OK && state == BRAID_TICKET_DONE);
    braid_ticket_free(ticket);

    free(stopper);

    queue(engine);
    freed_while_called(engine);

    /* A callback may free its ticket. */
    callbacks.user_data = &ticket;
    callbacks.on_progress = free_own;
    pthread_mutex_lock(&gate);
    CHECK(braid_engine_submit(engine, &asked, &submit, &ticket) == BRAID_OK);
    pthread_mutex_unlock(&gate);

    /* A ticket outlives its engine, and an output both. */
    while (braid_engine_running(engine) != 0 || braid_engine_waiting(engine) != 0) {
    }
    CHECK(braid_engine_submit(engine, &brief, NULL, &last) == BRAID_OK);
    CHECK(braid_engine_drain(engine) == BRAID_OK);
    CHECK(ticket == NULL);
    CHECK(braid_engine_submit(engine, &brief, NULL, &ticket) == BRAID_ERROR_STOPPED && ticket == NULL);
    braid_engine_free(engine);
    CHECK(braid_ticket_wait(last, 0, &output) == BRAID_OK);
    braid_ticket_free(last);
    CHECK(braid_output_num_images(output) == 1);
    braid_output_free(output);
}

static void warn(const char *text, void *user_data) {
    (void)text;
    ++*(int *)user_data;
}

static void free_nothing(void) {
    braid_image_free(NULL);
    braid_pipeline_free(NULL);
    braid_encoded_images_free(NULL);
    braid_output_free(NULL);
    braid_batch_free(NULL);
    braid_cancel_token_free(NULL);
    braid_engine_free(NULL);
    braid_ticket_free(NULL);
}

int main(int argc, char **argv) {
    braid_pipeline *pipeline;
    braid_image *image;
    char text[2048];
    int warnings = 0;
    size_t width = 0, height = 0;
    CHECK(argc == 4);
    free_nothing();
    CHECK(braid_set_warning_callback(warn, &warnings) == BRAID_OK);
    pipeline = load(argv[1], argv[2]);
    CHECK(braid_pipeline_num_adapters(pipeline) == 1 && braid_pipeline_num_loras(pipeline) == 0);
    CHECK(braid_pipeline_device(pipeline, text, sizeof text) == 4 && strcmp(text, "cpu") == 0);
    CHECK(braid_pipeline_dtype(pipeline, text, sizeof text) == 4 && strcmp(text, "f32") == 0);
    CHECK(braid_pipeline_notes(pipeline, text, sizeof text) >= 1);
    CHECK(braid_pipeline_default_size(pipeline, &width, &height) == BRAID_OK && width > 0 && height > 0);
    callbacks_and_tokens(pipeline);
    snprintf(text, sizeof text, "%s/pair.ipprompt.safetensors", argv[3]);
    encoded(pipeline, text);
    batch(pipeline);
    busy_pipeline(pipeline);
    CHECK(braid_pipeline_last_error(pipeline, text, sizeof text) > 1);
    engine(pipeline);
    image = pixels(2, 2);
    snprintf(text, sizeof text, "%s/pixels.png", argv[3]);
    CHECK(braid_image_save(image, text) == BRAID_OK);
    braid_image_free(image);
    CHECK(braid_image_open(text, BRAID_ALPHA_IGNORE, &image) == BRAID_OK && braid_image_rgb(image)[11] == 90);
    braid_image_free(image);
    CHECK(braid_set_warning_callback(NULL, NULL) == BRAID_OK);
    return 0;
}
