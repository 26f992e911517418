// Launches a kernel: the blocks run one after another on the calling thread.
#pragma once

#include "types.hpp"

namespace qae_emulator {

struct LaunchRequest {
    const char* kernel;
    dim3 grid;
    dim3 block;
    size_t dynamic_shared_bytes;
    // Runs the kernel body for the current thread.
    void (*body)(const void* closure);
    const void* closure;
};

// 0 when the launch is clean, 1 when it left findings, 2 when the calling thread has no device.
int run_launch(const LaunchRequest& request);

template <class... Parameters, class... Arguments>
int launch(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block,
           size_t dynamic_shared_bytes, void* /*stream*/, Arguments... arguments) {
    const auto call = [&] { kernel(arguments...); };
    using Call = decltype(call);
    LaunchRequest request{name, grid, block, dynamic_shared_bytes, nullptr, &call};
    request.body = [](const void* closure) { (*static_cast<Call*>(closure))(); };
    return run_launch(request);
}

}  // namespace qae_emulator
