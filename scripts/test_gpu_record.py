"""Tests of gpu-record.py on figures that were made up here: no GPU measured any of them.

python3 -m unittest discover --start-directory scripts
"""

import contextlib
import datetime
import importlib.util
import io
import json
import pathlib
import sys
import tempfile
import unittest

SCRIPT = pathlib.Path(__file__).resolve().parent / "gpu-record.py"
spec = importlib.util.spec_from_file_location("gpu_record", SCRIPT)
gpu_record = importlib.util.module_from_spec(spec)
spec.loader.exec_module(gpu_record)

FAKE_GPU = "FAKE GPU 9000"
NOW = datetime.datetime(2001, 2, 3, 4, 5, 6, tzinfo=datetime.timezone.utc)
MANIFEST = {"commit": "0123abc", "uncommitted_changes": False, "sha256": {"bin/qae": "00"}}
SLOTS = 1 << 20

FAKE_BENCH = [
    {"kind": "device", "name": FAKE_GPU},
    {"kind": "copy", "bytes": 2_000_000, "seconds": [1e-6, 1e-6, 5e-6]},
    {
        "kind": "loss_from_log_probs",
        "case": "f32/packed/dense",
        "slots": SLOTS,
        "tokens": SLOTS,
        "launched_by": "stream",
        "bytes": 1_000_000,
        "seconds": [1e-6] * 20,
    },
    {
        "kind": "loss_from_log_probs",
        "case": "bf16/packed/inactive-80/untouched",
        "slots": SLOTS,
        "tokens": SLOTS,
        "launched_by": "graph",
        "bytes": 500_000,
        "seconds": [1e-6],
    },
    {"kind": "skipped", "slots": 1 << 27, "cases": ["f32/packed/dense"], "reason": "too large"},
]
FAKE_PYTORCH = [
    {"kind": "pytorch_device", "name": FAKE_GPU, "torch": "0.0"},
    *(
        {
            "kind": "pytorch",
            "case": "f32/padded+mask/dense",
            "peer": peer,
            "slots": SLOTS,
            "tokens": SLOTS,
            "launches": 130,
            "peak_bytes": None,
            "seconds": [seconds],
        }
        for peer, seconds in (("eager", 4e-5), ("compile", 2e-6), ("qae", 1e-6))
    ),
]
FAKE_LOGITS = [
    {"kind": "device", "name": FAKE_GPU},
    {"kind": "copy", "bytes": 2_000_000, "seconds": [1e-6]},
    *(
        {
            "kind": kind,
            "case": case,
            "rows": 8192,
            "vocab": 151936,
            "bytes": 1_000_000,
            "peak_bytes": 0,
            "seconds": [1e-6, 1e-6, 9e-6],
        }
        for kind, case in (
            ("loss_from_logits", "bf16/dense/in-place"),
            ("loss_from_logits", "bf16/inactive-80/untouched"),
            ("log_probs_from_logits_backward", "bf16/backward/in-place"),
        )
    ),
    {"kind": "pytorch_copy", "bytes": 1, "seconds": [5e-7]},
    *(
        {
            "kind": "pytorch_logits",
            "case": f"bf16/{case}",
            "peer": peer,
            "launches": 3,
            "peak_bytes": 2_000_000,
            "error": 1e-3,
            "seconds": [seconds],
        }
        for peer, case, seconds in (
            ("liger", "dense", 2e-6),
            ("eager", "dense", 8e-6),
            ("liger", "inactive-80", 7e-6),
            ("qae", "dense", 1e-6),
            ("qae-active", "inactive-80", 1e-6),
        )
    ),
    {"kind": "skipped", "cases": ["quack bf16/dense"], "reason": "not importable"},
    {"kind": "logits_check", "case": "bf16/forward", "vocab": 32000, "error": 2e-3},
]
FAKE_STEPS = [
    ("selftest", "passed", "0", "3", "60", ""),
    ("bench", "passed", "0", "3", "90", ""),
    ("ncu", "skipped", "-", "0", "0", "ncu is not on PATH"),
]
FAKE_STATES = """\
timestamp, name, driver_version, clocks.current.sm [MHz], power.limit [W]
2001/02/03 04:05:06.000, FAKE GPU 9000, 0.00, 345 MHz, 700.00 W
2001/02/03 04:05:06.5"""
FAKE_COUNTERS = """\
==PROF== Connected to process 1
"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"
"0","loss_from_log_probs_tiles","dram__bytes_read.sum","Mbyte","134.2"
{"kind": "device"}
"""


def lines(objects):
    return "".join(json.dumps(entry) + "\n" for entry in objects)


class Logs(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.logs = pathlib.Path(folder.name)
        self.write_steps(FAKE_STEPS)
        self.write("bench.out", lines(FAKE_BENCH))
        self.write("pytorch.out", lines(FAKE_PYTORCH))
        self.write("gpu-before.csv", FAKE_STATES)
        self.write("ncu.out", FAKE_COUNTERS)

    def write(self, name, text):
        (self.logs / name).write_text(text)

    def write_steps(self, steps):
        self.write("steps.tsv", "".join("\t".join(step) + "\n" for step in steps))

    def record(self, part="tokens"):
        return gpu_record.make_record(part, self.logs, dict(MANIFEST), NOW)

    def row(self, record, case):
        header, *rows = gpu_record.loss_table(record)
        return next(dict(zip(header, row)) for row in rows if row[0] == case)

    def test_everything_is_in_the_record(self):
        record = self.record()
        self.assertTrue(record["complete"])
        self.assertEqual(record["gpu"]["clocks.current.sm"], "345 MHz")
        self.assertEqual(record["device"], {"name": FAKE_GPU})
        self.assertEqual(record["loss_from_log_probs"][0]["seconds"], [1e-6] * 20)
        self.assertEqual([row["metric_value"] for row in record["counters"]], ["134.2"])
        self.assertEqual(record["steps"][2]["exit"], None)
        self.assertEqual(gpu_record.file_name(record), "2001-02-03-fake-gpu-9000-tokens.json")

    def test_ratios_are_of_medians(self):
        row = self.row(self.record(), "f32/packed/dense")
        self.assertEqual((row["us"], row["GB/s"], row["of copy"]), ("1.0", "1000", "50.0%"))
        self.assertEqual((row["x eager"], row["x compile"]), ("40.0", "2.0"))

    def test_only_the_like_is_compared(self):
        row = self.row(self.record(), "bf16/packed/inactive-80/untouched")
        self.assertEqual((row["spread"], row["x eager"], row["x compile"]), ("-", "-", "-"))

    def test_what_was_not_measured_is_a_dash(self):
        self.write("bench.out", lines(FAKE_BENCH[2:3]))
        (self.logs / "pytorch.out").unlink()
        record = self.record()
        row = self.row(record, "f32/packed/dense")
        self.assertEqual((row["of copy"], row["x eager"]), ("-", "-"))
        report = "\n".join(gpu_record.report(record))
        self.assertIn("copy bandwidth: - GB/s", report)
        self.assertIn("step in Python: not measured", report)

    def test_no_step_that_did_not_pass_goes_unmentioned(self):
        for status in ("failed", "timed out", "skipped"):
            self.write_steps([*FAKE_STEPS[:1], ("racecheck", status, "-", "0", "9", "because")])
            record = self.record()
            self.assertFalse(record["complete"])
            report = "\n".join(gpu_record.report(record))
            self.assertIn(f"NOT PASSED: racecheck: {status} because", report)
            self.assertIn("INCOMPLETE", report)

    def test_empty_logs_give_an_incomplete_record(self):
        for path in self.logs.iterdir():
            path.unlink()
        record = self.record()
        self.assertFalse(record["complete"])
        self.assertEqual(gpu_record.file_name(record), "2001-02-03-unknown-gpu-tokens.json")
        self.assertIn("loss_from_log_probs: not measured", gpu_record.report(record))

    def test_a_line_that_was_cut_off_is_left_out(self):
        self.write("bench.out", lines(FAKE_BENCH)[:-20])
        record = self.record()
        self.assertEqual(len(record["loss_from_log_probs"]), 2)
        self.assertEqual(record["skipped"], [])

    def logits_rows(self):
        self.write("bench.out", lines(FAKE_LOGITS))
        header, *rows = gpu_record.logits_table(self.record("logits"))
        return {row[0]: dict(zip(header, row)) for row in rows}

    def test_logits_are_compared_with_their_peers_and_targets(self):
        rows = self.logits_rows()
        dense = rows["bf16/dense/in-place"]
        self.assertEqual((dense["ms"], dense["GB/s"], dense["beyond MB"]), ("0.001", "1000", "0.0"))
        self.assertEqual(dense["of copy"], "50.0% (>= 95.0%)")
        self.assertEqual(dense["x fastest peer"], "2.00 (>= 1.40) liger")
        self.assertEqual(dense["x eager"], "8.00 (>= 3.00)")
        # Its peers do the same work whether it writes zeros or not.
        inactive = rows["bf16/inactive-80/untouched"]
        self.assertEqual(inactive["x fastest peer"], "7.00 (>= 6.50) liger")
        backward = rows["bf16/backward/in-place"]
        self.assertEqual((inactive["x eager"], backward["x fastest peer"]), ("-", "-"))

    def test_the_peers_of_logits_are_reported(self):
        self.write("bench.out", lines(FAKE_LOGITS))
        report = "\n".join(gpu_record.report(self.record("logits")))
        self.assertRegex(report, r"copy of the logits +- +0\.001 +1\.0")
        self.assertRegex(report, r"eager +bf16/dense +0\.008 +16\.0 +3 +2\.0 +1\.0e-03")
        self.assertIn("not measured: quack bf16/dense: not importable", report)
        self.assertIn("checked: bf16/forward, V = 32000: off by 2.0e-03", report)

    def test_a_part_without_benches_has_no_tables(self):
        report = "\n".join(gpu_record.report(self.record("sanitize")))
        self.assertNotIn("loss_from_log_probs", report)
        self.assertNotIn("copy bandwidth", report)

    def test_what_ran_under_the_profiler_is_no_measurement(self):
        self.write("ncu-loss-from-logits-cluster.out", FAKE_COUNTERS + lines(FAKE_LOGITS))
        record = self.record("logits")
        self.assertEqual(record["loss_from_logits"], [])
        self.assertEqual(len(record["counters"]), 2)

    def test_the_command_writes_the_record(self):
        self.write("MANIFEST.json", json.dumps(MANIFEST))
        manifest = self.logs / "MANIFEST.json"
        arguments = ["--part", "tokens", "--logs", self.logs, "--manifest", manifest]
        sys.argv = ["gpu-record.py", *map(str, arguments), "--out", str(self.logs)]
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            gpu_record.main()
        path = pathlib.Path(printed.getvalue().split("record: ")[1].strip())
        record = json.loads(path.read_text())
        self.assertEqual(record["schema"], gpu_record.SCHEMA)
        self.assertNotIn("sha256", record["build"])


if __name__ == "__main__":
    unittest.main()
