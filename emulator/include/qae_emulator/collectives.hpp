// Barriers, shuffles, votes and warp reductions.
//
// Each takes its call site as defaulted arguments: findings name it, and a test can turn a block
// barrier off by its site.
#pragma once

#include "state.hpp"

namespace qae_emulator {

enum class BlockBarrier : uint8_t { Sync, Count, And, Or };

enum class WarpCollective : uint8_t {
    Sync,
    Shuffle,
    ShuffleUp,
    ShuffleDown,
    ShuffleXor,
    Ballot,
    Any,
    All,
    AddUnsigned,
    MinUnsigned,
    MaxUnsigned,
    MinSigned,
    MaxSigned,
};

struct Site {
    const char* file;
    int line;
};

int block_barrier(BlockBarrier kind, bool predicate, Site site);

// `source` is the lane whose value the caller receives; only shuffles use it.
uint64_t warp_collective(WarpCollective kind, unsigned mask, uint64_t value, int source, Site site);

template <class T>
inline T shuffle(WarpCollective kind, unsigned mask, T value, int source, Site site) {
    static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8),
                  "shuffles move arithmetic types of 4 or 8 bytes");
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof(T));
    bits = warp_collective(kind, mask, bits, source, site);
    std::memcpy(&value, &bits, sizeof(T));
    return value;
}

inline int lane() { return static_cast<int>(this_thread->rank & 31u); }

}  // namespace qae_emulator

#define QAE_EMULATOR_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(QAE_EMULATOR_SITE) {
    qae_emulator::block_barrier(qae_emulator::BlockBarrier::Sync, false, {file, line});
}
inline int __syncthreads_count(int predicate, QAE_EMULATOR_SITE) {
    return qae_emulator::block_barrier(qae_emulator::BlockBarrier::Count, predicate != 0,
                                       {file, line});
}
inline int __syncthreads_and(int predicate, QAE_EMULATOR_SITE) {
    return qae_emulator::block_barrier(qae_emulator::BlockBarrier::And, predicate != 0,
                                       {file, line});
}
inline int __syncthreads_or(int predicate, QAE_EMULATOR_SITE) {
    return qae_emulator::block_barrier(qae_emulator::BlockBarrier::Or, predicate != 0,
                                       {file, line});
}

inline void __syncwarp(unsigned mask = 0xffffffffu, QAE_EMULATOR_SITE) {
    qae_emulator::warp_collective(qae_emulator::WarpCollective::Sync, mask, 0, 0, {file, line});
}

template <class T>
inline T __shfl_sync(unsigned mask, T value, int source, int width = 32, QAE_EMULATOR_SITE) {
    const int segment = qae_emulator::lane() & ~(width - 1);
    return qae_emulator::shuffle(qae_emulator::WarpCollective::Shuffle, mask, value,
                                 segment + (source & (width - 1)), {file, line});
}

// A source outside the caller's segment of `width` lanes leaves the caller its own value.
template <class T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, QAE_EMULATOR_SITE) {
    const int lane = qae_emulator::lane();
    const int source = lane - static_cast<int>(delta);
    return qae_emulator::shuffle(qae_emulator::WarpCollective::ShuffleUp, mask, value,
                                 source < (lane & ~(width - 1)) ? lane : source, {file, line});
}

template <class T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                          QAE_EMULATOR_SITE) {
    const int lane = qae_emulator::lane();
    const int source = lane + static_cast<int>(delta);
    return qae_emulator::shuffle(qae_emulator::WarpCollective::ShuffleDown, mask, value,
                                 source > (lane | (width - 1)) ? lane : source, {file, line});
}

template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, QAE_EMULATOR_SITE) {
    const int lane = qae_emulator::lane();
    const int source = lane ^ bits;
    // CUDA lets an earlier segment be read, but not a later one.
    return qae_emulator::shuffle(qae_emulator::WarpCollective::ShuffleXor, mask, value,
                                 source > (lane | (width - 1)) ? lane : source, {file, line});
}

inline unsigned __ballot_sync(unsigned mask, int predicate, QAE_EMULATOR_SITE) {
    return static_cast<unsigned>(qae_emulator::warp_collective(
        qae_emulator::WarpCollective::Ballot, mask, predicate != 0, 0, {file, line}));
}
inline int __any_sync(unsigned mask, int predicate, QAE_EMULATOR_SITE) {
    return static_cast<int>(qae_emulator::warp_collective(qae_emulator::WarpCollective::Any, mask,
                                                          predicate != 0, 0, {file, line}));
}
inline int __all_sync(unsigned mask, int predicate, QAE_EMULATOR_SITE) {
    return static_cast<int>(qae_emulator::warp_collective(qae_emulator::WarpCollective::All, mask,
                                                          predicate != 0, 0, {file, line}));
}

#define QAE_EMULATOR_WARP_REDUCTION(NAME, TYPE, KIND)                                              \
    inline TYPE NAME(unsigned mask, TYPE value, QAE_EMULATOR_SITE) {                               \
        return static_cast<TYPE>(qae_emulator::warp_collective(qae_emulator::WarpCollective::KIND, \
                                                               mask, static_cast<uint32_t>(value), \
                                                               0, {file, line}));                  \
    }
QAE_EMULATOR_WARP_REDUCTION(__reduce_add_sync, unsigned, AddUnsigned)
QAE_EMULATOR_WARP_REDUCTION(__reduce_min_sync, unsigned, MinUnsigned)
QAE_EMULATOR_WARP_REDUCTION(__reduce_max_sync, unsigned, MaxUnsigned)
// Two's complement makes the signed sum the unsigned one.
QAE_EMULATOR_WARP_REDUCTION(__reduce_add_sync, int, AddUnsigned)
QAE_EMULATOR_WARP_REDUCTION(__reduce_min_sync, int, MinSigned)
QAE_EMULATOR_WARP_REDUCTION(__reduce_max_sync, int, MaxSigned)
#undef QAE_EMULATOR_WARP_REDUCTION
#undef QAE_EMULATOR_SITE

// Clusters run one after another and threads change only at barriers: memory is always consistent.
inline void __threadfence() {}
inline void __threadfence_block() {}
