#include "common.h"
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The beginning of each piece of memory; what follows is aligned for anything. */
struct block {
    union {
        struct block *next;
        long double align;
    } head;
};

void *arena_take(struct arena *arena, size_t count, size_t size) {
    struct block *block;
    if (size != 0 && count > (SIZE_MAX - sizeof *block) / size) {
        return NULL;
    }
    block = calloc(1, sizeof *block + count * size);
    if (block == NULL) {
        return NULL;
    }
    block->head.next = arena->last;
    arena->last = block;
    return block + 1;
}

char *arena_text(struct arena *arena, const char *text, size_t length) {
    char *copy = length < SIZE_MAX ? arena_take(arena, length + 1, 1) : NULL;
    if (copy != NULL && length > 0) {
        memcpy(copy, text, length);
    }
    return copy;
}

void arena_free(struct arena *arena) {
    while (arena->last != NULL) {
        struct block *block = arena->last;
        arena->last = block->head.next;
        free(block);
    }
}

TRITONSERVER_Error *refuse(TRITONSERVER_Error_Code code, const char *format, ...) {
    char some[256];
    char *all = NULL;
    int length;
    TRITONSERVER_Error *error;
    va_list arguments;
    va_start(arguments, format);
    length = vsnprintf(some, sizeof some, format, arguments);
    va_end(arguments);
    if (length >= (int)sizeof some && (all = calloc((size_t)length + 1, 1)) != NULL) {
        va_start(arguments, format);
        vsnprintf(all, (size_t)length + 1, format, arguments);
        va_end(arguments);
    }
    error = TRITONSERVER_ErrorNew(code, all != NULL ? all : some);
    free(all);
    return error;
}

TRITONSERVER_Error *no_memory(void) {
    return refuse(TRITONSERVER_ERROR_UNAVAILABLE, "no memory is left for the request; send it again later");
}

static TRITONSERVER_Error_Code code_of(braid_status status) {
    switch (status) {
    case BRAID_ERROR_MALFORMED:
    case BRAID_ERROR_MISMATCH:
    case BRAID_ERROR_PARAMETER:
    case BRAID_ERROR_INVALID_ARGUMENT:
        return TRITONSERVER_ERROR_INVALID_ARG;
    case BRAID_ERROR_MEMORY:
    case BRAID_ERROR_BUSY:
        return TRITONSERVER_ERROR_UNAVAILABLE;
    case BRAID_ERROR_CANCELLED:
        return TRITONSERVER_ERROR_CANCELLED;
    default:
        return TRITONSERVER_ERROR_INTERNAL;
    }
}

TRITONSERVER_Error *of_status(braid_status status, const char *where) {
    const size_t size = braid_last_error(NULL, 0);
    char *text = calloc(size + 1, 1);
    TRITONSERVER_Error *error;
    if (text != NULL) {
        braid_last_error(text, size);
    }
    error = refuse(code_of(status), "%s%s (%s)", where, text != NULL ? text : "failed", braid_status_name(status));
    free(text);
    return error;
}

TRITONSERVER_Error *within(const char *where, TRITONSERVER_Error *error) {
    TRITONSERVER_Error *told = refuse(TRITONSERVER_ERROR_INTERNAL, "%s: %s", where, TRITONSERVER_ErrorMessage(error));
    TRITONSERVER_ErrorDelete(error);
    return told;
}

void say(TRITONSERVER_LogLevel level, const char *text) {
    TRITONSERVER_Error *error = TRITONSERVER_LogMessage(level, "braid", 0, text);
    if (error != NULL) {
        TRITONSERVER_ErrorDelete(error);
    }
}

void log_error(const char *where, TRITONSERVER_Error *error) {
    if (error != NULL) {
        error = within(where, error);
        say(TRITONSERVER_LOG_ERROR, TRITONSERVER_ErrorMessage(error));
        TRITONSERVER_ErrorDelete(error);
    }
}
