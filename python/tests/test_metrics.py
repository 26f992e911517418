"""``qae.Metrics`` and ``qae.GroupMetrics``."""

from __future__ import annotations

import math
import pickle
from typing import Any

import pytest
import torch
from conftest import Backend
from torch.utils import _pytree as pytree

import qae
from qae import _qae

pytestmark = pytest.mark.usefixtures("poisoned")

COMMON = {
    "loss",
    "pg_loss",
    "kl_loss",
    "positive",
    "zero",
    "negative",
    "active",
    "tokens",
    "active_tokens",
    "clip_fraction",
    "clip_fraction_above",
    "clip_fraction_below",
    "dual_clip_fraction",
    "approx_kl",
    "min_ratio",
    "max_ratio",
    "nonfinite_tokens",
    "out_of_range",
    "num_groups",
    "hard_groups",
    "easy_groups",
    "zero_variance_groups",
    "nonfinite_rewards",
}
ENTROPIES = {"entropy", "entropy_positive", "entropy_zero", "entropy_negative"}


def metrics_of(backend: Backend, **options: Any) -> qae.Metrics:
    """Two groups of four: one hard with a success, one whose rewards are equal."""
    log_prob = torch.log(torch.tensor([0.5, 0.25])).expand(8, 2).contiguous().to(backend.device)
    rewards = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0], device=backend.device)
    arguments: dict[str, Any] = {"rewards": rewards, "groups": 4, "normalizer": "batch"}
    return qae.policy_loss(log_prob, log_prob - math.log(2.0), **(arguments | options))[1]


def test_names_and_values(backend: Backend) -> None:
    values = metrics_of(backend).to_dict()
    assert COMMON <= set(values) and not ENTROPIES & set(values)
    assert all(type(value) in (int, float) for value in values.values())
    expected = {
        "positive": 1,
        "zero": 7,
        "negative": 0,
        "active": 1,
        "tokens": 16,
        "active_tokens": 2,
        "clip_fraction": 2 / 16,
        "clip_fraction_above": 2 / 16,
        "clip_fraction_below": 0.0,
        "approx_kl": pytest.approx(-math.log(2.0), rel=1e-6),
        "min_ratio": pytest.approx(2.0, rel=1e-6),
        "max_ratio": pytest.approx(2.0, rel=1e-6),
        "num_groups": 2,
        "hard_groups": 1,
        "easy_groups": 1,
        "zero_variance_groups": 1,
        # 2 tokens of A = 1.5 / (0.5 / ...), clipped at 1.28; one success in four has A = 2.
        "loss": pytest.approx(-1.28 * 2.0 * 2 / 16, rel=1e-5),
    }
    rewards = torch.tensor([1.0, 0.0, 0.0, 0.0])
    assert 1.0 / rewards.std() == 2.0
    assert {name: values[name] for name in expected} == expected


def test_of_active_tokens(backend: Backend) -> None:
    metrics = metrics_of(backend, metrics_scope="active")
    values = metrics.to_dict()
    assert metrics.scope == "active"
    assert values["tokens"] == values["active_tokens"] == 2
    assert values["clip_fraction"] == 1.0


def test_tensors(backend: Backend) -> None:
    metrics = metrics_of(backend)
    assert metrics.words.dtype == torch.int64 and metrics.words.shape == (_qae.LOSS_WORDS,)
    assert metrics.active_rows.tolist() == [0] + [-1] * 7
    assert metrics.active_count.tolist() == [1]
    assert metrics.advantage is not None and metrics.baseline is not None
    assert metrics.baseline.tolist() == [0.0] * 4 + [1.0] * 4
    assert metrics.log_prob is None and metrics.entropy is None
    assert all(t.device == backend.device for t in metrics if isinstance(t, torch.Tensor))


def test_from_logits(backend: Backend) -> None:
    logits = torch.zeros(4, 2, 16, device=backend.device)
    _, metrics = qae.policy_loss_from_logits(
        logits,
        torch.zeros(4, 2, dtype=torch.int64, device=backend.device),
        torch.full((4, 2), -math.log(16.0), device=backend.device),
        rewards=torch.tensor([1.0, 0.0, 0.0, 0.0], device=backend.device),
        groups=4,
        normalizer="batch",
    )
    values = metrics.to_dict()
    assert COMMON | ENTROPIES <= set(values)
    for name in ("entropy", "entropy_positive", "entropy_zero"):
        assert values[name] == pytest.approx(math.log(16.0), rel=1e-6)
    assert metrics.words.shape == (_qae.LOGITS_WORDS,)
    assert metrics.log_prob is not None and metrics.entropy is not None
    assert torch.allclose(metrics.log_prob, -metrics.entropy)


def test_check_names_what_was_left_out(backend: Backend) -> None:
    metrics_of(backend).check()
    rewards = torch.tensor([math.nan, 1.0, 0.0, 0.0] * 2, device=backend.device)
    with pytest.raises(ValueError, match="^rewards: expected finite values in range, found 2"):
        metrics_of(backend, rewards=rewards).check()
    with pytest.raises(ValueError, match="^loss: expected a finite number"):
        words = torch.zeros(_qae.LOSS_WORDS, dtype=torch.int64)
        words[0] = torch.tensor([math.inf], dtype=torch.float64).view(torch.int64)[0]
        none = torch.zeros(0)
        qae.Metrics(words, None, None, none, none, "all").check()


def test_a_batch_without_tokens(backend: Backend) -> None:
    values = metrics_of(backend, lengths=torch.zeros(8).int().to(backend.device)).to_dict()
    assert values["tokens"] == 0 and values["loss"] == 0 and values["clip_fraction"] == 0


def test_they_are_tuples_of_tensors() -> None:
    """As trainers move, save and compile them."""
    metrics = metrics_of(Backend("cpu", torch.device("cpu")))
    leaves, spec = pytree.tree_flatten(metrics)
    assert isinstance(pytree.tree_unflatten(leaves, spec), qae.Metrics)
    assert pickle.loads(pickle.dumps(metrics)).to_dict() == metrics.to_dict()


def test_group_metrics(backend: Backend) -> None:
    rewards = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0], device=backend.device)
    assert qae.advantages(rewards, 4).metrics.to_dict() == {
        "num_groups": 2,
        "hard_groups": 1,
        "easy_groups": 1,
        "zero_variance_groups": 1,
        "positive": 1,
        "zero": 7,
        "negative": 0,
        "nonfinite_rewards": 0,
    }
