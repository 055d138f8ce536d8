/* Memory that goes as a whole, and errors. */
#ifndef BRAID_TRITON_COMMON_H
#define BRAID_TRITON_COMMON_H

#include "triton.h"
#include <braid.h>

/* Memory that is freed at once. Begins as {NULL}. */
struct arena {
    struct block *last;
};

/* Gives count * size bytes of zeros, or NULL. */
void *arena_take(struct arena *arena, size_t count, size_t size);
/* Copies a text of so many bytes, and ends it with NUL; NULL where there is no memory. */
char *arena_text(struct arena *arena, const char *text, size_t length);
void arena_free(struct arena *arena);

#ifdef __GNUC__
#define BRAID_FORMAT(text, first) __attribute__((format(printf, text, first)))
#else
#define BRAID_FORMAT(text, first)
#endif

/* Makes an error. */
TRITONSERVER_Error *refuse(TRITONSERVER_Error_Code code, const char *format, ...) BRAID_FORMAT(2, 3);
TRITONSERVER_Error *no_memory(void);
/* Makes an error of what braid has refused on this thread, with the status's name; `where` stands before its text. */
TRITONSERVER_Error *of_status(braid_status status, const char *where);
/* Makes an error of another one, with a text before it. */
TRITONSERVER_Error *within(const char *where, TRITONSERVER_Error *error);

/* Writes a line to the server's log. */
void say(TRITONSERVER_LogLevel level, const char *text);
/* Logs and deletes an error that no one is left to tell; NULL is none. */
void log_error(const char *where, TRITONSERVER_Error *error);

#endif
