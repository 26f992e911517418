// Threads that work on one thing together: a warp or a whole block, with the same operations.
//
// Every result is the same in all threads of the team and the same on every run: sums are taken in
// a fixed order (butterfly within a warp, then warp by warp), whatever the order of execution.
#pragma once

#include "block/platform.cuh"

namespace QAE_NAMESPACE {

__device__ __forceinline__ double warp_sum(double value) {
#pragma unroll
    for (int bits = kWarpThreads / 2; bits > 0; bits /= 2) {
        value += __shfl_xor_sync(kFullWarp, value, bits);
    }
    return value;
}

__device__ __forceinline__ float warp_min(float value) {
#pragma unroll
    for (int bits = kWarpThreads / 2; bits > 0; bits /= 2) {
        value = fminf(value, __shfl_xor_sync(kFullWarp, value, bits));
    }
    return value;
}

__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
    for (int bits = kWarpThreads / 2; bits > 0; bits /= 2) {
        value = fmaxf(value, __shfl_xor_sync(kFullWarp, value, bits));
    }
    return value;
}

struct WarpTeam {
    static constexpr int kThreads = kWarpThreads;

    __device__ __forceinline__ int rank() const { return lane_index(); }
    __device__ __forceinline__ void sync() const { __syncwarp(); }
    __device__ __forceinline__ unsigned sum(unsigned value) const {
        return __reduce_add_sync(kFullWarp, value);
    }
    __device__ __forceinline__ unsigned min(unsigned value) const {
        return __reduce_min_sync(kFullWarp, value);
    }
    __device__ __forceinline__ unsigned max(unsigned value) const {
        return __reduce_max_sync(kFullWarp, value);
    }
    __device__ __forceinline__ double sum(double value) const { return warp_sum(value); }
};

// `scratch` holds kBlockWarps values; the barrier after the reads keeps the next reduction from
// overwriting them too early.
struct BlockTeam {
    static constexpr int kThreads = kBlockThreads;
    SharedPointer<unsigned long long> scratch;

    __device__ __forceinline__ int rank() const { return static_cast<int>(threadIdx.x); }
    __device__ __forceinline__ void sync() const { __syncthreads(); }

    template <class Combine>
    __device__ __forceinline__ unsigned long long across_warps(unsigned long long of_warp,
                                                               Combine combine) const {
        if (lane_index() == 0) scratch[warp_index()] = of_warp;
        __syncthreads();
        unsigned long long result = scratch[0];
        for (int warp = 1; warp < kBlockWarps; ++warp) {
            const unsigned long long other = scratch[warp];
            result = combine(result, other);
        }
        __syncthreads();
        return result;
    }

    __device__ __forceinline__ unsigned sum(unsigned value) const {
        using Word = unsigned long long;
        const Word of_warp = __reduce_add_sync(kFullWarp, value);
        return static_cast<unsigned>(across_warps(of_warp, [](Word a, Word b) { return a + b; }));
    }
    __device__ __forceinline__ unsigned min(unsigned value) const {
        using Word = unsigned long long;
        const Word of_warp = __reduce_min_sync(kFullWarp, value);
        return static_cast<unsigned>(
            across_warps(of_warp, [](Word a, Word b) { return a < b ? a : b; }));
    }
    __device__ __forceinline__ unsigned max(unsigned value) const {
        using Word = unsigned long long;
        const Word of_warp = __reduce_max_sync(kFullWarp, value);
        return static_cast<unsigned>(
            across_warps(of_warp, [](Word a, Word b) { return a > b ? a : b; }));
    }
    __device__ __forceinline__ double sum(double value) const {
        using Word = unsigned long long;
        const Word of_warp = static_cast<Word>(__double_as_longlong(warp_sum(value)));
        const Word total = across_warps(of_warp, [](Word a, Word b) {
            const double sum = __longlong_as_double(static_cast<long long>(a)) +
                               __longlong_as_double(static_cast<long long>(b));
            return static_cast<Word>(__double_as_longlong(sum));
        });
        return __longlong_as_double(static_cast<long long>(total));
    }
};

}  // namespace QAE_NAMESPACE
