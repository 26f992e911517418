// Global memory: every access is checked and counted before it happens.
#pragma once

#include "types.hpp"

namespace qae_emulator {

// Defined for sizes of 1, 2, 4, 8 and 16 bytes. They return only where the access is sound.
// The caller's return address is the call site that coalescing is judged by, so the functions
// between a kernel and these are always inlined.
template <unsigned Size>
void check_load(const void* address);
template <unsigned Size>
void check_store(void* address);
template <unsigned Size>
void check_atomic(void* address);

template <class T>
__forceinline__ T load(const T* pointer) {
    static_assert(std::is_trivially_copyable_v<T>);
    check_load<sizeof(T)>(pointer);
    T value;
    std::memcpy(&value, pointer, sizeof(T));
    return value;
}

template <class T>
__forceinline__ void store(T* pointer, T value) {
    static_assert(std::is_trivially_copyable_v<T>);
    check_store<sizeof(T)>(pointer);
    std::memcpy(pointer, &value, sizeof(T));
}

}  // namespace qae_emulator
