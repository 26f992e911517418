// Blocks that run together and reach each other's shared memory. Compute capability 9.0 or newer.
#pragma once

#include "block/platform.cuh"

#if !defined(QAE_EMULATOR)
#include <cooperative_groups.h>

#include <cuda/ptx>
#endif

// Code for clusters and bulk copies is compiled for these; elsewhere its kernels are empty.
#if defined(QAE_EMULATOR) || (defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900)
#define QAE_HAS_CLUSTERS 1
#else
#define QAE_HAS_CLUSTERS 0
#endif

namespace QAE_NAMESPACE {

// The largest size that every GPU with clusters accepts.
constexpr int kMaxClusterBlocks = 8;

#if defined(QAE_EMULATOR)
using qae_emulator::cluster_arrive;
using qae_emulator::cluster_rank;
using qae_emulator::cluster_wait;
using qae_emulator::store_remote;
#elif QAE_HAS_CLUSTERS
__device__ __forceinline__ unsigned cluster_rank() {
    return cooperative_groups::this_cluster().block_rank();
}
// What a thread of the cluster wrote before it arrives, all threads see behind their wait.
__device__ __forceinline__ void cluster_arrive() {
    cuda::ptx::barrier_cluster_arrive(cuda::ptx::sem_release);
}
__device__ __forceinline__ void cluster_wait() {
    cuda::ptx::barrier_cluster_wait(cuda::ptx::sem_acquire);
}
// To the same variable of block `rank` of the cluster.
template <class T>
__device__ __forceinline__ void store_remote(T* local, unsigned rank, const T& value) {
    *cooperative_groups::this_cluster().map_shared_rank(local, rank) = value;
}
#endif

}  // namespace QAE_NAMESPACE
