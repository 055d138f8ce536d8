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
//            Where a text of 65 to 80 keys is all, or one branch of up to 16 is beside it, one product has the scores of both (88 columns
//            for up to 8 beside it) and tiles follow each other as steps do in attention_sm90.cu. Each score and sum is the same.
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

    // A tile's head, and its first query.
    struct Place {
        int head_of_all, image, head, query;
    };

    __device__ __forceinline__ Place place(int tile) const {
        int head_of_all = tile / tiles_of_head, image = head_of_all / p.heads;
        return Place{head_of_all, image, head_of_all - image * p.heads, (tile - head_of_all * tiles_of_head) * QUERIES};
    }

    // This block's tiles.
    __device__ __forceinline__ int begin(int block) const {
        return (int)((i64)tiles_of_head * p.heads * p.of.batch * block / gridDim.x);
    }

    // Begins to copy `count` rows of 64 values from row `from` on, and zeros up to a multiple of 16 rows.
    __device__ __forceinline__ void copy_rows(u32 to, const StridedTensor& tensor, int head, int image, int from, int count) {
        const T* rows = (const T*)tensor.data + image * tensor.batch + head * tensor.head_stride + from * tensor.row;
#pragma unroll 1
        for (int i = thread; i < (count + 15) / 16 * 16 * 8; i += 128) {
            int row = i / 8, unit = i % 8;
            cp_async_16(to + row * 128 + (unit ^ row % 8) * 16, rows + row * tensor.row + unit * 8, row < count ? 16 : 0);
        }
    }

    // Begins to copy active branches of a head, from key `from` of branch `s` on, as far as they fit; whether some are left.
    __device__ __forceinline__ bool fill(const RingPlace& branches, const Place& at, bool several, int& s, int& from) {
        int stage = branches.stage, head = at.head, image = at.image;
        mbarrier_wait(empty(stage), branches.parity ^ 1);
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

    __device__ __forceinline__ void filled(RingPlace& branches) {
        cp_async_commit_group();
        cp_async_wait_group<0>();
        fence_proxy_async();
        mbarrier_arrive(full(branches.stage));
        branches.advance(STAGES);
    }

    __device__ __forceinline__ void produce() {
        RingPlace queries, branches;
        int head_before = -1;
        bool several = false;
#pragma unroll 1
        for (int tile = begin(blockIdx.x); tile < begin(blockIdx.x + 1); tile++) {
            Place at = place(tile);
            bool fresh = at.head_of_all != head_before || several, more = false;
            int s = fresh ? active(p.of, 0, at.image) : 0, from = 0;
            if (fresh) more = fill(branches, at, false, s, from);
            // This one is under way while the others are waited for.
            if (thread == 0) {
                mbarrier_wait(q_empty(queries.stage), queries.parity ^ 1);
                mbarrier_arrive_expect_tx(q_full(queries.stage), TILE_BYTES);
                load_tensor_4d(q + queries.stage * TILE_BYTES, p.q, 0, at.query, at.head, at.image, q_full(queries.stage));
            }
            queries.advance(STAGES);
            if (!fresh) continue;
            head_before = at.head_of_all;
            several = more;
            filled(branches);
            while (more) {
                more = fill(branches, at, true, s, from);
                filled(branches);
            }
        }
    }

    // This group's part of the queries in that stage.
    __device__ __forceinline__ u32 rows_of_q(int stage) const { return q + stage * TILE_BYTES + (role - 1) * GROUP_BYTES; }

    __device__ __forceinline__ void release_q(RingPlace& queries) {
        release(q_empty(queries.stage));
        queries.advance(STAGES);
    }

    __device__ __forceinline__ void release_branches(RingPlace& branches) {
        __syncwarp();
        release(empty(branches.stage));
        branches.advance(STAGES);
    }

    // What a branch's sums count in the result of this thread's rows.
    __device__ __forceinline__ void factors_of(float (&factors)[2], const OnlineSoftmax<1>& softmax, const Entry& entry,
                                               const Place& at) const {
        const KvBranch& branch = p.of.branch[entry.branch];
        int token = at.query + (role - 1) * 64 + thread / 32 * 16 + thread % 32 / 4;
#pragma unroll
        for (int r = 0; r < 2; r++) {
            factors[r] = entry.weight / softmax.row_sum(0, r);
            if (branch.mask && token + 8 * r < p.of.queries) factors[r] *= branch.mask[at.image * branch.mask_batch + token + 8 * r];
        }
    }

    static __device__ __forceinline__ void add(float (&total)[1][8][4], const float (&o)[1][8][4], const float (&factors)[2]) {
#pragma unroll
        for (int n = 0; n < 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) total[0][n][i] += factors[i / 2] * o[0][n][i];
    }

    __device__ __forceinline__ void send(const float (&total)[1][8][4], const Place& at) {
        store_head<T>(total, p.out, out + (role - 1) * GROUP_BYTES, at.query + (role - 1) * 64, at.head, at.image, role, thread);
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
        multiply_values<T>(o, pairs, v, 1);
        wgmma_wait_group<0>();
    }

    // Adds the products of a part to `o`, and a branch that ends with it to `total`.
    __device__ __forceinline__ void add_part(float (&total)[1][8][4], float (&o)[1][8][4], OnlineSoftmax<1>& softmax, const Entry& entry,
                                             u32 queries, int stage, const Place& at) {
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
        float factors[2];
        factors_of(factors, softmax, entry, at);
        add(total, o, factors);
    }

    // A tile whose branches are gone through one after the other.
    __device__ __forceinline__ void branch_by_branch(int tile, int end, RingPlace& queries, RingPlace& branches) {
        Place at = place(tile);
        float total[1][8][4], o[1][8][4];
        OnlineSoftmax<1> softmax;
        clear(total);
        mbarrier_wait(q_full(queries.stage), queries.parity);
        bool more;
        do {
            mbarrier_wait(full(branches.stage), branches.parity);
            const Entry* entry = table(branches.stage);
#pragma unroll 1
            for (; entry->count > 0; entry++) add_part(total, o, softmax, *entry, rows_of_q(queries.stage), branches.stage, at);
            more = entry->begins;
            if (entry->ends || tile + 1 == end || place(tile + 1).head_of_all != at.head_of_all) release_branches(branches);
        } while (more);
        release_q(queries);
        send(total, at);
    }

    // The columns of scores beside a text's 80, 0, 8 or 16, where one step has all keys of a head; -1 where it has not.
    static __device__ __forceinline__ int columns_beside(const Entry* text) {
        if (text->count <= 64 || text->count > 80) return -1;
        int count = text[1].count;
        const Entry& last = text[count > 0 ? 2 : 1];
        return count > 16 || last.count > 0 || last.begins || last.ends ? -1 : (count + 7) / 8 * 8;
    }

    // Scores of a step become exponentials, those of each branch by its own softmax.
    template <int BESIDE, int BRANCHES>
    __device__ __forceinline__ void exponentials(float (&s)[1][(80 + BESIDE) / 8][4], OnlineSoftmax<1> (&softmax)[BRANCHES],
                                                 const Entry* text) {
        // Only the last columns may have no key.
        mask_keys((float(&)[1][2][4])s[0][8], text->count - 64, thread);
        softmax[0].first_exponentials((float(&)[1][10][4])s, p.of.scale);
        if constexpr (BESIDE > 0) {
            auto& beside = (float(&)[1][BESIDE / 8][4])s[0][10];
            mask_keys(beside, text[1].count, thread);
            softmax[1].first_exponentials(beside, p.of.scale);
        }
    }

    template <int STEPS, int BRANCHES>
    __device__ __forceinline__ void values_of(float (&o)[BRANCHES][1][8][4], const u32 (&pairs)[STEPS][4], u32 v) {
        multiply_values<T>(o[0], (const u32(&)[5][4])pairs, v, 0);
        if constexpr (BRANCHES > 1) multiply_values<T>(o[1], (const u32(&)[1][4])pairs[5], v + 80 * 128, 0);
    }

    template <int BRANCHES>
    __device__ __forceinline__ void send_sum(const float (&o)[BRANCHES][1][8][4], const float (&factors)[BRANCHES][2], const Place& at) {
        float total[1][8][4];
        clear(total);
#pragma unroll
        for (int b = 0; b < BRANCHES; b++) add(total, o[b], factors[b]);
        send(total, at);
    }

    // Tiles from `tile` on, until the block's end or a head whose step has other columns.
    template <int BESIDE>
    __device__ __forceinline__ void tiles_of_a_step(int& tile, int end, RingPlace& queries, RingPlace& branches) {
        constexpr int BRANCHES = BESIDE > 0 ? 2 : 1;
        float s[1][(80 + BESIDE) / 8][4], o[BRANCHES][1][8][4], factors[BRANCHES][2];
        u32 pairs[(80 + BESIDE + 15) / 16][4];
        OnlineSoftmax<1> softmax[BRANCHES];
        auto weigh = [&](const Entry* text, const Place& at) {
#pragma unroll
            for (int b = 0; b < BRANCHES; b++) factors_of(factors[b], softmax[b], text[b], at);
            pack_scores<T>(s, pairs);
        };
        Place at = place(tile);
        mbarrier_wait(q_full(queries.stage), queries.parity);
        multiply_keys<T>(s, rows_of_q(queries.stage), rows(branches.stage, 0));
        wgmma_wait_group<0>();
        release_q(queries);
        exponentials<BESIDE>(s, softmax, table(branches.stage));
        weigh(table(branches.stage), at);
#pragma unroll 1
        for (; tile + 1 < end; tile++) {
            Place next = place(tile + 1);
            RingPlace of_next = branches;
            bool moves = next.head_of_all != at.head_of_all;
            if (moves) {
                of_next.advance(STAGES);
                mbarrier_wait(full(of_next.stage), of_next.parity);
                if (columns_beside(table(of_next.stage)) != BESIDE) break;
            }
            mbarrier_wait(q_full(queries.stage), queries.parity);
            bar_sync<256>(2 + role);
            multiply_keys<T>(s, rows_of_q(queries.stage), rows(of_next.stage, 0));
            values_of(o, pairs, rows(branches.stage, 1));
            bar_arrive<256>(5 - role);
            wgmma_wait_group<BRANCHES>();
            release_q(queries);
            exponentials<BESIDE>(s, softmax, table(of_next.stage));
            bool negative = false;
#pragma unroll
            for (int b = 0; b < BRANCHES; b++) negative |= softmax[b].sum[0][0] < 0.0f || softmax[b].sum[0][1] < 0.0f;
            // Never, but it keeps the exponentials before the wait (attention_sm90.cu).
            if (__any_sync(0xffffffffu, negative)) {
                wgmma_wait_group<0>();
                clear(o[0]);
            } else {
                wgmma_wait_group<0>();
            }
            send_sum(o, factors, at);
            if (moves) release_branches(branches);
            at = next;
            weigh(table(branches.stage), at);
        }
        tile++;
        values_of(o, pairs, rows(branches.stage, 1));
        wgmma_wait_group<0>();
        send_sum(o, factors, at);
        release_branches(branches);
    }

    __device__ __forceinline__ void consume() {
        RingPlace queries, branches;
        int tile = begin(blockIdx.x), end = begin(blockIdx.x + 1);
        // The first group begins.
        if (role == 2) bar_arrive<256>(3);
#pragma unroll 1
        while (tile < end) {
            mbarrier_wait(full(branches.stage), branches.parity);
            int beside = columns_beside(table(branches.stage));
            if (beside == 0) {
                tiles_of_a_step<0>(tile, end, queries, branches);
            } else if (beside == 8) {
                tiles_of_a_step<8>(tile, end, queries, branches);
            } else if (beside == 16) {
                tiles_of_a_step<16>(tile, end, queries, branches);
            } else {
                branch_by_branch(tile++, end, queries, branches);
            }
        }
        if (thread == 0) bulk_wait_group_read<0>();
    }
};

#define DECOUPLED(NAME, T)                                                                                      \
    extern "C" __global__ __launch_bounds__(384, 1) void NAME(const __grid_constant__ DecoupledSm90Params p) {  \
        extern __shared__ __align__(1024) char memory[];                                                        \
        DecoupledSm90<T> kernel(p, memory);                                                                     \
        run_roles<56>(kernel);                                                                                  \
    }

DECOUPLED(decoupled_sm90_64_f16, f16)
DECOUPLED(decoupled_sm90_64_bf16, bf16)
