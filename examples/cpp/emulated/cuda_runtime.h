// The few functions of the CUDA runtime that ../loss.cpp calls, on an emulated device, so that the
// example runs where there is no GPU. Every call does its work before it returns; what a kernel
// did wrong and results that it never wrote are errors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

// The emulated launchers report a kernel that failed as -1.
enum cudaError_t { cudaSuccess = 0, cudaErrorLaunchFailure = 1, cudaErrorMemoryAllocation = 2 };
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost };
using cudaStream_t = void*;

// Of emulator/runtime/abi.cpp.
extern "C" {
struct QaeEmulatorText {
    const char* bytes;
    size_t length;
};
struct QaeEmulatorOptions {
    uint8_t random_order;
    uint8_t skips_barrier;
    int32_t skipped_line;
    int32_t num_sms;
    int32_t capability_major;
    uint64_t seed;
    size_t max_shared_per_block;
    QaeEmulatorText skipped_file;
};
void* qae_emulator_create(const QaeEmulatorOptions* options);
uint8_t* qae_emulator_allocate(void* device, size_t bytes, size_t misalignment,
                               QaeEmulatorText label);
void qae_emulator_release(void* device, uint8_t* address);
uint8_t* qae_emulator_shadow(void* device, uint8_t* address);
uint8_t qae_emulator_initialized();
void* qae_emulator_make_current(void* device);
size_t qae_emulator_finding_count(const void* device);
}

// Lives until the program ends, as a GPU does.
inline void* emulated_device() {
    static void* const device = [] {
        const QaeEmulatorOptions h100 = {0, 0, 0, 4, 9, 0, size_t{227} << 10, {"", 0}};
        void* created = qae_emulator_create(&h100);
        qae_emulator_make_current(created);
        return created;
    }();
    return device;
}

inline const char* cudaGetErrorString(cudaError_t status) {
    return status == cudaErrorMemoryAllocation ? "the emulated device has no room"
                                               : "a kernel failed or left a result unwritten";
}

inline cudaError_t cudaMalloc(void** address, size_t bytes) {
    *address = qae_emulator_allocate(emulated_device(), bytes, 0, {"cudaMalloc", 10});
    return *address ? cudaSuccess : cudaErrorMemoryAllocation;
}

inline cudaError_t cudaFree(void* address) {
    qae_emulator_release(emulated_device(), static_cast<uint8_t*>(address));
    return cudaSuccess;
}

inline cudaError_t cudaMemsetAsync(void* address, int value, size_t bytes, cudaStream_t) {
    auto* start = static_cast<uint8_t*>(address);
    std::memset(start, value, bytes);
    std::memset(qae_emulator_shadow(emulated_device(), start), qae_emulator_initialized(), bytes);
    return cudaSuccess;
}

inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                                   cudaStream_t) {
    if (kind == cudaMemcpyHostToDevice) {
        cudaMemsetAsync(to, 0, bytes, nullptr);
    } else {
        auto* start = const_cast<uint8_t*>(static_cast<const uint8_t*>(from));
        const uint8_t* states = qae_emulator_shadow(emulated_device(), start);
        for (size_t i = 0; i < bytes; ++i) {
            if (states[i] != qae_emulator_initialized()) return cudaErrorLaunchFailure;
        }
    }
    std::memcpy(to, from, bytes);
    return cudaSuccess;
}

inline cudaError_t cudaStreamSynchronize(cudaStream_t) {
    const bool has_failed = qae_emulator_finding_count(emulated_device()) != 0;
    return has_failed ? cudaErrorLaunchFailure : cudaSuccess;
}

inline cudaError_t cudaStreamCreate(cudaStream_t* stream) {
    *stream = emulated_device();
    return cudaSuccess;
}

inline cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
