// Kernels that share memory between threads, with and without the barrier it takes.
#include "entry.hpp"

using qae_emulator::load;
using qae_emulator::SharedPointer;
using qae_emulator::store;

namespace {

struct Pair {
    float value;
    int index;
    unsigned count;
};

// Thread t hands its element to thread n-1-t.
__global__ void reverse(const float* in, float* out, bool with_barrier) {
    QAE_SHARED(float, tile, 1024);
    const unsigned t = threadIdx.x;
    tile[t] = load(in + t);
    if (with_barrier) __syncthreads();
    store(out + t, static_cast<float>(tile[blockDim.x - 1 - t]));
}

// Lanes exchange elements with a neighbor: a warp barrier is enough.
__global__ void swap_neighbors(const float* in, float* out, bool with_barrier) {
    QAE_SHARED(float, tile, 1024);
    const unsigned t = threadIdx.x;
    tile[t] = load(in + t);
    if (with_barrier) __syncwarp();
    store(out + t, static_cast<float>(tile[t ^ 1]));
}

// As swap_neighbors, with a barrier of half a warp, across `distance` lanes.
__global__ void swap_in_half_warps(const float* in, float* out, unsigned distance) {
    QAE_SHARED(float, tile, 1024);
    const unsigned t = threadIdx.x;
    tile[t] = load(in + t);
    __syncwarp(t % 32 < 16 ? 0x0000ffffu : 0xffff0000u);
    store(out + t, static_cast<float>(tile[t ^ distance]));
}

// All threads read an element, then one of them overwrites it.
__global__ void overwrite_after_read(float* out, bool with_barrier) {
    QAE_SHARED(float, cell, 1);
    if (threadIdx.x == 0) cell[0] = 1.0f;
    __syncthreads();
    const float seen = cell[0];
    if (with_barrier) __syncthreads();
    if (threadIdx.x == 40) cell[0] = seen + 1.0f;
    store(out + threadIdx.x, seen);
}

// Writes the first `written` elements and reads all.
__global__ void partly_written(float* out, unsigned written) {
    QAE_SHARED(float, tile, 64);
    if (threadIdx.x < written) tile[threadIdx.x] = 1.0f;
    __syncthreads();
    store(out + threadIdx.x, static_cast<float>(tile[threadIdx.x]));
}

// Only the first of the blocks writes what all of them read, unless all are told to.
__global__ void left_by_earlier_block(float* out, bool all_write) {
    QAE_SHARED(float, tile, 32);
    if (all_write || blockIdx.x == 0) tile[threadIdx.x] = 1.0f;
    store(out + threadIdx.x, static_cast<float>(tile[threadIdx.x]));
}

__global__ void shifted_write(float* out, int shift) {
    QAE_SHARED(float, tile, 64);
    const int t = static_cast<int>(threadIdx.x);
    tile[t + shift] = 1.0f;
    store(out + t, static_cast<float>(tile[t + shift]));
}

__global__ void histogram(const unsigned* in, unsigned* out, bool with_barrier) {
    QAE_SHARED(unsigned, bins, 128);
    bins[threadIdx.x] = 0;
    __syncthreads();
    atomicAdd(&bins[load(in + threadIdx.x)], 1u);
    if (with_barrier) __syncthreads();
    store(out + threadIdx.x, static_cast<unsigned>(bins[threadIdx.x]));
}

__device__ void exchange(SharedPointer<Pair> pairs, unsigned a, unsigned b) {
    const Pair first = pairs[a];
    pairs[a] = pairs[b];
    pairs[b] = first;
}

// Whole structs in dynamic shared memory, behind a pointer passed to a function.
__global__ void reverse_pairs(const float* in, float* out) {
    QAE_DYNAMIC_SHARED(Pair, pairs);
    const unsigned t = threadIdx.x;
    pairs[t] = Pair{load(in + t), static_cast<int>(t), 1u};
    __syncthreads();
    const unsigned mirror = blockDim.x - 1 - t;
    if (t < mirror) exchange(pairs, t, mirror);
    __syncthreads();
    const Pair pair = *(pairs + t);
    store(out + t, pair.value + static_cast<float>(pair.index) * static_cast<float>(pair.count));
}

// Every thread writes its element and reads those of `readers` lanes, again and again.
template <class T>
__global__ void shared_steps(float* out, int steps, unsigned readers) {
    QAE_SHARED(T, tile, 1024);
    const unsigned t = threadIdx.x;
    float sum = 0.0f;
    for (int step = 0; step < steps; ++step) {
        T value = {};
        tile[t] = value;
        __syncwarp();
        for (unsigned i = 0; i < 15; ++i) {
            value = tile[t ^ (i % readers)];
            sum += *reinterpret_cast<const float*>(&value);
        }
        __syncwarp();
    }
    store(out + t, sum);
}

__global__ void too_much_static_shared(float* out) {
    QAE_SHARED(float, tile, 12 * 1024 + 1);
    tile[threadIdx.x] = 1.0f;
    store(out + threadIdx.x, static_cast<float>(tile[threadIdx.x]));
}

}  // namespace

extern "C" {

int qae_emu_test_reverse(const float* in, float* out, unsigned block, bool with_barrier) {
    return QAE_TEST_LAUNCH(reverse, 1, block, 0, in, out, with_barrier);
}
int qae_emu_test_swap_neighbors(const float* in, float* out, unsigned block, bool with_barrier) {
    return QAE_TEST_LAUNCH(swap_neighbors, 1, block, 0, in, out, with_barrier);
}
int qae_emu_test_swap_in_half_warps(const float* in, float* out, unsigned distance) {
    return QAE_TEST_LAUNCH(swap_in_half_warps, 1, 64, 0, in, out, distance);
}
int qae_emu_test_overwrite_after_read(float* out, bool with_barrier) {
    return QAE_TEST_LAUNCH(overwrite_after_read, 1, 64, 0, out, with_barrier);
}
int qae_emu_test_partly_written(float* out, unsigned written) {
    return QAE_TEST_LAUNCH(partly_written, 1, 64, 0, out, written);
}
int qae_emu_test_left_by_earlier_block(float* out, bool all_write) {
    return QAE_TEST_LAUNCH(left_by_earlier_block, 2, 32, 0, out, all_write);
}
int qae_emu_test_shifted_write(float* out, int shift) {
    return QAE_TEST_LAUNCH(shifted_write, 1, 64, 0, out, shift);
}
int qae_emu_test_histogram(const unsigned* in, unsigned* out, bool with_barrier) {
    return QAE_TEST_LAUNCH(histogram, 1, 128, 0, in, out, with_barrier);
}
int qae_emu_test_reverse_pairs(const float* in, float* out, unsigned block, size_t shared_bytes) {
    return QAE_TEST_LAUNCH(reverse_pairs, 1, block, shared_bytes, in, out);
}
int qae_emu_test_shared_steps(float* out, int steps, unsigned readers, bool vectors) {
    return vectors ? QAE_TEST_LAUNCH(shared_steps<float4>, 1, 256, 0, out, steps, readers)
                   : QAE_TEST_LAUNCH(shared_steps<float>, 1, 256, 0, out, steps, readers);
}
int qae_emu_test_too_much_static_shared(float* out) {
    return QAE_TEST_LAUNCH(too_much_static_shared, 1, 32, 0, out);
}

}  // extern "C"
