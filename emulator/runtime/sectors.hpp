// Counts the 32-byte sectors that the loads or stores of one warp move.
//
// The lanes of a warp do not run in step here, so a warp instruction is rebuilt from its accesses:
// those made at the same call site by different lanes, each for the same time (the first access of
// every lane together, then the second, ...), since the warp last met at a barrier or collective of
// all its lanes. Their distinct sectors are counted once. This is exact while the lanes of a warp
// agree on how often they pass the site between two meetings; where they do not, lanes that skip an
// iteration are paired with a later one and sectors may be counted twice.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

namespace qae_emulator {

class SectorTable {
  public:
    // True when `sector` is new to the warp instruction that this access belongs to.
    bool touch(const void* site, unsigned lane, uint64_t sector) {
        SiteRecord& record = find(site);
        const uint32_t occurrence = record.passed[lane]++;
        if (occurrence == record.instructions.size()) {
            record.instructions.push_back({sector, sector, kNone});
            dirty_ = true;
            return true;
        }
        return add(record.instructions[occurrence], sector);
    }

    void flush() {
        if (!dirty_) {
            return;
        }
        for (SiteRecord& record : records_) {
            std::memset(record.passed, 0, sizeof(record.passed));
            record.instructions.clear();
        }
        scattered_.clear();
        dirty_ = false;
    }

    void clear() {
        records_.clear();
        scattered_.clear();
        next_ = 0;
        dirty_ = false;
    }

  private:
    static constexpr uint32_t kNone = ~uint32_t{0};

    // A run of sectors, which is all a coalesced access needs, and a list of those apart from it.
    struct Instruction {
        uint64_t first;
        uint64_t last;
        uint32_t scattered;
    };
    struct Scattered {
        uint64_t sector;
        uint32_t next;
    };
    struct SiteRecord {
        const void* site;
        uint32_t passed[32];
        std::vector<Instruction> instructions;
    };

    SiteRecord& find(const void* site) {
        // A loop body passes its sites in the order in which they were first seen.
        const size_t count = records_.size();
        for (size_t step = 0; step < count; ++step) {
            const size_t index = next_ + step < count ? next_ + step : next_ + step - count;
            if (records_[index].site == site) {
                next_ = index + 1 < count ? index + 1 : 0;
                return records_[index];
            }
        }
        records_.push_back({site, {}, {}});
        next_ = 0;
        return records_.back();
    }

    bool add(Instruction& instruction, uint64_t sector) {
        if (sector >= instruction.first && sector <= instruction.last) {
            return false;
        }
        for (uint32_t node = instruction.scattered; node != kNone; node = scattered_[node].next) {
            if (scattered_[node].sector == sector) {
                return false;
            }
        }
        if (sector == instruction.last + 1) {
            instruction.last = sector;
        } else if (sector + 1 == instruction.first) {
            instruction.first = sector;
        } else {
            scattered_.push_back({sector, instruction.scattered});
            instruction.scattered = static_cast<uint32_t>(scattered_.size() - 1);
        }
        return true;
    }

    std::vector<SiteRecord> records_;
    std::vector<Scattered> scattered_;
    size_t next_ = 0;
    bool dirty_ = false;
};

}  // namespace qae_emulator
