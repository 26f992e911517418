// Runs the blocks of a cluster: their fibers, their barriers, and the verdict where no fiber can go
// on. A launch without clusters has clusters of one block.
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
    const unsigned slot = device.queue_head;
    if (device.options.random_order) {
        const auto pick = static_cast<unsigned>(device.random() % device.queue_count);
        std::swap(device.queue[slot], device.queue[(slot + pick) % Context::kMaxRunnable]);
    }
    Thread& next = *device.queue[slot];
    device.queue_head = (slot + 1) % Context::kMaxRunnable;
    --device.queue_count;
    this_thread = &next;
    this_block = next.block;
    switch_fiber(from, next.fiber);
}

void thread_main() {
    Context& device = *context;
    Thread& thread = device.current();
    device.request->body(device.request->closure);
    ++thread.block->exited;
    check_exit(thread);
    thread.state = ThreadState::Exited;
    leave(device, thread.fiber);
    __builtin_unreachable();
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
    Block& block = *last.block;
    PendingBarrier& barrier = block.barrier;
    barrier.result = outcome(barrier);
    barrier.arrived = 0;
    barrier.positive = 0;
    block.last_block_barrier = ++device.stamp;
    note_site(*device.launch, barrier.site);
    flush_sectors(block);
    for (unsigned rank = 0; rank < block.thread_count; ++rank) {
        if (rank != last.rank) {
            device.make_runnable(block.threads[rank]);
        }
    }
}

void start_threads(Context& device, Block& block) {
    const dim3 size = block.block_size;
    for (unsigned rank = 0; rank < block.thread_count; ++rank) {
        Thread& thread = block.threads[rank];
        thread.rank = rank;
        thread.index = {rank % size.x, rank / size.x % size.y, rank / size.x / size.y};
        thread.block = &block;
        thread.warp = &block.warps[rank / kWarpSize];
        thread.owner = uint64_t{block.cluster_rank} << kBlockShift | rank;
        thread.cluster_since = device.cluster_start;
        thread.has_arrived = thread.is_late = thread.skips_wait = false;
        thread.clock_since = 0;
        thread.fences.clear();
        thread.store_groups = 0;
        device.stacks.prepare(thread.fiber, block.cluster_rank * block.thread_count + rank,
                              thread_main);
        device.make_runnable(thread);
    }
}

void start_block(Context& device, Block& block) {
    const dim3 size = block.block_size;
    block.thread_count = size.x * size.y * size.z;
    block.exited = 0;
    block.barrier = {};
    block.last_block_barrier = device.cluster_start;
    block.last_remote = 0;
    start_threads(device, block);
    for (unsigned first = 0; first < block.thread_count; first += kWarpSize) {
        Warp& warp = block.warps[first / kWarpSize];
        const unsigned lanes = std::min(block.thread_count - first, kWarpSize);
        warp.existing = lanes == kWarpSize ? ~0u : (1u << lanes) - 1;
        warp.waiting = 0;
        warp.ordered_since = device.cluster_start;
        warp.pairs_since.clear();
        warp.has_clocks = false;
        warp.sectors.flush();
    }
}

void start_cluster(Context& device, uint3 first) {
    device.cluster_start = ++device.stamp;
    device.abandoned = false;
    device.cluster_barrier = {};
    device.cluster_barrier.completed = device.cluster_start;
    device.late_accesses.clear();
    device.queue_head = device.queue_count = 0;
    for (unsigned rank = 0; rank < device.block_count; ++rank) {
        Block& block = *device.blocks[rank];
        block.index = {first.x + rank, first.y, first.z};
        start_block(device, block);
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

std::string describe_wait(const Thread& thread) {
    switch (thread.state) {
        case ThreadState::Runnable:
            return "nothing";
        case ThreadState::AtBlockBarrier: {
            const PendingBarrier& barrier = thread.block->barrier;
            return std::string(name_of(barrier.kind)) + " (" + to_string(barrier.site) + ")";
        }
        case ThreadState::AtClusterBarrier:
            return "cluster_wait (" + to_string(thread.site) + ")";
        case ThreadState::AtWarpCollective:
            return std::string(name_of(thread.collective)) + " (" + to_string(thread.site) + ")";
        case ThreadState::AtMbarrier:
            return thread.mbarrier->describe();
        case ThreadState::Exited:
            return "its end";
    }
    return "";
}

void report_endless_wait(const Thread& thread) {
    const Mbarrier& mbarrier = *thread.mbarrier;
    record(FindingKind::EndlessWait,
           name_of(thread) + " waits at " + mbarrier.describe() + ", whose phase " +
               std::to_string(mbarrier.phase) + " lacks " + std::to_string(mbarrier.missing) +
               " arrivals and has copies of " + std::to_string(mbarrier.loading_bytes()) +
               " bytes for the " + std::to_string(mbarrier.expected_bytes) + " that it expects",
           &thread);
}

void report_warp(const Thread& thread) {
    std::string message =
        name_of(thread) + " waits at " + describe_wait(thread) + " for lanes that";
    const unsigned first_rank = thread.rank / kWarpSize * kWarpSize;
    for (unsigned lane = 0; lane < kWarpSize; ++lane) {
        const Thread& other = thread.block->threads[first_rank + lane];
        const bool same = other.state == ThreadState::AtWarpCollective &&
                          other.mask == thread.mask && other.collective == thread.collective;
        if ((thread.mask >> lane & 1u) == 0 || same) {
            continue;
        }
        message += other.state == ThreadState::Exited ? " have exited"
                                                      : " wait at " + describe_wait(other);
        message += " (" + name_of(other) + ")";
        break;
    }
    record(FindingKind::DivergentBarrier, message, &thread);
}

// The threads that can run no more, by what they wait for.
struct Stuck {
    const Thread* first[static_cast<int>(ThreadState::Exited) + 1] = {};
    unsigned count[static_cast<int>(ThreadState::Exited) + 1] = {};

    void add(const Thread& thread) {
        const auto state = static_cast<int>(thread.state);
        if (count[state]++ == 0) {
            first[state] = &thread;
        }
    }
    const Thread* at(ThreadState state) const { return first[static_cast<int>(state)]; }
    unsigned number(ThreadState state) const { return count[static_cast<int>(state)]; }
};

void report_barrier(const Stuck& stuck, ThreadState barrier) {
    const std::string rest = std::to_string(stuck.number(barrier)) + " threads wait at " +
                             describe_wait(*stuck.at(barrier));
    const Thread* exited = stuck.at(ThreadState::Exited);
    if (exited != nullptr) {
        record(FindingKind::ExitBeforeBarrier, name_of(*exited) + " has exited while " + rest,
               exited);
        return;
    }
    const Thread& other =
        *stuck.at(barrier == ThreadState::AtBlockBarrier ? ThreadState::AtClusterBarrier
                                                         : ThreadState::AtBlockBarrier);
    record(FindingKind::DivergentBarrier,
           name_of(other) + " waits at " + describe_wait(other) + " while " + rest, &other);
}

// No thread can run and not all have exited: tells who waits where.
void report_deadlock(const Context& device) {
    Stuck of_cluster;
    for (unsigned rank = 0; rank < device.block_count; ++rank) {
        const Block& block = *device.blocks[rank];
        Stuck of_block;
        for (unsigned thread = 0; thread < block.thread_count; ++thread) {
            of_block.add(block.threads[thread]);
            of_cluster.add(block.threads[thread]);
        }
        if (of_block.at(ThreadState::AtMbarrier) != nullptr) {
            return report_endless_wait(*of_block.at(ThreadState::AtMbarrier));
        }
        if (of_block.at(ThreadState::AtWarpCollective) != nullptr) {
            return report_warp(*of_block.at(ThreadState::AtWarpCollective));
        }
        if (of_block.at(ThreadState::AtBlockBarrier) != nullptr) {
            return report_barrier(of_block, ThreadState::AtBlockBarrier);
        }
    }
    report_barrier(of_cluster, ThreadState::AtClusterBarrier);
}

}  // namespace

void Context::make_runnable(Thread& thread) {
    thread.state = ThreadState::Runnable;
    queue[(queue_head + queue_count) % kMaxRunnable] = &thread;
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

void flush_sectors(Block& block) {
    for (unsigned first = 0; first < block.thread_count; first += kWarpSize) {
        block.warps[first / kWarpSize].sectors.flush();
    }
}

int block_barrier(BlockBarrier kind, bool predicate, Site site) {
    Context& device = *context;
    if (is_skipped(device, site)) {
        return predicate;
    }
    Thread& thread = device.current();
    PendingBarrier& barrier = thread.block->barrier;
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
    if (barrier.arrived == thread.block->thread_count) {
        complete(device, thread);
    } else {
        thread.state = ThreadState::AtBlockBarrier;
        device.wait();
    }
    return barrier.result;
}

void fail(FindingKind kind, std::string message) {
    fail(kind, std::move(message), context->current());
}

void fail(FindingKind kind, std::string message, const Thread& thread) {
    Context& device = *context;
    record(kind, std::move(message), &thread);
    device.abandoned = true;
    switch_fiber(device.current().fiber, device.scheduler);
    __builtin_unreachable();
}

void run_cluster(uint3 first) {
    Context& device = *context;
    start_cluster(device, first);
    // Control is back when no thread can run, or when a finding has abandoned the cluster.
    do {
        leave(device, device.scheduler);
    } while (!device.abandoned && land_needed_loads());
    unsigned exited = 0;
    for (unsigned rank = 0; rank < device.block_count; ++rank) {
        exited += device.blocks[rank]->exited;
    }
    if (!device.abandoned && exited != device.block_count * device.blocks[0]->thread_count) {
        report_deadlock(device);
    }
    forget_copies();
    device.sets.clear();
}

}  // namespace qae_emulator
