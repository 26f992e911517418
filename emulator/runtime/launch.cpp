// Runs the blocks of a launch and collects what they leave.
#include "context.hpp"

namespace qae_emulator {
namespace {

constexpr size_t kMaxFindings = 8;

// Visits 0 .. count-1 once each in an order that looks random, without a list of them.
class BlockOrder {
  public:
    BlockOrder(Context& device, uint64_t count) : count_(count) {
        if (device.options.random_order && count > 1) {
            offset_ = device.random() % count;
            do {
                factor_ = device.random() % count;
            } while (greatest_common_divisor(factor_, count) != 1);
        }
    }
    uint64_t operator()(uint64_t index) const {
        const auto position = static_cast<unsigned __int128>(index) * factor_ + offset_;
        return static_cast<uint64_t>(position % count_);
    }

  private:
    static uint64_t greatest_common_divisor(uint64_t a, uint64_t b) {
        while (b != 0) {
            const uint64_t rest = a % b;
            a = b;
            b = rest;
        }
        return a;
    }

    uint64_t count_;
    uint64_t factor_ = 1;
    uint64_t offset_ = 0;
};

// The first limit of a CUDA launch that the request breaks; empty where it keeps all.
std::string broken_limit(const LaunchRequest& request) {
    const dim3 grid = request.grid;
    const dim3 block = request.block;
    const uint64_t threads = uint64_t{block.x} * block.y * block.z;
    if (threads == 0 || threads > kMaxThreads || block.x > kMaxThreads || block.y > kMaxThreads ||
        block.z > 64) {
        return "a block of " + std::to_string(block.x) + " x " + std::to_string(block.y) + " x " +
               std::to_string(block.z) + " threads";
    }
    if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffffu || grid.y > 0xffffu ||
        grid.z > 0xffffu) {
        return "a grid of " + std::to_string(grid.x) + " x " + std::to_string(grid.y) + " x " +
               std::to_string(grid.z) + " blocks";
    }
    if (request.dynamic_shared_bytes > context->options.limits.max_shared_per_block) {
        return std::to_string(request.dynamic_shared_bytes) + " bytes of dynamic shared memory";
    }
    const unsigned cluster = request.cluster;
    if (cluster == 0 || cluster > kMaxCluster || grid.x % cluster != 0) {
        return "a grid of " + std::to_string(grid.x) + " blocks along x in clusters of " +
               std::to_string(cluster);
    }
    return {};
}

void start_launch(Context& device, const LaunchRequest& request) {
    device.launches.emplace_back();
    Launch& launch = device.launches.back();
    launch.kernel = request.kernel;
    launch.grid = request.grid;
    launch.block = request.block;
    launch.shared_bytes = request.dynamic_shared_bytes;
    device.launch = &launch;
    device.request = &request;
}

void start_blocks(Context& device, const LaunchRequest& request) {
    device.block_count = request.cluster;
    for (unsigned rank = 0; rank < request.cluster; ++rank) {
        if (device.blocks[rank] == nullptr) {
            device.blocks[rank] = std::make_unique<Block>();
        }
        Block& block = *device.blocks[rank];
        static_cast<BlockView&>(block) = {{}, request.block, request.grid, rank, request.cluster};
        block.regions.clear();
        for (Warp& warp : block.warps) {
            warp.sectors.clear();
        }
    }
}

}  // namespace

std::string to_string(Site site) {
    return std::string(site.file) + ":" + std::to_string(site.line);
}

void record(FindingKind kind, std::string message, const Thread* thread) {
    Context& device = *context;
    const bool has_thread = thread != nullptr;
    device.findings.push_back({kind, device.request->kernel, std::move(message),
                               has_thread ? thread->block->index : uint3{},
                               has_thread ? thread->index : uint3{}, has_thread});
}

std::string name_of(const Thread& thread) {
    const Block& block = *thread.block;
    const std::string name = "thread " + std::to_string(thread.rank);
    return block.cluster_size == 1 ? name
                                   : name + " of block " + std::to_string(block.cluster_rank);
}

DeviceLimits device_limits() {
    return context != nullptr ? context->options.limits : Options{}.limits;
}

int run_launch(const LaunchRequest& request) {
    if (context == nullptr) {
        return 2;
    }
    Context& device = *context;
    start_launch(device, request);
    const std::string limit = broken_limit(request);
    if (!limit.empty()) {
        record(FindingKind::LaunchLimit, limit + " is more than a launch may have", nullptr);
        return 1;
    }
    const int major = device.options.limits.capability_major;
    if (request.cluster > 1 && major < 9) {
        record(FindingKind::Unsupported,
               "clusters need compute capability 9, here " + std::to_string(major), nullptr);
        return 1;
    }

    start_blocks(device, request);
    const size_t findings_before = device.findings.size();
    const unsigned clusters = request.grid.x / request.cluster;
    const uint64_t count = uint64_t{clusters} * request.grid.y * request.grid.z;
    const BlockOrder order(device, count);
    for (uint64_t visit = 0; visit < count; ++visit) {
        const uint64_t rank = order(visit);
        run_cluster({static_cast<unsigned>(rank % clusters) * request.cluster,
                     static_cast<unsigned>(rank / clusters % request.grid.y),
                     static_cast<unsigned>(rank / clusters / request.grid.y)});
        if (device.findings.size() >= findings_before + kMaxFindings) {
            break;
        }
    }
    write_stores();
    this_thread = nullptr;
    this_block = nullptr;
    return device.findings.size() == findings_before ? 0 : 1;
}

}  // namespace qae_emulator
