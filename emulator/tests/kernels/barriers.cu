// Kernels whose threads meet, and kernels whose threads fail to.
#include "entry.hpp"

using qae_emulator::load;
using qae_emulator::SharedPointer;
using qae_emulator::store;

namespace {

__device__ float warp_sum(float value) {
    for (int distance = 16; distance > 0; distance /= 2) {
        value += __shfl_xor_sync(kFullWarp, value, distance);
    }
    return value;
}

__device__ float block_sum(float value, SharedPointer<float> partials) {
    value = warp_sum(value);
    if (threadIdx.x % 32 == 0) partials[threadIdx.x / 32] = value;
    __syncthreads();
    const bool has_partial = threadIdx.x < blockDim.x / 32;
    if (threadIdx.x < 32) {
        float partial = 0.0f;
        if (has_partial) partial = partials[threadIdx.x];
        partial = warp_sum(partial);
        if (threadIdx.x == 0) partials[0] = partial;
    }
    __syncthreads();
    return partials[0];
}

// Per-block partials, which the block that finishes last adds in a fixed order.
__global__ void grid_sum(const float* in, float* partials, unsigned* finished, float* out) {
    QAE_SHARED(float, scratch, 32);
    QAE_SHARED(unsigned, ticket, 1);
    const float sum = block_sum(load(in + blockIdx.x * blockDim.x + threadIdx.x), scratch);
    if (threadIdx.x == 0) {
        store(partials + blockIdx.x, sum);
        __threadfence();
        ticket[0] = atomicInc(finished, gridDim.x - 1);
    }
    __syncthreads();
    if (ticket[0] != gridDim.x - 1) return;
    if (threadIdx.x == 0) {
        float total = 0.0f;
        for (unsigned block = 0; block < gridDim.x; ++block) total += load(partials + block);
        store(out, total);
    }
}

__global__ void divergent(float* out, int variant) {
    const unsigned t = threadIdx.x;
    if (variant == 0) {
        __syncthreads();
        __syncwarp();
    } else if (variant == 1) {
        if (t < 32) {
            __syncthreads();
        } else {
            __syncthreads();
        }
    } else if (variant == 2) {
        if (t % 2 == 0) {
            __syncwarp();
        } else {
            __syncthreads();
        }
    } else if (variant == 3) {
        if (t % 32 == 3) return;
        __syncwarp();
    } else if (variant == 4) {
        if (t % 2 == 0) {
            __any_sync(kFullWarp, 1);
        } else {
            __all_sync(kFullWarp, 1);
        }
    } else {
        __syncwarp(0x0000ffffu);
    }
    store(out + t, 1.0f);
}

__global__ void exit_before_barrier(float* out, unsigned leaving) {
    if (threadIdx.x < leaving) return;
    __syncthreads();
    store(out + threadIdx.x, 1.0f);
}

__global__ void shuffle_from(float* out, unsigned mask, int source) {
    const int lane = static_cast<int>(threadIdx.x);
    float value = static_cast<float>(lane);
    if ((mask >> lane & 1u) != 0) value = __shfl_sync(mask, value, source);
    store(out + lane, value);
}

// One row of results per collective, a column per thread.
__global__ void all_collectives(int* out) {
    const int t = static_cast<int>(threadIdx.x);
    const int count = static_cast<int>(blockDim.x);
    const int lane = t % 32;
    const int lanes = min(count - t + lane, 32);
    int row = 0;
    const auto put = [&](int value) { store(out + row++ * count + t, value); };
    put(__shfl_sync(kFullWarp, t, lanes - 1));
    put(__shfl_sync(kFullWarp, t, 1, 4));
    put(__shfl_up_sync(kFullWarp, t, 2u));
    put(__shfl_up_sync(kFullWarp, t, 1u, 4));
    put(__shfl_down_sync(kFullWarp, t, 1u, 4));
    put(__shfl_xor_sync(kFullWarp, t, 3));
    put(static_cast<int>(__shfl_sync(kFullWarp, static_cast<double>(t) * 0.5, 0) * 2.0));
    put(static_cast<int>(__ballot_sync(kFullWarp, lane % 2)));
    put(__any_sync(kFullWarp, lane == 2));
    put(__all_sync(kFullWarp, lane != 2));
    put(__reduce_add_sync(kFullWarp, -lane));
    put(__reduce_min_sync(kFullWarp, -lane));
    put(static_cast<int>(__reduce_max_sync(kFullWarp, static_cast<unsigned>(lane))));
    put(__syncthreads_count(t % 3 == 0));
    put(__syncthreads_and(t >= 0));
    put(__syncthreads_or(t < 0));
}

__global__ void barrier_steps(float* out, int steps) {
    for (int step = 0; step < steps; ++step) __syncthreads();
    store(out + threadIdx.x, 1.0f);
}

}  // namespace

extern "C" {

int qae_emu_test_grid_sum(const float* in, float* partials, unsigned* finished, float* out,
                          unsigned grid, unsigned block) {
    return QAE_TEST_LAUNCH(grid_sum, grid, block, 0, in, partials, finished, out);
}
int qae_emu_test_divergent(float* out, int variant) {
    return QAE_TEST_LAUNCH(divergent, 1, 64, 0, out, variant);
}
int qae_emu_test_exit_before_barrier(float* out, unsigned leaving) {
    return QAE_TEST_LAUNCH(exit_before_barrier, 1, 64, 0, out, leaving);
}
int qae_emu_test_shuffle_from(float* out, unsigned mask, int source) {
    return QAE_TEST_LAUNCH(shuffle_from, 1, 32, 0, out, mask, source);
}
int qae_emu_test_all_collectives(int* out, unsigned block) {
    return QAE_TEST_LAUNCH(all_collectives, 1, block, 0, out);
}
int qae_emu_test_barrier_steps(float* out, int steps, unsigned grid, unsigned block) {
    return QAE_TEST_LAUNCH(barrier_steps, grid, block, 0, out, steps);
}

}  // extern "C"
