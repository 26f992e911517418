// What the operations on logits share: scales, places of rows, checks of what the host can see.
#pragma once

#include "advantages.cuh"
#include "block/launch.cuh"
#include "block/logits.cuh"
#include "math/objective.cuh"

namespace QAE_NAMESPACE {

// Rows up to this long are taken by a warp.
constexpr int64_t kWarpRowBytes = 4096;

// log2(e) / T.
inline float softmax_scale(float temperature) {
    return static_cast<float>(1.44269504088896340736 / static_cast<double>(temperature));
}

struct LogProbOutputs {
    float* log_prob;
    float* entropy;
    float* log_sum_exp;
};

// The first element of a row.
__device__ __forceinline__ int64_t row_offset(int64_t width, int64_t row_stride,
                                              int64_t response_stride, int64_t row) {
    if (width == 0) return row * row_stride;
    return row / width * response_stride + row % width * row_stride;
}

// The gradient of the vector that holds the token, at place `token` of it.
template <class T>
__device__ __forceinline__ uint4 token_vector_gradient(const LogitGradient& gradient,
                                                       const uint4& vector, int token) {
    constexpr int kVector = kVectorElements<T>;
    float values[kVector];
    unpack<T>(vector, values);
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
        values[i] = gradient.at(values[i]) + (i == token ? gradient.own : 0.0f);
    }
    return pack<T>(values);
}

inline int64_t element_bytes(int32_t dtype) { return dtype == QAE_F32 ? 4 : 2; }

inline bool is_valid_temperature(float temperature) {
    // Its inverse has to be a number too.
    return temperature >= 1e-30f && temperature <= 1e30f;
}

// Columns are counted in 32 bits.
constexpr int64_t kMaxVocabSize = 0x7fffff00;

inline bool is_valid_logits(const qae_logits& logits) {
    const bool has_rows = logits.num_rows > 0;
    return in_range(logits.dtype, QAE_F16) && logits.num_rows >= 0 && logits.width >= 0 &&
           logits.vocab_size >= 1 && logits.vocab_size <= kMaxVocabSize &&
           logits.row_stride >= logits.vocab_size &&
           (logits.token_id_bytes == 4 || logits.token_id_bytes == 8) &&
           is_valid_temperature(logits.temperature) &&
           (!has_rows || (logits.values != nullptr && logits.token_ids != nullptr)) &&
           is_aligned(logits.values, element_bytes(logits.dtype)) &&
           is_aligned(logits.token_ids, logits.token_id_bytes);
}

}  // namespace QAE_NAMESPACE
