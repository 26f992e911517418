// Bulk copies. A load lands when a thread can only go on with its data, a store reads its source
// when its thread waits for that, and writes its target when its thread waits for that or the
// launch ends.
#include "context.hpp"

namespace qae_emulator {
namespace {

constexpr uint64_t kSectorBytes = 32;

uint64_t sectors_of(const void* address, uint64_t bytes) {
    const auto first = reinterpret_cast<uintptr_t>(address);
    return (first + bytes - 1) / kSectorBytes - first / kSectorBytes + 1;
}

// The first byte of a global range whose state `is_wrong`; null where there is none.
template <class IsWrong>
const unsigned char* find_byte(const void* address, unsigned bytes, IsWrong is_wrong) {
    const Arena& arena = context->arena;
    const auto* first = static_cast<const unsigned char*>(address);
    if (!arena.contains(address, bytes)) {
        return first;
    }
    const unsigned char* states = arena.shadow(address);
    const unsigned char* wrong = std::find_if(states, states + bytes, is_wrong);
    return wrong == states + bytes ? nullptr : first + (wrong - states);
}

std::string describe(const char* verb, unsigned bytes, const SharedRegion& region, int64_t offset,
                     const char* direction, const void* address) {
    return std::string(verb) + " of " + std::to_string(bytes) + " bytes, shared " +
           region.describe(offset) + direction + context->arena.describe(address);
}

void check_range(const std::string& what, const void* address, const SharedRegion& region,
                 int64_t offset, unsigned bytes) {
    require_clusters("a bulk copy");
    const auto shared = static_cast<uint64_t>(offset);
    if (offset < 0 || shared + bytes > region.bytes) {
        fail(FindingKind::OutOfBounds, what + " is out of bounds of shared memory");
    }
    const bool is_outside =
        find_byte(address, bytes, [](unsigned char state) { return state == Arena::kOutside; });
    if (is_outside) {
        fail(FindingKind::OutOfBounds, what + " is out of bounds");
    }
    const auto global = reinterpret_cast<uintptr_t>(address);
    if (bytes == 0 || ((shared | region.alignment | global | bytes) & (kLineBytes - 1)) != 0) {
        fail(FindingKind::Misaligned, what + " is misaligned, or its size is");
    }
}

// Whether the copies that a thread issues see a write by any thread of the cluster.
bool is_fenced(const Thread& issuer, uint64_t write) {
    const Context& device = *context;
    if (is_set(write)) {
        return device.sets.all_of(write,
                                  [&](uint64_t accessor) { return is_fenced(issuer, accessor); });
    }
    if (stamp_of(write) < device.cluster_start || accessor_of(write) >= kFirstLoads) {
        return true;
    }
    const Thread& writer = device.blocks[block_of(write)]->threads[accessor_of(write)];
    for (size_t fence = writer.fences.size(); fence-- > 0;) {
        if (is_ordered(issuer, make_record(writer.fences[fence], writer.owner))) {
            return stamp_of(write) <= writer.fences[fence];
        }
    }
    return false;
}

// An access to whole lines by a copy, in the name of the thread that issues it.
void note_copy(const std::string& what, Thread& issuer, SharedRegion& region, int64_t offset,
               unsigned bytes, SharedAccess access) {
    bool is_seen = true;
    region.for_cells(offset, bytes, [&](const SharedCell& cell) {
        is_seen = is_seen && (!is_ordered(issuer, cell.write) || is_fenced(issuer, cell.write));
    });
    // Fails where a write is not even ordered.
    note_access(issuer, region, offset, bytes, access);
    if (!is_seen) {
        fail(FindingKind::MissingFence,
             what +
                 " meets writes by threads that have not called fence_async between them and "
                 "the barrier that orders them");
    }
}

void read_source(BulkStore& store) {
    note_access(context->current(), *store.region, store.offset, store.bytes, SharedAccess::Read);
    const unsigned char* source = store.region->data.data() + store.offset;
    store.data.assign(source, source + store.bytes);
    --store.region->unread_stores;
}

void write_target(const BulkStore& store) {
    std::memcpy(store.target, store.data.data(), store.bytes);
    std::memset(context->arena.shadow(store.target), Arena::kInitialized, store.bytes);
}

}  // namespace

void bulk_load(SharedPointer<uint8_t> target, const void* source, unsigned bytes,
               SharedPointer<uint64_t> barrier) {
    Context& device = *context;
    Thread& thread = device.current();
    Mbarrier& mbarrier = mbarrier_at(barrier);
    if (target.region() == nullptr) {
        fail(FindingKind::OutOfBounds, "bulk load to a null shared pointer");
    }
    SharedRegion& region = *target.region();
    const int64_t offset = target.offset();
    const std::string what = describe("bulk load", bytes, region, offset, " from ", source);
    check_range(what, source, region, offset, bytes);
    if (mbarrier.fenced == 0 || !is_ordered(thread, mbarrier.fenced)) {
        fail(FindingKind::MissingFence, what + " completes on " + mbarrier.describe() +
                                            ", whose initialization no fence shows to it");
    }
    note_copy(what, thread, region, offset, bytes, SharedAccess::Write);
    const auto first = static_cast<uint64_t>(offset) / kLineBytes;
    std::fill_n(region.lines.begin() + static_cast<int64_t>(first), bytes / kLineBytes,
                SharedCell{make_record(kPendingStamp, mbarrier.owner), 0});
    mbarrier.loads.push_back(
        {&region, offset, static_cast<const unsigned char*>(source), bytes, &thread});
}

bool land(const BulkLoad& load, uint64_t owner) {
    Context& device = *context;
    const unsigned char* wrong = find_byte(
        load.source, load.bytes, [](unsigned char state) { return state != Arena::kInitialized; });
    if (wrong != nullptr) {
        record(FindingKind::UninitializedRead,
               describe("bulk load", load.bytes, *load.region, load.offset, " from ", wrong) +
                   " reads bytes that were never written",
               load.thread);
        device.abandoned = true;
        return false;
    }
    SharedRegion& region = *load.region;
    std::memcpy(region.data.data() + load.offset, load.source, load.bytes);
    const auto first = static_cast<uint64_t>(load.offset) / kLineBytes;
    std::fill_n(region.lines.begin() + static_cast<int64_t>(first), load.bytes / kLineBytes,
                SharedCell{make_record(device.stamp, owner), 0});
    device.launch->bytes_read += load.bytes;
    device.launch->sectors_read += sectors_of(load.source, load.bytes);
    return true;
}

void bulk_store(void* target, SharedPointer<uint8_t> source, unsigned bytes) {
    Context& device = *context;
    Thread& thread = device.current();
    if (source.region() == nullptr) {
        fail(FindingKind::OutOfBounds, "bulk store from a null shared pointer");
    }
    SharedRegion& region = *source.region();
    const int64_t offset = source.offset();
    const std::string what = describe("bulk store", bytes, region, offset, " to ", target);
    check_range(what, target, region, offset, bytes);
    const bool is_awaited =
        find_byte(target, bytes, [](unsigned char state) { return state == Arena::kAwaited; });
    if (is_awaited) {
        fail(FindingKind::PendingCopy, what + " overlaps one that nothing has waited for");
    }
    note_copy(what, thread, region, offset, bytes, SharedAccess::Read);
    std::memset(device.arena.shadow(target), Arena::kAwaited, bytes);
    ++region.unread_stores;
    device.stores.push_back({&thread,
                             BulkStore::kUncommitted,
                             &region,
                             offset,
                             static_cast<unsigned char*>(target),
                             bytes,
                             {}});
    device.launch->bytes_written += bytes;
    device.launch->sectors_written += sectors_of(target, bytes);
}

void bulk_commit() {
    Context& device = *context;
    Thread& thread = device.current();
    for (BulkStore& store : device.stores) {
        if (store.thread == &thread && store.group == BulkStore::kUncommitted) {
            store.group = thread.store_groups;
        }
    }
    ++thread.store_groups;
}

void wait_bulk_groups(unsigned pending, bool written) {
    Context& device = *context;
    const Thread& thread = device.current();
    for (auto store = device.stores.begin(); store != device.stores.end();) {
        const auto next = std::next(store);
        const bool is_old =
            store->group != BulkStore::kUncommitted && store->group + pending < thread.store_groups;
        if (store->thread == &thread && is_old) {
            if (!store->was_read()) {
                read_source(*store);
            }
            if (written) {
                write_target(*store);
                device.stores.erase(store);
            }
        }
        store = next;
    }
}

void fence_async() {
    require_clusters("a fence of the copies' proxy");
    Context& device = *context;
    Thread& thread = device.current();
    std::vector<uint64_t>& fences = thread.fences;
    while (fences.size() > 1 && fences[1] < thread.block->last_block_barrier) {
        fences.erase(fences.begin());
    }
    fences.push_back(device.stamp++);
    mbarrier_init_fence();
}

void check_copies(Thread& exiting) {
    Context& device = *context;
    for (auto store = device.stores.begin(); store != device.stores.end();) {
        const auto next = std::next(store);
        if (store->thread == &exiting) {
            if (!store->was_read()) {
                const bool is_committed = store->group != BulkStore::kUncommitted;
                fail(FindingKind::PendingCopy,
                     describe("bulk store", store->bytes, *store->region, store->offset, " to ",
                              store->target) +
                         (is_committed ? " may read its source after its thread has exited"
                                       : " was never committed"));
            }
            device.unwritten_stores.splice(device.unwritten_stores.end(), device.stores, store);
        }
        store = next;
    }
    const Block& block = *exiting.block;
    if (block.exited != block.thread_count) {
        return;
    }
    for (const Mbarrier& mbarrier : block.mbarriers) {
        for (const BulkLoad& load : mbarrier.loads) {
            fail(FindingKind::PendingCopy,
                 describe("bulk load", load.bytes, *load.region, load.offset, " from ",
                          load.source) +
                     " may land after its block has exited",
                 *load.thread);
        }
    }
}

void forget_copies() {
    Context& device = *context;
    for (const BulkStore& store : device.stores) {
        std::memset(device.arena.shadow(store.target), Arena::kAllocated, store.bytes);
        store.region->unread_stores = 0;
    }
    device.stores.clear();
    for (unsigned rank = 0; rank < device.block_count; ++rank) {
        for (const Mbarrier& mbarrier : device.blocks[rank]->mbarriers) {
            const auto clear = [](SharedRegion& region, int64_t offset, uint64_t bytes) {
                const auto first = static_cast<uint64_t>(offset) / kLineBytes;
                std::fill_n(region.lines.begin() + static_cast<int64_t>(first),
                            (bytes + kLineBytes - 1) / kLineBytes, SharedCell{0, 0});
            };
            clear(*mbarrier.region, mbarrier.offset, sizeof(uint64_t));
            for (const BulkLoad& load : mbarrier.loads) {
                clear(*load.region, load.offset, load.bytes);
            }
        }
        device.blocks[rank]->mbarriers.clear();
    }
}

void write_stores() {
    Context& device = *context;
    for (const BulkStore& store : device.unwritten_stores) {
        write_target(store);
    }
    device.unwritten_stores.clear();
}

}  // namespace qae_emulator
