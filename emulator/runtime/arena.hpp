// Global memory: a reserved range of addresses, and as many shadow bytes behind it that tell what
// each byte is. Buffers lie apart, so an index that runs past one meets bytes outside of any.
#pragma once

#include <cstddef>
#include <map>
#include <string>

namespace qae_emulator {

class Arena {
  public:
    static constexpr size_t kBytes = size_t{64} << 30;
    static constexpr unsigned char kOutside = 0;
    // The lowest bit: the byte belongs to a buffer.
    static constexpr unsigned char kAllocated = 1;
    static constexpr unsigned char kInitialized = 3;
    // A bulk store is about to write the byte.
    static constexpr unsigned char kAwaited = 5;

    Arena();
    Arena(const Arena&) = delete;
    Arena& operator=(const Arena&) = delete;
    ~Arena();

    // `misalignment` bytes, less than a page of them, behind the start of a page. nullptr when the
    // range is used up.
    unsigned char* allocate(size_t bytes, size_t misalignment, std::string label);
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
    struct Allocation {
        size_t bytes;
        std::string label;
    };

    unsigned char* base_;
    unsigned char* cursor_;
    std::map<const unsigned char*, Allocation> allocations_;
};

}  // namespace qae_emulator
