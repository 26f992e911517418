// Kernels whose blocks reach each other's shared memory, and kernels that do so in the wrong moment.
#include "entry.hpp"

using qae_emulator::cluster_arrive;
using qae_emulator::cluster_rank;
using qae_emulator::cluster_size;
using qae_emulator::cluster_wait;
using qae_emulator::load;
using qae_emulator::load_remote;
using qae_emulator::SharedPointer;
using qae_emulator::store;
using qae_emulator::store_remote;

namespace {

__device__ void cluster_sync(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    cluster_arrive(file, line);
    cluster_wait(file, line);
}

__device__ unsigned block_number() {
    return blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
}

// Each block sums its elements and tells all blocks of its cluster, which all write the total.
__global__ void cluster_sum(const float* in, float* out) {
    QAE_SHARED(float, tile, 1024);
    QAE_SHARED(float, sums, 8);
    const unsigned t = threadIdx.x;
    const unsigned own = block_number() * blockDim.x + t;
    tile[t] = load(in + own);
    cluster_sync();
    if (t == 0) {
        float sum = 0.0f;
        for (unsigned i = 0; i < blockDim.x; ++i) sum += tile[i];
        for (unsigned rank = 0; rank < cluster_size(); ++rank) {
            store_remote(sums + cluster_rank(), rank, sum);
        }
    }
    cluster_sync();
    float total = 0.0f;
    for (unsigned rank = 0; rank < cluster_size(); ++rank) total += sums[rank];
    store(out + own, total);
}

// Each block reads the other's number, and both stay until that has happened.
__global__ void swap_numbers(float* out) {
    QAE_SHARED(float, number, 1);
    if (threadIdx.x == 0) number[0] = static_cast<float>(block_number());
    cluster_sync();
    const float other = load_remote(number, cluster_rank() ^ 1u);
    cluster_sync();
    store(out + block_number() * blockDim.x + threadIdx.x, other);
}

// Whether a kernel is to have the bug of this name; the tests say what each of them is.
__device__ bool is(const char* bug, const char* name) { return std::strcmp(bug, name) == 0; }

__global__ void barrier_bug(const char* bug) {
    const bool is_odd = cluster_rank() == 1 && threadIdx.x == 33;
    if (is(bug, "exit before") && is_odd) return;
    if (is(bug, "barrier of one block") && cluster_rank() == 1) __syncthreads();
    if (is(bug, "block barrier instead") && is_odd) {
        __syncthreads();
        return;
    }
    if (is(bug, "wait without arrival") && is_odd) cluster_wait();
    cluster_arrive();
    if (is(bug, "two arrivals") && is_odd) cluster_arrive();
    if (is(bug, "exit between") && is_odd) return;
    cluster_wait();
}

// Thread 0 of a block accesses the other's shared memory, and something does not fit to that.
__global__ void remote_bug(float* out, const char* bug) {
    QAE_SHARED(float, cell, 2);
    const bool is_first = threadIdx.x == 0;
    const unsigned rank = cluster_rank();
    const auto does = [&](unsigned who, const char* name) { return rank == who && is(bug, name); };
    float seen = 0.0f;
    if (is_first) {
        cell[1] = 0.0f;
        store_remote(cell, rank, 1.0f);
        if (does(1, "before the first barrier")) store_remote(cell, 0, 2.0f);
    }
    cluster_sync();
    const bool stores =
        does(1, "read at once") || does(1, "read behind a block barrier") || is(bug, "two writes");
    if (is_first && stores) store_remote(cell, 0, 2.0f);
    if (is_first && does(1, "no such block")) store_remote(cell, 2, 2.0f);
    if (is_first && does(1, "written at once")) seen = load_remote(cell, 0);
    if (is_first && does(0, "written at once")) cell[0] = 2.0f;
    if (does(0, "read at once")) seen = cell[0];
    if (is(bug, "read behind a block barrier")) __syncthreads();
    if (does(0, "read behind a block barrier")) seen = cell[0];
    if (does(1, "written behind a barrier")) seen = load_remote(cell, 0);
    cluster_arrive();
    if (is_first && does(1, "stored between the halves")) store_remote(cell, 0, 2.0f);
    if (does(1, "loaded between the halves")) seen = load_remote(cell, 0);
    cluster_wait();
    if (does(0, "stored between the halves")) seen = cell[0];
    if (is_first && does(0, "loaded between the halves")) cell[0] = 2.0f;
    if (is_first && does(0, "written behind a barrier")) cell[0] = 2.0f;
    cluster_sync();
    // No barrier keeps the other block from leaving.
    if (is_first && does(0, "by the first block behind the last barrier")) {
        seen = load_remote(cell, 1);
    }
    if (is_first && does(1, "by the last block behind the last barrier")) {
        seen = load_remote(cell, 0);
    }
    store(out + rank * blockDim.x + threadIdx.x, seen);
}

__global__ void lone_barrier(float* out) {
    cluster_sync();
    store(out + threadIdx.x, 1.0f);
}

}  // namespace

extern "C" {

int qae_emu_test_cluster_sum(const float* in, float* out, const unsigned* grid, unsigned block,
                             unsigned cluster) {
    return qae_emulator::launch_cluster("cluster_sum", cluster_sum, {grid[0], grid[1], grid[2]},
                                        block, cluster, 0, nullptr, in, out);
}
int qae_emu_test_swap_numbers(float* out) { return QAE_TEST_CLUSTERS(swap_numbers, 4, 64, 2, out); }
int qae_emu_test_barrier_bug(const char* bug) {
    return QAE_TEST_CLUSTERS(barrier_bug, 4, 64, 2, bug);
}
int qae_emu_test_remote_bug(float* out, const char* bug) {
    return QAE_TEST_CLUSTERS(remote_bug, 2, 64, 2, out, bug);
}
int qae_emu_test_lone_barrier(float* out) { return QAE_TEST_LAUNCH(lone_barrier, 1, 32, 0, out); }
void qae_emu_test_device_limits(int* num_sms, int* capability_major, size_t* max_shared) {
    const qae_emulator::DeviceLimits limits = qae_emulator::device_limits();
    *num_sms = limits.num_sms;
    *capability_major = limits.capability_major;
    *max_shared = limits.max_shared_per_block;
}

}  // extern "C"
