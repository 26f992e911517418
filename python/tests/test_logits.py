"""The operations on logits against the formulas in plain torch."""

from __future__ import annotations

from typing import Any

import oracle
import pytest
import torch
from batches import (
    CPU,
    LAYOUTS,
    Batch,
    loss_from_logits,
    near_policy,
    parameter,
    random_batch,
)
from conftest import DTYPES, Backend, assert_same, skip_unless_supported
from spies import operation_arguments, pointers
from torch import Tensor, library

import qae
from qae import _logits_ops, _qae

pytestmark = pytest.mark.usefixtures("poisoned")

CLIP = qae.Objective.clip(dual_clip=3.0)


# ----------------------------------------------------------------------------------------- the loss


def expected_loss(
    batch: Batch, layout: str, dtype: torch.dtype, temperature: float = 1.0, **options: Any
) -> tuple[oracle.Loss, Tensor, Tensor, Tensor, Tensor]:
    """The oracle's loss, its gradient with respect to the logits, log-probs, entropies and
    advantages."""
    logits = parameter(batch.logits.to(dtype))
    log_prob, entropy = oracle.log_probs_and_entropy(logits, batch.token_ids, temperature)
    advantage, _ = oracle.advantages(batch.rewards, batch.ids)
    expected = oracle.loss(
        log_prob,
        batch.old.to(dtype),
        advantage.to(dtype)[:, None],
        batch.valid(layout),
        reference=batch.reference.to(dtype),
        entropy=entropy,
        **options,
    )
    (gradient,) = torch.autograd.grad(expected.loss, logits)
    return expected, gradient, log_prob.detach(), entropy.detach(), advantage


def check(
    batch: Batch, layout: str, backend: Backend, *, temperature: float = 0.7, **options: Any
) -> None:
    device = backend.device
    options.setdefault("objective", CLIP)
    batch = near_policy(batch, temperature)
    given = dict(options)
    if "kl" in given:
        given["ref_log_prob"] = batch.put(batch.reference, layout, device)
    logits = batch.put(batch.logits, layout, device).requires_grad_()
    loss, metrics = qae.policy_loss_from_logits(
        logits,
        batch.put(batch.token_ids, layout, device, -100),
        batch.put(batch.old, layout, device),
        rewards=batch.rewards.to(device),
        groups=4,
        normalizer="batch",
        temperature=temperature,
        **batch.places(layout, device),
        **given,
    )
    loss.backward()
    options["temperature"] = temperature
    exact = expected_loss(batch, layout, torch.float64, **options)
    single = expected_loss(batch, layout, torch.float32, **options)
    assert logits.grad is not None and logits.grad.dtype == logits.dtype
    valid = batch.valid(layout)
    backend.assert_close(loss, exact[0].loss, single[0].loss.detach(), "loss")
    found = batch.take(logits.grad, layout)
    backend.assert_close(found, exact[1], single[1], "gradient")
    assert metrics.log_prob is not None and metrics.entropy is not None
    for tensor, one, two in [
        (metrics.log_prob, exact[2], single[2]),
        (metrics.entropy, exact[3], single[3]),
    ]:
        backend.assert_close(
            batch.take(tensor, layout),
            one.masked_fill(~valid, 0.0),
            two.masked_fill(~valid, 0.0),
            terms=(batch.logits.abs().max() / temperature).item(),
        )
    values = metrics.to_dict()
    metrics.check()
    mean = exact[3][valid].mean().item()
    tolerance = 1e-12 if backend.is_exact else 2e-6
    assert values["entropy"] == pytest.approx(mean, rel=tolerance, abs=tolerance)
    silent = ~valid
    if not ("kl" in options or options.get("entropy_coef")):
        silent = silent | (exact[4] == 0)[:, None]
    assert (found[silent] == 0).all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts_and_dtypes(backend: Backend, layout: str, dtype: torch.dtype) -> None:
    skip_unless_supported(backend, dtype)
    check(random_batch(1, dtype=dtype), layout, backend)


@pytest.mark.parametrize("vocab", [1, 7, 64, 1000, 5003])
def test_vocabularies(backend: Backend, vocab: int) -> None:
    check(random_batch(2, vocab=vocab), "mask", backend)


@pytest.mark.parametrize(
    "options",
    [
        {"entropy_coef": 0.05},
        {"kl": qae.Kl("k3", 0.1)},
        {"objective": qae.Objective.gspo(low=0.02, high=0.03)},
        {"objective": qae.Objective.reinforce(), "aggregation": "seq-mean-token-mean"},
        {"objective": qae.Objective.sapo(), "temperature": 1.3},
    ],
    ids=lambda o: "-".join(getattr(v, "kind", str(v)) for v in o.values()),
)
def test_options(backend: Backend, options: dict[str, Any]) -> None:
    check(random_batch(3), "mask", backend, **options)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.uint8, torch.int64])
def test_token_ids_of_any_integer_dtype(backend: Backend, dtype: torch.dtype) -> None:
    batch = near_policy(random_batch(4), 0.9)
    expected = loss_from_logits(batch.logits.to(backend.device), batch)[0]
    batch.token_ids = batch.token_ids.to(dtype)
    assert torch.equal(loss_from_logits(batch.logits.to(backend.device), batch)[0], expected)


def test_shifted_logits_are_not_copied(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = near_policy(random_batch(5), 0.9)
    longer = torch.full((12, 10, 11), torch.nan, device=backend.device)
    longer[:, :-1] = batch.logits.to(backend.device)
    longer.requires_grad_()
    found = pointers(monkeypatch, "loss_from_logits")
    loss, _ = loss_from_logits(longer[:, :-1], batch)
    assert found["logits"] == longer.data_ptr()
    loss.backward()
    plain = parameter(batch.logits, backend.device)
    expected, _ = loss_from_logits(plain, batch)
    expected.backward()
    assert longer.grad is not None and plain.grad is not None
    assert_same(backend, loss, expected)
    assert_same(backend, longer.grad[:, :-1], plain.grad)
    assert (longer.grad[:, -1] == 0).all()


@pytest.mark.parametrize("dims", [(1, 0, 2), (2, 1, 0), (0, 2, 1)])
def test_transposed_logits(backend: Backend, dims: tuple[int, int, int]) -> None:
    batch = near_policy(random_batch(6), 0.9)
    plain = parameter(batch.logits, backend.device)
    other = plain.detach().permute(dims).contiguous().permute(dims).requires_grad_()
    assert torch.equal(other, plain)
    for logits in (plain, other):
        loss_from_logits(logits, batch)[0].backward()
    assert plain.grad is not None and other.grad is not None
    assert torch.equal(other.grad, plain.grad)


def test_expanded_logits(backend: Backend) -> None:
    batch = random_batch(7)
    row = batch.logits[:1, :1].to(backend.device).requires_grad_()
    plain = row.detach().expand(12, 9, 11).clone().requires_grad_()
    loss_from_logits(row.expand(12, 9, 11), batch)[0].backward()
    loss_from_logits(plain, batch)[0].backward()
    assert row.grad is not None and plain.grad is not None
    total = plain.grad.sum((0, 1), keepdim=True)
    assert torch.allclose(row.grad, total, rtol=1e-5, atol=1e-6)


def test_no_gradient_is_allocated_unless_needed(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = near_policy(random_batch(8), 0.9)
    native = _qae.loss_from_logits
    gradients: list[Tensor | None] = []

    def spy(inputs: Any, config: str, outputs: Any, stream: int) -> None:
        gradients.append(outputs["d_logits"])
        native(inputs, config, outputs, stream)

    monkeypatch.setattr(_qae, "loss_from_logits", spy)
    logits = batch.logits.to(backend.device)
    plain, _ = loss_from_logits(logits, batch)
    with torch.no_grad():
        quiet, _ = loss_from_logits(logits.clone().requires_grad_(), batch)
    assert gradients == [None, None]
    needed, _ = loss_from_logits(logits.clone().requires_grad_(), batch)
    assert gradients[2] is not None
    assert torch.equal(plain, needed) and torch.equal(quiet, needed)


def test_inactive_rows_are_not_read(backend: Backend) -> None:
    batch = near_policy(random_batch(9), 0.9)
    advantage, _ = oracle.advantages(batch.rewards, batch.ids)
    clean = parameter(batch.logits, backend.device)
    expected, _ = loss_from_logits(clean, batch, metrics_scope="active")
    expected.backward()
    logits = batch.logits.clone()
    logits[advantage == 0] = torch.nan
    logits[~batch.mask] = torch.inf
    poisoned = parameter(logits, backend.device)
    loss, metrics = loss_from_logits(poisoned, batch, metrics_scope="active")
    loss.backward()
    metrics.check()
    assert poisoned.grad is not None and clean.grad is not None
    assert torch.equal(loss, expected) and torch.equal(poisoned.grad, clean.grad)


def test_logits_of_minus_infinity(backend: Backend) -> None:
    """Probability 0 and gradient 0; a token whose own logit it is is left out and counted."""
    batch = near_policy(random_batch(10), 0.9)
    batch.rewards = torch.tensor([1.0, 0.0, 0.0, 0.0] * 3)
    batch.mask[0] = True
    batch.logits[..., 3] = -torch.inf
    batch.token_ids[batch.token_ids == 3] = 4
    logits = parameter(batch.logits, backend.device)
    loss, metrics = loss_from_logits(logits, batch)
    loss.backward()
    metrics.check()
    assert logits.grad is not None and logits.grad.isfinite().all()
    assert (logits.grad[..., 3] == 0).all() and (logits.grad[0] != 0).any()
    batch.token_ids[0, 2] = 3
    other = parameter(batch.logits, backend.device)
    loss, metrics = loss_from_logits(other, batch)
    loss.backward()
    assert metrics.to_dict()["nonfinite_tokens"] == 1 and other.grad is not None
    assert (other.grad[0, 2] == 0).all() and loss.isfinite()


@pytest.mark.parametrize("shape", [(0, 5), (4, 0)])
def test_empty_batches(backend: Backend, shape: tuple[int, int]) -> None:
    logits = torch.zeros(*shape, 7, device=backend.device, requires_grad=True)
    ids = torch.zeros(shape, dtype=torch.int64, device=backend.device)
    old = torch.zeros(shape, device=backend.device)
    advantages = torch.ones(shape[0], device=backend.device)
    loss, _ = qae.policy_loss_from_logits(
        logits, ids, old, advantages=advantages, normalizer="batch"
    )
    loss.backward()
    assert loss == 0 and logits.grad is not None
    log_prob, entropy = qae.log_probs_and_entropy(logits, ids)
    (log_prob.sum() + entropy.sum()).backward()
    assert log_prob.shape == entropy.shape == shape


def test_gradcheck_of_the_loss() -> None:
    batch = near_policy(random_batch(11, dtype=torch.float64, vocab=3), 0.9)
    batch.old, batch.reference = batch.old.double(), batch.reference.double()
    options: dict[str, Any] = {
        "entropy_coef": 0.1,
        "kl": qae.Kl("k2", 0.1),
        "ref_log_prob": batch.reference,
    }
    assert torch.autograd.gradcheck(
        lambda logits: loss_from_logits(logits, batch, **options)[0],
        batch.logits.requires_grad_(),
        fast_mode=True,
    )


@pytest.mark.parametrize("layout", ["mask", "packed", "strided"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("needs_gradient", [True, False])
def test_opcheck_loss_from_logits(layout: str, dtype: torch.dtype, needs_gradient: bool) -> None:
    batch = near_policy(random_batch(21, dtype=dtype), 0.9)
    arguments = operation_arguments(
        lambda: qae.policy_loss_from_logits(
            batch.put(batch.logits, layout).requires_grad_(needs_gradient),
            batch.put(batch.token_ids, layout, CPU, 0),
            batch.put(batch.old, layout),
            rewards=batch.rewards,
            groups=4,
            normalizer=9,
            **batch.places(layout),
        ),
        "loss_from_logits",
    )
    library.opcheck(_logits_ops.loss_from_logits, arguments)
