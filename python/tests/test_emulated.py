"""The CUDA kernels, in the emulator, against the Rust implementation: pointers, strides, offsets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from batches import CPU, LAYOUTS, Batch, near_policy, parameter, random_batch
from conftest import emulator_is_missing
from torch import Tensor

import qae
from qae import _native, _qae
from qae.testing import emulated_kernels

pytestmark = pytest.mark.usefixtures("poisoned")


@pytest.fixture(autouse=True)
def emulator() -> None:
    if reason := emulator_is_missing():
        pytest.skip(reason)


def assert_near(found: Tensor, expected: Tensor) -> None:
    """float32 kernels, rounded to the dtype, against float64 rounded likewise."""
    assert found.dtype == expected.dtype
    largest = expected.double().abs().max().clamp(min=1e-30)
    tolerance = max(4e-6, torch.finfo(found.dtype).eps)
    assert (found.double() - expected.double()).abs().max() <= tolerance * largest


def from_logits(batch: Batch, layout: str, **options: Any) -> tuple[Tensor, Tensor, qae.Metrics]:
    logits = batch.put(batch.logits, layout).requires_grad_()
    loss, metrics = qae.policy_loss_from_logits(
        logits,
        batch.put(batch.token_ids, layout, CPU, -100),
        batch.put(batch.old, layout),
        rewards=batch.rewards,
        groups=4,
        normalizer="batch",
        temperature=0.8,
        **batch.places(layout),
        **options,
    )
    (gradient,) = torch.autograd.grad(loss, logits)
    return loss.detach(), gradient, metrics


@pytest.mark.parametrize("row_policy", ["auto", "cluster", "block"])
@pytest.mark.parametrize("vocab", [8, 333, 4096, 20_000])
def test_row_policies(row_policy: Any, vocab: int) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        batch = near_policy(random_batch(1, dtype=dtype, vocab=vocab), 0.8)
        expected = from_logits(batch, "strided")
        with emulated_kernels(row_policy):
            found = from_logits(batch, "strided")
        for one, two in zip(found[:2], expected[:2]):
            assert_near(one, two)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_compute_capability_8(layout: str) -> None:
    batch = near_policy(random_batch(2, vocab=70_000), 0.8)
    expected = from_logits(batch, layout)
    with emulated_kernels(sm80=True):
        found = from_logits(batch, layout)
    for one, two in zip(found[:2], expected[:2]):
        assert_near(one, two)


@pytest.mark.parametrize("rows", [1, 2, 37, 300])
def test_many_rows(rows: int) -> None:
    """Counts that fill no block, one, and several."""
    g = torch.Generator().manual_seed(rows)
    log_prob = torch.randn(rows, 65, generator=g) - 2
    old = log_prob + 0.2 * torch.randn(rows, 65, generator=g)
    mask = torch.rand(rows, 65, generator=g) > 0.3
    rewards = torch.rand(2 * rows, generator=g)
    ids = torch.randint(0, rows // 3 + 1, (2 * rows,), generator=g)
    index = torch.randperm(2 * rows, generator=g)[:rows]

    def compute() -> tuple[Tensor, Tensor, qae.Metrics]:
        leaf = parameter(log_prob)
        loss, metrics = qae.policy_loss(
            leaf,
            old,
            rewards=rewards,
            groups=ids,
            response_index=index,
            mask=mask,
            normalizer="batch",
            aggregation="seq-mean-token-mean",
        )
        (gradient,) = torch.autograd.grad(loss, leaf)
        return loss.detach(), gradient, metrics

    expected = compute()
    with emulated_kernels():
        found = compute()
    for one, two in zip(found[:2], expected[:2]):
        assert_near(one, two)
    assert torch.equal(found[2].active_rows, expected[2].active_rows)
    assert found[2].to_dict() == pytest.approx(expected[2].to_dict(), rel=1e-5, abs=1e-6)


def test_the_kernels_really_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens are counted by the kernel for it."""
    called: list[str] = []

    def watch(name: str) -> None:
        native = getattr(_qae, name)

        def spy(*arguments: Any) -> None:
            called.append(name)
            native(*arguments)

        monkeypatch.setattr(_qae, name, spy)

    watch("loss_from_log_probs")
    watch("token_counts")
    log_prob = torch.full((4, 70), -1.0)
    arguments: dict[str, Any] = {"advantages": torch.ones(4), "normalizer": "batch"}
    with emulated_kernels():
        loss, _ = qae.policy_loss(log_prob, log_prob, **arguments)
    assert loss == -1.0 and called == ["token_counts", "loss_from_log_probs"]


def test_a_workspace_is_zeroed_and_of_one_call() -> None:
    outputs = {"words": torch.zeros(1)}
    found = [_native._with_workspace(CPU, {}, outputs, lambda *_: 300) for _ in range(2)]
    first, second = (arguments["workspace"] for arguments in found)
    assert isinstance(first, Tensor) and isinstance(second, Tensor)
    assert first.shape == (300,) and first.dtype == torch.uint8 and (first == 0).all()
    assert first.data_ptr() != second.data_ptr() and outputs.keys() == {"words"}
    assert _native._with_workspace(CPU, {}, outputs, lambda *_: 0) is outputs


def test_what_a_device_cannot_do_is_refused_or_counted() -> None:
    log_prob = torch.full((2, 3), -1.0)
    with emulated_kernels():
        with pytest.raises((TypeError, ValueError), match="^log_prob: expected .*float32"):
            qae.policy_loss(
                log_prob.double(), log_prob.double(), advantages=torch.ones(2), normalizer=1
            )
        # The host sees no index on a device: it is counted there.
        loss, metrics = qae.policy_loss(
            log_prob,
            log_prob,
            rewards=torch.tensor([1.0, 0.0]),
            groups=2,
            response_index=torch.tensor([0, 7]),
            normalizer=6,
        )
    assert loss.isfinite() and metrics.to_dict()["out_of_range"] == 1
    with pytest.raises(ValueError, match="found 1 that were left out"):
        metrics.check()


def test_it_ends_with_its_block() -> None:
    with pytest.raises(KeyError), emulated_kernels():
        assert _native.runs_emulated()
        raise KeyError
    assert not _native.runs_emulated()
    with emulated_kernels():
        message = "expected no emulated_kernels around"
        with pytest.raises(RuntimeError, match=message), emulated_kernels():
            pass
        assert _native.runs_emulated()
    with pytest.raises(ValueError, match="row_policy"), emulated_kernels("rows"):  # type: ignore[arg-type]
        pass
    with pytest.raises(ValueError, match="^row_policy: expected auto or block on compute"):
        emulated_kernels("cluster", sm80=True).__enter__()
    assert not _native.runs_emulated()
