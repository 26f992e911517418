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

SCRIPTS = pathlib.Path(__file__).resolve().parent

FAKE_PROGRAMS = {
    "bundle/bin/qae": "echo 'FAKE: 7 cases, 0 mismatches'",
    "bundle/bin/cuda-tests": "echo 'test result: ok. 3 passed; 0 failed'",
    "bundle/bin/gpu_bench": """
case $1 in
--repeat-bits) echo '{"kind": "repeat_bits", "case": "fake", "launches": 100, "differing": 0}' ;;
*) echo '{"kind": "device", "name": "FAKE GPU"}'
   echo '{"kind": "loss_from_log_probs", "case": "f32/packed/dense", "slots": 65536,
"launched_by": "stream", "bytes": 1, "seconds": [1.0]}' | tr -d '\\n'; echo ;;
esac""",
    "path/nvidia-smi": "printf 'timestamp, name, driver_version\\nnow, FAKE GPU, 0.0\\n'",
    "path/compute-sanitizer": """
[[ $2 == racecheck ]] && echo 'RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)'
echo 'ERROR SUMMARY: 0 errors'""",
    "path/ncu": "echo '\"ID\",\"Metric Name\"'; echo '\"0\",\"dram__bytes_read.sum\"'",
    # Stands in for PyTorch alone.
    "path/python3": """
[[ $1 == -c ]] && exit 0
[[ $1 == benches/* ]] && { echo '{"kind": "pytorch", "case": "f32/padded+mask/dense",
"mode": "eager", "slots": 65536, "launches": 1, "peak_bytes": 1, "seconds": [2.0]}' |
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

    def run_suite(self):
        """The finished process, the record, and the status of each step."""
        real = shutil.which("python3")
        environment = os.environ | {"REAL_PYTHON": real}
        environment["PATH"] = f"{self.root / 'path'}:{environment['PATH']}"
        suite = subprocess.run(
            ["bundle/scripts/gpu-suite.sh", "out"],
            check=False,
            cwd=self.root,
            env=environment,
            capture_output=True,
            text=True,
        )
        (path,) = self.root.glob("out/*.json")
        record = json.loads(path.read_text())
        return suite, record, {step["step"]: step["status"] for step in record["steps"]}

    def test_every_step_passes(self):
        suite, record, steps = self.run_suite()
        self.assertEqual(set(steps.values()), {"passed"}, suite.stdout + suite.stderr)
        self.assertEqual((suite.returncode, record["complete"]), (0, True))
        self.assertEqual(record["gpu"]["driver_version"], "0.0")
        self.assertEqual(record["loss_from_log_probs"][0]["case"], "f32/packed/dense")
        self.assertEqual(len(steps), 12)

    def test_nothing_runs_after_a_self_test_that_fails(self):
        self.program("bundle/bin/qae", "echo 'FAKE: 7 cases, 1 mismatches'; exit 1")
        self.write_sums()
        suite, record, steps = self.run_suite()
        self.assertEqual(steps.pop("checksums"), "passed")
        self.assertEqual(steps.pop("selftest"), "failed")
        self.assertEqual(set(steps.values()), {"skipped"})
        self.assertEqual((suite.returncode, record["complete"]), (1, False))
        self.assertIn("NOT PASSED: racecheck: skipped", suite.stdout)

    def test_a_tool_that_did_nothing_has_not_passed(self):
        self.program("path/compute-sanitizer", "exit 0")
        suite, _, steps = self.run_suite()
        self.assertEqual((steps["memcheck"], suite.returncode), ("failed", 1))

    def test_tests_that_found_no_gpu_have_not_passed(self):
        body = FAKE_PROGRAMS["bundle/bin/cuda-tests"]
        self.program("bundle/bin/cuda-tests", f"{body}; echo 'no GPU: x not run, skipped' >&2")
        suite, _, steps = self.run_suite()
        self.assertEqual((steps["device-tests"], suite.returncode), ("failed", 1))

    def test_a_changed_file_is_noticed(self):
        self.program("bundle/bin/qae", FAKE_PROGRAMS["bundle/bin/qae"] + "\n# changed")
        suite, _, steps = self.run_suite()
        self.assertEqual((steps["checksums"], suite.returncode), ("failed", 1))


if __name__ == "__main__":
    unittest.main()
