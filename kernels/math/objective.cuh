// The policy-gradient objectives: loss of one token and its derivative by log_prob, before weights.
// Scalar formulas in f32; rho = exp(log_prob - old_log_prob), A = advantage, never 0 here for the
// loss (a zero advantage is selected away by the caller, so that inf * 0 cannot arise).
// Sources: PPO 1707.06347, DAPO 2503.14476, dual clip 1912.09729, GSPO 2507.18071,
// CISPO 2506.13585, SAPO 2511.20347.
#pragma once

#include "block/platform.cuh"

namespace QAE_NAMESPACE {

// The numbers of qae_loss_from_log_probs_params that a token's formula uses.
struct ObjectiveOptions {
    float clip_min, clip_max, dual_clip, ratio_cap, log_ratio_clamp, seq_log_ratio_max;
    float tau_positive, tau_negative;
};

struct PolicyTerms {
    float loss;
    float gradient;  // d loss / d log_prob
    bool clipped;    // the clipped branch is strictly worse
    bool dual_clipped;
};

__device__ __forceinline__ bool is_finite(float value) { return fabsf(value) <= 3.402823466e+38f; }

__device__ __forceinline__ float clamp(float value, float low, float high) {
    return fminf(fmaxf(value, low), high);
}

// -min(rho A, clip(rho) A); gradient -rho A where the unclipped branch is taken (ties: taken).
// `gradient_ratio` is rho where the loss depends on it and 0 beyond a clamp.
__device__ __forceinline__ PolicyTerms clip_terms(const ObjectiveOptions& options, float ratio,
                                                  float gradient_ratio, float advantage) {
    const float unclipped = -advantage * fminf(ratio, options.ratio_cap);
    const float clipped = -advantage * clamp(ratio, options.clip_min, options.clip_max);
    PolicyTerms terms;
    terms.clipped = clipped > unclipped;
    terms.loss = terms.clipped ? clipped : unclipped;
    const bool flat = terms.clipped || ratio > options.ratio_cap;
    terms.gradient = flat ? 0.0f : -advantage * gradient_ratio;
    const float bound = -advantage * options.dual_clip;
    terms.dual_clipped = advantage < 0.0f && terms.loss > bound;
    if (terms.dual_clipped) {
        terms.loss = bound;
        terms.gradient = 0.0f;
    }
    return terms;
}

// -sg[clip(rho)] A log_prob.
__device__ __forceinline__ PolicyTerms cispo_terms(const ObjectiveOptions& options, float ratio,
                                                   float log_prob, float advantage) {
    const float coefficient = -clamp(ratio, options.clip_min, options.clip_max) * advantage;
    return {coefficient * log_prob, coefficient, false, false};
}

// -(4 / tau) sigma(tau (rho - 1)) A. With e = exp(-|x|), sigma (1 - sigma) = e / (1 + e)^2 keeps
// its relative precision where 1 - sigma would cancel.
__device__ __forceinline__ PolicyTerms sapo_terms(const ObjectiveOptions& options, float ratio,
                                                  float gradient_ratio, float advantage) {
    const float tau = advantage > 0.0f ? options.tau_positive : options.tau_negative;
    const float x = tau * (ratio - 1.0f);
    const float e = expf(-fabsf(x));
    const float inverse = 1.0f / (1.0f + e);
    const float sigmoid = x >= 0.0f ? inverse : e * inverse;
    const float slope = e * inverse * inverse;
    // rho = inf would meet a slope of 0.
    const float gradient = slope == 0.0f ? 0.0f : -4.0f * slope * gradient_ratio * advantage;
    return {-(4.0f / tau) * sigmoid * advantage, gradient, false, false};
}

}  // namespace QAE_NAMESPACE
