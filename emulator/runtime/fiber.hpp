// One fiber per CUDA thread of a block: a stack of its own and a switch that keeps only what the
// calling convention asks for.
#pragma once

#include <cstddef>
#include <vector>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace qae_emulator {

struct Fiber {
#if defined(__x86_64__)
    void* stack_pointer = nullptr;
#else
    ucontext_t context;
#endif
};

// The stacks of a cluster's fibers, each above a page that traps an overflow. Pages are touched on
// first use, so blocks of few threads cost little.
class StackPool {
  public:
    StackPool() = default;
    StackPool(const StackPool&) = delete;
    StackPool& operator=(const StackPool&) = delete;
    ~StackPool();

    // Makes `fiber` start at `entry`, on stack number `index`, when it is switched to.
    void prepare(Fiber& fiber, unsigned index, void (*entry)());

  private:
    // As many stacks each as a block has at most.
    std::vector<char*> chunks_;
    unsigned guarded_ = 0;
};

void switch_fiber(Fiber& from, Fiber& to);

}  // namespace qae_emulator
