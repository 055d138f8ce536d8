/* A reader of JSON: Triton hands a model's configuration over as such. */
#ifndef BRAID_TRITON_JSON_H
#define BRAID_TRITON_JSON_H

#include "common.h"

enum json_kind { JSON_WORD, JSON_NUMBER, JSON_STRING, JSON_ARRAY, JSON_OBJECT };

struct json {
    enum json_kind kind;
    /* Of a member of an object. */
    const char *name;
    /* A string; a number or a word (true, false, null) as it is written. */
    const char *text;
    /* The elements of an array, the members of an object: the first one, and of each the one after it. */
    struct json *first;
    struct json *next;
};

/* Reads a text; NULL where it is no JSON, is nested deeper than 64, has a string with NUL, or where there is no memory. */
const struct json *json_parse(struct arena *arena, const char *text, size_t size);
/* The member of an object; NULL where there is none, or no object. */
const struct json *json_member(const struct json *object, const char *name);
/* The text of a string; "" of anything else, and of NULL. */
const char *json_text(const struct json *value);
/* A whole number; 0 of anything else, and of NULL. */
long long json_number(const struct json *value);

#endif
