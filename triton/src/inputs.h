/* The inputs and outputs that there are. */
#ifndef BRAID_TRITON_INPUTS_H
#define BRAID_TRITON_INPUTS_H

#include "json.h"

/* What an input is read into: a text, a name (where an empty one is none), a number of C's types, an image, files of images, a list of
 * numbers. */
enum kind { TEXT, NAME, SIZE, U64, U32, F32, F64, PIXELS, FILES, LIST };

struct input {
    const char *name;
    enum kind kind;
    /* Of the field in struct row. */
    size_t at;
};

/* The input of a name, or NULL. */
const struct input *inputs_find(const char *name);
/* Checks the inputs and outputs that a configuration declares. */
TRITONSERVER_Error *inputs_check(const struct json *config);

#endif
