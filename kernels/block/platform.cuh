// The one place that knows whether a kernel source is being built by nvcc for a GPU or by a host
// compiler for the emulator. Everything else is the same text in both builds.
#pragma once

#if defined(QAE_EMULATOR)
#include <qae_emulator.hpp>
#define QAE_API(name) qae_emu_##name
#define QAE_NAMESPACE qae_emulated
#define __grid_constant__
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#define QAE_NAMESPACE qae
#define QAE_SHARED(T, name, count) __shared__ T name[count]
#define QAE_DYNAMIC_SHARED(T, name)                                 \
    extern __shared__ __align__(16) unsigned char name##_dynamic[]; \
    T* const name = reinterpret_cast<T*>(name##_dynamic)
#endif

#include "qae.h"

namespace QAE_NAMESPACE {

#if defined(QAE_EMULATOR)
template <class T>
using SharedPointer = qae_emulator::SharedPointer<T>;
template <class U, class T>
SharedPointer<U> shared_cast(SharedPointer<T> pointer) {
    return pointer.template cast<U>();
}
#else
template <class T>
using SharedPointer = T*;
template <class U, class T>
__device__ __forceinline__ U* shared_cast(T* pointer) {
    return reinterpret_cast<U*>(pointer);
}
#endif

constexpr int kWarpThreads = 32;
constexpr unsigned kFullWarp = 0xffffffffu;

// Every kernel here runs in blocks of this many threads; the grids are sized for it.
constexpr int kBlockThreads = 256;
constexpr int kBlockWarps = kBlockThreads / kWarpThreads;

__device__ __forceinline__ int lane_index() { return static_cast<int>(threadIdx.x) % kWarpThreads; }
__device__ __forceinline__ int warp_index() { return static_cast<int>(threadIdx.x) / kWarpThreads; }

// 2^x, the hardware's instruction: relative error below 2^-22, results below the normal numbers are 0.
// exp2f is this and three more instructions for those; a row of logits pays them twice an element,
// where they would be a fifth of the work. No header offers the bare instruction.
__device__ __forceinline__ float exp2_approx(float x) {
#if defined(QAE_EMULATOR)
    const float power = exp2f(x);
    return power < 1.175494351e-38f ? 0.0f : power;
#else
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
    return power;
#endif
}

}  // namespace QAE_NAMESPACE
