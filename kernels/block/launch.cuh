// Host side of a launch: one function for both builds, never the triple-angle syntax.
#pragma once

#include "block/platform.cuh"

namespace QAE_NAMESPACE {

// The launchers never put more than this into a grid dimension.
constexpr int64_t kMaxGrid = 0x7fffffff;

// Dynamic shared memory that a kernel may ask for. With the kernels' static shared memory, at most 6
// KiB, it stays below the 99 KiB of a block on the smallest of the architectures.
constexpr size_t kMaxDynamicShared = 64 * 1024;

inline bool is_aligned(const void* pointer, int64_t bytes) {
    return reinterpret_cast<uintptr_t>(pointer) % static_cast<uintptr_t>(bytes) == 0;
}

// Enqueues `kernel` with blocks of kBlockThreads; returns QAE_OK or the negated error.
template <class... Params>
qae_result launch(const char* name, void (*kernel)(Params...), int64_t grid, size_t shared_bytes,
                  void* stream, Params... params) {
    if (grid < 1 || grid > kMaxGrid || shared_bytes > kMaxDynamicShared)
        return QAE_INVALID_ARGUMENT;
    const dim3 blocks(static_cast<unsigned>(grid));
#if defined(QAE_EMULATOR)
    return -qae_emulator::launch(name, kernel, blocks, dim3(kBlockThreads), shared_bytes, stream,
                                 params...);
#else
    (void)name;
    // A block gets more than 48 KiB of shared memory, static and dynamic together, only after the
    // kernel asked for it. Always for the same amount: another thread may launch it meanwhile.
    if (shared_bytes > 32 * 1024) {
        const cudaError_t error =
            cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(kMaxDynamicShared));
        if (error != cudaSuccess) return -static_cast<qae_result>(error);
    }
    void* arguments[] = {&params...};
    const cudaError_t error =
        cudaLaunchKernel(reinterpret_cast<const void*>(kernel), blocks, dim3(kBlockThreads),
                         arguments, shared_bytes, static_cast<cudaStream_t>(stream));
    return -static_cast<qae_result>(error);
#endif
}

}  // namespace QAE_NAMESPACE
