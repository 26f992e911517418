// The indices that satisfy a condition, written in order by one block.
#pragma once

#include "block/memory.cuh"

namespace QAE_NAMESPACE {

// Each step looks at kBlockThreads candidates and writes those that hold behind the ones already
// written. `indices` and `count` may be nullptr. Returns the count, in all threads.
template <class Condition>
__device__ int64_t write_indices(int64_t num_candidates, const Condition& condition,
                                 int32_t* indices, int32_t* count) {
    QAE_SHARED(unsigned, of_warp, kBlockWarps);
    int64_t written = 0;
    for (int64_t base = 0; base < num_candidates; base += kBlockThreads) {
        const int64_t i = base + threadIdx.x;
        const bool holds = i < num_candidates && condition(i);
        const unsigned votes = __ballot_sync(kFullWarp, holds);
        if (lane_index() == 0) of_warp[warp_index()] = static_cast<unsigned>(__popc(votes));
        __syncthreads();
        int before = 0, in_step = 0;
        for (int warp = 0; warp < kBlockWarps; ++warp) {
            const int of_this = static_cast<int>(of_warp[warp]);
            if (warp < warp_index()) before += of_this;
            in_step += of_this;
        }
        const unsigned lanes_before = (1u << lane_index()) - 1u;
        if (holds && indices != nullptr) {
            store(indices + written + before + __popc(votes & lanes_before),
                  static_cast<int32_t>(i));
        }
        written += in_step;
        // The counts are read by all before the next step overwrites them.
        __syncthreads();
    }
    if (threadIdx.x == 0 && count != nullptr) store(count, static_cast<int32_t>(written));
    return written;
}

}  // namespace QAE_NAMESPACE
