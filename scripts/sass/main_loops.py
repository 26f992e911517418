"""The main loops of the kernels of limits.LOOPS: how many instructions an element takes."""

import contextlib

from sass import limits
from sass.flow import Flow, Iteration, Unreadable, is_memory, is_wide, mnemonic


class MainLoop:
    """One entry of limits.LOOPS as it was compiled."""

    def __init__(self, entry, element, iteration):
        self.name = entry.name
        self.elements = limits.VECTORS * limits.VECTOR_ELEMENTS[element]
        self.instructions = len(iteration.path)
        self.beside = len(iteration.beside) if entry.one_thread else 0
        self.faults = [f"{fault} in the loop of {entry.name}" for fault in faults(iteration)]

    @property
    def per_element(self):
        """Instructions for an element, by the block's warps on average."""
        return (self.instructions + self.beside / limits.BLOCK_WARPS) / self.elements


def faults(iteration):
    # With a guard it may be one thread's, such as the token's element.
    unguarded = [entry for entry in iteration.path if not entry.guard]
    narrow = [entry for entry in unguarded if is_memory(entry) and not is_wide(entry)]
    found = [f"{entry.opcode} at {entry.address:#x}, not 128 bits wide" for entry in narrow]
    return found + [f"a call at {entry.address:#x}" for entry in iteration.calls]


def is_entry(entry, element, iteration):
    """Whether it is an iteration of the loop: its accesses, an exponential for each element."""
    allowed = {*entry.loads, *entry.stores, *entry.others}
    if any(is_wide(i) and mnemonic(i) not in allowed for i in iteration.path):
        return False
    vectors = iteration.count(entry.stores or entry.loads)
    exponentials = vectors * limits.VECTOR_ELEMENTS[element]
    has_loads = iteration.count(entry.loads) > 0
    return has_loads and vectors == limits.VECTORS and iteration.exponentials() >= exponentials


def find_main_loops(kernel):
    """Of each entry for this kernel, its MainLoop, and what is wrong with them."""
    entries = [entry for entry in limits.LOOPS if entry.kernel == kernel.template]
    if not entries or kernel.is_empty:
        return [], []
    try:
        flow = Flow(kernel.instructions)
    except Unreadable as error:
        return [], [str(error)]
    iterations = []
    for loop in flow.loops():
        if any(is_wide(entry) for block in loop.own for entry in flow.blocks[block]):
            # One that cannot be read is none of those below, or is missed there.
            with contextlib.suppress(Unreadable):
                iterations.append(Iteration(flow, loop))
    loops, wrong = [], []
    for entry in entries:
        found = [i for i in iterations if is_entry(entry, kernel.element, i)]
        # A loop inside of one of them is for what does not fill the vectors of all threads.
        found = [i for i in found if not any(i.loop.body < other.loop.body for other in found)]
        if not found:
            wrong.append(f"no loop of {entry.name} that takes {limits.VECTORS} vectors at a time")
            continue
        # So is one that rescales its sums more often. Of copies of the main loop, the worst.
        fewest = min(iteration.exponentials() for iteration in found)
        found = [i for i in found if i.exponentials() == fewest]
        found = [MainLoop(entry, kernel.element, iteration) for iteration in found]
        loop = max(found, key=lambda loop: loop.per_element)
        loops.append(loop)
        wrong += loop.faults
    return loops, wrong


def over_budget(kernel):
    """What is wrong with the sum over the kernel's loops."""
    total = kernel.per_element
    return [
        f"{total:.1f} instructions per element, more than {budget.limit}"
        for budget in limits.BUDGETS
        if budget.kernel == kernel.template
        and kernel.architecture in budget.architectures
        and total > budget.limit
    ]
