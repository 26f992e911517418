// The end of a launch that computes a loss: partial results to sums, rows to counts and a list, all of
// it to the metrics. By the last block; the steps are not inlined, since nothing else is live then.
#pragma once

#include "block/compact.cuh"
#include "loss_from_log_probs.cuh"

namespace QAE_NAMESPACE {

// Partial results of units or spans in a fixed order, into the warps' places; sum_of_warps takes the
// rest of the sum.
__device__ __noinline__ void reduce_range(const Accumulator* partials, int64_t begin, int64_t end,
                                          SharedPointer<Accumulator> warp_sums) {
    Accumulator sums;
    for (int64_t i = begin + threadIdx.x; i < end; i += kBlockThreads) {
        merge(sums, load_accumulator(partials + i));
    }
    // The block's own sums, which are in the same places, were stored by thread 0 before a barrier.
    clear_warp_sums(warp_sums);
    add_warp_sums(sums, warp_sums);
    __syncthreads();
}

// Thread 0: what the warps' places add up to.
__device__ __noinline__ void store_block_sums(Accumulator* target,
                                              SharedPointer<Accumulator> warp_sums) {
    if (threadIdx.x == 0) store_accumulator(target, sum_of_warps(warp_sums));
}

struct RowCounts {
    unsigned positive, negative, active;
};

// The last block of all: rows by sign, and the list of the active ones.
__device__ __noinline__ RowCounts finish_rows(const LossLaunch& launch) {
    QAE_SHARED(unsigned long long, team_scratch, kBlockWarps);
    const BlockTeam team{team_scratch};
    const LossPlan& plan = launch.plan;
    const qae_loss_from_log_probs_params& params = launch.params;
    const int64_t num_rows = params.layout.num_rows;
    // Several tiles may continue one row; all of them set the same bit of the same byte.
    for (int64_t unit = threadIdx.x; unit < plan.num_units; unit += kBlockThreads) {
        const int row = load_coherent(plan.continued_row + unit);
        if (row >= 0) {
            uint8_t* const state = plan.row_state + row;
            store(state, static_cast<uint8_t>(load_coherent(state) | kRowActive));
        }
    }
    __syncthreads();
    unsigned positive = 0, negative = 0;
    for (int64_t row = threadIdx.x; row < num_rows; row += kBlockThreads) {
        const unsigned sign = load_coherent(plan.row_state + row) & kRowSignMask;
        positive += sign == 2;
        negative += sign == 0;
    }
    const uint8_t* const row_state = plan.row_state;
    const int64_t num_active = write_indices(
        num_rows,
        [row_state](int64_t row) { return (load_coherent(row_state + row) & kRowActive) != 0; },
        params.active_rows, params.active_count);
    return {team.sum(positive), team.sum(negative), static_cast<unsigned>(num_active)};
}

// One thread writes the groups' counts.
__device__ __forceinline__ void publish_groups(const LossLaunch& launch, unsigned of_tokens) {
    const qae_loss_from_log_probs_params& params = launch.params;
    qae_group_metrics* const groups = &params.metrics->groups;
    // An earlier launch wrote the groups' counts where the groups are too large for this one.
    if (launch.plan.advantage != nullptr) return;
    const int num_groups =
        params.advantage_source == QAE_ADVANTAGE_FROM_REWARDS ? params.groups.num_groups : 0;
    publish_group_counts(launch.plan.header->group_counters, num_groups, groups);
    if (params.advantage_source == QAE_ADVANTAGE_FROM_REWARDS) return;
    const unsigned long long left_out =
        load_coherent(&launch.plan.header->nonfinite_advantages) + of_tokens;
    store(reinterpret_cast<unsigned long long*>(&groups->nonfinite_rewards), left_out);
}

// One thread writes the metrics, and leaves the counters at 0.
__device__ __noinline__ void publish(const LossLaunch& launch, const RowCounts rows,
                                     SharedPointer<Accumulator> warp_sums) {
    const Accumulator total = sum_of_warps(warp_sums);
    const qae_loss_from_log_probs_params& params = launch.params;
    const double factor = loss_factor(params);
    const double pg_loss = factor * total.pg_loss, kl_loss = factor * total.kl_loss;
    const double floats[6] = {pg_loss + static_cast<double>(params.kl_coef) * kl_loss,
                              pg_loss,
                              kl_loss,
                              total.neg_log_ratio,
                              static_cast<double>(total.min_ratio),
                              static_cast<double>(total.max_ratio)};
    const unsigned long long num_rows = static_cast<unsigned long long>(params.layout.num_rows);
    // Advantages per token have no sign per row: what is not active is zero.
    const bool per_token = params.advantage_source == QAE_ADVANTAGE_PER_TOKEN;
    const unsigned long long zero =
        num_rows - (per_token ? rows.active : rows.positive + rows.negative);
    const unsigned long long counts[11] = {rows.positive,
                                           zero,
                                           rows.negative,
                                           rows.active,
                                           total.tokens,
                                           total.active_tokens,
                                           total.clipped_above,
                                           total.clipped_below,
                                           total.dual_clipped,
                                           total.nonfinite_tokens,
                                           load_coherent(&launch.plan.header->out_of_range)};
    double* const float_fields = &params.metrics->loss;
    unsigned long long* const count_fields =
        reinterpret_cast<unsigned long long*>(&params.metrics->positive);
#pragma unroll
    for (int i = 0; i < 6; ++i) store(float_fields + i, floats[i]);
#pragma unroll
    for (int i = 0; i < 11; ++i) store(count_fields + i, counts[i]);
    publish_groups(launch, total.nonfinite_advantages);
    store(&launch.plan.header->out_of_range, 0ull);
    store(&launch.plan.header->nonfinite_advantages, 0ull);
}

}  // namespace QAE_NAMESPACE
