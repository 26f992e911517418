#!/usr/bin/env python3
"""Reads what the compiler made of every CUDA kernel and fails on lost performance.

    scripts/check-sass.py LIBRARY      checks a built libqae_kernels.a, object or cubin
    scripts/check-sass.py              compiles kernels/all.cu itself (adds spill sizes)

Fails (exit status 1) when a kernel has a stack frame, spills registers or touches local memory, or
when a kernel of WIDE_KERNELS moves no 128-bit words. Needs no GPU; needs cuobjdump and nvdisasm
beside nvcc or on PATH, and c++filt. `eval "$(scripts/cuda-toolchain.sh)"` provides the first two.
"""

import argparse
import collections
import concurrent.futures
import os
import pathlib
import re
import shutil
import struct
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent

# Kernels limited by memory bandwidth: every instance must load and store whole 128-bit words.
WIDE_KERNELS = [r"loss_from_log_probs"]

REGISTERS_PER_SM = 65536
REGISTERS_PER_WARP_UNIT = 256
SCHEDULERS_PER_SM = 4
# Resident warps of one SM, by major compute capability, as in the CUDA C++ programming guide.
WARPS_PER_SM = {8: 64, 9: 64, 10: 64, 12: 48}
WARPS_PER_SM_MINOR = {86: 48, 89: 48}

# Bulk copies move any multiple of 16 bytes, so they count as wide.
# Token streams carry the evict-first hint (EF); other wide loads, such as partial sums, do not count.
WIDE_LOAD = re.compile(r"\bLDG(STS)?\.E\.EF\.[\w.]*\b(128|256)\b|\bUBLKCP\.S\.G\b")
WIDE_STORE = re.compile(r"\bSTG\.E\.EF\.[\w.]*\b(128|256)\b|\bUBLKCP\.G\.S\b")
LOAD = re.compile(r"\bLDG(STS)?\b|\bUBLKCP\.S\.G\b")
STORE = re.compile(r"\bSTG\b|\bUBLKCP\.G\.S\b")
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

    @property
    def template(self):
        return self.name.split("<")[0]

    @property
    def blocks_per_sm(self):
        """Resident blocks that the register file allows, for a kernel with __launch_bounds__."""
        if self.threads is None:
            return None
        capability = int(self.architecture.rstrip("af"))
        warps = WARPS_PER_SM_MINOR.get(capability, WARPS_PER_SM.get(capability // 10))
        if warps is None:
            return None
        unit = REGISTERS_PER_WARP_UNIT
        per_warp = max(-(-self.registers * 32 // unit) * unit, unit)
        by_registers = REGISTERS_PER_SM // SCHEDULERS_PER_SM // per_warp * SCHEDULERS_PER_SM
        return min(warps, by_registers) // -(-self.threads // 32)

    def faults(self):
        found = []
        if self.stack:
            found.append(f"a stack frame of {self.stack} bytes")
        if self.spill_bytes:
            found.append(f"{self.spill_bytes} bytes of register spills")
        if self.local:
            found.append(f"{self.local} local memory instructions")
        if any(re.search(pattern, self.name) for pattern in WIDE_KERNELS):
            if not self.wide_loads:
                found.append("no 128-bit global load")
            if not self.wide_stores:
                found.append("no 128-bit global store")
        return found


def fail(message):
    sys.exit(f"check-sass: {message}")


def tool(name):
    """A tool of the CUDA toolkit: beside $NVCC first, so that all tools are of one toolkit."""
    nvcc = os.environ.get("NVCC")
    beside = pathlib.Path(nvcc).resolve().parent / name if nvcc else None
    path = str(beside) if beside and beside.is_file() else shutil.which(name)
    if path is None:
        fail(f'{name} is not on PATH: run eval "$(scripts/cuda-toolchain.sh)" first')
    return path


def run(command, **options):
    result = subprocess.run(command, text=True, capture_output=True, check=False, **options)
    if result.returncode:
        fail(f"{' '.join(map(str, command))} failed:\n{result.stdout}{result.stderr}")
    return result.stdout + result.stderr


def build_list(constant):
    """A list of strings of build.rs, the one place that says how the kernels are built."""
    text = (ROOT / "build.rs").read_text()
    match = re.search(rf"const {constant}: &\[&str\] = &\[(.*?)\];", text, re.DOTALL)
    return re.findall(r'"([^"]*)"', match[1])


def compile_cubins(architectures, directory):
    """Compiles kernels/all.cu per architecture; returns the cubins and the spills by kernel."""

    def compile_one(architecture):
        cubin = directory / f"all.sm_{architecture}.cubin"
        command = [tool("nvcc"), *build_list("FLAGS"), f"-arch=sm_{architecture}", "-cubin"]
        command += ["-Xptxas", "-v", "-I", ROOT / "kernels", "-o", cubin, ROOT / "kernels/all.cu"]
        return architecture, cubin, run(command)

    properties = re.compile(
        r"Function properties for (\S+)\s+.*?(\d+) bytes spill stores, (\d+) bytes spill loads"
    )
    spills = {}
    cubins = []
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for architecture, cubin, log in pool.map(compile_one, architectures):
            cubins.append((architecture, cubin))
            for symbol, stores, loads in properties.findall(log):
                spills[architecture, symbol] = int(stores) + int(loads)
    return cubins, spills


def extract_cubins(library, directory):
    """The cubins inside a library, object or executable, with their architectures."""
    if library.suffix == ".cubin":
        shutil.copy(library, directory)
    else:
        run([tool("cuobjdump"), "-xelf", "all", library.resolve()], cwd=directory)
    cubins = []
    for cubin in sorted(directory.glob("*.cubin")):
        match = re.search(r"\bsm_(\d+[af]?)\b", cubin.name.replace(".", " "))
        if match is None:
            fail(f"the name of {cubin.name} has no architecture (sm_90a, say)")
        cubins.append((match[1], cubin))
    return cubins


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
    kernel = None
    for line in run([tool("cuobjdump"), "-sass", cubin]).splitlines():
        if "Function :" in line:
            kernel = kernels.get(line.split(":", 1)[1].strip())
        elif kernel is not None and ("LD" in line or "ST" in line or "UBLKCP" in line):
            kernel.loads += bool(LOAD.search(line))
            kernel.wide_loads += bool(WIDE_LOAD.search(line))
            kernel.stores += bool(STORE.search(line))
            kernel.wide_stores += bool(WIDE_STORE.search(line))
            kernel.local += bool(LOCAL.search(line))
    return list(kernels.values())


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


def print_table(header, rows):
    cells = [header, *([("-" if cell is None else str(cell)) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    for first, *others in cells:
        numbers = (cell.rjust(width) for cell, width in zip(others, widths[1:]))
        print(first.ljust(widths[0]), *numbers, sep="  ")


def by_architecture(kernel):
    digits = kernel.architecture.rstrip("af")
    return kernel.template, int(digits), kernel.architecture, kernel.name


COLUMNS = ["regs", "smem", "stack", "spills", "local", "LDG.128", "LDG", "STG.128", "STG"]


def figures(kernel):
    return (
        *(kernel.registers, kernel.shared, kernel.stack, kernel.spill_bytes, kernel.local),
        *(kernel.wide_loads, kernel.loads, kernel.wide_stores, kernel.stores),
    )


def print_all(kernels):
    rows = [
        (kernel.name, kernel.architecture, *figures(kernel), kernel.threads, kernel.blocks_per_sm)
        for kernel in kernels
    ]
    print_table(["kernel", "sm", *COLUMNS, "threads", "blocks/SM"], rows)


def print_summary(kernels):
    """The worst instance of each template in each column: fewest wide accesses, most of others."""
    groups = collections.defaultdict(list)
    for kernel in kernels:
        groups[kernel.template, kernel.architecture].append(kernel)
    rows = []
    for (template, architecture), members in groups.items():
        columns = zip(COLUMNS, zip(*map(figures, members)))
        worst = [
            None if None in values else min(values) if label.endswith("128") else max(values)
            for label, values in columns
        ]
        blocks = [k.blocks_per_sm for k in members if k.blocks_per_sm is not None]
        rows.append((template, architecture, len(members), *worst, min(blocks, default=None)))
    print_table(["kernel", "sm", "instances", *COLUMNS, "blocks/SM"], rows)


def report_faults(faulty, summary):
    """Says what is wrong with each kernel, or with the worst instance of each template."""
    groups = collections.defaultdict(list)
    for kernel in faulty:
        key = (kernel.template if summary else kernel.symbol, kernel.architecture)
        groups[key].append(kernel)
    for members in groups.values():
        worst = max(members, key=lambda kernel: (kernel.local, kernel.stack))
        others = f" (and {len(members) - 1} more instances)" if len(members) > 1 else ""
        name = f"{worst.name} for sm_{worst.architecture}{others}"
        print(f"check-sass: {name}: {'; '.join(worst.faults())}", file=sys.stderr)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("archive", nargs="?", type=pathlib.Path, help="default: compile them")
    parser.add_argument("--architectures", help='such as "80 90a"; default: all')
    parser.add_argument("--summary", action="store_true", help="worst case per kernel template")
    options = parser.parse_args()
    wanted = options.architectures and re.split(r"[ ,]+", options.architectures.strip())

    spills = {}
    with tempfile.TemporaryDirectory() as directory:
        directory = pathlib.Path(directory)
        if options.archive is None:
            cubins, spills = compile_cubins(wanted or build_list("ARCHITECTURES"), directory)
        elif options.archive.is_file():
            cubins = extract_cubins(options.archive, directory)
        else:
            fail(f"{options.archive} is not a file")
        if wanted:
            cubins = [cubin for cubin in cubins if cubin[0] in wanted]
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            found = pool.map(lambda cubin: read_cubin(*cubin), cubins)
            kernels = [kernel for group in found for kernel in group]
    missing = set(wanted or []) - {kernel.architecture for kernel in kernels}
    if missing or not kernels:
        fail(f"no kernel found for {', '.join(sorted(missing)) or 'any architecture'}")
    for kernel in kernels:
        kernel.spill_bytes = spills.get((kernel.architecture, kernel.symbol))
    name_kernels(kernels)
    kernels.sort(key=by_architecture)

    (print_summary if options.summary else print_all)(kernels)
    faulty = [kernel for kernel in kernels if kernel.faults()]
    report_faults(faulty, options.summary)
    architectures = len({kernel.architecture for kernel in kernels})
    print(f"{len(kernels)} kernels of {architectures} architectures, {len(faulty)} at fault")
    sys.exit(1 if faulty else 0)


if __name__ == "__main__":
    main()
