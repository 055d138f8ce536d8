#include "rows.h"
#include "inputs.h"
#include <stdio.h>
#include <string.h>


/* The data of an input. */
struct tensor {
    const struct input *input;
    TRITONSERVER_DataType datatype;
    const int64_t *shape;
    uint32_t num_dims;
    const char *data;
    uint64_t size;
    /* Elements, all together and of each row. */
    uint64_t count;
    uint64_t per_row;
};

static void *field(struct row *row, const struct input *input) {
    return (char *)row + input->at;
}

static TRITONSERVER_Error *misshapen(const struct tensor *tensor) {
    return refuse(TRITONSERVER_ERROR_INVALID_ARG, "%s: %llu bytes do not fit its shape and type", tensor->input->name,
        (unsigned long long)tensor->size);
}

/* Begins the message of what is wrong with a row. */
static void place(char (*text)[96], const struct job *job, size_t row, const char *name) {
    if (job->num_rows > 1) {
        snprintf(*text, sizeof *text, "row %zu: %s: ", row, name);
    } else {
        snprintf(*text, sizeof *text, "%s: ", name);
    }
}

/* Finds the data of an input, in one piece. */
static TRITONSERVER_Error *gather(struct job *job, TRITONBACKEND_Input *input, uint32_t num_buffers, struct tensor *tensor) {
    char *whole = NULL;
    uint64_t filled = 0;
    uint32_t i;
    if (num_buffers > 1 && (whole = arena_take(&job->arena, (size_t)tensor->size, 1)) == NULL) {
        return no_memory();
    }
    tensor->data = whole;
    for (i = 0; i < num_buffers; i++) {
        const void *buffer = NULL;
        uint64_t size = 0;
        TRITONSERVER_MemoryType memory = TRITONSERVER_MEMORY_CPU;
        int64_t memory_id = 0;
        TRITONSERVER_Error *error = TRITONBACKEND_InputBuffer(input, i, &buffer, &size, &memory, &memory_id);
        if (error != NULL) {
            return within(tensor->input->name, error);
        }
        if (memory == TRITONSERVER_MEMORY_GPU && size > 0) {
            return refuse(TRITONSERVER_ERROR_UNSUPPORTED, "%s: it lies in a GPU's memory; send it from the host's", tensor->input->name);
        }
        if (size > tensor->size - filled) {
            return misshapen(tensor);
        }
        if (whole == NULL) {
            tensor->data = buffer;
        } else if (size > 0) {
            memcpy(whole + filled, buffer, (size_t)size);
        }
        filled += size;
    }
    return filled == tensor->size ? NULL : misshapen(tensor);
}

/* Checks the shape, and makes the rows where this is the first input. */
static TRITONSERVER_Error *count_rows(struct job *job, struct tensor *tensor) {
    uint32_t i;
    tensor->count = 1;
    for (i = 0; i < tensor->num_dims; i++) {
        const int64_t dim = tensor->shape[i];
        if (dim < 0 || (dim > 0 && tensor->count > (uint64_t)INT64_MAX / (uint64_t)dim)) {
            return misshapen(tensor);
        }
        tensor->count *= (uint64_t)dim;
    }
    if (tensor->num_dims < 2 || tensor->shape[0] < 1) {
        return refuse(TRITONSERVER_ERROR_INVALID_ARG, "%s: its first dimension is the number of rows, 1 at least", tensor->input->name);
    }
    tensor->per_row = tensor->count / (uint64_t)tensor->shape[0];
    if (job->rows == NULL) {
        size_t row;
        job->rows = arena_take(&job->arena, (size_t)tensor->shape[0], sizeof *job->rows);
        if (job->rows == NULL) {
            return no_memory();
        }
        job->num_rows = (size_t)tensor->shape[0];
        for (row = 0; row < job->num_rows; row++) {
            braid_request_init(&job->rows[row].request, sizeof job->rows[row].request);
            braid_image_prompt_init(&job->rows[row].prompt, sizeof job->rows[row].prompt);
        }
    }
    if ((size_t)tensor->shape[0] != job->num_rows) {
        return refuse(TRITONSERVER_ERROR_INVALID_ARG, "%s: %lld rows, where another input has %zu", tensor->input->name,
            (long long)tensor->shape[0], job->num_rows);
    }
    return NULL;
}

/* The next string of a tensor: four bytes of its length, and then the bytes; NULL behind the last one. */
static const char *next_string(const struct tensor *tensor, uint64_t *at, uint32_t *length) {
    if (tensor->size - *at < sizeof *length) {
        return NULL;
    }
    memcpy(length, tensor->data + *at, sizeof *length);
    *at += sizeof *length;
    if (tensor->size - *at < *length) {
        return NULL;
    }
    *at += *length;
    return tensor->data + *at - *length;
}

static TRITONSERVER_Error *read_text(struct job *job, const struct tensor *tensor) {
    uint64_t at = 0;
    uint32_t length = 0;
    size_t row;
    for (row = 0; row < job->num_rows; row++) {
        const char *string = next_string(tensor, &at, &length);
        const char *zero = string != NULL ? memchr(string, '\0', length) : NULL;
        const char **text = field(&job->rows[row], tensor->input);
        char where[96];
        if (string == NULL) {
            return misshapen(tensor);
        }
        if (zero != NULL) {
            place(&where, job, row, tensor->input->name);
            return refuse(TRITONSERVER_ERROR_INVALID_ARG, "%sbyte %td is 0, which ends texts", where, zero - string);
        }
        if (length > 0 || tensor->input->kind == TEXT) {
            *text = arena_text(&job->arena, string, length);
            if (*text == NULL) {
                return no_memory();
            }
        }
    }
    return at == tensor->size ? NULL : misshapen(tensor);
}

static TRITONSERVER_Error *read_files(struct job *job, const struct tensor *tensor) {
    uint64_t at = 0, i;
    size_t row;
    /* Each of them has a length, so that the size bounds the memory. */
    if (tensor->count > tensor->size / sizeof(uint32_t)) {
        return misshapen(tensor);
    }
    for (row = 0; row < job->num_rows; row++) {
        struct row *into = &job->rows[row];
        into->files = arena_take(&job->arena, (size_t)tensor->per_row, sizeof *into->files);
        if (into->files == NULL) {
            return no_memory();
        }
        for (i = 0; i < tensor->per_row; i++) {
            uint32_t length = 0;
            const char *file = next_string(tensor, &at, &length);
            braid_status status = BRAID_OK;
            if (file == NULL) {
                return misshapen(tensor);
            }
            if (length > 0) {
                status = braid_image_decode((const uint8_t *)file, length, BRAID_ALPHA_ON_WHITE, &into->files[into->num_files]);
            }
            if (status != BRAID_OK) {
                char where[96];
                place(&where, job, row, tensor->input->name);
                return of_status(status, where);
            }
            into->num_files += length > 0;
        }
    }
    return at == tensor->size ? NULL : misshapen(tensor);
}

static TRITONSERVER_Error *read_pixels(struct job *job, const struct tensor *tensor) {
    size_t row;
    if (tensor->num_dims != 4 || tensor->shape[3] != 3 || tensor->count != tensor->size) {
        return misshapen(tensor);
    }
    for (row = 0; row < job->num_rows && tensor->count > 0; row++) {
        const uint8_t *rgb = (const uint8_t *)tensor->data + row * tensor->per_row;
        const braid_status status = braid_image_new(
            (size_t)tensor->shape[2], (size_t)tensor->shape[1], rgb, (size_t)tensor->per_row, &job->rows[row].pixels);
        if (status != BRAID_OK) {
            char where[96];
            place(&where, job, row, tensor->input->name);
            return of_status(status, where);
        }
    }
    return NULL;
}

static TRITONSERVER_Error *read_list(struct job *job, const struct tensor *tensor) {
    size_t row;
    float *numbers;
    if (tensor->size % sizeof *numbers != 0 || tensor->count != tensor->size / sizeof *numbers) {
        return misshapen(tensor);
    }
    numbers = arena_take(&job->arena, (size_t)tensor->count, sizeof *numbers);
    if (numbers == NULL) {
        return no_memory();
    }
    if (tensor->size > 0) {
        memcpy(numbers, tensor->data, (size_t)tensor->size);
    }
    for (row = 0; row < job->num_rows; row++) {
        job->rows[row].request.lora_scales = numbers + row * tensor->per_row;
        job->rows[row].request.num_lora_scales = (size_t)tensor->per_row;
    }
    return NULL;
}

/* A number as the widest of its kind. */
struct number {
    bool is_negative;
    uint64_t whole;
    double real;
};

/* The bytes of a number, 0 of a type that is none. */
static size_t number_size(TRITONSERVER_DataType datatype) {
    switch (datatype) {
    case TRITONSERVER_TYPE_UINT8:
    case TRITONSERVER_TYPE_INT8:
        return 1;
    case TRITONSERVER_TYPE_UINT16:
    case TRITONSERVER_TYPE_INT16:
        return 2;
    case TRITONSERVER_TYPE_UINT32:
    case TRITONSERVER_TYPE_INT32:
    case TRITONSERVER_TYPE_FP32:
        return 4;
    case TRITONSERVER_TYPE_UINT64:
    case TRITONSERVER_TYPE_INT64:
    case TRITONSERVER_TYPE_FP64:
        return 8;
    default:
        return 0;
    }
}

static struct number number_at(TRITONSERVER_DataType datatype, const char *at) {
    const size_t size = number_size(datatype);
    struct number number = {false, 0, 0};
    float real = 0;
    if (datatype == TRITONSERVER_TYPE_FP64) {
        memcpy(&number.real, at, size);
    } else if (datatype == TRITONSERVER_TYPE_FP32) {
        memcpy(&real, at, size);
        number.real = real;
    } else {
        /* The server's machines are little-endian. */
        memcpy(&number.whole, at, size);
        number.is_negative = datatype >= TRITONSERVER_TYPE_INT8 && number.whole >> (8 * size - 1) != 0;
    }
    return number;
}

static TRITONSERVER_Error *read_numbers(struct job *job, const struct tensor *tensor) {
    const enum kind kind = tensor->input->kind;
    const size_t size = number_size(tensor->datatype);
    const uint64_t max = kind == U32 ? UINT32_MAX : kind == SIZE ? SIZE_MAX : UINT64_MAX;
    size_t row;
    if (size == 0 || tensor->per_row != 1 || tensor->size % size != 0 || tensor->count != tensor->size / size) {
        return misshapen(tensor);
    }
    for (row = 0; row < job->num_rows; row++) {
        const struct number number = number_at(tensor->datatype, tensor->data + row * size);
        void *into = field(&job->rows[row], tensor->input);
        if (number.is_negative || number.whole > max) {
            char where[96];
            place(&where, job, row, tensor->input->name);
            return refuse(TRITONSERVER_ERROR_INVALID_ARG, "%sa number from 0 to %llu is expected", where, (unsigned long long)max);
        }
        if (kind == SIZE) {
            *(size_t *)into = (size_t)number.whole;
        } else if (kind == U32) {
            *(uint32_t *)into = (uint32_t)number.whole;
        } else if (kind == U64) {
            *(uint64_t *)into = number.whole;
        } else if (kind == F32) {
            *(float *)into = (float)number.real;
        } else {
            *(double *)into = number.real;
        }
    }
    return NULL;
}

static TRITONSERVER_Error *read_input(struct job *job, TRITONBACKEND_Input *input) {
    struct tensor tensor = {NULL, TRITONSERVER_TYPE_INVALID, NULL, 0, NULL, 0, 0, 0};
    const char *name = "";
    uint32_t num_buffers = 0;
    TRITONSERVER_Error *error =
        TRITONBACKEND_InputProperties(input, &name, &tensor.datatype, &tensor.shape, &tensor.num_dims, &tensor.size, &num_buffers);
    if (error != NULL) {
        return error;
    }
    tensor.input = inputs_find(name);
    if (tensor.input == NULL) {
        return refuse(TRITONSERVER_ERROR_INVALID_ARG, "there is no input `%s`", name);
    }
    error = count_rows(job, &tensor);
    if (error == NULL) {
        error = gather(job, input, num_buffers, &tensor);
    }
    if (error != NULL) {
        return error;
    }
    switch (tensor.input->kind) {
    case TEXT:
    case NAME:
        return tensor.datatype == TRITONSERVER_TYPE_BYTES && tensor.per_row == 1 ? read_text(job, &tensor) : misshapen(&tensor);
    case FILES:
        return tensor.datatype == TRITONSERVER_TYPE_BYTES ? read_files(job, &tensor) : misshapen(&tensor);
    case PIXELS:
        return tensor.datatype == TRITONSERVER_TYPE_UINT8 ? read_pixels(job, &tensor) : misshapen(&tensor);
    case LIST:
        return tensor.datatype == TRITONSERVER_TYPE_FP32 ? read_list(job, &tensor) : misshapen(&tensor);
    default:
        return read_numbers(job, &tensor);
    }
}

/* Gives a row its references: that of ip_adapter_image first. */
static TRITONSERVER_Error *set_references(struct arena *arena, struct row *row) {
    const size_t count = row->num_files + (row->pixels != NULL);
    braid_reference *references;
    size_t i;
    if (count == 0) {
        return NULL;
    }
    references = arena_take(arena, count, sizeof *references);
    if (references == NULL) {
        return no_memory();
    }
    for (i = 0; i < count; i++) {
        braid_reference_init(&references[i], sizeof references[i]);
        references[i].image = row->pixels == NULL ? row->files[i] : i == 0 ? row->pixels : row->files[i - 1];
    }
    row->prompt.references = references;
    row->prompt.num_references = count;
    row->request.image_prompts = &row->prompt;
    row->request.num_image_prompts = 1;
    return NULL;
}

TRITONSERVER_Error *rows_read(struct job *job) {
    uint32_t count = 0, i;
    size_t row;
    TRITONSERVER_Error *error = TRITONBACKEND_RequestInputCount(job->request, &count);
    for (i = 0; i < count && error == NULL; i++) {
        TRITONBACKEND_Input *input = NULL;
        error = TRITONBACKEND_RequestInputByIndex(job->request, i, &input);
        if (error == NULL) {
            error = read_input(job, input);
        }
    }
    if (error == NULL && (job->num_rows == 0 || job->rows[0].request.prompt == NULL)) {
        /* Triton only counts the inputs that are not optional. */
        error = refuse(TRITONSERVER_ERROR_INVALID_ARG, "prompt: it is missing");
    }
    for (row = 0; row < job->num_rows && error == NULL; row++) {
        error = set_references(&job->arena, &job->rows[row]);
    }
    return error;
}

void job_free(struct job *job) {
    size_t row, i;
    for (row = 0; row < job->num_rows; row++) {
        braid_image_free(job->rows[row].pixels);
        for (i = 0; i < job->rows[row].num_files; i++) {
            braid_image_free(job->rows[row].files[i]);
        }
        braid_output_free(job->rows[row].output);
    }
    if (job->error != NULL) {
        TRITONSERVER_ErrorDelete(job->error);
    }
    arena_free(&job->arena);
}
