// One row of loss_from_logits between its two uses: from the softmax of the row to the loss of its
// token, and to what its gradient is a function of.
#pragma once

#include "loss_from_logits.cuh"

namespace QAE_NAMESPACE {

// What the whole block knows of a row once its softmax is known.
struct RowResult {
    SoftmaxRow softmax;
    float d_log_prob;
    LogitGradient gradient;
};

// What one row adds to the launch's sums.
struct RowSums {
    ThreadSums tokens;
    float entropy_loss;
    bool has_entropy;
};

template <int kObjective>
__device__ __forceinline__ float token_gradient(const LossLaunch& launch, const RowPiece& piece,
                                                const RowTerms& response, const Token& token,
                                                ThreadSums& sums, bool is_finite_token,
                                                bool& is_usable) {
    using Traits = LossTraits<kObjective, true, float>;
    PieceStream<Traits> stream(launch, piece, response, sums);
    stream.count_tokens(1);
    if (!is_finite_token) {
        // The advantage of a token of its own is counted where the token is.
        stream.token_advantage(token, true);
        is_usable = false;
        return 0.0f;
    }
    const float gradient = stream.step(token, true, &is_usable);
    if constexpr (Traits::kIsGspo) {
        // The stream knows a token's log-ratio by its response's mean; here it is at hand.
        const bool counts = is_usable && (token.advantage != 0.0f || stream.counts_all);
        sums.neg_log_ratio = counts ? token.old_log_prob - token.log_prob : 0.0f;
    }
    return gradient;
}

__device__ __forceinline__ RowTerms response_terms(const LossLaunch& launch,
                                                   const SlotRecord& record) {
    RowTerms terms = {};
    if (launch.params.objective != QAE_OBJECTIVE_GSPO) return terms;
    const float limit = launch.options.seq_log_ratio_max;
    terms.log_ratio = record.sequence_log_ratio;
    terms.ratio = expf(fminf(terms.log_ratio, limit));
    terms.gradient_ratio = terms.log_ratio <= limit ? terms.ratio : 0.0f;
    terms.usable = is_finite(terms.log_ratio);
    return terms;
}

// dL / d log_prob of the row's token, with its place in the sums; every thread for itself.
__device__ __forceinline__ float row_token_gradient(const LossLaunch& launch,
                                                    const SlotRecord& record, float factor,
                                                    float log_prob, bool has_finite_terms,
                                                    ThreadSums& sums, bool& is_usable) {
    const qae_loss_from_log_probs_params& params = launch.params;
    const RowTerms response = response_terms(launch, record);
    RowPiece piece = {};
    piece.share = record.share;
    piece.coefficient = record.share * factor;
    piece.advantage = record.advantage;
    piece.weight = params.weight_per_response != 0 ? record.weight : 1.0f;
    const Token token = {log_prob, record.old_log_prob, record.ref_log_prob, record.weight,
                         record.advantage};
    // GSPO's own stream sees a token's log-ratio only through its response.
    const bool has_old = params.old_log_prob != nullptr;
    const bool is_finite_token =
        has_finite_terms && is_finite(has_old ? log_prob - record.old_log_prob : log_prob);
    float gradient;
    switch (params.objective) {
        case QAE_OBJECTIVE_CLIP:
            gradient = token_gradient<QAE_OBJECTIVE_CLIP>(launch, piece, response, token, sums,
                                                          is_finite_token, is_usable);
            break;
        case QAE_OBJECTIVE_GSPO:
            gradient = token_gradient<QAE_OBJECTIVE_GSPO>(launch, piece, response, token, sums,
                                                          is_finite_token, is_usable);
            break;
        case QAE_OBJECTIVE_CISPO:
            gradient = token_gradient<QAE_OBJECTIVE_CISPO>(launch, piece, response, token, sums,
                                                           is_finite_token, is_usable);
            break;
        case QAE_OBJECTIVE_SAPO:
            gradient = token_gradient<QAE_OBJECTIVE_SAPO>(launch, piece, response, token, sums,
                                                          is_finite_token, is_usable);
            break;
        default:
            gradient = token_gradient<QAE_OBJECTIVE_REINFORCE>(launch, piece, response, token, sums,
                                                               is_finite_token, is_usable);
    }
    return gradient;
}

// What a token's gradient is multiplied by, beside its share; the same for all rows of a launch.
__device__ __forceinline__ float gradient_factor(const LogitsLaunch& launch) {
    const qae_loss_from_log_probs_params& params = launch.loss.params;
    return static_cast<float>(loss_factor(params) * params.grad_scale);
}

// What remains of a token's part in the sums if it is left out: that there is one.
__device__ __forceinline__ ThreadSums left_out(const ThreadSums& sums) {
    ThreadSums rest;
    rest.tokens = sums.tokens;
    rest.active_tokens = sums.active_tokens;
    rest.nonfinite_advantages = sums.nonfinite_advantages;
    return rest;
}

// The gradient of a token and its row from the row's softmax.
__device__ __forceinline__ RowResult judge_row(const LogitsLaunch& launch, const SlotRecord& record,
                                               float factor, const SoftmaxSums& softmax,
                                               float own_logit, RowSums& sums) {
    // A token of GSPO's mean takes its response with it where it is not finite.
    const bool counts_if_left_out = (record.flags & (kSlotActs | kSlotCarries)) != 0;
    const float h = -launch.params.entropy_coef * record.share * factor;
    RowResult result;
    result.softmax =
        record.column >= 0 ? softmax_row(softmax, own_logit, launch.plan.scale) : unusable_row();
    sums.tokens = ThreadSums();
    bool is_usable;
    const float g = row_token_gradient(launch.loss, record, factor, result.softmax.log_prob,
                                       is_finite(h), sums.tokens, is_usable);
    result.gradient = logit_gradient(softmax, launch.plan.scale, g, h);
    if (is_usable && !result.gradient.is_finite) {
        sums.tokens = left_out(sums.tokens);
        is_usable = false;
    }
    // A token id outside the vocabulary is counted as that.
    const bool is_counted = counts_if_left_out && !is_usable && record.column >= 0;
    sums.tokens.nonfinite_tokens = is_counted ? 1u : 0u;
    sums.has_entropy = is_usable;
    sums.entropy_loss = is_usable ? result.softmax.entropy * record.share : 0.0f;
    result.d_log_prob = is_usable ? g : 0.0f;
    result.gradient.is_zero = result.gradient.is_zero || !is_usable;
    return result;
}

__device__ __forceinline__ void add_row(Accumulator& total, const ThreadSums& sums) {
    total.pg_loss += sums.pg_loss;
    total.kl_loss += sums.kl_loss;
    total.neg_log_ratio += sums.neg_log_ratio;
    total.min_ratio = fminf(total.min_ratio, sums.min_ratio);
    total.max_ratio = fmaxf(total.max_ratio, sums.max_ratio);
    total.tokens += sums.tokens;
    total.active_tokens += sums.active_tokens;
    total.clipped_above += sums.clipped_above;
    total.clipped_below += sums.clipped_below;
    total.dual_clipped += sums.dual_clipped;
    total.nonfinite_tokens += sums.nonfinite_tokens;
    total.nonfinite_advantages += sums.nonfinite_advantages;
}

__device__ __forceinline__ void add_entropy(EntropySums& total, const RowSums& sums,
                                            float advantage, float entropy) {
    if (!sums.has_entropy) return;
    total.loss += sums.entropy_loss;
    total.positive += advantage > 0.0f ? entropy : 0.0f;
    total.negative += advantage < 0.0f ? entropy : 0.0f;
    total.zero += advantage == 0.0f ? entropy : 0.0f;
    total.positive_tokens += advantage > 0.0f;
    total.negative_tokens += advantage < 0.0f;
    total.zero_tokens += advantage == 0.0f;
}

// Where a block gathers its rows: the sums in the first warp's place of those that are reduced.
struct BlockSums {
    SharedPointer<Accumulator> warp_sums;
    SharedPointer<EntropySums> entropy;
};

// One thread of the team stores a row's numbers and adds them up.
__device__ __forceinline__ void record_row(const LogitsLaunch& launch, const SlotRecord& record,
                                           const RowResult& result, const RowSums& sums,
                                           const BlockSums& totals) {
    store_row_outputs(launch, record.output, result.softmax.log_prob, result.softmax.entropy,
                      result.d_log_prob);
    Accumulator total = totals.warp_sums[0];
    add_row(total, sums.tokens);
    totals.warp_sums[0] = total;
    EntropySums entropy = totals.entropy[0];
    add_entropy(entropy, sums, record.advantage, result.softmax.entropy);
    totals.entropy[0] = entropy;
}

// GSPO's first launch: the row's log-prob, for the mean over its response.
__device__ __forceinline__ void measure_row(const LogitsLaunch& launch, const SlotRecord& record,
                                            const SoftmaxSums& softmax, float own_logit, int rank) {
    if (rank != 0 || threadIdx.x != 0) return;
    const SoftmaxRow row = softmax_row(softmax, own_logit, launch.plan.scale);
    store(launch.plan.measured + record.input,
          record.column >= 0 ? row.log_prob : unusable_row().log_prob);
}

// The groups' outputs and counts, and the responses' states, by all warps of the grid: what the
// launch does besides its rows. The rows of an indexed layout tell in the end which responses have a
// token.
__device__ __noinline__ void count_responses(const LogitsLaunch& launch,
                                             SharedPointer<float> stages) {
    const qae_loss_from_log_probs_params& params = launch.loss.params;
    const SharedPointer<float> stage = stages + warp_index() * launch.plan.stage_floats;
    if (params.advantage_source == QAE_ADVANTAGE_FROM_REWARDS &&
        launch.loss.plan.advantage == nullptr) {
        compute_groups(launch.loss, stages);
    }
    const int64_t num_warps = static_cast<int64_t>(gridDim.x) * kBlockWarps;
    for (int64_t response = static_cast<int64_t>(blockIdx.x) * kBlockWarps + warp_index();
         response < params.layout.num_rows; response += num_warps) {
        const float advantage = row_advantage(launch.loss, response, stage, true);
        unsigned state = sign_state(launch.loss, advantage);
        if (launch.params.slot_response == nullptr) {
            const RowExtent extent = row_extent_uniform(params.layout, response);
            count_left_out(&launch.loss.plan.header->out_of_range, extent.out_of_range);
            const bool is_active = has_active_token(launch, response, extent, advantage);
            state |= is_active ? kRowActive : 0u;
        }
        if (lane_index() == 0) {
            store(launch.loss.plan.row_state + response, static_cast<uint8_t>(state));
        }
    }
}

}  // namespace QAE_NAMESPACE
