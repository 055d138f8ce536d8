// Decoupled cross-attention with heads of 64 values on sm_90a, as decoupled.cu's: out = sum over branches s of
// w_s softmax(Q K_s^T / sqrt(64)) V_s.
//
// Shapes     those of decoupled.cu with dim = 64; its rules for counts, scales and masks hold.
// Maps       of f16 or bf16, dimensions 64, tokens, heads, B, rows of 128 bytes swizzled: q in tiles of 128 tokens, out of 64.
// Grid       min(tiles, multiprocessors), 384 threads; a tile is 128 queries of a head, and a block has consecutive ones. Tiles are
//            independent; no result depends on B.
// Tiling     the keys and values of all active branches of a head, up to 320, lie in shared memory together while the block's tiles of that
//            head go by; more are copied in several fills for each tile. Q is read once, the result written once. 128 threads copy them,
//            rounded up to 16 keys a branch with zeros, and Q; two groups of 128 threads have 64 queries each. A branch's keys are
//            multiplied by 80 (77 text tokens), its last ones by 16, and its parts are multiples of 80, so that no other branch
//            changes its order.
// Shared     dynamic: DecoupledSm90::SHARED_BYTES, of 1,024-byte alignment.
// Requires   what the maps do; 16-byte aligned pointers; strides that are multiples of 8; 1 <= branches <= 17.
// Source     decoupled.cu; attention_sm90.cuh for the products.
#include "attention_sm90.cuh"
#include "branches.cuh"

struct DecoupledSm90Params {
    TensorMap q;
    TensorMap out;
    DecoupledParams of;
    int heads;
};

template <class T>
struct DecoupledSm90 {
    static constexpr int QUERIES = 128, KEYS = 320, STAGES = 2, TILE_BYTES = QUERIES * 128, GROUP_BYTES = TILE_BYTES / 2;
    static constexpr int BRANCH_BYTES = KEYS * 128, TABLE_BYTES = 512;
    static constexpr int SHARED_BYTES = (1 + STAGES) * TILE_BYTES + STAGES * (2 * BRANCH_BYTES + TABLE_BYTES) + 32 * STAGES;

    // A part of an active branch of a head: its first row in shared memory, its keys, the branch's number and weight, and whether the branch
    // begins and ends with it. One of no keys ends a fill; `begins`: whether the tile has another one, `ends`: whether it has several.
    struct Entry {
        int first, count, branch;
        float weight;
        bool begins, ends;
    };

    const DecoupledSm90Params& p;
    u32 out, q, keys, barriers;
    Entry* tables;
    int role, thread, tiles_of_head;

    __device__ __forceinline__ DecoupledSm90(const DecoupledSm90Params& params, char* memory)
        : p(params), out(shared_address(memory)), q(out + TILE_BYTES), keys(q + STAGES * TILE_BYTES),
          barriers(keys + STAGES * (2 * BRANCH_BYTES + TABLE_BYTES)),
          tables((Entry*)(memory + (1 + STAGES) * TILE_BYTES + STAGES * 2 * BRANCH_BYTES)), role(threadIdx.x / 128),
          thread(threadIdx.x % 128), tiles_of_head(divided_up(params.of.queries, QUERIES)) {
        if (threadIdx.x == 0) {
            for (int i = 0; i < STAGES; i++) {
                mbarrier_init(q_full(i), 1);
                mbarrier_init(q_empty(i), 8);
                mbarrier_init(full(i), 128);
                mbarrier_init(empty(i), 8);
            }
            fence_mbarrier_init();
        }
        __syncthreads();
        after_last_launch();
    }

    __device__ __forceinline__ u32 q_full(int stage) const { return barriers + 8 * stage; }
    __device__ __forceinline__ u32 q_empty(int stage) const { return q_full(STAGES + stage); }
    // Of keys and values.
    __device__ __forceinline__ u32 full(int stage) const { return q_full(2 * STAGES + stage); }
    __device__ __forceinline__ u32 empty(int stage) const { return q_full(3 * STAGES + stage); }
    __device__ __forceinline__ Entry* table(int stage) const { return tables + stage * (TABLE_BYTES / sizeof(Entry)); }
    __device__ __forceinline__ u32 rows(int stage, int values) const { return keys + (2 * stage + values) * BRANCH_BYTES; }

    // This block's tiles.
    __device__ __forceinline__ int begin(int block) const {
        return (int)((i64)tiles_of_head * p.heads * p.of.batch * block / gridDim.x);
    }

    // Copies `count` rows of 64 values from row `from` on, and zeros up to a multiple of 16 rows.
    __device__ __forceinline__ void copy_rows(u32 to, const StridedTensor& tensor, int head, int image, int from, int count) {
        const T* rows = (const T*)tensor.data + image * tensor.batch + head * tensor.head_stride + from * tensor.row;
#pragma unroll 1
        for (int i = thread; i < (count + 15) / 16 * 16 * 8; i += 128) {
            int row = i / 8, unit = i % 8;
            uint4 values = row < count ? *(const uint4*)(rows + row * tensor.row + unit * 8) : make_uint4(0, 0, 0, 0);
            store_shared_16(to + row * 128 + (unit ^ row % 8) * 16, values);
        }
    }

    // Copies active branches of a head, from key `from` of branch `s` on, as far as they fit; whether some are left.
    __device__ __forceinline__ bool fill(int stage, int head, int image, bool several, int& s, int& from) {
        Entry* entry = table(stage);
        int first = 0;
        bool more = false;
#pragma unroll 1
        while (s < p.of.branches && !more) {
            int left = count_of(p.of, s, image) - from, room = KEYS - first;
            int count = (left + 15) / 16 * 16 <= room ? left : room / 80 * 80;
            more = count < left;
            if (count == 0) break;
            copy_rows(rows(stage, 0) + first * 128, p.of.branch[s].k, head, image, from, count);
            copy_rows(rows(stage, 1) + first * 128, p.of.branch[s].v, head, image, from, count);
            if (thread == 0) *entry = Entry{first, count, s, weight_of(p.of, s, image), from == 0, !more};
            entry++;
            first += (count + 15) / 16 * 16;
            from += count;
            if (!more) s = active(p.of, s + 1, image), from = 0;
        }
        if (thread == 0) *entry = Entry{0, 0, 0, 0.0f, more, several || more};
        return more;
    }

    __device__ __forceinline__ void produce() {
        RingPlace queries, branches;
        int head_before = -1;
        bool several = false;
#pragma unroll 1
        for (int tile = begin(blockIdx.x); tile < begin(blockIdx.x + 1); tile++) {
            int head_of_all = tile / tiles_of_head, image = head_of_all / p.heads, head = head_of_all - image * p.heads;
            if (thread == 0) {
                mbarrier_wait(q_empty(queries.stage), queries.parity ^ 1);
                mbarrier_arrive_expect_tx(q_full(queries.stage), TILE_BYTES);
                load_tensor_4d(q + queries.stage * TILE_BYTES, p.q, 0, (tile - head_of_all * tiles_of_head) * QUERIES, head, image,
                               q_full(queries.stage));
            }
            queries.advance(STAGES);
            if (head_of_all == head_before && !several) continue;
            head_before = head_of_all;
            several = false;
            int s = active(p.of, 0, image), from = 0;
            bool more;
            do {
                mbarrier_wait(empty(branches.stage), branches.parity ^ 1);
                more = fill(branches.stage, head, image, several, s, from);
                several |= more;
                fence_proxy_async();
                mbarrier_arrive(full(branches.stage));
                branches.advance(STAGES);
            } while (more);
        }
    }

    __device__ __forceinline__ void release(u32 bar) {
        if (thread % 32 == 0) mbarrier_arrive(bar);
    }

    // N keys, of which `left` are there.
    template <int N>
    __device__ __forceinline__ void add_keys(float (&o)[1][8][4], OnlineSoftmax<1>& softmax, u32 queries, u32 k, u32 v, int left) {
        float s[1][N / 8][4], decays[1][2];
        u32 pairs[N / 16][4];
        multiply_keys<T>(s, queries, k);
        wgmma_wait_group<0>();
        mask_keys(s, left, thread);
        if (__any_sync(0xffffffffu, softmax.exponentials(s, p.of.scale, decays))) softmax.shrink(o, decays);
        pack_scores<T>(s, pairs);
        multiply_values<T>(o, pairs, v);
        wgmma_wait_group<0>();
    }

    // Adds the products of a part to `o`, and a branch that ends with it to `total`.
    __device__ __forceinline__ void add_part(float (&total)[1][8][4], float (&o)[1][8][4], OnlineSoftmax<1>& softmax, const Entry& entry,
                                             u32 queries, int stage, int token, int image) {
        if (entry.begins) {
            softmax.reset(0);
            clear(o);
        }
        int from = 0;
        u32 k = rows(stage, 0) + entry.first * 128, v = rows(stage, 1) + entry.first * 128;
#pragma unroll 1
        for (; from + 64 < entry.count; from += 80) add_keys<80>(o, softmax, queries, k + from * 128, v + from * 128, entry.count - from);
#pragma unroll 1
        for (; from < entry.count; from += 16) add_keys<16>(o, softmax, queries, k + from * 128, v + from * 128, entry.count - from);
        if (!entry.ends) return;
        const KvBranch& branch = p.of.branch[entry.branch];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float factor = entry.weight / softmax.row_sum(0, r);
            if (branch.mask && token + 8 * r < p.of.queries) factor *= branch.mask[image * branch.mask_batch + token + 8 * r];
#pragma unroll
            for (int n = 0; n < 8; n++) {
                total[0][n][2 * r] += factor * o[0][n][2 * r];
                total[0][n][2 * r + 1] += factor * o[0][n][2 * r + 1];
            }
        }
    }

    __device__ __forceinline__ void consume() {
        RingPlace queries, branches;
        int end = begin(blockIdx.x + 1);
#pragma unroll 1
        for (int tile = begin(blockIdx.x); tile < end; tile++) {
            int head_of_all = tile / tiles_of_head, image = head_of_all / p.heads, head = head_of_all - image * p.heads;
            int first = (tile - head_of_all * tiles_of_head) * QUERIES + (role - 1) * 64;
            float total[1][8][4], o[1][8][4];
            OnlineSoftmax<1> softmax;
            clear(total);
            mbarrier_wait(q_full(queries.stage), queries.parity);
            bool more;
            do {
                mbarrier_wait(full(branches.stage), branches.parity);
                const Entry* entry = table(branches.stage);
#pragma unroll 1
                for (; entry->count > 0; entry++)
                    add_part(total, o, softmax, *entry, q + queries.stage * TILE_BYTES + (role - 1) * GROUP_BYTES, branches.stage,
                             first + thread / 32 * 16 + thread % 32 / 4, image);
                more = entry->begins;
                bool used = entry->ends || tile + 1 == end || (tile + 1) / tiles_of_head != head_of_all;
                __syncwarp();
                if (used) {
                    release(empty(branches.stage));
                    branches.advance(STAGES);
                }
            } while (more);
            release(q_empty(queries.stage));
            queries.advance(STAGES);
            store_head<T>(total, p.out, out + (role - 1) * GROUP_BYTES, first, head, image, role, thread);
        }
        if (thread == 0) bulk_wait_group_read<0>();
    }

    __device__ __forceinline__ void run() {
        if (role == 0) {
            setmaxnreg_dec<56>();
            produce();
        } else {
            setmaxnreg_inc<224>();
            consume();
        }
    }
};

#define DECOUPLED(NAME, T)                                                                                      \
    extern "C" __global__ __launch_bounds__(384, 1) void NAME(const __grid_constant__ DecoupledSm90Params p) {  \
        extern __shared__ __align__(1024) char memory[];                                                        \
        DecoupledSm90<T>(p, memory).run();                                                                      \
    }

DECOUPLED(decoupled_sm90_64_f16, f16)
DECOUPLED(decoupled_sm90_64_bf16, bf16)
