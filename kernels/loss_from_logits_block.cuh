// Rows of logits by single blocks, without clusters or bulk copies: a block keeps as much of its row
// in shared memory as fits and reads the rest a second time. For GPUs before compute capability 9.0,
// and for rows that are short.
#pragma once

#include "loss_from_logits_rows.cuh"

namespace QAE_NAMESPACE {

template <class T>
struct BlockRows {
    const LogitsLaunch& launch;
    const SharedPointer<uint4> held;       // [held_vectors] the row's first vectors
    const SharedPointer<float4> partials;  // [2][kBlockWarps]
    const SharedPointer<float> own_logit;  // [2]
    const float factor;
    int row_parity = 0;

    // A vector that is held, or one that is read again: that may stay in the L2 cache until then.
    template <bool kHolds>
    __device__ __forceinline__ uint4 take_vector(const uint4* whole, int i) const {
        if constexpr (kHolds) return load_streaming(whole + i);
        return load_coherent(whole + i);
    }

    // Vectors [begin, end) of the row; `begin` is a whole number of the block's steps.
    template <bool kHolds>
    __device__ __forceinline__ void sum_range(SoftmaxSums& sums, const uint4* whole, int begin,
                                              int end) const {
        const float scale = launch.plan.scale;
        int i = begin + static_cast<int>(threadIdx.x);
        for (; i + (kVectorsInFlight - 1) * kBlockThreads < end;
             i += kVectorsInFlight * kBlockThreads) {
            uint4 words[kVectorsInFlight];
#pragma unroll
            for (int j = 0; j < kVectorsInFlight; ++j) {
                words[j] = take_vector<kHolds>(whole, i + j * kBlockThreads);
            }
#pragma unroll
            for (int j = 0; j < kVectorsInFlight; ++j) {
                if constexpr (kHolds) held[i + j * kBlockThreads] = words[j];
            }
            accumulate_vectors<T>(sums, words, scale);
        }
        for (; i < end; i += kBlockThreads) {
            const uint4 word = take_vector<kHolds>(whole, i);
            if constexpr (kHolds) held[i] = word;
            accumulate_vector<T>(sums, word, scale);
        }
    }

    // The thread's part of the row; what is held is read by the same thread again, so that no barrier
    // is needed for it.
    __device__ __forceinline__ SoftmaxSums sum_part(const T* row, const RowVectors& vectors) const {
        const uint4* const whole = reinterpret_cast<const uint4*>(row + vectors.head);
        const int num_held = launch.plan.held_vectors < vectors.num_vectors
                                 ? launch.plan.held_vectors
                                 : vectors.num_vectors;
        SoftmaxSums sums;
        sum_range<true>(sums, whole, 0, num_held);
        sum_range<false>(sums, whole, num_held, vectors.num_vectors);
        for (int edge = static_cast<int>(threadIdx.x); edge < vectors.num_edges();
             edge += kBlockThreads) {
            const float value[1] = {to_float(load_streaming(row + edge_column<T>(vectors, edge)))};
            accumulate(sums, value, launch.plan.scale);
        }
        return sums;
    }

    __device__ __forceinline__ SoftmaxSums sum_row(const T* row, const RowVectors& vectors,
                                                   int column, float& own) {
        const SharedPointer<float4> of_warps = partials + row_parity * kBlockWarps;
        const SharedPointer<float> own_place = own_logit + row_parity;
        // Issued before the row's loads, and done before anything of the row is overwritten.
        float found = 0.0f;
        if (threadIdx.x == 0 && column >= 0) found = to_float(load_streaming(row + column));
        const SoftmaxSums of_warp = warp_softmax(sum_part(row, vectors));
        if (lane_index() == 0) {
            of_warps[warp_index()] = float4{of_warp.shift, of_warp.sum, of_warp.sum_d, 0.0f};
        }
        if (threadIdx.x == 0) own_place[0] = found;
        __syncthreads();
        SoftmaxSums sums;
        if (lane_index() < kBlockWarps) {
            const float4 partial = of_warps[lane_index()];
            sums = {partial.x, partial.y, partial.z};
        }
        own = own_place[0];
        row_parity ^= 1;
        return warp_softmax(sums);
    }

    // Whole vectors of a target that is aligned like the row.
    __device__ __forceinline__ void store_vectors(const T* row, T* target,
                                                  const RowVectors& vectors, int column,
                                                  const LogitGradient& gradient) const {
        constexpr int kVector = kVectorElements<T>;
        const uint4* const from = reinterpret_cast<const uint4*>(row + vectors.head);
        uint4* const to = reinterpret_cast<uint4*>(target + vectors.head);
        const int num_held = launch.plan.held_vectors;
        const int offset = column - vectors.head;
        const bool in_vectors = offset >= 0 && offset < vectors.num_vectors * kVector;
        const int token_vector = column >= 0 && in_vectors ? offset / kVector : -1;
        for (int i = static_cast<int>(threadIdx.x); i < vectors.num_vectors;
             i += kVectorsInFlight * kBlockThreads) {
            uint4 words[kVectorsInFlight];
#pragma unroll
            for (int j = 0; j < kVectorsInFlight; ++j) {
                const int index = i + j * kBlockThreads;
                if (index >= vectors.num_vectors) continue;
                if (index < num_held) {
                    words[j] = held[index];
                } else {
                    words[j] = load_streaming(from + index);
                }
            }
#pragma unroll
            for (int j = 0; j < kVectorsInFlight; ++j) {
                const int index = i + j * kBlockThreads;
                if (index >= vectors.num_vectors) continue;
                const uint4 result =
                    index == token_vector
                        ? token_vector_gradient<T>(gradient, words[j], offset % kVector)
                        : gradient_vector<T>(gradient, words[j]);
                store_streaming(to + index, result);
            }
        }
    }

    __device__ __forceinline__ void store_element(const T* row, T* target, int element, int column,
                                                  const LogitGradient& gradient) const {
        const float logit = to_float(load_streaming(row + element));
        const float value = element == column ? gradient.at_token(logit) : gradient.at(logit);
        store_streaming(target + element, from_float<T>(value));
    }

    __device__ __forceinline__ void store_row(const T* row, T* target, const RowVectors& vectors,
                                              int column, const LogitGradient& gradient) const {
        const int thread = static_cast<int>(threadIdx.x);
        if (aligned_alike(row, target)) {
            store_vectors(row, target, vectors, column, gradient);
            for (int edge = thread; edge < vectors.num_edges(); edge += kBlockThreads) {
                store_element(row, target, edge_column<T>(vectors, edge), column, gradient);
            }
            return;
        }
        const int num_columns = static_cast<int>(launch.params.logits.vocab_size);
        for (int i = thread; i < num_columns; i += kBlockThreads) {
            store_element(row, target, i, column, gradient);
        }
    }

    __device__ __forceinline__ void compute(const SlotRecord& record, const BlockSums& totals) {
        const T* const row = static_cast<const T*>(launch.params.logits.values) + record.logits;
        const RowVectors vectors = row_vectors(row, launch.params.logits.vocab_size);
        float own;
        const SoftmaxSums softmax = sum_row(row, vectors, record.column, own);
        if (launch.plan.pass == kPassMeasure) {
            measure_row(launch, record, softmax, own, 0);
            return;
        }
        RowSums sums;
        const RowResult result = judge_row(launch, record, factor, softmax, own, sums);
        if (threadIdx.x == 0) record_row(launch, record, result, sums, totals);
        if ((record.flags & kSlotWrites) == 0) return;
        T* const target = static_cast<T*>(launch.params.d_logits) + record.gradient;
        if (result.gradient.is_zero) {
            zero_row(target, launch.params.logits.vocab_size, static_cast<int>(threadIdx.x),
                     kBlockThreads);
        } else {
            store_row(row, target, vectors, record.column, result.gradient);
        }
    }
};

// A block's rows, batch by batch.
template <class T>
__device__ __forceinline__ void compute_block(const LogitsLaunch& launch,
                                              SharedPointer<uint8_t> dynamic,
                                              const BlockSums& totals) {
    QAE_SHARED(SlotRecord, records, kBatchSlots);
    QAE_SHARED(uint8_t, read_list, kBatchSlots);
    QAE_SHARED(uint8_t, zero_list, kBatchSlots);
    QAE_SHARED(float4, partials, 2 * kBlockWarps);
    QAE_SHARED(float, own_logit, 2);
    const LogitsPlan& plan = launch.plan;
    const int team = static_cast<int>(blockIdx.x);
    const SharedPointer<float> stages =
        shared_cast<float>(dynamic + static_cast<int64_t>(plan.held_vectors) * 16);
    BlockRows<T> rows = {launch, shared_cast<uint4>(dynamic), partials, own_logit,
                         gradient_factor(launch)};
    if (plan.pass == kPassLoss) count_responses(launch, stages);
    const int64_t num_slots = launch.loss.params.layout.num_slots;
    const int64_t step = static_cast<int64_t>(kBatchSlots) * plan.num_teams;
    for (int64_t first = team; first < num_slots; first += step) {
        describe_slots(launch, first, plan.pass == kPassLoss, records, stages);
        __syncthreads();
        const ListCounts counts = list_slots(records, {read_list, zero_list});
        __syncthreads();
        for (int i = 0; i < counts.zero && plan.pass == kPassLoss; ++i) {
            const SlotRecord record = records[zero_list[i]];
            zero_row(static_cast<T*>(launch.params.d_logits) + record.gradient,
                     launch.params.logits.vocab_size, static_cast<int>(threadIdx.x), kBlockThreads);
        }
        for (int i = 0; i < counts.read; ++i) {
            const SlotRecord record = records[read_list[i]];
            rows.compute(record, totals);
        }
        // The records are not needed any more.
        __syncthreads();
    }
}

}  // namespace QAE_NAMESPACE
