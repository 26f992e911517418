// Rows of logits in memory: their elements, their vectors of 16 bytes, and the warp's part of a
// softmax over them.
#pragma once

#include "block/memory.cuh"
#include "math/online_softmax.cuh"

namespace QAE_NAMESPACE {

// Unlike Half, types of their own: a row has a hundred thousand elements, so the select between the
// two would cost.
struct Bf16 {
    uint16_t bits;
};
struct F16 {
    uint16_t bits;
};

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(Bf16 value) {
    return __uint_as_float(static_cast<unsigned>(value.bits) << 16);
}
__device__ __forceinline__ float to_float(F16 value) { return f16_to_float(Half{value.bits}); }

// Rounds to nearest even.
template <class T>
__device__ __forceinline__ T from_float(float value);
template <>
__device__ __forceinline__ float from_float<float>(float value) {
    return value;
}
template <>
__device__ __forceinline__ Bf16 from_float<Bf16>(float value) {
    return {float_to_bf16(value).bits};
}
template <>
__device__ __forceinline__ F16 from_float<F16>(float value) {
    return {float_to_f16(value).bits};
}

__device__ __forceinline__ Bf16 load_streaming(const Bf16* p) {
    return {load_streaming(reinterpret_cast<const Half*>(p)).bits};
}
__device__ __forceinline__ F16 load_streaming(const F16* p) {
    return {load_streaming(reinterpret_cast<const Half*>(p)).bits};
}
__device__ __forceinline__ void store_streaming(Bf16* p, Bf16 value) {
    store_streaming(reinterpret_cast<Half*>(p), Half{value.bits});
}
__device__ __forceinline__ void store_streaming(F16* p, F16 value) {
    store_streaming(reinterpret_cast<Half*>(p), Half{value.bits});
}

template <class T>
constexpr int kVectorElements = 16 / static_cast<int>(sizeof(T));

// The elements of one 32-bit word of T: one float, or two halves.
template <class T>
struct Word;

template <>
struct Word<float> {
    static constexpr int kCount = 1;
    static __device__ __forceinline__ void unpack(unsigned word, float* values) {
        values[0] = __uint_as_float(word);
    }
    static __device__ __forceinline__ unsigned pack(const float* values) {
        return __float_as_uint(values[0]);
    }
};

template <>
struct Word<Bf16> {
    static constexpr int kCount = 2;
    static __device__ __forceinline__ void unpack(unsigned word, float* values) {
        values[0] = __uint_as_float(word << 16);
        values[1] = __uint_as_float(word & 0xffff0000u);
    }
    static __device__ __forceinline__ unsigned pack(const float* values) {
        return pack_bf16(values[0], values[1]);
    }
};

template <>
struct Word<F16> {
    static constexpr int kCount = 2;
    static __device__ __forceinline__ void unpack(unsigned word, float* values) {
        values[0] = f16_to_float(Half{static_cast<uint16_t>(word)});
        values[1] = f16_to_float(Half{static_cast<uint16_t>(word >> 16)});
    }
    static __device__ __forceinline__ unsigned pack(const float* values) {
        return pack_f16(values[0], values[1]);
    }
};

template <class T>
__device__ __forceinline__ void unpack(const uint4& vector, float* values) {
    Word<T>::unpack(vector.x, values);
    Word<T>::unpack(vector.y, values + Word<T>::kCount);
    Word<T>::unpack(vector.z, values + 2 * Word<T>::kCount);
    Word<T>::unpack(vector.w, values + 3 * Word<T>::kCount);
}

template <class T>
__device__ __forceinline__ uint4 pack(const float* values) {
    return {Word<T>::pack(values), Word<T>::pack(values + Word<T>::kCount),
            Word<T>::pack(values + 2 * Word<T>::kCount),
            Word<T>::pack(values + 3 * Word<T>::kCount)};
}

// How a row divides: elements before its first whole 16-byte vector, vectors, elements behind.
struct RowVectors {
    int32_t head, num_vectors, tail;
    __device__ __forceinline__ int num_edges() const { return head + tail; }
};

template <class T>
__device__ __forceinline__ RowVectors row_vectors(const T* row, int64_t num_columns) {
    constexpr int kVector = kVectorElements<T>;
    const int columns = static_cast<int>(num_columns);
    const int misalignment =
        static_cast<int>(reinterpret_cast<uintptr_t>(row) % 16) / static_cast<int>(sizeof(T));
    const int to_boundary = misalignment == 0 ? 0 : kVector - misalignment;
    const int head = to_boundary < columns ? to_boundary : columns;
    const int num_vectors = (columns - head) / kVector;
    return {head, num_vectors, columns - head - num_vectors * kVector};
}

// The column of the i-th element that is in no vector.
template <class T>
__device__ __forceinline__ int edge_column(const RowVectors& vectors, int i) {
    return i < vectors.head ? i : i + vectors.num_vectors * kVectorElements<T>;
}

// Whether a vector of one row is a vector of the other.
__device__ __forceinline__ bool aligned_alike(const void* a, const void* b) {
    return (reinterpret_cast<uintptr_t>(a) - reinterpret_cast<uintptr_t>(b)) % 16 == 0;
}

// Vectors whose loads a thread issues before it uses the first.
constexpr int kVectorsInFlight = 4;

// Adds the elements of vectors to the sums, 16 at a time: what rescaling costs is shared by them.
template <class T>
__device__ __forceinline__ void accumulate_vectors(SoftmaxSums& sums,
                                                   const uint4 (&vectors)[kVectorsInFlight],
                                                   float scale) {
    constexpr int kVector = kVectorElements<T>;
    constexpr int kTogether = 16 / kVector;
#pragma unroll
    for (int i = 0; i < kVectorsInFlight; i += kTogether) {
        float values[16];
#pragma unroll
        for (int j = 0; j < kTogether; ++j) unpack<T>(vectors[i + j], values + j * kVector);
        accumulate(sums, values, scale);
    }
}

template <class T>
__device__ __forceinline__ void accumulate_vector(SoftmaxSums& sums, const uint4& vector,
                                                  float scale) {
    float values[kVectorElements<T>];
    unpack<T>(vector, values);
    accumulate(sums, values, scale);
}

template <class T>
__device__ __forceinline__ uint4 gradient_vector(const LogitGradient& gradient,
                                                 const uint4& vector) {
    constexpr int kVector = kVectorElements<T>;
    float values[kVector];
    unpack<T>(vector, values);
#pragma unroll
    for (int i = 0; i < kVector; ++i) values[i] = gradient.at(values[i]);
    return pack<T>(values);
}

// The sums of a warp's lanes, the same bits in all of them: a butterfly alone would give each lane
// its own rounding.
__device__ __forceinline__ SoftmaxSums warp_softmax(SoftmaxSums sums) {
#pragma unroll
    for (int bits = kWarpThreads / 2; bits > 0; bits /= 2) {
        SoftmaxSums other;
        other.shift = __shfl_xor_sync(kFullWarp, sums.shift, bits);
        other.sum = __shfl_xor_sync(kFullWarp, sums.sum, bits);
        other.sum_d = __shfl_xor_sync(kFullWarp, sums.sum_d, bits);
        sums = merge(sums, other);
    }
    sums.shift = __shfl_sync(kFullWarp, sums.shift, 0);
    sums.sum = __shfl_sync(kFullWarp, sums.sum, 0);
    sums.sum_d = __shfl_sync(kFullWarp, sums.sum_d, 0);
    return sums;
}

// Columns of the token, or -1 where this shard of the vocabulary does not hold it.
__device__ __forceinline__ int64_t token_column(const qae_logits& logits, int64_t index) {
    const int64_t token = logits.token_id_bytes == 8
                              ? load(static_cast<const int64_t*>(logits.token_ids) + index)
                              : load(static_cast<const int32_t*>(logits.token_ids) + index);
    const int64_t column = token - logits.vocab_start;
    return column >= 0 && column < logits.vocab_size ? column : -1;
}

// Writes zeros to a row, the threads of a team together.
template <class T>
__device__ __forceinline__ void zero_row(T* row, int64_t num_columns, int rank, int num_threads) {
    const RowVectors vectors = row_vectors(row, num_columns);
    uint4* const whole = reinterpret_cast<uint4*>(row + vectors.head);
    for (int i = rank; i < vectors.num_vectors; i += num_threads) {
        store_streaming(whole + i, uint4{0, 0, 0, 0});
    }
    for (int i = rank; i < vectors.num_edges(); i += num_threads) {
        store_streaming(row + edge_column<T>(vectors, i), T{});
    }
}

}  // namespace QAE_NAMESPACE
