// The C boundary that src/sys.rs declares.
#include "context.hpp"

using qae_emulator::Arena;
using qae_emulator::Context;

extern "C" {

struct QaeEmulatorText {
    const char* bytes;
    size_t length;
};

struct QaeEmulatorOptions {
    uint8_t random_order;
    uint8_t skips_barrier;
    int32_t skipped_line;
    int32_t num_sms;
    int32_t capability_major;
    uint64_t seed;
    size_t max_shared_per_block;
    QaeEmulatorText skipped_file;
};

struct QaeEmulatorLaunch {
    QaeEmulatorText kernel;
    uint32_t grid[3];
    uint32_t block[3];
    uint64_t shared_bytes;
    uint64_t bytes_read;
    uint64_t bytes_written;
    uint64_t sectors_read;
    uint64_t sectors_written;
    uint64_t atomics;
    size_t barrier_sites;
};

struct QaeEmulatorBarrierSite {
    QaeEmulatorText file;
    int32_t line;
};

struct QaeEmulatorFinding {
    int32_t kind;
    uint8_t has_thread;
    uint32_t block[3];
    uint32_t thread[3];
    QaeEmulatorText kernel;
    QaeEmulatorText message;
};

Context* qae_emulator_create(const QaeEmulatorOptions* options) {
    auto* device = new Context;
    device->options.random_order = options->random_order != 0;
    device->options.seed = options->seed;
    device->options.skips_barrier = options->skips_barrier != 0;
    device->options.skipped.file.assign(options->skipped_file.bytes, options->skipped_file.length);
    device->options.skipped.line = options->skipped_line;
    device->options.limits = {options->num_sms, options->capability_major,
                              options->max_shared_per_block};
    device->random_state = options->seed;
    return device;
}

void qae_emulator_destroy(Context* device) { delete device; }

uint8_t* qae_emulator_allocate(Context* device, size_t bytes, size_t misalignment,
                               QaeEmulatorText label) {
    return device->arena.allocate(bytes, misalignment, std::string(label.bytes, label.length));
}

void qae_emulator_release(Context* device, uint8_t* address) { device->arena.release(address); }

// The states of the bytes of a buffer; `qae_emulator_initialized` is the one that may be read,
// `qae_emulator_outside` the one of what is no buffer's.
uint8_t* qae_emulator_shadow(Context* device, uint8_t* address) {
    return device->arena.shadow(address);
}

uint8_t qae_emulator_initialized() { return Arena::kInitialized; }
uint8_t qae_emulator_outside() { return Arena::kOutside; }

// Makes `device` the one that launches of this OS thread run on and returns the one before.
Context* qae_emulator_make_current(Context* device) {
    Context* before = qae_emulator::context;
    qae_emulator::context = device;
    return before;
}

void qae_emulator_clear(Context* device) {
    device->launches.clear();
    device->findings.clear();
}

size_t qae_emulator_launch_count(const Context* device) { return device->launches.size(); }

size_t qae_emulator_finding_count(const Context* device) { return device->findings.size(); }

// The texts of the reports below live until the device is cleared.
void qae_emulator_launch_report(const Context* device, size_t index, QaeEmulatorLaunch* report) {
    const qae_emulator::Launch& launch = device->launches[index];
    *report = {{launch.kernel.data(), launch.kernel.size()},
               {launch.grid.x, launch.grid.y, launch.grid.z},
               {launch.block.x, launch.block.y, launch.block.z},
               launch.shared_bytes,
               launch.bytes_read,
               launch.bytes_written,
               launch.sectors_read,
               launch.sectors_written,
               launch.atomics,
               launch.barrier_sites.size()};
}

void qae_emulator_barrier_site(const Context* device, size_t launch, size_t index,
                               QaeEmulatorBarrierSite* report) {
    const qae_emulator::BarrierSite& site = device->launches[launch].barrier_sites[index];
    *report = {{site.file.data(), site.file.size()}, site.line};
}

void qae_emulator_finding_report(const Context* device, size_t index, QaeEmulatorFinding* report) {
    const qae_emulator::Finding& finding = device->findings[index];
    *report = {static_cast<int32_t>(finding.kind),
               static_cast<uint8_t>(finding.has_thread),
               {finding.block.x, finding.block.y, finding.block.z},
               {finding.thread.x, finding.thread.y, finding.thread.z},
               {finding.kernel.data(), finding.kernel.size()},
               {finding.message.data(), finding.message.size()}};
}

}  // extern "C"
