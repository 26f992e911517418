// From a group's statistics and one reward to the response's advantage.
// Scalar formulas in f64: group statistics are tiny, and f32 loses here first.
//   A = (R - b) / (std + epsilon), then the gate.
// Sources: b mean: GRPO 2402.03300; quantile and gates: QAE 2509.22611 v2, Eq. 4, 7, 8.
#pragma once

#include "block/platform.cuh"

namespace QAE_NAMESPACE {

// What a response needs to know of its group.
struct GroupSummary {
    int num_finite;   // responses with a finite reward
    bool all_equal;   // their rewards, decided on the rewards themselves
    bool hard;        // the ceil(k n)-th smallest reward is a failure
    double sum;       // of the finite rewards
    double baseline;  // of the group (LEAVE_ONE_OUT: the mean)
    double divisor;   // std + epsilon, or 1
};

__device__ __forceinline__ bool is_finite_reward(float reward) {
    return fabsf(reward) <= 3.402823466e+38f;
}

__device__ __forceinline__ double response_baseline(const qae_advantage_options& options,
                                                    const GroupSummary& group, float reward) {
    if (options.baseline == QAE_BASELINE_LEAVE_ONE_OUT && group.num_finite > 1 &&
        is_finite_reward(reward)) {
        return (group.sum - static_cast<double>(reward)) / (group.num_finite - 1);
    }
    return group.baseline;
}

// The gate of Eq. 7 and 8 replaces the advantage by a sign: 0 where the response may not act.
__device__ __forceinline__ double mask_sign(int gate, bool success, bool hard) {
    if (gate == QAE_GATE_POSITIVE_MASK) return success ? (hard ? 1.0 : 0.0) : -1.0;
    return success ? 1.0 : (hard ? 0.0 : -1.0);
}

__device__ __forceinline__ double response_advantage(const qae_advantage_options& options,
                                                     const GroupSummary& group, float reward) {
    if (!is_finite_reward(reward)) return 0.0;
    if (group.num_finite == 1 ? options.singleton == QAE_SINGLETON_ZERO : group.all_equal) {
        return 0.0;
    }
    if (options.gate == QAE_GATE_POSITIVE_MASK || options.gate == QAE_GATE_NEGATIVE_MASK) {
        const bool success = static_cast<double>(reward) > options.success_threshold;
        return mask_sign(options.gate, success, group.hard) / group.divisor;
    }
    const double advantage =
        (static_cast<double>(reward) - response_baseline(options, group, reward)) / group.divisor;
    if (options.gate == QAE_GATE_TWO_REGIME && (group.hard ? advantage < 0.0 : advantage > 0.0)) {
        return 0.0;
    }
    return advantage;
}

}  // namespace QAE_NAMESPACE
