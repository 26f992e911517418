// loss_from_log_probs: rewards (or advantages) and log-probs -> loss, gradient, metrics; one launch.
//
//   L = sum_i w_i sum_t l_it,  d L / d log_prob_it = w_i dl_it / d log_prob_it
//   l: the clipped policy-gradient objective (PPO 1707.06347, DAPO 2503.14476; others in
//   math/objective.cuh), with the advantage of QAE (2509.22611) computed in the same launch.
//
// Shapes: log_prob, old_log_prob, ref_log_prob, importance_weight, mask, d_log_prob as qae_layout
//   says; rewards [num_responses] of the global batch; metrics [1].
// A block: a tile of slots, whichever rows they belong to (`tiles`); or whole rows, where a token's
//   gradient needs its whole response: GSPO, and the mean over a masked response (`rows`). The
//   leading blocks compute the groups' baselines, advantages and counts.
// Results: a warp describes a row (its group's quantile, its advantage, its weight), then all warps
//   stream the tokens and store the gradient; each block leaves 64 bytes of partial sums.
// Synchronization: two levels of tickets; the last block of a span reduces the span, the last of all
//   reduces the spans, lists the active rows and writes the metrics.
// Determinism: fixed order within a thread, a warp, a block, a span, the launch; no float atomics.
// Bytes per token, f32: 12 (4 more for each of ref_log_prob and importance_weight, 1 for a mask); of
//   an inactive response 4 (zero fill) or 0. `rows` reads the mask once (its bits stay in shared
//   memory); GSPO with a KL term reads log_prob and old_log_prob a second time.
#include "block/launch.cuh"
#include "loss_finish.cuh"
#include "loss_units.cuh"

namespace QAE_NAMESPACE {

qae_result launch_advantages(const qae_advantages_params& params, void* stream);

// A unit's sums join its span's. Whether this block was the last of the span, and the span's sums
// are stored.
__device__ __noinline__ bool finish_unit(const LossLaunch& launch, int64_t unit,
                                         SharedPointer<Accumulator> warp_sums) {
    QAE_SHARED(unsigned, last_flag, 1);
    const LossPlan& plan = launch.plan;
    const int64_t span = unit / plan.span_units;
    const int64_t begin = span * plan.span_units;
    const int64_t end =
        begin + plan.span_units < plan.num_units ? begin + plan.span_units : plan.num_units;
    store_block_sums(plan.partials + unit, warp_sums);
    if (!is_last_block(&plan.header->span_tickets[span], static_cast<unsigned>(end - begin),
                       last_flag)) {
        return false;
    }
    reduce_range(plan.partials, begin, end, warp_sums);
    store_block_sums(plan.span_partials + span, warp_sums);
    return true;
}

// The last of all spans and blocks of groups: the launch's results.
__device__ __noinline__ void finish_launch(const LossLaunch& launch,
                                           SharedPointer<Accumulator> warp_sums) {
    QAE_SHARED(unsigned, last_flag, 1);
    const LossPlan& plan = launch.plan;
    const unsigned expected = static_cast<unsigned>(plan.num_spans + plan.group_blocks);
    if (!is_last_block(&plan.header->final_ticket, expected, last_flag)) return;
    const RowCounts rows = finish_rows(launch);
    reduce_range(plan.span_partials, 0, plan.num_spans, warp_sums);
    if (threadIdx.x == 0) publish(launch, rows, warp_sums);
}

// The steps that are the same for all objectives are functions of their own, not inlined: nothing of
// the token stream is live across them, and 36 kernels share their text.
template <class Traits, bool kWholeRows>
__device__ __forceinline__ void run_block(const LossLaunch& launch) {
    QAE_DYNAMIC_SHARED(uint8_t, dynamic);
    QAE_SHARED(Accumulator, warp_sums, kBlockWarps);
    const SharedPointer<float> stages = shared_cast<float>(dynamic);
    const int64_t unit = static_cast<int64_t>(blockIdx.x) - launch.plan.group_blocks;
    clear_warp_sums(warp_sums);
    if (unit < 0) {
        compute_groups(launch, stages);
    } else if constexpr (kWholeRows) {
        const SharedPointer<uint8_t> saved =
            dynamic + kBlockWarps * launch.plan.stage_floats * static_cast<int>(sizeof(float));
        compute_rows<Traits>(launch, unit, stages, saved, warp_sums);
    } else {
        compute_tile<Traits>(launch, unit, stages, warp_sums);
    }
    // A barrier behind the last sums of each unit has put all warps' sums in place.
    if (unit < 0 || finish_unit(launch, unit, warp_sums)) finish_launch(launch, warp_sums);
}

// Blocks per SM that the registers must allow.
constexpr int kMinBlocks = 2;

template <class Traits>
__global__ void __launch_bounds__(kBlockThreads, kMinBlocks)
    loss_from_log_probs_tiles(const __grid_constant__ LossLaunch launch) {
    run_block<Traits, false>(launch);
}

template <class Traits>
__global__ void __launch_bounds__(kBlockThreads, kMinBlocks)
    loss_from_log_probs_rows(const __grid_constant__ LossLaunch launch) {
    run_block<Traits, true>(launch);
}

}  // namespace QAE_NAMESPACE

#include "loss_launch.cuh"
