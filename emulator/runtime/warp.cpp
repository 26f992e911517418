// Warp collectives: the last lane to arrive computes the result of all.
#include "context.hpp"

namespace qae_emulator {
namespace {

// Calls `visit` with each thread of the warp whose lane is in `mask`.
template <class Visit>
void for_lanes(Block& block, unsigned first_rank, unsigned mask, Visit visit) {
    for (; mask != 0; mask &= mask - 1) {
        visit(block.threads[first_rank + static_cast<unsigned>(__builtin_ctz(mask))]);
    }
}

bool is_shuffle(WarpCollective kind) {
    return kind >= WarpCollective::Shuffle && kind <= WarpCollective::ShuffleXor;
}

uint64_t combine(WarpCollective kind, uint64_t total, const Thread& thread) {
    const auto value = static_cast<uint32_t>(thread.value);
    const auto so_far = static_cast<uint32_t>(total);
    const auto pick = [&](bool take) { return take ? value : so_far; };
    switch (kind) {
        case WarpCollective::Ballot:
            return total | static_cast<uint64_t>(value) << (thread.rank % kWarpSize);
        case WarpCollective::Any:
            return so_far | value;
        case WarpCollective::All:
            return so_far & value;
        case WarpCollective::AddUnsigned:
            return so_far + value;
        case WarpCollective::MinUnsigned:
            return pick(value < so_far);
        case WarpCollective::MaxUnsigned:
            return pick(value > so_far);
        case WarpCollective::MinSigned:
            return pick(static_cast<int32_t>(value) < static_cast<int32_t>(so_far));
        case WarpCollective::MaxSigned:
            return pick(static_cast<int32_t>(value) > static_cast<int32_t>(so_far));
        default:
            return 0;
    }
}

uint64_t neutral(WarpCollective kind) {
    switch (kind) {
        case WarpCollective::All:
            return 1;
        case WarpCollective::MinUnsigned:
            return 0xffffffffu;
        case WarpCollective::MinSigned:
            return 0x7fffffffu;
        case WarpCollective::MaxSigned:
            return 0x80000000u;
        default:
            return 0;
    }
}

void order_lanes(Context& device, Warp& warp, unsigned mask) {
    const uint64_t now = ++device.stamp;
    if (mask == warp.existing) {
        warp.ordered_since = now;
        warp.sectors.flush();
        return;
    }
    warp.pairs_since.resize(kWarpSize * kWarpSize);
    for (unsigned observed = 0; observed < kWarpSize; ++observed) {
        uint64_t since = 0;
        for (unsigned lane = 0; lane < kWarpSize; ++lane) {
            if ((mask >> lane & 1u) != 0) {
                since = std::max(since, warp.pairs_since[lane * kWarpSize + observed]);
            }
        }
        if ((mask >> observed & 1u) != 0) {
            since = now;
        }
        for (unsigned lane = 0; lane < kWarpSize; ++lane) {
            if ((mask >> lane & 1u) != 0) {
                warp.pairs_since[lane * kWarpSize + observed] = since;
            }
        }
    }
}

void complete(Context& device, Block& block, unsigned first_rank, unsigned mask,
              WarpCollective kind) {
    if (is_shuffle(kind)) {
        for_lanes(block, first_rank, mask, [&](Thread& thread) {
            thread.result = block.threads[first_rank + static_cast<unsigned>(thread.source)].value;
        });
    } else if (kind != WarpCollective::Sync) {
        uint64_t total = neutral(kind);
        for_lanes(block, first_rank, mask,
                  [&](const Thread& thread) { total = combine(kind, total, thread); });
        for_lanes(block, first_rank, mask, [&](Thread& thread) { thread.result = total; });
    }
    Warp& warp = block.warps[first_rank / kWarpSize];
    warp.waiting &= ~mask;
    order_lanes(device, warp, mask);
    exchange_clocks(block, first_rank, mask);
}

}  // namespace

uint64_t warp_collective(WarpCollective kind, unsigned mask, uint64_t value, int source,
                         Site site) {
    Context& device = *context;
    Thread& thread = device.current();
    Block& block = *thread.block;
    Warp& warp = *thread.warp;
    const unsigned lane = thread.rank % kWarpSize;
    const unsigned first_rank = thread.rank - lane;
    if ((mask >> lane & 1u) == 0) {
        fail(FindingKind::DivergentBarrier, std::string(name_of(kind)) + " (" + to_string(site) +
                                                ") by a lane that its mask leaves out");
    }
    // The last warp of a block may be partial; naming all 32 lanes is the custom there, too.
    mask &= warp.existing;
    if (is_shuffle(kind) && (source < 0 || (mask >> source & 1u) == 0)) {
        fail(FindingKind::InactiveLane, std::string(name_of(kind)) + " (" + to_string(site) +
                                            ") reads lane " + std::to_string(source) +
                                            ", which does not take part");
    }
    thread.collective = kind;
    thread.mask = mask;
    thread.value = value;
    thread.source = source;
    thread.site = site;
    thread.state = ThreadState::AtWarpCollective;
    warp.waiting |= 1u << lane;

    bool all_here = (warp.waiting & mask) == mask;
    if (all_here) {
        for_lanes(block, first_rank, mask, [&](const Thread& other) {
            all_here = all_here && other.mask == mask && other.collective == kind;
        });
    }
    if (!all_here) {
        device.wait();
        return thread.result;
    }
    complete(device, block, first_rank, mask, kind);
    thread.state = ThreadState::Runnable;
    for_lanes(block, first_rank, mask & ~(1u << lane),
              [&](Thread& other) { device.make_runnable(other); });
    return thread.result;
}

const char* name_of(WarpCollective kind) {
    switch (kind) {
        case WarpCollective::Sync:
            return "__syncwarp";
        case WarpCollective::Shuffle:
            return "__shfl_sync";
        case WarpCollective::ShuffleUp:
            return "__shfl_up_sync";
        case WarpCollective::ShuffleDown:
            return "__shfl_down_sync";
        case WarpCollective::ShuffleXor:
            return "__shfl_xor_sync";
        case WarpCollective::Ballot:
            return "__ballot_sync";
        case WarpCollective::Any:
            return "__any_sync";
        case WarpCollective::All:
            return "__all_sync";
        case WarpCollective::AddUnsigned:
            return "__reduce_add_sync";
        case WarpCollective::MinUnsigned:
        case WarpCollective::MinSigned:
            return "__reduce_min_sync";
        case WarpCollective::MaxUnsigned:
        case WarpCollective::MaxSigned:
            return "__reduce_max_sync";
    }
    return "";
}

}  // namespace qae_emulator
