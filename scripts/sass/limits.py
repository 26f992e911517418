"""What the compiled kernels must keep to, as data."""

import collections

# Kernels of token streams and of a plain product: every instance must load and store whole 128-bit
# words.
WIDE_KERNELS = [r"^loss_from_log_probs", r"^scale_gradient\b"]

# Threads of every block (kBlockThreads).
BLOCK_WARPS = 8

# Vectors of 16 bytes that a thread handles in one iteration of a main loop (kVectorsInFlight).
VECTORS = 4
VECTOR_ELEMENTS = {"float": 4, "Bf16": 8, "F16": 8}

# The loops over a row of logits. An H200 at its full bandwidth leaves the schedulers 31
# instructions for a bf16 element that is read and written, 15.6 for one that is read.
#
# `kernel`: the template; its first argument is the dtype. `loads` and `stores`: the 128-bit
# accesses that tell the loop, `others` those that it may have besides; the stores (the loads where
# there are none) say how many elements an iteration takes. `one_thread`: what is beside the path of
# every warp is run by one thread of the block, so that one of its warps issues it.
Loop = collections.namedtuple(
    "Loop", "kernel name loads stores others one_thread", defaults=[(), (), False]
)
LOOPS = [
    Loop("log_probs_from_logits", "sums", ["LDG"]),
    Loop("log_probs_from_logits_backward", "gradient", ["LDG"], ["STG"]),
    Loop("loss_from_logits_cluster", "sums", ["LDS"]),
    Loop("loss_from_logits_cluster", "gradient", ["LDS"], ["STS"], one_thread=True),
    Loop("loss_from_logits_block", "sums", ["LDG"], others=["STS"]),
    Loop("loss_from_logits_block", "gradient", ["LDS", "LDG"], ["STG"]),
]

ALL = ["80", "90a", "100", "120"]

# Instructions per element of all the loops of a kernel together, by architecture.
Budget = collections.namedtuple("Budget", "kernel limit architectures")
BUDGETS = [
    Budget("log_probs_from_logits", 15.6, ALL),
    Budget("loss_from_logits_cluster", 31.0, ["90a"]),
]

# Kernels whose rows move by bulk copies alone, and the compute capability below which they are
# empty.
BULK_KERNELS = {"loss_from_logits_cluster": 90}

# Blocks that an SM must have room for, with the dynamic shared memory that the launcher asks for
# and up to `static` bytes of the kernel's own.
KIB = 1024
CHUNK = 16 * KIB  # kChunkBytes
STAGES = BLOCK_WARPS * 16 * 4  # the rewards of a group of 16, by each warp
STATIC = 12 * KIB  # RowsPolicy::kStaticShared
RING = ["90a", "100"]  # with 228 KiB of shared memory per SM
Residency = collections.namedtuple("Residency", "kernel architectures dynamic static blocks use")
RESIDENCY = [
    Residency("loss_from_logits_cluster", RING, 6 * CHUNK + STAGES, STATIC, 2, "ring of 6"),
    Residency("loss_from_logits_cluster", RING, 13 * CHUNK + STAGES, STATIC, 1, "ring of 13"),
    Residency("loss_from_logits_cluster", ["120"], 5 * CHUNK + STAGES, STATIC, 1, "ring of 5"),
    Residency("loss_from_logits_block", ALL, 16 * KIB + STAGES, STATIC, 2, "rows of 16 KiB"),
    Residency("log_probs_from_logits", ALL, 0, KIB, 5, "any row"),
]

# Of an SM, by compute capability or its major part, as in the CUDA C++ programming guide.
REGISTERS_PER_SM = 65536
REGISTERS_PER_WARP_UNIT = 256
SCHEDULERS_PER_SM = 4
WARPS_PER_SM = {8: 64, 9: 64, 10: 64, 12: 48, 86: 48, 89: 48}
SHARED_PER_SM = {8: 164 * KIB, 9: 228 * KIB, 10: 228 * KIB, 12: 100 * KIB}
SHARED_PER_SM |= {86: 100 * KIB, 89: 100 * KIB}
# Of each block the system keeps this much, which the figures of cuobjdump include from 9.0 on.
RESERVED_SHARED = KIB
SHARED_UNIT = 128


def of_capability(table, architecture):
    """The entry of an architecture such as 90a, or None."""
    number = capability(architecture)
    return table.get(number, table.get(number // 10))


def capability(architecture):
    """90 for 90a."""
    return int(architecture.rstrip("af"))
