// Bulk copies between global and shared memory, and the mbarriers that tell when a load is done.
//
// A copy happens as late as its rules allow, so a kernel that does not wait for it is found out.
#pragma once

#include "shared.hpp"

namespace qae_emulator {

void mbarrier_init(SharedPointer<uint64_t> barrier, unsigned arrivals);
// Behind the initializations of the calling thread, before other threads or copies use them.
void mbarrier_init_fence();
void mbarrier_arrive(SharedPointer<uint64_t> barrier);
// Announces that copies will bring `bytes` in this phase, then arrives.
void mbarrier_arrive_expect(SharedPointer<uint64_t> barrier, unsigned bytes);
// Returns when the phase of this parity has completed.
void mbarrier_wait(SharedPointer<uint64_t> barrier, unsigned parity);

// Addresses and sizes are multiples of 16 bytes.
void bulk_load(SharedPointer<uint8_t> target, const void* source, unsigned bytes,
               SharedPointer<uint64_t> barrier);
void bulk_store(void* target, SharedPointer<uint8_t> source, unsigned bytes);
// The thread's bulk stores since the last call become a group.
void bulk_commit();
// Orders what the calling thread wrote to shared memory before the bulk copies that follow.
void fence_async();

// Returns when all groups of the calling thread but the newest `pending` have read their sources
// and, where asked for, have written their targets.
void wait_bulk_groups(unsigned pending, bool written);

template <int kPending>
void bulk_wait_read() {
    static_assert(kPending >= 0);
    wait_bulk_groups(kPending, false);
}
template <int kPending>
void bulk_wait() {
    static_assert(kPending >= 0);
    wait_bulk_groups(kPending, true);
}

}  // namespace qae_emulator
