"""Control flow of one kernel in SASS: its loops, and what one iteration of a loop issues."""

import collections
import re

INSTRUCTION = re.compile(
    r"^\s*/\*(?P<address>[0-9a-f]{4,})\*/\s+"
    r"(?:(?P<guard>@!?U?P\w+)\s+)?(?P<opcode>[A-Z][\w.]*)\s*(?P<operands>[^;]*?)\s*;"
)
ADDRESS = re.compile(r"\b0x[0-9a-f]+$")
REGISTER = re.compile(r"^B\d+")

Instruction = collections.namedtuple("Instruction", "address guard opcode operands")


def parse(line):
    """The instruction of a line of `cuobjdump -sass`, or None."""
    match = INSTRUCTION.match(line)
    if match is None:
        return None
    address = int(match["address"], 16)
    return Instruction(address, match["guard"], match["opcode"], match["operands"])


def mnemonic(instruction):
    return instruction.opcode.split(".")[0]


def barrier(instruction):
    """The barrier register of BSSY and BSYNC."""
    return REGISTER.match(instruction.operands).group()


def target(instruction):
    found = ADDRESS.search(instruction.operands)
    return int(found.group(), 16) if found else None


class Unreadable(Exception):
    """Control flow that this module does not understand."""


class Loop:
    """A natural loop: blocks by index; `own` are those in no loop inside of it."""

    def __init__(self, header, body):
        self.header = header
        self.body = body
        self.own = body
        self.inner = []


class Flow:
    """The basic blocks of a kernel and the edges between them."""

    def __init__(self, instructions):
        self.instructions = instructions
        self.position = {entry.address: i for i, entry in enumerate(instructions)}
        # Where threads that went apart go on together, by barrier register.
        self.reconvergence = collections.defaultdict(set)
        for entry in instructions:
            if mnemonic(entry) == "BSSY":
                self.reconvergence[barrier(entry)].add(target(entry))
        self.together = set().union(*self.reconvergence.values())
        self.callees = None
        self.callees = self._callees()
        jumps = [self._successors(i) for i in range(len(instructions))]
        starts = {0}
        for i, following in enumerate(jumps):
            if following != [i + 1]:
                starts |= {i + 1, *following}
        starts = sorted(start for start in starts if start < len(instructions))
        ends = [*starts[1:], len(instructions)][: len(starts)]
        self.blocks = [instructions[start:end] for start, end in zip(starts, ends)]
        number = {start: block for block, start in enumerate(starts)}
        self.successors = [
            sorted({number[i] for i in jumps[end - 1] if i < len(instructions)}) for end in ends
        ]
        self.predecessors = [[] for _ in self.blocks]
        for block, following in enumerate(self.successors):
            for successor in following:
                self.predecessors[successor].append(block)

    def _successors(self, i):
        """Positions that may come after the i-th instruction."""
        entry = self.instructions[i]
        name = mnemonic(entry)
        onward = [i + 1]
        if name in ("BRA", "JMP") or entry.opcode.startswith("WARPSYNC.COLLECTIVE"):
            # With a guard, or an operand before the address, it may not be taken.
            is_certain = not entry.guard and "," not in entry.operands
            return ([] if is_certain else onward) + [self._at(target(entry))]
        if name in ("EXIT", "RET", "BRX", "BRXU", "JMX", "JMXU"):
            return onward if entry.guard else []
        if name == "CALL" and not self.is_call(entry):
            return (onward if entry.guard else []) + [self._at(target(entry))]
        if name == "BSYNC":
            # Its register may have been saved and restored, so the place comes first.
            following = self.instructions[i + 1].address if i + 1 < len(self.instructions) else None
            targets = self.reconvergence[barrier(entry)]
            return onward if following in self.together else sorted(map(self._at, targets))
        return onward

    def is_call(self, entry):
        """Whether it returns. What never does is a jump: so ptxas leaves loops before sm_90."""
        address = target(entry)
        is_known = self.callees is not None and address is not None
        return mnemonic(entry) == "CALL" and not (is_known and address not in self.callees)

    def _callees(self):
        """Addresses from which a return is reached."""
        before = collections.defaultdict(list)
        for i in range(len(self.instructions)):
            for following in self._successors(i):
                before[following].append(i)
        todo = [i for i, entry in enumerate(self.instructions) if mnemonic(entry) == "RET"]
        found = set(todo)
        while todo:
            new = set(before[todo.pop()]) - found
            found |= new
            todo += new
        return {self.instructions[i].address for i in found}

    def _at(self, address):
        if address not in self.position:
            raise Unreadable(f"a jump to {address:#x}, where no instruction is")
        return self.position[address]

    def loops(self):
        """All natural loops, each with the loops directly inside of it."""
        order, dominators = self._dominators()

        def dominates(a, b):
            while b is not None and b > a:
                b = dominators[b]
            return a == b

        bodies = {}
        for block, following in enumerate(self.successors):
            for header in following:
                if dominates(order[header], order[block]):
                    bodies.setdefault(header, {header}).update(self._before(block, header))
        loops = [Loop(header, body) for header, body in bodies.items()]
        loops.sort(key=lambda loop: len(loop.body))
        for i, loop in enumerate(loops):
            # The smallest that holds it is its parent.
            parent = next((other for other in loops[i + 1 :] if loop.body < other.body), None)
            if parent is not None:
                parent.inner.append(loop)
                parent.own = parent.own - loop.body
        return loops

    def _before(self, block, header):
        """The blocks from which `block` is reached without passing `header`."""
        found, todo = {header, block}, [block] if block != header else []
        while todo:
            for predecessor in self.predecessors[todo.pop()]:
                if predecessor not in found:
                    found.add(predecessor)
                    todo.append(predecessor)
        return found

    def _dominators(self):
        """The blocks' places in reverse postorder; by place, that of the immediate dominator, None
        for the root (Cooper, Harvey, Kennedy)."""
        roots, seen, postorder = [], set(), []
        # Blocks that only a computed jump reaches hang below the root too.
        without = [block for block, before in enumerate(self.predecessors) if not before]
        for root in [*without, *range(len(self.blocks))]:
            if root in seen:
                continue
            roots.append(root)
            seen.add(root)
            todo = [(root, iter(self.successors[root]))]
            while todo:
                block, following = todo[-1]
                successor = next((s for s in following if s not in seen), None)
                if successor is None:
                    postorder.append(block)
                    todo.pop()
                else:
                    seen.add(successor)
                    todo.append((successor, iter(self.successors[successor])))
        sequence = postorder[::-1]
        order = {block: i for i, block in enumerate(sequence)}
        is_root = {order[root] for root in roots}
        unknown = object()
        dominator = [None if i in is_root else unknown for i in range(len(sequence))]
        changed = True
        while changed:
            changed = False
            for i, block in enumerate(sequence):
                if i in is_root:
                    continue
                new = unknown
                for p in (order[predecessor] for predecessor in self.predecessors[block]):
                    if dominator[p] is not unknown:
                        new = p if new is unknown else self._common(dominator, new, p)
                if new is not unknown and dominator[i] != new:
                    dominator[i] = new
                    changed = True
        return order, dominator

    @staticmethod
    def _common(dominator, a, b):
        while a != b:
            if a is None or b is None:
                return None
            if a > b:
                a = dominator[a]
            else:
                b = dominator[b]
        return a


# Accesses to memory that count in a loop: not constants, not barriers.
MEMORY = {"LDG", "STG", "LDS", "STS", "LD", "ST", "LDL", "STL", "LDGSTS", "LDSM", "STSM"}
MEMORY |= {"ATOM", "ATOMG", "ATOMS", "RED", "REDG", "REDS", "REDAS", "STAS"}
WIDE = re.compile(r"\.(128|256)\b")


def is_memory(instruction):
    # What is never executed is there for the timing of others.
    return mnemonic(instruction) in MEMORY and instruction.guard != "@!PT"


def is_wide(instruction):
    return is_memory(instruction) and bool(WIDE.search(instruction.opcode))


class Iteration:
    """What one iteration of a loop issues.

    `path`: the way through the loop that has the most 128-bit accesses and, of those, the fewest
    instructions: what every warp does with whole vectors. `beside`: instructions off the path that
    are no alternative to it, such as what one thread does between two barriers. Alternatives are
    left out: a chunk that is not full, a vector with the row's token. A loop inside counts as one
    turn of it: a wait for data is a wait that finds the data there."""

    def __init__(self, flow, loop):
        self.loop = loop
        node_of = {block: block for block in loop.own}
        nodes = {block: flow.blocks[block] for block in loop.own}
        inner = set()
        for child in loop.inner:
            blocks = [flow.blocks[block] for block in sorted(child.body)]
            nodes[child.header] = [entry for block in blocks for entry in block]
            node_of |= dict.fromkeys(child.body, child.header)
            inner.add(child.header)
        following = {node: set() for node in nodes}
        latches = set()
        for block in loop.body:
            for successor in flow.successors[block]:
                if successor == loop.header:
                    latches.add(node_of[block])
                elif successor in loop.body and node_of[successor] != node_of[block]:
                    following[node_of[block]].add(node_of[successor])
        order = _topological(following, node_of[loop.header])
        wide = {n: 0 if n in inner else sum(map(is_wide, nodes[n])) for n in nodes}
        # From the end: the best of each node's ways to the next iteration.
        best = {}
        for node in reversed(order):
            ways = [best[other][:2] + (other,) for other in following[node] if other in best]
            if node in latches:
                ways.append((0, 0, None))
            if ways:
                words, cost, other = max(ways, key=lambda way: way[:2])
                best[node] = (words + wide[node], cost - len(nodes[node]), other)
        path, node = [], node_of[loop.header]
        while node is not None:
            path.append(node)
            node = best[node][2]
        self.path = [entry for node in path for entry in nodes[node]]
        self.calls = [entry for entry in self.path if flow.is_call(entry)]
        main = [node for node in path if wide[node]]
        after = {node: _reachable(following, node) for node in order}
        self.beside = [
            entry
            for node in order
            if node not in path and all(m in after[node] or node in after[m] for m in main)
            for entry in nodes[node]
        ]

    def count(self, names):
        """128-bit accesses of the path with one of these names."""
        return sum(is_wide(entry) and mnemonic(entry) in names for entry in self.path)

    def exponentials(self):
        return sum(entry.opcode.startswith("MUFU.EX2") for entry in self.path)


def _topological(following, start):
    order, state = [], {}
    todo = [(start, iter(sorted(following[start])))]
    state[start] = "open"
    while todo:
        node, others = todo[-1]
        other = next(others, None)
        if other is None:
            state[node] = "done"
            order.append(node)
            todo.pop()
        elif state.get(other) == "open":
            raise Unreadable("a loop with two entries")
        elif other not in state:
            state[other] = "open"
            todo.append((other, iter(sorted(following[other]))))
    return order[::-1]


def _reachable(following, node):
    found, todo = set(), [node]
    while todo:
        for other in following[todo.pop()]:
            if other not in found:
                found.add(other)
                todo.append(other)
    return found
