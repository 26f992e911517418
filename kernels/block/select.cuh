// The r-th smallest of a team's keys, exactly, without sorting them.
//
// Bisection on the keys' range where each step snaps both ends to keys that are present: the range
// at least halves, and the steps are about log2 of the number of *different* rewards. Binary
// rewards, the common case, take one step; 1,024 continuous ones about a dozen; never more than 32.
#pragma once

#include "block/platform.cuh"
#include "math/quantile.cuh"

namespace QAE_NAMESPACE {

// `keys(i)`, 0 <= i < n, is the i-th key or kNoKey, which is left out. `lowest` and `highest` are
// the extremes of the others, of which there are at least `rank` >= 1. All threads of the team take
// part and receive the result.
template <class Team, class Keys>
__device__ unsigned select_key(const Team& team, const Keys& keys, int n, unsigned lowest,
                               unsigned highest, int rank) {
    while (lowest < highest) {
        const unsigned middle = lowest + (highest - lowest) / 2;
        unsigned num_below = 0, below = lowest, above = highest;
        for (int i = team.rank(); i < n; i += Team::kThreads) {
            const unsigned key = keys(i);
            if (key <= middle) {
                ++num_below;
                below = below > key ? below : key;
            } else if (key < above) {
                above = key;
            }
        }
        if (static_cast<int>(team.sum(num_below)) >= rank) {
            highest = team.max(below);
        } else {
            lowest = team.min(above);
        }
    }
    return lowest;
}

// The key that follows `key` in sorted order at rank `rank` + 1, where `key` has rank `rank`.
template <class Team, class Keys>
__device__ unsigned next_key(const Team& team, const Keys& keys, int n, unsigned key, int rank) {
    unsigned num_up_to = 0, above = kNoKey;
    for (int i = team.rank(); i < n; i += Team::kThreads) {
        const unsigned other = keys(i);
        if (other <= key) {
            ++num_up_to;
        } else if (other < above) {
            above = other;
        }
    }
    const bool repeated = static_cast<int>(team.sum(num_up_to)) > rank;
    const unsigned least_above = team.min(above);
    return repeated || least_above == kNoKey ? key : least_above;
}

}  // namespace QAE_NAMESPACE
