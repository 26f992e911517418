// Estimators of the KL divergence to the reference policy, per token, and their derivatives by
// log_prob. Source: Schulman, "Approximating KL divergence" (2020); clamps as verl applies them.
#pragma once

#include "block/platform.cuh"

namespace QAE_NAMESPACE {

struct KlTerms {
    float value;
    float gradient;  // d value / d log_prob
};

// K3: e^x - x - 1 with x = ref - log_prob, through expm1, which keeps the small values exact.
__device__ __forceinline__ KlTerms k3_terms(float x, bool clamped) {
    // Not through fminf and fmaxf, which would turn a NaN into a bound.
    const float exponent = clamped && fabsf(x) > 20.0f ? copysignf(20.0f, x) : x;
    const float rise = expm1f(exponent);
    const float value = rise - exponent;
    if (clamped && (fabsf(x) > 20.0f || value > 10.0f)) return {fminf(value, 10.0f), 0.0f};
    return {value, -rise};
}

__device__ __forceinline__ KlTerms kl_terms(int estimator, bool clamped, float log_prob,
                                            float ref_log_prob) {
    const float difference = log_prob - ref_log_prob;
    if (estimator == QAE_KL_K1) return {difference, 1.0f};
    if (estimator == QAE_KL_K2) return {0.5f * difference * difference, difference};
    return k3_terms(-difference, clamped);
}

}  // namespace QAE_NAMESPACE
