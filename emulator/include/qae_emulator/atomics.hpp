// Integer atomics on global pointers and on shared elements.
#pragma once

#include "global.hpp"
#include "shared.hpp"

namespace qae_emulator {

// The types CUDA has atomics for, less the floating-point ones: `unsigned long` is refused there
// too, although it has the same 64 bits.
template <class Pointer>
struct AtomicTarget;
template <>
struct AtomicTarget<int*> {
    using Value = int;
};
template <>
struct AtomicTarget<unsigned*> {
    using Value = unsigned;
};
template <>
struct AtomicTarget<unsigned long long*> {
    using Value = unsigned long long;
};
template <class T>
struct AtomicTarget<SharedPointer<T>> : AtomicTarget<T*> {};

template <class Pointer>
using AtomicValue = typename AtomicTarget<Pointer>::Value;

template <class T>
__forceinline__ void* atomic_address(T* pointer) {
    check_atomic<sizeof(T)>(pointer);
    return pointer;
}
template <class T>
inline void* atomic_address(SharedPointer<T> pointer) {
    return pointer.atomic();
}

template <class Pointer, class Update>
__forceinline__ AtomicValue<Pointer> atomic_update(Pointer pointer, Update update) {
    using Value = AtomicValue<Pointer>;
    void* address = atomic_address(pointer);
    Value old;
    std::memcpy(&old, address, sizeof(Value));
    const Value next = update(old);
    std::memcpy(address, &next, sizeof(Value));
    return old;
}

}  // namespace qae_emulator

#define QAE_EMULATOR_ATOMIC(NAME, UPDATE)                                                        \
    template <class Pointer>                                                                     \
    __forceinline__ qae_emulator::AtomicValue<Pointer> NAME(                                     \
        Pointer pointer, qae_emulator::AtomicValue<Pointer> value) {                             \
        using Value = qae_emulator::AtomicValue<Pointer>;                                        \
        return qae_emulator::atomic_update(pointer, [=](Value old) -> Value { return UPDATE; }); \
    }
QAE_EMULATOR_ATOMIC(atomicAdd, old + value)
QAE_EMULATOR_ATOMIC(atomicExch, (static_cast<void>(old), value))
QAE_EMULATOR_ATOMIC(atomicMin, value < old ? value : old)
QAE_EMULATOR_ATOMIC(atomicMax, old < value ? value : old)
QAE_EMULATOR_ATOMIC(atomicOr, old | value)
QAE_EMULATOR_ATOMIC(atomicAnd, old& value)
QAE_EMULATOR_ATOMIC(atomicInc, old >= value ? 0 : old + 1)
#undef QAE_EMULATOR_ATOMIC

template <class Pointer>
__forceinline__ qae_emulator::AtomicValue<Pointer> atomicCAS(
    Pointer pointer, qae_emulator::AtomicValue<Pointer> expected,
    qae_emulator::AtomicValue<Pointer> value) {
    using Value = qae_emulator::AtomicValue<Pointer>;
    return qae_emulator::atomic_update(
        pointer, [=](Value old) -> Value { return old == expected ? value : old; });
}
