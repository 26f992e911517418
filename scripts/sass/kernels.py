"""The kernels of a cubin: what they take of an SM, and the instructions that access memory."""

import re
import struct

from sass import flow, limits, main_loops
from sass.toolkit import run, lines, tool

# Bulk copies move any multiple of 16 bytes, so they count as wide.
# Token streams carry the evict-first hint (EF); other wide loads, such as partial sums, do not
# count.
WIDE_LOAD = re.compile(r"\bLDG(STS)?\.E\.EF\.[\w.]*\b(128|256)\b|\bUBLKCP\.S\.G\b")
WIDE_STORE = re.compile(r"\bSTG\.E\.EF\.[\w.]*\b(128|256)\b|\bUBLKCP\.G\.S\b")
LOAD = re.compile(r"\bLDG(STS)?\b|\bUBLKCP\.S\.G\b")
STORE = re.compile(r"\bSTG\b|\bUBLKCP\.G\.S\b")
BULK_LOAD = re.compile(r"\bUBLKCP\.S\.G\b")
BULK_STORE = re.compile(r"\bUBLKCP\.G\.S\b")
LOCAL = re.compile(r"\b(LDL|STL)\b")


class Kernel:
    """One kernel as compiled for one architecture."""

    def __init__(self, symbol, architecture):
        self.symbol = symbol
        self.architecture = architecture
        self.name = symbol
        self.registers = self.shared = self.stack = 0
        self.spill_bytes = None  # known only when this script compiled the kernel
        self.threads = None
        self.loads = self.wide_loads = self.stores = self.wide_stores = self.local = 0
        self.bulk_loads = self.bulk_stores = 0
        self.instructions = []  # only of kernels with a budget
        self.loops = []  # a MainLoop for each entry of limits.LOOPS
        self.loop_faults = []

    @property
    def template(self):
        return self.name.split("<")[0]

    @property
    def element(self):
        """The first template argument: the dtype of the rows of logits."""
        match = re.search(r"<(\w+)", self.name)
        return match and match[1]

    @property
    def is_empty(self):
        """Whether the kernel is for later architectures."""
        oldest = limits.BULK_KERNELS.get(self.template, 0)
        return limits.capability(self.architecture) < oldest

    @property
    def per_element(self):
        """Instructions of all main loops together."""
        return sum(loop.per_element for loop in self.loops)

    @property
    def registers_of_warp(self):
        unit = limits.REGISTERS_PER_WARP_UNIT
        return max(-(-self.registers * 32 // unit) * unit, unit)

    @property
    def blocks_per_sm(self):
        """Resident blocks that the register file allows, for a kernel with __launch_bounds__."""
        warps = limits.of_capability(limits.WARPS_PER_SM, self.architecture)
        if self.threads is None or warps is None:
            return None
        schedulers = limits.SCHEDULERS_PER_SM
        by_registers = limits.REGISTERS_PER_SM // schedulers // self.registers_of_warp * schedulers
        return min(warps, by_registers) // -(-self.threads // 32)

    @property
    def declared_shared(self):
        """Static shared memory without what the system keeps."""
        includes_reserve = limits.capability(self.architecture) >= 90
        return self.shared - (limits.RESERVED_SHARED if includes_reserve else 0)

    def blocks_with(self, dynamic):
        """Resident blocks with so much dynamic shared memory; None where nothing is known."""
        shared = limits.of_capability(limits.SHARED_PER_SM, self.architecture)
        if shared is None or self.blocks_per_sm is None:
            return None
        block = self.declared_shared + dynamic + limits.RESERVED_SHARED
        block = -(-block // limits.SHARED_UNIT) * limits.SHARED_UNIT
        return min(self.blocks_per_sm, shared // block)

    def count(self, line):
        self.loads += bool(LOAD.search(line))
        self.wide_loads += bool(WIDE_LOAD.search(line))
        self.stores += bool(STORE.search(line))
        self.wide_stores += bool(WIDE_STORE.search(line))
        self.local += bool(LOCAL.search(line))
        self.bulk_loads += bool(BULK_LOAD.search(line))
        self.bulk_stores += bool(BULK_STORE.search(line))

    def faults(self):
        found = []
        if self.stack:
            found.append(f"a stack frame of {self.stack} bytes")
        if self.spill_bytes:
            found.append(f"{self.spill_bytes} bytes of register spills")
        if self.local:
            found.append(f"{self.local} local memory instructions")
        if any(re.search(pattern, self.name) for pattern in limits.WIDE_KERNELS):
            if not self.wide_loads:
                found.append("no 128-bit global load")
            if not self.wide_stores:
                found.append("no 128-bit global store")
        if self.template in limits.BULK_KERNELS and not self.is_empty:
            if not self.bulk_loads:
                found.append("no bulk copy from global memory")
            if not self.bulk_stores:
                found.append("no bulk copy to global memory")
        found += self.loop_faults
        found += main_loops.over_budget(self)
        return found + self.residency_faults()

    def residency_faults(self):
        found = []
        for entry in limits.RESIDENCY:
            if entry.kernel != self.template or self.architecture not in entry.architectures:
                continue
            blocks = self.blocks_with(entry.dynamic)
            if blocks is None or blocks < entry.blocks:
                found.append(f"room for {blocks} blocks per SM ({entry.use}), not {entry.blocks}")
            if self.declared_shared > entry.static:
                shared = f"{self.declared_shared} bytes of static shared memory"
                found.append(f"{shared}, more than {entry.static}")
        return found


def launch_bounds(cubin):
    """Threads of __launch_bounds__ by kernel, from the sections .nv.info.<kernel> of a cubin."""
    image = cubin.read_bytes()
    (table,) = struct.unpack_from("<Q", image, 0x28)
    entry_size, count, names_index = struct.unpack_from("<HHH", image, 0x3A)
    # name, type, flags, address, offset, size: the head of an Elf64_Shdr
    sections = [struct.unpack_from("<IIQQQQ", image, table + i * entry_size) for i in range(count)]
    names = sections[names_index][4]
    bounds = {}
    for name, _, _, _, offset, size in sections:
        start = names + name
        label = image[start : image.index(b"\0", start)].decode()
        if not label.startswith(".nv.info."):
            continue
        position = offset
        while position < offset + size:
            form, attribute, value = struct.unpack_from("<BBH", image, position)
            position += 4
            if form != 4:  # only EIFMT_SVAL has a payload, of `value` bytes
                continue
            if attribute == 5:  # EIATTR_MAX_THREADS
                x, y, z = struct.unpack_from("<III", image, position)
                bounds[label.removeprefix(".nv.info.")] = x * y * z
            position += value
    return bounds


def read_cubin(architecture, cubin):
    """The kernels of one cubin."""
    usage = re.compile(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)")
    kernels = {}
    for symbol, *values in usage.findall(run([tool("cuobjdump"), "-res-usage", cubin])):
        kernel = kernels[symbol] = Kernel(symbol, architecture)
        kernel.registers, kernel.stack, kernel.shared = map(int, values)
    if not kernels:
        return []
    for symbol, threads in launch_bounds(cubin).items():
        if symbol in kernels:
            kernels[symbol].threads = threads
    read_instructions(kernels, lines([tool("cuobjdump"), "-sass", cubin]))
    name_kernels(kernels.values())
    for kernel in kernels.values():
        kernel.loops, kernel.loop_faults = main_loops.find_main_loops(kernel)
        kernel.instructions = []
    return list(kernels.values())


def read_instructions(kernels, disassembly):
    with_loops = tuple({loop.kernel for loop in limits.LOOPS})
    kernel, has_loops = None, False
    for line in disassembly:
        if "Function :" in line:
            kernel = kernels.get(line.split(":", 1)[1].strip())
            has_loops = kernel is not None and any(name in kernel.symbol for name in with_loops)
        elif kernel is not None:
            if "LD" in line or "ST" in line or "UBLKCP" in line:
                kernel.count(line)
            if has_loops:
                instruction = flow.parse(line)
                if instruction is not None:
                    kernel.instructions.append(instruction)


def short_name(demangled):
    """`void qae::f<qae::T, 4>(float*)` as `f<T, 4>`."""
    name = demangled.removeprefix("void ").replace("(anonymous namespace)::", "")
    name = re.sub(r"\b\w+::", "", name)
    depth = 0
    for position, character in enumerate(name):
        depth += (character == "<") - (character == ">")
        if character == "(" and depth == 0:
            return name[:position]
    return name


def name_kernels(kernels):
    symbols = "\n".join(kernel.symbol for kernel in kernels)
    for kernel, demangled in zip(kernels, run(["c++filt"], input=symbols).splitlines()):
        kernel.name = short_name(demangled)
