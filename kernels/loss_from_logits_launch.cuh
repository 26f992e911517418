// Host side of loss_from_logits: which policy holds the rows, the plan of its launches, workspace.
#pragma once

#include <cmath>

namespace QAE_NAMESPACE {

// Geometry, as data.
struct RowsPolicy {
    // Below this a row is computed by one block without clusters: it is too short to be worth a ring.
    static constexpr int64_t kMinClusterRowBytes = 16 * 1024;
    // Blocks of an SM. Two hide each other's barriers and copies' administration; where their rings
    // are too small for the rows, one block has the SM.
    static constexpr int kBlocksPerSm = 2;
    // Chunks that a ring has beyond its slice: enough bytes on their way into an SM to cover the
    // memory's latency, which two blocks of an SM share.
    static constexpr int64_t kPrefetchChunks = 1, kPrefetchChunksAlone = 3;
    // A freed chunk is loaded again once the next row's first chunk has landed (RingFeeder::catch_up),
    // so that the two cannot be the same.
    static constexpr int64_t kMinRingChunks = 2;
    // A ring of this many slices needs no more.
    static constexpr int64_t kMaxRingSlices = 3;
    // Shared memory that the kernels declare themselves, and what the system takes of each block.
    static constexpr size_t kStaticShared = 12 * 1024, kReservedShared = 1024;
    static constexpr int64_t kMaxTeams = 1024;
    static constexpr int64_t kMaxResponseBlocks = 1024;
};

struct PlannedLogits {
    LogitsLaunch launch;
    qae_advantages_params advantages;  // of the launch before, where groups are large
    uint64_t workspace_bytes;
    size_t shared_bytes;
    int blocks_per_sm;  // of the policy without clusters
    bool in_clusters;
};

inline bool is_gspo(const qae_loss_from_logits_params& params) {
    return params.loss.objective == QAE_OBJECTIVE_GSPO;
}

inline bool is_compact(const qae_loss_from_logits_params& params) {
    return params.loss.inactive_gradient == QAE_INACTIVE_COMPACT;
}

// Dynamic shared memory of a block where `blocks` share an SM.
inline int64_t dynamic_shared(const DeviceLimits& limits, int blocks) {
    const size_t of_sm = limits.max_shared_per_block + RowsPolicy::kReservedShared;
    const size_t taken = RowsPolicy::kReservedShared + RowsPolicy::kStaticShared;
    const size_t of_block = of_sm / static_cast<size_t>(blocks);
    return of_block > taken ? static_cast<int64_t>(of_block - taken) : 0;
}

inline int64_t stage_bytes(const LogitsPlan& plan) {
    return static_cast<int64_t>(sizeof(float)) * kBlockWarps * plan.stage_floats;
}

inline int64_t row_bytes(const qae_loss_from_logits_params& params) {
    return params.logits.vocab_size * element_bytes(params.logits.dtype);
}

inline int64_t slice_chunks(int64_t row_vectors, int cluster) {
    return ceil_div(ceil_div(row_vectors, static_cast<int64_t>(cluster)),
                    static_cast<int64_t>(kChunkVectors));
}

// The smallest cluster whose rings hold their slices and `prefetch` chunks more, or 0.
inline int smallest_cluster(int64_t row_vectors, int64_t ring_chunks, int64_t prefetch) {
    for (int cluster = 1; cluster <= kMaxClusterBlocks; cluster *= 2) {
        if (slice_chunks(row_vectors, cluster) + prefetch <= ring_chunks) return cluster;
    }
    return 0;
}

// Two blocks on an SM, or one, or whatever holds the row with the most to spare: the largest cluster.
inline bool choose_cluster(const DeviceLimits& limits, int64_t row_vectors, LogitsPlan& plan) {
    const auto ring = [&](int blocks) {
        const int64_t room = dynamic_shared(limits, blocks) - stage_bytes(plan);
        return min_of(room / kChunkBytes, kMaxRingChunks);
    };
    int64_t max_chunks = ring(RowsPolicy::kBlocksPerSm);
    plan.cluster = smallest_cluster(row_vectors, max_chunks, RowsPolicy::kPrefetchChunks);
    if (plan.cluster == 0) {
        max_chunks = ring(1);
        plan.cluster = smallest_cluster(row_vectors, max_chunks, RowsPolicy::kPrefetchChunksAlone);
    }
    if (plan.cluster == 0) plan.cluster = kMaxClusterBlocks;
    const int64_t slice = slice_chunks(row_vectors, plan.cluster);
    if (slice > max_chunks || max_chunks < RowsPolicy::kMinRingChunks) return false;
    plan.slice_vectors =
        static_cast<int32_t>(ceil_div(row_vectors, static_cast<int64_t>(plan.cluster)));
    plan.slice_chunks = static_cast<int32_t>(slice);
    plan.ring_chunks = static_cast<int32_t>(
        clamp_of(RowsPolicy::kMaxRingSlices * slice, RowsPolicy::kMinRingChunks, max_chunks));
    return true;
}

// Whether the rows go to clusters; fills in what they need.
inline bool plan_clusters(const qae_loss_from_logits_params& params, const DeviceLimits& limits,
                          LogitsPlan& plan) {
    if (limits.capability_major < 9 || params.row_policy == QAE_ROW_BLOCK) return false;
    const bool is_short = row_bytes(params) < RowsPolicy::kMinClusterRowBytes;
    if (params.row_policy == QAE_ROW_AUTO && is_short) return false;
    return choose_cluster(limits, row_bytes(params) / 16, plan);
}

// Rows of single blocks; returns how many blocks an SM has.
inline int plan_blocks(const qae_loss_from_logits_params& params, const DeviceLimits& limits,
                       LogitsPlan& plan) {
    const int64_t row_vectors = row_bytes(params) / 16;
    const auto room = [&](int blocks) {
        return max_of(0, dynamic_shared(limits, blocks) - stage_bytes(plan)) / 16;
    };
    const int blocks = row_vectors <= room(RowsPolicy::kBlocksPerSm) ? RowsPolicy::kBlocksPerSm : 1;
    plan.cluster = 1;
    // A part of a row is held in whole steps of the block, so that a vector is one thread's throughout.
    const int64_t held = room(blocks) / kBlockThreads * kBlockThreads;
    plan.held_vectors = static_cast<int32_t>(row_vectors <= room(blocks) ? row_vectors : held);
    return blocks;
}

inline PlannedLogits plan_logits(const qae_loss_from_logits_params& params,
                                 const DeviceLimits& limits) {
    PlannedLogits planned = {};
    LogitsLaunch& launch = planned.launch;
    LogitsPlan& plan = launch.plan;
    qae_loss_from_log_probs_params tokens = params.loss;
    tokens.metrics = params.metrics != nullptr ? &params.metrics->loss : nullptr;
    const PlannedLaunch of_tokens = plan_launch(tokens);
    launch.loss = of_tokens.launch;
    launch.loss.plan.num_units = 0;
    launch.params = params;
    launch.params.logits.vocab_start = 0;
    planned.advantages = of_tokens.advantages;
    plan.scale = softmax_scale(params.logits.temperature);
    plan.stage_floats = launch.loss.plan.stage_floats;
    planned.in_clusters = plan_clusters(params, limits, plan);
    if (!planned.in_clusters) planned.blocks_per_sm = plan_blocks(params, limits, plan);
    const int64_t row_shared = planned.in_clusters
                                   ? static_cast<int64_t>(plan.ring_chunks) * kChunkBytes
                                   : static_cast<int64_t>(plan.held_vectors) * 16;
    planned.shared_bytes = static_cast<size_t>(stage_bytes(plan) + row_shared);
    WorkspaceCursor cursor = {static_cast<char*>(params.loss.workspace), of_tokens.workspace_bytes};
    launch.loss.plan.partials = cursor.take<Accumulator>(RowsPolicy::kMaxTeams);
    plan.entropy_partials = cursor.take<EntropySums>(RowsPolicy::kMaxTeams);
    // A ticket of the token kernels, which this launch does not use, is this launch's.
    plan.compact_ticket = &launch.loss.plan.header->span_tickets[0];
    if (is_compact(params)) {
        plan.compact_begin = cursor.take<int64_t>(params.loss.layout.num_rows);
    }
    if (is_gspo(params)) {
        const qae_layout& layout = params.loss.layout;
        const int64_t padded =
            layout.num_rows > 0 ? (layout.num_rows - 1) * layout.row_stride + layout.width : 0;
        plan.measured = cursor.take<float>(layout.offsets != nullptr ? layout.num_slots : padded);
        plan.sequence_log_ratio = cursor.take<float>(layout.num_rows);
    }
    planned.workspace_bytes = cursor.used;
    return planned;
}

// The gradient's rows of one response do not reach into the next response's.
inline bool has_valid_response_strides(const qae_loss_from_logits_params& params) {
    const qae_layout& layout = params.loss.layout;
    const bool is_padded = layout.offsets == nullptr && params.slot_response == nullptr;
    if (!is_padded || layout.num_rows < 2 || layout.width < 1) return true;
    const int64_t extent = (layout.width - 1) * params.d_row_stride + params.logits.vocab_size;
    return params.logits.response_stride >= 0 &&
           (is_compact(params) || params.d_response_stride >= extent);
}

inline bool is_valid(const qae_loss_from_logits_params& params) {
    qae_loss_from_log_probs_params tokens = params.loss;
    tokens.metrics = params.metrics != nullptr ? &params.metrics->loss : nullptr;
    // What this operation computes itself, or does not need.
    tokens.log_prob = params.logits.values;
    if (tokens.d_log_prob == nullptr) tokens.d_log_prob = params.d_logits;
    if (is_compact(params)) tokens.inactive_gradient = QAE_INACTIVE_ZERO_FILL;
    qae_layout& layout = tokens.layout;
    const bool is_indexed = params.slot_response != nullptr;
    if (is_indexed) {
        // Its slots are those of one row, as far as strides go.
        const bool fits = layout.offsets == nullptr && layout.lengths == nullptr;
        if (!fits || layout.num_rows < 0 || layout.num_rows > kMaxGrid) return false;
        if (layout.num_slots < 0 || layout.num_slots > kMaxSlots) return false;
        layout.num_rows = 1;
        layout.width = layout.num_slots < kMaxGrid ? layout.num_slots : kMaxGrid;
        layout.num_slots = layout.width;
        layout.row_stride = layout.mask_row_stride = layout.gradient_row_stride = layout.width;
    }
    const bool needs_responses =
        is_gspo(params) || is_compact(params) || params.loss.aggregation == QAE_SEQ_MEAN_TOKEN_MEAN;
    const bool has_slots = params.loss.layout.num_slots > 0;
    qae_logits logits = params.logits;
    logits.num_rows = has_slots ? 1 : 0;
    const int64_t bytes = element_bytes(params.logits.dtype);
    return is_valid(tokens) && is_valid_logits(logits) && !(is_indexed && needs_responses) &&
           in_range(params.loss.inactive_gradient, QAE_INACTIVE_COMPACT) &&
           in_range(params.row_policy, QAE_ROW_BLOCK) && std::isfinite(params.entropy_coef) &&
           params.d_row_stride >= params.logits.vocab_size && has_valid_response_strides(params) &&
           (!has_slots || params.d_logits != nullptr) && is_aligned(params.d_logits, bytes) &&
           params.metrics != nullptr &&
           (!is_compact(params) ||
            (params.d_logits != params.logits.values && params.compact_rows >= 0));
}

template <class T>
qae_result launch_pass(PlannedLogits& planned, const DeviceLimits& limits, void* stream) {
    LogitsLaunch& arguments = planned.launch;
    LogitsPlan& plan = arguments.plan;
    const size_t max_shared = static_cast<size_t>(dynamic_shared(limits, 1));
    int64_t resident = static_cast<int64_t>(limits.num_sms) * planned.blocks_per_sm;
    if (planned.in_clusters) {
        int clusters = 0;
        const qae_result result =
            resident_clusters(loss_from_logits_cluster<T>, limits, plan.cluster,
                              planned.shared_bytes, max_shared, clusters);
        if (result != QAE_OK) return result;
        resident = clusters;
    }
    const int64_t wanted = max_of(1, arguments.loss.params.layout.num_slots);
    plan.num_teams = static_cast<int32_t>(min_of(min_of(resident, RowsPolicy::kMaxTeams), wanted));
    arguments.loss.plan.group_blocks = plan.num_teams * plan.cluster;
    if (planned.in_clusters) {
        return launch_clusters("loss_from_logits_cluster", loss_from_logits_cluster<T>,
                               plan.num_teams, plan.cluster, planned.shared_bytes, stream,
                               arguments);
    }
    return launch_large("loss_from_logits_block", loss_from_logits_block<T>, plan.num_teams,
                        planned.shared_bytes, max_shared, stream, arguments);
}

inline qae_result launch_dtype(PlannedLogits& planned, const DeviceLimits& limits, void* stream) {
    switch (planned.launch.params.logits.dtype) {
        case QAE_F32:
            return launch_pass<float>(planned, limits, stream);
        case QAE_BF16:
            return launch_pass<Bf16>(planned, limits, stream);
        default:
            return launch_pass<F16>(planned, limits, stream);
    }
}

// A small kernel with a warp for each response.
inline qae_result launch_responses(const char* name, void (*kernel)(LogitsLaunch),
                                   const PlannedLogits& planned, void* stream) {
    const int64_t num_rows = planned.launch.loss.params.layout.num_rows;
    const int64_t grid = clamp_of(ceil_div(num_rows, static_cast<int64_t>(kBlockWarps)), 1,
                                  RowsPolicy::kMaxResponseBlocks);
    return launch(name, kernel, grid, static_cast<size_t>(stage_bytes(planned.launch.plan)), stream,
                  planned.launch);
}

}  // namespace QAE_NAMESPACE

extern "C" uint64_t QAE_API(loss_from_logits_workspace_bytes)(
    const qae_loss_from_logits_params* params) {
    return QAE_NAMESPACE::plan_logits(*params, {1, 9, 0}).workspace_bytes;
}

extern "C" qae_result QAE_API(loss_from_logits)(const qae_loss_from_logits_params* params,
                                                void* stream) {
    using namespace QAE_NAMESPACE;
    if (!is_valid(*params)) return QAE_INVALID_ARGUMENT;
    DeviceLimits limits = {};
    qae_result result = device_limits(limits);
    if (result != QAE_OK) return result;
    // Code for an older GPU than this one is plain code.
    if (!has_code_for(loss_from_logits_cluster<float>, 90)) limits.capability_major = 8;
    PlannedLogits planned = plan_logits(*params, limits);
    if (params->loss.workspace_bytes < planned.workspace_bytes) return QAE_WORKSPACE_TOO_SMALL;
    if (params->row_policy == QAE_ROW_CLUSTER && !planned.in_clusters) return QAE_INVALID_ARGUMENT;
    if (needs_advantages_launch(params->loss)) {
        result = launch_advantages(planned.advantages, stream);
    }
    if (result == QAE_OK && is_compact(*params)) {
        planned.launch.plan.pass = kPassMeasure;
        result =
            launch_responses("loss_from_logits_compact", loss_from_logits_compact, planned, stream);
        planned.launch.plan.pass = kPassLoss;
    }
    if (result == QAE_OK && is_gspo(*params)) {
        planned.launch.plan.pass = kPassMeasure;
        result = launch_dtype(planned, limits, stream);
        if (result == QAE_OK) {
            result = launch_responses("loss_from_logits_sequence", loss_from_logits_sequence,
                                      planned, stream);
        }
        planned.launch.plan.pass = kPassLoss;
    }
    return result == QAE_OK ? launch_dtype(planned, limits, stream) : result;
}
