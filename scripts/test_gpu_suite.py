"""Tests of gpu-suite.sh in a bundle of stand-ins: no GPU is used, and every figure is made up here.

python3 -m unittest discover --start-directory scripts
"""

import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import unittest
import zipfile

SCRIPTS = pathlib.Path(__file__).resolve().parent

FAKE_PROGRAMS = {
    "bundle/bin/qae": "echo 'FAKE: 7 cases, 0 mismatches'",
    "bundle/bin/cuda-tests": "echo 'test result: ok. 3 passed; 0 failed'",
    "bundle/bin/gpu_bench": """
case $* in
--repeat-bits*) echo '{"kind": "repeat_bits", "case": "fake", "launches": 100, "differing": 0}' ;;
*--rows*) echo '{"kind": "logits_check", "case": "bf16/dense", "vocab": 32000, "error": 0}' ;;
*logits*) echo '{"kind": "loss_from_logits", "case": "bf16/dense/in-place", "vocab": 151936,
"bytes": 1, "seconds": [1.0]}' | tr -d '\\n'; echo ;;
*) echo '{"kind": "device", "name": "FAKE GPU"}'
   echo '{"kind": "loss_from_log_probs", "case": "f32/packed/dense", "slots": 65536,
"launched_by": "stream", "bytes": 1, "seconds": [1.0]}' | tr -d '\\n'; echo ;;
esac""",
    "path/nvidia-smi": "printf 'timestamp, name, driver_version\\nnow, FAKE GPU, 0.0\\n'",
    "path/compute-sanitizer": """
[[ $2 == racecheck ]] && echo 'RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)'
echo 'ERROR SUMMARY: 0 errors'""",
    "path/ncu": 'echo \'"ID","Metric Name"\'; echo \'"0","dram__bytes_read.sum"\'',
    # Stands in for PyTorch alone.
    "path/python3": """
[[ $1 == -c ]] && exit 0
[[ "$1 $2" == "-m pytest" ]] && { echo '7 passed, 3 skipped in 1 s'; exit 0; }
[[ $1 == benches/*/loss_from_logits.py ]] && {
    "$4"  logits; ls "$PYTHONPATH" >&2
    echo '{"kind": "pytorch_logits", "case": "bf16/dense", "peer": "liger", "launches": 1,
"peak_bytes": 1, "error": 0.0, "seconds": [2.0]}' | tr -d '\\n'; echo; exit 0; }
[[ $1 == benches/* ]] && { echo '{"kind": "pytorch", "case": "f32/padded+mask/dense",
"peer": "eager", "slots": 65536, "launches": 1, "peak_bytes": 1, "seconds": [2.0]}' |
    tr -d '\\n'; echo; exit 0; }
exec "$REAL_PYTHON" "$@\"""",
}


class Suite(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = pathlib.Path(folder.name)
        scripts = self.root / "bundle/scripts"
        scripts.mkdir(parents=True)
        for name in ("gpu-suite.sh", "gpu-record.py"):
            shutil.copy(SCRIPTS / name, scripts)
        for name, body in FAKE_PROGRAMS.items():
            self.program(name, body)
        self.root.joinpath("bundle/MANIFEST.json").write_text('{"commit": "fake"}')
        self.root.joinpath("bundle/wheels").mkdir()
        with zipfile.ZipFile(self.root / "bundle/wheels/peer-1-py3-none-any.whl", "w") as wheel:
            wheel.writestr("peer.py", "")
        self.write_sums()

    def write_sums(self):
        sums = ["sha256sum", "bin/qae", "scripts/gpu-suite.sh"]
        with self.root.joinpath("bundle/SHA256SUMS").open("w") as file:
            subprocess.run(sums, cwd=self.root / "bundle", check=True, stdout=file)

    def program(self, name, body):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/usr/bin/env bash\n{body}\n")
        path.chmod(0o755)

    def run_suite(self, *parts):
        """The finished process; by part, the record and the status of each step."""
        real = shutil.which("python3")
        environment = os.environ | {"REAL_PYTHON": real}
        environment.pop("PYTHONPATH", None)
        environment["PATH"] = f"{self.root / 'path'}:{environment['PATH']}"
        suite = subprocess.run(
            ["bundle/scripts/gpu-suite.sh", "out", *parts],
            check=False,
            cwd=self.root,
            env=environment,
            capture_output=True,
            text=True,
        )
        records = [json.loads(path.read_text()) for path in self.root.glob("out/*.json")]
        return suite, {
            record["part"]: (record, {step["step"]: step["status"] for step in record["steps"]})
            for record in records
        }

    def run_part(self, part):
        suite, records = self.run_suite(part)
        self.assertEqual(list(records), [part], suite.stderr)
        return suite, *records[part]

    def test_every_step_of_every_part_passes(self):
        suite, records = self.run_suite()
        self.assertEqual(
            set(records), {"check", "python", "sanitize", "tokens", "logits"}, suite.stderr
        )
        for record, steps in records.values():
            self.assertEqual(set(steps.values()), {"passed"}, suite.stdout + suite.stderr)
            self.assertTrue(record["complete"])
            self.assertEqual(list(steps)[:2], ["checksums", "selftest"])
            self.assertEqual(record["gpu"]["driver_version"], "0.0")
        self.assertEqual(suite.returncode, 0)
        number = {part: len(steps) for part, (_, steps) in records.items()}
        self.assertEqual(number, {"check": 6, "python": 3, "sanitize": 6, "tokens": 5, "logits": 6})
        tokens, logits = records["tokens"][0], records["logits"][0]
        self.assertEqual(tokens["loss_from_log_probs"][0]["case"], "f32/packed/dense")
        self.assertEqual(logits["loss_from_logits"][0]["case"], "bf16/dense/in-place")
        self.assertEqual(logits["pytorch_logits"][0]["peer"], "liger")
        self.assertEqual(len(logits["counters"]), 3)
        # The wheels of the bundle are found.
        self.assertEqual(self.root.joinpath("out/logs/logits/bench.err").read_text(), "peer.py\n")

    def test_one_part_alone(self):
        suite, record, steps = self.run_part("check")
        self.assertEqual((suite.returncode, len(steps)), (0, 6))
        self.assertEqual(record["logits_check"][0]["vocab"], 32000)

    def test_an_unknown_part_is_refused(self):
        suite, records = self.run_suite("chekc")
        self.assertEqual((suite.returncode, records), (2, {}))
        self.assertIn("chekc is none of check python sanitize tokens logits", suite.stderr)

    def test_nothing_runs_after_a_self_test_that_fails(self):
        self.program("bundle/bin/qae", "echo 'FAKE: 7 cases, 1 mismatches'; exit 1")
        self.write_sums()
        for part in ("check", "python", "sanitize", "tokens", "logits"):
            shutil.rmtree(self.root / "out", ignore_errors=True)
            suite, record, steps = self.run_part(part)
            self.assertEqual(steps.pop("checksums"), "passed")
            self.assertEqual(steps.pop("selftest"), "failed")
            self.assertEqual(set(steps.values()), {"skipped"})
            self.assertEqual((suite.returncode, record["complete"]), (1, False))
            self.assertIn("skipped the self-test did not pass", suite.stdout)

    def test_a_tool_that_did_nothing_has_not_passed(self):
        self.program("path/compute-sanitizer", "exit 0")
        suite, _, steps = self.run_part("sanitize")
        self.assertEqual((steps["memcheck"], suite.returncode), ("failed", 1))

    def test_python_tests_that_were_all_skipped_have_not_passed(self):
        body = FAKE_PROGRAMS["path/python3"].replace("7 passed, 3 skipped", "10 skipped")
        self.program("path/python3", body)
        suite, _, steps = self.run_part("python")
        self.assertEqual((steps["python-tests"], suite.returncode), ("failed", 1))

    def test_tests_that_found_no_gpu_have_not_passed(self):
        body = FAKE_PROGRAMS["bundle/bin/cuda-tests"]
        self.program("bundle/bin/cuda-tests", f"{body}; echo 'no GPU: x not run, skipped' >&2")
        suite, _, steps = self.run_part("check")
        self.assertEqual((steps["device-tests"], suite.returncode), ("failed", 1))

    def test_a_changed_file_is_noticed(self):
        self.program("bundle/bin/qae", FAKE_PROGRAMS["bundle/bin/qae"] + "\n# changed")
        suite, _, steps = self.run_part("check")
        self.assertEqual((steps["checksums"], suite.returncode), ("failed", 1))

    def test_without_pytorch_the_kernels_are_timed_alone(self):
        body = FAKE_PROGRAMS["path/python3"].replace("-c ]] && exit 0", "-c ]] && exit 1")
        self.program("path/python3", body)
        suite, record, steps = self.run_part("logits")
        self.assertEqual((steps["bench"], steps["bench-alone"]), ("skipped", "passed"))
        self.assertEqual(record["loss_from_logits"][0]["case"], "bf16/dense/in-place")
        self.assertEqual((suite.returncode, record["pytorch_logits"]), (1, []))


if __name__ == "__main__":
    unittest.main()
