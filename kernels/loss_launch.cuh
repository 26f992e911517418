// Host side of loss_from_log_probs: the plan of a launch, its workspace, the choice of the kernel.
#pragma once

namespace QAE_NAMESPACE {

// Geometry, as data: read by the launcher and stated in docs/notes.
struct LossPolicy {
    // Slots of a tile: large enough that its description and its 64 bytes of partial results are
    // small beside its tokens, small enough that a batch fills the GPU: about two blocks for each of
    // 132 SMs, which is what fits at a time.
    // Beyond kMaxUnits tiles they grow again, which bounds the workspace.
    static constexpr int64_t kMinTile = 1024, kMaxTile = 8192;
    static constexpr int64_t kTargetUnits = 256, kMaxUnits = 16384;
    // Beyond this average length a row is streamed by a whole block instead of one warp.
    static constexpr int64_t kWarpRowSlots = 1024;
    // Vectors of a row whose valid bits are kept, for a row of a warp and of a block.
    static constexpr int64_t kWarpSavedVectors = 1024, kBlockSavedVectors = 32768;
    static constexpr int64_t kMaxGroupBlocks = 1024;
};

inline int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t clamp_of(int64_t value, int64_t low, int64_t high) {
    return min_of(max_of(value, low), high);
}

inline bool needs_whole_rows(const qae_loss_from_log_probs_params& params) {
    return params.objective == QAE_OBJECTIVE_GSPO ||
           (params.aggregation == QAE_SEQ_MEAN_TOKEN_MEAN && params.layout.mask != nullptr);
}

inline bool needs_advantages_launch(const qae_loss_from_log_probs_params& params) {
    return params.advantage_source == QAE_ADVANTAGE_FROM_REWARDS &&
           params.groups.max_group_size > kMaxStagedGroup;
}

inline int64_t vector_elements(const qae_loss_from_log_probs_params& params) {
    return params.dtype == QAE_F32 ? 4 : 8;
}

// Whether a vector that is aligned in one token tensor is aligned in all of them.
inline bool is_vectorizable(const qae_loss_from_log_probs_params& params) {
    const qae_layout& layout = params.layout;
    const int64_t vector = vector_elements(params);
    const void* const pointers[] = {
        params.log_prob,
        params.old_log_prob,
        params.ref_log_prob,
        params.weight_per_response ? nullptr : params.importance_weight,
        params.advantage_source == QAE_ADVANTAGE_PER_TOKEN ? params.advantages : nullptr,
        params.d_log_prob};
    for (const void* pointer : pointers) {
        if (!is_aligned(pointer, 16)) return false;
    }
    if (!is_aligned(layout.mask, vector)) return false;
    if (layout.offsets != nullptr) return true;
    const int64_t mask_stride = layout.mask != nullptr ? layout.mask_row_stride : layout.row_stride;
    const bool equal =
        layout.gradient_row_stride == layout.row_stride && mask_stride == layout.row_stride;
    const bool whole = layout.row_stride % vector == 0 &&
                       layout.gradient_row_stride % vector == 0 && mask_stride % vector == 0;
    return equal || whole;
}

inline void plan_units(const qae_loss_from_log_probs_params& params, LossPlan& plan) {
    const qae_layout& layout = params.layout;
    if (!needs_whole_rows(params)) {
        int64_t tile = LossPolicy::kMinTile;
        while (tile < LossPolicy::kMaxTile && layout.num_slots > tile * LossPolicy::kTargetUnits) {
            tile *= 2;
        }
        while (layout.num_slots > tile * LossPolicy::kMaxUnits) tile *= 2;
        plan.tile_slots = tile;
        plan.num_units = max_of(1, ceil_div(layout.num_slots, tile));
        return;
    }
    const int64_t average = layout.num_slots / max_of(1, layout.num_rows);
    const bool by_block = average > LossPolicy::kWarpRowSlots;
    plan.team_warps = by_block ? kBlockWarps : 1;
    const int64_t teams = kBlockWarps / plan.team_warps;
    const int64_t filling = layout.num_rows / LossPolicy::kTargetUnits;
    const int64_t rows = min_of(filling, LossPolicy::kMaxTile / max_of(1, average));
    plan.rows_per_unit = static_cast<int32_t>(clamp_of(rows / teams * teams, teams, kRowsPerBatch));
    plan.num_units = max_of(1, ceil_div(layout.num_rows, plan.rows_per_unit));
    const int64_t longest = layout.offsets != nullptr ? layout.num_slots : layout.width;
    plan.saved_vectors = static_cast<int32_t>(
        min_of(longest / vector_elements(params) + 2,
               by_block ? LossPolicy::kBlockSavedVectors : LossPolicy::kWarpSavedVectors));
}

// Units that the workspace has room for: no fewer for a larger batch, though a larger batch may have
// larger, and so fewer, tiles. A workspace for the largest batch then serves the others.
inline int64_t reserved_units(const qae_loss_from_log_probs_params& params) {
    const qae_layout& layout = params.layout;
    const int64_t tiles =
        min_of(ceil_div(layout.num_slots, LossPolicy::kMaxTile), LossPolicy::kMaxUnits);
    return max_of(max_of(tiles, LossPolicy::kTargetUnits), layout.num_rows);
}

// Hands out parts of the workspace, 256-byte aligned.
struct WorkspaceCursor {
    char* base;
    uint64_t used;

    template <class T>
    T* take(int64_t count) {
        T* const part = reinterpret_cast<T*>(base + used);
        used += (static_cast<uint64_t>(count) * sizeof(T) + 255) / 256 * 256;
        return part;
    }
};

struct PlannedLaunch {
    LossLaunch launch;
    qae_advantages_params advantages;  // of the launch before, where groups are large
    uint64_t workspace_bytes;
};

inline ObjectiveOptions objective_options(const qae_loss_from_log_probs_params& params) {
    return {params.clip_min,     params.clip_max,        params.dual_clip,
            params.ratio_cap,    params.log_ratio_clamp, params.seq_log_ratio_max,
            params.tau_positive, params.tau_negative};
}

inline PlannedLaunch plan_launch(const qae_loss_from_log_probs_params& params) {
    PlannedLaunch planned = {};
    LossPlan& plan = planned.launch.plan;
    plan.team_warps = 1;
    plan_units(params, plan);
    plan.span_units = static_cast<int32_t>(
        max_of(kMinSpanUnits, ceil_div(plan.num_units, static_cast<int64_t>(kMaxSpans))));
    plan.num_spans = static_cast<int32_t>(ceil_div(plan.num_units, plan.span_units));
    plan.vectorized = is_vectorizable(params);
    const bool from_rewards = params.advantage_source == QAE_ADVANTAGE_FROM_REWARDS;
    const bool two_launches = needs_advantages_launch(params);
    if (from_rewards && !two_launches) {
        plan.group_blocks = static_cast<int32_t>(
            min_of(ceil_div(params.groups.num_groups, kBlockWarps), LossPolicy::kMaxGroupBlocks));
        plan.stage_floats = static_cast<int32_t>(ceil_div(params.groups.max_group_size, 4) * 4);
    }
    WorkspaceCursor cursor = {static_cast<char*>(params.workspace), 0};
    plan.header = cursor.take<LossWorkspaceHeader>(1);
    char* const advantages_workspace = cursor.take<char>(1024);
    const int64_t reserved = max_of(plan.num_units, reserved_units(params));
    plan.partials = cursor.take<Accumulator>(reserved);
    plan.span_partials = cursor.take<Accumulator>(ceil_div(reserved, kMinSpanUnits));
    plan.continued_row = cursor.take<int32_t>(reserved);
    plan.row_state = cursor.take<uint8_t>(params.layout.num_rows);
    if (two_launches) {
        qae_advantages_params& advantages = planned.advantages;
        advantages.groups = params.groups;
        advantages.options = params.advantage_options;
        advantages.baseline = params.baseline;
        advantages.advantage = params.advantage != nullptr
                                   ? params.advantage
                                   : cursor.take<float>(params.groups.num_responses);
        advantages.metrics = params.metrics != nullptr ? &params.metrics->groups : nullptr;
        advantages.workspace = advantages_workspace;
        advantages.workspace_bytes = 1024;
        plan.advantage = advantages.advantage;
    }
    planned.launch.params = params;
    planned.launch.options = objective_options(params);
    planned.workspace_bytes = cursor.used;
    return planned;
}

inline bool has_valid_strides(const qae_layout& layout) {
    return layout.row_stride >= layout.width && layout.gradient_row_stride >= layout.width &&
           (layout.mask == nullptr || layout.mask_row_stride >= layout.width);
}

// Tokens are counted in 32 bits within a launch.
constexpr int64_t kMaxSlots = 0xffffffff;

// What the host can see of the arguments; the Rust layer names the field, this keeps memory safe.
inline bool is_valid(const qae_loss_from_log_probs_params& params) {
    const qae_layout& layout = params.layout;
    const bool has_ratio = params.objective != QAE_OBJECTIVE_REINFORCE;
    const bool from_rewards = params.advantage_source == QAE_ADVANTAGE_FROM_REWARDS;
    const bool has_tokens = layout.num_slots > 0;
    return in_range(params.objective, QAE_OBJECTIVE_REINFORCE) && in_range(params.kl, QAE_KL_K3) &&
           in_range(params.dtype, QAE_F16) &&
           in_range(params.aggregation, QAE_SEQ_MEAN_TOKEN_SUM) &&
           in_range(params.advantage_source, QAE_ADVANTAGE_PER_TOKEN) &&
           in_range(params.metrics_scope, QAE_METRICS_ALL) &&
           in_range(params.inactive_gradient, QAE_INACTIVE_UNTOUCHED) &&
           (params.gradient_dtype == QAE_F32 || params.gradient_dtype == params.dtype) &&
           layout.num_rows >= 0 && layout.num_rows <= kMaxGrid && layout.width >= 0 &&
           layout.width <= kMaxGrid && layout.num_slots >= 0 && layout.num_slots <= kMaxSlots &&
           (layout.offsets != nullptr || has_valid_strides(layout)) &&
           (layout.offsets != nullptr || layout.num_slots == layout.num_rows * layout.width) &&
           params.metrics != nullptr && params.workspace != nullptr &&
           is_aligned(params.workspace, 256) &&
           (!has_tokens || (params.log_prob != nullptr && params.d_log_prob != nullptr)) &&
           (!has_tokens || !has_ratio || params.old_log_prob != nullptr) &&
           (!has_tokens || params.kl == QAE_KL_NONE || params.ref_log_prob != nullptr) &&
           (params.weight_per_response == 0 || params.importance_weight != nullptr) &&
           (!from_rewards ||
            (is_valid_groups(params.groups) && is_valid_options(params.advantage_options))) &&
           (from_rewards || !has_tokens || params.advantages != nullptr);
}

template <class Traits>
qae_result launch_loss(const LossLaunch& launch_arguments, void* stream) {
    const LossPlan& plan = launch_arguments.plan;
    const int64_t grid = plan.group_blocks + plan.num_units;
    size_t shared = sizeof(float) * kBlockWarps * static_cast<size_t>(plan.stage_floats);
    if (Traits::kObjective == QAE_OBJECTIVE_GSPO || needs_whole_rows(launch_arguments.params)) {
        shared += static_cast<size_t>(kBlockWarps / plan.team_warps) *
                  static_cast<size_t>(plan.saved_vectors);
        return launch("loss_from_log_probs_rows", loss_from_log_probs_rows<Traits>, grid, shared,
                      stream, launch_arguments);
    }
    // GSPO has no tiles: its gradient needs the whole response.
    if constexpr (Traits::kObjective != QAE_OBJECTIVE_GSPO) {
        return launch("loss_from_log_probs_tiles", loss_from_log_probs_tiles<Traits>, grid, shared,
                      stream, launch_arguments);
    }
    return QAE_INVALID_ARGUMENT;
}

inline bool has_extras(const qae_loss_from_log_probs_params& params) {
    return params.kl != QAE_KL_NONE || params.advantage_source == QAE_ADVANTAGE_PER_TOKEN ||
           (params.importance_weight != nullptr && params.weight_per_response == 0);
}

template <int kObjective, bool kHasExtras>
qae_result launch_dtype(const LossLaunch& launch, void* stream) {
    return launch.params.dtype == QAE_F32
               ? launch_loss<LossTraits<kObjective, kHasExtras, float>>(launch, stream)
               : launch_loss<LossTraits<kObjective, kHasExtras, Half>>(launch, stream);
}

template <int kObjective>
qae_result launch_objective(const LossLaunch& launch, void* stream) {
    return has_extras(launch.params) ? launch_dtype<kObjective, true>(launch, stream)
                                     : launch_dtype<kObjective, false>(launch, stream);
}

inline qae_result launch_any(const LossLaunch& launch, void* stream) {
    switch (launch.params.objective) {
        case QAE_OBJECTIVE_CLIP:
            return launch_objective<QAE_OBJECTIVE_CLIP>(launch, stream);
        case QAE_OBJECTIVE_GSPO:
            return launch_objective<QAE_OBJECTIVE_GSPO>(launch, stream);
        case QAE_OBJECTIVE_CISPO:
            return launch_objective<QAE_OBJECTIVE_CISPO>(launch, stream);
        case QAE_OBJECTIVE_SAPO:
            return launch_objective<QAE_OBJECTIVE_SAPO>(launch, stream);
        default:
            return launch_objective<QAE_OBJECTIVE_REINFORCE>(launch, stream);
    }
}

}  // namespace QAE_NAMESPACE

extern "C" uint64_t QAE_API(loss_from_log_probs_workspace_bytes)(
    const qae_loss_from_log_probs_params* params) {
    return QAE_NAMESPACE::plan_launch(*params).workspace_bytes;
}

extern "C" qae_result QAE_API(loss_from_log_probs)(const qae_loss_from_log_probs_params* params,
                                                   void* stream) {
    using namespace QAE_NAMESPACE;
    if (!is_valid(*params)) return QAE_INVALID_ARGUMENT;
    const PlannedLaunch planned = plan_launch(*params);
    if (params->workspace_bytes < planned.workspace_bytes) return QAE_WORKSPACE_TOO_SMALL;
    if (needs_advantages_launch(*params)) {
        const qae_result result = launch_advantages(planned.advantages, stream);
        if (result != QAE_OK) return result;
    }
    return launch_any(planned.launch, stream);
}
