// One softmax over a row of logits whose values pass by once: maximum, normalizer and entropy.
//
//   d_j = x_j scale - shift, scale = log2(e) / T, shift = the largest x scale, rounded
//   S = sum_j 2^{d_j},  D = sum_j 2^{d_j} d_j
//   log_prob = ln2 d_token - ln S,  entropy = ln S - ln2 D / S,  logsumexp = ln2 shift + ln S
//   d_logit_j = (g (1[j = token] - p_j) - h p_j ln2 (d_j - D / S)) / T,  p_j = 2^{d_j} / S
//
// Sources: online normalizer: Milakov and Gimelshein 1805.02867; entropy and gradient: docs/math.md
// section 4. Everything is relative to the maximum, so that logits of 1e4 lose nothing: that `shift`
// is rounded does not matter, since it is the same number for all d of a row, and each d is rounded
// once (fma). A logit of -inf has 2^d = 0 and must not meet a product 0 * inf; so d is clamped where
// 2^d is 0 anyway. A NaN or +inf leaves S not finite, and no finite logit leaves S at 0: such a row is
// unusable.
#pragma once

#include "block/platform.cuh"

namespace QAE_NAMESPACE {

// 2 to the power of this is 0 in f32.
constexpr float kLowestExponent = -200.0f;
constexpr float kMaxFloat = 3.402823466e+38f;
constexpr float kLn2 = 0.693147180559945309f;

// Of some logits of one row. The default is that of none.
struct SoftmaxSums {
    float shift = -kMaxFloat;
    float sum = 0.0f;
    float sum_d = 0.0f;
};

__device__ __forceinline__ void rescale(SoftmaxSums& sums, float shift) {
    const float difference = fmaxf(sums.shift - shift, kLowestExponent);
    const float factor = exp2_approx(difference);
    sums.sum_d = factor * fmaf(sums.sum, difference, sums.sum_d);
    sums.sum *= factor;
    sums.shift = shift;
}

template <int kCount>
__device__ __forceinline__ void accumulate(SoftmaxSums& sums, const float (&logits)[kCount],
                                           float scale) {
    float max = logits[0];
#pragma unroll
    for (int i = 1; i < kCount; ++i) max = fmaxf(max, logits[i]);
    // Finite, whatever the logits are: fmaxf and fminf ignore a NaN.
    const float shift = fminf(fmaxf(sums.shift, max * scale), kMaxFloat);
    rescale(sums, shift);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
        const float d = fmaf(logits[i], scale, -shift);
        const float e = exp2_approx(d);
        sums.sum += e;
        sums.sum_d = fmaf(e, fmaxf(d, kLowestExponent), sums.sum_d);
    }
}

__device__ __forceinline__ SoftmaxSums merge(SoftmaxSums a, SoftmaxSums b) {
    const float shift = fmaxf(a.shift, b.shift);
    rescale(a, shift);
    rescale(b, shift);
    return {shift, a.sum + b.sum, a.sum_d + b.sum_d};
}

// What a row's tokens are judged by, in nats; NaN where the row is unusable.
struct SoftmaxRow {
    float log_prob, entropy, log_sum_exp;
};

__device__ __forceinline__ SoftmaxRow unusable_row() {
    const float nan = __int_as_float(0x7fffffff);
    return {nan, nan, nan};
}

__device__ __forceinline__ bool is_usable(const SoftmaxSums& sums) {
    return sums.sum > 0.0f && sums.sum <= kMaxFloat;
}

__device__ __forceinline__ SoftmaxRow softmax_row(const SoftmaxSums& sums, float own_logit,
                                                  float scale) {
    if (!is_usable(sums)) return unusable_row();
    const float log_sum = logf(sums.sum);
    // Rounding may leave an entropy of 0 a hair below it, and a log-prob of 0 above.
    const float entropy = fmaxf(log_sum - sums.sum_d / sums.sum * kLn2, 0.0f);
    const float log_prob = fmaf(own_logit, scale, -sums.shift) * kLn2 - log_sum;
    return {log_prob > 0.0f ? 0.0f : log_prob, entropy, fmaf(sums.shift, kLn2, log_sum)};
}

// The gradient of a row as a function of its logits, 2^d (constant + slope d), with `own` added to
// the token's.
struct LogitGradient {
    float shift, scale;
    float constant, slope;
    float own;
    bool is_zero, is_finite;

    __device__ __forceinline__ float at(float logit) const {
        const float d = fmaf(logit, scale, -shift);
        return exp2_approx(d) * fmaf(slope, fmaxf(d, kLowestExponent), constant);
    }
    __device__ __forceinline__ float at_token(float logit) const { return at(logit) + own; }
};

// g = dL / d log_prob, h = dL / d entropy. Zero where the row is unusable or nothing acts on it.
__device__ __forceinline__ LogitGradient logit_gradient(const SoftmaxSums& sums, float scale,
                                                        float g, float h) {
    const float inverse_temperature = scale * kLn2;
    LogitGradient gradient;
    gradient.shift = sums.shift;
    gradient.scale = scale;
    gradient.own = g * inverse_temperature;
    const float per_sum = inverse_temperature / sums.sum;
    const float mean = sums.sum_d / sums.sum * kLn2;
    gradient.constant = fmaf(h, mean, -g) * per_sum;
    gradient.slope = -h * kLn2 * per_sum;
    const float size = fabsf(gradient.constant) + fabsf(gradient.slope) + fabsf(gradient.own);
    gradient.is_finite = size <= kMaxFloat;
    gradient.is_zero = !is_usable(sums) || (g == 0.0f && h == 0.0f) || !gradient.is_finite;
    return gradient;
}

}  // namespace QAE_NAMESPACE
