// The running thread and its block, as kernels see them.
#pragma once

#include "types.hpp"

namespace qae_emulator {

struct ThreadView {
    uint3 index;
    // Position in the block, x fastest; warps are runs of 32 ranks.
    unsigned rank;
};

struct BlockView {
    uint3 index;
    dim3 block_size;
    dim3 grid_size;
    unsigned cluster_rank;
    unsigned cluster_size;
};

// `__thread` and not `thread_local`: the latter reaches a variable of another file through a
// wrapper function, which would cost a call at every threadIdx.
#define QAE_EMULATOR_TLS __thread
extern QAE_EMULATOR_TLS const ThreadView* this_thread;
extern QAE_EMULATOR_TLS const BlockView* this_block;

}  // namespace qae_emulator

#define threadIdx (::qae_emulator::this_thread->index)
#define blockIdx (::qae_emulator::this_block->index)
#define blockDim (::qae_emulator::this_block->block_size)
#define gridDim (::qae_emulator::this_block->grid_size)

constexpr int warpSize = 32;
