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

// Whether the code that the current device runs was compiled for this compute capability (times 10) or
// a newer one: what older code lacks, the kernel does not have on a newer device either.
template <class... Params>
bool has_code_for(void (*kernel)(Params...), int capability) {
#if defined(QAE_EMULATOR)
    (void)kernel;
    (void)capability;
    return true;
#else
    cudaFuncAttributes attributes;
    const cudaError_t error =
        cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(kernel));
    return error == cudaSuccess && attributes.ptxVersion >= capability;
#endif
}

// What a plan needs to know of the current device.
struct DeviceLimits {
    int num_sms;
    int capability_major;
    size_t max_shared_per_block;  // static and dynamic together
};

inline qae_result device_limits(DeviceLimits& limits) {
#if defined(QAE_EMULATOR)
    const qae_emulator::DeviceLimits found = qae_emulator::device_limits();
    limits = {found.num_sms, found.capability_major, found.max_shared_per_block};
    return QAE_OK;
#else
    int device = 0, shared = 0;
    cudaError_t error = cudaGetDevice(&device);
    if (error == cudaSuccess) {
        error = cudaDeviceGetAttribute(&limits.num_sms, cudaDevAttrMultiProcessorCount, device);
    }
    if (error == cudaSuccess) {
        error = cudaDeviceGetAttribute(&limits.capability_major, cudaDevAttrComputeCapabilityMajor,
                                       device);
    }
    if (error == cudaSuccess) {
        error = cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    }
    limits.max_shared_per_block = static_cast<size_t>(shared);
    return -static_cast<qae_result>(error);
#endif
}

#if !defined(QAE_EMULATOR)
// A block gets more than 48 KiB of shared memory, static and dynamic together, only after the kernel
// asked for it. Always for the same amount: another thread may launch the kernel meanwhile.
template <class... Params>
cudaError_t allow_shared(void (*kernel)(Params...), size_t bytes) {
    return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                static_cast<int>(bytes));
}
#endif

// Enqueues `kernel` with blocks of kBlockThreads; returns QAE_OK or the negated error.
// `max_shared_bytes`: the most that any launch of this kernel on this device asks for.
template <class... Params>
qae_result launch_large(const char* name, void (*kernel)(Params...), int64_t grid,
                        size_t shared_bytes, size_t max_shared_bytes, void* stream,
                        Params... params) {
    if (grid < 1 || grid > kMaxGrid || shared_bytes > max_shared_bytes) return QAE_INVALID_ARGUMENT;
    const dim3 blocks(static_cast<unsigned>(grid));
#if defined(QAE_EMULATOR)
    return -qae_emulator::launch(name, kernel, blocks, dim3(kBlockThreads), shared_bytes, stream,
                                 params...);
#else
    (void)name;
    if (shared_bytes > 32 * 1024) {
        const cudaError_t error = allow_shared(kernel, max_shared_bytes);
        if (error != cudaSuccess) return -static_cast<qae_result>(error);
    }
    void* arguments[] = {&params...};
    const cudaError_t error =
        cudaLaunchKernel(reinterpret_cast<const void*>(kernel), blocks, dim3(kBlockThreads),
                         arguments, shared_bytes, static_cast<cudaStream_t>(stream));
    return -static_cast<qae_result>(error);
#endif
}

template <class... Params>
qae_result launch(const char* name, void (*kernel)(Params...), int64_t grid, size_t shared_bytes,
                  void* stream, Params... params) {
    return launch_large(name, kernel, grid, shared_bytes, kMaxDynamicShared, stream, params...);
}

#if !defined(QAE_EMULATOR)
// A launch of clusters; `attributes` outlives the configuration that points to it.
inline cudaLaunchConfig_t cluster_config(cudaLaunchAttribute (&attributes)[2], unsigned blocks,
                                         unsigned cluster, size_t shared_bytes, void* stream) {
    attributes[0].id = cudaLaunchAttributeClusterDimension;
    attributes[0].val.clusterDim.x = cluster;
    attributes[0].val.clusterDim.y = 1;
    attributes[0].val.clusterDim.z = 1;
    // Blocks of one cluster wait together; on one SM, they would leave it idle together.
    attributes[1].id = cudaLaunchAttributeClusterSchedulingPolicyPreference;
    attributes[1].val.clusterSchedulingPolicyPreference = cudaClusterSchedulingPolicySpread;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(blocks);
    config.blockDim = dim3(kBlockThreads);
    config.dynamicSmemBytes = shared_bytes;
    config.stream = static_cast<cudaStream_t>(stream);
    config.attrs = attributes;
    config.numAttrs = 2;
    return config;
}
#endif

// How many clusters of `cluster` blocks the device holds at a time.
template <class... Params>
qae_result resident_clusters(void (*kernel)(Params...), const DeviceLimits& limits, int cluster,
                             size_t shared_bytes, size_t max_shared_bytes, int& count) {
#if defined(QAE_EMULATOR)
    (void)kernel;
    (void)shared_bytes;
    (void)max_shared_bytes;
    count = limits.num_sms / cluster;
#else
    (void)limits;
    cudaError_t error = allow_shared(kernel, max_shared_bytes);
    if (error != cudaSuccess) return -static_cast<qae_result>(error);
    cudaLaunchAttribute attributes[2];
    const cudaLaunchConfig_t config =
        cluster_config(attributes, static_cast<unsigned>(cluster), static_cast<unsigned>(cluster),
                       shared_bytes, nullptr);
    error = cudaOccupancyMaxActiveClusters(&count, reinterpret_cast<const void*>(kernel), &config);
    if (error != cudaSuccess) return -static_cast<qae_result>(error);
#endif
    if (count < 1) count = 1;
    return QAE_OK;
}

// The same as `launch`, in clusters of `cluster` blocks, of which there are `num_clusters`.
template <class... Params>
qae_result launch_clusters(const char* name, void (*kernel)(Params...), int num_clusters,
                           int cluster, size_t shared_bytes, void* stream, Params... params) {
    const unsigned blocks = static_cast<unsigned>(num_clusters) * static_cast<unsigned>(cluster);
#if defined(QAE_EMULATOR)
    return -qae_emulator::launch_cluster(name, kernel, dim3(blocks), dim3(kBlockThreads),
                                         static_cast<unsigned>(cluster), shared_bytes, stream,
                                         params...);
#else
    (void)name;
    cudaLaunchAttribute attributes[2];
    const cudaLaunchConfig_t config =
        cluster_config(attributes, blocks, static_cast<unsigned>(cluster), shared_bytes, stream);
    void* arguments[] = {&params...};
    const cudaError_t error =
        cudaLaunchKernelExC(&config, reinterpret_cast<const void*>(kernel), arguments);
    return -static_cast<qae_result>(error);
#endif
}

}  // namespace QAE_NAMESPACE
