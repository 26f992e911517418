// Where the tokens of a row stand, for the three layouts (see qae_layout).
#pragma once

#include "block/memory.cuh"

namespace QAE_NAMESPACE {

// A row's slots. Offsets and lengths come from device memory, where the host cannot check them:
// one that points outside its tensor makes the row empty and `out_of_range`, never a wild access.
struct RowExtent {
    int64_t position;  // of its first slot among the slots of all rows
    int64_t num_slots;
    int64_t num_valid;  // leading slots that can be valid tokens
    bool out_of_range;
};

__device__ __forceinline__ RowExtent row_extent(const qae_layout& layout, int64_t row) {
    if (layout.offsets != nullptr) {
        const int64_t begin = load(layout.offsets + row), end = load(layout.offsets + row + 1);
        const bool bad = begin < 0 || end < begin || end > layout.num_slots;
        const int64_t num_slots = bad ? 0 : end - begin;
        const int64_t inside = begin < 0 ? 0 : begin < layout.num_slots ? begin : layout.num_slots;
        return {inside, num_slots, num_slots, bad};
    }
    int64_t num_valid = layout.width;
    bool bad = false;
    if (layout.lengths != nullptr) {
        num_valid = load(layout.lengths + row);
        bad = num_valid < 0 || num_valid > layout.width;
        if (bad) num_valid = 0;
    }
    return {row * layout.width, layout.width, num_valid, bad};
}

// The first row that has a slot at or after `position`, or is empty and stands there.
__device__ __forceinline__ int64_t first_row_at(const qae_layout& layout, int64_t position) {
    if (layout.offsets == nullptr) return layout.width > 0 ? position / layout.width : 0;
    // The first offset at or after the position is where the row begins, or the row before it ends.
    int64_t low = 0, high = layout.num_rows, found = layout.num_slots;
    while (low < high) {
        const int64_t middle = low + (high - low) / 2;
        const int64_t offset = load(layout.offsets + middle);
        if (offset >= position) {
            high = middle;
            found = offset;
        } else {
            low = middle + 1;
        }
    }
    return low > 0 && found > position ? low - 1 : low;
}

__host__ __device__ __forceinline__ int64_t ceil_div(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}

// Bytes of a word that are not 0.
__device__ __forceinline__ unsigned count_nonzero_bytes(unsigned word) {
    const unsigned low_bits = (word & 0x7f7f7f7fu) + 0x7f7f7f7fu;
    return static_cast<unsigned>(__popc((low_bits | word) & 0x80808080u));
}

// Non-zero bytes among the leading `num_valid` bytes of a mask, one lane's share of a warp's count.
__device__ __forceinline__ unsigned count_mask(const uint8_t* mask, int64_t num_valid) {
    constexpr int kVector = 16;
    const int misalignment = static_cast<int>(reinterpret_cast<uintptr_t>(mask) % kVector);
    const int64_t head = misalignment == 0 ? 0 : kVector - misalignment;
    const int64_t body_begin = head < num_valid ? head : num_valid;
    const int64_t num_vectors = (num_valid - body_begin) / kVector;
    const int64_t tail_begin = body_begin + num_vectors * kVector;
    const uint4* const vectors = reinterpret_cast<const uint4*>(mask + body_begin);
    unsigned count = 0;
    // Unrolled, so that several loads are on their way: a long row would wait for each otherwise.
#pragma unroll 4
    for (int64_t i = lane_index(); i < num_vectors; i += kWarpThreads) {
        const uint4 bytes = load(vectors + i);
        count += count_nonzero_bytes(bytes.x) + count_nonzero_bytes(bytes.y) +
                 count_nonzero_bytes(bytes.z) + count_nonzero_bytes(bytes.w);
    }
    for (int64_t i = lane_index(); i < body_begin; i += kWarpThreads) count += load(mask + i) != 0;
    for (int64_t i = tail_begin + lane_index(); i < num_valid; i += kWarpThreads) {
        count += load(mask + i) != 0;
    }
    return count;
}

}  // namespace QAE_NAMESPACE
