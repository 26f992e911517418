// Who accessed a granule of shared memory when, and whether a barrier orders that before what a
// thread does now.
//
// A record is a stamp and an owner. The stamp rises at every synchronization; the owner is a thread
// of the cluster, or the bulk loads that complete on one mbarrier. Where several threads that
// nothing orders read a granule, or update it atomically, the record names a set of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace qae_emulator {

constexpr unsigned kMaxThreads = 1024;
constexpr unsigned kWarpSize = 32;
constexpr unsigned kMaxWarps = kMaxThreads / kWarpSize;
constexpr unsigned kMaxCluster = 8;

struct Block;
struct Thread;

// From the highest bits down: stamp (48), atomic (1), block in the cluster (4), accessor (11).
constexpr unsigned kStampShift = 16;
constexpr unsigned kBlockShift = 11;
constexpr uint64_t kAtomicFlag = 0x8000;
constexpr uint64_t kBlockMask = 0x7800;
constexpr uint64_t kAccessorMask = 0x07ff;
constexpr uint64_t kOwnerMask = kBlockMask | kAccessorMask;
// Accessors from here on are the bulk loads of an mbarrier, by the barrier's number in its block.
constexpr uint64_t kFirstLoads = kMaxThreads;
constexpr uint64_t kMaxMbarriers = kAccessorMask - kFirstLoads;
// What no owner is.
constexpr uint64_t kNobody = kOwnerMask;

// Stamps from here on are none: the record names a set by its number, ...
constexpr uint64_t kFirstSet = uint64_t{1} << 47;
// ... or the granule holds the mbarrier that the accessor tells, ...
constexpr uint64_t kMbarrierStamp = (uint64_t{1} << 48) - 2;
// ... or a load into it has not landed.
constexpr uint64_t kPendingStamp = (uint64_t{1} << 48) - 1;

inline uint64_t make_record(uint64_t stamp, uint64_t owner) { return stamp << kStampShift | owner; }
inline uint64_t stamp_of(uint64_t record) { return record >> kStampShift; }
inline uint64_t owner_of(uint64_t record) { return record & kOwnerMask; }
inline uint64_t accessor_of(uint64_t record) { return record & kAccessorMask; }
inline uint64_t block_of(uint64_t record) { return (record & kBlockMask) >> kBlockShift; }
inline bool is_set(uint64_t record) {
    return stamp_of(record) >= kFirstSet && stamp_of(record) < kMbarrierStamp;
}

// The sets that records name: of each accessor, a thread, the newest stamp. A set is a list of warps
// in the order in which they were added, the last one first.
class AccessorSets {
  public:
    // Forgets all sets and clears the records that name them.
    void clear();
    // Makes `record` name `added`, by `observer`, and what it named that no barrier orders before.
    void add(const Thread& observer, uint64_t& record, uint64_t added);
    // Frees the set that `record` names; the caller replaces the record.
    void release(uint64_t record);
    // Gives `copy`, the value of another record, a set of its own.
    void separate(uint64_t& copy);
    // Moves an accessor to a later stamp, where it is one.
    void raise(uint64_t record, uint64_t owner, uint64_t stamp);

    bool are_ordered(const Thread& observer, uint64_t record) const;
    // Calls `visit` with a record of each accessor until it returns false, and tells whether all
    // returned true.
    template <class Visit>
    bool all_of(uint64_t record, Visit visit) const;

  private:
    static constexpr uint32_t kNone = ~uint32_t{0};

    struct WarpAccessors {
        // Of the first in its list; null elsewhere, and where this is free.
        uint64_t* record;
        uint64_t newest;
        uint32_t next;
        uint32_t lanes;
        // The lowest of its owners.
        uint64_t first_owner;
        uint64_t stamps[kWarpSize];
    };

    static uint32_t index_of(uint64_t record) {
        return static_cast<uint32_t>(stamp_of(record) - kFirstSet);
    }
    template <class Visit>
    static bool all_of(const WarpAccessors& warp, Visit visit);
    // Whether a barrier of the cluster, the block or the warp orders all accessors of the warp.
    static bool is_behind(const Thread& observer, const WarpAccessors& warp);
    // The warp of `owner` in the list from `index` on; kNone where it is not there.
    uint32_t find(uint32_t index, uint64_t owner) const;
    // Puts an empty warp in front of the list.
    uint32_t push(uint64_t& record, uint32_t list, uint64_t flag, uint64_t owner);
    void put(uint32_t index, uint64_t added);

    std::vector<WarpAccessors> warps_;
    uint32_t free_ = kNone;
};

template <class Visit>
bool AccessorSets::all_of(const WarpAccessors& warp, Visit visit) {
    for (uint32_t lanes = warp.lanes; lanes != 0; lanes &= lanes - 1) {
        const auto lane = static_cast<unsigned>(__builtin_ctz(lanes));
        if (!visit(make_record(warp.stamps[lane], warp.first_owner + lane))) {
            return false;
        }
    }
    return true;
}

template <class Visit>
bool AccessorSets::all_of(uint64_t record, Visit visit) const {
    for (uint32_t index = index_of(record); index != kNone; index = warps_[index].next) {
        if (!all_of(warps_[index], visit)) {
            return false;
        }
    }
    return true;
}

// The stamp before which all that `accessor`, of the observer's own block, did is ordered.
uint64_t known_until(const Thread& observer, uint64_t accessor);

// is_ordered where no block barrier lies between.
bool is_ordered_otherwise(const Thread& observer, uint64_t record);

// Adds to `clock`, which has a stamp for each accessor of the block, what the observer knows beyond
// the last block barrier.
void release_to(std::vector<uint64_t>& clock, const Thread& observer);
void acquire_from(Thread& observer, const std::vector<uint64_t>& clock);
// The lanes of `mask` have met: each knows what any of them knew.
void exchange_clocks(Block& block, unsigned first_rank, unsigned mask);

}  // namespace qae_emulator
