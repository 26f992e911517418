"""``qae.log_probs_and_entropy``, also of a vocabulary in shards."""

from __future__ import annotations

from typing import Any

import oracle
import pytest
import torch
from batches import parameter, random_batch
from conftest import DTYPES, Backend, assert_same, skip_unless_supported
from torch import Tensor, library

import qae
from qae import _logits_ops
from qae.logits import log_probs_backward

pytestmark = pytest.mark.usefixtures("poisoned")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(13,), (3, 5), (2, 3, 4), ()])
def test_log_probs_and_entropy(
    backend: Backend, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    skip_unless_supported(backend, dtype)
    g = torch.Generator().manual_seed(17)
    values = (3 * torch.randn(*shape, 101, generator=g)).to(dtype)
    ids = torch.randint(0, 101, shape, generator=g)
    weights = [torch.randn(shape, generator=g) for _ in range(2)]

    def of(logits: Tensor, function: Any) -> tuple[Tensor, Tensor, Tensor]:
        logits.requires_grad_()
        log_prob, entropy = function(logits, ids.to(logits.device), temperature=0.7)
        total = sum((w.to(x) * x).sum() for w, x in zip(weights, (log_prob, entropy), strict=True))
        (gradient,) = torch.autograd.grad(total, logits)
        return log_prob, entropy, gradient

    found = of(values.to(backend.device).clone(), qae.log_probs_and_entropy)
    expected = of(values.double().clone(), oracle.log_probs_and_entropy)
    single = of(values.float().clone(), oracle.log_probs_and_entropy)
    for name, *tensors in zip(("log_prob", "entropy", "gradient"), found, expected, single):
        backend.assert_close(tensors[0], tensors[1], tensors[2].detach(), name)
    assert found[0].dtype == (dtype if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("poison", [torch.nan, 1.0])
def test_either_gradient_alone_and_a_mask(backend: Backend, poison: float) -> None:
    g = torch.Generator().manual_seed(18)
    values = 2 * torch.randn(4, 6, 33, generator=g)
    ids = torch.randint(0, 33, (4, 6), generator=g)
    mask = torch.rand(4, 6, generator=g) > 0.4
    for which in (0, 1):
        logits = torch.where(mask[..., None], values, poison).to(backend.device)
        logits.requires_grad_()
        found = qae.log_probs_and_entropy(
            logits,
            torch.where(mask, ids, -100 if poison != 1.0 else 0).to(backend.device),
            mask=mask.to(backend.device, torch.int32),
        )
        (gradient,) = torch.autograd.grad(found[which].sum(), logits)
        exact = values.double().requires_grad_()
        expected = oracle.log_probs_and_entropy(exact, ids)[which]
        (d_expected,) = torch.autograd.grad(torch.where(mask, expected, 0.0).sum(), exact)
        backend.assert_close(found[which], torch.where(mask, expected, 0.0).detach())
        backend.assert_close(gradient, d_expected)
        assert (found[which][~mask] == 0).all() and (gradient[~mask] == 0).all()


def test_strided_rows_of_logits(backend: Backend) -> None:
    base = torch.randn(4, 7, 20, generator=torch.Generator().manual_seed(19))
    for view in (base[:, :-1], base[:, 1:, 3:17], base.transpose(0, 1), base[..., ::2], base[:, 2]):
        logits = view.to(backend.device)
        ids = torch.zeros(view.shape[:-1], dtype=torch.int64, device=backend.device)
        found = qae.log_probs_and_entropy(logits, ids)
        plain = qae.log_probs_and_entropy(view.contiguous().to(backend.device), ids)
        for one, two in zip(found, plain, strict=True):
            assert_same(backend, one, two)


def test_gradcheck_of_log_probs_and_entropy() -> None:
    logits = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    ids = torch.randint(5, (2, 3))
    assert torch.autograd.gradcheck(
        lambda x: qae.log_probs_and_entropy(x, ids, temperature=0.7), logits
    )


# ------------------------------------------------------------------------------ vocabulary-parallel


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cuts", [[40], [1, 39], [13, 20, 7]])
def test_shards_of_a_vocabulary(backend: Backend, dtype: torch.dtype, cuts: list[int]) -> None:
    skip_unless_supported(backend, dtype)
    g = torch.Generator().manual_seed(20)
    values = (3 * torch.randn(3, 5, 40, generator=g)).to(dtype)
    ids = torch.randint(0, 40, (3, 5), generator=g)
    d_log_prob, d_entropy = torch.randn(2, 3, 5, generator=g)
    shards = values.to(backend.device).split(cuts, -1)
    starts = [sum(cuts[:i]) for i in range(len(cuts))]
    on_device = ids.to(backend.device)
    stats = torch.stack(
        [
            qae.softmax_stats(shard, on_device, vocab_start=start, temperature=0.6)
            for shard, start in zip(shards, starts)
        ]
    )
    assert stats.shape == (len(cuts), 3, 5, 4)
    log_prob, entropy, log_sum_exp, merged = qae.merge_softmax_stats(stats, temperature=0.6)
    pieces = [
        log_probs_backward(
            shard,
            on_device,
            merged,
            d_log_prob.to(backend.device),
            d_entropy.to(backend.device),
            temperature=0.6,
            vocab_start=start,
        )
        for shard, start in zip(shards, starts)
    ]

    def of(dtype: torch.dtype) -> list[Tensor]:
        logits = values.to(dtype, copy=True).requires_grad_()
        one, two = oracle.log_probs_and_entropy(logits, ids, 0.6)
        total = (d_log_prob.to(dtype) * one + d_entropy.to(dtype) * two).sum()
        gradient = torch.autograd.grad(total, logits)[0]
        return [one.detach(), two.detach(), torch.logsumexp(logits / 0.6, -1).detach(), gradient]

    found = [log_prob, entropy, log_sum_exp, torch.cat(pieces, -1)]
    # The statistics are rounded to float32 on every backend.
    single = of(torch.float32)
    kernels = Backend("kernels", backend.device) if dtype != torch.float64 else backend
    for tensor, expected, lost in zip(found, of(torch.float64), single):
        kernels.assert_close(tensor, expected, lost)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck_of_the_other_operations(dtype: torch.dtype) -> None:
    batch = random_batch(22, dtype=dtype)
    logits, ids = batch.logits, batch.token_ids
    for mask in (None, batch.mask):
        arguments = (parameter(logits), ids, mask, 0.7)
        library.opcheck(_logits_ops.log_probs_from_logits, arguments)
    stats = qae.softmax_stats(logits, ids, vocab_start=0)
    library.opcheck(_logits_ops.softmax_stats, (logits, ids, 0, 0.7))
    library.opcheck(_logits_ops.merge_softmax_stats, (stats[None], 0.7))
    gradients = (torch.rand(12, 9), torch.rand(12, 9))
    for start in (None, 0):
        library.opcheck(
            _logits_ops.log_probs_from_logits_backward,
            (logits, ids, stats, *gradients, batch.mask, start, 0.7),
        )
