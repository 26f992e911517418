// What the kernels of loss_from_logits share: the launch's plan, and the description of the rows
// that a cluster (or a block) computes.
#pragma once

#include "log_probs_from_logits.cuh"
#include "loss_finish.cuh"
#include "loss_units.cuh"

namespace QAE_NAMESPACE {

// Sums over entropies of the tokens in scope. 48 bytes, which travel as three 16-byte words.
struct alignas(16) EntropySums {
    double loss = 0.0, positive = 0.0, zero = 0.0, negative = 0.0;
    unsigned positive_tokens = 0, zero_tokens = 0, negative_tokens = 0, unused = 0;
};
static_assert(sizeof(EntropySums) == 48, "the sums travel as three 16-byte words");

// What one launch does with the rows that it reads.
enum LogitsPass {
    kPassLoss = 0,
    kPassMeasure = 1  // before the loss: GSPO's log-probs, COMPACT's counts
};

struct LogitsPlan {
    float scale;  // log2(e) / T
    int32_t pass;
    int32_t num_teams;      // clusters, or blocks, each of which takes every num_teams-th slot
    int32_t cluster;        // blocks of a team
    int32_t slice_vectors;  // 16-byte vectors of a row that one block of a cluster holds, at most
    int32_t slice_chunks;   // the same in chunks of the ring
    int32_t ring_chunks;
    int32_t stage_floats;  // shared memory of a warp for a group's rewards
    int32_t held_vectors;  // without a cluster: vectors of a row that stay in shared memory
    EntropySums* entropy_partials;  // [num_teams]
    int64_t* compact_begin;         // [num_rows + 1] COMPACT: gradient rows before each response
    float* measured;                // GSPO: log-probs, as the log-prob tensors
    float* sequence_log_ratio;      // GSPO: [num_rows]
    unsigned* compact_ticket;
};

struct LogitsLaunch {
    LossLaunch loss;  // rows are responses, slots are rows of logits
    qae_loss_from_logits_params params;
    LogitsPlan plan;
};

// Slots that a team describes at a time. A description waits for memory a few times in a row; this
// many share those waits.
constexpr int kBatchSlots = 128;
constexpr int kSlotsPerWarp = kBatchSlots / kBlockWarps;

// One row of logits, as the threads that compute it see it. 64 bytes.
struct SlotRecord {
    int64_t logits;    // its first element
    int64_t gradient;  // the same in d_logits
    int64_t input;     // its place in the log-prob tensors
    int64_t output;    // its place in d_log_prob, log_prob and entropy
    float share;       // in the aggregated loss, before the normalizer
    float advantage;
    float weight;  // of its policy term
    float old_log_prob, ref_log_prob;
    float sequence_log_ratio;  // GSPO: of its response; not finite where that is unusable
    int32_t column;            // of its token; -1: outside the vocabulary
    int32_t flags;
};
static_assert(sizeof(SlotRecord) == 64, "records are copied as 16-byte words");
constexpr int kSlotReads = 1, kSlotActs = 2, kSlotWrites = 4;
// Read for the sake of its response: its log-ratio is part of GSPO's mean.
constexpr int kSlotCarries = 8;

// Of a response, for its slots.
struct ResponseTerms {
    int64_t begin;  // of its slots, among all
    int64_t num_slots;
    int64_t num_valid;    // leading slots that can be valid
    int64_t num_counted;  // those that are, where something needs their number
    int64_t compact_begin;
    float advantage, share, sequence_log_ratio;
    bool acts;
    bool carries;  // GSPO, advantages per token: all its tokens are in the mean of one that acts
};

// Where a slot stands.
struct SlotPlace {
    int64_t response;  // -1: none
    int64_t position;  // in the response
    int64_t input, mask, output, logits, gradient;
};

// The number of responses that begin at or before the slot, less one; -1: none does.
__device__ __forceinline__ int64_t last_response_at(const qae_layout& layout, int64_t slot) {
    int64_t low = 0, high = layout.num_rows;
    while (low < high) {
        const int64_t middle = low + (high - low) / 2;
        if (load(layout.offsets + middle) <= slot) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low - 1;
}

__device__ __forceinline__ SlotPlace locate_slot(const LogitsLaunch& launch, int64_t slot) {
    const qae_layout& layout = launch.loss.params.layout;
    const qae_loss_from_logits_params& params = launch.params;
    const bool is_padded = layout.offsets == nullptr && params.slot_response == nullptr;
    SlotPlace place = {
        -1, 0, slot, slot, slot, slot * params.logits.row_stride, slot * params.d_row_stride};
    if (is_padded) {
        // Slots are counted in 32 bits.
        const unsigned width = static_cast<unsigned>(layout.width);
        place.response = static_cast<unsigned>(slot) / width;
        place.position = static_cast<unsigned>(slot) % width;
        place.input = place.response * layout.row_stride + place.position;
        place.mask = place.response * layout.mask_row_stride + place.position;
        place.output = place.response * layout.gradient_row_stride + place.position;
        place.logits = place.response * params.logits.response_stride +
                       place.position * params.logits.row_stride;
        place.gradient =
            place.response * params.d_response_stride + place.position * params.d_row_stride;
    } else if (params.slot_response != nullptr) {
        place.response = load(params.slot_response + slot);
    } else {
        const int64_t response = last_response_at(layout, slot);
        if (response < 0) return place;
        const RowExtent extent = row_extent(layout, response);
        if (extent.out_of_range || slot >= extent.position + extent.num_slots) return place;
        place.response = response;
        place.position = slot - extent.position;
    }
    return place;
}

__device__ __forceinline__ bool is_masked_out(const qae_layout& layout, int64_t place) {
    return layout.mask != nullptr && load(layout.mask + place) == 0;
}

// Whether something acts on all tokens, advantage or not.
__device__ __forceinline__ bool acts_on_all(const LogitsLaunch& launch) {
    return launch.loss.params.kl != QAE_KL_NONE || launch.params.entropy_coef != 0.0f;
}

// The advantage of one token, its own or its response's; one that is not finite does not act.
__device__ __forceinline__ float token_advantage(const LogitsLaunch& launch, int64_t input,
                                                 float of_response, bool counts) {
    if (launch.loss.params.advantage_source != QAE_ADVANTAGE_PER_TOKEN) return of_response;
    const float advantage = load(launch.loss.params.advantages + input);
    if (is_finite(advantage)) return advantage;
    if (counts) atomicAdd(&launch.loss.plan.header->nonfinite_advantages, 1ull);
    return 0.0f;
}

// Of the first `end` slots of a response, by a warp: those that are valid or, if `acting`, that act.
__device__ __forceinline__ int64_t count_slots(const LogitsLaunch& launch, int64_t response,
                                               int64_t end, float advantage, bool acting) {
    const qae_loss_from_log_probs_params& params = launch.loss.params;
    const qae_layout& layout = params.layout;
    const bool by_token =
        acting && params.advantage_source == QAE_ADVANTAGE_PER_TOKEN && !acts_on_all(launch);
    if (layout.mask == nullptr && !by_token) return end;
    const bool is_packed = layout.offsets != nullptr;
    const int64_t mask_begin =
        is_packed ? load_uniform(layout.offsets + response) : response * layout.mask_row_stride;
    if (!by_token) return __reduce_add_sync(kFullWarp, count_mask(layout.mask + mask_begin, end));
    const int64_t input_begin = is_packed ? mask_begin : response * layout.row_stride;
    unsigned count = 0;
    for (int64_t t = lane_index(); t < end; t += kWarpThreads) {
        count += !is_masked_out(layout, mask_begin + t) &&
                 token_advantage(launch, input_begin + t, advantage, false) != 0.0f;
    }
    return __reduce_add_sync(kFullWarp, count);
}

// Whether a response has a valid token with an advantage, by a warp.
__device__ __forceinline__ bool has_active_token(const LogitsLaunch& launch, int64_t response,
                                                 const RowExtent& extent, float advantage) {
    if (advantage == 0.0f) return false;
    const qae_layout& layout = launch.loss.params.layout;
    const bool is_packed = layout.offsets != nullptr;
    const int64_t input = is_packed ? extent.position : response * layout.row_stride;
    const int64_t mask = is_packed ? extent.position : response * layout.mask_row_stride;
    for (int64_t t = 0; t < extent.num_valid; t += kWarpThreads) {
        const int64_t mine = t + lane_index();
        const bool acts = mine < extent.num_valid && !is_masked_out(layout, mask + mine) &&
                          token_advantage(launch, input + mine, advantage, false) != 0.0f;
        if (__any_sync(kFullWarp, acts)) return true;
    }
    return false;
}

// The mean log-ratio of a response's valid tokens (GSPO 2507.18071), from measured log-probs, by a
// warp. A token that is not finite makes it not finite.
__device__ __forceinline__ float sequence_log_ratio(const LogitsLaunch& launch, int64_t response,
                                                    const ResponseTerms& terms) {
    const qae_loss_from_log_probs_params& params = launch.loss.params;
    const qae_layout& layout = params.layout;
    const bool is_packed = layout.offsets != nullptr;
    const int64_t input = is_packed ? terms.begin : response * layout.row_stride;
    const int64_t mask = is_packed ? terms.begin : response * layout.mask_row_stride;
    double sum = 0.0;
    for (int64_t t = lane_index(); t < terms.num_valid; t += kWarpThreads) {
        if (is_masked_out(layout, mask + t)) continue;
        const float log_prob = load(launch.plan.measured + input + t);
        sum += static_cast<double>(log_prob -
                                   load_as_float(params.old_log_prob, params.dtype, input + t));
    }
    return static_cast<float>(warp_sum(sum) / static_cast<double>(terms.num_counted));
}

// A warp describes a response.
__device__ __noinline__ ResponseTerms describe_response(const LogitsLaunch& launch,
                                                        int64_t response,
                                                        SharedPointer<float> stage) {
    const qae_loss_from_log_probs_params& params = launch.loss.params;
    const bool per_token = params.advantage_source == QAE_ADVANTAGE_PER_TOKEN;
    const bool is_gspo = params.objective == QAE_OBJECTIVE_GSPO;
    ResponseTerms terms = {};
    terms.advantage = row_advantage(launch.loss, response, stage, false);
    terms.acts = per_token || terms.advantage != 0.0f || acts_on_all(launch);
    terms.share = 1.0f;
    if (launch.params.slot_response != nullptr) return terms;
    const RowExtent extent = row_extent_uniform(params.layout, response);
    terms.begin = extent.position;
    terms.num_slots = extent.num_slots;
    terms.num_valid = extent.num_valid;
    if (launch.plan.compact_begin != nullptr && launch.plan.pass == kPassLoss) {
        terms.compact_begin = load_uniform(launch.plan.compact_begin + response);
    }
    if (params.aggregation != QAE_SEQ_MEAN_TOKEN_MEAN && !is_gspo) return terms;
    terms.num_counted = count_slots(launch, response, terms.num_valid, terms.advantage, false);
    if (terms.num_counted == 0) return terms;
    terms.carries = is_gspo && has_active_token(launch, response, extent, terms.advantage);
    if (params.aggregation == QAE_SEQ_MEAN_TOKEN_MEAN) {
        terms.share = static_cast<float>(1.0 / static_cast<double>(terms.num_counted));
    }
    if (is_gspo && launch.plan.pass == kPassLoss) {
        terms.sequence_log_ratio = load_uniform(launch.plan.sequence_log_ratio + response);
    }
    return terms;
}

// Fills in what only the slot knows. `counts`: this block counts what is out of range.
__device__ __forceinline__ SlotRecord make_record(const LogitsLaunch& launch,
                                                  const SlotPlace& place,
                                                  const ResponseTerms& terms, bool counts) {
    const qae_loss_from_log_probs_params& params = launch.loss.params;
    const bool is_compact = params.inactive_gradient == QAE_INACTIVE_COMPACT;
    SlotRecord record = {};
    record.logits = place.logits;
    record.gradient = place.gradient;
    record.input = place.input;
    record.output = place.output;
    record.share = terms.share;
    record.sequence_log_ratio = terms.sequence_log_ratio;
    record.column = -1;
    const bool writes_all = params.inactive_gradient == QAE_INACTIVE_ZERO_FILL;
    record.flags = writes_all || (terms.acts && !is_compact) ? kSlotWrites : 0;
    const bool is_token =
        place.response >= 0 && !is_masked_out(params.layout, place.mask) &&
        (launch.params.slot_response != nullptr || place.position < terms.num_valid);
    if (!is_token) return record;
    record.advantage = token_advantage(launch, place.input, terms.advantage, counts);
    const bool acts = record.advantage != 0.0f || acts_on_all(launch);
    const bool reads = acts || terms.carries || params.metrics_scope == QAE_METRICS_ALL;
    record.flags |= (acts ? kSlotActs : 0) | (reads ? kSlotReads : 0) |
                    (terms.carries ? kSlotCarries : 0) | (acts && is_compact ? kSlotWrites : 0);
    if (!reads) return record;
    const int64_t column = token_column(launch.params.logits, place.input);
    record.column = static_cast<int32_t>(column);
    if (column < 0 && counts) atomicAdd(&launch.loss.plan.header->out_of_range, 1ull);
    record.weight = 1.0f;
    if (params.importance_weight != nullptr) {
        record.weight = load(params.importance_weight +
                             (params.weight_per_response != 0 ? place.response : place.input));
    }
    if (params.old_log_prob != nullptr) {
        record.old_log_prob = load_as_float(params.old_log_prob, params.dtype, place.input);
    }
    if (params.kl != QAE_KL_NONE) {
        record.ref_log_prob = load_as_float(params.ref_log_prob, params.dtype, place.input);
    }
    return record;
}

// COMPACT: the row of d_logits that a slot's gradient goes to; a warp counts the slots before it.
__device__ __forceinline__ int64_t compact_row(const LogitsLaunch& launch, const SlotPlace& place,
                                               const ResponseTerms& terms) {
    return terms.compact_begin +
           count_slots(launch, place.response, place.position, terms.advantage, true);
}

// Outputs of a slot that is not read.
__device__ __forceinline__ void store_row_outputs(const LogitsLaunch& launch, int64_t output,
                                                  float log_prob, float entropy, float gradient) {
    const qae_loss_from_log_probs_params& params = launch.loss.params;
    if (launch.params.log_prob != nullptr) store(launch.params.log_prob + output, log_prob);
    if (launch.params.entropy != nullptr) store(launch.params.entropy + output, entropy);
    if (params.d_log_prob == nullptr) return;
    if (params.gradient_dtype == QAE_F32) {
        store(static_cast<float*>(params.d_log_prob) + output, gradient);
    } else {
        const bool is_bf16 = params.gradient_dtype == QAE_BF16;
        store_streaming(static_cast<Half*>(params.d_log_prob) + output,
                        narrow<Half>(gradient, is_bf16));
    }
}

// The slots of a team's batch, a warp its kSlotsPerWarp: every lane finds its slot's response, the
// warp describes the responses one after another, and every lane fills in its record.
__device__ __noinline__ void describe_slots(const LogitsLaunch& launch, int64_t first_slot,
                                            bool stores, SharedPointer<SlotRecord> records,
                                            SharedPointer<float> stages) {
    const qae_loss_from_log_probs_params& params = launch.loss.params;
    const SharedPointer<float> stage = stages + warp_index() * launch.plan.stage_floats;
    const int index = warp_index() * kSlotsPerWarp + lane_index();
    const int64_t slot = first_slot + static_cast<int64_t>(index) * launch.plan.num_teams;
    const bool has_slot = lane_index() < kSlotsPerWarp && slot < params.layout.num_slots;
    SlotPlace place = {-1, 0, 0, 0, 0, 0, 0};
    if (has_slot) place = locate_slot(launch, slot);
    if (place.response >= params.layout.num_rows) {
        if (stores) atomicAdd(&launch.loss.plan.header->out_of_range, 1ull);
        place.response = -1;
    }
    ResponseTerms terms = {};
    unsigned todo = __ballot_sync(kFullWarp, place.response >= 0);
    while (todo != 0) {
        const int64_t response = __shfl_sync(kFullWarp, place.response, __ffs(todo) - 1);
        const ResponseTerms found = describe_response(launch, response, stage);
        const bool is_mine = place.response == response;
        if (is_mine) terms = found;
        todo &= ~__ballot_sync(kFullWarp, is_mine);
    }
    SlotRecord record = {};
    if (has_slot) record = make_record(launch, place, terms, stores);
    if (params.inactive_gradient == QAE_INACTIVE_COMPACT) {
        unsigned acting = __ballot_sync(kFullWarp, (record.flags & kSlotActs) != 0);
        for (; acting != 0; acting &= acting - 1) {
            const int lane = __ffs(acting) - 1;
            SlotPlace of_lane = place;
            ResponseTerms terms_of_lane = terms;
            of_lane.response = __shfl_sync(kFullWarp, place.response, lane);
            of_lane.position = __shfl_sync(kFullWarp, place.position, lane);
            terms_of_lane.compact_begin = __shfl_sync(kFullWarp, terms.compact_begin, lane);
            terms_of_lane.advantage = __shfl_sync(kFullWarp, terms.advantage, lane);
            const int64_t row = compact_row(launch, of_lane, terms_of_lane);
            if (lane_index() != lane) continue;
            record.gradient = row * launch.params.d_row_stride;
            if (row >= launch.params.compact_rows) record.flags &= ~kSlotWrites;
            // Offsets that overlap could count further than there are slots.
            const bool is_listed = row < params.layout.num_slots;
            if (stores && is_listed && launch.params.active_slots != nullptr) {
                store(launch.params.active_slots + row, slot);
            }
        }
    }
    if (has_slot && stores && (record.flags & kSlotReads) == 0) {
        store_row_outputs(launch, record.output, 0.0f, 0.0f, 0.0f);
    }
    if (lane_index() < kSlotsPerWarp) records[index] = record;
}

// The records whose rows are read, and those whose gradient is all that is written, in order.
struct SlotLists {
    SharedPointer<uint8_t> read, zero;
};

struct ListCounts {
    int read, zero;
};

// By every warp alike: the counts are in all threads behind it.
__device__ __forceinline__ ListCounts list_slots(SharedPointer<SlotRecord> records,
                                                 const SlotLists& lists) {
    ListCounts counts = {0, 0};
    for (int base = 0; base < kBatchSlots; base += kWarpThreads) {
        const int index = base + lane_index();
        const SlotRecord record = records[index];
        const bool reads = (record.flags & kSlotReads) != 0;
        const bool writes = (record.flags & kSlotWrites) != 0;
        const unsigned read = __ballot_sync(kFullWarp, reads);
        const unsigned zero = __ballot_sync(kFullWarp, !reads && writes);
        const unsigned before = (1u << lane_index()) - 1u;
        if (warp_index() == 0) {
            if (reads)
                lists.read[counts.read + __popc(read & before)] = static_cast<uint8_t>(index);
            if (!reads && writes) {
                lists.zero[counts.zero + __popc(zero & before)] = static_cast<uint8_t>(index);
            }
        }
        counts.read += __popc(read);
        counts.zero += __popc(zero);
    }
    return counts;
}

}  // namespace QAE_NAMESPACE
