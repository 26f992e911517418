// Global memory: the arena, and the checks and counters of every access.
#include "qae_emulator/global.hpp"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>

#include "context.hpp"

namespace qae_emulator {
namespace {

constexpr size_t kPage = 4096;
constexpr unsigned char kPoison = 0xa5;
constexpr uint64_t kSectorBytes = 32;

template <unsigned Size>
struct Shadow;
template <>
struct Shadow<1> {
    using Word = uint8_t;
};
template <>
struct Shadow<2> {
    using Word = uint16_t;
};
template <>
struct Shadow<4> {
    using Word = uint32_t;
};
template <>
struct Shadow<8> {
    using Word = uint64_t;
};
template <>
struct Shadow<16> {
    using Word = unsigned __int128;
};

template <unsigned Size>
typename Shadow<Size>::Word shadow_of(const void* address) {
    typename Shadow<Size>::Word word;
    std::memcpy(&word, context->arena.shadow(address), Size);
    return word;
}

// Every byte of a word of shadow set to `state`.
template <unsigned Size>
constexpr typename Shadow<Size>::Word all(unsigned char state) {
    using Word = typename Shadow<Size>::Word;
    return static_cast<Word>(static_cast<Word>(~Word{0}) / 255 * state);
}

template <unsigned Size>
bool is_aligned(const void* address) {
    return reinterpret_cast<uintptr_t>(address) % Size == 0;
}

[[noreturn]] __attribute__((cold, noinline)) void report(const char* verb, const void* address,
                                                         unsigned size, bool is_store = false) {
    const Arena& arena = context->arena;
    const std::string what =
        std::string(verb) + " of " + std::to_string(size) + " bytes at " + arena.describe(address);
    bool outside = !arena.contains(address, size);
    for (unsigned byte = 0; !outside && byte < size; ++byte) {
        outside = arena.shadow(address)[byte] == Arena::kOutside;
    }
    if (outside) {
        fail(FindingKind::OutOfBounds, what + " is out of bounds");
    }
    if (reinterpret_cast<uintptr_t>(address) % size != 0) {
        fail(FindingKind::Misaligned, what + " is misaligned");
    }
    if (is_store) {
        fail(FindingKind::PendingCopy, what + " meets a bulk store that nothing has waited for");
    }
    fail(FindingKind::UninitializedRead, what + " reads bytes that were never written");
}

Warp& current_warp() { return *context->current().warp; }

uint64_t sector_of(const void* address) {
    return reinterpret_cast<uintptr_t>(address) / kSectorBytes;
}

size_t whole_pages(size_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

}  // namespace

template <unsigned Size>
__attribute__((noinline)) void check_load(const void* address) {
    Context& device = *context;
    if (!device.arena.contains(address, Size) || !is_aligned<Size>(address) ||
        shadow_of<Size>(address) != all<Size>(Arena::kInitialized)) {
        report("load", address, Size);
    }
    device.launch->bytes_read += Size;
    device.launch->sectors_read += current_warp().sectors.touch(
        __builtin_return_address(0), this_thread->rank % kWarpSize, sector_of(address));
}

template <unsigned Size>
__attribute__((noinline)) void check_store(void* address) {
    using Word = typename Shadow<Size>::Word;
    Context& device = *context;
    // What no bulk store is about to write, in a buffer.
    constexpr Word awaited = all<Size>(Arena::kAwaited);
    constexpr Word allocated = all<Size>(Arena::kAllocated);
    if (!device.arena.contains(address, Size) || !is_aligned<Size>(address) ||
        (shadow_of<Size>(address) & awaited) != allocated) {
        report("store", address, Size, true);
    }
    const Word initialized = all<Size>(Arena::kInitialized);
    std::memcpy(device.arena.shadow(address), &initialized, Size);
    device.launch->bytes_written += Size;
    device.launch->sectors_written += current_warp().sectors.touch(
        __builtin_return_address(0), this_thread->rank % kWarpSize, sector_of(address));
}

template <unsigned Size>
__attribute__((noinline)) void check_atomic(void* address) {
    Context& device = *context;
    if (!device.arena.contains(address, Size) || !is_aligned<Size>(address) ||
        shadow_of<Size>(address) != all<Size>(Arena::kInitialized)) {
        report("atomic", address, Size);
    }
    device.launch->atomics += 1;
}

template void check_load<1>(const void*);
template void check_load<2>(const void*);
template void check_load<4>(const void*);
template void check_load<8>(const void*);
template void check_load<16>(const void*);
template void check_store<1>(void*);
template void check_store<2>(void*);
template void check_store<4>(void*);
template void check_store<8>(void*);
template void check_store<16>(void*);
template void check_atomic<4>(void*);
template void check_atomic<8>(void*);

Arena::Arena() {
    void* mapped = mmap(nullptr, 2 * kBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED) {
        std::perror("qae-emulator: the addresses of global memory");
        std::abort();
    }
    base_ = static_cast<unsigned char*>(mapped);
    cursor_ = base_ + kPage;
}

Arena::~Arena() { munmap(base_, 2 * kBytes); }

unsigned char* Arena::allocate(size_t bytes, size_t misalignment, std::string label) {
    if (allocations_.empty()) {
        cursor_ = base_ + kPage;
    }
    // A page more than the buffer fills separates it from the next one.
    const size_t room = static_cast<size_t>(base_ + kBytes - cursor_);
    if (bytes > room || whole_pages(misalignment + bytes) + kPage > room) {
        return nullptr;
    }
    unsigned char* address = cursor_ + misalignment;
    cursor_ += whole_pages(misalignment + bytes) + kPage;
    std::memset(address, kPoison, bytes);
    std::memset(shadow(address), kAllocated, bytes);
    allocations_.emplace(address, Allocation{bytes, std::move(label)});
    return address;
}

void Arena::release(unsigned char* address) {
    const auto found = allocations_.find(address);
    // The pages are the buffer's own. Given back, they read as zero: outside, in the shadow.
    const size_t misalignment = reinterpret_cast<uintptr_t>(address) % kPage;
    const size_t bytes = whole_pages(misalignment + found->second.bytes);
    if (bytes > 0) {
        madvise(address - misalignment, bytes, MADV_DONTNEED);
        madvise(shadow(address - misalignment), bytes, MADV_DONTNEED);
    }
    allocations_.erase(found);
}

std::string Arena::describe(const void* address) const {
    char number[32];
    std::snprintf(number, sizeof(number), "%p", address);
    const auto* byte = static_cast<const unsigned char*>(address);
    if (!contains(address, 0) || allocations_.empty()) {
        return std::string(number) + ", in no buffer,";
    }
    // The nearest buffer: the last that starts at or below the address, or the one after it.
    auto next = allocations_.upper_bound(byte);
    auto nearest = next;
    if (next == allocations_.end() ||
        (next != allocations_.begin() &&
         byte - (std::prev(next)->first + std::prev(next)->second.bytes) < next->first - byte)) {
        nearest = std::prev(next);
    }
    return std::string(number) + ", byte " + std::to_string(byte - nearest->first) + " of `" +
           nearest->second.label + "` (" + std::to_string(nearest->second.bytes) + " bytes),";
}

}  // namespace qae_emulator
