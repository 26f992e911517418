// Thread block clusters: their barrier, and what a block must not leave behind when it exits.
#include "qae_emulator/cluster.hpp"

#include "context.hpp"

namespace qae_emulator {
namespace {

void complete(Context& device) {
    ClusterBarrier& barrier = device.cluster_barrier;
    barrier.arrived = 0;
    barrier.completed = ++device.stamp;
    // As if they came behind it.
    for (const auto& [record, thread] : device.late_accesses) {
        if (is_set(*record)) {
            device.sets.raise(*record, thread->owner, device.stamp);
        } else if (owner_of(*record) == thread->owner) {
            *record = make_record(device.stamp, *record & (kOwnerMask | kAtomicFlag));
        }
    }
    device.late_accesses.clear();
    for (unsigned rank = 0; rank < device.block_count; ++rank) {
        Block& block = *device.blocks[rank];
        flush_sectors(block);
        for (unsigned thread = 0; thread < block.thread_count; ++thread) {
            block.threads[thread].is_late = false;
            if (block.threads[thread].state == ThreadState::AtClusterBarrier) {
                device.make_runnable(block.threads[thread]);
            }
        }
    }
}

}  // namespace

void require_clusters(const char* feature) {
    const int major = context->options.limits.capability_major;
    if (major < 9) {
        fail(FindingKind::Unsupported,
             std::string(feature) + " needs compute capability 9, here " + std::to_string(major));
    }
}

void cluster_arrive(const char* file, int line) {
    require_clusters("a cluster barrier");
    Context& device = *context;
    Thread& thread = device.current();
    const Site site{file, line};
    if (is_skipped(device, site)) {
        thread.skips_wait = true;
        return;
    }
    if (thread.has_arrived) {
        fail(FindingKind::BarrierMisuse,
             "cluster_arrive (" + to_string(site) + ") a second time without cluster_wait");
    }
    ClusterBarrier& barrier = device.cluster_barrier;
    note_site(*device.launch, site);
    thread.has_arrived = thread.is_late = true;
    thread.site = site;
    if (++barrier.arrived == device.block_count * thread.block->thread_count) {
        complete(device);
    }
}

void cluster_wait(const char* file, int line) {
    Context& device = *context;
    Thread& thread = device.current();
    if (thread.skips_wait) {
        thread.skips_wait = false;
        return;
    }
    const Site site{file, line};
    if (!thread.has_arrived) {
        fail(FindingKind::BarrierMisuse,
             "cluster_wait (" + to_string(site) + ") without cluster_arrive");
    }
    if (thread.is_late) {
        thread.site = site;
        thread.state = ThreadState::AtClusterBarrier;
        device.wait();
    }
    thread.has_arrived = false;
    thread.cluster_since = device.cluster_barrier.completed;
}

void check_exit(Thread& thread) {
    const Context& device = *context;
    const Block& block = *thread.block;
    if (thread.has_arrived) {
        fail(FindingKind::BarrierMisuse,
             name_of(thread) + " exits between cluster_arrive and cluster_wait");
    }
    check_copies(thread);
    if (block.exited == block.thread_count &&
        stamp_of(block.last_remote) >= device.cluster_barrier.completed) {
        const Block& other = *device.blocks[block_of(block.last_remote)];
        fail(FindingKind::RemoteAccess,
             "no cluster barrier lies between an access to shared " + block.last_remote_target +
                 " and the exit of that block",
             other.threads[accessor_of(block.last_remote)]);
    }
}

}  // namespace qae_emulator
