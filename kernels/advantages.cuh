// Group statistics by a team of threads: what `advantages` and the fused loss have in common.
//
// The same code, in the same order of operations, whichever kernel calls it, so that both give the
// same bits. Two-pass variance in f64.
#pragma once

#include "block/memory.cuh"
#include "block/select.cuh"
#include "block/team.cuh"
#include "math/advantage.cuh"

namespace QAE_NAMESPACE {

// Groups of up to this size are staged in a warp's shared memory and can be computed inside the
// fused loss; larger ones are read from global memory by a block of their own, once per step.
constexpr int kMaxStagedGroup = 1024;

__host__ __device__ __forceinline__ bool uses_quantile(const qae_advantage_options& options) {
    return options.baseline == QAE_BASELINE_QUANTILE_INVERTED_CDF ||
           options.baseline == QAE_BASELINE_QUANTILE_LINEAR;
}

inline bool in_range(int32_t value, int32_t last) { return value >= 0 && value <= last; }

// What the host can see of the groups; the device's index tensors are the caller's word.
inline bool is_valid_groups(const qae_groups& groups) {
    if (groups.num_responses < 0 || groups.num_groups < 0 || groups.group_size < 0) return false;
    if (groups.num_responses == 0 || groups.num_groups == 0) {
        return groups.num_responses == 0 && groups.num_groups == 0;
    }
    const bool has_partition =
        groups.group_size > 0
            ? static_cast<int64_t>(groups.num_groups) * groups.group_size == groups.num_responses &&
                  groups.max_group_size >= groups.group_size
            : groups.offsets != nullptr && groups.group_of_response != nullptr;
    return has_partition && groups.max_group_size >= 1 && groups.rewards != nullptr;
}

inline bool is_valid_options(const qae_advantage_options& options) {
    const bool has_level = options.k > 0.0 && options.k < 1.0;
    return in_range(options.baseline, QAE_BASELINE_QUANTILE_LINEAR) &&
           in_range(options.scale, QAE_SCALE_STD_POPULATION) &&
           in_range(options.singleton, QAE_SINGLETON_ZERO) &&
           in_range(options.gate, QAE_GATE_NEGATIVE_MASK) &&
           (has_level || (!uses_quantile(options) && options.gate == QAE_GATE_OFF));
}

struct GroupRange {
    int begin, size;  // positions in `order`
};

__device__ __forceinline__ GroupRange group_range(const qae_groups& groups, int group) {
    if (groups.group_size > 0) return {group * groups.group_size, groups.group_size};
    const int begin = load(groups.offsets + group);
    return {begin, load(groups.offsets + group + 1) - begin};
}

__device__ __forceinline__ int group_member(const qae_groups& groups, int position) {
    return groups.order != nullptr ? load(groups.order + position) : position;
}

__device__ __forceinline__ int group_of(const qae_groups& groups, int response) {
    return groups.group_size > 0 ? response / groups.group_size
                                 : load(groups.group_of_response + response);
}

// The group's rewards in global memory, by position in the group.
struct GlobalRewards {
    const qae_groups* groups;
    int begin;
    __device__ __forceinline__ float operator()(int i) const {
        return load(groups->rewards + group_member(*groups, begin + i));
    }
};

// The same, copied to shared memory first.
struct StagedRewards {
    SharedPointer<float> rewards;
    __device__ __forceinline__ float operator()(int i) const { return rewards[i]; }
};

template <class Rewards>
struct RewardKeys {
    Rewards rewards;
    __device__ __forceinline__ unsigned operator()(int i) const {
        const float reward = rewards(i);
        return is_finite_reward(reward) ? order_key(reward) : kNoKey;
    }
};

// sqrt(sum (R - mean)^2 / (n - 1 or n)) + epsilon.
template <class Team, class Rewards>
__device__ double scale_divisor(const Team& team, const Rewards& rewards, int size,
                                const qae_advantage_options& options, int n, double mean) {
    if (options.scale == QAE_SCALE_NONE) return 1.0;
    if (n == 1) return 1.0 + options.epsilon;
    double squares = 0.0;
    for (int i = team.rank(); i < size; i += Team::kThreads) {
        const float reward = rewards(i);
        const double difference = static_cast<double>(reward) - mean;
        if (is_finite_reward(reward)) squares += difference * difference;
    }
    const int divisor = options.scale == QAE_SCALE_STD_UNBIASED ? n - 1 : n;
    return sqrt(team.sum(squares) / divisor) + options.epsilon;
}

// The k-quantile and the regime; `lowest` and `highest` are the extreme keys.
template <class Team, class Rewards>
__device__ void quantile_baseline(const Team& team, const Rewards& rewards, int size,
                                  const qae_advantage_options& options, unsigned lowest,
                                  unsigned highest, GroupSummary& group) {
    const RewardKeys<Rewards> keys{rewards};
    const int n = group.num_finite;
    const int rank = quantile_rank(options.k, n);
    const unsigned key = select_key(team, keys, size, lowest, highest, rank);
    const double quantile = order_value(key);
    group.hard = !(quantile > options.success_threshold);
    if (n == 1) return;
    group.baseline = quantile;
    if (options.baseline == QAE_BASELINE_QUANTILE_LINEAR) {
        const double position = snap_to_whole(options.k * (n - 1), n - 1);
        const int below = static_cast<int>(floor(position));
        const unsigned low = select_key(team, keys, size, lowest, highest, below + 1);
        const unsigned high = next_key(team, keys, size, low, below + 1);
        group.baseline = interpolate(order_value(low), order_value(high), position - below);
    }
}

// Statistics of the `size` rewards `rewards(0)..`; the same in all threads of the team.
template <class Team, class Rewards>
__device__ GroupSummary summarize_group(const Team& team, const Rewards& rewards, int size,
                                        const qae_advantage_options& options) {
    unsigned num_finite = 0, lowest = kNoKey, highest = 0;
    double sum = 0.0;
    for (int i = team.rank(); i < size; i += Team::kThreads) {
        const float reward = rewards(i);
        if (!is_finite_reward(reward)) continue;
        const unsigned key = order_key(reward);
        ++num_finite;
        lowest = lowest < key ? lowest : key;
        highest = highest > key ? highest : key;
        sum += static_cast<double>(reward);
    }
    GroupSummary group;
    group.num_finite = static_cast<int>(team.sum(num_finite));
    group.sum = team.sum(sum);
    lowest = team.min(lowest);
    highest = team.max(highest);
    group.all_equal = lowest >= highest;
    group.hard = false;
    group.baseline = 0.0;
    group.divisor = 1.0;
    const int n = group.num_finite;
    if (n == 0) return group;
    const double mean = group.sum / n;
    group.divisor = scale_divisor(team, rewards, size, options, n, mean);
    if (uses_quantile(options)) {
        quantile_baseline(team, rewards, size, options, lowest, highest, group);
    } else if (n > 1) {
        group.baseline = mean;
    }
    return group;
}

// A warp copies a group's rewards to its own part of shared memory and summarizes them.
__device__ __forceinline__ GroupSummary summarize_staged_group(const qae_groups& groups,
                                                               const qae_advantage_options& options,
                                                               GroupRange range,
                                                               SharedPointer<float> stage) {
    const WarpTeam team;
    // The previous group's readers are done before its rewards are overwritten.
    team.sync();
    const GlobalRewards source{&groups, range.begin};
    for (int i = team.rank(); i < range.size; i += kWarpThreads) stage[i] = source(i);
    team.sync();
    return summarize_group(team, StagedRewards{stage}, range.size, options);
}

// Counts over the groups that one thread has seen.
struct GroupCounts {
    unsigned hard = 0, easy = 0, zero_variance = 0;
    unsigned positive = 0, zero = 0, negative = 0, nonfinite = 0;
};

// Counters of a whole launch in the workspace, 0 between launches. Integers, so that the order of
// the atomic additions changes nothing.
constexpr int kGroupCounters = 7;

// Writes the members' baselines and advantages and counts them; each thread takes every
// kThreads-th member.
template <class Team>
__device__ void finish_group(const Team& team, const qae_groups& groups,
                             const qae_advantage_options& options, const GroupSummary& group,
                             GroupRange range, float* baseline, float* advantage,
                             GroupCounts& counts) {
    if (team.rank() == 0 && group.num_finite > 0) {
        if (uses_quantile(options)) ++(group.hard ? counts.hard : counts.easy);
        if (group.num_finite > 1 && group.all_equal) ++counts.zero_variance;
    }
    for (int i = team.rank(); i < range.size; i += Team::kThreads) {
        const int response = group_member(groups, range.begin + i);
        const float reward = load(groups.rewards + response);
        const float value = static_cast<float>(response_advantage(options, group, reward));
        if (!is_finite_reward(reward)) ++counts.nonfinite;
        ++(value > 0.0f ? counts.positive : value < 0.0f ? counts.negative : counts.zero);
        if (baseline != nullptr) {
            store(baseline + response,
                  static_cast<float>(response_baseline(options, group, reward)));
        }
        if (advantage != nullptr) store(advantage + response, value);
    }
}

// Adds the block's counts to the launch's counters.
__device__ __forceinline__ void add_group_counts(const GroupCounts& counts,
                                                 unsigned long long* counters) {
    const unsigned values[kGroupCounters] = {counts.hard,     counts.easy, counts.zero_variance,
                                             counts.positive, counts.zero, counts.negative,
                                             counts.nonfinite};
#pragma unroll
    for (int i = 0; i < kGroupCounters; ++i) {
        const unsigned of_warp = __reduce_add_sync(kFullWarp, values[i]);
        if (lane_index() == 0 && of_warp != 0) {
            atomicAdd(counters + i, static_cast<unsigned long long>(of_warp));
        }
    }
}

// One thread of the last block: counters to metrics, and back to 0 for the next launch.
__device__ __forceinline__ void publish_group_counts(unsigned long long* counters, int num_groups,
                                                     qae_group_metrics* metrics) {
    unsigned long long* const target = reinterpret_cast<unsigned long long*>(metrics);
    store(target, static_cast<unsigned long long>(num_groups));
    for (int i = 0; i < kGroupCounters; ++i) {
        store(target + 1 + i, load_coherent(counters + i));
        store(counters + i, 0ull);
    }
}

}  // namespace QAE_NAMESPACE
