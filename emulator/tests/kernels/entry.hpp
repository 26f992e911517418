// The entry points of the test kernels, which the tests declare again.
#pragma once

#include <qae_emulator.hpp>

#define QAE_TEST_LAUNCH(kernel, grid, block, shared_bytes, ...) \
    qae_emulator::launch(#kernel, kernel, grid, block, shared_bytes, nullptr, __VA_ARGS__)
#define QAE_TEST_CLUSTERS(kernel, grid, block, cluster, ...) \
    qae_emulator::launch_cluster(#kernel, kernel, grid, block, cluster, 0, nullptr, __VA_ARGS__)

constexpr unsigned kFullWarp = 0xffffffffu;
