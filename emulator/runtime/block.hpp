// The blocks of the cluster under way, their threads, and what these wait for.
#pragma once

#include <deque>
#include <string>
#include <vector>

#include "copies.hpp"
#include "fiber.hpp"
#include "qae_emulator/collectives.hpp"
#include "sectors.hpp"

namespace qae_emulator {

enum class ThreadState : uint8_t {
    Runnable,
    AtBlockBarrier,
    AtClusterBarrier,
    AtWarpCollective,
    AtMbarrier,
    Exited,
};

struct Warp;

struct Thread : ThreadView {
    Fiber fiber;
    Block* block;
    Warp* warp;
    // What a record of this thread has below the stamp.
    uint64_t owner;
    ThreadState state;

    // What a waiting thread waits for, and what a completed collective hands back.
    WarpCollective collective;
    unsigned mask;
    int source;
    uint64_t value;
    uint64_t result;
    Site site;
    Mbarrier* mbarrier;

    // All that the cluster's threads did before this stamp is ordered before what this one does now.
    uint64_t cluster_since;
    // Between the two halves of the cluster barrier.
    bool has_arrived;
    // The same while other threads have yet to arrive: what this one does now, its own arrival does
    // not order.
    bool is_late;
    // The first half is the barrier that a test turns off, and so will be the second.
    bool skips_wait;

    // What the thread knows from mbarriers, a stamp for each accessor of the block. Of no use behind
    // the next block barrier, which `clock_since` tells.
    std::vector<uint64_t> clock;
    uint64_t clock_since;
    // The last stamps before its calls of fence_async, back to the last block barrier and one more.
    std::vector<uint64_t> fences;
    // Groups of bulk stores committed.
    uint64_t store_groups;

    bool has_clock() const;
};

struct Warp {
    unsigned existing;
    unsigned waiting;
    // All accesses of the warp's lanes before this stamp are ordered before what its lanes do now.
    uint64_t ordered_since;
    // The same for one lane after another, from collectives of a part of the warp:
    // [observer][observed]. Empty until the first of them.
    std::vector<uint64_t> pairs_since;
    // The clocks of the lanes may differ.
    bool has_clocks;
    SectorTable sectors;
};

struct PendingBarrier {
    unsigned arrived = 0;
    unsigned positive = 0;
    BlockBarrier kind{};
    Site site{};
    int result = 0;
};

struct Block : BlockView {
    unsigned thread_count;
    unsigned exited;
    uint64_t last_block_barrier;
    PendingBarrier barrier;
    std::deque<SharedRegion> regions;
    std::deque<Mbarrier> mbarriers;
    // The last access by another block: the record, and what it was to.
    uint64_t last_remote;
    std::string last_remote_target;
    Thread threads[kMaxThreads];
    Warp warps[kMaxWarps];
};

// Where a clock has the stamp of an accessor.
inline uint64_t slot_of(const Block& block, uint64_t accessor) {
    return accessor < kFirstLoads ? accessor : block.thread_count + accessor - kFirstLoads;
}

// The barrier of all threads of the cluster.
struct ClusterBarrier {
    unsigned arrived = 0;
    Site site{};
    // The stamp of its last completion, or of the start of the cluster.
    uint64_t completed = 0;
};

inline bool Thread::has_clock() const { return clock_since == block->last_block_barrier; }

inline bool is_ordered(const Thread& observer, uint64_t record) {
    const uint64_t differs = owner_of(record) ^ observer.owner;
    return differs == 0 ||
           (differs < kMaxThreads && stamp_of(record) < observer.block->last_block_barrier) ||
           (differs < kWarpSize && stamp_of(record) < observer.warp->ordered_since) ||
           is_ordered_otherwise(observer, record);
}

}  // namespace qae_emulator
