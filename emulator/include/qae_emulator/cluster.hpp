// Thread block clusters: their barrier, and access to the shared memory of their other blocks.
#pragma once

#include "collectives.hpp"
#include "shared.hpp"

namespace qae_emulator {

inline unsigned cluster_rank() { return this_block->cluster_rank; }
inline unsigned cluster_size() { return this_block->cluster_size; }

// The two halves of the barrier of all threads of the cluster: what a thread did before it arrived
// is visible to every thread that has waited.
void cluster_arrive(const char* file = __builtin_FILE(), int line = __builtin_LINE());
void cluster_wait(const char* file = __builtin_FILE(), int line = __builtin_LINE());

// As shared_access, to the same bytes of block `rank` of the cluster.
void* remote_access(SharedRegion* region, int64_t offset, uint32_t size, uint32_t alignment,
                    SharedAccess access, unsigned rank);

template <class T>
void store_remote(SharedPointer<T> local, unsigned rank, const T& value) {
    static_assert(sizeof(T) <= 16, "the widest store has 16 bytes");
    void* address = remote_access(local.region(), local.offset(), sizeof(T), alignof(T),
                                  SharedAccess::Write, rank);
    std::memcpy(address, &value, sizeof(T));
}

template <class T>
T load_remote(SharedPointer<T> local, unsigned rank) {
    static_assert(sizeof(T) <= 16, "the widest load has 16 bytes");
    T value;
    std::memcpy(&value,
                remote_access(local.region(), local.offset(), sizeof(T), alignof(T),
                              SharedAccess::Read, rank),
                sizeof(T));
    return value;
}

}  // namespace qae_emulator
