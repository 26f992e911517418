"""Tests of cuda-toolchain.sh, without installing anything.

    python3 -m unittest discover --start-directory scripts
"""

import os
import pathlib
import shutil
import subprocess
import tempfile
import unittest

SCRIPT = pathlib.Path(__file__).resolve().parent / "cuda-toolchain.sh"


class Toolchain(unittest.TestCase):
    def run_script(self, *arguments):
        """The finished process, and whether it began an installation."""
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder)
            for name in ("scripts", "path"):
                root.joinpath(name).mkdir()
            copy = shutil.copy(SCRIPT, root / "scripts")
            python = root / "path/python3"
            python.write_text(f"#!/bin/sh\ntouch {root}/installs\nexit 1\n")
            python.chmod(0o755)
            path = f"{root / 'path'}:{os.environ['PATH']}"
            process = subprocess.run(
                [copy, *arguments],
                check=False,
                capture_output=True,
                text=True,
                env=os.environ | {"PATH": path},
            )
            return process, root.joinpath("installs").exists()

    def test_help_installs_nothing(self):
        for option in ("--help", "-h"):
            process, installs = self.run_script(option)
            self.assertEqual((process.returncode, installs), (0, False), process.stderr)
            self.assertIn('eval "$(scripts/cuda-toolchain.sh)"', process.stdout)
            self.assertIn("QAE_USE_SYSTEM_CUDA=1", process.stdout)
            self.assertNotIn("#", process.stdout)

    def test_an_unknown_option_installs_nothing(self):
        process, installs = self.run_script("--halp")
        self.assertEqual((process.returncode, installs, process.stdout), (2, False, ""))
        self.assertIn("usage:", process.stderr)

    def test_no_option_installs(self):
        process, installs = self.run_script()
        self.assertEqual((process.returncode, installs, process.stdout), (1, True, ""))


if __name__ == "__main__":
    unittest.main()
