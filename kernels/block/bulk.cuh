// Bulk copies between global and shared memory, by the copy engine: one thread issues them, loads
// complete on an mbarrier, stores by groups. Compute capability 9.0 or newer; addresses and sizes
// are multiples of 16 bytes.
//
// The engine is another proxy: it does not see ordinary shared-memory writes until the writing
// thread has called fence_async and a barrier has ordered it before the thread that issues the copy.
// A load's target must not be in use any more; a store's source must not change before
// bulk_wait_read.
#pragma once

#include "block/cluster.cuh"

#if QAE_HAS_CLUSTERS

namespace QAE_NAMESPACE {

#if defined(QAE_EMULATOR)
using qae_emulator::bulk_commit;
using qae_emulator::bulk_load;
using qae_emulator::bulk_store;
using qae_emulator::bulk_wait_read;
using qae_emulator::fence_async;
using qae_emulator::mbarrier_arrive;
using qae_emulator::mbarrier_arrive_expect;
using qae_emulator::mbarrier_init;
using qae_emulator::mbarrier_init_fence;
using qae_emulator::mbarrier_wait;
#else
__device__ __forceinline__ void mbarrier_init(uint64_t* barrier, unsigned arrivals) {
    cuda::ptx::mbarrier_init(barrier, arrivals);
}
// Makes the initialization visible to the copy engine; a barrier makes it visible to the threads.
__device__ __forceinline__ void mbarrier_init_fence() {
    cuda::ptx::fence_mbarrier_init(cuda::ptx::sem_release, cuda::ptx::scope_cluster);
}
__device__ __forceinline__ void mbarrier_arrive(uint64_t* barrier) {
    cuda::ptx::mbarrier_arrive(barrier);
}
// Announces `bytes` of copies that the phase waits for, and arrives.
__device__ __forceinline__ void mbarrier_arrive_expect(uint64_t* barrier, unsigned bytes) {
    cuda::ptx::mbarrier_arrive_expect_tx(cuda::ptx::sem_release, cuda::ptx::scope_cta,
                                         cuda::ptx::space_shared, barrier, bytes);
}
// Until the phase of this parity is complete: its data is then visible to the caller.
__device__ __forceinline__ void mbarrier_wait(uint64_t* barrier, unsigned parity) {
    while (!cuda::ptx::mbarrier_try_wait_parity(barrier, parity)) {
    }
}
__device__ __forceinline__ void bulk_load(uint8_t* target, const void* source, unsigned bytes,
                                          uint64_t* barrier) {
#if CCCL_MAJOR_VERSION >= 3
    // The block's own shared memory; as an address in the cluster it would be checked for another's.
    const auto own_shared = cuda::ptx::space_shared;
#else
    const auto own_shared = cuda::ptx::space_cluster;
#endif
    cuda::ptx::cp_async_bulk(own_shared, cuda::ptx::space_global, target, source, bytes, barrier);
}
__device__ __forceinline__ void bulk_store(void* target, const uint8_t* source, unsigned bytes) {
    cuda::ptx::cp_async_bulk(cuda::ptx::space_global, cuda::ptx::space_shared, target, source,
                             bytes);
}
// The thread's stores since the last call become a group.
__device__ __forceinline__ void bulk_commit() { cuda::ptx::cp_async_bulk_commit_group(); }
// Until all but the thread's newest kPending groups have read their sources.
template <int kPending>
__device__ __forceinline__ void bulk_wait_read() {
    cuda::ptx::cp_async_bulk_wait_group_read(cuda::ptx::n32_t<kPending>());
}
__device__ __forceinline__ void fence_async() {
    cuda::ptx::fence_proxy_async(cuda::ptx::space_shared);
}
#endif

}  // namespace QAE_NAMESPACE

#endif  // QAE_HAS_CLUSTERS
