"""``qae.advantages`` against the formulas in plain torch and exact arithmetic."""

from __future__ import annotations

from fractions import Fraction
from math import ceil
from typing import Any

import oracle
import pytest
import torch
from conftest import Backend

import qae

pytestmark = pytest.mark.usefixtures("poisoned")

IDS = {
    "neighbors": [i // 6 for i in range(24)],
    "interleaved": [i % 4 for i in range(24)],
    "ragged": [0] * 9 + [1] + [2] * 6 + [3] * 8,
    "shuffled": [(7 * i * i + 3) % 5 for i in range(24)],
}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"k": 0.8},
    {"k": 0.2, "interpolation": "linear"},
    {"baseline": "mean"},
    {"baseline": "leave_one_out", "scale": "std_population"},
    {"scale": "none"},
    {"epsilon": 1e-2, "singleton": "zero"},
    {"gate": "two_regime", "k": 0.6},
    {"gate": "positive_mask", "success_threshold": 0.3},
    {"gate": "negative_mask", "interpolation": "linear"},
]


def rewards_of(kind: str) -> torch.Tensor:
    g = torch.Generator().manual_seed(3)
    if kind == "binary":
        return torch.randint(0, 2, (24,), generator=g).float()
    return (
        torch.rand(24, generator=g).mul(8).round().div(8)
        if kind == "ties"
        else torch.rand(24, generator=g)
    )


@pytest.mark.parametrize("kind", ["binary", "ties", "continuous"])
@pytest.mark.parametrize("ids", IDS)
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o.values())))
def test_against_the_formulas(
    backend: Backend, kind: str, ids: str, options: dict[str, Any]
) -> None:
    rewards = rewards_of(kind)
    advantage, baseline = oracle.advantages(rewards, list(IDS[ids]), **options)
    out = qae.advantages(rewards.to(backend.device), IDS[ids], **options)
    # Statistics are float64 on every backend, results float32.
    for found, expected in [(out.advantage, advantage), (out.baseline, baseline)]:
        bound = 2.0**-23 * expected.abs() + 1e-12
        assert ((found.cpu().double() - expected).abs() <= bound).all()
    assert torch.equal(out.active.cpu(), advantage != 0)
    counts = out.metrics.to_dict()
    assert counts["num_groups"] == len(set(IDS[ids]))
    assert counts["positive"] == (advantage > 0).sum()
    assert counts["zero"] == (advantage == 0).sum()
    assert counts["negative"] == (advantage < 0).sum()
    active = qae.active_responses(rewards.to(backend.device), IDS[ids], **options)
    assert torch.equal(active, out.active)


@pytest.mark.parametrize("n", [4, 5, 7, 10, 16])
def test_the_rank_is_that_of_the_decimal(backend: Backend, n: int) -> None:
    """The baseline of distinct rewards tells which of them it is."""
    rewards = torch.arange(n, device=backend.device).float()
    for thousandths in range(50, 1000, 50):
        k = thousandths / 1000
        expected = ceil(Fraction(thousandths, 1000) * n) - 1
        assert qae.advantages(rewards, n, k=k).baseline[0] == expected, (k, n)


def test_hard_and_easy_groups(backend: Backend) -> None:
    """At K = 0.4: one success in four is hard, three are easy, two are hard (p <= 1 - K)."""
    rewards = torch.tensor(
        [1, 0, 0, 0] + [1, 1, 1, 0] + [1, 1, 0, 0] + [1, 1, 1, 1], device=backend.device
    )
    out = qae.advantages(rewards, 4)
    counts = out.metrics.to_dict()
    assert (counts["hard_groups"], counts["easy_groups"]) == (2, 2)
    assert counts["zero_variance_groups"] == 1
    signs = out.advantage.sign().int().tolist()
    assert signs == [1, 0, 0, 0] + [0, 0, 0, -1] + [1, 1, 0, 0] + [0, 0, 0, 0]


@pytest.mark.parametrize("value", [0.7, 0.1, -1e30, 3.3e-39])
def test_equal_rewards_have_advantage_0(backend: Backend, value: float) -> None:
    rewards = torch.full((7,), value, device=backend.device)
    for options in OPTIONS:
        out = qae.advantages(rewards, 7, **options)
        assert (out.advantage == 0).all() and not out.active.any()


@pytest.mark.parametrize("dtype", [torch.int64, torch.float64, torch.bfloat16, torch.float16])
def test_rewards_of_any_dtype(backend: Backend, dtype: torch.dtype) -> None:
    rewards = rewards_of("binary").to(backend.device)
    expected = qae.advantages(rewards, 4)
    found = qae.advantages(rewards.to(dtype), 4)
    assert torch.equal(found.advantage, expected.advantage)


def test_strided_rewards_with_a_history(backend: Backend) -> None:
    rewards = torch.full((24, 3), torch.nan, device=backend.device)
    rewards[:, 1] = rewards_of("ties").to(backend.device)
    view = rewards.requires_grad_()[:, 1]
    out = qae.advantages(view, 4)
    expected = qae.advantages(view.detach().clone(), 4)
    assert torch.equal(out.advantage, expected.advantage) and not out.advantage.requires_grad


def test_rewards_that_are_not_finite(backend: Backend) -> None:
    rewards = torch.tensor([torch.nan, 0.0, 1.0, torch.inf, torch.nan, -torch.inf, 1.0, 1.0])
    out = qae.advantages(rewards.to(backend.device), 4)
    advantage, _ = oracle.advantages(rewards, [0] * 4 + [1] * 4)
    assert torch.allclose(out.advantage.cpu().double(), advantage)
    assert out.metrics.to_dict()["nonfinite_rewards"] == 4


def test_an_empty_batch(backend: Backend) -> None:
    out = qae.advantages(torch.zeros(0, device=backend.device), 4)
    assert out.advantage.shape == out.active.shape == (0,)
    assert out.metrics.to_dict()["num_groups"] == 0
    assert qae.advantages(torch.zeros(0, device=backend.device), []).baseline.shape == (0,)
