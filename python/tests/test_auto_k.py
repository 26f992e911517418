"""The automatic K and its schedules: their formulas, their stored form, what they refuse."""

from __future__ import annotations

import copy
import json
import math
import pickle
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

import qae
from qae import AutoK, KSchedule

PAGE = (Path(__file__).parents[2] / "docs" / "auto-k.md").read_text()
ENTROPIES = [0.45, 0.62, 0.3, 0.31, 1.7, 0.05, 0.36, 0.2, 0.4, 2.5, 5.0]


def ks(auto_k: AutoK, entropies: list[float]) -> list[float]:
    return [auto_k.step(entropy).k for entropy in entropies]


@pytest.mark.parametrize("target", [{}, {"target_share": 1.1}, {"target_entropy": 0.3}])
def test_steps_follow_the_formula(target: dict[str, float]) -> None:
    auto_k = AutoK(initial_k=0.3, gain=0.2, min_k=0.15, max_k=0.55, **target)
    assert (auto_k.k, auto_k.steps) == (0.3, 0)
    share = target.get("target_share", 0.8)
    wanted = target.get("target_entropy", share * ENTROPIES[0])
    assert auto_k.target_entropy == target.get("target_entropy")
    k, held = 0.3, set()
    for number, entropy in enumerate(ENTROPIES, start=1):
        free = k + 0.2 * math.log(wanted / entropy)
        before, k = k, min(max(free, 0.15), 0.55)
        step = auto_k.step(entropy)
        assert math.isclose(step.k, k, rel_tol=1e-14)
        assert (step.step, step.entropy, step.gain) == (number, entropy, 0.2)
        assert math.isclose(step.previous_k, before, rel_tol=1e-14)
        assert step.target_entropy == auto_k.target_entropy == wanted
        assert step.held_at == ("min" if free < k else "max" if free > k else None)
        assert (auto_k.k, auto_k.steps) == (step.k, number)
        held.add(step.held_at)
        k = step.k
    assert held == {"min", "max", None}


def test_every_k_is_one_that_advantages_take() -> None:
    auto_k = AutoK()
    for k in ks(auto_k, ENTROPIES):
        qae.advantages(torch.tensor([0.0, 1.0, 1.0, 0.0]), 4, k=k)


def test_the_log_line() -> None:
    step = AutoK().step(0.45)
    assert str(step) in PAGE.splitlines()
    assert "k=0.377685644868579" in repr(step) and "_line" not in repr(step)
    low = AutoK(target_entropy=1e-9)
    assert str(low.step(0.5)).endswith(", held at min_k")


@pytest.mark.parametrize("at", range(len(ENTROPIES) + 1))
def test_a_resumed_controller_continues_bit_for_bit(at: int) -> None:
    straight = AutoK(gain=0.07)
    expected = ks(straight, ENTROPIES)
    stopped = AutoK(gain=0.07)
    ks(stopped, ENTROPIES[:at])
    loaded = AutoK(initial_k=0.2, target_entropy=9.0)
    loaded.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
    resumed = [loaded, pickle.loads(pickle.dumps(stopped)), copy.deepcopy(stopped)]
    for auto_k in resumed:
        assert auto_k == stopped and repr(auto_k) == repr(stopped)
        assert ks(auto_k, ENTROPIES[at:]) == expected[at:]
        assert auto_k == straight
        assert (auto_k == stopped) == (at == len(ENTROPIES)), "no state is shared"


def test_the_state_is_what_rust_stores() -> None:
    """The JSON of the page is written by Rust (``tests/auto_k.rs``)."""
    (text,) = re.findall(r"```json\n(.*?)\n```", PAGE)
    auto_k = AutoK(target_entropy=3.0)
    auto_k.load_state_dict(json.loads(text))
    assert json.dumps(auto_k.state_dict(), separators=(",", ":")) == text
    assert auto_k.k == json.loads(text)["k"] and auto_k.steps == 1
    same = AutoK()
    same.step(0.45)
    # Logarithms differ in the last place between platforms.
    assert math.isclose(auto_k.k, same.k, rel_tol=1e-15)
    assert auto_k.state_dict() | {"k": same.k} == same.state_dict()
    assert AutoK(target_entropy=0.3).state_dict()["config"]["target"] == {"nats": 0.3}


def test_the_block_of_the_page_runs() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    command = [sys.executable, "-c", block]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout.strip() in PAGE.splitlines()


@pytest.mark.parametrize(
    "entropy",
    [
        numpy.float64(0.5),
        numpy.float32(0.5),
        torch.tensor(0.5),
        torch.tensor(0.5, dtype=torch.float64, requires_grad=True),
        torch.tensor(0.5, dtype=torch.bfloat16),
        Fraction(1, 2),
    ],
)
def test_numbers_of_all_kinds(entropy: Any) -> None:
    auto_k, same = AutoK(), AutoK()
    assert auto_k.step(entropy) == same.step(0.5)
    assert auto_k == same and type(auto_k.k) is float


def test_an_entropy_of_0_gives_the_largest_k() -> None:
    auto_k = AutoK()
    auto_k.step(1)
    assert auto_k.step(0).k == 0.6


@pytest.mark.parametrize(
    ("entropy", "error", "message"),
    [
        (math.nan, ValueError, "entropy: expected a finite number of nats, at least 0, found NaN"),
        (math.inf, ValueError, "entropy: .*, found inf"),
        (-0.1, ValueError, r"entropy: .*, found -0\.1"),
        pytest.param(10**400, ValueError, "entropy: .*, found a larger one", id="10**400"),
        (torch.tensor(math.nan), ValueError, "entropy: .*, found NaN"),
        (True, TypeError, "entropy: expected a number, found bool"),
        (numpy.bool_(True), TypeError, "entropy: expected a number, found bool"),
        (torch.tensor(True), TypeError, r"entropy: .* shape \[\] and dtype torch.bool"),
        ("0.5", TypeError, "entropy: expected a number, found str"),
        (None, TypeError, "entropy: expected a number, found NoneType"),
        (1j, TypeError, "entropy: expected a number, found complex"),
        (torch.tensor([0.5]), TypeError, r"entropy: .* shape \[1\] and dtype torch.float32"),
        (numpy.array([0.5]), TypeError, "entropy: expected a number, found ndarray"),
    ],
)
@pytest.mark.parametrize("is_first", [True, False])
def test_bad_entropies_change_nothing(
    is_first: bool, entropy: Any, error: type[Exception], message: str
) -> None:
    auto_k = AutoK()
    if not is_first:
        auto_k.step(0.7)
    before = auto_k.state_dict()
    with pytest.raises(error, match=f"^{message}") as caught:
        auto_k.step(entropy)
    assert "\n" not in str(caught.value)
    assert auto_k.state_dict() == before


def test_a_first_entropy_of_0_is_no_target() -> None:
    auto_k = AutoK()
    with pytest.raises(ValueError, match=r"^initial_entropy: .*0\.8 is the target, found 0"):
        auto_k.step(0.0)
    assert auto_k == AutoK()


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"initial_k": 0.7}, ValueError, r"initial_k: expected a number in \[0.1, 0.6\], found"),
        ({"initial_k": math.nan}, ValueError, "initial_k"),
        ({"min_k": 0.0}, ValueError, r"min_k: expected a number in \(0, 1\), found 0"),
        ({"max_k": 1.0}, ValueError, "max_k"),
        ({"min_k": 0.5, "max_k": 0.4}, ValueError, "min_k: expected at most max_k, 0.4, found 0.5"),
        ({"gain": 0.0}, ValueError, "gain: expected a finite number above 0, found 0"),
        ({"gain": math.inf}, ValueError, "gain"),
        ({"target_share": -1.0}, ValueError, "target_share: expected a finite number above 0"),
        ({"target_share": math.nan}, ValueError, "target_share"),
        ({"target_entropy": 0}, ValueError, "target_entropy: expected a finite number above 0"),
        (
            {"target_entropy": 0.3, "target_share": 0.8},
            ValueError,
            "target_entropy: expected None with target_share=0.8, found 0.3",
        ),
        ({"gain": "0.1"}, TypeError, "gain: expected a number, found str"),
        ({"max_k": True}, TypeError, "max_k: expected a number, found bool"),
    ],
)
def test_bad_parameters_are_refused_by_name(
    parameters: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^{message}") as caught:
        AutoK(**parameters)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0.9}, r"state: k: expected a number in \[0.1, 0.6\], found 0.9"),
        ({"k": "0.3"}, "state: invalid type: string"),
        ({"k": math.nan}, "state: expected JSON, found "),
        ({"k": torch.tensor(0.3)}, "state: expected JSON, found .*Tensor"),
        ({"steps": 0}, "state: initial_entropy: expected a number of nats exactly where steps"),
        ({"steps": -1}, "state: invalid value: integer `-1`"),
        ({"initial_entropy": 0.0}, "state: initial_entropy: "),
        ({"initial_entropy": None}, "state: initial_entropy: "),
        ({"config": {"gian": 0.1}}, "state: unknown field `gian`"),
        ({"momentum": 0.1}, "state: unknown field `momentum`"),
    ],
)
def test_states_that_cannot_be_are_refused(change: dict[str, Any], message: str) -> None:
    auto_k = AutoK()
    auto_k.step(0.7)
    before = auto_k.state_dict()
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        auto_k.load_state_dict(before | change)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="^state: missing field `k`"):
        auto_k.load_state_dict({"config": {}})
    with pytest.raises(TypeError, match="^state_dict: expected a mapping, found str"):
        auto_k.load_state_dict(json.dumps(before))  # type: ignore[arg-type]
    assert auto_k.state_dict() == before


def test_controllers_are_equal_by_state() -> None:
    assert AutoK() == AutoK(target_share=0.8) != AutoK(target_share=0.7)
    assert AutoK() != AutoK().state_dict()
    with pytest.raises(TypeError, match="unhashable"):
        hash(AutoK())


def test_schedules() -> None:
    constant = KSchedule.constant(0.3)
    assert [constant.k(step) for step in (0, 7)] == [0.3, 0.3]
    linear = KSchedule.linear(0.6, 0.2, 100)
    assert [linear.k(step) for step in (0, 50, 100, 999)] == [0.6, 0.4, 0.2, 0.2]
    assert math.isclose(linear.k(25), 0.5)
    phases = KSchedule.two_phase(0.4, 0.6, 50)
    assert [phases.k(step) for step in (0, 49, 50)] == [0.4, 0.4, 0.6]
    assert len({constant, linear, phases, KSchedule.constant(0.3)}) == 3
    assert linear != phases and linear != linear.to_dict()
    assert repr(linear) == "KSchedule.linear(0.6, 0.2, 100)"


@pytest.mark.parametrize(
    "schedule",
    [
        KSchedule.constant(0.1 + 0.2),
        KSchedule.linear(0.6, 0.2, 100),
        KSchedule.two_phase(0.4, 0.6, 50),
    ],
)
def test_schedules_are_stored_as_rust_does(schedule: KSchedule) -> None:
    stored = json.dumps(schedule.to_dict())
    page = [json.loads(text) for text in re.findall(r'`(\{"kind": .*?\})`', PAGE)]
    assert len(page) == 3 and schedule.to_dict().keys() in [fields.keys() for fields in page]
    copies = [
        KSchedule(**json.loads(stored)),
        pickle.loads(pickle.dumps(schedule)),
        copy.deepcopy(schedule),
    ]
    for same in copies:
        assert same == schedule and hash(same) == hash(schedule)
        assert [same.k(step) for step in range(101)] == [schedule.k(step) for step in range(101)]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: KSchedule.constant(1.0), ValueError, r"k: expected a number in \(0, 1\), found 1"),
        (lambda: KSchedule.constant(math.nan), ValueError, "k: expected a finite number, found"),
        (lambda: KSchedule.constant("x"), TypeError, "k: expected a number, found str"),
        (lambda: KSchedule.linear(0.0, 0.2, 9), ValueError, "from: expected a number in"),
        (lambda: KSchedule.linear(0.6, 0.2, 0), ValueError, "steps: expected at least 1 rollout"),
        (lambda: KSchedule.linear(0.6, 0.2, -1), ValueError, "steps: expected an int in"),
        (lambda: KSchedule.linear(0.6, 0.2, 1.5), TypeError, "steps: expected an int, found float"),
        (lambda: KSchedule.two_phase(0.4, 2.0, 9), ValueError, "second: expected a number in"),
        (lambda: KSchedule("cosine", k=0.4), ValueError, "schedule: unknown variant `cosine`"),
        (lambda: KSchedule("constant"), ValueError, "schedule: missing field `k`"),
        (lambda: KSchedule("constant", k=0.4, to=0.5), ValueError, "schedule: unknown field `to`"),
        (lambda: KSchedule.constant(0.4).k(-1), ValueError, "step: expected an int in"),
        (lambda: KSchedule.constant(0.4).k(2.0), TypeError, "step: expected an int, found float"),
    ],
)
def test_bad_schedules_are_refused_by_name(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}") as caught:
        make()
    assert "\n" not in str(caught.value)
