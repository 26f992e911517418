// Kernels that touch global memory: in bounds and beyond, aligned and not, coalesced and not.
#include "entry.hpp"

using qae_emulator::load;
using qae_emulator::store;

namespace {

__device__ __forceinline__ int64_t global_thread() {
    return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}

__global__ void shifted_copy(const float* in, float* out, int64_t count, int64_t read_shift,
                             int64_t write_shift) {
    const int64_t i = global_thread();
    if (i < count) store(out + i + write_shift, load(in + i + read_shift));
}

__global__ void vector_copy(const float4* in, float4* out, int64_t count) {
    const int64_t i = global_thread();
    if (i < count) store(out + i, load(in + i));
}

__global__ void strided_read(const float* in, float* out, int64_t count, int64_t stride) {
    const int64_t i = global_thread();
    if (i < count) store(out + i, load(in + i * stride));
}

// Each thread adds `repeats` elements, a grid apart.
__global__ void looped_read(const float* in, float* out, int repeats) {
    const int64_t threads = static_cast<int64_t>(gridDim.x) * blockDim.x;
    float sum = 0.0f;
    for (int repeat = 0; repeat < repeats; ++repeat) {
        sum += load(in + repeat * threads + global_thread());
    }
    store(out + global_thread(), sum);
}

__global__ void all_atomics(unsigned* cells, unsigned long long* wide, int* sum) {
    const auto i = static_cast<unsigned>(global_thread());
    atomicAdd(cells + 0, 1u);
    atomicMax(cells + 1, i);
    atomicMin(cells + 2, i);
    atomicOr(cells + 3, 1u << (i % 32));
    atomicInc(cells + 4, 6u);
    atomicCAS(cells + 5, 0u, i + 1);
    atomicAdd(wide, 1ull << 32);
    atomicAdd(sum, -1);
}

}  // namespace

extern "C" {

int qae_emu_test_shifted_copy(const float* in, float* out, int64_t count, int64_t read_shift,
                              int64_t write_shift) {
    const unsigned grid = static_cast<unsigned>((count + 63) / 64);
    return QAE_TEST_LAUNCH(shifted_copy, grid, 64, 0, in, out, count, read_shift, write_shift);
}

int qae_emu_test_vector_copy(const float4* in, float4* out, int64_t count) {
    const unsigned grid = static_cast<unsigned>((count + 63) / 64);
    return QAE_TEST_LAUNCH(vector_copy, grid, 64, 0, in, out, count);
}

int qae_emu_test_strided_read(const float* in, float* out, int64_t count, int64_t stride) {
    const unsigned grid = static_cast<unsigned>((count + 63) / 64);
    return QAE_TEST_LAUNCH(strided_read, grid, 64, 0, in, out, count, stride);
}

int qae_emu_test_looped_read(const float* in, float* out, int repeats, unsigned grid,
                             unsigned block) {
    return QAE_TEST_LAUNCH(looped_read, grid, block, 0, in, out, repeats);
}

int qae_emu_test_all_atomics(unsigned* cells, unsigned long long* wide, int* sum, unsigned grid) {
    return QAE_TEST_LAUNCH(all_atomics, grid, 96, 0, cells, wide, sum);
}

}  // extern "C"
