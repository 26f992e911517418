// The ring of shared memory through which a block's slices of rows pass.
//
// Its chunks follow each other through all rows of a batch: while a row is summed, the next one is
// already arriving in the chunks behind it, and the one before is still leaving. Thread 0 issues all
// copies. A chunk goes through
//   load issued -> landed (its mbarrier) -> summed -> gradient written over it -> store issued
//   -> store has read it -> next load.
#pragma once

#include "block/bulk.cuh"
#include "loss_from_logits.cuh"

namespace QAE_NAMESPACE {

// A full chunk gives each thread kVectorsInFlight vectors. Small enough that a ring has several
// beyond the slice that is being worked on, large enough that its barriers cost little.
constexpr int kChunkVectors = kBlockThreads * kVectorsInFlight;
constexpr int kChunkBytes = kChunkVectors * 16;
constexpr int kMaxRingChunks = 16;

}  // namespace QAE_NAMESPACE

#if QAE_HAS_CLUSTERS

namespace QAE_NAMESPACE {

// A block's slice of one row.
template <class T>
struct RowSlice {
    const T* row;
    RowVectors vectors;
    int32_t begin, end;  // vectors of this block

    __device__ __forceinline__ RowSlice(const LogitsLaunch& launch, const SlotRecord& record,
                                        int rank) {
        row = static_cast<const T*>(launch.params.logits.values) + record.logits;
        vectors = row_vectors(row, launch.params.logits.vocab_size);
        const int per_block = launch.plan.slice_vectors;
        begin = rank * per_block < vectors.num_vectors ? rank * per_block : vectors.num_vectors;
        end = begin + per_block < vectors.num_vectors ? begin + per_block : vectors.num_vectors;
    }
    __device__ __forceinline__ const T* first_element(int vector) const {
        return row + vectors.head + static_cast<int64_t>(vector) * kVectorElements<T>;
    }
    // Vectors of its i-th chunk, which may have none.
    __device__ __forceinline__ int chunk_begin(int chunk) const {
        return begin + chunk * kChunkVectors;
    }
    __device__ __forceinline__ int chunk_size(int chunk) const {
        const int size = end - chunk_begin(chunk);
        return size < 0 ? 0 : size < kChunkVectors ? size : kChunkVectors;
    }
};

// Where a thread stands in the ring.
struct RingPlace {
    int chunk = 0;
    unsigned parity = 0;

    __device__ __forceinline__ void advance(int num_chunks) {
        if (++chunk < num_chunks) return;
        chunk = 0;
        parity ^= 1u;
    }
};

struct Ring {
    SharedPointer<uint8_t> bytes;
    SharedPointer<uint64_t> landed;

    __device__ __forceinline__ SharedPointer<uint8_t> chunk(int i) const {
        return bytes + static_cast<int64_t>(i) * kChunkBytes;
    }
    __device__ __forceinline__ SharedPointer<uint4> vectors(int i) const {
        return shared_cast<uint4>(chunk(i));
    }
};

// Thread 0's side of the ring: what to load next, and when.
template <class T>
struct RingFeeder {
    const LogitsLaunch& launch;
    const Ring& ring;
    SharedPointer<SlotRecord> records;
    SharedPointer<uint8_t> list;
    int num_rows, rank;
    RingPlace& place;
    int row = 0;  // after the one that is being loaded, of which the following remain
    const T* source = nullptr;
    int num_vectors = 0, num_chunks = 0;
    bool has_store = false;  // a chunk's store is not known to have read it

    __device__ __forceinline__ void begin_row() {
        const SlotRecord record = records[list[row]];
        const RowSlice<T> slice(launch, record, rank);
        source = slice.first_element(slice.begin);
        num_vectors = slice.end - slice.begin;
        num_chunks = launch.plan.slice_chunks;
        ++row;
    }

    __device__ __forceinline__ void load_next() {
        if (num_chunks == 0) {
            if (row >= num_rows) return;
            begin_row();
        }
        const int size = num_vectors < kChunkVectors ? num_vectors : kChunkVectors;
        const SharedPointer<uint64_t> landed = ring.landed + place.chunk;
        if (size > 0) {
            const unsigned bytes = static_cast<unsigned>(size) * 16u;
            mbarrier_arrive_expect(landed, bytes);
            bulk_load(ring.chunk(place.chunk), source, bytes, landed);
        } else {
            mbarrier_arrive(landed);
        }
        place.advance(launch.plan.ring_chunks);
        source += kChunkVectors * kVectorElements<T>;
        num_vectors -= size;
        --num_chunks;
    }

    __device__ __forceinline__ void fill() {
        const int free_chunks = launch.plan.slice_chunks > 0 ? launch.plan.ring_chunks : 0;
        for (int i = 0; i < free_chunks; ++i) load_next();
    }

    // The oldest chunk in use is free, behind a barrier; its gradient is stored unless there are no
    // bytes. A store takes time to read its chunk, so the load into it waits for the next release.
    __device__ __forceinline__ void release(void* target, SharedPointer<uint8_t> chunk,
                                            unsigned bytes) {
        if (bytes > 0) {
            bulk_store(target, chunk, bytes);
            bulk_commit();
            bulk_wait_read<1>();
        } else {
            bulk_wait_read<0>();
        }
        if (has_store) load_next();
        has_store = bytes > 0;
        if (!has_store) load_next();
    }

    // The load that waits for the last store: once a row has begun, nothing is released for a while,
    // and the freed chunk would stay empty meanwhile.
    __device__ __forceinline__ void catch_up() {
        if (!has_store) return;
        bulk_wait_read<0>();
        load_next();
        has_store = false;
    }

    __device__ __forceinline__ void finish() {
        bulk_wait_read<0>();
        has_store = false;
    }
};

}  // namespace QAE_NAMESPACE

#endif  // QAE_HAS_CLUSTERS
