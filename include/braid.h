/*
 * Braid: Stable Diffusion XL with IP-Adapter image prompts.
 *
 * docs/c.md begins with an example and says how to build and link. The functions do what the Rust library does, by the same names.
 *
 * ERRORS. A function that can fail returns a braid_status, BRAID_OK (0) or the reason, and never prints or ends the process. The text of
 * the last failure is kept for each thread (braid_last_error) and for each pipeline, session, stream, engine and ticket; success leaves it
 * as it was. A text names the field or parameter at fault as this header spells it. A function whose result is a handle or an output sets
 * it to NULL where it fails. Functions that return something else than a braid_status return 0 or NULL where they fail. A defect of the
 * library (a panic) becomes BRAID_ERROR_PANIC; the handle may be used further or freed.
 *
 * STRINGS are UTF-8 and end with NUL, paths too. Names (schedulers, data types, devices, ...) are those of the command `braid generate`.
 * The library copies what it is given: strings, arrays, structs and pixels may go once a function has returned. Functions that give a text
 * write up to `size` bytes of it to `buffer`, NUL included (nothing where size is 0), and return the size that the whole takes.
 *
 * STRUCTS of parameters begin with struct_size and are filled with their defaults by their _init function, which takes their sizeof. Later
 * versions only append fields; a library that is newer than the program gives those that the program does not know their defaults, and
 * one that is older refuses a struct whose fields it does not know are set. The elements of an array lie as far apart as the struct_size of
 * the first one says, and all have the same. `reserved` fields stay 0.
 *
 * OWNERSHIP. A handle that a function gives by a pointer to a pointer, or that a _new function returns, is the caller's, who frees it once
 * with its _free function; NULL may be freed. `const` pointers that functions return belong to the handle that they come from, and end with
 * it. Handles keep what they need: they may be freed in any order, once no other thread is in a call with the handle.
 *
 * THREADS. Any function may be called from any thread, and handles may be shared between threads: a pipeline does one thing at a time and
 * makes others wait; images, encoded images and outputs do not change. A _free function must be the last call with its handle.
 *
 * CALLBACKS of a request come one at a time, those of braid_pipeline_generate, _generate_batch and braid_session_generate on the thread
 * that called, those of an engine on the engine's thread, and a stream's source on the thread that called braid_stream_next. They must
 * return: no longjmp, no C++ exception. They must not call functions marked [waits], which are refused there, as they would wait for the
 * request that is being drawn.
 */
#ifndef BRAID_H
#define BRAID_H

#include <stddef.h>
#include <stdint.h>

#define BRAID_VERSION_MAJOR 0
#define BRAID_VERSION_MINOR 2
#define BRAID_VERSION_PATCH 0
/* The version of this header; braid_version() has that of the library. */
#define BRAID_VERSION "0.2.0"

#ifndef BRAID_API
#if defined(_WIN32)
#define BRAID_API __declspec(dllimport)
#else
#define BRAID_API
#endif
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Statuses ---- */

/* BRAID_OK or one of BRAID_ERROR_*. The numbers stay as they are; more may be added. */
typedef int32_t braid_status;

enum {
    BRAID_OK = 0,
    /* The operating system refused an operation on a file. */
    BRAID_ERROR_IO = 1,
    /* A file does not follow its format. */
    BRAID_ERROR_MALFORMED = 2,
    /* A sound file does not fit here: another model family, another encoder, another layout. */
    BRAID_ERROR_MISMATCH = 3,
    /* Tensors of a weight file are missing or have other shapes than the model needs. */
    BRAID_ERROR_TENSORS = 4,
    /* A setting in a configuration file is not supported. */
    BRAID_ERROR_CONFIG = 5,
    /* The value of a field is not usable. */
    BRAID_ERROR_PARAMETER = 6,
    /* More memory is needed than is available. */
    BRAID_ERROR_MEMORY = 7,
    /* A computation gave NaN or infinity. */
    BRAID_ERROR_NOT_FINITE = 8,
    /* The request was cancelled: by its token, its ticket or its callback. */
    BRAID_ERROR_CANCELLED = 9,
    /* An engine's queue is full, or a pipeline is at work for another call than braid_pipeline_try_generate. */
    BRAID_ERROR_BUSY = 10,
    /* A request had not begun by its deadline. */
    BRAID_ERROR_LATE = 11,
    /* An engine takes no more requests, or was freed before it began this one. */
    BRAID_ERROR_STOPPED = 12,
    /* An engine's work on a request panicked: a defect of the library. */
    BRAID_ERROR_PANICKED = 13,
    /* A device cannot be used. */
    BRAID_ERROR_DEVICE = 14,
    /* A device failed at its work. */
    BRAID_ERROR_FAULT = 15,
    /* A graph was built or bound wrongly: a defect of the library. */
    BRAID_ERROR_GRAPH = 16,
    /* A pointer is NULL, a text is not UTF-8, a struct is not initialized, a number is none of those listed, or the call has no
     * place here. */
    BRAID_ERROR_INVALID_ARGUMENT = 17,
    /* The library panicked: a defect of the library. */
    BRAID_ERROR_PANIC = 18,
    /* The result was not there in time; nothing else has changed. */
    BRAID_ERROR_TIMEOUT = 19,
    /* A failure that this version of the interface has no number for. */
    BRAID_ERROR_OTHER = 20,
    /* A frame of a stream cannot be drawn. */
    BRAID_ERROR_FRAME = 21,
    /* A model's file was written to or cut short while it was mapped; load it again. */
    BRAID_ERROR_CHANGED = 22,
    /* A callback called what would wait for its own end. */
    BRAID_ERROR_IN_CALLBACK = 23
};

/* The version of the library, such as "0.2.0". It is never freed. */
BRAID_API const char *braid_version(void);

/* The name of a status, such as "BRAID_ERROR_IO", or "unknown status". It is never freed. */
BRAID_API const char *braid_status_name(braid_status status);

/* The text of the last failure on this thread; empty where there was none. */
BRAID_API size_t braid_last_error(char *buffer, size_t size);

/* A warning of the library, one line, such as that of an image's colours being approximate. The text ends with the call. */
typedef void (*braid_warning_fn)(const char *text, void *user_data);

/* Sets the function that gets warnings of the whole process, from any thread; NULL for none, as at first. It must not call functions of the
 * library. When this returns, the function that was set before is called no more. */
BRAID_API braid_status braid_set_warning_callback(braid_warning_fn on_warning, void *user_data);

/* ---- Handles ---- */

/* The loaded models, ready to generate. */
typedef struct braid_pipeline braid_pipeline;
/* An image of 8-bit RGB pixels, row after row from the top left. */
typedef struct braid_image braid_image;
/* Reference images encoded together for one adapter: they need the image encoder no more. */
typedef struct braid_encoded_images braid_encoded_images;
/* The images of a request, and what is known of them. */
typedef struct braid_output braid_output;
/* The results of several requests. */
typedef struct braid_batch braid_batch;
/* A flag that stops the requests that have it, and what runs in its scope. */
typedef struct braid_cancel_token braid_cancel_token;
/* A request's prompts, references and sizes as the model takes them, held to be drawn again. */
typedef struct braid_session braid_session;
/* Image to image from frames that follow one another. */
typedef struct braid_stream braid_stream;
/* A frame of a stream that was drawn. */
typedef struct braid_frame braid_frame;
/* Prompts and references that are encoded, to take the place of a request's own. */
typedef struct braid_prepared_prompts braid_prepared_prompts;
/* Sets scales of image prompts while requests are drawn, from any thread. */
typedef struct braid_live_scales braid_live_scales;
/* Exchanges prompts and references while requests are drawn, from any thread. */
typedef struct braid_live_prompts braid_live_prompts;
/* A map of where a reference acted in an image. */
typedef struct braid_attribution_map braid_attribution_map;
/* A queue before a pipeline, which draws requests on a thread of its own. */
typedef struct braid_engine braid_engine;
/* A request in an engine. */
typedef struct braid_ticket braid_ticket;

/* ---- Images ---- */

/* The treatment of transparency: composited on white, as diffusers does, or ignored, the colours taken as they are stored, as DiffSynth
 * does and as masks want it. */
enum { BRAID_ALPHA_ON_WHITE = 0, BRAID_ALPHA_IGNORE = 1 };

/* Makes an image of width * height * 3 bytes; rgb_size, in bytes, must be that. */
BRAID_API braid_status braid_image_new(size_t width, size_t height, const uint8_t *rgb, size_t rgb_size, braid_image **image);
/* Decodes the bytes of a PNG, JPEG, WebP or GIF file. */
BRAID_API braid_status braid_image_decode(const uint8_t *bytes, size_t size, int32_t alpha, braid_image **image);
/* Reads a PNG, JPEG, WebP or GIF file. */
BRAID_API braid_status braid_image_open(const char *path, int32_t alpha, braid_image **image);
BRAID_API size_t braid_image_width(const braid_image *image);
BRAID_API size_t braid_image_height(const braid_image *image);
/* The pixels, width * height * 3 bytes. */
BRAID_API const uint8_t *braid_image_rgb(const braid_image *image);
/* Writes a file whose name ends in .png, .jpg, .jpeg or .webp, whole or not at all. */
BRAID_API braid_status braid_image_save(const braid_image *image, const char *path);
/* The same; a PNG file carries the texts under the keywords "parameters" (the settings, in the style of AUTOMATIC1111's interface) and
 * "braid" (JSON), as the command `braid generate` writes them. NULL: none. Other formats carry none. */
BRAID_API braid_status braid_image_save_with_metadata(
    const braid_image *image, const char *path, const char *parameters, const char *braid);
BRAID_API void braid_image_free(braid_image *image);

/* ---- Pipelines ---- */

/* The files that make a pipeline, and how it runs. NULL and 0 are the defaults unless said otherwise. */
typedef struct braid_pipeline_options {
    size_t struct_size;
    /* A single-file SDXL checkpoint or a diffusers folder; needed. */
    const char *model;
    /* A diffusers folder whose configurations are read, for a single file that does not tell them. */
    const char *config;
    /* A VAE in place of the model's own. */
    const char *vae;
    /* TAESD for SDXL, which decodes in the place of the VAE. */
    const char *taesd;
    /* The image encoder; by default image_encoder/ of the model's folder. */
    const char *clip_vision;
    /* IP-Adapters. */
    const char *const *adapters;
    size_t num_adapters;
    /* LoRAs; braid_request.lora_scales has the scale of each. */
    const char *const *loras;
    size_t num_loras;
    /* Textual inversions. */
    const char *const *embeddings;
    size_t num_embeddings;
    /* "diffusers" (default) or "diffsynth". */
    const char *compat;
    /* "cpu" (default), "cuda", "cuda:N" or "auto". */
    const char *device;
    /* "f32", "f16" or "bf16"; by default f32 on the CPU, f16 on a GPU. */
    const char *dtype;
    /* The same of the VAE; by default that of dtype on the CPU, bf16 on a GPU. */
    const char *vae_dtype;
    /* "int8" for the products of the UNet, on the CPU; "fp8" on GPUs of compute capability 9.0. */
    const char *quantize;
    /* "auto" (default), "keep" or "free": whether a GPU keeps the encoders after use. */
    const char *encoders;
    /* The most images that share an evaluation of the UNet; 0: as many as are worth it. */
    size_t max_batch;
    /* Threads of the CPU; 0: one for each core. */
    size_t threads;
    /* The most bytes of noise that a GPU keeps ready; 512 MiB by default. */
    uint64_t max_noise_bytes;
    /* The most bytes of results that are kept for later requests; 256 MiB by default. */
    uint64_t max_cache_bytes;
    /* The side in pixels of the tiles in which images are decoded and encoded; 0: no tiles. */
    uint32_t vae_tiling;
    /* Whether files are mapped, 1 (default) or 0. A mapped file that is written to while it is in use fails requests with
     * BRAID_ERROR_CHANGED; one that is cut short ends the process (SIGBUS). One that is replaced by a rename stays as it was. */
    uint32_t mmap;
} braid_pipeline_options;

BRAID_API braid_status braid_pipeline_options_init(braid_pipeline_options *options, size_t struct_size);

/* Maps the files and checks that they belong together. */
BRAID_API braid_status braid_pipeline_load(const braid_pipeline_options *options, braid_pipeline **pipeline);
/* The device that the pipeline runs on, such as "cpu". */
BRAID_API size_t braid_pipeline_device(const braid_pipeline *pipeline, char *buffer, size_t size);
/* The data type in which a peer with these options would draw its noise, for braid_request.noise_dtype. */
BRAID_API size_t braid_pipeline_dtype(const braid_pipeline *pipeline, char *buffer, size_t size);
/* What a user should be told, one line each: the choice of device "auto", a faster data type, a quantization that is slow here. */
BRAID_API size_t braid_pipeline_notes(const braid_pipeline *pipeline, char *buffer, size_t size);
BRAID_API size_t braid_pipeline_num_adapters(const braid_pipeline *pipeline);
BRAID_API size_t braid_pipeline_num_loras(const braid_pipeline *pipeline);
/* Width and height that a request without sizes gets. */
BRAID_API braid_status braid_pipeline_default_size(const braid_pipeline *pipeline, size_t *width, size_t *height);
/* The text of the last failure with this pipeline. */
BRAID_API size_t braid_pipeline_last_error(const braid_pipeline *pipeline, char *buffer, size_t size);
BRAID_API void braid_pipeline_free(braid_pipeline *pipeline);

/* ---- Requests ---- */

/* The value of `eta` and `strength` that leaves them to the library. */
#define BRAID_UNSET (-1)

/* A reference: an image, encoded images or an embedding, one of them. */
typedef struct braid_reference {
    size_t struct_size;
    /* An image; it is encoded for each request. */
    const braid_image *image;
    /* Encoded images; each of them is a reference with this weight and this mask. */
    const braid_encoded_images *encoded;
    /* A grey image: white where the reference acts. */
    const braid_image *mask;
    /* Texts whose embeddings are added to the image's, each times its factor: below 0 takes out what the text names. */
    const char *const *texts;
    const float *text_factors;
    size_t num_texts;
    /* 1 by default. */
    float weight;
    uint32_t reserved;
    /* An embedding as the adapter takes it: `image_embeds`; of an IP-Adapter Plus the hidden states, row after row. */
    const float *embedding;
    size_t num_embedding_values;
} braid_reference;

/* The image prompt of one adapter. */
typedef struct braid_image_prompt {
    size_t struct_size;
    const braid_reference *references;
    size_t num_references;
    /* "full" (default), "style", "layout", "style+layout", "composition", "strong-style", "precise-style", or JSON as diffusers'
     * set_ip_adapter_scale takes it. */
    const char *blocks;
    /* "concat" (default), "average" or "add": how several references act together. */
    const char *combine;
    /* "crop" (default), "pad" or "stretch": images that are not square. */
    const char *fit;
    /* The reference of the negative row: an image, encoded images, of which there must be one, or negative_embedding; or none. */
    const braid_image *negative_image;
    const braid_encoded_images *negative_encoded;
    /* The part of the steps in which the adapter acts; 0 to 1 by default. */
    double start;
    double end;
    /* Multiplies the scale of every block; 1 by default. */
    float scale;
    /* Stretches each image to this size before CLIP's own preprocessing; 0 and 0: not. */
    uint32_t resize_width;
    uint32_t resize_height;
    uint32_t reserved;
    const float *negative_embedding;
    size_t num_negative_embedding_values;
} braid_image_prompt;

/* The scales of an adapter from a step on. */
typedef struct braid_scale_change {
    size_t struct_size;
    /* The first model evaluation of an image, from 0, for which they count. */
    size_t step;
    /* The adapter, by its number. */
    size_t adapter;
    /* Those of braid_image_prompt; 1 everywhere by default. */
    const char *blocks;
    float scale;
    uint32_t reserved;
} braid_scale_change;

/* The prompts and references from a step on. */
typedef struct braid_prompt_change {
    size_t struct_size;
    /* The first model evaluation of an image, from 0, for which they count. */
    size_t step;
    /* A request whose prompts and references they are; nothing else of it counts. Needed. */
    const struct braid_request *prompts;
} braid_prompt_change;

/* A request for images. NULL and 0 are the defaults unless said otherwise. */
typedef struct braid_request {
    size_t struct_size;
    /* The description of the image; needed. */
    const char *prompt;
    const char *negative_prompt;
    /* The prompts of the second text encoder; by default the same. */
    const char *prompt_2;
    const char *negative_prompt_2;
    /* "truncate" (default) or "chunks". */
    const char *long_prompts;
    /* "off" (default), "a1111" or "compel". */
    const char *prompt_weights;
    /* In pixels; 0: the model's own, or the size of init_image. */
    size_t width;
    size_t height;
    /* 50 by default. */
    size_t steps;
    /* 1 by default. */
    size_t num_images;
    /* The seed of the first image; image i has seed + i. */
    uint64_t seed;
    /* 5 by default. */
    float guidance_scale;
    float guidance_rescale;
    /* The part of the steps in which there is guidance; 0 to 1 by default. */
    double guidance_start;
    double guidance_end;
    /* One for each adapter of the pipeline, in their order; missing ones leave their adapter unused. */
    const braid_image_prompt *image_prompts;
    size_t num_image_prompts;
    /* The scale of each LoRA of the pipeline, in their order; 1 for those that are missing. */
    const float *lora_scales;
    size_t num_lora_scales;
    /* "euler", "euler-a", "ddim", "dpmpp-2m", "lcm", ...; by default the model's own. */
    const char *scheduler;
    /* "karras", "exponential", ...; by default the scheduler's own. */
    const char *sigma_schedule;
    /* "epsilon" or "v"; by default as configured. */
    const char *prediction_type;
    /* "leading", "trailing" or "linspace"; by default as configured. */
    const char *timestep_spacing;
    /* "cpu" (default) or "cuda": the torch generator that the noise follows, on any device. */
    const char *rng;
    /* The data type in which noise is drawn; "f32" by default, braid_pipeline_dtype has a peer's. */
    const char *noise_dtype;
    /* The image to begin with. */
    const braid_image *init_image;
    /* The part of init_image that is drawn anew: white. */
    const braid_image *mask;
    /* The sizes that the positive row is conditioned on, in pixels: that of the image before it was cropped, where the crop began, and the
     * one that it is said to have. 0 and 0: the image's own. */
    uint32_t original_width;
    uint32_t original_height;
    uint32_t crop_left;
    uint32_t crop_top;
    uint32_t target_width;
    uint32_t target_height;
    /* The same of the negative row; where none is given, those of the positive one. */
    uint32_t negative_original_width;
    uint32_t negative_original_height;
    uint32_t negative_crop_left;
    uint32_t negative_crop_top;
    uint32_t negative_target_width;
    uint32_t negative_target_height;
    /* The part of the steps that is run on init_image, 0 to 1; BRAID_UNSET (default): 0.75. */
    double strength;
    /* DDIM's and TCD's eta, 0 to 1; BRAID_UNSET (default): the scheduler's own. */
    float eta;
    /* Layers that the prompt's embedding skips from the end, beyond the last one. */
    uint32_t clip_skip;
    /* Noise to use in the place of drawing it: for each image 4 * height/8 * width/8 values, before the scheduler's scale. */
    const float *noise;
    size_t num_noise_values;
    /* Scales of image prompts that change between two steps. */
    const braid_scale_change *scale_changes;
    size_t num_scale_changes;
    /* Prompts and references that change between two steps; the last ones of a step count. */
    const braid_prompt_change *prompt_changes;
    size_t num_prompt_changes;
    /* Whether the output has maps of where each reference acted, 0 (default) or 1: the steps take longer, the images are the same. The CPU
     * alone makes them. */
    uint32_t attribution;
    uint32_t reserved;
} braid_request;

BRAID_API braid_status braid_reference_init(braid_reference *reference, size_t struct_size);
BRAID_API braid_status braid_image_prompt_init(braid_image_prompt *prompt, size_t struct_size);
BRAID_API braid_status braid_scale_change_init(braid_scale_change *change, size_t struct_size);
BRAID_API braid_status braid_prompt_change_init(braid_prompt_change *change, size_t struct_size);
BRAID_API braid_status braid_request_init(braid_request *request, size_t struct_size);

/* ---- Callbacks and cancellation ---- */

/* Stages of a request. */
enum {
    BRAID_STAGE_TEXT = 0,
    BRAID_STAGE_IMAGE = 1,
    BRAID_STAGE_ENCODE = 2,
    BRAID_STAGE_CONDITION = 3,
    BRAID_STAGE_DENOISE = 4,
    BRAID_STAGE_DECODE = 5
};

/* The progress of a request. The library sets struct_size: fields beyond it are not there. */
typedef struct braid_progress {
    size_t struct_size;
    /* The image under way, from 0, and how many there are. */
    size_t image;
    size_t num_images;
    /* The steps of the stage that are done, and all of them. */
    size_t done;
    size_t steps;
    /* BRAID_STAGE_*, or -1 for one that this version has no number for. */
    int32_t stage;
    uint32_t reserved;
} braid_progress;

/* A preview of an image under way. The library sets struct_size. */
typedef struct braid_preview {
    size_t struct_size;
    /* It ends with the call. */
    const braid_image *pixels;
    /* The image under way, from 0. */
    size_t image;
    /* The model evaluations of the image that are done, and all of them. */
    size_t done;
    size_t steps;
} braid_preview;

/* An image of a request that is done, while others may be under way. The library sets struct_size. */
typedef struct braid_finished_image {
    size_t struct_size;
    /* It ends with the call. */
    const braid_image *image;
    /* Its number among those of its request, from 0. */
    size_t number;
    uint64_t seed;
    /* As braid_output_upcast_vae. */
    int32_t upcast_vae;
    uint32_t reserved;
} braid_finished_image;

/* Called when a stage begins and after each of its steps. 0 goes on; anything else stops the request, which then gives
 * BRAID_ERROR_CANCELLED. */
typedef int32_t (*braid_progress_fn)(const braid_progress *progress, void *user_data);
/* Called with a preview after each `preview_every` model evaluations; the result is that of braid_progress_fn. */
typedef int32_t (*braid_preview_fn)(const braid_preview *preview, void *user_data);
/* Called with each image as soon as it is done, so that what ends the request later does not lose it; the result is that of
 * braid_progress_fn. The output has all of them once more. */
typedef int32_t (*braid_image_fn)(const braid_finished_image *image, void *user_data);

/* The callbacks of a request. Functions may be NULL. */
typedef struct braid_callbacks {
    size_t struct_size;
    /* Given to the functions. */
    void *user_data;
    braid_progress_fn on_progress;
    braid_preview_fn on_preview;
    /* 1 by default. */
    size_t preview_every;
    /* Stops the request once it is set; a function that stops the request sets it. Not for braid_engine_submit: there
     * braid_ticket_cancel does it. It may be freed at once. */
    const braid_cancel_token *cancel;
    braid_image_fn on_image;
    /* Sets scales, and exchanges prompts, while the request is drawn. Not for braid_engine_submit: there braid_ticket_set_scales and
     * braid_ticket_set_prompts do it. They may be freed at once. */
    const braid_live_scales *live_scales;
    const braid_live_prompts *live_prompts;
    /* A request that has not begun this long after the call, as the pipeline is at work for others, fails with BRAID_ERROR_LATE; negative
     * (default): no deadline. Not for braid_engine_submit: there it is braid_submit_options.deadline_ms. */
    int64_t deadline_ms;
} braid_callbacks;

BRAID_API braid_status braid_callbacks_init(braid_callbacks *callbacks, size_t struct_size);

/* A token that is not set. */
BRAID_API braid_cancel_token *braid_cancel_token_new(void);
/* Stops the requests that have the token at their next step. It stays set. */
BRAID_API void braid_cancel_token_cancel(const braid_cancel_token *token);
/* 1 where it is set, else 0. */
BRAID_API int32_t braid_cancel_token_is_cancelled(const braid_cancel_token *token);
BRAID_API void braid_cancel_token_free(braid_cancel_token *token);

typedef void (*braid_work_fn)(void *user_data);

/* Calls `work` so that the token stops what it does: functions of the library that work calls on this thread, such as braid_pipeline_load,
 * braid_pipeline_prepare and braid_pipeline_encode_references, then fail with BRAID_ERROR_CANCELLED. Scopes may lie within one another;
 * each of their tokens stops the work. `work` must return: no longjmp, no C++ exception. BRAID_OK once it has. */
BRAID_API braid_status braid_cancel_token_scope(const braid_cancel_token *token, braid_work_fn work, void *user_data);

/* ---- Generation ---- */

/* [waits] Generates the images of a request. callbacks may be NULL. */
BRAID_API braid_status braid_pipeline_generate(
    const braid_pipeline *pipeline, const braid_request *request, const braid_callbacks *callbacks, braid_output **output);
/* Generates the images of a request unless it would have to wait for another call: BRAID_ERROR_BUSY then, or BRAID_ERROR_IN_CALLBACK in a
 * callback of this pipeline. callbacks may be NULL. */
BRAID_API braid_status braid_pipeline_try_generate(
    const braid_pipeline *pipeline, const braid_request *request, const braid_callbacks *callbacks, braid_output **output);
/* [waits] Generates the images of several requests, which share evaluations of the model; each has the bytes that it has alone, and what is
 * wrong with one concerns no other. callbacks is NULL or an array of as many. A request that cannot be read fails the call. */
BRAID_API braid_status braid_pipeline_generate_batch(const braid_pipeline *pipeline, const braid_request *requests,
    size_t num_requests, const braid_callbacks *callbacks, braid_batch **batch);
/* [waits] Compiles what requests of this size, guidance and number of references need, and warms it up, so that the first one is as fast as
 * the next. */
BRAID_API braid_status braid_pipeline_prepare(const braid_pipeline *pipeline, const braid_request *request);

/* [waits] Encodes prompts and references that are to take the place of a request's own while it is drawn: braid_live_prompts_set and
 * braid_ticket_set_prompts then exchange them at once. `prompts` is a request whose prompts and references they are; nothing else of it
 * counts. `request`, which need not have begun, is the one that they are for, or one like it: more tokens or references than it has,
 * another adapter or other masks are refused. */
BRAID_API braid_status braid_pipeline_prepare_prompts(const braid_pipeline *pipeline, const braid_request *request,
    const braid_request *prompts, braid_prepared_prompts **prepared);
BRAID_API void braid_prepared_prompts_free(braid_prepared_prompts *prompts);

/* A handle by which nothing is set yet. */
BRAID_API braid_live_scales *braid_live_scales_new(void);
/* Sets the scales of an adapter, by its number; scale and blocks are those of braid_image_prompt. They count from the next step of each
 * image on, and for images that begin later from their first one. A request without an image prompt for the adapter fails at its next step
 * with BRAID_ERROR_PARAMETER, and so does a change from or to "precise-style". */
BRAID_API braid_status braid_live_scales_set(const braid_live_scales *live, size_t adapter, float scale, const char *blocks);
BRAID_API void braid_live_scales_free(braid_live_scales *live);

/* A handle by which nothing is set yet. */
BRAID_API braid_live_prompts *braid_live_prompts_new(void);
/* Sets prompts and references, which count as a whole from the next step of each image on, and for images that begin later from their first
 * one. `prompts` may be freed at once. */
BRAID_API braid_status braid_live_prompts_set(const braid_live_prompts *live, const braid_prepared_prompts *prompts);
BRAID_API void braid_live_prompts_free(braid_live_prompts *live);

/* The number of requests. */
BRAID_API size_t braid_batch_num_results(const braid_batch *batch);
/* Takes the result of a request, once: returns what braid_pipeline_generate would have, and sets braid_last_error likewise. */
BRAID_API braid_status braid_batch_take(const braid_batch *batch, size_t index, braid_output **output);
BRAID_API void braid_batch_free(braid_batch *batch);

BRAID_API size_t braid_output_num_images(const braid_output *output);
/* An image of the output, which it ends with; it must not be freed. */
BRAID_API const braid_image *braid_output_image(const braid_output *output, size_t index);
/* The seed of an image. */
BRAID_API braid_status braid_output_seed(const braid_output *output, size_t index, uint64_t *seed);
/* Whether the VAE of an image ran in f32, as values of its own type were not finite: 1, or 0. */
BRAID_API braid_status braid_output_upcast_vae(const braid_output *output, size_t index, int32_t *upcast);
/* Seconds of a stage (BRAID_STAGE_*), all images together; 0 for one that did not run. */
BRAID_API braid_status braid_output_seconds(const braid_output *output, int32_t stage, double *seconds);
/* Seconds of each step, image after image, and how many there are; they belong to the output. Images that share an evaluation share its
 * seconds. */
BRAID_API const double *braid_output_step_seconds(const braid_output *output, size_t *num_steps);
/* The prompt's tokens beyond the encoder's length, which had no effect. */
BRAID_API size_t braid_output_truncated_tokens(const braid_output *output);
/* The scales that have changed between two steps of an image: those of braid_request.scale_changes, and those that were set while it was
 * drawn. A request with these scale_changes gives the same bytes. */
BRAID_API size_t braid_output_num_scale_changes(const braid_output *output, size_t image);
/* One of them: the first step for which they counted, the adapter, and the scale without its blocks. */
BRAID_API braid_status braid_output_scale_change(
    const braid_output *output, size_t image, size_t index, size_t *step, size_t *adapter, float *scale);
/* The prompts that have changed between two steps of an image, likewise. */
BRAID_API size_t braid_output_num_prompt_changes(const braid_output *output, size_t image);
/* The first step for which they counted. */
BRAID_API braid_status braid_output_prompt_change(const braid_output *output, size_t image, size_t index, size_t *step);
/* Their braid_request.prompt. */
BRAID_API size_t braid_output_prompt_change_prompt(
    const braid_output *output, size_t image, size_t index, char *buffer, size_t size);
/* The maps of where each reference acted, image after image, where braid_request.attribution asked for them. */
BRAID_API size_t braid_output_num_attributions(const braid_output *output);
/* A map of the output, which it ends with. */
BRAID_API const braid_attribution_map *braid_output_attribution(const braid_output *output, size_t index);
BRAID_API void braid_output_free(braid_output *output);

/* A map is of the cross-attentions of one side of the UNet and of one size. A value is the share of the reference in what text and
 * references add there: 0 where it does not act, 1 where nothing else does. */

/* The image of the request, the adapter and the reference of its image prompt (0 for all where they are averaged), each from 0. */
BRAID_API size_t braid_attribution_map_image(const braid_attribution_map *map);
BRAID_API size_t braid_attribution_map_adapter(const braid_attribution_map *map);
BRAID_API size_t braid_attribution_map_reference(const braid_attribution_map *map);
/* The group, such as "down 64x64": "down", "mid" or "up" with width and height. */
BRAID_API size_t braid_attribution_map_group(const braid_attribution_map *map, char *buffer, size_t size);
BRAID_API size_t braid_attribution_map_width(const braid_attribution_map *map);
BRAID_API size_t braid_attribution_map_height(const braid_attribution_map *map);
/* The values, width * height, row after row. */
BRAID_API const float *braid_attribution_map_values(const braid_attribution_map *map);
/* Makes an image of that size: from black for 0 by way of red and yellow to white for `most` and above. */
BRAID_API braid_status braid_attribution_map_heat_map(
    const braid_attribution_map *map, size_t width, size_t height, float most, braid_image **image);

/* ---- Sessions ---- */

/* [waits] Prepares a request that is to be drawn more than once: compiles what it runs, and holds its encoded prompts and references. */
BRAID_API braid_status braid_pipeline_session(const braid_pipeline *pipeline, const braid_request *request, braid_session **session);
/* [waits] Generates the images of a request, the same as braid_pipeline_generate does; request is NULL for the one that was prepared. It is
 * meant to be that one with other values of what costs nothing: seed, number of images, scales, start and end of an adapter, masks,
 * guidance above 1. Other steps or another scheduler cost the embeddings of their timesteps; whatever else differs is computed as for a
 * request of its own. callbacks may be NULL. */
BRAID_API braid_status braid_session_generate(
    const braid_session *session, const braid_request *request, const braid_callbacks *callbacks, braid_output **output);
/* [waits] braid_pipeline_prepare_prompts for the session's request. */
BRAID_API braid_status braid_session_prepare_prompts(
    const braid_session *session, const braid_request *prompts, braid_prepared_prompts **prepared);
/* The text of the last failure with this session. */
BRAID_API size_t braid_session_last_error(const braid_session *session, char *buffer, size_t size);
BRAID_API void braid_session_free(braid_session *session);

/* ---- Streams ---- */

/* Gives the next image of a stream, of the size of the request's init_image; NULL at the end, after which it is not called again. An image
 * that it returns is the library's, which frees it. */
typedef braid_image *(*braid_image_source_fn)(void *user_data);

/* The settings of a stream. */
typedef struct braid_stream_options {
    size_t struct_size;
    /* Sets scales, and exchanges prompts: each frame has those that are set when it begins. They may be freed at once. */
    const braid_live_scales *live_scales;
    const braid_live_prompts *live_prompts;
    /* Whether frame i has the request's seed + i, 0 (default) or 1. */
    uint32_t seed_per_frame;
    /* Whether frames share evaluations, each a step behind the one before, 0 (default) or 1: they come more often then, and each later; the
     * bytes are the same. */
    uint32_t overlap;
} braid_stream_options;

BRAID_API braid_status braid_stream_options_init(braid_stream_options *options, size_t struct_size);

/* Draws images by the session's request, whose init_image is one of their size and is not drawn itself, as image to image. Nothing happens
 * before braid_stream_next. options may be NULL. user_data must last until braid_stream_free has returned. */
BRAID_API braid_status braid_session_stream(const braid_session *session, braid_image_source_fn source, void *user_data,
    const braid_stream_options *options, braid_stream **stream);
/* [waits] Gives the next frame, or NULL with BRAID_OK at the end. It asks the source for an image where there is room for one. A frame that
 * cannot be drawn gives BRAID_ERROR_FRAME, and the next call the next one. Between two calls the pipeline is free for other requests. */
BRAID_API braid_status braid_stream_next(const braid_stream *stream, braid_frame **frame);
/* The text of the last failure with this stream. */
BRAID_API size_t braid_stream_last_error(const braid_stream *stream, char *buffer, size_t size);
/* Called from a callback it does nothing but set braid_last_error. */
BRAID_API void braid_stream_free(braid_stream *stream);

/* The frame's number in the stream, from 0. */
BRAID_API uint64_t braid_frame_number(const braid_frame *frame);
/* The seconds from when the stream took the frame's image until it was drawn. */
BRAID_API double braid_frame_latency(const braid_frame *frame);
/* The result of the frame's request, with one image; the frame's, which it ends with. */
BRAID_API const braid_output *braid_frame_output(const braid_frame *frame);
BRAID_API void braid_frame_free(braid_frame *frame);

/* ---- Encoded images ---- */

/* [waits] Encodes the references of an image prompt for an adapter, by its number from 0, as its fit and size say; they then take the
 * references' place without the image encoder and with the same result. */
BRAID_API braid_status braid_pipeline_encode_references(
    const braid_pipeline *pipeline, size_t adapter, const braid_image_prompt *prompt, braid_encoded_images **encoded);
/* Reads an image-prompt file, `braid encode-image` writes them, too. */
BRAID_API braid_status braid_encoded_images_load(const char *path, braid_encoded_images **encoded);
/* Writes an image-prompt file, whole or not at all. */
BRAID_API braid_status braid_encoded_images_save(const braid_encoded_images *encoded, const char *path);
BRAID_API size_t braid_encoded_images_count(const braid_encoded_images *encoded);
/* The embedding of one of them, of num_values values, which belongs to the handle: what braid_reference.embedding takes. */
BRAID_API const float *braid_encoded_images_embedding(const braid_encoded_images *encoded, size_t index, size_t *num_values);
/* The image tokens that the adapter makes of one of them. */
BRAID_API size_t braid_encoded_images_num_tokens(const braid_encoded_images *encoded, size_t index);
/* Width and height of the image that was encoded. */
BRAID_API braid_status braid_encoded_images_source_size(
    const braid_encoded_images *encoded, size_t index, size_t *width, size_t *height);
BRAID_API void braid_encoded_images_free(braid_encoded_images *encoded);

/* ---- Engines ---- */

/* The policy of an engine. */
typedef struct braid_engine_options {
    size_t struct_size;
    /* The most requests that wait, 64 by default. More are refused with BRAID_ERROR_BUSY. */
    size_t max_waiting;
    /* The most requests that are drawn at once, 8 by default. */
    size_t max_running;
    /* The time that the first request waits for others to begin with it; 0 by default. */
    uint64_t gather_ms;
    /* A request that has waited so long counts as one of the next higher priority; 10 s by default. */
    uint64_t aging_ms;
} braid_engine_options;

/* The settings of a request in the queue. */
typedef struct braid_submit_options {
    size_t struct_size;
    /* A request that has not begun this long after braid_engine_submit fails with BRAID_ERROR_LATE; negative (default): no deadline. */
    int64_t deadline_ms;
    /* May be NULL. user_data must last, and the functions may be called on the engine's thread, until braid_ticket_wait has given
     * the result, or braid_ticket_free or braid_engine_free has returned. */
    const braid_callbacks *callbacks;
    /* Requests of a higher priority begin first; 0 by default. */
    int32_t priority;
    uint32_t reserved;
} braid_submit_options;

BRAID_API braid_status braid_engine_options_init(braid_engine_options *options, size_t struct_size);
BRAID_API braid_status braid_submit_options_init(braid_submit_options *options, size_t struct_size);

/* Starts an engine that draws with a pipeline, which may be used beside it, or freed. options may be NULL. */
BRAID_API braid_status braid_engine_new(const braid_pipeline *pipeline, const braid_engine_options *options, braid_engine **engine);
/* Puts a request into the queue. options may be NULL. */
BRAID_API braid_status braid_engine_submit(
    const braid_engine *engine, const braid_request *request, const braid_submit_options *options, braid_ticket **ticket);
/* The number of requests that wait, and that are drawn. */
BRAID_API size_t braid_engine_waiting(const braid_engine *engine);
BRAID_API size_t braid_engine_running(const braid_engine *engine);
/* [waits] Takes no more requests, and returns when all that were submitted are done. */
BRAID_API braid_status braid_engine_drain(const braid_engine *engine);
/* The text of the last failure with this engine. */
BRAID_API size_t braid_engine_last_error(const braid_engine *engine, char *buffer, size_t size);
/* Cancels all requests of the engine and waits for its thread. Called from a callback it does nothing but set braid_last_error. */
BRAID_API void braid_engine_free(braid_engine *engine);

enum { BRAID_TICKET_WAITING = 0, BRAID_TICKET_RUNNING = 1, BRAID_TICKET_DONE = 2 };

/* [waits] Waits for the result so many milliseconds at most (negative: as long as it takes) and takes it. BRAID_ERROR_TIMEOUT where it is
 * not there by then; else what braid_pipeline_generate would have returned, or BRAID_ERROR_LATE, _STOPPED or _PANICKED. */
BRAID_API braid_status braid_ticket_wait(const braid_ticket *ticket, int64_t timeout_ms, braid_output **output);
/* Stops the request: at once where it waits, at its next step where it runs. */
BRAID_API braid_status braid_ticket_cancel(const braid_ticket *ticket);
/* BRAID_TICKET_*, and, where it waits, how many requests would begin before it now. ahead may be NULL. */
BRAID_API braid_status braid_ticket_state(const braid_ticket *ticket, int32_t *state, size_t *ahead);
/* Sets the scales of an adapter, by its number, from the next step on; scale and blocks are those of braid_image_prompt. */
BRAID_API braid_status braid_ticket_set_scales(const braid_ticket *ticket, size_t adapter, float scale, const char *blocks);
/* Exchanges prompts and references from the next step on; `prompts` may be freed at once. braid_pipeline_prepare_prompts encodes them. */
BRAID_API braid_status braid_ticket_set_prompts(const braid_ticket *ticket, const braid_prepared_prompts *prompts);
/* The text of the last failure with this ticket. */
BRAID_API size_t braid_ticket_last_error(const braid_ticket *ticket, char *buffer, size_t size);
/* Cancels the request where it is not done. Its callbacks are called no more once this has returned, unless this is called from one. */
BRAID_API void braid_ticket_free(braid_ticket *ticket);

#ifdef __cplusplus
}
#endif

#endif /* BRAID_H */
