// The CUDA surface the kernels of this repository are written against, for a host compiler.
//
// `kernels/block/platform.cuh` includes this file in place of the CUDA headers when QAE_EMULATOR is
// defined. Everything a kernel may use is declared here; what is missing does not compile, so a
// kernel cannot reach for a feature that the emulator does not check.
//
// Differences a kernel author meets:
//  * global memory is read and written through qae_emulator::load and store only;
//  * shared memory is declared with QAE_SHARED / QAE_DYNAMIC_SHARED, and `name[i]` is a proxy:
//    write `float v = name[i]`, never `auto v = name[i]`, and no `name[i].member`;
//  * clusters, mbarriers and bulk copies are the functions of cluster.hpp and bulk.hpp;
//  * float atomics do not exist, because the kernels give the same bits on every run.
#pragma once

#include "qae_emulator/atomics.hpp"
#include "qae_emulator/bulk.hpp"
#include "qae_emulator/cluster.hpp"
#include "qae_emulator/collectives.hpp"
#include "qae_emulator/global.hpp"
#include "qae_emulator/half.hpp"
#include "qae_emulator/intrinsics.hpp"
#include "qae_emulator/launch.hpp"
#include "qae_emulator/shared.hpp"
#include "qae_emulator/state.hpp"
#include "qae_emulator/types.hpp"

// Behind all includes: the standard library spells an attribute of its own this way. A kernel
// source that needs <memory> or the like includes it before this file.
#define __noinline__ __attribute__((noinline))
