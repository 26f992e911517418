"""Tests of check-sass.py on machine code in testdata/: what nvcc 13.0 made for sm_90a of two
kernels, without most of the arithmetic. No compiler is run.

    python3 -m unittest discover --start-directory scripts
"""

import contextlib
import io
import math
import pathlib
import re
import unittest
from unittest import mock

from sass import kernels, limits, main_loops, tables
from sass.flow import Flow, Iteration, Unreadable, is_wide, parse

DATA = pathlib.Path(__file__).resolve().parent / "testdata"

# Of the cluster kernel's gradient loop: the branch to the loops for a chunk that is not full, and
# what one thread does between two barriers.
PARTIAL_CHUNK = range(0xD150, 0xDC90)
ONE_THREAD = range(0xE340, 0xEF70)


def lines(name):
    return DATA.joinpath(f"{name}.sass").read_text().splitlines()


def instructions(text):
    parsed = [parse(line) for line in text]
    return [entry for entry in parsed if entry is not None]


def code(*opcodes):
    """Instructions at 0x0, 0x10, and so on."""
    return instructions(f"/*{i * 16:04x}*/ {opcode} ;" for i, opcode in enumerate(opcodes))


def kernel(name, text, architecture="90a"):
    made = kernels.Kernel("symbol", architecture)
    made.name = name
    made.threads = 256
    made.registers, made.shared = 40, limits.RESERVED_SHARED if architecture == "90a" else 0
    made.bulk_loads = made.bulk_stores = 1
    made.instructions = instructions(text)
    made.loops, made.loop_faults = main_loops.find_main_loops(made)
    return made


def forward(text, architecture="90a"):
    return kernel("log_probs_from_logits<float, false>", text, architecture)


def cluster(text):
    return kernel("loss_from_logits_cluster<float>", text)


def iteration_at(text, header):
    flow = Flow(instructions(text))
    (loop,) = (loop for loop in flow.loops() if flow.blocks[loop.header][0].address == header)
    return Iteration(flow, loop)


class Parsing(unittest.TestCase):
    def test_instructions_have_address_guard_opcode_and_operands(self):
        line = "        /*d360*/              @!P0 BRA 0xd670 ;     /* 0x000000300000a947 */"
        self.assertEqual(parse(line), (0xD360, "@!P0", "BRA", "0xd670"))
        line = "        /*d1d0*/                   LDS.128 R4, [R49] ;  /* 0x0000000031047984 */"
        self.assertEqual(parse(line), (0xD1D0, None, "LDS.128", "R4, [R49]"))
        self.assertEqual(parse("/*0010*/ EXIT ;"), (0x10, None, "EXIT", ""))
        for line in ("", "    /* 0x040fe200078e0228 */", "\t\tFunction : _Z1f", ".headerflags @EF"):
            self.assertIsNone(parse(line))

    def test_wide_accesses(self):
        wide = code("LDS.128 R4, [R49]", "STG.E.EF.128 desc[UR6][R2.64], R4", "LDG.E.ENL2.256 R4")
        self.assertTrue(all(map(is_wide, wide)))
        other = code("LDS.64 R4, [R49]", "LDCU.128 UR4, c[0x0][0x0]", "@!PT LDS RZ, [RZ]")
        self.assertFalse(any(map(is_wide, other)))

    def test_kernel_names(self):
        demangled = "void qae::f<qae::T, (int)4>(qae::Launch)"
        self.assertEqual(kernels.short_name(demangled), "f<T, (int)4>")
        self.assertEqual(kernels.short_name("qae::g(qae::Launch)"), "g")


class ControlFlow(unittest.TestCase):
    def bodies(self, *opcodes):
        """The instructions' positions of each loop, the smallest first."""
        flow = Flow(code(*opcodes))
        return [
            sorted(entry.address // 16 for block in loop.body for entry in flow.blocks[block])
            for loop in flow.loops()
        ]

    def test_nested_loops(self):
        found = self.bodies("MOV", "NOP", "NOP", "@P0 BRA 0x20", "@P1 BRA 0x10", "EXIT")
        self.assertEqual(found, [[2, 3], [1, 2, 3, 4]])

    def test_a_jump_back_that_no_loop_is(self):
        # To the middle of what is entered elsewhere: a slow path that comes back.
        slow_path = ("@P0 BRA 0x30", "NOP", "EXIT", "NOP", "BRA 0x10")
        self.assertEqual(self.bodies(*slow_path), [])

    def test_reconvergence_is_no_jump_where_it_goes_on_below(self):
        together = ("BSSY B0, 0x40", "@P0 BRA 0x30", "NOP", "BSYNC B0", "@P1 BRA 0x0", "EXIT")
        found = self.bodies(*together)
        self.assertEqual(found, [[0, 1, 2, 3, 4]])
        # The same from afar: two threads' ways meet at 0x30, the end of the loop.
        found = self.bodies(
            *("BSSY.RECONVERGENT B0, 0x30", "@P0 BRA 0x50", "NOP", "@P1 BRA 0x0", "EXIT"),
            *("NOP", "BSYNC.RECONVERGENT B0"),
        )
        self.assertEqual(found, [[0, 1, 2, 3, 5, 6]])

    def test_a_uniform_branch_is_a_choice(self):
        self.assertEqual(self.bodies("NOP", "BRA.U UP0, 0x0", "EXIT"), [[0, 1]])
        self.assertEqual(self.bodies("NOP", "BRA.DIV UR4, 0x30", "BRA 0x0", "EXIT"), [[0, 1, 2]])

    def test_a_call_of_what_never_returns_is_a_jump(self):
        opcodes = ["NOP", "@P0 CALL.REL.NOINC 0x30", "BRA 0x0", "EXIT", "RET.REL.NODEC R2 0x0"]
        flow = Flow(code(*opcodes))
        self.assertFalse(flow.is_call(flow.instructions[1]))
        opcodes[1] = "@P0 CALL.REL.NOINC 0x40"
        flow = Flow(code(*opcodes))
        self.assertTrue(flow.is_call(flow.instructions[1]))
        flow = Flow(code("NOP", "CALL.ABS.NOINC R14", "BRA 0x0"))
        self.assertTrue(flow.is_call(flow.instructions[1]))

    def test_code_behind_a_computed_jump_is_read_too(self):
        self.assertEqual(self.bodies("BRX R2 -0x10", "NOP", "@P0 BRA 0x10", "EXIT"), [[1, 2]])

    def test_a_jump_to_nowhere_is_refused(self):
        with self.assertRaises(Unreadable):
            Flow(code("BRA 0x1230"))


class Iterations(unittest.TestCase):
    def test_the_path_takes_whole_vectors_by_the_shortest_way(self):
        # 0x20: one thread's; 0x50: a narrow alternative to 0x40.
        text = [
            f"/*{i * 16:04x}*/ {opcode} ;"
            for i, opcode in enumerate(
                ["LDS.128 R4, [R0]", "@P0 BRA 0x30", "MUFU.RCP R1, R1", "@P1 BRA 0x60"]
                + ["STS.128 [R0], R4", "BRA 0x70", "STS [R0], R4", "@P2 BRA 0x0", "EXIT"]
            )
        ]
        iteration = iteration_at(text, 0)
        path = [entry.address // 16 for entry in iteration.path]
        self.assertEqual(path, [0, 1, 3, 4, 5, 7])
        self.assertEqual([entry.address // 16 for entry in iteration.beside], [2])

    def test_a_loop_inside_counts_once(self):
        wait = ["NOP", "SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [R0], R1", "@!P0 BRA 0x10"]
        text = [
            f"/*{i * 16:04x}*/ {opcode} ;"
            for i, opcode in enumerate([*wait, "LDS.128 R4, [R0]", "@P2 BRA 0x0", "EXIT"])
        ]
        self.assertEqual(len(iteration_at(text, 0).path), 5)


class Forward(unittest.TestCase):
    def test_the_main_loop_is_found_and_not_that_of_the_remainder(self):
        found = forward(lines("log_probs_from_logits_f32"))
        self.assertEqual(found.loop_faults, [])
        (loop,) = found.loops
        # 4 loads, 16 exponentials and that of the rescaling, the branch back.
        self.assertEqual((loop.instructions, loop.elements, loop.beside), (22, 16, 0))
        self.assertEqual(found.per_element, 22 / 16)
        self.assertEqual(found.faults(), [])

    def test_narrow_loads_are_no_main_loop(self):
        text = lines("log_probs_from_logits_f32")
        text = [line.replace("LDG.E.EF.128", "LDG.E.EF.64") for line in text]
        self.assertIn("no loop of sums that takes 4 vectors", forward(text).faults()[0])

    def test_a_narrow_access_beside_the_wide_ones_is_a_fault(self):
        text = lines("log_probs_from_logits_f32")
        text = [line.replace("MUFU.EX2 R32, R34", "LDS R32, [R34]") for line in text]
        self.assertIn("LDS at 0xfa0, not 128 bits wide in the loop of sums", forward(text).faults())
        guarded = [line.replace("LDS R32", "@P0 LDS R32") for line in text]
        self.assertEqual(forward(guarded).faults(), [])

    def test_code_that_cannot_be_read_is_a_fault(self):
        found = forward(["/*0000*/ BRA 0x1230 ;"])
        self.assertEqual(found.loop_faults, ["a jump to 0x1230, where no instruction is"])

    def test_a_loop_beyond_its_budget_is_a_fault(self):
        text = lines("log_probs_from_logits_f32")
        start = next(i for i, line in enumerate(text) if "MUFU.EX2 R8, R9" in line)
        # 15.6 x 16 elements are 249 instructions.
        padding = [f"/*{0xF0000 + i:x}*/ FADD R1, R1, R1 ;" for i in range(249 - 22)]
        self.assertEqual(forward(text[:start] + padding + text[start:]).faults(), [])
        padding.append("/*fffff*/ FADD R1, R1, R1 ;")
        found = forward(text[:start] + padding + text[start:]).faults()
        self.assertEqual(found, ["15.6 instructions per element, more than 15.6"])


class Cluster(unittest.TestCase):
    def iteration(self):
        return iteration_at(lines("loss_from_logits_cluster_f32"), 0xD0A0)

    def test_the_path_is_that_of_a_full_chunk(self):
        iteration = self.iteration()
        self.assertEqual((iteration.count(["LDS"]), iteration.count(["STS"])), (4, 4))
        # One of the exponentials is the token's, with a guard.
        self.assertEqual(iteration.exponentials(), 17)
        addresses = {entry.address for entry in iteration.path + iteration.beside}
        self.assertFalse(addresses & set(PARTIAL_CHUNK))

    def test_barriers_and_fences_count_for_every_warp(self):
        opcodes = [entry.opcode for entry in self.iteration().path]
        for opcode in ("BAR.SYNC.DEFER_BLOCKING", "MEMBAR.ALL.CTA", "FENCE.VIEW.ASYNC.S"):
            self.assertEqual(opcodes.count(opcode), 1)

    def test_what_one_thread_does_is_beside_the_path(self):
        iteration = self.iteration()
        self.assertTrue(all(entry.address in ONE_THREAD for entry in iteration.beside))
        # One store; a load at each of two places.
        opcodes = [entry.opcode for entry in iteration.beside]
        self.assertEqual(opcodes.count("UBLKCP.G.S"), 1)
        self.assertEqual(opcodes.count("UBLKCP.S.G"), 2)
        found = cluster(lines("loss_from_logits_cluster_f32"))
        (loop,) = found.loops
        self.assertEqual(loop.beside, len(iteration.beside))
        expected = (loop.instructions + loop.beside / limits.BLOCK_WARPS) / 16
        self.assertEqual(found.per_element, expected)

    def test_a_loop_that_is_missing_is_a_fault(self):
        found = cluster(lines("loss_from_logits_cluster_f32")).loop_faults
        self.assertEqual(found, ["no loop of sums that takes 4 vectors at a time"])

    def test_rows_that_move_by_other_means_than_bulk_copies_are_a_fault(self):
        found = cluster(lines("loss_from_logits_cluster_f32"))
        found.bulk_stores = 0
        self.assertIn("no bulk copy to global memory", found.faults())

    def test_nothing_is_asked_of_an_empty_kernel(self):
        empty = kernel("loss_from_logits_cluster<float>", [], "80")
        empty.bulk_loads = empty.bulk_stores = 0
        self.assertEqual(empty.faults(), [])


class Residency(unittest.TestCase):
    def made(self, registers, shared, architecture="90a"):
        found = kernel("loss_from_logits_block<float>", [], "80")
        found.loop_faults = []
        found.architecture = architecture
        found.registers, found.shared = registers, shared
        return found

    def test_registers_and_shared_memory_limit_the_blocks(self):
        # 128 registers x 256 threads are half of the register file.
        self.assertEqual(self.made(128, 1024).blocks_with(0), 2)
        self.assertEqual(self.made(129, 1024).blocks_with(0), 1)
        self.assertEqual(self.made(40, 1024).blocks_with(0), 6)
        # 228 KiB, of which each block takes 1 more than it asks for.
        self.assertEqual(self.made(40, 1024).blocks_with(113 * 1024), 2)
        self.assertEqual(self.made(40, 1024 + 4).blocks_with(113 * 1024), 1)

    def test_the_reserve_is_in_the_figures_from_sm_90_on(self):
        self.assertEqual(self.made(40, 1024 + 16).declared_shared, 16)
        self.assertEqual(self.made(40, 16, "80").declared_shared, 16)

    def test_less_room_than_claimed_is_a_fault(self):
        self.assertEqual(self.made(128, 9 * 1024).residency_faults(), [])
        (found,) = self.made(129, 9 * 1024).residency_faults()
        self.assertEqual(found, "room for 1 blocks per SM (rows of 16 KiB), not 2")
        (found,) = self.made(128, 14 * 1024).residency_faults()
        self.assertIn("13312 bytes of static shared memory, more than 12288", found)

    def test_the_tables_have_the_numbers_of_the_sources(self):
        def constant(path, name):
            text = DATA.parents[1].joinpath("kernels", path).read_text()
            (value,) = re.findall(rf"\b{name} = ([\d* ]+)[,;]", text)
            return math.prod(map(int, value.split("*")))

        self.assertEqual(limits.VECTORS, constant("block/logits.cuh", "kVectorsInFlight"))
        threads = constant("block/platform.cuh", "kBlockThreads")
        warp = constant("block/platform.cuh", "kWarpThreads")
        self.assertEqual(limits.BLOCK_WARPS * warp, threads)
        self.assertEqual(limits.CHUNK, threads * limits.VECTORS * 16)
        static = constant("loss_from_logits_launch.cuh", "kStaticShared")
        self.assertEqual(limits.STATIC, static)

    def test_every_kernel_of_the_tables_exists(self):
        sources = "".join(path.read_text() for path in DATA.parents[1].glob("kernels/*.cu*"))
        for entry in [*limits.LOOPS, *limits.BUDGETS, *limits.RESIDENCY]:
            self.assertRegex(sources, rf"\b{entry.kernel}\(")


class Tables(unittest.TestCase):
    def printed(self, *made):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            tables.print_loops(made)
            tables.print_residency(made)
        return out.getvalue()

    def test_counts_budgets_and_rooms_are_printed(self):
        text = lines("log_probs_from_logits_f32")
        printed = self.printed(forward(text, "80"), forward(text))
        row = next(line for line in printed.splitlines() if line.startswith("log_probs"))
        self.assertEqual(row.split("sums")[1].split(), [*"22/16 = 1.4".split() * 2, "15.6"])
        self.assertRegex(printed, r"log_probs_from_logits, any row +90a +40 +0 +0 +6 +6 +5")

    def test_one_threads_part_is_printed_as_that(self):
        printed = self.printed(cluster(lines("loss_from_logits_cluster_f32")))
        self.assertRegex(printed, r"gradient +\(\d+ \+ \d+/8\)/16 = \d+\.\d")
        self.assertRegex(printed, r"together +\d+\.\d +31\.0")

    def test_faults_are_grouped(self):
        made = [forward(["/*0000*/ EXIT ;"]) for _ in range(3)]
        with mock.patch("sys.stderr", io.StringIO()) as out:
            tables.report_faults(made, summary=True)
        self.assertIn("(and 2 more instances): no loop of sums", out.getvalue())


if __name__ == "__main__":
    unittest.main()
