// Kernels that copy in bulk, and kernels that break the rules of doing so.
#include "entry.hpp"

using qae_emulator::bulk_commit;
using qae_emulator::bulk_load;
using qae_emulator::bulk_store;
using qae_emulator::bulk_wait;
using qae_emulator::bulk_wait_read;
using qae_emulator::fence_async;
using qae_emulator::load;
using qae_emulator::mbarrier_arrive;
using qae_emulator::mbarrier_arrive_expect;
using qae_emulator::mbarrier_init;
using qae_emulator::mbarrier_init_fence;
using qae_emulator::mbarrier_wait;
using qae_emulator::SharedPointer;
using qae_emulator::store;

namespace {

constexpr unsigned kStageBytes = 1024;
constexpr unsigned kStageWords = kStageBytes / 4;
constexpr unsigned kStages = 2;

// Doubles `count` chunks of each block, which pass through two stages in both directions. Thread 0
// loads and thread 32 stores; the threads meet at mbarriers only.
__global__ void double_chunks(const unsigned* in, unsigned* out, unsigned count) {
    QAE_DYNAMIC_SHARED(uint4, stages);
    QAE_SHARED(uint64_t, full, kStages);
    QAE_SHARED(uint64_t, done, kStages);
    QAE_SHARED(uint64_t, empty, kStages);
    const SharedPointer<uint8_t> bytes = stages.cast<uint8_t>();
    const unsigned t = threadIdx.x;
    const unsigned first = blockIdx.x * count;
    if (t == 0) {
        for (unsigned stage = 0; stage < kStages; ++stage) {
            mbarrier_init(full + stage, 1);
            mbarrier_init(done + stage, blockDim.x);
            mbarrier_init(empty + stage, 1);
        }
        mbarrier_init_fence();
    }
    __syncthreads();
    const auto load_chunk = [&](unsigned chunk) {
        const unsigned stage = chunk % kStages;
        mbarrier_arrive_expect(full + stage, kStageBytes);
        bulk_load(bytes + stage * kStageBytes, in + (first + chunk) * kStageWords, kStageBytes,
                  full + stage);
    };
    if (t == 0) {
        for (unsigned chunk = 0; chunk < min(kStages, count); ++chunk) load_chunk(chunk);
    }
    for (unsigned chunk = 0; chunk < count; ++chunk) {
        const unsigned stage = chunk % kStages;
        const unsigned parity = chunk / kStages % 2;
        mbarrier_wait(full + stage, parity);
        for (unsigned i = t; i < kStageBytes / 16; i += blockDim.x) {
            const SharedPointer<uint4> vector = stages + stage * (kStageBytes / 16) + i;
            const uint4 value = *vector;
            *vector = make_uint4(2 * value.x, 2 * value.y, 2 * value.z, 2 * value.w);
        }
        fence_async();
        mbarrier_arrive(done + stage);
        if (t == 32) {
            mbarrier_wait(done + stage, parity);
            bulk_store(out + (first + chunk) * kStageWords, bytes + stage * kStageBytes,
                       kStageBytes);
            bulk_commit();
            bulk_wait_read<0>();
            mbarrier_arrive(empty + stage);
        }
        if (t == 0 && chunk + kStages < count) {
            mbarrier_wait(empty + stage, parity);
            load_chunk(chunk + kStages);
        }
    }
}

// Copies `bytes` between two places, through shared memory behind `shift` bytes.
__global__ void copy_range(const uint8_t* in, uint8_t* out, unsigned bytes, unsigned shift,
                           bool is_static) {
    QAE_DYNAMIC_SHARED(uint8_t, tile);
    QAE_SHARED(uint8_t, static_tile, kStageBytes);
    QAE_SHARED(uint64_t, full, 1);
    const SharedPointer<uint8_t> stage = (is_static ? static_tile : tile) + shift;
    if (threadIdx.x == 0) {
        mbarrier_init(full, 1);
        mbarrier_init_fence();
        mbarrier_arrive_expect(full, bytes);
        bulk_load(stage, in, bytes, full);
        mbarrier_wait(full, 0);
        bulk_store(out, stage, bytes);
        bulk_commit();
        bulk_wait<0>();
    }
}

// Whether a kernel is to have the bug of this name; the tests say what each of them is.
__device__ bool is(const char* bug, const char* name) { return std::strcmp(bug, name) == 0; }

// What lies between the use of a stage and a load into it.
__device__ void use_stage(SharedPointer<unsigned> words, unsigned* out, const char* bug) {
    const unsigned t = threadIdx.x;
    // A fence of either kind would do for the mbarrier.
    if (is(bug, "no fence of the mbarrier")) return;
    words[t] = t;
    if (!is(bug, "no fence before load") && !is(bug, "fence by another thread") &&
        !is(bug, "fence behind the barrier")) {
        fence_async();
    }
    if (is(bug, "fence by another thread") && t != 77) fence_async();
    __syncthreads();
    store(out + t, static_cast<unsigned>(words[t ^ 1]));
    if (!is(bug, "no barrier before load")) __syncthreads();
    if (is(bug, "fence behind the barrier")) fence_async();
}

// What the thread that loads does between the load and its own wait.
__device__ void disturb_load(SharedPointer<unsigned> words, SharedPointer<uint64_t> full,
                             unsigned* in, const char* bug) {
    if (is(bug, "source overwritten")) store(in, 77u);
    if (is(bug, "one arrival more")) mbarrier_arrive(full);
    if (is(bug, "write before wait")) words[40] = 1;
    if (is(bug, "mbarrier overwritten")) full[0] = 0;
    if (is(bug, "mbarrier initialized again")) mbarrier_init(full, 1);
    if (is(bug, "read before wait")) store(in, static_cast<unsigned>(words[0]));
}

// How threads wait for the load.
__device__ void wait_for_load(SharedPointer<uint64_t> full, const char* bug) {
    const unsigned t = threadIdx.x;
    if (is(bug, "a lane waits for its warp") || is(bug, "a lane waits for itself")) {
        if (t % 32 == 0) mbarrier_wait(full, 0);
        if (is(bug, "a lane waits for its warp")) __syncwarp();
    } else if (is(bug, "a thread waits for its block")) {
        if (t == 0) mbarrier_wait(full, 0);
        __syncthreads();
    } else if (is(bug, "wait at another mbarrier") && t == 70) {
        mbarrier_arrive(full + 1);
        mbarrier_wait(full + 1, 0);
    } else if (is(bug, "wait for the other parity")) {
        mbarrier_wait(full, 1);
    } else if (is(bug, "wait for no parity")) {
        mbarrier_wait(full, 2);
    } else if (!is(bug, "a thread does not wait") || t != 70) {
        mbarrier_wait(full, 0);
    }
}

// Loads a chunk and stores sums of its words.
__global__ void load_bug(unsigned* in, unsigned* out, const char* bug) {
    QAE_SHARED(uint4, tile, kStageBytes / 16);
    QAE_SHARED(uint64_t, full, 2);
    const unsigned t = threadIdx.x;
    const SharedPointer<unsigned> words = tile.cast<unsigned>();
    if (t == 0) {
        if (!is(bug, "no mbarrier")) mbarrier_init(full, 1);
        mbarrier_init(full + 1, 1);
        if (!is(bug, "no fence of the mbarrier")) mbarrier_init_fence();
    }
    if (is(bug, "no barrier behind the mbarrier") && t == 40) mbarrier_wait(full, 1);
    __syncthreads();
    use_stage(words, out, bug);
    if (t == 0) {
        const unsigned more = is(bug, "too much expected") ? 16 : 0;
        const unsigned less = is(bug, "too little expected") ? 16 : 0;
        const unsigned most = is(bug, "more expected than possible") ? 1u << 20 : 0;
        if (!is(bug, "nothing expected")) {
            mbarrier_arrive_expect(full, kStageBytes + more - less + most);
        }
        bulk_load(tile.cast<uint8_t>(), in, kStageBytes, full);
        disturb_load(words, full, in, bug);
    }
    if (is(bug, "nobody waits")) return;
    wait_for_load(full, bug);
    unsigned sum = 0;
    for (unsigned i = 0; i < 4; ++i) sum += words[t ^ i];
    store(out + t, sum);
}

// Stores two chunks that all threads write.
__global__ void store_bug(unsigned* out, const char* bug) {
    QAE_SHARED(uint4, tile, 2 * kStageBytes / 16);
    const unsigned t = threadIdx.x;
    const SharedPointer<unsigned> words = tile.cast<unsigned>();
    const SharedPointer<unsigned> second_words = words + kStageWords;
    const SharedPointer<uint8_t> bytes = tile.cast<uint8_t>();
    unsigned* const second_out = out + kStageWords;
    for (unsigned i = t; i < 2 * kStageWords; i += blockDim.x) {
        if (!is(bug, "source not written") || i != 30) words[i] = i;
    }
    if (!is(bug, "fence by the storing thread")) fence_async();
    if (is(bug, "write behind the fence") && t == 33) words[33] = 33;
    if (!is(bug, "no barrier before store")) __syncthreads();
    if (is(bug, "fence by the storing thread") && t == 0) fence_async();
    if (t == 0) {
        bulk_store(out, bytes, kStageBytes);
        if (!is(bug, "no commit")) bulk_commit();
        if (is(bug, "source overwritten")) words[0] = 1;
        if (is(bug, "target written")) store(out, 1u);
        if (is(bug, "target read")) store(out + 1, load(out));
        bulk_store(is(bug, "overlapping targets") ? second_out - 4 : second_out,
                   bytes + kStageBytes, kStageBytes);
        if (!is(bug, "no commit")) bulk_commit();
        if (is(bug, "no wait")) return;
        bulk_wait_read<1>();
        words[0] = 1;
        if (is(bug, "newest source overwritten")) second_words[0] = 1;
        if (is(bug, "no wait for the newest")) return;
        bulk_wait_read<0>();
        second_words[0] = 1;
        if (is(bug, "target read behind its source")) store(out, load(second_out));
        if (is(bug, "target read behind the store")) {
            bulk_wait<1>();
            store(out, load(out) + 1);
            bulk_wait<0>();
            store(second_out, load(second_out) + 1);
        }
    }
    if (is(bug, "source overwritten by another thread") && t == 40) words[1] = 1;
    if (is(bug, "source overwritten behind a barrier")) {
        __syncthreads();
        words[t + 1] = 1;
    }
}

// The second block reads what the first one has stored.
__global__ void store_for_next_block(unsigned* out, bool waits) {
    QAE_SHARED(uint4, tile, kStageBytes / 16);
    if (blockIdx.x == 0) {
        const SharedPointer<unsigned> words = tile.cast<unsigned>();
        for (unsigned i = threadIdx.x; i < kStageWords; i += blockDim.x) words[i] = i;
        fence_async();
        __syncthreads();
        if (threadIdx.x == 0) {
            bulk_store(out, tile.cast<uint8_t>(), kStageBytes);
            bulk_commit();
            bulk_wait_read<0>();
            if (waits) bulk_wait<0>();
        }
        return;
    }
    if (threadIdx.x == 0) store(out + kStageWords, load(out + 7));
}

// Three warps read a chunk, and each tells thread 96 through an mbarrier when it has.
__global__ void refill(const unsigned* in, unsigned* out, const char* bug) {
    constexpr unsigned kReaders = 96;
    QAE_SHARED(uint4, tile, kStageBytes / 16);
    QAE_SHARED(uint64_t, full, 1);
    QAE_SHARED(uint64_t, empty, 1);
    const unsigned t = threadIdx.x;
    const SharedPointer<unsigned> words = tile.cast<unsigned>();
    const bool issues = t == kReaders;
    if (issues) {
        mbarrier_init(full, 1);
        mbarrier_init(empty, kReaders / 32);
        mbarrier_init_fence();
    }
    __syncthreads();
    for (unsigned round = 0; round < 2; ++round) {
        if (issues) {
            if (round > 0 && !is(bug, "no wait for readers")) mbarrier_wait(empty, 0);
            mbarrier_arrive_expect(full, kStageBytes);
            bulk_load(tile.cast<uint8_t>(), in + round * kStageWords, kStageBytes, full);
        }
        if (t < kReaders) {
            mbarrier_wait(full, round);
            unsigned sum = 0;
            for (unsigned i = t % 4; i < kStageWords; i += 4) sum += words[i];
            store(out + kReaders * round + t, sum);
            if (!is(bug, "lanes do not meet")) __syncwarp();
            if (t % 32 == 0) mbarrier_arrive(empty);
            if (is(bug, "read behind the arrival") && t == 40) {
                store(out, static_cast<unsigned>(words[4]));
            }
        }
    }
}

// A thread that waits twice for a barrier which the others take through both phases.
__global__ void missed_phase(unsigned* out) {
    QAE_SHARED(uint64_t, barrier, 1);
    if (threadIdx.x == 0) mbarrier_init(barrier, 1);
    __syncthreads();
    if (threadIdx.x == 1) {
        mbarrier_wait(barrier, 0);
        store(out, 1u);
    } else if (threadIdx.x == 0) {
        __syncwarp(0x5u);
        mbarrier_arrive(barrier);
        mbarrier_arrive(barrier);
    } else if (threadIdx.x == 2) {
        __syncwarp(0x5u);
    }
}

__global__ void invalid_mbarrier(unsigned* out, unsigned arrivals, unsigned shift) {
    QAE_SHARED(unsigned, words, 8);
    if (threadIdx.x == 0) mbarrier_init((words + shift).cast<uint64_t>(), arrivals);
    store(out + threadIdx.x, 1u);
}

}  // namespace

extern "C" {

int qae_emu_test_double_chunks(const unsigned* in, unsigned* out, unsigned count, unsigned grid,
                               unsigned block) {
    return QAE_TEST_LAUNCH(double_chunks, grid, block, kStages * kStageBytes, in, out, count);
}
int qae_emu_test_copy_range(const uint8_t* in, uint8_t* out, unsigned bytes, unsigned shift,
                            bool is_static) {
    return QAE_TEST_LAUNCH(copy_range, 1, 32, kStageBytes, in, out, bytes, shift, is_static);
}
int qae_emu_test_load_bug(unsigned* in, unsigned* out, const char* bug) {
    return QAE_TEST_LAUNCH(load_bug, 1, kStageWords, 0, in, out, bug);
}
int qae_emu_test_store_bug(unsigned* out, const char* bug) {
    return QAE_TEST_LAUNCH(store_bug, 1, 64, 0, out, bug);
}
int qae_emu_test_store_for_next_block(unsigned* out, bool waits) {
    return QAE_TEST_LAUNCH(store_for_next_block, 2, 32, 0, out, waits);
}
int qae_emu_test_refill(const unsigned* in, unsigned* out, const char* bug) {
    return QAE_TEST_LAUNCH(refill, 1, 97, 0, in, out, bug);
}
int qae_emu_test_missed_phase(unsigned* out) {
    return QAE_TEST_LAUNCH(missed_phase, 1, 32, 0, out);
}
int qae_emu_test_invalid_mbarrier(unsigned* out, unsigned arrivals, unsigned shift) {
    return QAE_TEST_LAUNCH(invalid_mbarrier, 1, 32, 0, out, arrivals, shift);
}

}  // extern "C"
