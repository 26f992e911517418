// Shared memory: regions, and the detector of races and uninitialized reads.
//
// Every granule (the largest power of two that divides the element, so elements never share one)
// keeps its last write and its last reads as one record each: who, and at which stamp. An access
// races with a record of another thread unless a barrier that both took part in lies between, that
// is, unless the record is older than the last such barrier. Where several threads that no barrier
// orders read a granule, or update it atomically, the record names them together: as several lanes
// of one warp or as several warps, with the newest stamp. That loses nothing, because whoever is
// ordered after the newest of them is ordered after all.
#include "context.hpp"

namespace qae_emulator {
namespace {

constexpr size_t kStaticLimit = size_t{48} << 10;
constexpr size_t kSharedLimit = size_t{99} << 10;

// A record: stamp, an atomic flag and the accessor, from the highest bits down.
constexpr uint64_t kAccessorMask = 0x7ff;
constexpr uint64_t kAtomicFlag = 0x800;
constexpr unsigned kStampShift = 12;
// Accessors from here on are several lanes of a warp, and behind those, several warps.
constexpr uint64_t kSeveralLanes = kMaxThreads;
constexpr uint64_t kSeveralWarps = kMaxThreads + kMaxWarps;

uint64_t stamp_of(uint64_t record) { return record >> kStampShift; }

uint64_t accessor_of(uint64_t record) { return record & kAccessorMask; }

// The warp that all accessors of a record belong to; kMaxWarps where they are of several.
uint64_t warp_of(uint64_t record) {
    const uint64_t accessor = accessor_of(record);
    return accessor < kSeveralLanes ? accessor / kWarpSize : accessor - kSeveralLanes;
}

// Whether a collective of a part of the warp lies between the record and the calling thread.
bool is_ordered_by_part(const Warp& warp, uint64_t record) {
    if (warp.pairs_since.empty()) {
        return false;
    }
    const uint64_t* since = &warp.pairs_since[this_thread->rank % kWarpSize * kWarpSize];
    const uint64_t accessor = accessor_of(record);
    if (accessor < kSeveralLanes) {
        return stamp_of(record) < since[accessor % kWarpSize];
    }
    for (unsigned lane = 0; lane < kWarpSize; ++lane) {
        if ((warp.existing >> lane & 1u) != 0 && stamp_of(record) >= since[lane]) {
            return false;
        }
    }
    return true;
}

bool is_ordered(const Context& device, uint64_t record) {
    if (accessor_of(record) == this_thread->rank || stamp_of(record) < device.last_block_barrier) {
        return true;
    }
    const unsigned own = this_thread->rank / kWarpSize;
    if (warp_of(record) != own) {
        return false;
    }
    const Warp& warp = device.warps[own];
    return stamp_of(record) < warp.ordered_since || is_ordered_by_part(warp, record);
}

// The record of this access, joined with an earlier one that nothing orders before it.
uint64_t joined(const Context& device, uint64_t earlier, uint64_t flag) {
    uint64_t accessor = this_thread->rank;
    if (!is_ordered(device, earlier)) {
        const uint64_t own = this_thread->rank / kWarpSize;
        accessor = warp_of(earlier) == own ? kSeveralLanes + own : kSeveralWarps;
    }
    return device.stamp << kStampShift | flag | accessor;
}

std::string describe(const SharedRegion& region, int64_t offset) {
    const auto element = static_cast<int64_t>(region.element);
    return "`" + region.name + "[" + std::to_string(offset / element) + "]` (" +
           std::to_string(region.bytes / region.element) + " elements)";
}

std::string describe_accessor(uint64_t record) {
    const uint64_t accessor = accessor_of(record);
    if (accessor < kSeveralLanes) {
        return "thread " + std::to_string(accessor);
    }
    return accessor < kSeveralWarps ? "lanes of warp " + std::to_string(accessor - kSeveralLanes)
                                    : "several warps";
}

[[noreturn]] __attribute__((cold, noinline)) void race(const SharedRegion& region, int64_t offset,
                                                       const char* now, const char* before,
                                                       uint64_t record) {
    fail(FindingKind::SharedRace, std::string(now) + " of shared " + describe(region, offset) +
                                      " by thread " + std::to_string(this_thread->rank) +
                                      " races with a" + before + " by " +
                                      describe_accessor(record) + " that no barrier orders");
}

SharedRegion* add_region(const void* site, const char* name, size_t bytes, size_t element) {
    unsigned shift = 0;
    while (shift < 6 && element % (size_t{2} << shift) == 0) {
        ++shift;
    }
    context->regions.push_back({site, name, bytes, element, shift,
                                std::vector<unsigned char>(bytes),
                                std::vector<SharedCell>((bytes >> shift) + 1)});
    return &context->regions.back();
}

}  // namespace

SharedRegion* static_shared(const void* site, const char* name, size_t bytes, size_t element) {
    size_t total = bytes;
    for (SharedRegion& region : context->regions) {
        if (region.site == site) {
            return &region;
        }
        total += region.site == nullptr ? 0 : region.bytes;
    }
    if (total > kStaticLimit) {
        fail(FindingKind::LaunchLimit, std::to_string(total) + " bytes of static shared memory, " +
                                           std::to_string(kStaticLimit) + " are allowed");
    }
    context->launch->shared_bytes = total + context->request->dynamic_shared_bytes;
    if (context->launch->shared_bytes > kSharedLimit) {
        fail(FindingKind::LaunchLimit, std::to_string(context->launch->shared_bytes) +
                                           " bytes of shared memory, " +
                                           std::to_string(kSharedLimit) + " are allowed");
    }
    return add_region(site, name, bytes, element);
}

SharedRegion* dynamic_shared(const char* name, size_t element) {
    for (SharedRegion& region : context->regions) {
        if (region.site == nullptr) {
            if (region.element != element) {
                fail(FindingKind::LaunchLimit, std::string("`") + name + "` and `" + region.name +
                                                   "` view the dynamic shared memory as "
                                                   "different elements");
            }
            return &region;
        }
    }
    const size_t bytes = context->request->dynamic_shared_bytes;
    return add_region(nullptr, name, bytes, element);
}

void* shared_access(SharedRegion* region, int64_t offset, uint32_t size, SharedAccess access) {
    if (region == nullptr) {
        fail(FindingKind::OutOfBounds, "access through a null shared pointer");
    }
    if (offset < 0 || static_cast<uint64_t>(offset) + size > region->bytes) {
        fail(FindingKind::OutOfBounds,
             "access to shared " + describe(*region, offset) + " is out of bounds");
    }
    const Context& device = *context;
    const auto first = static_cast<uint64_t>(offset) >> region->granule_shift;
    const auto last = (static_cast<uint64_t>(offset) + size - 1) >> region->granule_shift;
    for (uint64_t granule = first; granule <= last; ++granule) {
        SharedCell& cell = region->cells[granule];
        const bool is_atomic = access == SharedAccess::Atomic;
        if (access != SharedAccess::Write && stamp_of(cell.write) < device.block_start) {
            fail(FindingKind::UninitializedRead,
                 "read of shared " + describe(*region, offset) + ", which the block never wrote");
        }
        const bool both_atomic = is_atomic && (cell.write & kAtomicFlag) != 0;
        if (!both_atomic && !is_ordered(device, cell.write)) {
            race(*region, offset, access == SharedAccess::Read ? "read" : "write",
                 (cell.write & kAtomicFlag) != 0 ? "n atomic" : " write", cell.write);
        }
        if (access == SharedAccess::Read) {
            cell.read = joined(device, cell.read, 0);
            continue;
        }
        if (!is_ordered(device, cell.read)) {
            race(*region, offset, "write", " read", cell.read);
        }
        cell.write = is_atomic ? joined(device, cell.write, kAtomicFlag)
                               : device.stamp << kStampShift | this_thread->rank;
    }
    return region->data.data() + offset;
}

}  // namespace qae_emulator
