// log_probs_from_logits: logits and token ids -> log_prob, entropy, logsumexp; and its gradient.
//
//   log_prob = z[token] - logsumexp(z), entropy = logsumexp(z) - sum_j p_j z_j, z = logits / T
//   d_logit_j = (g (1[j = token] - p_j) - h p_j (z_j - sum p z)) / T, g and h the gradients of the two
//   (math/online_softmax.cuh).
//
// Shapes: logits [num_rows, vocab_size] with strides; everything else [num_rows].
// A team (a block; a warp where rows are short) takes one row: 16-byte loads, the few elements
//   outside whole vectors one by one. Neither pass holds the row: the backward pass is elementwise
//   once the forward pass left the row's maximum and sums.
// Results: the team's first thread stores the row's numbers; every thread the gradient of its loads.
// Synchronization: one block barrier a row in the forward pass, none in the backward pass.
// Determinism: fixed order within a thread, a warp, a block.
// Bytes per row: forward, the row once; backward, read once and written once; rows that do not act
//   are written at most.
#include "block/launch.cuh"
#include "block/layout.cuh"
#include "log_probs_from_logits.cuh"

namespace QAE_NAMESPACE {

// The threads that share a row.
template <bool kByWarp>
struct RowTeam {
    static constexpr int kThreads = kByWarp ? kWarpThreads : kBlockThreads;
    static constexpr int kPerBlock = kBlockThreads / kThreads;

    __device__ __forceinline__ int rank() const { return static_cast<int>(threadIdx.x) % kThreads; }
    __device__ __forceinline__ int64_t row() const {
        return static_cast<int64_t>(blockIdx.x) * kPerBlock + threadIdx.x / kThreads;
    }
};

template <class T>
__device__ __forceinline__ SoftmaxSums sum_row(const T* row, int64_t num_columns, float scale,
                                               int rank, int num_threads) {
    const RowVectors vectors = row_vectors(row, num_columns);
    const uint4* const whole = reinterpret_cast<const uint4*>(row + vectors.head);
    SoftmaxSums sums;
    int i = rank;
    for (; i + (kVectorsInFlight - 1) * num_threads < vectors.num_vectors;
         i += kVectorsInFlight * num_threads) {
        uint4 words[kVectorsInFlight];
#pragma unroll
        for (int j = 0; j < kVectorsInFlight; ++j) {
            words[j] = load_streaming(whole + i + j * num_threads);
        }
        accumulate_vectors<T>(sums, words, scale);
    }
    for (; i < vectors.num_vectors; i += num_threads) {
        accumulate_vector<T>(sums, load_streaming(whole + i), scale);
    }
    for (int edge = rank; edge < vectors.num_edges(); edge += num_threads) {
        const float value[1] = {to_float(load_streaming(row + edge_column<T>(vectors, edge)))};
        accumulate(sums, value, scale);
    }
    return sums;
}

template <bool kByWarp>
__device__ __forceinline__ SoftmaxSums team_softmax(SoftmaxSums sums) {
    sums = warp_softmax(sums);
    if constexpr (!kByWarp) {
        QAE_SHARED(SoftmaxSums, of_warp, kBlockWarps);
        if (lane_index() == 0) of_warp[warp_index()] = sums;
        __syncthreads();
        SoftmaxSums mine;
        if (lane_index() < kBlockWarps) mine = of_warp[lane_index()];
        sums = warp_softmax(mine);
    }
    return sums;
}

struct LogProbsLaunch {
    qae_log_probs_from_logits_params params;
    float scale;  // log2(e) / T
};

__device__ __forceinline__ void store_row(const LogProbOutputs& outputs, int64_t row,
                                          const SoftmaxRow& result) {
    if (outputs.log_prob != nullptr) store(outputs.log_prob + row, result.log_prob);
    if (outputs.entropy != nullptr) store(outputs.entropy + row, result.entropy);
    if (outputs.log_sum_exp != nullptr) store(outputs.log_sum_exp + row, result.log_sum_exp);
}

__device__ __forceinline__ void store_stats(qae_softmax_stats* stats, int64_t row,
                                            const qae_softmax_stats& of_row) {
    if (stats == nullptr) return;
    const uint4 words = {__float_as_uint(of_row.max_logit), __float_as_uint(of_row.sum_exp),
                         __float_as_uint(of_row.sum_exp_z), __float_as_uint(of_row.own_logit)};
    store(reinterpret_cast<uint4*>(stats + row), words);
}

__device__ __forceinline__ qae_softmax_stats load_stats(const qae_softmax_stats* stats,
                                                        int64_t row) {
    const uint4 words = load(reinterpret_cast<const uint4*>(stats + row));
    return {__uint_as_float(words.x), __uint_as_float(words.y), __uint_as_float(words.z),
            __uint_as_float(words.w)};
}

// One lane loads, all lanes of the warp receive.
__device__ __forceinline__ qae_softmax_stats load_stats_uniform(const qae_softmax_stats* stats,
                                                                int64_t row) {
    qae_softmax_stats of_row = {};
    if (lane_index() == 0) of_row = load_stats(stats, row);
    return {__shfl_sync(kFullWarp, of_row.max_logit, 0), __shfl_sync(kFullWarp, of_row.sum_exp, 0),
            __shfl_sync(kFullWarp, of_row.sum_exp_z, 0),
            __shfl_sync(kFullWarp, of_row.own_logit, 0)};
}

// The same sums relative to another shift, `difference` below the present one.
__device__ __forceinline__ SoftmaxSums shifted(const SoftmaxSums& sums, float shift,
                                               float difference) {
    const float factor = exp2_approx(difference);
    return {shift, factor * sums.sum, factor * fmaf(sums.sum, difference, sums.sum_d)};
}

// The stored sums are relative to a logit, as the formulas in qae.h say, and not to the rounded shift:
// what the rounding took is put back. Without a finite logit there is nothing to be relative to.
__device__ __forceinline__ qae_softmax_stats to_stats(const SoftmaxSums& sums, float own_logit,
                                                      float scale) {
    if (sums.sum == 0.0f) return {-kMaxFloat, 0.0f, 0.0f, own_logit};
    const float max_logit = clamp(sums.shift / scale, -kMaxFloat, kMaxFloat);
    const SoftmaxSums exact = shifted(sums, sums.shift, fmaf(-max_logit, scale, sums.shift));
    return {max_logit, exact.sum, exact.sum_d * kLn2, own_logit};
}

__device__ __forceinline__ SoftmaxSums to_sums(const qae_softmax_stats& stats, float scale) {
    if (stats.sum_exp == 0.0f) return SoftmaxSums();
    const float shift = clamp(stats.max_logit * scale, -kMaxFloat, kMaxFloat);
    return shifted({shift, stats.sum_exp, stats.sum_exp_z * (1.0f / kLn2)}, shift,
                   fmaf(stats.max_logit, scale, -shift));
}

template <class T, bool kByWarp>
__global__ void __launch_bounds__(kBlockThreads)
    log_probs_from_logits(const __grid_constant__ LogProbsLaunch launch) {
    const qae_log_probs_from_logits_params& params = launch.params;
    const qae_logits& logits = params.logits;
    const RowTeam<kByWarp> team;
    const int64_t row = team.row();
    if (row >= logits.num_rows) return;
    const LogProbOutputs outputs = {params.log_prob, params.entropy, params.log_sum_exp};
    if (params.mask != nullptr && load(params.mask + row) == 0) {
        if (team.rank() == 0) {
            store_row(outputs, row, {0.0f, 0.0f, 0.0f});
            store_stats(params.stats, row,
                        to_stats(SoftmaxSums(), -__builtin_huge_valf(), launch.scale));
        }
        return;
    }
    const T* const values =
        static_cast<const T*>(logits.values) +
        row_offset(logits.width, logits.row_stride, logits.response_stride, row);
    // Issued before the row's loads, so that nothing waits for it behind them.
    float own_logit = -__builtin_huge_valf();
    bool has_token = false;
    if (team.rank() == 0) {
        const int64_t column = token_column(logits, row);
        has_token = column >= 0;
        if (has_token) own_logit = to_float(load_streaming(values + column));
    }
    SoftmaxSums sums =
        sum_row(values, logits.vocab_size, launch.scale, team.rank(), RowTeam<kByWarp>::kThreads);
    sums = team_softmax<kByWarp>(sums);
    if (team.rank() != 0) return;
    store_stats(params.stats, row, to_stats(sums, own_logit, launch.scale));
    SoftmaxRow result = softmax_row(sums, own_logit, launch.scale);
    if (!has_token) result = unusable_row();
    store_row(outputs, row, result);
}

struct MergeLaunch {
    qae_merge_softmax_stats_params params;
    float scale;  // log2(e) / T
};

// A thread a row: 16 bytes from each shard.
__global__ void __launch_bounds__(kBlockThreads)
    merge_softmax_stats(const __grid_constant__ MergeLaunch launch) {
    const qae_merge_softmax_stats_params& params = launch.params;
    const int64_t row = static_cast<int64_t>(blockIdx.x) * kBlockThreads + threadIdx.x;
    if (row >= params.num_rows) return;
    const LogProbOutputs outputs = {params.log_prob, params.entropy, params.log_sum_exp};
    const float none = -__builtin_huge_valf();
    SoftmaxSums sums;
    float own_logit = none;
    const bool is_masked = params.mask != nullptr && load(params.mask + row) == 0;
    for (int shard = 0; shard < params.num_shards && !is_masked; ++shard) {
        const qae_softmax_stats stats = load_stats(params.shards + shard * params.num_rows, row);
        sums = merge(sums, to_sums(stats, launch.scale));
        // At most one shard holds the token.
        if (!(stats.own_logit == none)) own_logit = stats.own_logit;
    }
    store_stats(params.stats, row, to_stats(sums, own_logit, launch.scale));
    store_row(
        outputs, row,
        is_masked ? SoftmaxRow{0.0f, 0.0f, 0.0f} : softmax_row(sums, own_logit, launch.scale));
}

struct LogProbsBackwardLaunch {
    qae_log_probs_from_logits_backward_params params;
    float scale;  // log2(e) / T
};

// The gradient of a row from its logits, which may be the same memory: each element is read and then
// written by one thread.
template <class T>
__device__ __forceinline__ void write_gradient(const T* source, T* target, int64_t num_columns,
                                               int column_of_token, const LogitGradient& gradient,
                                               int rank, int num_threads) {
    constexpr int kVector = kVectorElements<T>;
    RowVectors vectors = row_vectors(source, num_columns);
    // A vector of the source that is none of the target: everything goes one by one.
    if (!aligned_alike(source, target)) vectors = {static_cast<int32_t>(num_columns), 0, 0};
    const uint4* const from = reinterpret_cast<const uint4*>(source + vectors.head);
    uint4* const to = reinterpret_cast<uint4*>(target + vectors.head);
    const int token_offset = column_of_token - vectors.head;
    const bool in_vectors =
        column_of_token >= 0 && token_offset >= 0 && token_offset < vectors.num_vectors * kVector;
    const int token_vector = in_vectors ? token_offset / kVector : -1;
    for (int i = rank; i < vectors.num_vectors; i += kVectorsInFlight * num_threads) {
        uint4 words[kVectorsInFlight];
#pragma unroll
        for (int j = 0; j < kVectorsInFlight; ++j) {
            const int index = i + j * num_threads;
            if (index < vectors.num_vectors) words[j] = load_streaming(from + index);
        }
#pragma unroll
        for (int j = 0; j < kVectorsInFlight; ++j) {
            const int index = i + j * num_threads;
            if (index >= vectors.num_vectors) continue;
            const uint4 result =
                index == token_vector
                    ? token_vector_gradient<T>(gradient, words[j], token_offset % kVector)
                    : gradient_vector<T>(gradient, words[j]);
            store_streaming(to + index, result);
        }
    }
    for (int edge = rank; edge < vectors.num_edges(); edge += num_threads) {
        const int column = edge_column<T>(vectors, edge);
        const float logit = to_float(load_streaming(source + column));
        const float value =
            column == column_of_token ? gradient.at_token(logit) : gradient.at(logit);
        store_streaming(target + column, from_float<T>(value));
    }
}

template <class T, bool kByWarp>
__global__ void __launch_bounds__(kBlockThreads)
    log_probs_from_logits_backward(const __grid_constant__ LogProbsBackwardLaunch launch) {
    const qae_log_probs_from_logits_backward_params& params = launch.params;
    const qae_logits& logits = params.logits;
    const RowTeam<kByWarp> team;
    const int64_t row = team.row();
    if (row >= logits.num_rows) return;
    T* const target = static_cast<T*>(params.d_logits) +
                      row_offset(logits.width, params.d_row_stride, params.d_response_stride, row);
    const float given_g = load_uniform(params.d_log_prob + row);
    const float given_h = params.d_entropy != nullptr ? load_uniform(params.d_entropy + row) : 0.0f;
    if (given_g == 0.0f && given_h == 0.0f) {
        if (params.inactive_gradient == QAE_INACTIVE_UNTOUCHED) return;
        zero_row(target, logits.vocab_size, team.rank(), RowTeam<kByWarp>::kThreads);
        return;
    }
    const qae_softmax_stats stats = load_stats_uniform(params.stats, row);
    const bool has_log_prob = fabsf(stats.own_logit) <= kMaxFloat;
    const float g = has_log_prob && is_finite(given_g) ? given_g : 0.0f;
    const float h = is_finite(given_h) ? given_h : 0.0f;
    const LogitGradient gradient = logit_gradient(to_sums(stats, launch.scale), launch.scale, g, h);
    if (gradient.is_zero) {
        zero_row(target, logits.vocab_size, team.rank(), RowTeam<kByWarp>::kThreads);
        return;
    }
    const T* const source =
        static_cast<const T*>(logits.values) +
        row_offset(logits.width, logits.row_stride, logits.response_stride, row);
    int column = 0;
    if (lane_index() == 0) column = static_cast<int>(token_column(logits, row));
    column = __shfl_sync(kFullWarp, column, 0);
    write_gradient(source, target, logits.vocab_size, column, gradient, team.rank(),
                   RowTeam<kByWarp>::kThreads);
}

inline bool is_valid(const qae_log_probs_from_logits_params& params) {
    const bool of_whole =
        params.log_prob != nullptr || params.entropy != nullptr || params.log_sum_exp != nullptr;
    return is_valid_logits(params.logits) && (!of_whole || params.logits.vocab_start == 0) &&
           is_aligned(params.stats, 16);
}

inline bool is_valid(const qae_merge_softmax_stats_params& params) {
    return params.num_rows >= 0 && params.num_shards >= 1 &&
           is_valid_temperature(params.temperature) &&
           (params.num_rows == 0 || params.shards != nullptr) && is_aligned(params.shards, 16) &&
           is_aligned(params.stats, 16);
}

inline bool is_valid(const qae_log_probs_from_logits_backward_params& params) {
    const bool has_rows = params.logits.num_rows > 0;
    return is_valid_logits(params.logits) && params.d_row_stride >= params.logits.vocab_size &&
           in_range(params.inactive_gradient, QAE_INACTIVE_UNTOUCHED) &&
           (!has_rows || (params.stats != nullptr && params.d_log_prob != nullptr &&
                          params.d_logits != nullptr)) &&
           is_aligned(params.stats, 16) &&
           is_aligned(params.d_logits, element_bytes(params.logits.dtype));
}

// `of(T{}, by_warp)` launches the instance for rows of T.
template <class Launch>
qae_result launch_rows(const qae_logits& logits, const Launch& launch_instance) {
    const bool by_warp = logits.vocab_size * element_bytes(logits.dtype) <= kWarpRowBytes;
    const int64_t rows_per_block = by_warp ? kBlockWarps : 1;
    const int64_t grid = ceil_div(logits.num_rows, rows_per_block);
    switch (logits.dtype) {
        case QAE_F32:
            return launch_instance(float(), by_warp, grid);
        case QAE_BF16:
            return launch_instance(Bf16(), by_warp, grid);
        default:
            return launch_instance(F16(), by_warp, grid);
    }
}

}  // namespace QAE_NAMESPACE

extern "C" qae_result QAE_API(log_probs_from_logits)(const qae_log_probs_from_logits_params* params,
                                                     void* stream) {
    using namespace QAE_NAMESPACE;
    if (!is_valid(*params)) return QAE_INVALID_ARGUMENT;
    if (params->logits.num_rows == 0) return QAE_OK;
    const LogProbsLaunch arguments = {*params, softmax_scale(params->logits.temperature)};
    return launch_rows(params->logits, [&](auto element, bool by_warp, int64_t grid) {
        using T = decltype(element);
        return launch("log_probs_from_logits",
                      by_warp ? log_probs_from_logits<T, true> : log_probs_from_logits<T, false>,
                      grid, 0, stream, arguments);
    });
}

extern "C" qae_result QAE_API(merge_softmax_stats)(const qae_merge_softmax_stats_params* params,
                                                   void* stream) {
    using namespace QAE_NAMESPACE;
    if (!is_valid(*params)) return QAE_INVALID_ARGUMENT;
    if (params->num_rows == 0) return QAE_OK;
    const MergeLaunch arguments = {*params, softmax_scale(params->temperature)};
    return launch("merge_softmax_stats", merge_softmax_stats,
                  ceil_div(params->num_rows, static_cast<int64_t>(kBlockThreads)), 0, stream,
                  arguments);
}

extern "C" qae_result QAE_API(log_probs_from_logits_backward)(
    const qae_log_probs_from_logits_backward_params* params, void* stream) {
    using namespace QAE_NAMESPACE;
    if (!is_valid(*params)) return QAE_INVALID_ARGUMENT;
    if (params->logits.num_rows == 0) return QAE_OK;
    const LogProbsBackwardLaunch arguments = {*params, softmax_scale(params->logits.temperature)};
    return launch_rows(params->logits, [&](auto element, bool by_warp, int64_t grid) {
        using T = decltype(element);
        return launch("log_probs_from_logits_backward",
                      by_warp ? log_probs_from_logits_backward<T, true>
                              : log_probs_from_logits_backward<T, false>,
                      grid, 0, stream, arguments);
    });
}
