// Streams the tokens of a piece of a row: loads, the objective, the gradient's store.
//
// A warp takes 32 vectors of 16 bytes of log-probs at a time, kInFlight such chunks in flight. Vectors are
// aligned in the tensor; the few tokens before the first and behind the last go one by one, as does
// everything where the tensors are not aligned alike. Where the mask leaves a vector no valid token,
// its log-probs are not read.
#pragma once

#include "loss_from_log_probs.cuh"
#include "math/kl.cuh"

namespace QAE_NAMESPACE {

template <int kObjective_, bool kHasExtras_, class T_>
struct LossTraits {
    static constexpr int kObjective = kObjective_;
    // A KL term, or importance weights or advantages per token: what is off is a uniform branch.
    static constexpr bool kHasExtras = kHasExtras_;
    using T = T_;  // float or Half
    static constexpr int kVector = 16 / static_cast<int>(sizeof(T));
    static constexpr unsigned kAllBits = (1u << kVector) - 1u;
    // Vectors that a thread has in flight. Two blocks of 256 threads on an SM, which 128 registers
    // allow, then wait for 48 KiB of f32 log-probs, 32 KiB of 16-bit ones: enough to fill the
    // memory's latency. The extra tensors bring bytes, and need registers, of their own.
    static constexpr int kInFlight = sizeof(T) == 4 ? (kHasExtras ? 2 : 3) : (kHasExtras ? 1 : 2);
    static constexpr bool kIsGspo = kObjective == QAE_OBJECTIVE_GSPO;
    static constexpr bool kUsesRatio = !kIsGspo && kObjective != QAE_OBJECTIVE_REINFORCE;
    static constexpr bool kClampsLogRatio = kObjective == QAE_OBJECTIVE_CLIP ||
                                            kObjective == QAE_OBJECTIVE_CISPO ||
                                            kObjective == QAE_OBJECTIVE_SAPO;
};

// Which optional tensors a launch has; uniform over the grid.
template <class Traits>
struct Extras {
    bool kl, weights, advantages;

    __device__ __forceinline__ explicit Extras(const qae_loss_from_log_probs_params& params)
        : kl(Traits::kHasExtras && params.kl != QAE_KL_NONE),
          weights(Traits::kHasExtras && params.importance_weight != nullptr &&
                  params.weight_per_response == 0),
          advantages(Traits::kHasExtras && params.advantage_source == QAE_ADVANTAGE_PER_TOKEN) {}
};

// What GSPO knows of a row before it streams it: rho_i = exp(mean log-ratio).
struct RowTerms {
    float log_ratio;  // the mean
    float ratio;
    float gradient_ratio;  // 0 beyond the clamp
    bool usable;           // every log-ratio is finite
};

// The values of one token.
struct Token {
    float log_prob, old_log_prob, ref_log_prob, weight, advantage;
};

// The objective of one token from its log-probs.
template <class Traits>
__device__ __forceinline__ PolicyTerms policy_terms(const ObjectiveOptions& options,
                                                    const RowTerms& row, float log_prob,
                                                    float ratio, float gradient_ratio,
                                                    float advantage) {
    if constexpr (Traits::kObjective == QAE_OBJECTIVE_CLIP) {
        return clip_terms(options, ratio, gradient_ratio, advantage);
    } else if constexpr (Traits::kObjective == QAE_OBJECTIVE_GSPO) {
        return clip_terms(options, row.ratio, row.gradient_ratio, advantage);
    } else if constexpr (Traits::kObjective == QAE_OBJECTIVE_CISPO) {
        return cispo_terms(options, ratio, log_prob, advantage);
    } else if constexpr (Traits::kObjective == QAE_OBJECTIVE_SAPO) {
        return sapo_terms(options, ratio, gradient_ratio, advantage);
    } else {
        return {-advantage * log_prob, -advantage, false, false};
    }
}

// Streams one piece with one warp's share of its threads.
template <class Traits>
struct PieceStream {
    using T = typename Traits::T;
    static constexpr int kVector = Traits::kVector;

    const LossLaunch& launch;
    const RowPiece& piece;
    const RowTerms& row;
    ThreadSums& sums;
    const Extras<Traits> extras;
    const bool reads_ratio;  // log_prob and old_log_prob are needed per token
    const bool is_bf16;
    const bool counts_all;  // the metrics cover inactive tokens too

    __device__ __forceinline__ PieceStream(const LossLaunch& launch_, const RowPiece& piece_,
                                           const RowTerms& row_, ThreadSums& sums_)
        : launch(launch_),
          piece(piece_),
          row(row_),
          sums(sums_),
          extras(launch_.params),
          reads_ratio(Traits::kIsGspo ? extras.kl
                                      : Traits::kObjective != QAE_OBJECTIVE_REINFORCE ||
                                            launch_.params.old_log_prob != nullptr),
          is_bf16(launch_.params.dtype == QAE_BF16),
          counts_all(launch_.params.metrics_scope == QAE_METRICS_ALL) {}

    // GSPO without a KL term knows a token's gradient from its row alone.
    __device__ __forceinline__ bool reads_log_prob() const { return !Traits::kIsGspo || extras.kl; }

    // Valid tokens of a vector, where one advantage holds for all of them.
    __device__ __forceinline__ void count_tokens(unsigned num_valid) {
        if (extras.advantages) return;
        const bool is_active = piece.advantage != 0.0f;
        sums.tokens += is_active || counts_all ? num_valid : 0u;
        sums.active_tokens += is_active ? num_valid : 0u;
    }

    // The advantage of one token; counts the token where it has one of its own.
    __device__ __forceinline__ float token_advantage(const Token& token, bool is_valid) {
        if (!extras.advantages) return piece.advantage;
        const bool is_bad = !is_finite(token.advantage);
        const float advantage = is_bad ? 0.0f : token.advantage;
        sums.nonfinite_advantages += is_valid && is_bad;
        sums.tokens += is_valid && (advantage != 0.0f || counts_all);
        sums.active_tokens += is_valid && advantage != 0.0f;
        return advantage;
    }

    // One token: adds to the sums and returns d loss / d log_prob, 0 unless it is valid. Branches
    // would diverge; so everything is computed, and what does not count is selected away. Nothing
    // is ever multiplied by 0 to remove it.
    // `usable`, if given: whether it is valid and all that it contributes is finite.
    __device__ __forceinline__ float step(const Token& token, bool is_valid,
                                          bool* usable = nullptr) {
        const qae_loss_from_log_probs_params& params = launch.params;
        const float advantage = token_advantage(token, is_valid);
        const bool is_active = advantage != 0.0f;
        const float log_ratio = reads_ratio ? token.log_prob - token.old_log_prob : 0.0f;
        const float limit =
            Traits::kClampsLogRatio ? launch.options.log_ratio_clamp : __builtin_huge_valf();
        const float clamped = clamp(log_ratio, -limit, limit);
        const float ratio = Traits::kUsesRatio || reads_ratio ? expf(clamped) : 1.0f;
        const float gradient_ratio = fabsf(log_ratio) <= limit ? ratio : 0.0f;
        PolicyTerms policy = policy_terms<Traits>(launch.options, row, token.log_prob, ratio,
                                                  gradient_ratio, advantage);
        const float weight = extras.weights ? token.weight * piece.weight : piece.weight;
        // A token without a policy term takes nothing from its weight, finite or not.
        const bool has_policy = is_active && (!Traits::kIsGspo || row.usable);
        policy.loss = has_policy ? policy.loss * weight : 0.0f;
        policy.gradient = has_policy ? policy.gradient * weight : 0.0f;
        float gradient = policy.gradient * piece.coefficient;
        // Finite where everything that the token contributes is: one comparison for all.
        float size = fabsf(log_ratio) + fabsf(policy.loss);
        KlTerms kl = {0.0f, 0.0f};
        if (extras.kl) {
            kl = kl_terms(params.kl, params.kl_clamp != 0, token.log_prob, token.ref_log_prob);
            gradient += kl.gradient * (params.kl_coef * piece.coefficient);
            size += fabsf(kl.value);
        }
        size += fabsf(gradient);
        const bool is_usable = is_valid && is_finite(size);
        if (usable != nullptr) *usable = is_usable;
        sums.nonfinite_tokens += is_valid && !is_usable && (is_active || extras.kl);
        sums.pg_loss += is_usable ? policy.loss * piece.share : 0.0f;
        if (extras.kl) sums.kl_loss += is_usable ? kl.value * piece.share : 0.0f;
        const bool counts = is_usable && (is_active || counts_all);
        if constexpr (Traits::kIsGspo) {
            const float token_log_ratio = reads_ratio ? log_ratio : row.log_ratio;
            count(counts, row.usable, policy, token_log_ratio, row.ratio, advantage);
        } else if (reads_ratio) {
            count(counts, true, policy, clamped, ratio, advantage);
        }
        // Adding +0 keeps an exact zero from being negative.
        return is_usable ? gradient + 0.0f : 0.0f;
    }

    __device__ __forceinline__ void count(bool counts, bool has_ratio, const PolicyTerms& policy,
                                          float log_ratio, float ratio, float advantage) {
        sums.neg_log_ratio -= counts ? log_ratio : 0.0f;
        // fminf and fmaxf ignore a NaN.
        const float counted_ratio = counts && has_ratio ? ratio : __int_as_float(0x7fffffff);
        sums.min_ratio = fminf(sums.min_ratio, counted_ratio);
        sums.max_ratio = fmaxf(sums.max_ratio, counted_ratio);
        if constexpr (Traits::kObjective == QAE_OBJECTIVE_CISPO) {
            sums.clipped_above += counted_ratio > launch.options.clip_max;
            sums.clipped_below += counted_ratio < launch.options.clip_min;
        } else if constexpr (Traits::kObjective != QAE_OBJECTIVE_SAPO &&
                             Traits::kObjective != QAE_OBJECTIVE_REINFORCE) {
            const bool clipped = counts && has_ratio && policy.clipped;
            sums.clipped_above += clipped && advantage > 0.0f;
            sums.clipped_below += clipped && advantage < 0.0f;
            sums.dual_clipped += counts && has_ratio && policy.dual_clipped;
        }
    }

    // One slot that is in no whole vector.
    __device__ __forceinline__ void single(int32_t slot, bool reads, bool writes) {
        const qae_loss_from_log_probs_params& params = launch.params;
        bool is_valid = reads && slot < piece.num_valid;
        if (is_valid && params.layout.mask != nullptr) {
            is_valid = load_streaming(params.layout.mask + piece.mask_start + slot) != 0;
        }
        float gradient = 0.0f;
        if (is_valid) {
            const int64_t index = piece.start + slot;
            Token token = {};
            if (reads_log_prob()) token.log_prob = value(params.log_prob, index);
            if (reads_ratio) token.old_log_prob = value(params.old_log_prob, index);
            if (extras.kl) token.ref_log_prob = value(params.ref_log_prob, index);
            if (extras.weights) token.weight = load_streaming(params.importance_weight + index);
            if (extras.advantages) token.advantage = load_streaming(params.advantages + index);
            count_tokens(1);
            gradient = step(token, true);
        }
        if (!writes) return;
        const int64_t index = piece.gradient_start + slot;
        if (params.gradient_dtype == QAE_F32) {
            store_streaming(static_cast<float*>(params.d_log_prob) + index, gradient);
        } else {
            store_streaming(static_cast<T*>(params.d_log_prob) + index,
                            narrow<T>(gradient, is_bf16));
        }
    }

    __device__ __forceinline__ float value(const void* base, int64_t index) const {
        return widen(load_streaming(static_cast<const T*>(base) + index), is_bf16);
    }
};

// One whole vector of a piece: which of its slots are valid tokens, and their values.
template <class Traits>
struct TokenVector {
    using T = typename Traits::T;
    static constexpr int kVector = Traits::kVector;

    unsigned valid_bits;
    Fragment<T, kVector> log_prob, old_log_prob, ref_log_prob;
    Fragment<float, kVector> weight, advantage;

    // The valid bits of the vector that begins at `slot`.
    __device__ __forceinline__ void locate(const qae_layout& layout, const RowPiece& piece,
                                           int32_t slot) {
        const int num_valid = piece.num_valid - slot;
        valid_bits = num_valid <= 0         ? 0u
                     : num_valid >= kVector ? Traits::kAllBits
                                            : (1u << num_valid) - 1u;
        if (layout.mask == nullptr || valid_bits == 0) return;
        Fragment<uint8_t, kVector> bytes;
        bytes.load(layout.mask, piece.mask_start + slot);
        valid_bits &= bytes.nonzero_bits();
    }

    __device__ __forceinline__ void load_ratio(const qae_loss_from_log_probs_params& params,
                                               int64_t index, bool reads_old) {
        log_prob.load(static_cast<const T*>(params.log_prob), index);
        if (reads_old) old_log_prob.load(static_cast<const T*>(params.old_log_prob), index);
    }

    __device__ __forceinline__ void load(const PieceStream<Traits>& stream, int32_t slot) {
        if (valid_bits == 0) return;
        const qae_loss_from_log_probs_params& params = stream.launch.params;
        const int64_t index = stream.piece.start + slot;
        if (stream.reads_log_prob()) load_ratio(params, index, stream.reads_ratio);
        if (stream.extras.kl) ref_log_prob.load(static_cast<const T*>(params.ref_log_prob), index);
        if (stream.extras.weights) weight.load(params.importance_weight, index);
        if (stream.extras.advantages) advantage.load(params.advantages, index);
    }

    __device__ __forceinline__ Token token(int i, bool is_bf16) const {
        Token token;
        token.log_prob = widen(log_prob.values[i], is_bf16);
        token.old_log_prob = widen(old_log_prob.values[i], is_bf16);
        token.ref_log_prob = widen(ref_log_prob.values[i], is_bf16);
        token.weight = weight.values[i];
        token.advantage = advantage.values[i];
        return token;
    }

    __device__ __forceinline__ void store_gradient(const PieceStream<Traits>& stream,
                                                   const float (&gradient)[kVector],
                                                   int32_t slot) const {
        const qae_loss_from_log_probs_params& params = stream.launch.params;
        const int64_t index = stream.piece.gradient_start + slot;
        if (params.gradient_dtype == QAE_F32) {
            Fragment<float, kVector> out;
#pragma unroll
            for (int i = 0; i < kVector; ++i) out.values[i] = gradient[i];
            out.store(static_cast<float*>(params.d_log_prob), index);
        } else {
            Fragment<T, kVector> out;
#pragma unroll
            for (int i = 0; i < kVector; ++i)
                out.values[i] = narrow<T>(gradient[i], stream.is_bf16);
            out.store(static_cast<T*>(params.d_log_prob), index);
        }
    }
};

// How a piece divides into slots before its first whole vector, whole vectors, and the rest.
struct PieceVectors {
    int32_t head;  // slots before the first vector
    int32_t num_vectors;
    int32_t num_singles;  // slots in no vector
};

template <class Traits>
__device__ __forceinline__ PieceVectors piece_vectors(const RowPiece& piece, bool vectorized) {
    constexpr int kVector = Traits::kVector;
    const int misalignment = static_cast<int>(piece.start % kVector);
    const int to_boundary = misalignment == 0 ? 0 : kVector - misalignment;
    const int head = to_boundary < piece.num_slots ? to_boundary : piece.num_slots;
    const int num_vectors = vectorized ? (piece.num_slots - head) / kVector : 0;
    return {head, num_vectors, piece.num_slots - num_vectors * kVector};
}

// The i-th slot that is in no vector.
template <class Traits>
__device__ __forceinline__ int32_t single_slot(const PieceVectors& vectors, int i) {
    return i < vectors.head ? i : i + vectors.num_vectors * Traits::kVector;
}

// All vectors of the piece whose chunk (32 vectors) this warp takes: `first_chunk`, then every
// `chunk_step`-th. `saved_bits` gives the valid bits of an earlier pass instead of the mask.
// Returns whether this thread saw an active token.
template <class Traits>
__device__ __forceinline__ bool stream_piece(const LossLaunch& launch, const RowPiece& piece,
                                             const RowTerms& row, int first_chunk, int chunk_step,
                                             bool use_saved, SharedPointer<uint8_t> saved_bits,
                                             ThreadSums& sums) {
    constexpr int kInFlight = Traits::kInFlight;
    constexpr int kVector = Traits::kVector;
    const bool reads = (piece.flags & kPieceReads) != 0;
    const bool writes = (piece.flags & kPieceWrites) != 0;
    if (!reads && !writes) return false;
    const PieceVectors vectors = piece_vectors<Traits>(piece, launch.plan.vectorized != 0);
    const int first = first_chunk * kWarpThreads + lane_index();
    const int step = chunk_step * kWarpThreads;
    const unsigned active_before = sums.active_tokens;
    PieceStream<Traits> stream(launch, piece, row, sums);
    for (int vector = first; vector < vectors.num_vectors; vector += kInFlight * step) {
        TokenVector<Traits> tokens[kInFlight];
#pragma unroll
        for (int j = 0; j < kInFlight; ++j) {
            const int index = vector + j * step;
            tokens[j].valid_bits = 0;
            if (!reads || index >= vectors.num_vectors) continue;
            if (use_saved) {
                tokens[j].valid_bits = saved_bits[index];
            } else {
                tokens[j].locate(launch.params.layout, piece, vectors.head + index * kVector);
            }
        }
#pragma unroll
        for (int j = 0; j < kInFlight; ++j) {
            tokens[j].load(stream, vectors.head + (vector + j * step) * kVector);
        }
#pragma unroll
        for (int j = 0; j < kInFlight; ++j) {
            if (vector + j * step >= vectors.num_vectors) continue;
            float gradient[kVector];
#pragma unroll
            for (int i = 0; i < kVector; ++i) gradient[i] = 0.0f;
            if (tokens[j].valid_bits != 0) {
                stream.count_tokens(static_cast<unsigned>(__popc(tokens[j].valid_bits)));
#pragma unroll
                for (int i = 0; i < kVector; ++i) {
                    gradient[i] = stream.step(tokens[j].token(i, stream.is_bf16),
                                              (tokens[j].valid_bits >> i & 1u) != 0);
                }
            }
            if (!writes) continue;
            tokens[j].store_gradient(stream, gradient,
                                     vectors.head + (vector + j * step) * kVector);
        }
    }
    for (int i = first; i < vectors.num_singles; i += step) {
        stream.single(single_slot<Traits>(vectors, i), reads, writes);
    }
    return sums.active_tokens != active_before;
}

}  // namespace QAE_NAMESPACE
