// loss_from_logits: rewards (or advantages) and logits -> loss, metrics, log-probs, entropy, d_logits.
//
//   L = sum_i w_i sum_t (l_it + kl_coef KL_it - entropy_coef H_it), l and KL of log_prob_it and H_it of
//   the row z_it = logits_it / T; d L / d logits as in math/online_softmax.cuh with g = d L / d log_prob
//   (loss_from_log_probs) and h = d L / d H.
//
// Shapes: logits, d_logits [num_slots, vocab_size] with strides, d_logits possibly the same memory;
//   token_ids, old_log_prob, ref_log_prob, importance_weight, mask, log_prob, entropy, d_log_prob as
//   qae_layout says; metrics [1].
// A team takes every num_teams-th slot: a cluster of blocks that holds the row in its shared memory
//   (loss_from_logits_cluster), or one block (loss_from_logits_block). It describes a batch of its
//   slots (the response's quantile, advantage, weight), writes the zeros of those that do not act, and
//   computes the others one after another: the softmax of the row, its token's loss, its gradient.
// Results: thread 0 of the team's first block stores a row's numbers and keeps the sums.
// Synchronization: one cluster barrier a row; a block barrier for each chunk that leaves; a ticket at
//   the end, whose last block reduces the teams' sums and writes the metrics.
// Determinism: fixed order within a thread, a warp, a cluster; a team's rows are its own, in order. How
//   many teams there are, and how many blocks share a row, depends on the GPU (and on the policy and the
//   largest group, which take shared memory), and so do the last bits.
// Bytes per row that acts: read once, written once; an inactive row is written (zero fill) or not
//   touched. Without clusters: what exceeds a block's shared memory is read twice. GSPO needs a
//   response's ratio before its first gradient: a launch before measures the log-probs, which is one
//   more read, and a small one takes their means.
#include "loss_from_logits_block.cuh"
#include "loss_from_logits_cluster.cuh"

namespace QAE_NAMESPACE {

__device__ __forceinline__ void store_entropy(EntropySums* target, const EntropySums& sums) {
    union Words {
        uint4 words[3];
        EntropySums sums;
        __device__ Words() {}
    } value;
    value.sums = sums;
#pragma unroll
    for (int i = 0; i < 3; ++i) store(reinterpret_cast<uint4*>(target) + i, value.words[i]);
}

__device__ __forceinline__ EntropySums load_entropy(const EntropySums* source) {
    union Words {
        uint4 words[3];
        EntropySums sums;
        __device__ Words() {}
    } value;
#pragma unroll
    for (int i = 0; i < 3; ++i) {
        value.words[i] = load_coherent(reinterpret_cast<const uint4*>(source) + i);
    }
    return value.sums;
}

// The first warp of the last block: the teams' entropies in a fixed order, and the loss with them.
__device__ __noinline__ void publish_entropy(const LogitsLaunch& launch) {
    EntropySums sums;
    for (int team = lane_index(); team < launch.plan.num_teams; team += kWarpThreads) {
        const EntropySums other = load_entropy(launch.plan.entropy_partials + team);
        sums.loss += other.loss;
        sums.positive += other.positive;
        sums.zero += other.zero;
        sums.negative += other.negative;
        sums.positive_tokens += other.positive_tokens;
        sums.zero_tokens += other.zero_tokens;
        sums.negative_tokens += other.negative_tokens;
    }
    const double entropy_loss = loss_factor(launch.loss.params) * warp_sum(sums.loss);
    const double positive = warp_sum(sums.positive), zero = warp_sum(sums.zero),
                 negative = warp_sum(sums.negative);
    const unsigned positive_tokens = __reduce_add_sync(kFullWarp, sums.positive_tokens);
    const unsigned zero_tokens = __reduce_add_sync(kFullWarp, sums.zero_tokens);
    const unsigned negative_tokens = __reduce_add_sync(kFullWarp, sums.negative_tokens);
    if (lane_index() != 0) return;
    qae_logits_metrics* const metrics = launch.params.metrics;
    store(&metrics->entropy_loss, entropy_loss);
    store(&metrics->entropy_positive, positive);
    store(&metrics->entropy_zero, zero);
    store(&metrics->entropy_negative, negative);
    store(&metrics->positive_tokens, static_cast<uint64_t>(positive_tokens));
    store(&metrics->zero_tokens, static_cast<uint64_t>(zero_tokens));
    store(&metrics->negative_tokens, static_cast<uint64_t>(negative_tokens));
    const double coefficient = static_cast<double>(launch.params.entropy_coef);
    if (coefficient != 0.0) {
        const double loss = load_coherent(&metrics->loss.loss);
        store(&metrics->loss.loss, loss - coefficient * entropy_loss);
    }
}

// Indexed layouts: which responses have a token that counts. Every thread that finds one stores the
// same byte; a barrier follows before they are read.
__device__ __noinline__ void mark_active_responses(const LogitsLaunch& launch) {
    const qae_loss_from_log_probs_params& params = launch.loss.params;
    for (int64_t slot = threadIdx.x; slot < params.layout.num_slots; slot += kBlockThreads) {
        const int response = load(launch.params.slot_response + slot);
        if (response < 0 || response >= params.layout.num_rows) continue;
        if (is_masked_out(params.layout, slot)) continue;
        uint8_t* const state = launch.loss.plan.row_state + response;
        const unsigned found = load_coherent(state);
        const bool has_sign = (found & kRowSignMask) != 1u;
        if (has_sign || token_advantage(launch, slot, 0.0f, false) != 0.0f) {
            store(state, static_cast<uint8_t>(found | kRowActive));
        }
    }
}

// Thread 0 of each team's first block leaves its sums; the last block of all makes the results.
__device__ __forceinline__ void finish_logits(const LogitsLaunch& launch, const BlockSums& totals,
                                              bool leads_team) {
    QAE_SHARED(unsigned, last_flag, 1);
    const LogitsPlan& plan = launch.plan;
    const int team = static_cast<int>(blockIdx.x) / plan.cluster;
    if (leads_team && threadIdx.x == 0) {
        store_accumulator(launch.loss.plan.partials + team, totals.warp_sums[0]);
        store_entropy(plan.entropy_partials + team, totals.entropy[0]);
    }
    if (!is_last_block(&launch.loss.plan.header->final_ticket, gridDim.x, last_flag)) return;
    if (launch.params.slot_response != nullptr) mark_active_responses(launch);
    const RowCounts rows = finish_rows(launch.loss);
    reduce_range(launch.loss.plan.partials, 0, plan.num_teams, totals.warp_sums);
    if (threadIdx.x == 0) publish(launch.loss, rows, totals.warp_sums);
    // Thread 0 has published the loss that it adds the entropy to.
    if (warp_index() == 0) publish_entropy(launch);
}

// The sums' places, all zero; a barrier of the rows comes before their first use.
__device__ __forceinline__ void clear_sums(const BlockSums& totals) {
    clear_warp_sums(totals.warp_sums);
    if (threadIdx.x == 0) totals.entropy[0] = EntropySums();
}

template <class T>
__global__ void __launch_bounds__(kBlockThreads, 2)
    loss_from_logits_cluster(const __grid_constant__ LogitsLaunch launch) {
#if QAE_HAS_CLUSTERS
    QAE_DYNAMIC_SHARED(uint4, dynamic);
    QAE_SHARED(Accumulator, warp_sums, kBlockWarps);
    QAE_SHARED(EntropySums, entropy, 1);
    const BlockSums totals = {warp_sums, entropy};
    clear_sums(totals);
    compute_cluster<T>(launch, shared_cast<uint8_t>(dynamic), totals);
    if (launch.plan.pass != kPassLoss) return;
    finish_logits(launch, totals, cluster_rank() == 0);
#else
    // Never launched: has_cluster_code.
    (void)launch;
#endif
}

template <class T>
__global__ void __launch_bounds__(kBlockThreads, 2)
    loss_from_logits_block(const __grid_constant__ LogitsLaunch launch) {
    QAE_DYNAMIC_SHARED(uint4, dynamic);
    QAE_SHARED(Accumulator, warp_sums, kBlockWarps);
    QAE_SHARED(EntropySums, entropy, 1);
    const BlockSums totals = {warp_sums, entropy};
    clear_sums(totals);
    compute_block<T>(launch, shared_cast<uint8_t>(dynamic), totals);
    if (launch.plan.pass != kPassLoss) return;
    finish_logits(launch, totals, true);
}

// GSPO: the mean log-ratio of every response that needs one, between the launch that measures the
// log-probs and the one that uses them; a warp each.
__global__ void __launch_bounds__(kBlockThreads)
    loss_from_logits_sequence(const __grid_constant__ LogitsLaunch launch) {
    QAE_DYNAMIC_SHARED(float, stages);
    const qae_loss_from_log_probs_params& params = launch.loss.params;
    const SharedPointer<float> stage = stages + warp_index() * launch.plan.stage_floats;
    const int64_t num_warps = static_cast<int64_t>(gridDim.x) * kBlockWarps;
    for (int64_t response = static_cast<int64_t>(blockIdx.x) * kBlockWarps + warp_index();
         response < params.layout.num_rows; response += num_warps) {
        const ResponseTerms terms = describe_response(launch, response, stage);
        const bool needs_ratio = terms.carries || params.metrics_scope == QAE_METRICS_ALL;
        float mean = 0.0f;
        if (needs_ratio && terms.num_counted > 0) {
            mean = sequence_log_ratio(launch, response, terms);
        }
        if (lane_index() == 0) store(launch.plan.sequence_log_ratio + response, mean);
    }
}

// COMPACT: how many rows of d_logits come before each response's; a launch of its own, since all
// rewards and masks come before the first row.
__global__ void __launch_bounds__(kBlockThreads)
    loss_from_logits_compact(const __grid_constant__ LogitsLaunch launch) {
    QAE_DYNAMIC_SHARED(float, stages);
    QAE_SHARED(unsigned, last_flag, 1);
    QAE_SHARED(unsigned long long, scratch, kBlockWarps);
    const qae_loss_from_log_probs_params& params = launch.loss.params;
    const SharedPointer<float> stage = stages + warp_index() * launch.plan.stage_floats;
    const int64_t num_rows = params.layout.num_rows;
    int64_t* const begin = launch.plan.compact_begin;
    const int64_t num_warps = static_cast<int64_t>(gridDim.x) * kBlockWarps;
    for (int64_t response = static_cast<int64_t>(blockIdx.x) * kBlockWarps + warp_index();
         response < num_rows; response += num_warps) {
        const ResponseTerms terms = describe_response(launch, response, stage);
        int64_t count = 0;
        if (terms.acts) {
            count = count_slots(launch, response, terms.num_valid, terms.advantage, true);
        }
        if (lane_index() == 0) store(begin + response, count);
    }
    if (!is_last_block(launch.plan.compact_ticket, gridDim.x, last_flag)) return;
    // Each thread takes a run of responses; the runs' sums are added in order.
    const int64_t per_thread = ceil_div(num_rows, kBlockThreads);
    const int64_t first = per_thread * threadIdx.x;
    const int64_t last = first + per_thread < num_rows ? first + per_thread : num_rows;
    int64_t sum = 0;
    for (int64_t i = first; i < last; ++i) sum += load_coherent(begin + i);
    int64_t before = sum;
#pragma unroll
    for (int lanes = 1; lanes < kWarpThreads; lanes *= 2) {
        const int64_t other = __shfl_up_sync(kFullWarp, before, lanes);
        if (lane_index() >= lanes) before += other;
    }
    if (lane_index() == kWarpThreads - 1) {
        scratch[warp_index()] = static_cast<unsigned long long>(before);
    }
    __syncthreads();
    before -= sum;
    for (int warp = 0; warp < warp_index(); ++warp) {
        before += static_cast<int64_t>(static_cast<unsigned long long>(scratch[warp]));
    }
    for (int64_t i = first; i < last; ++i) {
        const int64_t count = load_coherent(begin + i);
        store(begin + i, before);
        before += count;
    }
    if (threadIdx.x == kBlockThreads - 1 && launch.params.active_slot_count != nullptr) {
        const int64_t num_slots = params.layout.num_slots;
        store(launch.params.active_slot_count, before < num_slots ? before : num_slots);
    }
}

}  // namespace QAE_NAMESPACE

#include "loss_from_logits_launch.cuh"
