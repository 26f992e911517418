// The state behind one emulated device. A device belongs to one OS thread at a time, and every OS
// thread has at most one current device, so tests run in parallel without a lock.
#pragma once

#include <algorithm>
#include <list>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "arena.hpp"
#include "block.hpp"
#include "qae_emulator/collectives.hpp"
#include "qae_emulator/launch.hpp"
#include "qae_emulator/shared.hpp"

namespace qae_emulator {

// The numbers cross the C boundary: `FindingKind` in src/report.rs lists the same ones.
enum class FindingKind : int {
    OutOfBounds = 0,
    UninitializedRead = 1,
    Misaligned = 2,
    SharedRace = 3,
    DivergentBarrier = 4,
    ExitBeforeBarrier = 5,
    InactiveLane = 6,
    LaunchLimit = 7,
    BarrierMisuse = 8,
    EndlessWait = 9,
    RemoteAccess = 10,
    PendingCopy = 11,
    MissingFence = 12,
    Unsupported = 13,
};

struct Finding {
    FindingKind kind;
    std::string kernel;
    std::string message;
    uint3 block;
    uint3 thread;
    bool has_thread;
};

struct BarrierSite {
    std::string file;
    int line;
};

struct Launch {
    std::string kernel;
    dim3 grid;
    dim3 block;
    uint64_t shared_bytes = 0;
    uint64_t bytes_read = 0;
    uint64_t bytes_written = 0;
    uint64_t sectors_read = 0;
    uint64_t sectors_written = 0;
    uint64_t atomics = 0;
    std::vector<BarrierSite> barrier_sites;
};

struct Options {
    bool random_order = false;
    uint64_t seed = 0;
    bool skips_barrier = false;
    BarrierSite skipped;
    DeviceLimits limits{4, 9, 232448};
};

struct Context {
    static constexpr unsigned kMaxRunnable = kMaxThreads * kMaxCluster;

    Options options;
    Arena arena;
    StackPool stacks;
    std::vector<Launch> launches;
    std::vector<Finding> findings;

    // The launch under way.
    Launch* launch = nullptr;
    const LaunchRequest* request = nullptr;
    // Stores that have been read, of threads that have exited: only the end of the launch says that
    // they are written.
    std::list<BulkStore> unwritten_stores;

    // The cluster under way. Blocks are made when a cluster first needs them.
    std::unique_ptr<Block> blocks[kMaxCluster];
    unsigned block_count = 0;
    bool abandoned = false;
    ClusterBarrier cluster_barrier;
    // Records of accesses that the next completion of the cluster barrier does not order, although
    // they come before it, and who made them.
    std::vector<std::pair<uint64_t*, const Thread*>> late_accesses;
    std::list<BulkStore> stores;
    AccessorSets sets;
    // Rises at every barrier and collective; accesses between two of them share a stamp.
    uint64_t stamp = 1;
    uint64_t cluster_start = 0;
    uint64_t random_state = 0;
    unsigned queue_head = 0;
    unsigned queue_count = 0;
    Thread* queue[kMaxRunnable];
    Fiber scheduler;

    Thread& current() const { return *static_cast<Thread*>(const_cast<ThreadView*>(this_thread)); }
    uint64_t random();

    void make_runnable(Thread& thread);
    // Leaves the calling thread until another one makes it runnable again.
    void wait();
};

extern QAE_EMULATOR_TLS Context* context;

// Records a finding of a thread, the calling one if none is named, and abandons the cluster.
[[noreturn]] void fail(FindingKind kind, std::string message);
[[noreturn]] void fail(FindingKind kind, std::string message, const Thread& thread);

// Records a finding of a thread, or of a launch where there is no thread.
void record(FindingKind kind, std::string message, const Thread* thread);

// Runs the blocks of a cluster, the first of which has the index `first`.
void run_cluster(uint3 first);

// The checks of a thread that exits, after it was counted.
void check_exit(Thread& thread);

// Checks an access of a thread and keeps a record of it.
void note_access(Thread& thread, SharedRegion& region, int64_t offset, uint64_t size,
                 SharedAccess access);

// Refuses a feature that devices below compute capability 9 lack.
void require_clusters(const char* feature);

void flush_sectors(Block& block);
bool is_skipped(const Context& device, Site site);
void note_site(Launch& launch, Site site);
std::string to_string(Site site);
const char* name_of(WarpCollective kind);
std::string name_of(const Thread& thread);

}  // namespace qae_emulator
