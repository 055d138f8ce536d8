#include "json.h"
#include <stdlib.h>
#include <string.h>

enum { MAX_DEPTH = 64 };

struct reader {
    struct arena *arena;
    const char *at;
    const char *end;
};

static struct json *value(struct reader *reader, int depth);

static void skip_space(struct reader *reader) {
    while (reader->at < reader->end && strchr(" \t\r\n", *reader->at) != NULL && *reader->at != '\0') {
        reader->at++;
    }
}

/* Takes a character, behind spaces, where it is the next one. */
static bool take(struct reader *reader, char character) {
    skip_space(reader);
    if (reader->at >= reader->end || *reader->at != character) {
        return false;
    }
    reader->at++;
    return true;
}

/* Four hexadecimal digits; -1 where they are none. */
static long hex4(struct reader *reader) {
    long code = 0;
    int i;
    if (reader->end - reader->at < 4) {
        return -1;
    }
    for (i = 0; i < 4; i++) {
        const char *digits = "0123456789abcdef0123456789ABCDEF";
        const char *digit = *reader->at == '\0' ? NULL : strchr(digits, *reader->at);
        if (digit == NULL) {
            return -1;
        }
        code = code * 16 + (digit - digits) % 16;
        reader->at++;
    }
    return code;
}

/* Writes a character as UTF-8. */
static char *put(char *to, long code) {
    if (code < 0x80) {
        *to++ = (char)code;
        return to;
    }
    if (code < 0x800) {
        *to++ = (char)(0xc0 | code >> 6);
    } else if (code < 0x10000) {
        *to++ = (char)(0xe0 | code >> 12);
        *to++ = (char)(0x80 | (code >> 6 & 0x3f));
    } else {
        *to++ = (char)(0xf0 | code >> 18);
        *to++ = (char)(0x80 | (code >> 12 & 0x3f));
        *to++ = (char)(0x80 | (code >> 6 & 0x3f));
    }
    *to++ = (char)(0x80 | (code & 0x3f));
    return to;
}

/* What stands behind a \u, two of them where they are a pair; -1 where it is no character. */
static long unicode(struct reader *reader) {
    const long code = hex4(reader);
    long low;
    if (code < 0xd800 || code > 0xdfff) {
        return code == 0 ? -1 : code;
    }
    if (code > 0xdbff || reader->end - reader->at < 2 || reader->at[0] != '\\' || reader->at[1] != 'u') {
        return -1;
    }
    reader->at += 2;
    low = hex4(reader);
    return low < 0xdc00 || low > 0xdfff ? -1 : 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
}

/* A string behind its opening quote; NULL where it is none. */
static const char *string(struct reader *reader) {
    const char *closing = reader->at;
    char *text, *to;
    while (closing < reader->end && *closing != '"') {
        closing += *closing == '\\' ? 2 : 1;
    }
    if (closing >= reader->end) {
        return NULL;
    }
    /* No escape is shorter than what it stands for. */
    text = arena_text(reader->arena, reader->at, (size_t)(closing - reader->at));
    to = text;
    while (text != NULL && reader->at < closing) {
        static const char *const escapes = "\"\"\\\\//b\bf\fn\nr\rt\t";
        const char character = *reader->at++;
        const char *escape = escapes;
        long code = 0;
        if (character == '\0') {
            return NULL;
        }
        if (character != '\\') {
            *to++ = character;
            continue;
        }
        if (*reader->at == 'u') {
            reader->at++;
            code = unicode(reader);
            if (code < 0) {
                return NULL;
            }
            to = put(to, code);
            continue;
        }
        while (*escape != '\0' && *escape != *reader->at) {
            escape += 2;
        }
        if (*escape == '\0') {
            return NULL;
        }
        *to++ = escape[1];
        reader->at++;
    }
    if (text != NULL) {
        *to = '\0';
        reader->at = closing + 1;
    }
    return text;
}

/* The elements or members up to the closing bracket. */
static bool children(struct reader *reader, struct json *parent, int depth) {
    const char closing = parent->kind == JSON_ARRAY ? ']' : '}';
    struct json **last = &parent->first;
    if (take(reader, closing)) {
        return true;
    }
    do {
        const char *name = NULL;
        if (parent->kind == JSON_OBJECT) {
            name = take(reader, '"') ? string(reader) : NULL;
            if (name == NULL || !take(reader, ':')) {
                return false;
            }
        }
        *last = value(reader, depth + 1);
        if (*last == NULL) {
            return false;
        }
        (*last)->name = name;
        last = &(*last)->next;
    } while (take(reader, ','));
    return take(reader, closing);
}

static struct json *value(struct reader *reader, int depth) {
    struct json *made = depth < MAX_DEPTH ? arena_take(reader->arena, 1, sizeof *made) : NULL;
    const char *begin;
    if (made == NULL) {
        return NULL;
    }
    if (take(reader, '"')) {
        made->kind = JSON_STRING;
        made->text = string(reader);
        return made->text != NULL ? made : NULL;
    }
    if (take(reader, '[')) {
        made->kind = JSON_ARRAY;
        return children(reader, made, depth) ? made : NULL;
    }
    if (take(reader, '{')) {
        made->kind = JSON_OBJECT;
        return children(reader, made, depth) ? made : NULL;
    }
    begin = reader->at;
    while (reader->at < reader->end && *reader->at != '\0' && strchr("+-.0123456789abcdefghijklmnopqrstuvwxyzE", *reader->at) != NULL) {
        reader->at++;
    }
    made->kind = reader->at > begin && strchr("-0123456789", *begin) != NULL ? JSON_NUMBER : JSON_WORD;
    made->text = arena_text(reader->arena, begin, (size_t)(reader->at - begin));
    return reader->at > begin && made->text != NULL ? made : NULL;
}

const struct json *json_parse(struct arena *arena, const char *text, size_t size) {
    struct reader reader;
    const struct json *parsed;
    reader.arena = arena;
    reader.at = text;
    reader.end = text + size;
    parsed = value(&reader, 0);
    skip_space(&reader);
    return reader.at == reader.end ? parsed : NULL;
}

const struct json *json_member(const struct json *object, const char *name) {
    const struct json *member = object != NULL && object->kind == JSON_OBJECT ? object->first : NULL;
    while (member != NULL && strcmp(member->name, name) != 0) {
        member = member->next;
    }
    return member;
}

const char *json_text(const struct json *value) {
    return value != NULL && value->kind == JSON_STRING ? value->text : "";
}

long long json_number(const struct json *value) {
    /* Protocol buffers write numbers of 64 bits as strings. */
    return value != NULL && value->text != NULL ? strtoll(value->text, NULL, 10) : 0;
}
