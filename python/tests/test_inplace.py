"""``policy_loss_from_logits(..., inplace=True)``: the gradient takes the memory of the logits."""

from __future__ import annotations

import pytest
import torch
from batches import loss_from_logits, near_policy, parameter, random_batch
from conftest import DTYPES, Backend, assert_same, skip_unless_supported
from spies import operations_on
from torch import Tensor

pytestmark = pytest.mark.usefixtures("poisoned")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("factor", [1.0, 0.3])
def test_in_place(backend: Backend, dtype: torch.dtype, factor: float) -> None:
    skip_unless_supported(backend, dtype)
    batch = near_policy(random_batch(12, dtype=dtype), 0.9)
    results = []
    for inplace in (False, True):
        leaf = parameter(batch.logits, backend.device)
        logits = leaf * 1.0
        pointer = logits.data_ptr()
        kept: list[Tensor] = []
        logits.register_hook(kept.append)
        loss, metrics = loss_from_logits(logits, batch, inplace=inplace)
        (loss * factor).backward()
        assert leaf.grad is not None and (kept[0].data_ptr() == pointer) == inplace
        results.append((loss, leaf.grad, metrics.words))
    assert all(torch.equal(one, two) for one, two in zip(*results))


def test_torch_never_touches_the_gradient_in_place(backend: Backend) -> None:
    """The kernel reads the factor: an operation of torch would read and write all of it."""
    batch = near_policy(random_batch(19, vocab=50), 0.9)
    logits = parameter(batch.logits, backend.device) * 1.0
    loss, _ = loss_from_logits(logits, batch, inplace=True)
    for_loss = torch.tensor(0.5, device=backend.device)
    with operations_on(logits.shape) as operations:
        (found,) = torch.autograd.grad(loss, logits, for_loss)
    assert operations <= {"aten.detach.default", "aten.view.default"}, operations
    assert found.data_ptr() == logits.data_ptr()


def test_in_place_on_a_view(backend: Backend) -> None:
    batch = near_policy(random_batch(13), 0.9)
    leaf = torch.zeros(12, 10, 11, device=backend.device)
    leaf[:, :-1] = batch.logits.to(backend.device)
    leaf.requires_grad_()
    loss, _ = loss_from_logits((leaf * 1.0)[:, :-1], batch, inplace=True)
    loss.backward()
    plain = parameter(batch.logits, backend.device)
    loss_from_logits(plain, batch)[0].backward()
    assert leaf.grad is not None and plain.grad is not None
    assert_same(backend, leaf.grad[:, :-1], plain.grad)
    assert (leaf.grad[:, -1] == 0).all()


def test_in_place_is_noticed_by_who_saved_the_logits() -> None:
    batch = near_policy(random_batch(14), 0.9)
    logits = parameter(batch.logits).tanh()  # saves its result
    version = logits._version
    loss, _ = loss_from_logits(logits, batch, inplace=True)
    assert logits._version > version
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_in_place_notices_who_writes_to_the_gradient() -> None:
    batch = near_policy(random_batch(18), 0.9)
    logits = parameter(batch.logits) * 1.0
    loss, _ = loss_from_logits(logits, batch, inplace=True)
    logits.detach().add_(1.0)
    with pytest.raises(RuntimeError, match="expected the logits, which hold their gradient"):
        loss.backward()


def test_in_place_once() -> None:
    batch = near_policy(random_batch(15), 0.9)
    logits = parameter(batch.logits) * 1.0
    loss, _ = loss_from_logits(logits, batch, inplace=True)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="inplace=True: expected one backward pass"):
        loss.backward()
    loss, _ = loss_from_logits(parameter(batch.logits) * 1.0, batch, inplace=True)
    with pytest.raises(RuntimeError, match="policy_loss_from_logits is differentiable once"):
        loss.backward(create_graph=True)


def test_in_place_is_refused_where_it_is_unsafe() -> None:
    batch = near_policy(random_batch(16), 0.9)
    leaf = parameter(batch.logits)
    before = leaf.detach().clone()
    transposed = (leaf * 1.0).transpose(0, 1).contiguous().transpose(0, 1)
    row = (leaf * 1.0)[:1].expand(12, 9, 11)
    for logits, message in [
        (leaf, "are a leaf"),
        (leaf.view(leaf.shape), "are a leaf"),
        (torch.zeros(12, 10, 11, requires_grad=True)[:, :-1], "are a leaf"),
        (leaf.detach(), "need no gradient"),
        (transposed, "would be copied"),
        (row, "would be copied"),
    ]:
        with pytest.raises(
            ValueError, match=f"inplace: expected False where logits .*{message[-9:]}"
        ):
            loss_from_logits(logits, batch, inplace=True)
    with torch.no_grad(), pytest.raises(ValueError, match="need no gradient"):
        loss_from_logits(leaf * 1.0, batch, inplace=True)
    assert torch.equal(leaf, before)
