#include "fiber.hpp"

#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

namespace qae_emulator {
namespace {

constexpr size_t kStackBytes = size_t{128} << 10;
constexpr size_t kGuardBytes = size_t{16} << 10;
constexpr unsigned kChunkStacks = 1024;

}  // namespace

#if defined(__x86_64__)

extern "C" void qae_emulator_switch_stack(void** from, void* to);

// Saves the registers that a callee must keep, exchanges the stacks and resumes the other fiber
// behind its own call. The indirect jump replaces `ret`, which the processor would mispredict every
// time, as its return stack belongs to the fiber that is left.
asm(R"(
    .text
    .p2align 4
    .globl qae_emulator_switch_stack
    .type qae_emulator_switch_stack, @function
qae_emulator_switch_stack:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    popq %rcx
    jmpq *%rcx
    .size qae_emulator_switch_stack, .-qae_emulator_switch_stack
)");

void switch_fiber(Fiber& from, Fiber& to) {
    qae_emulator_switch_stack(&from.stack_pointer, to.stack_pointer);
}

#else

void switch_fiber(Fiber& from, Fiber& to) { swapcontext(&from.context, &to.context); }

#endif

StackPool::~StackPool() {
    for (char* chunk : chunks_) {
        munmap(chunk, kStackBytes * kChunkStacks);
    }
}

void StackPool::prepare(Fiber& fiber, unsigned index, void (*entry)()) {
    while (chunks_.size() <= index / kChunkStacks) {
        void* mapped = mmap(nullptr, kStackBytes * kChunkStacks, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (mapped == MAP_FAILED) {
            std::perror("qae-emulator: the stacks of a block");
            std::abort();
        }
        chunks_.push_back(static_cast<char*>(mapped));
    }
    const auto start = [&](unsigned stack) {
        return chunks_[stack / kChunkStacks] + stack % kChunkStacks * kStackBytes;
    };
    for (; guarded_ <= index; ++guarded_) {
        mprotect(start(guarded_), kGuardBytes, PROT_NONE);
    }
    char* bottom = start(index) + kGuardBytes;
    // Stacks at equal distances would compete for the same few cache sets.
    const size_t stagger = (index % 32) * 128;
    char* top = start(index) + kStackBytes - stagger;
#if defined(__x86_64__)
    (void)bottom;
    // At the entry of a function the stack pointer is 8 past a multiple of 16, as after a call.
    uint64_t* frame = reinterpret_cast<uint64_t*>(top) - 8;
    for (int saved = 0; saved < 6; ++saved) {
        frame[saved] = 0;
    }
    frame[6] = reinterpret_cast<uint64_t>(entry);
    frame[7] = 0;
    fiber.stack_pointer = frame;
#else
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = bottom;
    fiber.context.uc_stack.ss_size = static_cast<size_t>(top - bottom);
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, entry, 0);
#endif
}

}  // namespace qae_emulator
