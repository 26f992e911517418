// Bit and arithmetic intrinsics. The functions of <math.h> (fmaf, fminf, expf, isfinite, ...) have
// CUDA's semantics already: fminf and fmaxf return the other argument where one is NaN.
#pragma once

#include "types.hpp"

inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline int __popcll(unsigned long long value) { return __builtin_popcountll(value); }
// The built-ins leave a zero argument undefined; CUDA answers the width.
inline int __clz(int value) {
    return value == 0 ? 32 : __builtin_clz(static_cast<unsigned>(value));
}
inline int __clzll(long long value) {
    return value == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(value));
}
inline int __ffs(int value) { return __builtin_ffs(value); }
inline int __ffsll(long long value) { return __builtin_ffsll(value); }

inline unsigned __float_as_uint(float value) { return qae_emulator::bit_cast<unsigned>(value); }
inline float __uint_as_float(unsigned value) { return qae_emulator::bit_cast<float>(value); }
inline int __float_as_int(float value) { return qae_emulator::bit_cast<int>(value); }
inline float __int_as_float(int value) { return qae_emulator::bit_cast<float>(value); }
inline long long __double_as_longlong(double value) {
    return qae_emulator::bit_cast<long long>(value);
}
inline double __longlong_as_double(long long value) {
    return qae_emulator::bit_cast<double>(value);
}

inline int min(int a, int b) { return b < a ? b : a; }
inline int max(int a, int b) { return a < b ? b : a; }
inline unsigned min(unsigned a, unsigned b) { return b < a ? b : a; }
inline unsigned max(unsigned a, unsigned b) { return a < b ? b : a; }
inline long min(long a, long b) { return b < a ? b : a; }
inline long max(long a, long b) { return a < b ? b : a; }
inline unsigned long min(unsigned long a, unsigned long b) { return b < a ? b : a; }
inline unsigned long max(unsigned long a, unsigned long b) { return a < b ? b : a; }
inline long long min(long long a, long long b) { return b < a ? b : a; }
inline long long max(long long a, long long b) { return a < b ? b : a; }
inline unsigned long long min(unsigned long long a, unsigned long long b) { return b < a ? b : a; }
inline unsigned long long max(unsigned long long a, unsigned long long b) { return a < b ? b : a; }
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
