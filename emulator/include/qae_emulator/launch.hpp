// Launches a kernel: its clusters run one after another on the calling thread, the blocks of a
// cluster together.
#pragma once

#include "types.hpp"

namespace qae_emulator {

struct LaunchRequest {
    const char* kernel;
    dim3 grid;
    dim3 block;
    // Blocks of a cluster, along x.
    unsigned cluster;
    size_t dynamic_shared_bytes;
    // Runs the kernel body for the current thread.
    void (*body)(const void* closure);
    const void* closure;
};

// 0 when the launch is clean, 1 when it left findings, 2 when the calling thread has no device.
int run_launch(const LaunchRequest& request);

template <class... Parameters, class... Arguments>
int launch_cluster(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block,
                   unsigned cluster, size_t dynamic_shared_bytes, void* /*stream*/,
                   Arguments... arguments) {
    const auto call = [&] { kernel(arguments...); };
    using Call = decltype(call);
    LaunchRequest request{name, grid, block, cluster, dynamic_shared_bytes, nullptr, &call};
    request.body = [](const void* closure) { (*static_cast<Call*>(closure))(); };
    return run_launch(request);
}

template <class... Parameters, class... Arguments>
int launch(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block,
           size_t dynamic_shared_bytes, void* stream, Arguments... arguments) {
    return launch_cluster(name, kernel, grid, block, 1, dynamic_shared_bytes, stream, arguments...);
}

// What a launcher asks the device for.
struct DeviceLimits {
    int num_sms;
    int capability_major;
    size_t max_shared_per_block;
};

// Of the calling thread's device; those of a default device where it has none, so that a query
// outside of a launch has an answer.
DeviceLimits device_limits();

}  // namespace qae_emulator
