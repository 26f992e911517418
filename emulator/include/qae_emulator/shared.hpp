// Shared memory: handles in place of arrays, so that every access passes the race detector.
#pragma once

#include "types.hpp"

namespace qae_emulator {

struct SharedRegion;

enum class SharedAccess : uint8_t { Read, Write, Atomic };

// `site` tells one declaration from another; every thread of the block that passes the same
// declaration receives the same region.
SharedRegion* static_shared(const void* site, const char* name, size_t bytes, size_t element);
SharedRegion* dynamic_shared(const char* name, size_t element);

// Returns the address of the bytes where the access is sound, and does not return otherwise.
void* shared_access(SharedRegion* region, int64_t offset, uint32_t size, uint32_t alignment,
                    SharedAccess access);

template <class T>
class SharedPointer;

// What `p[i]` is: reads convert, assignments write, `&p[i]` points.
template <class T>
class SharedReference {
  public:
    explicit SharedReference(SharedPointer<T> pointer) : pointer_(pointer) {}
    SharedReference(const SharedReference&) = default;

    operator T() const { return pointer_.read(); }
    SharedPointer<T> operator&() const { return pointer_; }

    SharedReference& operator=(const T& value) {
        pointer_.write(value);
        return *this;
    }
    SharedReference& operator=(const SharedReference& other) {
        return *this = static_cast<T>(other);
    }
    SharedReference& operator+=(const T& value) { return *this = pointer_.read() + value; }
    SharedReference& operator-=(const T& value) { return *this = pointer_.read() - value; }
    SharedReference& operator*=(const T& value) { return *this = pointer_.read() * value; }
    SharedReference& operator|=(const T& value) { return *this = pointer_.read() | value; }
    SharedReference& operator&=(const T& value) { return *this = pointer_.read() & value; }

  private:
    SharedPointer<T> pointer_;
};

template <class T>
class SharedPointer {
    static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 64);

  public:
    SharedPointer() = default;
    explicit SharedPointer(SharedRegion* region) : region_(region) {}

    SharedReference<T> operator[](int64_t index) const { return SharedReference<T>(*this + index); }
    SharedReference<T> operator*() const { return SharedReference<T>(*this); }
    SharedPointer operator+(int64_t count) const {
        SharedPointer moved = *this;
        moved.offset_ += count * static_cast<int64_t>(sizeof(T));
        return moved;
    }
    SharedPointer operator-(int64_t count) const { return *this + -count; }
    SharedPointer& operator+=(int64_t count) { return *this = *this + count; }

    // The same bytes as elements of another type.
    template <class U>
    SharedPointer<U> cast() const {
        return {region_, offset_};
    }
    SharedPointer(SharedRegion* region, int64_t offset) : region_(region), offset_(offset) {}

    SharedRegion* region() const { return region_; }
    int64_t offset() const { return offset_; }

    T read() const {
        T value;
        std::memcpy(&value, access(SharedAccess::Read), sizeof(T));
        return value;
    }
    void write(const T& value) const {
        std::memcpy(access(SharedAccess::Write), &value, sizeof(T));
    }
    void* atomic() const { return access(SharedAccess::Atomic); }

  private:
    void* access(SharedAccess kind) const {
        return shared_access(region_, offset_, sizeof(T), alignof(T), kind);
    }

    SharedRegion* region_ = nullptr;
    int64_t offset_ = 0;
};

}  // namespace qae_emulator

#define QAE_SHARED(T, name, count)                                             \
    static char qae_emulator_site_##name;                                      \
    const ::qae_emulator::SharedPointer<T> name(::qae_emulator::static_shared( \
        &qae_emulator_site_##name, #name, sizeof(T) * static_cast<size_t>(count), sizeof(T)))

#define QAE_DYNAMIC_SHARED(T, name) \
    const ::qae_emulator::SharedPointer<T> name(::qae_emulator::dynamic_shared(#name, sizeof(T)))
