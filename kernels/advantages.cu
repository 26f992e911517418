// advantages: rewards -> baseline, advantage, the list of active responses, counts.
//
//   A_i = (R_i - b) / (std + epsilon), b the mean or the k-quantile of the group (QAE 2509.22611)
//
// Shapes: rewards, baseline, advantage [num_responses] f32; active [num_responses] i32.
// A block: 8 groups at a time, a warp each, staged in shared memory; or, where a group has more than
//   kMaxStagedGroup responses, one group at a time, read again (from L2) by each step of the select.
// Results: each thread writes the members it owns; the last block to finish writes the active list
//   and the metrics.
// Synchronization: a ticket decides the last block; it reads the others' results past L1.
// Determinism: sums in a fixed order within a team; counts are integers; the list is in order.
// Bytes per response: 4 read (8 with an order), 8 written; the list costs 4 read and up to 4 written.

#include "advantages.cuh"
#include "block/compact.cuh"
#include "block/last_block.cuh"
#include "block/launch.cuh"

namespace QAE_NAMESPACE {

struct AdvantagesWorkspace {
    unsigned long long counters[kGroupCounters];
    unsigned ticket;
    unsigned unused;
};

__device__ void finish_advantages(const qae_advantages_params& params,
                                  AdvantagesWorkspace* workspace, const GroupCounts& counts) {
    QAE_SHARED(unsigned, last_flag, 1);
    add_group_counts(counts, workspace->counters);
    if (!is_last_block(&workspace->ticket, gridDim.x, last_flag)) return;
    if (threadIdx.x == 0) {
        publish_group_counts(workspace->counters, params.groups.num_groups, params.metrics);
    }
    if (params.active != nullptr || params.active_count != nullptr) {
        const float* const advantage = params.advantage;
        write_indices(
            params.groups.num_responses,
            [advantage](int64_t i) { return load_coherent(advantage + i) != 0.0f; }, params.active,
            params.active_count);
    }
}

__global__ void __launch_bounds__(kBlockThreads, 2)
    advantages_by_warp(const qae_advantages_params params) {
    QAE_DYNAMIC_SHARED(float, stage);
    const WarpTeam team;
    GroupCounts counts;
    const int stride = static_cast<int>(gridDim.x) * kBlockWarps;
    const int first = static_cast<int>(blockIdx.x) * kBlockWarps + warp_index();
    for (int group = first; group < params.groups.num_groups; group += stride) {
        const GroupRange range = group_range(params.groups, group);
        const GroupSummary summary =
            summarize_staged_group(params.groups, params.options, range,
                                   stage + warp_index() * params.groups.max_group_size);
        finish_group(team, params.groups, params.options, summary, range, params.baseline,
                     params.advantage, counts);
    }
    finish_advantages(params, static_cast<AdvantagesWorkspace*>(params.workspace), counts);
}

__global__ void __launch_bounds__(kBlockThreads, 2)
    advantages_by_block(const qae_advantages_params params) {
    QAE_SHARED(unsigned long long, scratch, kBlockWarps);
    const BlockTeam team{scratch};
    GroupCounts counts;
    for (int group = static_cast<int>(blockIdx.x); group < params.groups.num_groups;
         group += static_cast<int>(gridDim.x)) {
        const GroupRange range = group_range(params.groups, group);
        const GroupSummary summary = summarize_group(
            team, GlobalRewards{&params.groups, range.begin}, range.size, params.options);
        finish_group(team, params.groups, params.options, summary, range, params.baseline,
                     params.advantage, counts);
    }
    finish_advantages(params, static_cast<AdvantagesWorkspace*>(params.workspace), counts);
}

qae_result launch_advantages(const qae_advantages_params& params, void* stream) {
    // Enough blocks to fill any GPU; the rest of the groups is taken in strides.
    constexpr int64_t kMaxBlocks = 2048;
    const int64_t num_groups = params.groups.num_groups;
    if (params.groups.max_group_size <= kMaxStagedGroup || num_groups == 0) {
        const int64_t blocks = (num_groups + kBlockWarps - 1) / kBlockWarps;
        const int staged = num_groups == 0 ? 0 : params.groups.max_group_size;
        const size_t shared = sizeof(float) * kBlockWarps * static_cast<size_t>(staged);
        return launch("advantages_by_warp", advantages_by_warp,
                      blocks < 1            ? 1
                      : blocks < kMaxBlocks ? blocks
                                            : kMaxBlocks,
                      shared, stream, params);
    }
    return launch("advantages_by_block", advantages_by_block,
                  num_groups < kMaxBlocks ? num_groups : kMaxBlocks, 0, stream, params);
}

}  // namespace QAE_NAMESPACE

extern "C" uint64_t QAE_API(advantages_workspace_bytes)(const qae_advantages_params*) {
    return sizeof(QAE_NAMESPACE::AdvantagesWorkspace);
}

extern "C" qae_result QAE_API(advantages)(const qae_advantages_params* params, void* stream) {
    using namespace QAE_NAMESPACE;
    const qae_groups& groups = params->groups;
    const bool has_pointers = params->metrics != nullptr && params->workspace != nullptr &&
                              (groups.num_responses == 0 || params->advantage != nullptr);
    if (!has_pointers || !is_valid_groups(groups) || !is_valid_options(params->options)) {
        return QAE_INVALID_ARGUMENT;
    }
    if (params->workspace_bytes < QAE_API(advantages_workspace_bytes)(params)) {
        return QAE_WORKSPACE_TOO_SMALL;
    }
    return QAE_NAMESPACE::launch_advantages(*params, stream);
}
