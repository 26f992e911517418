"""The host never waits for the device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from batches import LAYOUTS, random_batch
from spies import operation_arguments
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import qae
from qae import _native, _ops


class NoWait(TorchDispatchMode):
    """Fails where the host would wait for a value of the device, or copy from or to it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        waits = ("_local_scalar_dense", "nonzero", "is_nonzero", "aten.equal", "item", "unique")
        assert not any(word in name for word in waits), name
        assert "masked_select" not in name and "bincount" not in name, name
        return func(*args, **(kwargs or {}))


def test_the_operations_never_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that runs below the dispatcher, with the native call left out."""
    groups = qae.Groups.from_ids([0, 1, 2] * 4)
    monkeypatch.setattr(_native, "run", lambda *_: None)
    monkeypatch.setattr(_native, "count", lambda *_: None)
    monkeypatch.setattr(_native, "runs_kernels", lambda _: True)
    for layout in LAYOUTS:
        batch = random_batch(5)
        log_prob = batch.put(batch.log_prob, layout).requires_grad_()
        arguments = operation_arguments(
            lambda log_prob=log_prob, layout=layout, batch=batch: qae.policy_loss(
                log_prob,
                batch.put(batch.old, layout),
                rewards=batch.rewards,
                groups=groups,
                response_index=torch.arange(batch.rows),
                importance_weight=batch.put(batch.weight, layout),
                normalizer="batch",
                **batch.places(layout),
            ),
            "loss_from_log_probs",
        )
        with NoWait():
            _ops._loss_from_log_probs(*arguments)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_nothing_reads_a_value_of_the_device(device: str) -> None:
    """On fake tensors, which have no values to read."""
    groups = qae.Groups.from_ids([0, 1, 2] * 4)
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake, torch.device(device):
        log_prob = torch.empty(12, 9, requires_grad=True)
        mask = torch.empty(12, 9, dtype=torch.int64)
        for normalizer in (31, torch.empty(()), "batch"):
            for partition in (4, groups):
                loss, metrics = qae.policy_loss(
                    log_prob,
                    torch.empty(12, 9, dtype=torch.bfloat16),
                    rewards=torch.empty(12),
                    groups=partition,
                    mask=mask,
                    lengths=torch.empty(12, dtype=torch.int64),
                    response_index=torch.empty(12, dtype=torch.int64),
                    importance_weight=torch.empty(12),
                    normalizer=normalizer,
                )
                if device == "cpu":  # without a GPU autograd has no thread for one
                    loss.backward()
                    assert log_prob.grad is not None
                tensors = [loss, *(t for t in metrics if isinstance(t, Tensor))]
                assert all(tensor.device.type == device for tensor in tensors)
        out = qae.advantages(torch.empty(12), groups)
        assert out.active.device.type == device and out.active.dtype == torch.bool
