"""What autograd sees: registration, gradients, dtypes, modes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from batches import (
    LAYOUTS,
    expected_loss,
    loss_from_logits,
    near_policy,
    parameter,
    random_batch,
)
from conftest import UNIT_ROUNDOFF, Backend
from spies import operation_arguments
from torch import Tensor, library

import qae
from qae import _ops, _qae

pytestmark = pytest.mark.usefixtures("poisoned")

CLIP = qae.Objective.clip(dual_clip=3.0)


def loss_of(log_prob: Tensor, **options: Any) -> Tensor:
    batch = random_batch(1, dtype=torch.float64)
    arguments: dict[str, Any] = {
        "rewards": batch.rewards,
        "groups": 4,
        "mask": batch.mask,
        "normalizer": 31,
    }
    return qae.policy_loss(log_prob, batch.old.to(log_prob.dtype), **(arguments | options))[0]


def policy(dtype: torch.dtype = torch.float32) -> Tensor:
    return random_batch(1, dtype=torch.float64).log_prob.to(dtype).requires_grad_()


# ------------------------------------------------------------------------------------ registration


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("source", ["rewards", "per-row", "per-token"])
def test_opcheck_loss_from_log_probs(layout: str, dtype: torch.dtype, source: str) -> None:
    batch = random_batch(2, dtype=dtype)
    advantages = {
        "rewards": {"rewards": batch.rewards, "groups": torch.tensor([0, 1, 2] * 4)},
        "per-row": {"advantages": torch.randn(batch.rows)},
        "per-token": {"advantages": batch.put(batch.weight, layout)},
    }[source]
    tokens = [batch.put(tensor, layout) for tensor in (batch.log_prob, batch.old)]
    arguments = operation_arguments(
        lambda: qae.policy_loss(
            *tokens,
            **batch.places(layout),
            **advantages,
            kl=qae.Kl(),
            ref_log_prob=batch.put(batch.reference, layout),
            importance_weight=torch.rand(batch.rows),
            normalizer=torch.tensor(20.0),
        ),
        "loss_from_log_probs",
    )
    library.opcheck(_ops.loss_from_log_probs, arguments)


def test_opcheck_of_the_smaller_operations() -> None:
    rewards = torch.rand(12)
    for groups in (qae.Groups.uniform(12, 4), qae.Groups.from_ids([0, 1, 2] * 4)):
        _, _, *tensors = index = groups.index(torch.device("cpu"))
        arguments = (rewards, *index[4:], *index[:4], "{}")
        library.opcheck(_ops.advantages, arguments)
        assert len(tensors) == 5
    words = torch.zeros(_qae.LOSS_WORDS, dtype=torch.int64)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        log_prob = torch.zeros(3, 4, dtype=dtype, requires_grad=True)
        kept = torch.float32 if dtype == torch.float16 else dtype
        gradient = torch.randn(3, 4, dtype=kept)
        library.opcheck(_ops.loss_of, (log_prob, words, gradient, None, "test"))
        for row_gradient, by_element in [(None, True), (None, False), (torch.eye(3)[0], False)]:
            arguments = (gradient, torch.tensor(0.3), row_gradient, by_element, dtype)
            library.opcheck(_ops.scale_gradient, arguments)


# --------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize(
    "options",
    [
        {"objective": CLIP},
        {
            "objective": qae.Objective.gspo(low=0.05, high=0.05),
            "aggregation": "seq-mean-token-mean",
        },
        {"objective": qae.Objective.sapo()},
        {"objective": qae.Objective.reinforce()},
        {"objective": CLIP, "kl": qae.Kl("k3", 0.2)},
        {"objective": CLIP, "kl": qae.Kl("k2", 0.2)},
    ],
    ids=lambda options: "-".join(getattr(value, "kind", str(value)) for value in options.values()),
)
def test_gradcheck(options: dict[str, Any]) -> None:
    if "kl" in options:
        options = {**options, "ref_log_prob": random_batch(1, dtype=torch.float64).reference}
    assert torch.autograd.gradcheck(lambda x: loss_of(x, **options), policy(torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_backward_pass_scales_the_gradient(backend: Backend, dtype: torch.dtype) -> None:
    batch, device = random_batch(1, dtype=dtype), backend.device
    _, expected, _ = expected_loss(batch, "mask", objective=CLIP, normalizer=31)
    # float16 is kept in float32, bfloat16 is rounded before and after the scaling.
    kept = UNIT_ROUNDOFF[torch.float32 if dtype == torch.float16 else dtype]
    for factor in (1.0, -1.0 / 3.0, 1024.0):
        log_prob = parameter(batch.log_prob, device)
        loss, _ = qae.policy_loss(
            log_prob,
            batch.old.to(device),
            rewards=batch.rewards.to(device),
            groups=4,
            mask=batch.mask.to(device),
            objective=CLIP,
            normalizer=31,
        )
        (loss * factor).backward()
        assert log_prob.grad is not None and log_prob.grad.dtype == dtype
        scaled = expected * factor
        error = (log_prob.grad.cpu().double() - scaled).abs()
        bound = (UNIT_ROUNDOFF[dtype] + kept) * scaled.abs() + 2e-6 * scaled.abs().max()
        assert (error <= bound + 2.0**-25 * (dtype == torch.float16)).all()


def test_a_bfloat16_gradient_is_rounded_once_in_the_backward_pass() -> None:
    gradient = torch.linspace(0.1, 7.0, 256).bfloat16()
    factor = torch.tensor(1.0 / 3.0)
    scaled = _ops.scale_gradient(gradient, factor, None, True, torch.bfloat16)
    assert torch.equal(scaled, (gradient.float() * factor).bfloat16())
    assert not torch.equal(scaled, gradient * factor.bfloat16())


@pytest.mark.parametrize("factor", [math.inf, -math.inf, math.nan])
def test_no_factor_reaches_what_has_no_gradient(backend: Backend, factor: float) -> None:
    batch, device = near_policy(random_batch(6), 0.9), backend.device
    options: dict[str, Any] = {"rewards": batch.rewards.to(device), "groups": 4, "normalizer": 31}
    options["mask"] = batch.mask.to(device)

    def of_log_prob(factor: float) -> Tensor:
        leaf = parameter(batch.log_prob, device)
        loss, _ = qae.policy_loss(leaf, batch.old.to(device), **options)
        (loss * factor).backward()
        assert leaf.grad is not None
        return leaf.grad

    def of_logits(factor: float, inplace: bool) -> Tensor:
        leaf = parameter(batch.logits, device)
        loss, _ = loss_from_logits(leaf * 1.0, batch, inplace=inplace)
        (loss * factor).backward()
        assert leaf.grad is not None
        return leaf.grad

    plain, found = of_log_prob(1.0), of_log_prob(factor)
    assert (plain == 0).any() and (plain != 0).any()
    assert (found[plain == 0] == 0).all() and not found[plain != 0].isfinite().any()
    plain = of_logits(1.0, False)
    acts = (plain != 0).any(-1)
    assert acts.any() and not acts.all()
    for inplace in (False, True):
        found = of_logits(factor, inplace)
        assert (found[~acts] == 0).all() and not found[plain != 0].isfinite().any()


@pytest.mark.parametrize("entropy_coef", [0.0, 0.01])
def test_logits_twice_with_retain_graph(backend: Backend, entropy_coef: float) -> None:
    batch = near_policy(random_batch(7), 0.9)
    leaf = parameter(batch.logits, backend.device)
    loss, _ = loss_from_logits(leaf, batch, entropy_coef=entropy_coef)
    (plain,) = torch.autograd.grad(loss, leaf, retain_graph=True)
    for factor in (0.25, -2.0, 1.0):
        (found,) = torch.autograd.grad(loss * factor, leaf, retain_graph=True)
        assert torch.equal(found, plain * factor)


def test_a_gradient_survives_float16_loss_scaling() -> None:
    log_prob = torch.full((2, 8), -1.0, dtype=torch.float16, requires_grad=True)
    loss, _ = qae.policy_loss(log_prob, log_prob.detach(), advantages=torch.ones(2), normalizer=1e9)
    (loss * 2.0**20).backward()
    expected = torch.tensor(-(2.0**20) / 1e9).half().expand(2, 8)
    assert log_prob.grad is not None and torch.equal(log_prob.grad, expected)


def test_the_loss_may_be_changed_in_place() -> None:
    """As verl does: it is no view of the metrics."""
    log_prob = policy()
    loss = loss_of(log_prob)
    value = loss.item()
    loss -= 1.0
    loss *= 3.0
    loss.backward()
    (expected,) = torch.autograd.grad(loss_of(log_prob), log_prob)
    assert loss.item() == pytest.approx(3.0 * (value - 1.0), rel=1e-6)
    assert log_prob.grad is not None and torch.allclose(log_prob.grad, 3.0 * expected)


def test_backward_twice_with_retain_graph() -> None:
    log_prob = policy()
    loss = loss_of(log_prob)
    loss.backward(retain_graph=True)
    assert log_prob.grad is not None
    first = log_prob.grad.clone()
    log_prob.grad.fill_(torch.nan)  # of its own memory
    log_prob.grad = None
    loss.backward(retain_graph=True)
    loss.backward()
    assert log_prob.grad is not None and torch.equal(log_prob.grad, 2 * first)


def test_several_gradients_at_once() -> None:
    log_prob = policy()
    loss = loss_of(log_prob)
    factors = torch.tensor([1.0, 2.0, -0.5])
    (found,) = torch.autograd.grad(
        loss, log_prob, factors, is_grads_batched=True, retain_graph=True
    )
    (one,) = torch.autograd.grad(loss, log_prob)
    assert torch.equal(found, factors[:, None, None] * one)


def test_a_second_derivative_is_refused_by_name() -> None:
    log_prob = policy()
    message = "qae: policy_loss is differentiable once: expected create_graph=False"
    with pytest.raises(RuntimeError, match=message):
        torch.autograd.grad(loss_of(log_prob), log_prob, create_graph=True)
    logits = torch.randn(3, 4, requires_grad=True)
    log_prob, _ = qae.log_probs_and_entropy(logits, torch.tensor([0, 1, 2]))
    with pytest.raises(RuntimeError, match="log_probs_and_entropy is differentiable once"):
        torch.autograd.grad(log_prob.sum(), logits, create_graph=True)


def test_transforms_are_refused() -> None:
    ids = torch.zeros(12, 9, dtype=torch.int64)
    logits = torch.randn(12, 9, 3)
    entropy = lambda x: qae.log_probs_and_entropy(x, ids)[1].sum()
    for function, leaf in [(loss_of, policy().detach()), (entropy, logits)]:
        with pytest.raises(RuntimeError, match="expected a tensor without tangent"):
            torch.func.jvp(function, (leaf,), (leaf,))
        with pytest.raises(RuntimeError, match="functorch transforms"):
            torch.func.grad(function)(leaf)


def test_only_the_policy_has_a_gradient() -> None:
    batch = random_batch(1)
    others = {
        name: tensor.clone().requires_grad_()
        for name, tensor in {
            "ref_log_prob": batch.reference,
            "importance_weight": batch.weight,
            "rewards": batch.rewards,
            "normalizer": torch.tensor(31.0),
        }.items()
    }
    old = batch.old.clone().requires_grad_()
    log_prob = parameter(batch.log_prob)
    loss, metrics = qae.policy_loss(
        log_prob,
        old,
        groups=4,
        mask=batch.mask,
        kl=qae.Kl(),
        **others,  # type: ignore[arg-type]
    )
    loss.backward()
    assert log_prob.grad is not None and old.grad is None
    assert all(tensor.grad is None for tensor in others.values())
    assert not any(t.requires_grad for t in metrics if isinstance(t, Tensor))


# ------------------------------------------------------------------------------------------- modes


def test_without_grad_mode(backend: Backend) -> None:
    log_prob = policy()
    expected = loss_of(log_prob)
    assert expected.requires_grad
    with torch.no_grad():
        assert not (loss := loss_of(log_prob)).requires_grad
    assert torch.equal(loss, expected)
    with torch.inference_mode():
        loss = loss_of(log_prob.detach())
    assert torch.equal(loss, expected) and loss.is_inference()


def test_autocast() -> None:
    """A bfloat16 linear layer under autocast, with float32 log-probs of the old policy."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(8, 5)
    hidden = torch.randn(4, 6, 8)
    ids = torch.randint(5, (4, 6))
    old = torch.log_softmax(hidden @ layer.weight.T + layer.bias, -1)
    old = old.gather(-1, ids[..., None]).squeeze(-1).detach()
    gradients = []
    for within in (True, False):
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            logits = layer(hidden)
            assert logits.dtype == torch.bfloat16
            log_prob = (logits - logits.logsumexp(-1, keepdim=True).to(logits.dtype)).gather(
                -1, ids[..., None]
            )
            log_prob = log_prob.squeeze(-1).to(torch.bfloat16)
            options: dict[str, Any] = {"advantages": torch.randn(4).sign(), "normalizer": 24}
            torch.manual_seed(1)
            if within:
                loss, _ = qae.policy_loss(log_prob, old, **options)
        if not within:
            loss, _ = qae.policy_loss(log_prob.float(), old, **options)
        assert loss.dtype == torch.float32
        loss.backward()
        assert layer.weight.grad is not None
        gradients.append(layer.weight.grad.clone())
    assert gradients[0].abs().sum() > 0


def test_checkpointing_recomputes_the_same() -> None:
    from torch.utils.checkpoint import checkpoint

    for use_reentrant in (False, True):
        log_prob, plain = policy(), policy()
        checkpoint(loss_of, log_prob, use_reentrant=use_reentrant).backward()
        loss_of(plain).backward()
        assert log_prob.grad is not None and plain.grad is not None
        assert torch.equal(log_prob.grad, plain.grad)


def test_a_double_gradient_too_small_for_float32_is_no_zero() -> None:
    batch = near_policy(random_batch(6), 0.9)

    def gradient(multiplier: float) -> Tensor:
        leaf = parameter(batch.logits.double(), torch.device("cpu"))
        loss, _ = loss_from_logits(leaf * 1.0, batch, loss_multiplier=multiplier)
        (loss / multiplier).backward()
        assert leaf.grad is not None
        return leaf.grad

    expected = gradient(1.0)
    assert (expected != 0).any()
    torch.testing.assert_close(gradient(1e-50), expected, rtol=1e-12, atol=0.0)
