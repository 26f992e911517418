// What the kernels of loss_from_log_probs share: the launch's plan, the description of a piece of a
// row, and the partial results.
#pragma once

#include "advantages.cuh"
#include "block/last_block.cuh"
#include "block/layout.cuh"
#include "math/objective.cuh"

namespace QAE_NAMESPACE {

// A unit is what one block computes: a tile of slots, or a few whole rows. Up to this many units
// share a ticket; their last block reduces their partial results, so that no block reads them all.
constexpr int kMinSpanUnits = 64;
constexpr int kMaxSpans = 4096;

// Rows that a block describes before it streams their tokens.
constexpr int kRowsPerBatch = 64;

// The head of the workspace; all zero between launches. Its size does not depend on the batch, so
// that one workspace serves batches of any shape one after another.
struct LossWorkspaceHeader {
    unsigned long long group_counters[kGroupCounters];
    unsigned long long nonfinite_advantages, out_of_range;
    unsigned final_ticket;
    unsigned unused;
    unsigned span_tickets[kMaxSpans];
};

// Sums and counts of some tokens. 64 bytes, which travel as four 16-byte words.
struct alignas(16) Accumulator {
    double pg_loss = 0.0, kl_loss = 0.0, neg_log_ratio = 0.0;
    float min_ratio = __builtin_huge_valf(), max_ratio = -__builtin_huge_valf();
    unsigned tokens = 0, active_tokens = 0;
    unsigned clipped_above = 0, clipped_below = 0, dual_clipped = 0;
    unsigned nonfinite_tokens = 0, nonfinite_advantages = 0, unused = 0;
};
static_assert(sizeof(Accumulator) == 64, "an accumulator travels as four 16-byte words");

// The same sums of one thread, in f32: it sees few tokens, and registers are what limits how many
// loads are in flight.
struct ThreadSums {
    float pg_loss = 0.0f, kl_loss = 0.0f, neg_log_ratio = 0.0f;
    float min_ratio = __builtin_huge_valf(), max_ratio = -__builtin_huge_valf();
    unsigned tokens = 0, active_tokens = 0;
    unsigned clipped_above = 0, clipped_below = 0, dual_clipped = 0;
    unsigned nonfinite_tokens = 0, nonfinite_advantages = 0;
};

// A row's state after its block: sign of the advantage + 1, and whether it is active.
constexpr unsigned kRowSignMask = 3, kRowActive = 4;

struct LossPlan {
    int64_t num_units;
    int64_t tile_slots;     // tiles: slots of a unit
    int32_t rows_per_unit;  // rows: rows of a unit
    int32_t team_warps;     // rows: warps that share a row
    int32_t span_units;
    int32_t num_spans;
    int32_t group_blocks;   // leading blocks, which compute the groups' outputs and counts
    int32_t vectorized;     // all tensors allow 128-bit accesses at the same elements
    int32_t stage_floats;   // shared memory of a warp for a group's rewards
    int32_t saved_vectors;  // rows: vectors of a row whose valid bits fit into shared memory
    LossWorkspaceHeader* header;
    Accumulator* partials;       // [num_units]
    Accumulator* span_partials;  // [num_spans]
    int32_t* continued_row;      // [num_units] active row that an earlier tile began, or -1
    uint8_t* row_state;          // [num_rows]
    const float* advantage;      // [num_responses] of an earlier launch, or nullptr
};

struct LossLaunch {
    qae_loss_from_log_probs_params params;
    ObjectiveOptions options;
    LossPlan plan;
};

// A row, or the part of it that lies in a tile, as the threads that stream it see it.
struct RowPiece {
    int64_t start;  // first slot in the token tensors
    int64_t mask_start;
    int64_t gradient_start;
    int32_t num_slots;
    int32_t num_valid;  // leading slots that can be valid
    float share;        // of a token in the aggregated loss, before the normalizer
    float advantage;    // 1 where advantages are given per token
    float coefficient;  // share * normalizer * gradient scale
    float weight;       // of the response
    int32_t row;        // -1 behind the last piece of a batch
    int32_t flags;
};
constexpr int kPieceOwnsRow = 1;  // it holds the row's first slot, or the row has none
constexpr int kPieceReads = 2;    // something of its tokens is needed
constexpr int kPieceWrites = 4;   // its gradient is written

// One lane counts a value that was left out. Rare, and an integer: its order changes nothing.
__device__ __forceinline__ void count_left_out(unsigned long long* counter, bool counts) {
    if (counts && lane_index() == 0) atomicAdd(counter, 1ull);
}

// The advantage of a row, computed by a whole warp.
__device__ __forceinline__ float row_advantage(const LossLaunch& launch, int64_t row,
                                               SharedPointer<float> stage, bool owns_row) {
    const qae_loss_from_log_probs_params& params = launch.params;
    if (params.advantage_source == QAE_ADVANTAGE_PER_TOKEN) return 1.0f;
    if (params.advantage_source == QAE_ADVANTAGE_PER_RESPONSE) {
        const float advantage = load_uniform(params.advantages + row);
        if (is_finite(advantage)) return advantage;
        count_left_out(&launch.plan.header->nonfinite_advantages, owns_row);
        return 0.0f;
    }
    const int64_t response =
        params.response_index != nullptr ? load_uniform(params.response_index + row) : row;
    if (response < 0 || response >= params.groups.num_responses) {
        count_left_out(&launch.plan.header->out_of_range, owns_row);
        return 0.0f;
    }
    if (launch.plan.advantage != nullptr) return load_uniform(launch.plan.advantage + response);
    const int index = static_cast<int>(response);
    const int group = params.groups.group_size > 0
                          ? index / params.groups.group_size
                          : load_uniform(params.groups.group_of_response + index);
    GroupRange range;
    if (params.groups.group_size > 0) {
        range = group_range(params.groups, group);
    } else {
        range.begin = load_uniform(params.groups.offsets + group);
        range.size = load_uniform(params.groups.offsets + group + 1) - range.begin;
    }
    const GroupSummary summary =
        summarize_staged_group(params.groups, params.advantage_options, range, stage);
    const float reward = load_uniform(params.groups.rewards + index);
    return static_cast<float>(response_advantage(params.advantage_options, summary, reward));
}

// 1 / normalizer with the loss multiplier, or 0 where there is nothing to divide by.
__device__ __forceinline__ double loss_factor(const qae_loss_from_log_probs_params& params) {
    const double normalizer =
        params.device_normalizer != nullptr ? load(params.device_normalizer) : params.normalizer;
    return normalizer > 0.0 ? params.loss_multiplier / normalizer : 0.0;
}

__device__ __forceinline__ Accumulator load_accumulator(const Accumulator* source) {
    union Words {
        uint4 words[4];
        Accumulator sums;
        __device__ Words() {}
    } value;
    const uint4* words = reinterpret_cast<const uint4*>(source);
#pragma unroll
    for (int i = 0; i < 4; ++i) value.words[i] = load_coherent(words + i);
    return value.sums;
}

__device__ __forceinline__ void store_accumulator(Accumulator* target, const Accumulator& sums) {
    union Words {
        uint4 words[4];
        Accumulator sums;
        __device__ Words() {}
    } value;
    value.sums = sums;
    uint4* words = reinterpret_cast<uint4*>(target);
#pragma unroll
    for (int i = 0; i < 4; ++i) store(words + i, value.words[i]);
}

__device__ __forceinline__ void merge(Accumulator& into, const Accumulator& other) {
    into.pg_loss += other.pg_loss;
    into.kl_loss += other.kl_loss;
    into.neg_log_ratio += other.neg_log_ratio;
    into.min_ratio = fminf(into.min_ratio, other.min_ratio);
    into.max_ratio = fmaxf(into.max_ratio, other.max_ratio);
    into.tokens += other.tokens;
    into.active_tokens += other.active_tokens;
    into.clipped_above += other.clipped_above;
    into.clipped_below += other.clipped_below;
    into.dual_clipped += other.dual_clipped;
    into.nonfinite_tokens += other.nonfinite_tokens;
    into.nonfinite_advantages += other.nonfinite_advantages;
}

// Of ThreadSums or Accumulator.
template <class Sums>
__device__ __forceinline__ Accumulator warp_total(const Sums& sums) {
    Accumulator total;
    total.pg_loss = warp_sum(static_cast<double>(sums.pg_loss));
    total.kl_loss = warp_sum(static_cast<double>(sums.kl_loss));
    total.neg_log_ratio = warp_sum(static_cast<double>(sums.neg_log_ratio));
    total.min_ratio = warp_min(sums.min_ratio);
    total.max_ratio = warp_max(sums.max_ratio);
    total.tokens = __reduce_add_sync(kFullWarp, sums.tokens);
    total.active_tokens = __reduce_add_sync(kFullWarp, sums.active_tokens);
    total.clipped_above = __reduce_add_sync(kFullWarp, sums.clipped_above);
    total.clipped_below = __reduce_add_sync(kFullWarp, sums.clipped_below);
    total.dual_clipped = __reduce_add_sync(kFullWarp, sums.dual_clipped);
    total.nonfinite_tokens = __reduce_add_sync(kFullWarp, sums.nonfinite_tokens);
    total.nonfinite_advantages = __reduce_add_sync(kFullWarp, sums.nonfinite_advantages);
    return total;
}

// Each warp's own place in shared memory for its sums.
__device__ __forceinline__ void clear_warp_sums(SharedPointer<Accumulator> warp_sums) {
    if (lane_index() == 0) warp_sums[warp_index()] = Accumulator();
}

template <class Sums>
__device__ __forceinline__ void add_warp_sums(const Sums& sums,
                                              SharedPointer<Accumulator> warp_sums) {
    const Accumulator of_warp = warp_total(sums);
    if (lane_index() != 0) return;
    Accumulator total = warp_sums[warp_index()];
    merge(total, of_warp);
    warp_sums[warp_index()] = total;
}

// The sum of the warps' places, taken by thread 0 after a barrier.
__device__ __forceinline__ Accumulator sum_of_warps(SharedPointer<Accumulator> warp_sums) {
    Accumulator total = warp_sums[0];
    for (int warp = 1; warp < kBlockWarps; ++warp) {
        const Accumulator other = warp_sums[warp];
        merge(total, other);
    }
    return total;
}

}  // namespace QAE_NAMESPACE
