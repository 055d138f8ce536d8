#include "settings.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum kind { PATH, PATHS, TEXT, SIZE, BYTES, NUMBER };

struct option {
    const char *name;
    enum kind kind;
    size_t at;
    /* Of the number of paths. */
    size_t count;
};

#define OPTION(name, kind) {#name, kind, offsetof(braid_pipeline_options, name), 0}
#define LIST(name) {#name, PATHS, offsetof(braid_pipeline_options, name), offsetof(braid_pipeline_options, num_##name)}

static const struct option OPTIONS[] = {
    OPTION(model, PATH),
    OPTION(config, PATH),
    OPTION(vae, PATH),
    OPTION(taesd, PATH),
    OPTION(clip_vision, PATH),
    LIST(adapters),
    LIST(loras),
    LIST(embeddings),
    OPTION(compat, TEXT),
    OPTION(device, TEXT),
    OPTION(dtype, TEXT),
    OPTION(vae_dtype, TEXT),
    OPTION(quantize, TEXT),
    OPTION(encoders, TEXT),
    OPTION(max_batch, SIZE),
    OPTION(threads, SIZE),
    OPTION(max_noise_bytes, BYTES),
    OPTION(max_cache_bytes, BYTES),
    OPTION(vae_tiling, NUMBER),
    OPTION(mmap, NUMBER),
};

enum { NUM_OPTIONS = sizeof OPTIONS / sizeof *OPTIONS };

/* A path; NULL where there is no memory. */
static const char *path(struct arena *arena, const char *folder, const char *given, size_t length) {
    const size_t before = *given == '/' ? 0 : strlen(folder) + 1;
    char *whole = arena_take(arena, before + length + 1, 1);
    if (whole == NULL) {
        return NULL;
    }
    if (before > 0) {
        memcpy(whole, folder, before - 1);
        whole[before - 1] = '/';
    }
    memcpy(whole + before, given, length);
    return whole;
}

/* The lines of a text that are not empty, as paths. */
static TRITONSERVER_Error *paths(
    struct arena *arena, const char *folder, const char *text, const char *const **list, size_t *count) {
    const char **made = arena_take(arena, strlen(text) + 1, sizeof *made);
    size_t found = 0;
    while (made != NULL && *text != '\0') {
        const size_t length = strcspn(text, "\n");
        if (length > 0 && (made[found++] = path(arena, folder, text, length)) == NULL) {
            return no_memory();
        }
        text += length + (text[length] == '\n');
    }
    *list = made;
    *count = found;
    return made != NULL ? NULL : no_memory();
}

static TRITONSERVER_Error *number(const struct option *option, const char *text, uint64_t max, uint64_t *value) {
    char *end = NULL;
    unsigned long long read;
    errno = 0;
    read = strtoull(text, &end, 10);
    if (strspn(text, "0123456789") != strlen(text) || *text == '\0' || errno != 0 || read > max) {
        return refuse(TRITONSERVER_ERROR_INVALID_ARG, "parameters: %s: `%s` given; a whole number up to %llu is expected", option->name,
            text, (unsigned long long)max);
    }
    *value = read;
    return NULL;
}

static TRITONSERVER_Error *set(struct settings *settings, const struct option *option, const char *text, const char *folder) {
    char *field = (char *)&settings->options + option->at;
    TRITONSERVER_Error *error = NULL;
    uint64_t value = 0;
    switch (option->kind) {
    case PATHS:
        return paths(&settings->arena, folder, text, (const char *const **)(void *)field,
            (size_t *)(void *)((char *)&settings->options + option->count));
    case PATH:
    case TEXT:
        if (*text == '\0') {
            return refuse(
                TRITONSERVER_ERROR_INVALID_ARG, "parameters: %s: an empty text given; leave it out for the default", option->name);
        }
        *(const char **)(void *)field = option->kind == PATH ? path(&settings->arena, folder, text, strlen(text))
                                                            : arena_text(&settings->arena, text, strlen(text));
        return *(const char **)(void *)field != NULL ? NULL : no_memory();
    case SIZE:
        error = number(option, text, SIZE_MAX, &value);
        *(size_t *)(void *)field = error == NULL ? (size_t)value : 0;
        return error;
    case BYTES:
        return number(option, text, UINT64_MAX, (uint64_t *)(void *)field);
    case NUMBER:
        error = number(option, text, UINT32_MAX, &value);
        *(uint32_t *)(void *)field = error == NULL ? (uint32_t)value : 0;
        return error;
    }
    return NULL;
}

static TRITONSERVER_Error *unknown(const char *name) {
    char known[512] = "";
    size_t i;
    for (i = 0; i < NUM_OPTIONS; i++) {
        strcat(known, i == 0 ? "" : ", ");
        strcat(known, OPTIONS[i].name);
    }
    return refuse(TRITONSERVER_ERROR_INVALID_ARG, "parameters: there is no `%s`; known are %s", name, known);
}

TRITONSERVER_Error *settings_read(struct settings *settings, const struct json *config, const char *folder) {
    const struct json *parameters = json_member(config, "parameters");
    const struct json *parameter = parameters != NULL ? parameters->first : NULL;
    TRITONSERVER_Error *error = NULL;
    braid_pipeline_options_init(&settings->options, sizeof settings->options);
    for (; parameter != NULL && error == NULL; parameter = parameter->next) {
        size_t i = 0;
        /* Triton's own. */
        if (strncmp(parameter->name, "TRITON_", 7) == 0) {
            continue;
        }
        while (i < NUM_OPTIONS && strcmp(OPTIONS[i].name, parameter->name) != 0) {
            i++;
        }
        error = i < NUM_OPTIONS ? set(settings, &OPTIONS[i], json_text(json_member(parameter, "string_value")), folder)
                                : unknown(parameter->name);
    }
    if (error == NULL && settings->options.model == NULL) {
        error = refuse(TRITONSERVER_ERROR_INVALID_ARG, "parameters: model is missing: a checkpoint or a diffusers folder");
    }
    if (error == NULL && settings->options.num_adapters > 1) {
        error = refuse(TRITONSERVER_ERROR_INVALID_ARG, "parameters: adapters: %zu given; the inputs have the references of one",
            settings->options.num_adapters);
    }
    return error;
}
