// Rows of logits on the chip: each block of a cluster holds its slice of a row in a ring of shared
// memory, fed and emptied by bulk copies, so that a row is read once and its gradient written once.
#pragma once

#include "loss_from_logits_ring.cuh"
#include "loss_from_logits_rows.cuh"

#if QAE_HAS_CLUSTERS

namespace QAE_NAMESPACE {

// What the blocks of a cluster tell each other of a row. Two rows' worth: a block may begin the next
// row while another still reads this one.
struct Exchange {
    SharedPointer<float4> partials;  // [2][kMaxClusterBlocks * kBlockWarps]
    SharedPointer<float> own_logit;  // [2]
};
constexpr int kExchangePartials = kMaxClusterBlocks * kBlockWarps;

template <class T>
struct ClusterRows {
    const LogitsLaunch& launch;
    const Ring ring;
    const Exchange exchange;
    const int rank;
    const float factor;
    RingPlace consumed;  // of the row that is being worked on
    int row_parity = 0;
    float edge_logit = 0.0f;

    // All threads: the sums of the thread's part of the slice.
    __device__ __forceinline__ SoftmaxSums sum_slice(const RowSlice<T>& slice,
                                                     RingFeeder<T>& feeder) {
        const float scale = launch.plan.scale;
        SoftmaxSums sums;
        // The few elements outside whole vectors belong to the first block.
        const int thread = static_cast<int>(threadIdx.x);
        if (rank == 0 && thread < slice.vectors.num_edges()) {
            edge_logit =
                to_float(load_streaming(slice.row + edge_column<T>(slice.vectors, thread)));
            const float value[1] = {edge_logit};
            accumulate(sums, value, scale);
        }
        RingPlace place = consumed;
        for (int chunk = 0; chunk < launch.plan.slice_chunks; ++chunk) {
            mbarrier_wait(ring.landed + place.chunk, place.parity);
            if (chunk == 0 && thread == 0) feeder.catch_up();
            const SharedPointer<uint4> vectors = ring.vectors(place.chunk);
            const int size = slice.chunk_size(chunk);
            if (size == kChunkVectors) {
                uint4 words[kVectorsInFlight];
#pragma unroll
                for (int i = 0; i < kVectorsInFlight; ++i) {
                    words[i] = vectors[thread + i * kBlockThreads];
                }
                accumulate_vectors<T>(sums, words, scale);
            } else {
                for (int i = thread; i < size; i += kBlockThreads) {
                    accumulate_vector<T>(sums, vectors[i], scale);
                }
            }
            place.advance(launch.plan.ring_chunks);
        }
        return sums;
    }

    // The token's logit, where this block holds it; the same in all threads that ask.
    __device__ __forceinline__ bool find_own_logit(const RowSlice<T>& slice, int column,
                                                   float& logit) const {
        const int offset = column - slice.vectors.head;
        const bool in_vectors =
            offset >= 0 && offset < slice.vectors.num_vectors * kVectorElements<T>;
        if (column < 0) return false;
        if (!in_vectors) {
            if (rank == 0) logit = to_float(load_streaming(slice.row + column));
            return rank == 0;
        }
        const int vector = offset / kVectorElements<T>;
        if (vector < slice.begin || vector >= slice.end) return false;
        const int chunk =
            (consumed.chunk + (vector - slice.begin) / kChunkVectors) % launch.plan.ring_chunks;
        const int element = (vector - slice.begin) % kChunkVectors * kVectorElements<T> +
                            offset % kVectorElements<T>;
        const T value = shared_cast<T>(ring.chunk(chunk))[element];
        logit = to_float(value);
        return true;
    }

    // The sums of the whole row and its token's logit, the same in all threads of the cluster.
    __device__ __forceinline__ SoftmaxSums sum_row(const RowSlice<T>& slice, int column,
                                                   float& own_logit, RingFeeder<T>& feeder) {
        const int cluster = launch.plan.cluster;
        const SoftmaxSums of_warp = warp_softmax(sum_slice(slice, feeder));
        const SharedPointer<float4> partials = exchange.partials + row_parity * kExchangePartials;
        const SharedPointer<float> own = exchange.own_logit + row_parity;
        const int lane = lane_index();
        if (lane < cluster) {
            const float4 partial = {of_warp.shift, of_warp.sum, of_warp.sum_d, 0.0f};
            store_remote(partials + (rank * kBlockWarps + warp_index()),
                         static_cast<unsigned>(lane), partial);
            float logit;
            if (warp_index() == 0 && find_own_logit(slice, column, logit)) {
                store_remote(own, static_cast<unsigned>(lane), logit);
            }
        }
        // A release to a cluster waits for all of the thread's stores; a block alone needs none.
        if (cluster == 1) {
            __syncthreads();
        } else {
            cluster_arrive();
            cluster_wait();
        }
        SoftmaxSums sums;
        for (int i = lane; i < cluster * kBlockWarps; i += kWarpThreads) {
            const float4 partial = partials[i];
            sums = merge(sums, {partial.x, partial.y, partial.z});
        }
        own_logit = column >= 0 ? static_cast<float>(own[0]) : 0.0f;
        row_parity ^= 1;
        return warp_softmax(sums);
    }

    // Every thread writes the gradient over the vectors that it reads.
    __device__ __forceinline__ void write_chunk(const LogitGradient& gradient,
                                                SharedPointer<uint4> vectors, int size) const {
        const int thread = static_cast<int>(threadIdx.x);
        if (size == kChunkVectors) {
            uint4 words[kVectorsInFlight];
#pragma unroll
            for (int i = 0; i < kVectorsInFlight; ++i)
                words[i] = vectors[thread + i * kBlockThreads];
#pragma unroll
            for (int i = 0; i < kVectorsInFlight; ++i) {
                vectors[thread + i * kBlockThreads] = gradient_vector<T>(gradient, words[i]);
            }
        } else {
            for (int i = thread; i < size; i += kBlockThreads) {
                const uint4 word = vectors[i];
                vectors[i] = gradient_vector<T>(gradient, word);
            }
        }
    }

    __device__ __forceinline__ void store_edges(const RowSlice<T>& slice, T* target, int column,
                                                const LogitGradient& gradient) const {
        const int thread = static_cast<int>(threadIdx.x);
        if (rank != 0 || thread >= slice.vectors.num_edges()) return;
        const int edge = edge_column<T>(slice.vectors, thread);
        const float value =
            edge == column ? gradient.at_token(edge_logit) : gradient.at(edge_logit);
        store_streaming(target + edge, from_float<T>(value));
    }

    // The gradient's chunks leave as they are done.
    __device__ __forceinline__ void store_slice(const RowSlice<T>& slice, T* target, int column,
                                                float own_logit, const LogitGradient& gradient,
                                                RingFeeder<T>& feeder) {
        constexpr int kVector = kVectorElements<T>;
        const int thread = static_cast<int>(threadIdx.x);
        // The token's element, where it is in this slice, and this thread's to write.
        const int own = column - slice.vectors.head - slice.begin * kVector;
        const bool owns = column >= 0 && own >= 0 && own < (slice.end - slice.begin) * kVector &&
                          own / kVector % kBlockThreads == thread;
        const int own_chunk = owns ? own / (kChunkVectors * kVector) : -1;
        T* const first = target + slice.vectors.head + slice.begin * kVector;
        store_edges(slice, target, column, gradient);
        for (int chunk = 0; chunk < launch.plan.slice_chunks; ++chunk) {
            const int size = slice.chunk_size(chunk);
            const SharedPointer<uint8_t> bytes = ring.chunk(consumed.chunk);
            write_chunk(gradient, ring.vectors(consumed.chunk), size);
            if (chunk == own_chunk) {
                shared_cast<T>(bytes)[own % (kChunkVectors * kVector)] =
                    from_float<T>(gradient.at_token(own_logit));
            }
            fence_async();
            __syncthreads();
            if (thread == 0) {
                feeder.release(first + chunk * (kChunkVectors * kVector), bytes,
                               static_cast<unsigned>(size) * 16u);
            }
            consumed.advance(launch.plan.ring_chunks);
        }
    }

    // A target that is aligned unlike its row cannot be stored by vectors: element by element.
    __device__ __forceinline__ void store_elements(const RowSlice<T>& slice, T* target, int column,
                                                   const LogitGradient& gradient) const {
        store_edges(slice, target, column, gradient);
        RingPlace place = consumed;
        for (int chunk = 0; chunk < launch.plan.slice_chunks; ++chunk) {
            const int num_elements = slice.chunk_size(chunk) * kVectorElements<T>;
            const int first = slice.vectors.head + slice.chunk_begin(chunk) * kVectorElements<T>;
            const SharedPointer<T> values = shared_cast<T>(ring.chunk(place.chunk));
            for (int i = static_cast<int>(threadIdx.x); i < num_elements; i += kBlockThreads) {
                const T value = values[i];
                const float logit = to_float(value);
                const float result =
                    first + i == column ? gradient.at_token(logit) : gradient.at(logit);
                store_streaming(target + first + i, from_float<T>(result));
            }
            place.advance(launch.plan.ring_chunks);
        }
    }

    // The row's chunks are free without having been stored.
    __device__ __forceinline__ void skip_slice(RingFeeder<T>& feeder) {
        __syncthreads();
        for (int chunk = 0; chunk < launch.plan.slice_chunks; ++chunk) {
            if (threadIdx.x == 0) feeder.release(nullptr, ring.chunk(consumed.chunk), 0);
            consumed.advance(launch.plan.ring_chunks);
        }
    }

    __device__ __forceinline__ void compute(const SlotRecord& record, RingFeeder<T>& feeder,
                                            const BlockSums& totals) {
        const RowSlice<T> slice(launch, record, rank);
        float own_logit;
        const SoftmaxSums softmax = sum_row(slice, record.column, own_logit, feeder);
        if (launch.plan.pass == kPassMeasure) {
            measure_row(launch, record, softmax, own_logit, rank);
            skip_slice(feeder);
            return;
        }
        RowSums sums;
        const RowResult result = judge_row(launch, record, factor, softmax, own_logit, sums);
        if (rank == 0 && threadIdx.x == 0) record_row(launch, record, result, sums, totals);
        T* const target = static_cast<T*>(launch.params.d_logits) + record.gradient;
        const bool writes = (record.flags & kSlotWrites) != 0;
        if (writes && !result.gradient.is_zero && aligned_alike(slice.row, target)) {
            store_slice(slice, target, record.column, own_logit, result.gradient, feeder);
            return;
        }
        if (writes && !result.gradient.is_zero) {
            store_elements(slice, target, record.column, result.gradient);
        } else if (writes) {
            zero_row(target, launch.params.logits.vocab_size,
                     rank * kBlockThreads + static_cast<int>(threadIdx.x),
                     launch.plan.cluster * kBlockThreads);
        }
        skip_slice(feeder);
    }
};

// A cluster's rows, batch by batch.
template <class T>
__device__ __forceinline__ void compute_cluster(const LogitsLaunch& launch,
                                                SharedPointer<uint8_t> dynamic,
                                                const BlockSums& totals) {
    QAE_SHARED(SlotRecord, records, kBatchSlots);
    QAE_SHARED(uint8_t, read_list, kBatchSlots);
    QAE_SHARED(uint8_t, zero_list, kBatchSlots);
    QAE_SHARED(float4, partials, 2 * kExchangePartials);
    QAE_SHARED(float, own_logit, 2);
    QAE_SHARED(uint64_t, landed, kMaxRingChunks);
    const LogitsPlan& plan = launch.plan;
    const int rank = static_cast<int>(cluster_rank());
    const int team = static_cast<int>(blockIdx.x) / plan.cluster;
    const SharedPointer<float> stages =
        shared_cast<float>(dynamic + static_cast<int64_t>(plan.ring_chunks) * kChunkBytes);
    if (threadIdx.x == 0) {
        for (int i = 0; i < plan.ring_chunks; ++i) mbarrier_init(landed + i, 1);
        mbarrier_init_fence();
    }
    // All barriers exist, and all blocks of the cluster run, before anything arrives.
    cluster_arrive();
    cluster_wait();
    const Ring ring = {dynamic, landed};
    ClusterRows<T> rows = {
        launch, ring, {partials, own_logit}, rank, gradient_factor(launch), RingPlace(), 0, 0.0f};
    RingPlace loaded;
    const int64_t num_slots = launch.loss.params.layout.num_slots;
    const int64_t step = static_cast<int64_t>(kBatchSlots) * plan.num_teams;
    for (int64_t first = team; first < num_slots; first += step) {
        describe_slots(launch, first, rank == 0 && plan.pass == kPassLoss, records, stages);
        __syncthreads();
        const ListCounts counts = list_slots(records, {read_list, zero_list});
        __syncthreads();
        RingFeeder<T> feeder = {launch, ring, records, read_list, counts.read, rank,
                                loaded, 0,    nullptr, 0,         0,           false};
        if (threadIdx.x == 0) feeder.fill();
        if (first == team && plan.pass == kPassLoss) count_responses(launch, stages);
        for (int i = 0; i < counts.zero && plan.pass == kPassLoss; ++i) {
            const SlotRecord record = records[zero_list[i]];
            zero_row(static_cast<T*>(launch.params.d_logits) + record.gradient,
                     launch.params.logits.vocab_size,
                     rank * kBlockThreads + static_cast<int>(threadIdx.x),
                     plan.cluster * kBlockThreads);
        }
        for (int i = 0; i < counts.read; ++i) {
            const SlotRecord record = records[read_list[i]];
            rows.compute(record, feeder, totals);
        }
        if (threadIdx.x == 0) feeder.finish();
        // The records are not needed any more.
        __syncthreads();
    }
    if (team >= num_slots && plan.pass == kPassLoss) count_responses(launch, stages);
}

}  // namespace QAE_NAMESPACE

#endif  // QAE_HAS_CLUSTERS
