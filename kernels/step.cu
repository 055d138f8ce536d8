// The work between two evaluations of the model, and the conversion to pixels. Latents and the model's output are f32.
//   model_input       the model's rows: input_scale * x of every image, for its positive and, where guided, its negative row
//   step_inputs       the inputs that vary from step to step: each row gets its image's values of the image's step
//   guidance_moments  mean and squared deviations of chunks of the positive and of the guided output; the first half of
//                     guidance rescale, done only where an image asks for it
//   step              guidance, rescale, the scheduler's step; marks the images that are no longer finite
//   step_advance      the step counters, once everything of a step has read them
//   rgb8              [-1, 1] to bytes
//   finite            marks a tensor that holds NaN or infinity
//
// Shapes     images: an ImageState for each image that an evaluation has room for; x is null where there is none. Each image has memory,
//            table and step of its own: x [n] f32; history [3, n]; noise [steps, n]; table [steps, 36]: timestep, input_scale,
//            x0_from_x, x0_from_output, clip (infinity: none), x_from_x, x_from_output, x_from_x0, noise, x_from_history [3]; for each
//            history tensor from_x, from_output, from_x0, noise, from_history [3]; masks of the history tensors read and written, one
//            of padding (src/schedulers/mod.rs has the form); guidance: scale, rescale; step: the step's number, then the first step
//            whose result is not finite, which the host sets to 0x7fffffff.
//            The model's rows: an image's positive one is row `first`, with `rows` of 2 its negative one is the next.
//            extra [n / (channels + extra_channels), extra_channels]: after the latents of each pixel of the model's input, which then
//            has n elements, x fewer. kept [3, n]: an inpainting's mask, image latents and noise; kept_levels [steps, 2]: alpha,
//            sigma. Where one of a step's two is not 0, the mask takes the step's result where it is 1, and alpha * image + sigma *
//            noise where it is 0.
//            varying: the inputs one after the other, each [steps, held, width] or, where `last` is set, [steps, width, held]; of
//            `held` rows an evaluation may take the first alone. They go to the element `at` of floats, [rows, width] or [width,
//            rows], and below converted_count to converted.
//            moments [images, chunks, 4]: mean, squares of the positive, mean, squares of the guided; chunk = 2048 elements.
// Device values: the images with all that they point to. So one captured graph serves all images, steps, scales and schedulers.
// Grid       model_input, step: (ceil(n / 1024), images); step_inputs: (inputs, rows); guidance_moments: (chunks, images); rgb8, finite:
//            ceil(count / 1024); all 256 threads. step_advance: an image a block of 1 thread.
// Shared     static: guidance_moments 6,144 bytes, step 4.
// Requires   nothing of n or of alignment. history may be null where no row uses it, noise and kept where no row weighs them, extra
//            where the model's input is the latents alone, kept_levels where nothing is kept, varying where no input varies.
//            A weight of zero skips its operand, which may be unwritten.
// Source     src/schedulers: `step` and `classifier_free_guidance` are the reference; rescale after Lin et al. 2023, section 3.4.
#include "half.cuh"
#include "reduce.cuh"

constexpr int COLUMNS = 36;
constexpr int HISTORY = 3;
constexpr int CHUNK = 2048;

struct ImageState {
    float* x;
    float* history;
    const float* noise;
    const float* table;
    const float* guidance;
    const float* kept;
    const float* kept_levels;
    const float* extra;
    const float* varying;
    int* step;
    int first;
    int rows;
    int held;
    int steps;
};

// An input that varies from step to step.
struct VaryingInput {
    i64 at;
    int start;  // the widths of those before it
    int width;  // elements of a row
    int last;   // the rows are the last dimension
    int reserved;
};

struct ModelInputParams {
    const ImageState* images;
    void* out;
    int n;
    int channels;
    int extra_channels;
    int reserved;
};

struct StepInputsParams {
    const ImageState* images;
    const VaryingInput* inputs;
    float* floats;
    void* converted;
    i64 converted_count;
    int count;  // of images
    int rows;
};

struct StepParams {
    const ImageState* images;
    const float* output;
    float* moments;
    int n;
    int reserved;
};

struct AdvanceParams {
    const ImageState* images;
};

struct Rgb8Params {
    const float* x;
    unsigned char* out;
    i64 count;
    int truncate;
    int reserved;
};

struct FiniteParams {
    const void* x;
    int* flag;
    i64 count;
    int value;
    int reserved;
};

struct HistoryWeights {
    float x, output, x0, noise, history[HISTORY];
};

struct Step {
    float timestep, input_scale, x0_from_x, x0_from_output, clip, x_from_x, x_from_output, x_from_x0, noise, x_from_history[HISTORY];
    HistoryWeights history[HISTORY];
    unsigned reads, writes, padding;
};
static_assert(sizeof(Step) == COLUMNS * 4, "a row of the table");

// The number of an image's step; one past the table's end takes the last row.
__device__ __forceinline__ int number_of(const ImageState& image) {
    return min(*image.step, image.steps - 1);
}

__device__ __forceinline__ const Step& row_of(const ImageState& image, int number) {
    return *(const Step*)(image.table + (i64)number * COLUMNS);
}

// Element i of an image's latents with the extra channels.
__device__ __forceinline__ float joined_input(const ModelInputParams& p, const ImageState& image, int i, float scale) {
    int width = p.channels + p.extra_channels, pixel = i / width, c = i % width;
    return c < p.channels ? image.x[pixel * p.channels + c] * scale : image.extra[pixel * p.extra_channels + c - p.channels];
}

template <class T>
__device__ __forceinline__ void model_input(const ModelInputParams& p) {
    const ImageState image = p.images[blockIdx.y];
    if (!image.x) return;
    float scale = row_of(image, number_of(image)).input_scale;
    for (int j = 0; j < 4; j++) {
        int i = blockIdx.x * 1024 + j * 256 + threadIdx.x;
        if (i >= p.n) return;
        T value = Stored<T>::from(p.extra_channels ? joined_input(p, image, i, scale) : image.x[i] * scale);
        T* to = (T*)p.out + (i64)image.first * p.n + i;
        to[0] = value;
        if (image.rows == 2) to[p.n] = value;
    }
}

template <class T>
__device__ __forceinline__ void step_inputs(const StepInputsParams& p) {
    const VaryingInput input = p.inputs[blockIdx.x];
    int row = blockIdx.y;
    for (int i = 0; i < p.count; i++) {
        const ImageState image = p.images[i];
        int own = row - image.first;
        if (!image.x || own < 0 || own >= image.rows) continue;
        i64 before = (i64)input.start * image.steps + (i64)number_of(image) * input.width;
        const float* from = image.varying + before * image.held;
        for (int e = threadIdx.x; e < input.width; e += 256) {
            float value = from[input.last ? e * image.held + own : own * input.width + e];
            i64 to = input.at + (input.last ? (i64)e * p.rows + row : (i64)row * input.width + e);
            p.floats[to] = value;
            if (to < p.converted_count) ((T*)p.converted)[to] = Stored<T>::from(value);
        }
    }
}

__device__ __forceinline__ float guided(float positive, float negative, float scale) {
    return negative + scale * (positive - negative);
}

// The moments of this thread's 8 values, of which `count` are there.
__device__ __forceinline__ Moments moments_of(const float (&x)[8], int count) {
    if (count == 0) return Moments{0.0f, 0.0f, 0.0f};
    float sum = 0.0f, squares = 0.0f;
#pragma unroll
    for (int j = 0; j < 8; j++) sum += j < count ? x[j] : 0.0f;
    float mean = sum / count;
#pragma unroll
    for (int j = 0; j < 8; j++) squares += j < count ? (x[j] - mean) * (x[j] - mean) : 0.0f;
    return Moments{(float)count, mean, squares};
}

extern "C" __global__ __launch_bounds__(256) void guidance_moments_f32(const __grid_constant__ StepParams p) {
    after_last_launch();
    __shared__ Moments memory[2][256];
    const ImageState image = p.images[blockIdx.y];
    if (!image.x || image.rows != 2) return;
    float scale = image.guidance[0], rescale = image.guidance[1];
    if (rescale <= 0.0f) return;
    const float* output = p.output + (i64)image.first * p.n;
    float positive[8], both[8];
    int count = 0;
#pragma unroll
    for (int j = 0; j < 8; j++) {
        int i = blockIdx.x * CHUNK + j * 256 + threadIdx.x;
        if (i < p.n) {
            positive[j] = output[i];
            both[j] = guided(positive[j], output[p.n + i], scale);
            count = j + 1;
        }
    }
    Moments wanted = block_moments<256>(moments_of(positive, count), memory[0]);
    Moments found = block_moments<256>(moments_of(both, count), memory[1]);
    if (threadIdx.x == 0) {
        float* to = p.moments + ((i64)blockIdx.y * gridDim.x + blockIdx.x) * 4;
        to[0] = wanted.mean, to[1] = wanted.squares, to[2] = found.mean, to[3] = found.squares;
    }
}

// The standard deviation of the positive output by that of the guided one, or 0 where the latter is 0.
__device__ __forceinline__ float deviation_ratio(const StepParams& p) {
    int chunks = (p.n + CHUNK - 1) / CHUNK;
    Moments wanted = {0.0f, 0.0f, 0.0f}, found = wanted;
    for (int i = 0; i < chunks; i++) {
        const float* from = p.moments + ((i64)blockIdx.y * chunks + i) * 4;
        float count = min(CHUNK, p.n - i * CHUNK);
        wanted = joined(wanted, Moments{count, from[0], from[1]});
        found = joined(found, Moments{count, from[2], from[3]});
    }
    return found.squares > 0.0f ? sqrtf(wanted.squares) / sqrtf(found.squares) : 0.0f;
}

__device__ __forceinline__ bool adds_noise(const Step& row) {
    return row.noise != 0.0f || row.history[0].noise != 0.0f || row.history[1].noise != 0.0f || row.history[2].noise != 0.0f;
}

// A weight of zero skips its operand.
__device__ __forceinline__ float added(float sum, float from_x0, float x0, const float* from_history, const float (&history)[HISTORY],
                                       float from_noise, float noise) {
    if (from_x0 != 0.0f) sum += from_x0 * x0;
#pragma unroll
    for (int k = 0; k < HISTORY; k++)
        if (from_history[k] != 0.0f) sum += from_history[k] * history[k];
    if (from_noise != 0.0f) sum += from_noise * noise;
    return sum;
}

extern "C" __global__ __launch_bounds__(256) void step_f32(const __grid_constant__ StepParams p) {
    after_last_launch();
    __shared__ float shared_ratio;
    const ImageState image = p.images[blockIdx.y];
    if (!image.x) return;
    int number = number_of(image);
    const Step& row = row_of(image, number);
    bool both = image.rows == 2;
    float scale = image.guidance[0], rescale = image.guidance[1], ratio = 0.0f;
    if (both && rescale > 0.0f) {
        if (threadIdx.x == 0) shared_ratio = deviation_ratio(p);
        __syncthreads();
        ratio = shared_ratio;
    }
    const float* output = p.output + (i64)image.first * p.n;
    const float* noise = image.noise && adds_noise(row) ? image.noise + (i64)number * p.n : nullptr;
    float alpha = 0.0f, sigma = 0.0f;
    if (image.kept_levels) alpha = image.kept_levels[2 * (i64)number], sigma = image.kept_levels[2 * (i64)number + 1];
    i64 slot = p.n;
    bool bad = false;
    for (int j = 0; j < 4; j++) {
        int i = blockIdx.x * 1024 + j * 256 + threadIdx.x;
        if (i >= p.n) break;
        float out = output[i];
        if (both) {
            out = guided(out, output[p.n + i], scale);
            if (ratio > 0.0f) out = rescale * (out * ratio) + (1.0f - rescale) * out;
        }
        float x = image.x[i], x0 = row.x0_from_x * x + row.x0_from_output * out;
        // Comparisons that keep NaN.
        x0 = x0 > row.clip ? row.clip : x0 < -row.clip ? -row.clip : x0;
        float fresh = noise ? noise[i] : 0.0f;
        float history[HISTORY];
#pragma unroll
        for (int k = 0; k < HISTORY; k++) history[k] = row.reads >> k & 1 ? image.history[k * slot + i] : 0.0f;
        float next = row.x_from_x * x + row.x_from_output * out;
        next = added(next, row.x_from_x0, x0, row.x_from_history, history, row.noise, fresh);
#pragma unroll
        for (int k = 0; k < HISTORY; k++) {
            if (!(row.writes >> k & 1)) continue;
            const HistoryWeights& to = row.history[k];
            image.history[k * slot + i] = added(to.x * x + to.output * out, to.x0, x0, to.history, history, to.noise, fresh);
        }
        if (alpha != 0.0f || sigma != 0.0f) {
            float mask = image.kept[i], kept = alpha * image.kept[slot + i] + sigma * image.kept[2 * slot + i];
            next = (1.0f - mask) * kept + mask * next;
        }
        image.x[i] = next;
        bad |= !(fabsf(next) <= 3.4028234663852886e38f);
    }
    if (__syncthreads_or(bad) && threadIdx.x == 0) atomicMin(image.step + 1, number);
}

extern "C" __global__ __launch_bounds__(1) void step_advance_f32(const __grid_constant__ AdvanceParams p) {
    after_last_launch();
    const ImageState& image = p.images[blockIdx.x];
    if (image.x) ++*image.step;
}

extern "C" __global__ __launch_bounds__(256) void rgb8_f32(const __grid_constant__ Rgb8Params p) {
    after_last_launch();
    for (int j = 0; j < 4; j++) {
        i64 i = (i64)blockIdx.x * 1024 + j * 256 + threadIdx.x;
        if (i >= p.count) return;
        float x = p.x[i] * 0.5f + 0.5f;
        // NaN becomes 0.
        x = (x > 0.0f ? x < 1.0f ? x : 1.0f : 0.0f) * 255.0f;
        p.out[i] = (unsigned char)(p.truncate ? x : rintf(x));
    }
}

template <class T>
__device__ __forceinline__ void finite(const FiniteParams& p) {
    bool bad = false;
    for (int j = 0; j < 4; j++) {
        i64 i = (i64)blockIdx.x * 1024 + j * 256 + threadIdx.x;
        if (i < p.count) bad |= !(fabsf(to_f32(((const T*)p.x)[i])) <= 3.4028234663852886e38f);
    }
    if (__syncthreads_or(bad) && threadIdx.x == 0) atomicMin(p.flag, p.value);
}

#define KERNEL(PARAMS, CALL, NAME) \
    extern "C" __global__ __launch_bounds__(256) void NAME(const __grid_constant__ PARAMS p) { after_last_launch(); CALL(p); }

KERNEL(ModelInputParams, model_input<f16>, model_input_f16)
KERNEL(ModelInputParams, model_input<bf16>, model_input_bf16)
KERNEL(StepInputsParams, step_inputs<f16>, step_inputs_f16)
KERNEL(StepInputsParams, step_inputs<bf16>, step_inputs_bf16)
KERNEL(FiniteParams, finite<f16>, finite_f16)
KERNEL(FiniteParams, finite<bf16>, finite_bf16)
KERNEL(FiniteParams, finite<float>, finite_f32)
