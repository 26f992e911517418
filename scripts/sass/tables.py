"""What check-sass.py prints."""

import collections
import sys

from sass import limits


def print_table(header, rows):
    cells = [header, *([("-" if cell is None else str(cell)) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    for first, *others in cells:
        numbers = (cell.rjust(width) for cell, width in zip(others, widths[1:]))
        print(first.ljust(widths[0]), *numbers, sep="  ")


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


def print_loops(kernels):
    """The instructions per element of each main loop, of the worst instance for its dtype, by
    architecture, and of all loops of a kernel together."""
    kernels = [kernel for kernel in kernels if kernel.loops]
    architectures = sorted({k.architecture for k in kernels}, key=limits.capability)
    worst = {}
    for kernel in kernels:
        key = kernel.template, kernel.element, kernel.architecture
        worst[key] = max(worst.get(key, kernel), kernel, key=lambda k: k.per_element)
    names = list(dict.fromkeys((kernel.template, kernel.element) for kernel in kernels))
    rows = []
    for template, element in names:
        instances = [worst.get((template, element, a)) for a in architectures]
        entries = [entry.name for entry in limits.LOOPS if entry.kernel == template]
        for name in entries:
            cells = [kernel and loop_text(kernel, name) for kernel in instances]
            rows.append((f"{template}<{element}> {name}", *cells, None))
        if len(entries) > 1:
            cells = [kernel and f"{kernel.per_element:.1f}" for kernel in instances]
            rows.append((f"{template}<{element}> together", *cells, None))
        budgets = [budget for budget in limits.BUDGETS if budget.kernel == template]
        for budget in budgets:
            where = [a for a in architectures if a in budget.architectures]
            text = f"{budget.limit}"
            if where and where != architectures:
                text += f" ({', '.join(f'sm_{a}' for a in where)})"
            rows[-1] = (*rows[-1][:-1], text if where else None)
    print("\ninstructions per element in the main loops (of every warp + of one thread / warps):")
    print_table(["loop", *(f"sm_{a}" for a in architectures), "limit"], rows)


def loop_text(kernel, name):
    for loop in kernel.loops:
        if loop.name == name:
            count = f"{loop.instructions}"
            if loop.beside:
                count = f"({count} + {loop.beside}/{limits.BLOCK_WARPS})"
            return f"{count}/{loop.elements} = {loop.per_element:.1f}"
    return None


def print_residency(kernels):
    rows = {}
    for entry in limits.RESIDENCY:
        for kernel in kernels:
            if entry.kernel != kernel.template or kernel.architecture not in entry.architectures:
                continue
            blocks = kernel.blocks_with(entry.dynamic)
            row = (f"{kernel.template}, {entry.use}", kernel.architecture, kernel.registers)
            row += (kernel.declared_shared, entry.dynamic, kernel.blocks_per_sm)
            row += (blocks, entry.blocks)
            # The instance with the least room.
            key = row[:2]
            if key not in rows or (blocks or 0, -kernel.registers) < rows[key][0]:
                rows[key] = (blocks or 0, -kernel.registers), row
    print("\nblocks that an SM has room for:")
    header = ["kernel", "sm", "regs", "static", "dynamic", "by regs", "blocks/SM", "claimed"]
    print_table(header, [row for _, row in rows.values()])
    print()


def report_faults(faulty, summary):
    """Says what is wrong with each kernel, or with the worst instance of each template."""
    groups = collections.defaultdict(list)
    for kernel in faulty:
        key = (kernel.template if summary else kernel.symbol, kernel.architecture)
        groups[key].append(kernel)
    for members in groups.values():
        worst = max(members, key=lambda kernel: (kernel.local, kernel.stack, len(kernel.faults())))
        others = f" (and {len(members) - 1} more instances)" if len(members) > 1 else ""
        name = f"{worst.name} for sm_{worst.architecture}{others}"
        print(f"check-sass: {name}: {'; '.join(worst.faults())}", file=sys.stderr)
