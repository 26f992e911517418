// Kernels that view the same shared memory as elements of several widths.
#include "entry.hpp"

using qae_emulator::load;
using qae_emulator::SharedPointer;
using qae_emulator::store;

namespace {

// Each thread writes its element of a narrow view, then reads a vector, then a word, and writes a
// word where all have read.
template <class T>
__global__ void narrow_view(const uint8_t* in, unsigned* out, bool with_barrier) {
    QAE_DYNAMIC_SHARED(uint4, vectors);
    const SharedPointer<T> narrow = vectors.cast<T>();
    const SharedPointer<unsigned> words = vectors.cast<unsigned>();
    const unsigned t = threadIdx.x;
    T value;
    uint8_t bytes[sizeof(T)];
    for (unsigned i = 0; i < sizeof(T); ++i) bytes[i] = load(in + t * sizeof(T) + i);
    std::memcpy(&value, bytes, sizeof(T));
    narrow[t] = value;
    __syncthreads();
    const unsigned vector = t * sizeof(T) / 16;
    const uint4 seen = vectors[vector];
    const unsigned word = t * sizeof(T) / 4;
    const unsigned seen_word = words[word];
    if (with_barrier) __syncthreads();
    if (t % (sizeof(T) < 4 ? 4 / sizeof(T) : 1) == 0) words[word] = seen_word + 1;
    __syncthreads();
    store(out + t, seen.x + seen.y + seen.z + seen.w + words[word]);
}

// Vectors are overwritten whole, where words of them were written before.
__global__ void joined_lines(unsigned* out, bool with_barrier) {
    QAE_SHARED(uint4, vectors, 16);
    const SharedPointer<unsigned> words = vectors.cast<unsigned>();
    const unsigned t = threadIdx.x;
    for (unsigned round = 0; round < 3; ++round) {
        words[t] = t + round;
        __syncthreads();
        const unsigned seen = words[t ^ 1];
        if (with_barrier) __syncthreads();
        if (t < 16) vectors[t] = make_uint4(seen, seen + 1, seen + 2, seen + 3);
        __syncthreads();
        store(out + t, static_cast<unsigned>(words[t]));
        __syncthreads();
    }
}

// Reads vectors of words that are aligned as words only, or as vectors.
__global__ void misaligned_view(float* out, bool is_static, int first) {
    QAE_DYNAMIC_SHARED(float, words);
    QAE_SHARED(float, static_words, 64);
    const SharedPointer<float> tile = is_static ? static_words : words;
    tile[threadIdx.x] = 1.0f;
    __syncthreads();
    const float4 vector = *(tile + first).cast<float4>();
    store(out + threadIdx.x, vector.x);
}

__global__ void dynamic_shared(float* out) {
    QAE_DYNAMIC_SHARED(float, tile);
    tile[threadIdx.x] = 1.0f;
    store(out + threadIdx.x, static_cast<float>(tile[threadIdx.x]));
}

}  // namespace

extern "C" {

int qae_emu_test_narrow_view(const uint8_t* in, unsigned* out, unsigned width, bool with_barrier) {
    const auto run = [&](auto kernel, size_t bytes) {
        return QAE_TEST_LAUNCH(kernel, 1, 64, 64 * bytes, in, out, with_barrier);
    };
    switch (width) {
        case 1:
            return run(narrow_view<uint8_t>, 1);
        case 2:
            return run(narrow_view<uint16_t>, 2);
        case 4:
            return run(narrow_view<unsigned>, 4);
        default:
            return run(narrow_view<uint64_t>, 8);
    }
}
int qae_emu_test_joined_lines(unsigned* out, bool with_barrier) {
    return QAE_TEST_LAUNCH(joined_lines, 1, 64, 0, out, with_barrier);
}
int qae_emu_test_misaligned_view(float* out, bool is_static, int first) {
    return QAE_TEST_LAUNCH(misaligned_view, 1, 64, 256, out, is_static, first);
}
int qae_emu_test_dynamic_shared(float* out, size_t shared_bytes) {
    return QAE_TEST_LAUNCH(dynamic_shared, 1, 32, shared_bytes, out);
}

}  // extern "C"
