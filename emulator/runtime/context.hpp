// The state behind one emulated device. A device belongs to one OS thread at a time, and every OS
// thread has at most one current device, so tests run in parallel without a lock.
#pragma once

#include <algorithm>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "fiber.hpp"
#include "qae_emulator/collectives.hpp"
#include "qae_emulator/launch.hpp"
#include "qae_emulator/shared.hpp"
#include "sectors.hpp"

namespace qae_emulator {

constexpr unsigned kMaxThreads = 1024;
constexpr unsigned kWarpSize = 32;
constexpr unsigned kMaxWarps = kMaxThreads / kWarpSize;

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

enum class ThreadState : uint8_t { Runnable, AtBlockBarrier, AtWarpCollective, Exited };

struct Thread : ThreadView {
    Fiber fiber;
    ThreadState state;
    // What a waiting thread waits for, and what a completed collective hands back.
    WarpCollective collective;
    unsigned mask;
    int source;
    uint64_t value;
    uint64_t result;
    Site site;
};

struct Warp {
    unsigned existing;
    unsigned waiting;
    // All accesses of the warp's lanes before this stamp are ordered before what its lanes do now.
    uint64_t ordered_since;
    // The same for one lane after another, from collectives of a part of the warp:
    // [observer][observed]. Empty until the first of them.
    std::vector<uint64_t> pairs_since;
    SectorTable sectors;
};

struct PendingBarrier {
    unsigned arrived = 0;
    unsigned positive = 0;
    BlockBarrier kind{};
    Site site{};
    int result = 0;
};

// Who accessed a granule of shared memory last, when, and whether by an atomic; see shared.cpp.
struct SharedCell {
    uint64_t write = 0;
    uint64_t read = 0;
};

struct SharedRegion {
    const void* site;
    std::string name;
    size_t bytes;
    size_t element;
    unsigned granule_shift;
    std::vector<unsigned char> data;
    std::vector<SharedCell> cells;
};

struct Allocation {
    size_t bytes;
    std::string label;
};

// Global memory: a reserved range of addresses, and as many shadow bytes behind it that tell what
// each byte is. Buffers lie apart, so an index that runs past one meets bytes outside of any.
class Arena {
  public:
    static constexpr size_t kBytes = size_t{64} << 30;
    static constexpr unsigned char kOutside = 0;
    static constexpr unsigned char kAllocated = 1;
    static constexpr unsigned char kInitialized = 3;

    Arena();
    Arena(const Arena&) = delete;
    Arena& operator=(const Arena&) = delete;
    ~Arena();

    // nullptr when the range is used up.
    unsigned char* allocate(size_t bytes, std::string label);
    void release(unsigned char* address);

    bool contains(const void* address, size_t bytes) const {
        const auto offset = static_cast<const unsigned char*>(address) - base_;
        return static_cast<size_t>(offset) <= kBytes - bytes;
    }
    template <class Pointer>
    unsigned char* shadow(Pointer address) const {
        return const_cast<unsigned char*>(static_cast<const unsigned char*>(address)) + kBytes;
    }
    // "byte 1024 of `label` (1024 bytes)"
    std::string describe(const void* address) const;

  private:
    unsigned char* base_;
    unsigned char* cursor_;
    std::map<const unsigned char*, Allocation> allocations_;
};

struct Options {
    bool random_order = false;
    uint64_t seed = 0;
    bool skips_barrier = false;
    BarrierSite skipped;
};

struct Context {
    Options options;
    Arena arena;
    StackPool stacks;
    std::vector<Launch> launches;
    std::vector<Finding> findings;

    // The launch under way.
    Launch* launch = nullptr;
    const LaunchRequest* request = nullptr;
    BlockView block{};
    std::deque<SharedRegion> regions;

    // The block under way.
    unsigned thread_count = 0;
    unsigned exited = 0;
    bool abandoned = false;
    PendingBarrier barrier;
    // Rises at every barrier and collective; accesses between two of them share a stamp.
    uint64_t stamp = 1;
    uint64_t block_start = 0;
    uint64_t last_block_barrier = 0;
    uint64_t random_state = 0;
    unsigned queue_head = 0;
    unsigned queue_count = 0;
    uint16_t queue[kMaxThreads];
    Fiber scheduler;
    Thread threads[kMaxThreads];
    Warp warps[kMaxWarps];

    Thread& current() const { return *static_cast<Thread*>(const_cast<ThreadView*>(this_thread)); }
    Warp& current_warp() { return warps[this_thread->rank / kWarpSize]; }
    uint64_t random();

    void make_runnable(Thread& thread);
    // Leaves the calling thread until another one makes it runnable again.
    void wait();
};

extern QAE_EMULATOR_TLS Context* context;

// Records a finding of the calling thread and abandons its block.
[[noreturn]] void fail(FindingKind kind, std::string message);

// Records a finding of a block, or of a launch where there is no block.
void record(FindingKind kind, std::string message, const Thread* thread);

void run_block();

std::string to_string(Site site);
const char* name_of(WarpCollective kind);

}  // namespace qae_emulator
