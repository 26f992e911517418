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

constexpr unsigned kLineShift = 4;
constexpr uint64_t kLineBytes = uint64_t{1} << kLineShift;

// Bytes are recorded in lines of 16. A line that is accessed as a whole has one cell; the first
// narrower access splits it into granules, and the next write of all of it joins them again.
struct SharedRegion {
    // In place of a split line's write.
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

    bool is_split(uint64_t line) const { return lines[line].write == kSplit; }
    // Nobody's record, which no patch of earlier records takes for its own.
    void mark_split(uint64_t line, unsigned shift) {
        lines[line] = {kSplit, make_record(shift, kNobody)};
    }
    // The logarithm of a split line's granules.
    unsigned shift_of(uint64_t line) const {
        return static_cast<unsigned>(stamp_of(lines[line].read));
    }
    SharedCell* cells_of(uint64_t line) const { return cells.get() + line * kLineBytes; }

    // Calls `visit` with the cells of whole lines.
    template <class Visit>
    void for_cells(int64_t offset, uint64_t size, Visit visit) {
        const auto first = static_cast<uint64_t>(offset) / kLineBytes;
        for (uint64_t line = first; line < first + size / kLineBytes; ++line) {
            if (!is_split(line)) {
                visit(lines[line]);
                continue;
            }
            for (uint64_t granule = 0; granule < kLineBytes >> shift_of(line); ++granule) {
                visit(cells_of(line)[granule]);
            }
        }
    }

    // "`name[3]` (64 elements)"
    std::string describe(int64_t offset) const;
};

}  // namespace qae_emulator
