"""The side-by-side programs run, and every contender computes the same."""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

BENCHES = pathlib.Path(__file__).parents[2] / "benches" / "pytorch"


def has(*modules: str) -> bool:
    return all(importlib.util.find_spec(module) for module in modules)


# Without `compile`, which takes a minute.
INSTALLED = {"eager", "qae", "qae-active"}
INSTALLED |= {"verl"} if has("verl", "tensordict", "ray") else set()
INSTALLED |= {"trl"} if has("trl", "transformers") else set()


def run(program: str, **environment: str) -> dict[str, set[str]]:
    """The contenders that were timed, by case; the program itself checks their results."""
    command = [sys.executable, str(BENCHES / program), "--quick", "--json", "--device", "cpu"]
    finished = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    lines = [json.loads(line) for line in finished.stdout.splitlines()]
    timed: dict[str, set[str]] = {}
    for line in lines:
        if "peer" in line:
            timed.setdefault(line["case"], set()).add(line["peer"])
    return timed


def test_from_log_probs() -> None:
    timed = run("loss_from_log_probs.py")
    cases = ["f32/padded+mask/dense", "f32/padded+mask/inactive-80"]
    assert timed == {case: INSTALLED for case in cases}


def test_from_logits() -> None:
    timed = run("loss_from_logits.py", TRITON_INTERPRET="1")
    installed = INSTALLED | ({"liger"} if has("liger_kernel", "triton") else set())
    assert timed == {
        "bf16/dense": installed,
        "bf16/inactive-80": installed,
        "bf16/forward": installed - {"liger", "qae-active"},
    }


@pytest.mark.skipif(not has("verl", "tensordict"), reason="verl is not installed")
def test_verls_advantages() -> None:
    command = [sys.executable, str(BENCHES / "verl_advantages.py"), "--groups", "4", "--calls", "1"]
    report = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert report["python"].startswith("verl ") and report["ratio"] > 0
