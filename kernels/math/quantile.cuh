// Order statistics: which rank a quantile has, and a total order on floats as integers.
// Scalar formulas, host and device. Source: arXiv 2509.22611 v2, Eq. 4, b = inf{x : F(x) >= k}.
#pragma once

#include "block/platform.cuh"

namespace QAE_NAMESPACE {

// `product` = k * n as exact arithmetic on the decimal k gives it, where that is a whole number. In
// floating point the product of a decimal such as 0.28 and 25 lands a hair above 7; so a product
// within n * 2^-40 of a whole number is that number.
__host__ __device__ __forceinline__ double snap_to_whole(double product, int n) {
    const double nearest = rint(product);
    return fabs(product - nearest) <= n * 0x1p-40 ? nearest : product;
}

// The rank ceil(k * n), 1..n.
__host__ __device__ __forceinline__ int quantile_rank(double k, int n) {
    const double rank = ceil(snap_to_whole(k * n, n));
    return rank < 1.0 ? 1 : rank > n ? n : static_cast<int>(rank);
}

// Between neighbors, counted from the nearer one as torch.lerp does.
__host__ __device__ __forceinline__ double interpolate(double low, double high, double fraction) {
    return fraction < 0.5 ? low + fraction * (high - low) : high - (1.0 - fraction) * (high - low);
}

// Unsigned integers in the order of the (finite) floats; -0 and +0 are equal.
__device__ __forceinline__ unsigned order_key(float value) {
    const unsigned bits = __float_as_uint(value + 0.0f);
    return (bits & 0x80000000u) ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ float order_value(unsigned key) {
    return __uint_as_float((key & 0x80000000u) ? key & 0x7fffffffu : ~key);
}

// Non-finite rewards are left out of their group; no finite float has this key.
constexpr unsigned kNoKey = 0xffffffffu;

}  // namespace QAE_NAMESPACE
