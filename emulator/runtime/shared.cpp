// Shared memory: regions, and the detector of races and uninitialized reads.
//
// Every granule keeps its last write and its last reads as one record each; see order.hpp. An
// access races with what it does not come after: a read with writes, a write with both. An access
// that is ordered replaces the records it is ordered after, as whoever comes after it comes after
// them.
#include "context.hpp"

namespace qae_emulator {
namespace {

constexpr size_t kStaticLimit = size_t{48} << 10;
constexpr size_t kDynamicAlignment = 16;

std::string describe_owner(uint64_t record) {
    const Context& device = *context;
    if (is_set(record)) {
        uint64_t first = kNobody;
        device.sets.all_of(record, [&](uint64_t accessor) {
            first = owner_of(accessor);
            return is_ordered(device.current(), accessor);
        });
        record = first;
    }
    const Block& block = *device.blocks[block_of(record)];
    return name_of(block.threads[accessor_of(record)]);
}

// What an access meets that is not ordered before it.
[[noreturn]] __attribute__((cold, noinline)) void conflict(const Thread& thread,
                                                           const SharedRegion& region,
                                                           int64_t offset, SharedAccess access,
                                                           const char* before, uint64_t record) {
    const std::string now = std::string(access == SharedAccess::Read ? "read" : "write") +
                            " of shared " + region.describe(offset) + " by " + name_of(thread);
    if (stamp_of(record) == kMbarrierStamp) {
        fail(FindingKind::BarrierMisuse, now + " touches an mbarrier");
    }
    if (!is_set(record) && accessor_of(record) >= kFirstLoads) {
        const Block& block = *context->blocks[block_of(record)];
        const Mbarrier& mbarrier = block.mbarriers[accessor_of(record) - kFirstLoads];
        const bool is_read = access == SharedAccess::Read;
        fail(is_read ? FindingKind::UninitializedRead : FindingKind::SharedRace,
             now + " does not wait for the bulk load that completes on " + mbarrier.describe());
    }
    fail(FindingKind::SharedRace, now + " races with a" + before + " by " + describe_owner(record) +
                                      " that no barrier orders");
}

[[noreturn]] __attribute__((cold, noinline)) void unwritten(const SharedRegion& region,
                                                            int64_t offset) {
    fail(FindingKind::UninitializedRead,
         "read of shared " + region.describe(offset) + ", which the block never wrote");
}

// Adds an access to those that nothing orders before it.
inline void join(Context& device, const Thread& thread, uint64_t& record, uint64_t now) {
    if (!is_set(record) && is_ordered(thread, record)) {
        record = now;
    } else {
        device.sets.add(thread, record, now);
    }
}

// Puts an ordered access in the place of those it comes after.
void replace(Context& device, uint64_t& record, uint64_t now) {
    if (is_set(record)) {
        device.sets.release(record);
    }
    record = now;
}

inline void note_late(Context& device, const Thread& thread, uint64_t& record) {
    if (thread.is_late) {
        device.late_accesses.emplace_back(&record, &thread);
    }
}

template <SharedAccess kAccess>
inline void touch(Context& device, Thread& thread, const SharedRegion& region, int64_t offset,
                  SharedCell& cell) {
    constexpr bool kIsAtomic = kAccess == SharedAccess::Atomic;
    constexpr bool kIsRead = kAccess == SharedAccess::Read;
    const uint64_t now = make_record(device.stamp, thread.owner) | (kIsAtomic ? kAtomicFlag : 0);
    if (kAccess != SharedAccess::Write && stamp_of(cell.write) < device.cluster_start) {
        unwritten(region, offset);
    }
    const bool was_atomic = (cell.write & kAtomicFlag) != 0;
    const bool is_after_write = is_ordered(thread, cell.write);
    if (!is_after_write && !(kIsAtomic && was_atomic)) {
        conflict(thread, region, offset, kAccess, was_atomic ? "n atomic" : " write", cell.write);
    }
    if (!kIsRead && !is_ordered(thread, cell.read)) {
        conflict(thread, region, offset, kAccess, " read", cell.read);
    }
    if constexpr (kIsRead) {
        join(device, thread, cell.read, now);
    } else if (kIsAtomic) {
        join(device, thread, cell.write, now);
    } else {
        replace(device, cell.write, now);
        replace(device, cell.read, 0);
    }
    note_late(device, thread, kIsRead ? cell.read : cell.write);
}

// Gives a line granules of 1 << shift bytes, which are smaller than those it has.
void split(Context& device, SharedRegion& region, uint64_t line, unsigned shift) {
    SharedCell* cells = region.cells_of(line);
    unsigned before = kLineShift;
    if (region.is_split(line)) {
        before = region.shift_of(line);
    } else {
        cells[0] = region.lines[line];
    }
    // From the last granule on, as no copy lies before its original.
    const unsigned copies = 1u << (before - shift);
    for (uint64_t granule = kLineBytes >> before; granule-- > 0;) {
        const SharedCell original = cells[granule];
        for (unsigned copy = copies; copy-- > 0;) {
            SharedCell& cell = cells[granule * copies + copy];
            cell = original;
            device.sets.separate(cell.write);
            device.sets.separate(cell.read);
        }
        device.sets.release(original.write);
        device.sets.release(original.read);
    }
    region.mark_split(line, shift);
}

template <SharedAccess kAccess>
void touch_range(Context& device, Thread& thread, SharedRegion& region, int64_t offset,
                 uint64_t size) {
    auto begin = static_cast<uint64_t>(offset);
    const uint64_t end = begin + size;
    while (begin < end) {
        const uint64_t line = begin / kLineBytes;
        const uint64_t within = begin % kLineBytes;
        const uint64_t length = std::min(end - begin, kLineBytes - within);
        const auto part = static_cast<int64_t>(begin);
        begin += length;
        const bool is_whole = length == kLineBytes;
        if (is_whole && !region.is_split(line)) {
            touch<kAccess>(device, thread, region, part, region.lines[line]);
            continue;
        }
        const auto shift = static_cast<unsigned>(__builtin_ctzll(within | length));
        if (!region.is_split(line) || region.shift_of(line) > shift) {
            split(device, region, line, shift);
        }
        SharedCell* cells = region.cells_of(line);
        const unsigned granule_shift = region.shift_of(line);
        for (uint64_t granule = within >> granule_shift;
             granule <= (within + length - 1) >> granule_shift; ++granule) {
            touch<kAccess>(device, thread, region, part, cells[granule]);
        }
        if (is_whole && kAccess == SharedAccess::Write) {
            region.lines[line] = cells[0];
            note_late(device, thread, region.lines[line].write);
        }
    }
}

// Whether a bulk store reads some of the bytes, which may not change before it has.
void check_stores(const Context& device, const SharedRegion& region, int64_t offset,
                  uint64_t size) {
    for (const BulkStore& store : device.stores) {
        const bool overlaps = store.region == &region &&
                              offset < store.offset + static_cast<int64_t>(store.bytes) &&
                              store.offset < offset + static_cast<int64_t>(size);
        if (overlaps && !store.was_read()) {
            fail(FindingKind::SharedRace,
                 "write of shared " + region.describe(offset) + " races with a bulk store by " +
                     name_of(*store.thread) + ", which has not waited for it to read its source");
        }
    }
}

SharedRegion* add_region(const void* site, const char* name, size_t bytes, size_t element,
                         size_t alignment) {
    Context& device = *context;
    const size_t lines = (bytes + kLineBytes - 1) / kLineBytes;
    for (unsigned rank = 0; rank < device.block_count; ++rank) {
        std::deque<SharedRegion>& regions = device.blocks[rank]->regions;
        regions.push_back({site, name, bytes, element, alignment, regions.size(),
                           std::vector<unsigned char>(lines * kLineBytes),
                           std::vector<SharedCell>(lines),
                           std::unique_ptr<SharedCell[]>(new SharedCell[lines * kLineBytes]), 0});
    }
    return &device.current().block->regions.back();
}

std::deque<SharedRegion>& own_regions() { return context->current().block->regions; }

SharedRegion& checked_region(SharedRegion* region) {
    if (region == nullptr) {
        fail(FindingKind::OutOfBounds, "access through a null shared pointer");
    }
    return *region;
}

inline void* access_region(Thread& thread, SharedRegion& region, int64_t offset, uint32_t size,
                           uint32_t alignment, SharedAccess access) {
    if (offset < 0 || static_cast<uint64_t>(offset) + size > region.bytes) {
        fail(FindingKind::OutOfBounds,
             "access to shared " + region.describe(offset) + " is out of bounds");
    }
    if (((static_cast<uint64_t>(offset) | region.alignment) & (alignment - 1)) != 0) {
        fail(FindingKind::Misaligned, "access of " + std::to_string(size) + " bytes to shared " +
                                          region.describe(offset) + " is misaligned");
    }
    note_access(thread, region, offset, size, access);
    return region.data.data() + offset;
}

}  // namespace

std::string SharedRegion::describe(int64_t offset) const {
    const auto size = static_cast<int64_t>(element);
    return "`" + name + "[" + std::to_string(offset / size) + "]` (" +
           std::to_string(bytes / element) + " elements)";
}

SharedRegion* static_shared(const void* site, const char* name, size_t bytes, size_t element) {
    size_t total = bytes;
    for (SharedRegion& region : own_regions()) {
        if (region.site == site) {
            return &region;
        }
        total += region.site == nullptr ? 0 : region.bytes;
    }
    if (total > kStaticLimit) {
        fail(FindingKind::LaunchLimit, std::to_string(total) + " bytes of static shared memory, " +
                                           std::to_string(kStaticLimit) + " are allowed");
    }
    const size_t limit = context->options.limits.max_shared_per_block;
    context->launch->shared_bytes = total + context->request->dynamic_shared_bytes;
    if (context->launch->shared_bytes > limit) {
        fail(FindingKind::LaunchLimit, std::to_string(context->launch->shared_bytes) +
                                           " bytes of shared memory, " + std::to_string(limit) +
                                           " are allowed");
    }
    // The element's own alignment is not known here, and divides this.
    const size_t alignment = std::min(element & ~(element - 1), kDynamicAlignment);
    return add_region(site, name, bytes, element, alignment);
}

SharedRegion* dynamic_shared(const char* name, size_t element) {
    for (SharedRegion& region : own_regions()) {
        if (region.site == nullptr) {
            if (region.element != element) {
                fail(FindingKind::LaunchLimit, std::string("`") + name + "` and `" + region.name +
                                                   "` view the dynamic shared memory as "
                                                   "different elements");
            }
            return &region;
        }
    }
    return add_region(nullptr, name, context->request->dynamic_shared_bytes, element,
                      kDynamicAlignment);
}

void note_access(Thread& thread, SharedRegion& region, int64_t offset, uint64_t size,
                 SharedAccess access) {
    Context& device = *context;
    if (region.unread_stores != 0 && access != SharedAccess::Read) {
        check_stores(device, region, offset, size);
    }
    switch (access) {
        case SharedAccess::Read:
            return touch_range<SharedAccess::Read>(device, thread, region, offset, size);
        case SharedAccess::Write:
            return touch_range<SharedAccess::Write>(device, thread, region, offset, size);
        case SharedAccess::Atomic:
            return touch_range<SharedAccess::Atomic>(device, thread, region, offset, size);
    }
}

void* shared_access(SharedRegion* region, int64_t offset, uint32_t size, uint32_t alignment,
                    SharedAccess access) {
    return access_region(context->current(), checked_region(region), offset, size, alignment,
                         access);
}

void* remote_access(SharedRegion* region, int64_t offset, uint32_t size, uint32_t alignment,
                    SharedAccess access, unsigned rank) {
    Context& device = *context;
    Thread& thread = device.current();
    require_clusters("access to the shared memory of another block");
    checked_region(region);
    const std::string target = region->describe(offset) + " of block " + std::to_string(rank);
    if (rank >= device.block_count) {
        fail(FindingKind::RemoteAccess, "access to shared " + target + " of a cluster of " +
                                            std::to_string(device.block_count));
    }
    Block& block = *device.blocks[rank];
    if (&block == thread.block) {
        return shared_access(region, offset, size, alignment, access);
    }
    if (thread.cluster_since == device.cluster_start) {
        fail(FindingKind::RemoteAccess,
             "access to shared " + target + " before a cluster barrier tells that it has started");
    }
    if (block.exited == block.thread_count) {
        fail(FindingKind::RemoteAccess, "access to shared " + target + ", which has exited");
    }
    void* address =
        access_region(thread, block.regions[region->index], offset, size, alignment, access);
    block.last_remote = make_record(device.stamp, thread.owner);
    block.last_remote_target = target;
    note_late(device, thread, block.last_remote);
    return address;
}

}  // namespace qae_emulator
