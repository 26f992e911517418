// One softmax over a row of logits whose values pass by once: maximum, normalizer and entropy.
//
//   d_j = (x_j - max) / T,  S = sum_j e^{d_j},  D = sum_j e^{d_j} d_j
//   log_prob = d_token - ln S,  entropy = ln S - D / S,  logsumexp = max / T + ln S
//   d_logit_j = (g (1[j = token] - p_j) - h p_j (d_j - D / S)) / T,  p_j = e^{d_j} / S
//
// Sources: online normalizer: Milakov and Gimelshein 1805.02867; entropy and gradient: math.md
// section 4. Everything is relative to the maximum, so that logits of 1e4 lose nothing; d is held in
// units of log 2, so that the exponential is one ex2. A logit of -inf has e^d = 0 and must not meet
// a product 0 * inf; so d is clamped where e^d is 0 anyway. A NaN or +inf makes S NaN, whatever
// follows, and no finite logit leaves S at 0: such a row is unusable.
#pragma once

#include "block/platform.cuh"

namespace QAE_NAMESPACE {

// exp2 of this is 0 in f32, denormals included.
constexpr float kLowestExponent = -200.0f;
constexpr float kLowestFloat = -3.402823466e+38f;
constexpr float kLn2 = 0.693147180559945309f;

// Of some logits of one row. The default is that of none.
struct SoftmaxSums {
    float max = kLowestFloat;
    float sum = 0.0f;
    float sum_d = 0.0f;  // in units of log 2
};

// `scale` = log2(e) / T.
__device__ __forceinline__ void rescale(SoftmaxSums& sums, float max, float scale) {
    const float shift = fmaxf((sums.max - max) * scale, kLowestExponent);
    const float factor = exp2f(shift);
    sums.sum_d = factor * fmaf(sums.sum, shift, sums.sum_d);
    sums.sum *= factor;
    sums.max = max;
}

template <int kCount>
__device__ __forceinline__ void accumulate(SoftmaxSums& sums, const float (&logits)[kCount],
                                           float scale) {
    float max = sums.max;
#pragma unroll
    for (int i = 0; i < kCount; ++i) max = fmaxf(max, logits[i]);
    rescale(sums, max, scale);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
        const float d = (logits[i] - max) * scale;
        const float e = exp2f(d);
        sums.sum += e;
        sums.sum_d = fmaf(e, fmaxf(d, kLowestExponent), sums.sum_d);
    }
}

__device__ __forceinline__ SoftmaxSums merge(SoftmaxSums a, SoftmaxSums b, float scale) {
    const float max = fmaxf(a.max, b.max);
    rescale(a, max, scale);
    rescale(b, max, scale);
    return {max, a.sum + b.sum, a.sum_d + b.sum_d};
}

// What a row's tokens are judged by.
struct SoftmaxRow {
    float log_prob, entropy, log_sum_exp;  // nats; NaN where the row is unusable
};

__device__ __forceinline__ bool is_usable(const SoftmaxSums& sums) {
    return sums.sum > 0.0f && sums.sum <= -kLowestFloat;
}

__device__ __forceinline__ SoftmaxRow softmax_row(const SoftmaxSums& sums, float own_logit,
                                                  float inverse_temperature) {
    if (!is_usable(sums)) {
        const float nan = __int_as_float(0x7fffffff);
        return {nan, nan, nan};
    }
    const float log_sum = logf(sums.sum);
    // Rounding may leave an entropy of 0 a hair below it.
    const float entropy = fmaxf(log_sum - sums.sum_d / sums.sum * kLn2, 0.0f);
    return {(own_logit - sums.max) * inverse_temperature - log_sum, entropy,
            sums.max * inverse_temperature + log_sum};
}

// The gradient of a row as a function of d: e^d (constant + slope d), and `own` added to the
// token's.
struct LogitGradient {
    float max, scale;
    float constant, slope;  // slope by units of log 2
    float own;
    bool is_zero;

    __device__ __forceinline__ float at(float logit) const {
        const float d = (logit - max) * scale;
        return exp2f(d) * fmaf(slope, fmaxf(d, kLowestExponent), constant);
    }
    __device__ __forceinline__ float at_token(float logit) const { return at(logit) + own; }
};

// g = dL / d log_prob, h = dL / d entropy. Zero where the row is unusable or nothing acts on it.
__device__ __forceinline__ LogitGradient logit_gradient(const SoftmaxSums& sums, float scale,
                                                        float inverse_temperature, float g,
                                                        float h) {
    LogitGradient gradient;
    gradient.max = sums.max;
    gradient.scale = scale;
    gradient.own = g * inverse_temperature;
    const float per_sum = inverse_temperature / sums.sum;
    const float mean = sums.sum_d / sums.sum * kLn2;
    gradient.constant = fmaf(h, mean, -g) * per_sum;
    gradient.slope = -h * kLn2 * per_sum;
    const float size = fabsf(gradient.constant) + fabsf(gradient.slope) + fabsf(gradient.own);
    gradient.is_zero = !is_usable(sums) || (g == 0.0f && h == 0.0f) || !(size <= -kLowestFloat);
    return gradient;
}

}  // namespace QAE_NAMESPACE
