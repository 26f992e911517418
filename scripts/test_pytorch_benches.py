"""Tests of benches/pytorch/ that need no PyTorch; python/tests/test_benches.py runs the programs.

python3 -m unittest discover --start-directory scripts
"""

import contextlib
import importlib
import io
import json
import pathlib
import sys
import types
import unittest
from unittest import mock

BENCHES = pathlib.Path(__file__).resolve().parents[1] / "benches/pytorch"


def load(name):
    """A program as a module; PyTorch is not used while it is read."""
    stub = types.ModuleType("torch")
    stub.__version__ = "0.0"
    stub.get_num_threads = lambda: 1
    stub.autograd = types.SimpleNamespace(Function=object)
    own = {"side_by_side", "loss_from_log_probs", "loss_from_logits"}
    kept = {key: module for key, module in sys.modules.items() if key not in own}
    with mock.patch.dict(sys.modules, {**kept, "torch": stub}, clear=True):
        with mock.patch.object(sys, "path", [str(BENCHES), *sys.path]):
            return importlib.import_module(name)


class Programs(unittest.TestCase):
    def test_they_are_python(self):
        for path in BENCHES.glob("*.py"):
            compile(path.read_text(), path, "exec")

    def test_the_wheels_are_pinned_by_digest(self):
        lines = BENCHES.joinpath("peers.txt").read_text().splitlines()
        for line in lines:
            self.assertRegex(line, r"^(#|[\w-]+==[\d.]+ --hash=sha256:[0-9a-f]{64}$)")

    def test_every_contender_is_there_in_both_programs(self):
        for name in ("loss_from_log_probs", "loss_from_logits"):
            peers = load(name).PEERS
            self.assertLessEqual(
                {"eager", "compile", "verl", "trl", "qae", "qae-active"}, set(peers)
            )

    def test_kernels_that_fail_fail_the_run(self):
        options = types.SimpleNamespace(gpu_bench="false", samples=1, rows=1024, vocab=8)
        with self.assertRaisesRegex(SystemExit, "false failed"):
            load("loss_from_logits").run_gpu_bench(options)


class FakeCase:
    name = "dense"
    fields = {"kind": "pytorch", "slots": 8}

    def __init__(self, errors):
        self.errors = errors
        self.samples = []

    def check(self, step):
        error = self.errors.get(step, 1e-9)
        if isinstance(error, Exception):
            raise error
        return error

    def sampler(self, step):
        def sample():
            self.samples.append(step)
            return {"qae": 1e-3, "qae-active": 5e-4}.get(step, 3e-3)

        return sample


class Turns(unittest.TestCase):
    def setUp(self):
        self.bench = load("side_by_side")
        self.clock = types.SimpleNamespace(is_cuda=False)

    def run_case(self, names, errors=None, as_json=True):
        """What is printed, and what becomes of the program."""
        case = FakeCase(errors or {})
        options = types.SimpleNamespace(json=as_json, device="cpu", cpu_time=False)
        exit_text = None
        with contextlib.redirect_stdout(io.StringIO()) as out:
            report = self.bench.Report(options)
            steps = {name: name for name in names}
            self.bench.run_case(case, steps, self.clock, report, samples=2)
            try:
                report.close()
            except SystemExit as ended:
                exit_text = str(ended)
        return case, out.getvalue().splitlines(), exit_text

    def test_contenders_take_turns(self):
        case, lines, _ = self.run_case(["eager", "qae"])
        self.assertEqual(case.samples, ["eager", "qae", "eager", "qae"])
        device, *timed = map(json.loads, lines)
        self.assertEqual(device["kind"], "pytorch_device")
        self.assertEqual([line["peer"] for line in timed], ["eager", "qae"])
        self.assertEqual(timed[1]["seconds"], [1e-3, 1e-3])

    def test_one_that_is_wrong_or_fails_does_not_keep_the_others_from_being_timed(self):
        wrong = self.bench.WrongResult("off by nan")
        errors = {"eager": wrong, "trl": RuntimeError("out of memory\nat length")}
        case, lines, exit_text = self.run_case(["eager", "trl", "verl"], errors)
        self.assertEqual((case.samples, exit_text), (["verl", "verl"], None))
        skipped = [json.loads(line) for line in lines if "skipped" in line]
        self.assertEqual(skipped[0]["cases"], ["eager dense"])
        self.assertEqual(skipped[0]["reason"], "wrong: off by nan")
        self.assertEqual(skipped[1]["reason"], "RuntimeError: out of memory")

    def test_a_failure_of_this_package_is_one_of_the_program(self):
        for name in ("qae", "qae-active"):
            errors = {name: self.bench.WrongResult("off")}
            _, _, exit_text = self.run_case(["eager", name], errors)
            self.assertEqual(exit_text, f"{name}: wrong: off")

    def test_one_that_is_not_installed_or_has_no_such_case_is_left_out(self):
        def missing(_):
            raise ImportError("No module named 'fake'")

        report = mock.Mock()
        makers = {"fake": missing, "none": lambda _: None, "one": lambda variant: variant}
        made = self.bench.made(makers, ("dense",), ["bf16/dense"], report)
        self.assertEqual(made, {"one": "dense"})
        reason = "not importable: No module named 'fake'"
        report.skip.assert_called_once_with("fake", ["bf16/dense"], reason)

    def test_the_table_has_ratios_of_medians(self):
        errors = {"trl": self.bench.WrongResult("off")}
        _, lines, _ = self.run_case(["eager", "trl", "qae", "qae-active"], errors, as_json=False)
        rows = [line.split() for line in lines if line.startswith("dense")]
        self.assertEqual([row[2:5] for row in rows][0], ["eager", "3.000", "3.00"])
        self.assertEqual([row[2:5] for row in rows][2], ["qae-active", "0.500", "0.50"])
        self.assertEqual(lines[-1], "not measured: trl dense: wrong: off")


if __name__ == "__main__":
    unittest.main()
