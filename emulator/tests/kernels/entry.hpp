// The entry points of the test kernels, which detectors.rs declares again.
#pragma once

#include <qae_emulator.hpp>

#define QAE_TEST_LAUNCH(kernel, grid, block, shared_bytes, ...) \
    qae_emulator::launch(#kernel, kernel, grid, block, shared_bytes, nullptr, __VA_ARGS__)

constexpr unsigned kFullWarp = 0xffffffffu;
