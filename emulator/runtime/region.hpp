// A shared array of a block, with what is known about its bytes.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "order.hpp"

namespace qae_emulator {

// The last write and the last reads of a granule.
struct SharedCell {
    uint64_t write;
    uint64_t read;
};

constexpr uint64_t kLineBytes = 16;

// Bytes are recorded in lines of 16. A line that is accessed as a whole has one record; the first
// narrower access splits it into granules, and the next write of all of it joins them again.
struct SharedRegion {
    // In place of a split line's write; its read is then the logarithm of the granule.
    static constexpr uint64_t kSplit = ~uint64_t{0};

    const void* site;
    std::string name;
    size_t bytes;
    size_t element;
    // What the device aligns the array to, at least.
    size_t alignment;
    // Position among the block's regions, the same in all blocks of the cluster.
    size_t index;
    std::vector<unsigned char> data;
    std::vector<SharedCell> lines;
    // Room for the granules of line i begins at 16 * i.
    std::unique_ptr<SharedCell[]> cells;
    // Bulk stores that have yet to read their source, which is here.
    unsigned unread_stores;

    SharedCell* cells_of(uint64_t line) const { return cells.get() + line * kLineBytes; }

    // Calls `visit` with the cells of whole lines.
    template <class Visit>
    void for_cells(int64_t offset, uint64_t size, Visit visit) {
        const auto first = static_cast<uint64_t>(offset) / kLineBytes;
        for (uint64_t line = first; line < first + size / kLineBytes; ++line) {
            if (lines[line].write != kSplit) {
                visit(lines[line]);
                continue;
            }
            for (uint64_t granule = 0; granule < kLineBytes >> lines[line].read; ++granule) {
                visit(cells_of(line)[granule]);
            }
        }
    }

    // "`name[3]` (64 elements)"
    std::string describe(int64_t offset) const;
};

}  // namespace qae_emulator
