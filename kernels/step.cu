// The work between two evaluations of the model, and the conversion to pixels. Latents and the model's output are f32.
//   model_input       the model's rows: input_scale * x of every image, for its positive and, where guided, its negative row
//   guidance_moments  mean and squared deviations of chunks of the positive and of the guided output; the first half of
//                     guidance rescale, done only where an image asks for it
//   step              guidance, rescale, the scheduler's step; marks the images that are no longer finite
//   step_advance      the step counter, once everything of a step has read it
//   rgb8              [-1, 1] to bytes
//   finite            marks a tensor that holds NaN or infinity
//
// Shapes     x [images, n] f32; history [3, images, n]; noise [noise_slots, images, n], step s takes slot s % noise_slots; table
//            [steps, 36]: timestep, input_scale, x0_from_x, x0_from_output, clip (infinity: none), x_from_x, x_from_output,
//            x_from_x0, noise, x_from_history [3]; for each history tensor from_x, from_output, from_x0, noise, from_history [3];
//            masks of the history tensors read and written, one of padding (src/schedulers/mod.rs has the form); guidance
//            [images, 2]: scale, rescale.
//            The model's rows: image i's positive one begins at i * image_stride, its negative one `negative` further on.
//            extra [images, n / (channels + extra_channels), extra_channels]: after the latents of each pixel of the model's input,
//            which then has n elements, x fewer. kept [3, images, n]: an inpainting's mask, image latents and noise; kept_levels
//            [steps, 2]: alpha, sigma. Where one of a step's two is not 0, the mask takes the step's result where it is 1, and
//            alpha * image + sigma * noise where it is 0.
//            moments [images, chunks, 4]: mean, squares of the positive, mean, squares of the guided; chunk = 2048 elements.
//            not_finite [images]: the host sets it to 0x7fffffff; becomes the first step whose result is not finite.
// Device values: the step's number, the table, guidance. So one captured graph serves every step, scale and scheduler.
// Grid       model_input, step: (ceil(n / 1024), images); guidance_moments: (chunks, images); rgb8, finite: ceil(count / 1024); all
//            256 threads. step_advance: 1 block of 1 thread.
// Shared     static: guidance_moments 6,144 bytes, step 4.
// Requires   nothing of n or of alignment. history may be null where no row uses it, noise and kept where no row weighs them, extra
//            where the model's input is the latents alone, kept_levels where nothing is kept.
//            A weight of zero skips its operand, which may be unwritten.
// Source     src/schedulers: `step` and `classifier_free_guidance` are the reference; rescale after Lin et al. 2023, section 3.4.
#include "half.cuh"
#include "reduce.cuh"

constexpr int COLUMNS = 36;
constexpr int HISTORY = 3;
constexpr int CHUNK = 2048;

struct ModelInputParams {
    const float* x;
    void* out;
    const float* table;
    const int* step;
    i64 image_stride;
    i64 negative;  // 0: not guided
    int n;
    int steps;
    const float* extra;
    int channels;
    int extra_channels;
};

struct StepParams {
    float* x;
    const float* output;
    float* history;
    const float* noise;
    const float* table;
    const float* guidance;
    float* moments;
    const int* step;
    int* not_finite;
    i64 image_stride;
    i64 negative;  // 0: not guided
    int n;
    int images;
    int steps;
    int noise_slots;
    const float* kept;
    const float* kept_levels;
};

struct AdvanceParams {
    int* step;
    int* progress;  // null, or memory of the host
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

__device__ __forceinline__ const Step& row_of(const float* table, int step, int steps) {
    return *(const Step*)(table + min(step, steps - 1) * COLUMNS);
}

// Element i of an image's latents with the extra channels.
__device__ __forceinline__ float joined_input(const ModelInputParams& p, i64 image, int i, float scale) {
    int width = p.channels + p.extra_channels, pixel = i / width, c = i % width;
    i64 at = image * (p.n / width) + pixel;
    return c < p.channels ? p.x[at * p.channels + c] * scale : p.extra[at * p.extra_channels + c - p.channels];
}

template <class T>
__device__ __forceinline__ void model_input(const ModelInputParams& p) {
    float scale = row_of(p.table, *p.step, p.steps).input_scale;
    i64 image = blockIdx.y;
    for (int j = 0; j < 4; j++) {
        int i = blockIdx.x * 1024 + j * 256 + threadIdx.x;
        if (i >= p.n) return;
        T value = Stored<T>::from(p.extra ? joined_input(p, image, i, scale) : p.x[image * p.n + i] * scale);
        T* to = (T*)p.out + image * p.image_stride + i;
        to[0] = value;
        if (p.negative) to[p.negative] = value;
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
    __shared__ Moments memory[2][256];
    i64 image = blockIdx.y;
    float scale = p.guidance[image * 2], rescale = p.guidance[image * 2 + 1];
    if (rescale <= 0.0f || p.negative == 0) return;
    const float* output = p.output + image * p.image_stride;
    float positive[8], both[8];
    int count = 0;
#pragma unroll
    for (int j = 0; j < 8; j++) {
        int i = blockIdx.x * CHUNK + j * 256 + threadIdx.x;
        if (i < p.n) {
            positive[j] = output[i];
            both[j] = guided(positive[j], output[p.negative + i], scale);
            count = j + 1;
        }
    }
    Moments wanted = block_moments<256>(moments_of(positive, count), memory[0]);
    Moments found = block_moments<256>(moments_of(both, count), memory[1]);
    if (threadIdx.x == 0) {
        float* to = p.moments + (image * gridDim.x + blockIdx.x) * 4;
        to[0] = wanted.mean, to[1] = wanted.squares, to[2] = found.mean, to[3] = found.squares;
    }
}

// The standard deviation of the positive output by that of the guided one, or 0 where the latter is 0.
__device__ __forceinline__ float deviation_ratio(const StepParams& p, i64 image) {
    int chunks = (p.n + CHUNK - 1) / CHUNK;
    Moments wanted = {0.0f, 0.0f, 0.0f}, found = wanted;
    for (int i = 0; i < chunks; i++) {
        const float* from = p.moments + (image * chunks + i) * 4;
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
    __shared__ float shared_ratio;
    i64 image = blockIdx.y;
    int number = *p.step;
    const Step& row = row_of(p.table, number, p.steps);
    float scale = p.guidance[image * 2], rescale = p.guidance[image * 2 + 1], ratio = 0.0f;
    if (p.negative && rescale > 0.0f) {
        if (threadIdx.x == 0) shared_ratio = deviation_ratio(p, image);
        __syncthreads();
        ratio = shared_ratio;
    }
    const float* output = p.output + image * p.image_stride;
    const float* noise = p.noise ? p.noise + ((i64)(number % p.noise_slots) * p.images + image) * p.n : p.noise;
    bool bad = false;
    for (int j = 0; j < 4; j++) {
        int i = blockIdx.x * 1024 + j * 256 + threadIdx.x;
        if (i >= p.n) break;
        float out = output[i];
        if (p.negative) {
            out = guided(out, output[p.negative + i], scale);
            if (ratio > 0.0f) out = rescale * (out * ratio) + (1.0f - rescale) * out;
        }
        i64 at = image * p.n + i;
        float x = p.x[at], x0 = row.x0_from_x * x + row.x0_from_output * out;
        // Comparisons that keep NaN.
        x0 = x0 > row.clip ? row.clip : x0 < -row.clip ? -row.clip : x0;
        float fresh = noise && adds_noise(row) ? noise[i] : 0.0f;
        float history[HISTORY];
        i64 slot = (i64)p.images * p.n;
#pragma unroll
        for (int k = 0; k < HISTORY; k++) history[k] = row.reads >> k & 1 ? p.history[k * slot + at] : 0.0f;
        float next = row.x_from_x * x + row.x_from_output * out;
        next = added(next, row.x_from_x0, x0, row.x_from_history, history, row.noise, fresh);
#pragma unroll
        for (int k = 0; k < HISTORY; k++) {
            if (!(row.writes >> k & 1)) continue;
            const HistoryWeights& to = row.history[k];
            p.history[k * slot + at] = added(to.x * x + to.output * out, to.x0, x0, to.history, history, to.noise, fresh);
        }
        if (p.kept_levels) {
            const float* level = p.kept_levels + 2 * min(number, p.steps - 1);
            float alpha = level[0], sigma = level[1];
            if (alpha != 0.0f || sigma != 0.0f) {
                float mask = p.kept[at], kept = alpha * p.kept[slot + at] + sigma * p.kept[2 * slot + at];
                next = (1.0f - mask) * kept + mask * next;
            }
        }
        p.x[at] = next;
        bad |= !(fabsf(next) <= 3.4028234663852886e38f);
    }
    if (__syncthreads_or(bad) && threadIdx.x == 0) atomicMin(p.not_finite + image, number);
}

extern "C" __global__ __launch_bounds__(1) void step_advance_f32(const __grid_constant__ AdvanceParams p) {
    int next = *p.step + 1;
    *p.step = next;
    if (p.progress) {
        *(volatile int*)p.progress = next;
        __threadfence_system();
    }
}

extern "C" __global__ __launch_bounds__(256) void rgb8_f32(const __grid_constant__ Rgb8Params p) {
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
    extern "C" __global__ __launch_bounds__(256) void NAME(const __grid_constant__ PARAMS p) { CALL(p); }

KERNEL(ModelInputParams, model_input<f16>, model_input_f16)
KERNEL(ModelInputParams, model_input<bf16>, model_input_bf16)
KERNEL(FiniteParams, finite<f16>, finite_f16)
KERNEL(FiniteParams, finite<bf16>, finite_bf16)
KERNEL(FiniteParams, finite<float>, finite_f32)
