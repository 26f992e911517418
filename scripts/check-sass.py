#!/usr/bin/env python3
"""Reads what the compiler made of every CUDA kernel and fails on lost performance.

    scripts/check-sass.py LIBRARY      checks a built libqae_kernels.a, object or cubin
    scripts/check-sass.py              compiles kernels/all.cu itself (adds spill sizes)

Fails (exit status 1) when a kernel has a stack frame, spills registers or touches local memory, and
when it does not keep to scripts/sass/limits.py: the width of its accesses, the instructions per
element in its main loops, the blocks that an SM has room for. How the instructions of a loop are
counted: `Iteration` in scripts/sass/flow.py. Needs no GPU; needs cuobjdump and nvdisasm beside nvcc
or on PATH, and c++filt. `eval "$(scripts/cuda-toolchain.sh)"` provides the first two.
"""

import argparse
import concurrent.futures
import os
import pathlib
import re
import sys
import tempfile

from sass import limits, tables
from sass.kernels import read_cubin
from sass.toolkit import build_list, compile_cubins, extract_cubins, fail


def by_architecture(kernel):
    capability = limits.capability(kernel.architecture)
    return kernel.template, capability, kernel.architecture, kernel.name


def read_kernels(archive, wanted):
    spills = {}
    with tempfile.TemporaryDirectory() as directory:
        directory = pathlib.Path(directory)
        if archive is None:
            cubins, spills = compile_cubins(wanted or build_list("ARCHITECTURES"), directory)
        elif archive.is_file():
            cubins = extract_cubins(archive, directory)
        else:
            fail(f"{archive} is not a file")
        if wanted:
            cubins = [cubin for cubin in cubins if cubin[0] in wanted]
        with concurrent.futures.ProcessPoolExecutor(os.cpu_count()) as pool:
            found = pool.map(read_cubin, *zip(*cubins)) if cubins else []
            kernels = [kernel for group in found for kernel in group]
    missing = set(wanted or []) - {kernel.architecture for kernel in kernels}
    if missing or not kernels:
        fail(f"no kernel found for {', '.join(sorted(missing)) or 'any architecture'}")
    for kernel in kernels:
        kernel.spill_bytes = spills.get((kernel.architecture, kernel.symbol))
    return sorted(kernels, key=by_architecture)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("archive", nargs="?", type=pathlib.Path, help="default: compile them")
    parser.add_argument("--architectures", help='such as "80 90a"; default: all')
    parser.add_argument("--summary", action="store_true", help="worst case per kernel template")
    options = parser.parse_args()
    wanted = options.architectures and re.split(r"[ ,]+", options.architectures.strip())
    kernels = read_kernels(options.archive, wanted)

    (tables.print_summary if options.summary else tables.print_all)(kernels)
    tables.print_loops(kernels)
    tables.print_residency(kernels)
    faulty = [kernel for kernel in kernels if kernel.faults()]
    sys.stdout.flush()
    tables.report_faults(faulty, options.summary)
    architectures = len({kernel.architecture for kernel in kernels})
    print(f"{len(kernels)} kernels of {architectures} architectures, {len(faulty)} at fault")
    sys.exit(1 if faulty else 0)


if __name__ == "__main__":
    main()
