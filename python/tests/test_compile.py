"""``torch.compile`` traces through the operations, whatever the lengths of the batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import qae

BACKENDS = ["aot_eager", "inductor"]


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()


def batch(rows: int, width: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(rows * 100 + width)
    log_prob = torch.randn(rows, width, generator=g) - 2
    return {
        "log_prob": log_prob.requires_grad_(),
        "old": log_prob.detach() + 0.2 * torch.randn(rows, width, generator=g),
        "rewards": torch.randint(0, 2, (rows,), generator=g).float(),
        "mask": torch.rand(rows, width, generator=g) > 0.2,
        "logits": torch.randn(rows, width, 13, generator=g).requires_grad_(),
        "token_ids": torch.randint(0, 13, (rows, width), generator=g),
    }


def gradient(
    function: Callable[..., tuple[Tensor, qae.Metrics]], leaf: Tensor, *arguments: Any
) -> tuple[Tensor, Tensor, qae.Metrics]:
    leaf.grad = None
    loss, metrics = function(*arguments)
    loss.backward()
    assert leaf.grad is not None
    return loss.detach(), leaf.grad.clone(), metrics


def assert_same(
    found: tuple[Tensor, Tensor, qae.Metrics], expected: tuple[Tensor, Tensor, qae.Metrics]
) -> None:
    assert torch.allclose(found[0], expected[0], rtol=1e-6)
    assert torch.allclose(found[1], expected[1], rtol=1e-5, atol=1e-8)
    assert isinstance(found[2], qae.Metrics)
    one, two = found[2].to_dict(), expected[2].to_dict()
    assert one == pytest.approx(two, rel=1e-6, abs=1e-9)


def log_prob_step(
    log_prob: Tensor, old: Tensor, rewards: Tensor, mask: Tensor, count: float | Tensor | str
) -> tuple[Tensor, qae.Metrics]:
    loss, metrics = qae.policy_loss(
        log_prob * 1.1,
        old,
        rewards=rewards,
        groups=4,
        mask=mask,
        normalizer=count,  # type: ignore[arg-type]
        objective=qae.Objective.clip(dual_clip=3.0),
        k=0.3,
    )
    return loss * 2.0, metrics


@pytest.mark.parametrize("name", BACKENDS)
def test_policy_loss(name: str) -> None:
    counter = CompileCounterWithBackend(name)
    compiled = torch.compile(log_prob_step, fullgraph=True, backend=counter)
    for i, rows in enumerate([4, 8, 12, 4]):
        b = batch(rows, 6 + 3 * i)
        arguments = (b["log_prob"], b["old"], b["rewards"], b["mask"], 17 + i)
        expected = gradient(log_prob_step, b["log_prob"], *arguments)
        assert_same(gradient(compiled, b["log_prob"], *arguments), expected)
    # Static, then with symbolic sizes.
    assert counter.frame_count <= 2


def test_a_normalizer_that_changes_is_no_recompilation() -> None:
    """But a float, of which torch compiles every value anew."""
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(log_prob_step, fullgraph=True, backend=counter)
    b = batch(8, 6)
    tensors = [torch.tensor(12.0), torch.tensor(13.5), torch.tensor(40.0)]
    for counts, most in [([40, 41, 39, 17], 2), (tensors, 1), (["batch", "batch"], 1)]:
        counter.frame_count = 0
        for count in counts:
            arguments = (b["log_prob"], b["old"], b["rewards"], b["mask"], count)
            expected = gradient(log_prob_step, b["log_prob"], *arguments)
            assert_same(gradient(compiled, b["log_prob"], *arguments), expected)
        assert counter.frame_count <= most


def test_packed_with_groups_and_index() -> None:
    groups = qae.Groups.from_ids([0, 1, 0, 1, 2, 2])

    def step(
        log_prob: Tensor, old: Tensor, rewards: Tensor, offsets: Tensor, index: Tensor
    ) -> tuple[Tensor, qae.Metrics]:
        return qae.policy_loss(
            log_prob,
            old,
            rewards=rewards,
            groups=groups,
            response_index=index,
            offsets=offsets,
            normalizer=20,
            kl=qae.Kl("k3", 0.1),
            ref_log_prob=old,
            aggregation="seq-mean-token-mean",
        )

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(step, fullgraph=True, backend=counter)
    rewards = torch.tensor([0.0, 1.0, 1.0, 0.0, 0.5, 0.0])
    for slots, rows in [(10, 3), (14, 4), (21, 5), (9, 2)]:
        log_prob = torch.linspace(-2.0, -1.0, slots).requires_grad_()
        offsets = torch.linspace(0, slots, rows + 1).long()
        arguments = (log_prob, log_prob.detach() - 0.1, rewards, offsets, torch.arange(rows))
        expected = gradient(step, log_prob, *arguments)
        assert_same(gradient(compiled, log_prob, *arguments), expected)
    assert counter.frame_count <= 2


def logits_step(
    logits: Tensor, token_ids: Tensor, old: Tensor, rewards: Tensor, mask: Tensor
) -> tuple[Tensor, qae.Metrics]:
    return qae.policy_loss_from_logits(
        logits + 1.0,
        token_ids,
        old,
        rewards=rewards,
        groups=4,
        mask=mask,
        normalizer="batch",
        temperature=0.8,
        entropy_coef=0.01,
    )


@pytest.mark.parametrize("name", BACKENDS)
def test_policy_loss_from_logits(name: str) -> None:
    counter = CompileCounterWithBackend(name)
    compiled = torch.compile(logits_step, fullgraph=True, backend=counter)
    for rows, width in [(4, 6), (8, 9), (12, 5), (4, 7)]:
        b = batch(rows, width)
        arguments = (b["logits"], b["token_ids"], b["old"], b["rewards"], b["mask"])
        expected = gradient(logits_step, b["logits"], *arguments)
        assert_same(gradient(compiled, b["logits"], *arguments), expected)
    assert counter.frame_count <= 2


@pytest.mark.parametrize("name", BACKENDS)
def test_log_probs_and_entropy(name: str) -> None:
    def step(logits: Tensor, token_ids: Tensor, mask: Tensor) -> Tensor:
        log_prob, entropy = qae.log_probs_and_entropy(
            logits * 2.0, token_ids, temperature=0.7, mask=mask
        )
        return (log_prob * 3.0 + entropy.square()).sum()

    counter = CompileCounterWithBackend(name)
    compiled = torch.compile(step, fullgraph=True, backend=counter)
    for rows, width in [(4, 6), (8, 9), (12, 5), (4, 7)]:
        b = batch(rows, width)
        arguments = (b["logits"], b["token_ids"], b["mask"])
        (expected,) = torch.autograd.grad(step(*arguments), b["logits"])
        (found,) = torch.autograd.grad(compiled(*arguments), b["logits"])
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-7)
    assert counter.frame_count <= 2


@pytest.mark.parametrize("groups", [4, qae.Groups.from_ids([i % 3 for i in range(12)])])
def test_advantages(groups: int | qae.Groups) -> None:
    def step(rewards: Tensor) -> tuple[Tensor, Tensor, qae.GroupMetrics]:
        out = qae.advantages(rewards * 2.0, groups, k=0.3, success_threshold=1.0)
        return out.advantage, qae.active_responses(rewards * 2.0, groups, k=0.3), out.metrics

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    rewards = batch(12, 2)["rewards"]
    found, expected = compiled(rewards), step(rewards)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
    assert found[2].to_dict() == expected[2].to_dict()


def test_without_gradient() -> None:
    compiled = torch.compile(logits_step, fullgraph=True, backend="aot_eager")
    b = batch(4, 6)
    with torch.no_grad():
        arguments = (b["logits"], b["token_ids"], b["old"], b["rewards"], b["mask"])
        loss, metrics = compiled(*arguments)
        expected, _ = logits_step(*arguments)
    assert not loss.requires_grad and torch.equal(loss, expected)
    assert metrics.log_prob is not None


def test_what_needs_the_host_is_refused_by_name() -> None:
    ids = torch.tensor([0, 1, 0, 1])
    compiled = torch.compile(
        lambda rewards: qae.advantages(rewards, ids).advantage, fullgraph=True, backend="eager"
    )
    with pytest.raises(Exception, match=r"groups: expected a qae\.Groups or a group size within"):
        compiled(torch.rand(4))
    b = batch(4, 6)
    compiled_step = torch.compile(
        lambda logits: qae.policy_loss_from_logits(
            logits * 1.0,
            b["token_ids"],
            b["old"],
            advantages=b["rewards"],
            normalizer=1,
            inplace=True,
        )[0],
        fullgraph=True,
        backend="eager",
    )
    with pytest.raises(Exception, match=r"inplace: expected False within torch\.compile"):
        compiled_step(b["logits"])
