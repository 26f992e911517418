// What orders accesses: block and cluster barriers, collectives of a warp, and mbarriers.
//
// Block barriers, and collectives of a whole warp, order everything before a stamp. What a thread
// learns at an mbarrier is not as regular, as its arrivals come one after another: a thread that has
// waited keeps a clock, the stamp of every accessor of its block up to which it is ordered.
#include "order.hpp"

#include <algorithm>

#include "context.hpp"

namespace qae_emulator {
namespace {

// Of a lane of the observer's own warp.
uint64_t known_in_warp(const Warp& warp, uint64_t observer_lane, uint64_t lane) {
    const uint64_t pair = observer_lane * kWarpSize + lane;
    return warp.pairs_since.empty() ? warp.ordered_since
                                    : std::max(warp.ordered_since, warp.pairs_since[pair]);
}

void merge(std::vector<uint64_t>& clock, const std::vector<uint64_t>& other) {
    if (clock.size() < other.size()) {
        clock.resize(other.size());
    }
    for (size_t slot = 0; slot < other.size(); ++slot) {
        clock[slot] = std::max(clock[slot], other[slot]);
    }
}

}  // namespace

uint64_t known_until(const Thread& observer, uint64_t accessor) {
    const Block& block = *observer.block;
    uint64_t until = block.last_block_barrier;
    if (accessor / kWarpSize == observer.rank / kWarpSize) {
        until = std::max(
            until, known_in_warp(*observer.warp, observer.rank % kWarpSize, accessor % kWarpSize));
    }
    const uint64_t slot = slot_of(block, accessor);
    if (observer.has_clock() && slot < observer.clock.size()) {
        until = std::max(until, observer.clock[slot]);
    }
    return until;
}

bool is_ordered_otherwise(const Thread& observer, uint64_t record) {
    if (is_set(record)) {
        return context->sets.are_ordered(observer, record);
    }
    return stamp_of(record) < observer.cluster_since ||
           (block_of(record) == observer.block->cluster_rank &&
            stamp_of(record) < known_until(observer, accessor_of(record)));
}

void release_to(std::vector<uint64_t>& clock, const Thread& observer) {
    const Block& block = *observer.block;
    if (observer.has_clock()) {
        merge(clock, observer.clock);
    }
    if (clock.size() < block.thread_count) {
        clock.resize(block.thread_count);
    }
    const Warp& warp = *observer.warp;
    const unsigned first = observer.rank - observer.rank % kWarpSize;
    for (unsigned lanes = warp.existing; lanes != 0; lanes &= lanes - 1) {
        const auto lane = static_cast<unsigned>(__builtin_ctz(lanes));
        uint64_t& until = clock[first + lane];
        until = std::max(until, known_in_warp(warp, observer.rank % kWarpSize, lane));
    }
    // The stamp of what the thread did last; behind the next one lies what is not released.
    clock[observer.rank] = ++context->stamp;
}

void acquire_from(Thread& observer, const std::vector<uint64_t>& clock) {
    if (!observer.has_clock()) {
        observer.clock.clear();
        observer.clock_since = observer.block->last_block_barrier;
    }
    merge(observer.clock, clock);
    observer.warp->has_clocks = true;
}

void exchange_clocks(Block& block, unsigned first_rank, unsigned mask) {
    Warp& warp = block.warps[first_rank / kWarpSize];
    if (!warp.has_clocks) {
        return;
    }
    std::vector<uint64_t> all;
    for (unsigned lanes = mask; lanes != 0; lanes &= lanes - 1) {
        const Thread& lane =
            block.threads[first_rank + static_cast<unsigned>(__builtin_ctz(lanes))];
        if (lane.has_clock()) {
            merge(all, lane.clock);
        }
    }
    if (!all.empty()) {
        for (unsigned lanes = mask; lanes != 0; lanes &= lanes - 1) {
            acquire_from(block.threads[first_rank + static_cast<unsigned>(__builtin_ctz(lanes))],
                         all);
        }
    }
    warp.has_clocks = mask != warp.existing;
}

void AccessorSets::clear() {
    for (const WarpAccessors& warp : warps_) {
        if (warp.record != nullptr) {
            *warp.record = 0;
        }
    }
    warps_.clear();
    free_ = kNone;
}

uint32_t AccessorSets::find(uint32_t index, uint64_t owner) const {
    const uint64_t first_owner = owner - owner % kWarpSize;
    while (index != kNone && warps_[index].first_owner != first_owner) {
        index = warps_[index].next;
    }
    return index;
}

uint32_t AccessorSets::push(uint64_t& record, uint32_t list, uint64_t flag, uint64_t owner) {
    uint32_t index = free_;
    if (index == kNone) {
        index = static_cast<uint32_t>(warps_.size());
        warps_.emplace_back();
    } else {
        free_ = warps_[index].next;
    }
    if (list != kNone) {
        warps_[list].record = nullptr;
    }
    WarpAccessors& warp = warps_[index];
    warp.record = &record;
    warp.newest = 0;
    warp.next = list;
    warp.lanes = 0;
    warp.first_owner = owner - owner % kWarpSize;
    record = make_record(kFirstSet + index, kNobody) | flag;
    return index;
}

void AccessorSets::put(uint32_t index, uint64_t added) {
    WarpAccessors& warp = warps_[index];
    const auto lane = static_cast<unsigned>(owner_of(added) % kWarpSize);
    warp.lanes |= 1u << lane;
    warp.stamps[lane] = stamp_of(added);
    warp.newest = std::max(warp.newest, stamp_of(added));
}

void AccessorSets::add(const Thread& observer, uint64_t& record, uint64_t added) {
    const uint64_t flag = record & kAtomicFlag;
    if (!is_set(record)) {
        const uint64_t earlier = record;
        put(push(record, kNone, flag, owner_of(earlier)), earlier);
    }
    bool are_behind = true;
    for (uint32_t index = index_of(record); index != kNone && are_behind;
         index = warps_[index].next) {
        are_behind = is_behind(observer, warps_[index]);
    }
    if (are_behind) {
        release(record);
        record = added | flag;
        return;
    }
    uint32_t index = find(index_of(record), owner_of(added));
    if (index == kNone) {
        index = push(record, index_of(record), flag, owner_of(added));
    }
    put(index, added);
}

void AccessorSets::release(uint64_t record) {
    if (!is_set(record)) {
        return;
    }
    uint32_t last = index_of(record);
    warps_[last].record = nullptr;
    while (warps_[last].next != kNone) {
        last = warps_[last].next;
    }
    warps_[last].next = free_;
    free_ = index_of(record);
}

void AccessorSets::separate(uint64_t& copy) {
    if (!is_set(copy)) {
        return;
    }
    const uint64_t flag = copy & kAtomicFlag;
    uint32_t list = kNone;
    for (uint32_t index = index_of(copy); index != kNone; index = warps_[index].next) {
        const WarpAccessors original = warps_[index];
        list = push(copy, list, flag, original.first_owner);
        warps_[list].newest = original.newest;
        warps_[list].lanes = original.lanes;
        std::copy_n(original.stamps, kWarpSize, warps_[list].stamps);
    }
}

void AccessorSets::raise(uint64_t record, uint64_t owner, uint64_t stamp) {
    const uint32_t index = find(index_of(record), owner);
    if (index != kNone && (warps_[index].lanes >> owner % kWarpSize & 1u) != 0) {
        put(index, make_record(stamp, owner));
    }
}

bool AccessorSets::is_behind(const Thread& observer, const WarpAccessors& warp) {
    const uint64_t differs = warp.first_owner ^ observer.owner;
    return warp.newest < observer.cluster_since ||
           (differs < kMaxThreads && warp.newest < observer.block->last_block_barrier) ||
           (differs < kWarpSize && warp.newest < observer.warp->ordered_since);
}

bool AccessorSets::are_ordered(const Thread& observer, uint64_t record) const {
    for (uint32_t index = index_of(record); index != kNone; index = warps_[index].next) {
        const WarpAccessors& warp = warps_[index];
        const bool are_ordered = is_behind(observer, warp) || all_of(warp, [&](uint64_t accessor) {
                                     return is_ordered(observer, accessor);
                                 });
        if (!are_ordered) {
            return false;
        }
    }
    return true;
}

}  // namespace qae_emulator
