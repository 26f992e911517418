"""What only a GPU can show: streams, graphs, no synchronization, memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from batches import random_batch
from conftest import gpu_is_missing
from torch import Tensor

import qae

pytestmark = pytest.mark.skipif(gpu_is_missing() is not None, reason=str(gpu_is_missing()))

ROWS, WIDTH, VOCAB = 16, 64, 1000


@pytest.fixture
def no_synchronization() -> Iterator[None]:
    """Fails where the host waits for the device."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


def inputs(seed: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    log_prob = torch.randn(ROWS, WIDTH, generator=g) - 2
    found = {
        "log_prob": log_prob,
        "old_log_prob": log_prob + 0.2 * torch.randn(ROWS, WIDTH, generator=g),
        "rewards": torch.randint(0, 2, (ROWS,), generator=g).float(),
        "mask": torch.rand(ROWS, WIDTH, generator=g) > 0.2,
        "lengths": torch.randint(1, WIDTH + 1, (ROWS,), generator=g),
        "response_index": torch.randperm(ROWS, generator=g),
        "logits": torch.randn(ROWS, WIDTH, VOCAB, generator=g).bfloat16(),
        "token_ids": torch.randint(0, VOCAB, (ROWS, WIDTH), generator=g),
    }
    return {name: tensor.cuda() for name, tensor in found.items()}


GROUPS = qae.Groups.from_ids([i % 4 for i in range(ROWS)])


def from_log_probs(given: dict[str, Tensor], **options: Any) -> tuple[Tensor, Tensor]:
    """Loss and gradient."""
    names = ("rewards", "mask", "lengths", "response_index")
    log_prob = given["log_prob"].detach().requires_grad_()
    loss, _ = qae.policy_loss(
        log_prob,
        given["old_log_prob"],
        groups=GROUPS,
        **{name: given[name] for name in names},  # type: ignore[arg-type]
        **({"normalizer": "batch"} | options),
    )
    return loss.detach(), torch.autograd.grad(loss, log_prob)[0]


def from_logits(given: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    logits = given["logits"].detach().requires_grad_()
    loss, _ = qae.policy_loss_from_logits(
        logits,
        given["token_ids"],
        given["old_log_prob"],
        rewards=given["rewards"],
        groups=GROUPS,
        mask=given["mask"],
        normalizer="batch",
    )
    return loss.detach(), torch.autograd.grad(loss, logits)[0]


def entropies(given: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    logits = given["logits"].detach().requires_grad_()
    log_prob, entropy = qae.log_probs_and_entropy(logits, given["token_ids"], mask=given["mask"])
    return entropy.detach(), torch.autograd.grad((log_prob + entropy).sum(), logits)[0]


OPERATIONS = [from_log_probs, from_logits, entropies]
Operation = Callable[[dict[str, Tensor]], tuple[Tensor, Tensor]]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_nothing_waits_for_the_device(operation: Operation, no_synchronization: None) -> None:
    torch.cuda.set_sync_debug_mode("default")
    given = inputs(0)
    GROUPS.to("cuda")
    torch.cuda.set_sync_debug_mode("error")
    operation(given)
    qae.advantages(given["rewards"], GROUPS)
    from_log_probs(given, normalizer=given["mask"].sum())


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_current_stream(operation: Operation) -> None:
    """Its inputs are written late on the stream that is current."""
    given, late = inputs(1), inputs(2)
    expected = operation(late)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        for name, tensor in given.items():
            tensor.copy_(late[name], non_blocking=True)
        found = operation(given)
    torch.cuda.current_stream().wait_stream(stream)
    assert all(torch.equal(one, two) for one, two in zip(found, expected, strict=True))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_graphs(operation: Operation) -> None:
    given = inputs(3)
    GROUPS.to("cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            operation(given)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = operation(given)
    for seed in (4, 5):
        fresh = inputs(seed)
        for name, tensor in given.items():
            tensor.copy_(fresh[name])
        graph.replay()
        expected = operation(fresh)
        assert all(torch.equal(one, two) for one, two in zip(found, expected, strict=True))


def test_another_device_than_the_current() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU")
    given = inputs(6)
    expected = from_log_probs(given)
    found = from_log_probs({name: tensor.to("cuda:1") for name, tensor in given.items()})
    assert all(torch.equal(a, b.to(a.device)) for a, b in zip(expected, found, strict=True))
    assert torch.cuda.current_device() == 0


def test_float64_is_refused() -> None:
    batch = random_batch(0, dtype=torch.float64)
    log_prob = batch.log_prob.cuda()
    with pytest.raises(TypeError, match="log_prob: expected float32, bfloat16 or float16 on cuda"):
        qae.policy_loss(log_prob, log_prob, advantages=torch.ones(12).cuda(), normalizer=1)


def test_memory() -> None:
    """Without a gradient none is allocated; in place neither."""
    given = inputs(7)
    size = given["logits"].numel() * given["logits"].element_size()

    def peak(requires_grad: bool, inplace: bool) -> int:
        logits = given["logits"].detach().requires_grad_(requires_grad) * 1.0
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        kept = qae.policy_loss_from_logits(
            logits,
            given["token_ids"],
            given["old_log_prob"],
            rewards=given["rewards"],
            groups=GROUPS,
            normalizer=1,
            inplace=inplace,
        )
        assert kept[0].isfinite()
        return torch.cuda.max_memory_allocated() - before

    assert peak(True, False) >= size
    assert peak(False, False) < size // 4 and peak(True, True) < size // 4
