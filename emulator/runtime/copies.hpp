// Bulk copies under way, and the mbarriers that loads complete on.
#pragma once

#include "qae_emulator/bulk.hpp"
#include "region.hpp"

namespace qae_emulator {

// A load that has not landed.
struct BulkLoad {
    SharedRegion* region;
    int64_t offset;
    const unsigned char* source;
    unsigned bytes;
    const Thread* thread;
};

struct Mbarrier {
    SharedRegion* region;
    int64_t offset;
    // What the records of its loads have below the stamp.
    uint64_t owner;
    unsigned arrivals;
    // Arrivals that the phase still waits for.
    unsigned missing;
    uint64_t expected_bytes;
    // Phases completed.
    uint64_t phase;
    // Records of the initialization, and of the fence behind it; 0 before that.
    uint64_t initialized;
    uint64_t fenced;
    // What the arrivals of this phase know, and what those of the one before knew.
    std::vector<uint64_t> arriving;
    std::vector<uint64_t> completed;
    std::vector<BulkLoad> loads;
    std::vector<Thread*> waiters;

    uint64_t loading_bytes() const;
    // Whether nothing is missing, once the loads have landed.
    bool can_complete() const { return missing == 0 && loading_bytes() == expected_bytes; }
    std::string describe() const { return "mbarrier " + region->describe(offset); }
};

// A store that has not written its target.
struct BulkStore {
    static constexpr uint64_t kUncommitted = ~uint64_t{0};

    const Thread* thread;
    uint64_t group;
    SharedRegion* region;
    int64_t offset;
    unsigned char* target;
    unsigned bytes;
    // The source, once it has been read.
    std::vector<unsigned char> data;

    bool was_read() const { return !data.empty(); }
};

// The initialized mbarrier at an address that the calling thread may use.
Mbarrier& mbarrier_at(SharedPointer<uint64_t> pointer);

// Lets the loads land that waiting threads need, of one mbarrier that they complete. False where
// there is none. Called while no thread can run.
bool land_needed_loads();
// False, with a finding, where the source of the load may not be read.
bool land(const BulkLoad& load, uint64_t owner);

// The copies that a thread which exits, or the last one of its block, has left.
void check_copies(Thread& exiting);
// What is left of a cluster that has ended, or was abandoned.
void forget_copies();
// The end of a launch: stores are written that no thread has waited for.
void write_stores();

}  // namespace qae_emulator
