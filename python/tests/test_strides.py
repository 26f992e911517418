"""Tensors of any strides: taken as they are where that is possible, never wrongly."""

from __future__ import annotations

import pytest
import torch
from batches import parameter, random_batch
from conftest import Backend
from spies import pointers
from torch import Tensor

import qae

pytestmark = pytest.mark.usefixtures("poisoned")


def test_row_strided_tensors_are_not_copied(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend.name == "cuda":
        pytest.skip("the same code")
    batch = random_batch(3)
    found = pointers(monkeypatch, "loss_from_log_probs")
    tensors = {
        name: batch.put(tensor, "strided")
        for name, tensor in {"log_prob": batch.log_prob, "old_log_prob": batch.old}.items()
    }
    mask = batch.places("strided")["mask"]
    rewards = batch.rewards
    assert not mask.is_contiguous() and mask.dtype == torch.bool
    qae.policy_loss(**tensors, mask=mask, rewards=rewards, groups=4, normalizer=9)
    assert found["log_prob"] == tensors["log_prob"].data_ptr()
    assert found["old_log_prob"] == tensors["old_log_prob"].data_ptr()
    assert found["mask"] == mask.data_ptr() and found["rewards"] == rewards.data_ptr()


def arrangements(tensor: Tensor) -> dict[str, Tensor]:
    """Equal tensors whose memory is laid out otherwise."""
    rows, width = tensor.shape
    gaps = torch.full((rows, 2 * width), torch.nan, dtype=tensor.dtype)
    gaps[:, ::2] = tensor
    wide = torch.full((rows, width + 3), torch.nan, dtype=tensor.dtype)
    wide[:, :width] = tensor
    return {
        "contiguous": tensor.clone(),
        "transposed": tensor.t().contiguous().t(),
        "gaps": gaps[:, ::2],
        "longer rows": wide[:, :width],
        "reversed twice": tensor.flip(0).flip(0),
    }


@pytest.mark.parametrize("first", ["contiguous", "transposed", "gaps", "longer rows"])
@pytest.mark.parametrize("second", ["transposed", "gaps", "longer rows", "reversed twice"])
def test_other_strides_give_the_same(backend: Backend, first: str, second: str) -> None:
    batch, device = random_batch(4), backend.device

    def of(one: Tensor, two: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        leaf = parameter(batch.log_prob)
        log_prob = arrangement(leaf, one).to(device)
        loss, _ = qae.policy_loss(
            log_prob,
            two.to(device),
            rewards=batch.rewards.to(device),
            groups=4,
            mask=mask.to(device),
            normalizer=20,
        )
        loss.backward()
        assert leaf.grad is not None
        return loss, leaf.grad

    def arrangement(leaf: Tensor, like: Tensor) -> Tensor:
        # A view of memory laid out as `like`, through which the gradient flows.
        out = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype)
        return torch.as_strided(out.copy_(leaf), like.shape, like.stride())

    mask = arrangements(batch.mask.to(torch.uint8).float())[second]
    expected = of(batch.log_prob, batch.old, batch.mask)
    found = of(arrangements(batch.log_prob)[first], arrangements(batch.old)[second], mask)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


def test_expanded_tensors(backend: Backend) -> None:
    """Rows, or slots, that share memory: stride 0."""
    device = backend.device
    old = torch.full((4, 3), -1.0, device=device)
    for shape in [(1, 3), (4, 1), (1, 1)]:
        leaf = torch.linspace(-1.2, -0.8, shape[0] * shape[1], device=device)
        leaf = leaf.reshape(shape).requires_grad_()
        plain = leaf.detach().expand(4, 3).clone().requires_grad_()
        advantages = torch.tensor([1.0, -1.0, 0.0, 2.0], device=device)
        for log_prob in (leaf.expand(4, 3), plain):
            loss, _ = qae.policy_loss(
                log_prob, old[:1].expand(4, 3), advantages=advantages, normalizer=12
            )
            loss.backward()
        assert leaf.grad is not None and plain.grad is not None
        dims = [d for d in (0, 1) if shape[d] == 1]
        assert torch.allclose(leaf.grad, plain.grad.sum(dims, keepdim=True), rtol=1e-6)


def test_dimensions_of_size_1_have_any_stride(backend: Backend) -> None:
    device = backend.device
    base = torch.linspace(-2.0, -1.0, 8, device=device)
    views = {
        "one slot, transposed": base[None].t(),
        "one row, stride 0": base.expand(1, 8),
        "one row, short stride": base.as_strided((1, 8), (3, 1)),
        "one slot, wide rows": base.as_strided((4, 1), (2, 1)),
        "one slot, any stride": base.as_strided((4, 1), (2, 7)),
    }
    for name, log_prob in views.items():
        plain = log_prob.clone(memory_format=torch.contiguous_format)
        advantages = torch.arange(1.0, len(plain) + 1, device=device)
        results = [
            qae.policy_loss(x, plain - 0.1, advantages=advantages, normalizer=3)[0]
            for x in (log_prob, plain)
        ]
        assert torch.equal(*results), name
