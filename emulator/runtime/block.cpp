// Runs one block: its fibers, its barriers, and the verdict where no fiber can go on.
#include "context.hpp"

namespace qae_emulator {

QAE_EMULATOR_TLS const ThreadView* this_thread = nullptr;
QAE_EMULATOR_TLS const BlockView* this_block = nullptr;
QAE_EMULATOR_TLS Context* context = nullptr;

namespace {

// Switches to the next runnable thread, or to the scheduler where there is none.
void leave(Context& device, Fiber& from) {
    if (device.queue_count == 0) {
        switch_fiber(from, device.scheduler);
        return;
    }
    unsigned slot = device.queue_head;
    if (device.options.random_order) {
        const auto pick = static_cast<unsigned>(device.random() % device.queue_count);
        const unsigned chosen = (slot + pick) % kMaxThreads;
        const uint16_t rank = device.queue[chosen];
        device.queue[chosen] = device.queue[slot];
        device.queue[slot] = rank;
    }
    Thread& next = device.threads[device.queue[slot]];
    device.queue_head = (slot + 1) % kMaxThreads;
    --device.queue_count;
    this_thread = &next;
    switch_fiber(from, next.fiber);
}

void thread_main() {
    Context& device = *context;
    Thread& thread = device.current();
    device.request->body(device.request->closure);
    thread.state = ThreadState::Exited;
    ++device.exited;
    leave(device, thread.fiber);
    __builtin_unreachable();
}

bool is_skipped(const Context& device, Site site) {
    return device.options.skips_barrier && device.options.skipped.line == site.line &&
           device.options.skipped.file == site.file;
}

void note_site(Launch& launch, Site site) {
    for (const BarrierSite& known : launch.barrier_sites) {
        if (known.line == site.line && known.file == site.file) {
            return;
        }
    }
    launch.barrier_sites.push_back({site.file, site.line});
}

int outcome(const PendingBarrier& barrier) {
    switch (barrier.kind) {
        case BlockBarrier::Sync:
            return 0;
        case BlockBarrier::Count:
            return static_cast<int>(barrier.positive);
        case BlockBarrier::And:
            return barrier.positive == barrier.arrived;
        case BlockBarrier::Or:
            return barrier.positive != 0;
    }
    return 0;
}

void complete(Context& device, const Thread& last) {
    PendingBarrier& barrier = device.barrier;
    barrier.result = outcome(barrier);
    barrier.arrived = 0;
    barrier.positive = 0;
    device.last_block_barrier = ++device.stamp;
    note_site(*device.launch, barrier.site);
    for (unsigned first = 0; first < device.thread_count; first += kWarpSize) {
        device.warps[first / kWarpSize].sectors.flush();
    }
    for (unsigned rank = 0; rank < device.thread_count; ++rank) {
        if (rank != last.rank) {
            device.make_runnable(device.threads[rank]);
        }
    }
}

void start_block(Context& device) {
    const dim3 size = device.block.block_size;
    device.thread_count = size.x * size.y * size.z;
    device.exited = 0;
    device.abandoned = false;
    device.barrier = {};
    device.block_start = device.last_block_barrier = ++device.stamp;
    device.queue_head = device.queue_count = 0;
    for (unsigned rank = 0; rank < device.thread_count; ++rank) {
        Thread& thread = device.threads[rank];
        thread.rank = rank;
        thread.index = {rank % size.x, rank / size.x % size.y, rank / size.x / size.y};
        device.stacks.prepare(thread.fiber, rank, thread_main);
        device.make_runnable(thread);
    }
    for (unsigned first = 0; first < device.thread_count; first += kWarpSize) {
        Warp& warp = device.warps[first / kWarpSize];
        const unsigned lanes = std::min(device.thread_count - first, kWarpSize);
        warp.existing = lanes == kWarpSize ? ~0u : (1u << lanes) - 1;
        warp.waiting = 0;
        warp.ordered_since = device.block_start;
        warp.pairs_since.clear();
        warp.sectors.flush();
    }
}

const char* name_of(BlockBarrier kind) {
    switch (kind) {
        case BlockBarrier::Sync:
            return "__syncthreads";
        case BlockBarrier::Count:
            return "__syncthreads_count";
        case BlockBarrier::And:
            return "__syncthreads_and";
        case BlockBarrier::Or:
            return "__syncthreads_or";
    }
    return "";
}

std::string describe_wait(const Thread& thread, const PendingBarrier& barrier) {
    return thread.state == ThreadState::AtBlockBarrier
               ? std::string(name_of(barrier.kind)) + " (" + to_string(barrier.site) + ")"
               : std::string(name_of(thread.collective)) + " (" + to_string(thread.site) + ")";
}

// No thread can run and not all have exited: tells who waits where.
void report_deadlock(const Context& device) {
    const Thread* at_block = nullptr;
    const Thread* at_warp = nullptr;
    const Thread* exited = nullptr;
    unsigned at_block_count = 0;
    for (unsigned rank = device.thread_count; rank-- > 0;) {
        const Thread& thread = device.threads[rank];
        if (thread.state == ThreadState::AtBlockBarrier) {
            at_block = &thread;
            ++at_block_count;
        } else if (thread.state == ThreadState::Exited) {
            exited = &thread;
        } else {
            at_warp = &thread;
        }
    }
    if (at_warp == nullptr) {
        record(FindingKind::ExitBeforeBarrier,
               "thread " + std::to_string(exited->rank) + " has exited while " +
                   std::to_string(at_block_count) + " threads wait at " +
                   describe_wait(*at_block, device.barrier),
               exited);
        return;
    }
    std::string message = "thread " + std::to_string(at_warp->rank) + " waits at " +
                          describe_wait(*at_warp, device.barrier) + " for lanes that";
    const unsigned first_rank = at_warp->rank / kWarpSize * kWarpSize;
    for (unsigned lane = 0; lane < kWarpSize; ++lane) {
        const Thread& other = device.threads[first_rank + lane];
        const bool same = other.state == ThreadState::AtWarpCollective &&
                          other.mask == at_warp->mask && other.collective == at_warp->collective;
        if ((at_warp->mask >> lane & 1u) == 0 || same) {
            continue;
        }
        message += other.state == ThreadState::Exited
                       ? " have exited"
                       : " wait at " + describe_wait(other, device.barrier);
        message += " (thread " + std::to_string(other.rank) + ")";
        break;
    }
    record(FindingKind::DivergentBarrier, message, at_warp);
}

}  // namespace

void Context::make_runnable(Thread& thread) {
    thread.state = ThreadState::Runnable;
    queue[(queue_head + queue_count) % kMaxThreads] = static_cast<uint16_t>(thread.rank);
    ++queue_count;
}

void Context::wait() { leave(*this, current().fiber); }

// splitmix64
uint64_t Context::random() {
    uint64_t value = random_state += 0x9e3779b97f4a7c15u;
    value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
    value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
    return value ^ (value >> 31);
}

int block_barrier(BlockBarrier kind, bool predicate, Site site) {
    Context& device = *context;
    if (is_skipped(device, site)) {
        return predicate;
    }
    PendingBarrier& barrier = device.barrier;
    Thread& thread = device.current();
    if (barrier.arrived == 0) {
        barrier.kind = kind;
        barrier.site = site;
    } else if (barrier.kind != kind || barrier.site.line != site.line ||
               (barrier.site.file != site.file && std::strcmp(barrier.site.file, site.file) != 0)) {
        fail(FindingKind::DivergentBarrier, std::string(name_of(kind)) + " (" + to_string(site) +
                                                ") while other threads wait at " +
                                                name_of(barrier.kind) + " (" +
                                                to_string(barrier.site) + ")");
    }
    ++barrier.arrived;
    barrier.positive += predicate;
    if (barrier.arrived == device.thread_count) {
        complete(device, thread);
    } else {
        thread.state = ThreadState::AtBlockBarrier;
        device.wait();
    }
    return barrier.result;
}

void fail(FindingKind kind, std::string message) {
    Context& device = *context;
    Thread& thread = device.current();
    record(kind, std::move(message), &thread);
    device.abandoned = true;
    switch_fiber(thread.fiber, device.scheduler);
    __builtin_unreachable();
}

void run_block() {
    Context& device = *context;
    start_block(device);
    // Control is back when no thread can run, or when a finding has abandoned the block.
    leave(device, device.scheduler);
    if (!device.abandoned && device.exited != device.thread_count) {
        report_deadlock(device);
    }
}

}  // namespace qae_emulator
