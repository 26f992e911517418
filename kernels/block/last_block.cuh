// Which block of a launch is the last to arrive, so that it can finish the work of all of them.
#pragma once

#include "block/platform.cuh"

namespace QAE_NAMESPACE {

// True in all threads of the last of `expected` blocks to call with this ticket. What every block
// wrote to global memory before is then visible to the last one through load_coherent. The ticket
// is back at 0 afterwards, which makes the launch repeatable without clearing anything. A flag
// serves one ticket of a block: nothing keeps a second one from overwriting it too early.
//
// The first barrier is needed: without it thread 0 could announce the block while other threads
// still write, and the last block would read half of a partial result.
__device__ __forceinline__ bool is_last_block(unsigned* ticket, unsigned expected,
                                              SharedPointer<unsigned> flag) {
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        flag[0] = atomicInc(ticket, expected - 1) == expected - 1 ? 1u : 0u;
        // Behind the ticket and before the barrier, so that it orders the reads of all threads.
        __threadfence();
    }
    __syncthreads();
    return flag[0] != 0;
}

}  // namespace QAE_NAMESPACE
