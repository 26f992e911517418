// mbarriers: what a phase waits for, and who is ordered after it.
#include "context.hpp"

namespace qae_emulator {
namespace {

// What the hardware can count.
constexpr unsigned kMaxArrivals = (1u << 20) - 1;
constexpr uint64_t kMaxBytes = (1u << 20) - 1;

// The cells of the 8 bytes of an mbarrier, which is aligned.
template <class Visit>
void for_cells_of(SharedRegion& region, int64_t offset, Visit visit) {
    const uint64_t line = static_cast<uint64_t>(offset) / kLineBytes;
    const uint64_t within = static_cast<uint64_t>(offset) % kLineBytes;
    if (!region.is_split(line)) {
        visit(region.lines[line]);
        return;
    }
    const unsigned shift = region.shift_of(line);
    for (uint64_t byte = within; byte < within + sizeof(uint64_t); byte += uint64_t{1} << shift) {
        visit(region.cells_of(line)[byte >> shift]);
    }
}

Mbarrier* find(SharedPointer<uint64_t> pointer) {
    SharedRegion* region = pointer.region();
    const int64_t offset = pointer.offset();
    if (region == nullptr || offset < 0 || offset % 8 != 0 ||
        static_cast<uint64_t>(offset) + sizeof(uint64_t) > region->bytes) {
        return nullptr;
    }
    uint64_t mark = 0;
    for_cells_of(*region, offset, [&](const SharedCell& cell) { mark = cell.write; });
    return stamp_of(mark) == kMbarrierStamp
               ? &context->current().block->mbarriers[accessor_of(mark) - kFirstLoads]
               : nullptr;
}

void complete(Context& device, Mbarrier& mbarrier) {
    mbarrier.missing = mbarrier.arrivals;
    mbarrier.expected_bytes = 0;
    ++mbarrier.phase;
    mbarrier.completed.swap(mbarrier.arriving);
    mbarrier.arriving.clear();
    for (Thread* waiter : mbarrier.waiters) {
        acquire_from(*waiter, mbarrier.completed);
        device.make_runnable(*waiter);
    }
    mbarrier.waiters.clear();
}

void arrive(SharedPointer<uint64_t> pointer, unsigned bytes) {
    Context& device = *context;
    Mbarrier& mbarrier = mbarrier_at(pointer);
    // Loads land as late as they may: a phase stays open until a thread waits for it.
    if (mbarrier.missing == 0) {
        fail(FindingKind::BarrierMisuse, "more than the " + std::to_string(mbarrier.arrivals) +
                                             " arrivals of a phase at " + mbarrier.describe() +
                                             ", which nothing has waited for");
    }
    mbarrier.expected_bytes += bytes;
    if (mbarrier.expected_bytes > kMaxBytes) {
        fail(FindingKind::BarrierMisuse,
             mbarrier.describe() + " is to expect " + std::to_string(mbarrier.expected_bytes) +
                 " bytes in one phase, " + std::to_string(kMaxBytes) + " are possible");
    }
    release_to(mbarrier.arriving, device.current());
    --mbarrier.missing;
    if (mbarrier.can_complete() && mbarrier.loads.empty()) {
        complete(device, mbarrier);
    }
}

}  // namespace

uint64_t Mbarrier::loading_bytes() const {
    uint64_t bytes = 0;
    for (const BulkLoad& load : loads) {
        bytes += load.bytes;
    }
    return bytes;
}

Mbarrier& mbarrier_at(SharedPointer<uint64_t> pointer) {
    require_clusters("an mbarrier");
    Mbarrier* found = find(pointer);
    if (found == nullptr) {
        const SharedRegion* region = pointer.region();
        fail(FindingKind::BarrierMisuse,
             (region == nullptr ? "a null shared pointer" : region->describe(pointer.offset())) +
                 " is used as an mbarrier, which it is not initialized to be");
    }
    const Context& device = *context;
    if (!is_ordered(device.current(), found->initialized)) {
        const Thread& thread = device.current().block->threads[accessor_of(found->initialized)];
        fail(FindingKind::BarrierMisuse, "no barrier orders the use of " + found->describe() +
                                             " by " + name_of(device.current()) +
                                             " after its initialization by " + name_of(thread));
    }
    return *found;
}

void mbarrier_init(SharedPointer<uint64_t> pointer, unsigned arrivals) {
    require_clusters("an mbarrier");
    const Context& device = *context;
    const Thread& thread = device.current();
    Block& block = *thread.block;
    if (arrivals == 0 || arrivals > kMaxArrivals || block.mbarriers.size() == kMaxMbarriers) {
        fail(FindingKind::BarrierMisuse, "mbarrier number " +
                                             std::to_string(block.mbarriers.size()) + " of " +
                                             std::to_string(arrivals) + " arrivals");
    }
    pointer.write(0);
    SharedRegion& region = *pointer.region();
    Mbarrier mbarrier{};
    mbarrier.region = &region;
    mbarrier.offset = pointer.offset();
    mbarrier.owner = (thread.owner & kBlockMask) | (kFirstLoads + block.mbarriers.size());
    mbarrier.arrivals = mbarrier.missing = arrivals;
    mbarrier.initialized = make_record(device.stamp, thread.owner);
    for_cells_of(region, pointer.offset(), [&](SharedCell& cell) {
        cell = {make_record(kMbarrierStamp, mbarrier.owner), 0};
    });
    block.mbarriers.push_back(std::move(mbarrier));
}

void mbarrier_init_fence() {
    require_clusters("an mbarrier");
    Context& device = *context;
    const Thread& thread = device.current();
    for (Mbarrier& mbarrier : thread.block->mbarriers) {
        if (mbarrier.fenced == 0 && owner_of(mbarrier.initialized) == thread.owner) {
            mbarrier.fenced = make_record(device.stamp, thread.owner);
        }
    }
}

void mbarrier_arrive(SharedPointer<uint64_t> pointer) { arrive(pointer, 0); }

void mbarrier_arrive_expect(SharedPointer<uint64_t> pointer, unsigned bytes) {
    arrive(pointer, bytes);
}

void mbarrier_wait(SharedPointer<uint64_t> pointer, unsigned parity) {
    Context& device = *context;
    Thread& thread = device.current();
    Mbarrier& mbarrier = mbarrier_at(pointer);
    if (parity > 1) {
        fail(FindingKind::BarrierMisuse,
             "wait at " + mbarrier.describe() + " for a parity of " + std::to_string(parity));
    }
    const uint64_t phase = mbarrier.phase;
    if (phase % 2 != parity) {
        acquire_from(thread, mbarrier.completed);
        return;
    }
    thread.state = ThreadState::AtMbarrier;
    thread.mbarrier = &mbarrier;
    mbarrier.waiters.push_back(&thread);
    device.wait();
    if (mbarrier.phase != phase + 1) {
        fail(FindingKind::BarrierMisuse, mbarrier.describe() + " may complete phase " +
                                             std::to_string(mbarrier.phase) +
                                             " before a thread has seen that phase " +
                                             std::to_string(phase + 1) + " is complete");
    }
}

bool land_needed_loads() {
    Context& device = *context;
    std::vector<Mbarrier*> ready;
    for (unsigned rank = 0; rank < device.block_count; ++rank) {
        for (Mbarrier& mbarrier : device.blocks[rank]->mbarriers) {
            if (!mbarrier.waiters.empty() && mbarrier.can_complete()) {
                ready.push_back(&mbarrier);
            }
        }
    }
    if (ready.empty()) {
        return false;
    }
    const uint64_t pick = device.options.random_order ? device.random() % ready.size() : 0;
    Mbarrier& mbarrier = *ready[pick];
    for (const BulkLoad& load : mbarrier.loads) {
        if (!land(load, mbarrier.owner)) {
            return false;
        }
    }
    mbarrier.loads.clear();
    const Block& block = *mbarrier.waiters.front()->block;
    const uint64_t slot = slot_of(block, accessor_of(mbarrier.owner));
    if (mbarrier.arriving.size() <= slot) {
        mbarrier.arriving.resize(slot + 1);
    }
    mbarrier.arriving[slot] = ++device.stamp;
    complete(device, mbarrier);
    return true;
}

}  // namespace qae_emulator
