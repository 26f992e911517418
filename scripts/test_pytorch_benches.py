"""Tests of benches/pytorch/: what needs no PyTorch, and a run on the CPU where there is one.

    python3 -m unittest discover --start-directory scripts
"""

import contextlib
import importlib.util
import io
import json
import pathlib
import re
import subprocess
import sys
import types
import unittest
from unittest import mock

BENCHES = pathlib.Path(__file__).resolve().parents[1] / "benches/pytorch"
HAS_TORCH = importlib.util.find_spec("torch") is not None


def loss_from_logits():
    """The program as a module; PyTorch is not used while it is read."""
    stub = mock.patch.dict(sys.modules, {"torch": types.ModuleType("torch")})
    path = mock.patch.object(sys, "path", [str(BENCHES), *sys.path])
    with path, contextlib.nullcontext() if HAS_TORCH else stub:
        spec = importlib.util.spec_from_file_location("bench", BENCHES / "loss_from_logits.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


def printed(run):
    """The lines of JSON that it prints."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        run()
    return [json.loads(line) for line in out.getvalue().splitlines()]


class Programs(unittest.TestCase):
    def test_they_are_python(self):
        for path in BENCHES.glob("*.py"):
            compile(path.read_text(), path, "exec")

    def test_the_wheels_are_pinned_by_digest(self):
        lines = BENCHES.joinpath("peers.txt").read_text().splitlines()
        for line in lines:
            self.assertRegex(line, r"^(#|[\w-]+==[\d.]+ --hash=sha256:[0-9a-f]{64}$)")


class Peers(unittest.TestCase):
    def setUp(self):
        self.bench = loss_from_logits()
        self.data = types.SimpleNamespace(vocab=8)

    def run_peer(self, make, run_case=None):
        peer = self.bench.Peer("fake", make)
        with mock.patch.object(self.bench, "run_case", run_case):
            return printed(lambda: self.bench.run_peer(self.data, peer, None, None))

    def test_one_that_is_not_installed_is_left_out_by_name(self):
        def make(_):
            raise ImportError("No module named 'fake'")

        (line,) = self.run_peer(make)
        self.assertEqual(line["kind"], "skipped")
        names = ["fake bf16/dense", "fake bf16/inactive-80", "fake bf16/forward"]
        self.assertEqual(line["cases"], names)
        self.assertEqual(line["reason"], "not importable: No module named 'fake'")

    def test_one_that_is_wrong_or_fails_does_not_keep_the_others_from_being_timed(self):
        def run_case(data, peer, variant, step, options, clock):
            if variant == "dense":
                raise self.bench.WrongResult("the gradient is off by nan")
            if variant == "forward":
                raise RuntimeError("out of memory\nat length")
            self.bench.report(kind="timed", case=variant)

        lines = self.run_peer(lambda vocab: (vocab, vocab), run_case=run_case)
        self.assertEqual(lines[0]["reason"], "wrong: the gradient is off by nan")
        self.assertEqual(lines[1], {"kind": "timed", "case": "inactive-80"})
        self.assertEqual(lines[2]["reason"], "RuntimeError: out of memory")

    def test_what_a_peer_has_not_is_not_run(self):
        run_case = mock.Mock()
        self.run_peer(lambda _: ("gradient", None), run_case=run_case)
        self.assertEqual([call.args[2] for call in run_case.mock_calls], ["dense", "inactive-80"])

    def test_every_wheel_is_a_peer_and_every_peer_is_there_once(self):
        names = [peer.name for peer in self.bench.PEERS]
        self.assertEqual(len(names), len(set(names)))
        wheels = re.findall(r"^([\w-]+)==", BENCHES.joinpath("peers.txt").read_text(), re.MULTILINE)
        self.assertLessEqual({wheel.removesuffix("-kernel") for wheel in wheels}, set(names))

    def test_kernels_that_fail_fail_the_run(self):
        options = types.SimpleNamespace(gpu_bench="false", samples=1, rows=1024, vocab=8)
        with self.assertRaisesRegex(SystemExit, "false failed"):
            self.bench.run_gpu_bench(options)


@unittest.skipUnless(HAS_TORCH, "python3 has no PyTorch")
class OnTheCpu(unittest.TestCase):
    def test_eager_gradients_and_log_probs_agree_with_float64(self):
        program = str(BENCHES / "loss_from_logits.py")
        options = ["--device", "cpu", "--rows", "1024", "--vocab", "50", "--samples", "1"]
        command = [sys.executable, program, *options, "--peers", "eager"]
        run = subprocess.run(command, check=True, capture_output=True, text=True)
        lines = [json.loads(line) for line in run.stdout.splitlines()]
        cases = [line["case"] for line in lines if line["kind"] == "pytorch_logits"]
        self.assertEqual(cases, ["bf16/dense", "bf16/inactive-80", "bf16/forward"])


if __name__ == "__main__":
    unittest.main()
