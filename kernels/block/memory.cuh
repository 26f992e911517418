// All access to global memory: the emulator checks and counts it here, and the cache hints are here.
//
// Token streams are read and written once, so they use the streaming (evict-first) hint and leave
// the caches to what is shared: rewards, offsets, masks. `load_coherent` reads what other blocks of
// the same launch wrote, past the L1 cache.
#pragma once

#include "block/platform.cuh"

namespace QAE_NAMESPACE {

// bf16 or f16: which of the two is a uniform choice at run time, one select per element, so that
// the kernels need not be compiled for each.
struct Half {
    uint16_t bits;
};

template <int kBytes>
struct RawVector;
template <>
struct RawVector<16> {
    using Type = uint4;
};
template <>
struct RawVector<8> {
    using Type = uint2;
};
template <>
struct RawVector<4> {
    using Type = unsigned;
};

#if defined(QAE_EMULATOR)
template <class T>
__device__ __forceinline__ T load(const T* p) {
    return qae_emulator::load(p);
}
template <class T>
__device__ __forceinline__ T load_streaming(const T* p) {
    return qae_emulator::load(p);
}
template <class T>
__device__ __forceinline__ T load_coherent(const T* p) {
    return qae_emulator::load(p);
}
template <class T>
__device__ __forceinline__ void store(T* p, T value) {
    qae_emulator::store(p, value);
}
template <class T>
__device__ __forceinline__ void store_streaming(T* p, T value) {
    qae_emulator::store(p, value);
}

__device__ __forceinline__ float f16_to_float(Half value) {
    return qae_emulator::f16_to_f32(value.bits);
}
__device__ __forceinline__ Half float_to_f16(float value) {
    return {qae_emulator::f32_to_f16_rn(value)};
}
__device__ __forceinline__ Half float_to_bf16(float value) {
    return {qae_emulator::f32_to_bf16_rn(value)};
}
// Two values in one word, the first in its low half.
__device__ __forceinline__ unsigned pack_bf16(float low, float high) {
    return qae_emulator::f32_to_bf16_rn(low) |
           static_cast<unsigned>(qae_emulator::f32_to_bf16_rn(high)) << 16;
}
__device__ __forceinline__ unsigned pack_f16(float low, float high) {
    return qae_emulator::f32_to_f16_rn(low) |
           static_cast<unsigned>(qae_emulator::f32_to_f16_rn(high)) << 16;
}
#else
template <class T>
__device__ __forceinline__ T load(const T* p) {
    return __ldca(p);
}
template <class T>
__device__ __forceinline__ T load_streaming(const T* p) {
    return __ldcs(p);
}
template <class T>
__device__ __forceinline__ T load_coherent(const T* p) {
    return __ldcg(p);
}
template <class T>
__device__ __forceinline__ void store(T* p, T value) {
    *p = value;
}
template <class T>
__device__ __forceinline__ void store_streaming(T* p, T value) {
    __stcs(p, value);
}

__device__ __forceinline__ Half load_streaming(const Half* p) {
    return {__ldcs(reinterpret_cast<const unsigned short*>(p))};
}
__device__ __forceinline__ void store_streaming(Half* p, Half value) {
    __stcs(reinterpret_cast<unsigned short*>(p), static_cast<unsigned short>(value.bits));
}
__device__ __forceinline__ float f16_to_float(Half value) {
    return __half2float(__ushort_as_half(value.bits));
}
__device__ __forceinline__ Half float_to_f16(float value) {
    return {__half_as_ushort(__float2half_rn(value))};
}
__device__ __forceinline__ Half float_to_bf16(float value) {
    return {__bfloat16_as_ushort(__float2bfloat16_rn(value))};
}
__device__ __forceinline__ unsigned pack_bf16(float low, float high) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return __bfloat16_as_ushort(pair.x) | static_cast<unsigned>(__bfloat16_as_ushort(pair.y)) << 16;
}
__device__ __forceinline__ unsigned pack_f16(float low, float high) {
    const __half2 pair = __floats2half2_rn(low, high);
    return __half_as_ushort(pair.x) | static_cast<unsigned>(__half_as_ushort(pair.y)) << 16;
}
#endif

// One lane loads, all lanes of the warp receive.
template <class T>
__device__ __forceinline__ T load_uniform(const T* p) {
    T value = T();
    if (lane_index() == 0) value = load(p);
    return __shfl_sync(kFullWarp, value, 0);
}

__device__ __forceinline__ float widen(float value, bool) { return value; }
__device__ __forceinline__ float widen(Half value, bool is_bf16) {
    return is_bf16 ? __uint_as_float(static_cast<unsigned>(value.bits) << 16) : f16_to_float(value);
}

// An element of a tensor whose dtype is known at run time only: for what is read once a row.
__device__ __forceinline__ float load_as_float(const void* base, int32_t dtype, int64_t index) {
    if (dtype == QAE_F32) return load_streaming(static_cast<const float*>(base) + index);
    return widen(load_streaming(static_cast<const Half*>(base) + index), dtype == QAE_BF16);
}

// Rounds to nearest even.
template <class T>
__device__ __forceinline__ T narrow(float value, bool is_bf16);
template <>
__device__ __forceinline__ float narrow<float>(float value, bool) {
    return value;
}
template <>
__device__ __forceinline__ Half narrow<Half>(float value, bool is_bf16) {
    return is_bf16 ? float_to_bf16(value) : float_to_f16(value);
}

// kCount elements of T in registers. `index` counts elements and is a multiple of kCount; the
// accesses are 128 bits wide, or as wide as the elements are together.
template <class T, int kCount>
struct Fragment {
    static constexpr int kBytes = sizeof(T) * kCount;
    static constexpr int kPieceBytes = kBytes < 16 ? kBytes : 16;
    using Piece = typename RawVector<kPieceBytes>::Type;
    static constexpr int kPieces = kBytes / kPieceBytes;
    union {
        Piece pieces[kPieces];
        T values[kCount];
    };

    __device__ __forceinline__ void load(const T* base, int64_t index) {
        const Piece* source = reinterpret_cast<const Piece*>(base + index);
#pragma unroll
        for (int i = 0; i < kPieces; ++i) pieces[i] = load_streaming(source + i);
    }
    // Bit i: element i, a byte, is not 0. By shifts: indexing the bytes of a register would move
    // them to local memory. Only for pieces of one word or two.
    __device__ __forceinline__ unsigned nonzero_bits() const {
        static_assert(sizeof(T) == 1 && kCount <= 8, "bytes of one or two words");
        unsigned bits = 0;
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
            bits |= (word(pieces[0], i / 4) >> (i % 4 * 8) & 0xffu) != 0 ? 1u << i : 0u;
        }
        return bits;
    }
    static __device__ __forceinline__ unsigned word(unsigned piece, int) { return piece; }
    static __device__ __forceinline__ unsigned word(uint2 piece, int i) {
        return i == 0 ? piece.x : piece.y;
    }

    __device__ __forceinline__ void store(T* base, int64_t index) const {
        Piece* target = reinterpret_cast<Piece*>(base + index);
#pragma unroll
        for (int i = 0; i < kPieces; ++i) store_streaming(target + i, pieces[i]);
    }
};

}  // namespace QAE_NAMESPACE
