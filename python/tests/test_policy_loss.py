"""``qae.policy_loss`` against the formulas in plain torch, in every layout and dtype."""

from __future__ import annotations

from typing import Any

import oracle
import pytest
import torch
from batches import LAYOUTS, Batch, expected_loss, parameter, random_batch
from conftest import Backend

import qae

pytestmark = pytest.mark.usefixtures("poisoned")

CLIP = qae.Objective.clip()
VERL = qae.Objective.clip(dual_clip=3.0)
OBJECTIVES = {
    "clip": CLIP,
    "tight-dual-clip": qae.Objective.clip(low=0.05, high=0.05, dual_clip=1.1),
    "unbounded-above-capped": qae.Objective.clip(high=None, ratio_cap=1.2),
    "gspo": qae.Objective.gspo(low=0.02, high=0.03),
    "gspo-clamped": qae.Objective.gspo(low=None, high=None, log_ratio_max=0.05),
    "cispo": qae.Objective.cispo(),
    "cispo-above": qae.Objective.cispo(low=None),
    "sapo": qae.Objective.sapo(),
    "reinforce": qae.Objective.reinforce(),
}


def compute(
    batch: Batch, layout: str, backend: Backend, **options: Any
) -> tuple[torch.Tensor, torch.Tensor, qae.Metrics]:
    """Loss, gradient as [rows, width], metrics."""
    device = backend.device
    rename = {"clamp": "log_ratio_clamp"}
    options = {rename.get(name, name): value for name, value in options.items()}
    options.setdefault("normalizer", "batch")
    if options.get("kl") is not None:
        options["ref_log_prob"] = batch.put(batch.reference, layout, device)
    if isinstance(options.get("weight"), torch.Tensor):
        options["importance_weight"] = batch.put(options.pop("weight"), layout, device)
    log_prob = batch.put(batch.log_prob, layout, device).requires_grad_()
    places = batch.places(layout, device)
    loss, metrics = qae.policy_loss(
        log_prob,
        batch.put(batch.old, layout, device),
        rewards=batch.rewards.to(device),
        groups=4,
        **places,
        **options,
    )
    loss.backward()
    assert log_prob.grad is not None and log_prob.grad.dtype == log_prob.dtype
    return loss.detach(), batch.take(log_prob.grad, layout), metrics


def check(batch: Batch, layout: str, backend: Backend, **options: Any) -> qae.Metrics:
    """Loss, gradient and metrics against the oracle."""
    options.setdefault("objective", CLIP)
    loss, gradient, metrics = compute(batch, layout, backend, **options)
    expected, d_expected, advantage = expected_loss(batch, layout, **options)
    single, d_single, _ = expected_loss(batch, layout, torch.float32, **options)
    backend.assert_close(loss, expected.loss, single.loss.detach(), "loss")
    backend.assert_close(gradient, d_expected, d_single, "gradient")
    values = metrics.to_dict()
    metrics.check()
    terms = expected.pg_loss.abs().item() + 1.0
    tolerance = 1e-12 if backend.is_exact else 2e-6 * terms
    assert values["pg_loss"] == pytest.approx(expected.pg_loss.item(), abs=tolerance)
    assert values["kl_loss"] == pytest.approx(expected.kl_loss.item(), abs=tolerance)
    valid = batch.valid(layout)
    assert values["tokens"] == valid.sum()
    assert values["active_tokens"] == (valid & (advantage != 0)[:, None]).sum()
    rows = torch.nonzero(valid.any(-1) & (advantage != 0)).flatten().tolist()
    assert metrics.active_rows.tolist() == rows + [-1] * (batch.rows - len(rows))
    assert metrics.active_count.tolist() == [len(rows)]
    backend.assert_close(metrics.advantage, advantage, advantage.float(), "advantage")
    # Exactly: masked slots and inactive responses have no gradient.
    silent = ~valid if options.get("kl") else ~valid | (advantage == 0)[:, None]
    assert (gradient[silent] == 0).all()
    return metrics


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("layout", ["mask", "packed-mask"])
def test_objectives(backend: Backend, name: str, layout: str) -> None:
    check(random_batch(1), layout, backend, objective=OBJECTIVES[name])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_layouts_and_dtypes(backend: Backend, layout: str, dtype: torch.dtype) -> None:
    if dtype == torch.float64 and not backend.is_exact:
        pytest.skip("float64 is for the CPU")
    check(random_batch(2, dtype=dtype), layout, backend, objective=VERL)


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
@pytest.mark.parametrize("clamp", [True, False])
def test_kl(backend: Backend, kind: str, clamp: bool) -> None:
    check(random_batch(3), "mask", backend, kl=qae.Kl(kind, 0.1, clamp))  # type: ignore[arg-type]


@pytest.mark.parametrize("layout", ["mask", "packed"])
@pytest.mark.parametrize(
    "aggregation",
    ["token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"],
)
def test_aggregations(backend: Backend, aggregation: str, layout: str) -> None:
    norm = 17.0 if aggregation.endswith("norm") else None
    options = {"aggregation": aggregation, "loss_scale_factor": norm}
    check(random_batch(4), layout, backend, **options)
    check(random_batch(4), layout, backend, **options, normalizer=31, loss_multiplier=2.0)


@pytest.mark.parametrize(
    "options",
    [
        {"baseline": "mean", "epsilon": 1e-4},
        {"baseline": "leave_one_out", "scale": "none"},
        {"k": 0.7, "interpolation": "linear", "scale": "std_population"},
        {"gate": "two_regime", "k": 0.3},
        {"gate": "positive_mask", "success_threshold": 0.6},
        {"gate": "negative_mask"},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_advantage_options(backend: Backend, options: dict[str, Any]) -> None:
    check(random_batch(5, binary=False), "mask", backend, **options)


def test_importance_weights(backend: Backend) -> None:
    batch = random_batch(6)
    check(batch, "strided", backend, weight=batch.weight)
    for shape in [(-1,), (-1, 1)]:
        weight = batch.weight[:, 0]
        found, gradient, _ = compute(
            batch, "packed", backend, importance_weight=weight.reshape(shape).to(backend.device)
        )
        options: dict[str, Any] = {"objective": CLIP, "weight": weight[:, None]}
        expected, d_expected, _ = expected_loss(batch, "packed", **options)
        single, d_single, _ = expected_loss(batch, "packed", torch.float32, **options)
        backend.assert_close(found, expected.loss, single.loss.detach())
        backend.assert_close(gradient, d_expected, d_single)


@pytest.mark.parametrize("clamp", [None, 0.1])
def test_log_ratio_clamp(backend: Backend, clamp: float | None) -> None:
    check(random_batch(7), "mask", backend, clamp=clamp)


def of_advantages(
    batch: Batch, advantages: torch.Tensor, valid: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """The oracle's loss and gradient where advantages are given."""
    x = parameter(batch.log_prob.to(dtype))
    old, advantages = batch.old.to(dtype), advantages.to(dtype)
    out = oracle.loss(x, old, advantages, valid, objective=CLIP, normalizer=40)
    return out.loss.detach(), torch.autograd.grad(out.loss, x)[0]


@pytest.mark.parametrize("layout", ["mask", "packed"])
def test_given_advantages(backend: Backend, layout: str) -> None:
    batch = random_batch(8)
    valid = batch.valid(layout)
    per_row = torch.randn(batch.rows, generator=torch.Generator().manual_seed(0))
    per_row[3] = 0.0
    per_token = torch.where(batch.weight > 1.2, batch.weight, 0.0) * per_row[:, None]
    for given, spread in [
        (per_row, per_row[:, None]),
        (per_row[:, None].double(), per_row[:, None]),
        (batch.put(per_token, layout), per_token),
    ]:
        log_prob = batch.put(batch.log_prob, layout, backend.device).requires_grad_()
        loss, metrics = qae.policy_loss(
            log_prob,
            batch.put(batch.old, layout, backend.device),
            advantages=given.to(backend.device),
            normalizer=40,
            **batch.places(layout, backend.device),
        )
        loss.backward()
        assert metrics.advantage is None and metrics.baseline is None

        expected, d_expected = of_advantages(batch, spread, valid, torch.float64)
        single, d_single = of_advantages(batch, spread, valid, torch.float32)
        backend.assert_close(loss, expected, single)
        assert log_prob.grad is not None
        backend.assert_close(batch.take(log_prob.grad, layout), d_expected, d_single)


def test_response_index_cuts_a_batch_into_micro_batches(backend: Backend) -> None:
    batch, device = random_batch(9), backend.device
    tokens = int(batch.mask.sum())
    _, whole, _ = compute(batch, "mask", backend, normalizer=tokens)
    order = torch.randperm(batch.rows, generator=torch.Generator().manual_seed(1))
    pieces = torch.zeros_like(whole)
    for index in order.split([5, 1, 6]):
        log_prob = batch.log_prob[index].to(device).requires_grad_()
        loss, _ = qae.policy_loss(
            log_prob,
            batch.old[index].to(device),
            rewards=batch.rewards.to(device),
            groups=torch.tensor(batch.ids),
            response_index=index.to(device),
            mask=batch.mask[index].to(device),
            normalizer=torch.tensor(tokens, device=device),
        )
        loss.backward()
        assert log_prob.grad is not None
        pieces[index] = log_prob.grad.cpu()
    assert torch.equal(pieces, whole.cpu())


@pytest.mark.parametrize("index_dtype", [torch.int64, torch.int32, torch.int16, torch.uint8])
@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.uint8, torch.int64, torch.bfloat16])
def test_integer_and_mask_dtypes(
    backend: Backend, index_dtype: torch.dtype, mask_dtype: torch.dtype
) -> None:
    batch, device = random_batch(10), backend.device
    expected = compute(batch, "packed-mask", backend)
    log_prob = batch.put(batch.log_prob, "packed-mask", device).requires_grad_()
    offsets = batch.places("packed")["offsets"].to(index_dtype).to(device)
    mask = batch.pack(batch.mask).to(mask_dtype).to(device)
    loss, _ = qae.policy_loss(
        log_prob,
        batch.put(batch.old, "packed-mask", device),
        rewards=batch.rewards.to(device),
        groups=4,
        response_index=torch.arange(batch.rows, dtype=index_dtype, device=device),
        offsets=offsets,
        mask=mask * 3 if mask_dtype in (torch.uint8, torch.int64) else mask,
        normalizer="batch",
    )
    loss.backward()
    assert log_prob.grad is not None
    assert torch.equal(loss, expected[0])
    assert torch.equal(batch.take(log_prob.grad, "packed-mask"), expected[1])


def test_lengths_of_any_integer_dtype(backend: Backend) -> None:
    batch, device = random_batch(10), backend.device
    for dtype in (torch.int8, torch.int32, torch.int64):
        batch.lengths = batch.lengths.to(dtype)
        check(batch, "lengths", Backend(backend.name, device))


def test_grad_scale_multiplies_the_gradient_only(backend: Backend) -> None:
    batch = random_batch(11)
    loss, gradient, _ = compute(batch, "mask", backend)
    same, scaled, _ = compute(batch, "mask", backend, grad_scale=4.0)
    assert torch.equal(loss, same) and torch.equal(4.0 * gradient, scaled)


def test_metrics_over_active_tokens(backend: Backend) -> None:
    batch = random_batch(12)
    loss, gradient, metrics = compute(batch, "mask", backend, metrics_scope="active")
    full_loss, full_gradient, full = compute(batch, "mask", backend)
    assert torch.equal(loss, full_loss) and torch.equal(gradient, full_gradient)
    values, full_values = metrics.to_dict(), full.to_dict()
    assert values["tokens"] == values["active_tokens"] == full_values["active_tokens"]
    assert values["tokens"] < full_values["tokens"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_metrics_are_those_of_the_tokens(backend: Backend, dtype: torch.dtype) -> None:
    batch = random_batch(13, dtype=dtype)
    batch.rewards = torch.tensor([0.0, 0.0, 0.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0])
    tight = qae.Objective.clip(low=0.05, high=0.1)
    _, _, metrics = compute(batch, "mask", backend, objective=tight)
    values = metrics.to_dict()
    valid = batch.mask
    delta = (batch.log_prob.double() - batch.old.double())[valid]
    ratio = delta.exp()
    advantage, _ = oracle.advantages(batch.rewards, batch.ids)
    token_advantage = advantage[:, None].expand_as(valid)[valid]
    above = ((ratio > 1.1) & (token_advantage > 0)).double().mean().item()
    below = ((ratio < 0.95) & (token_advantage < 0)).double().mean().item()
    assert above > 0 and below > 0
    assert values["clip_fraction_above"] == pytest.approx(above, rel=1e-12)
    assert values["clip_fraction_below"] == pytest.approx(below, rel=1e-12)
    assert values["clip_fraction"] == pytest.approx(above + below, rel=1e-12)
    assert values["approx_kl"] == pytest.approx(-delta.mean().item(), abs=1e-7)
    assert values["min_ratio"] == pytest.approx(ratio.min().item(), rel=1e-6)
    assert values["max_ratio"] == pytest.approx(ratio.max().item(), rel=1e-6)


def test_mixed_dtypes_are_promoted(backend: Backend) -> None:
    batch, device = random_batch(14, dtype=torch.bfloat16), backend.device
    batch.old = random_batch(14).old
    log_prob = parameter(batch.log_prob, device)
    loss, _ = qae.policy_loss(
        log_prob,
        batch.old.to(device),
        rewards=batch.rewards.to(device),
        groups=4,
        mask=batch.mask.to(device),
        normalizer="batch",
    )
    loss.backward()
    expected, d_expected, _ = expected_loss(batch, "mask", objective=CLIP)
    single, d_single, _ = expected_loss(batch, "mask", torch.float32, objective=CLIP)
    backend.assert_close(loss, expected.loss, single.loss.detach())
    assert log_prob.grad is not None and log_prob.grad.dtype == torch.bfloat16
    backend.assert_close(log_prob.grad, d_expected, d_single)


def test_values_that_are_not_finite_are_counted_and_do_not_spread(backend: Backend) -> None:
    batch, device = random_batch(15), backend.device
    batch.rewards = torch.tensor([0.0, 0.0, 0.0, 1.0] * 3)
    batch.mask[3, :3] = True
    _, clean, _ = compute(batch, "mask", backend, normalizer=10)
    batch.log_prob[3, 0], batch.old[3, 2] = torch.nan, -torch.inf
    loss, gradient, metrics = compute(batch, "mask", backend, normalizer=10)
    assert loss.isfinite() and gradient.isfinite().all()
    others = torch.ones_like(clean, dtype=torch.bool)
    others[3, [0, 2]] = False
    assert torch.equal(gradient[others], clean[others]) and (gradient[~others] == 0).all()
    assert metrics.to_dict()["nonfinite_tokens"] == 2
    with pytest.raises(ValueError, match="found 2 that were left out"):
        metrics.check()
    rewards = batch.rewards.clone()
    rewards[0] = torch.inf
    out = qae.advantages(rewards.to(device), 4)
    assert out.metrics.to_dict()["nonfinite_rewards"] == 1 and out.advantage[0] == 0


@pytest.mark.parametrize("shape", [(0, 5), (4, 0), (0, 0)])
def test_empty_batches(backend: Backend, shape: tuple[int, int]) -> None:
    log_prob = torch.zeros(shape, device=backend.device, requires_grad=True)
    rewards = torch.arange(shape[0], device=backend.device)
    for normalizer in ("batch", 7, torch.tensor(7.0, device=backend.device)):
        loss, metrics = qae.policy_loss(
            log_prob, log_prob.detach(), rewards=rewards, groups=4, normalizer=normalizer
        )
        loss.backward()
        assert loss == 0 and metrics.to_dict()["tokens"] == 0 and log_prob.grad is not None


def test_packed_empty_batches(backend: Backend) -> None:
    for offsets in ([0], [0, 0, 0]):
        log_prob = torch.zeros(0, device=backend.device, requires_grad=True)
        loss, _ = qae.policy_loss(
            log_prob,
            log_prob.detach(),
            advantages=torch.ones(len(offsets) - 1, device=backend.device),
            offsets=torch.tensor(offsets, device=backend.device),
            normalizer=3,
        )
        loss.backward()
        assert loss == 0


@pytest.mark.parametrize("aggregation", ["token-mean", "seq-mean-token-mean"])
def test_all_masked(backend: Backend, aggregation: Any) -> None:
    log_prob = torch.full((4, 3), torch.nan, device=backend.device, requires_grad=True)
    loss, metrics = qae.policy_loss(
        log_prob,
        log_prob.detach(),
        rewards=torch.tensor([0.0, 1.0, 0.0, 0.0], device=backend.device),
        groups=4,
        mask=torch.zeros(4, 3, dtype=torch.bool, device=backend.device),
        aggregation=aggregation,
        normalizer="batch",
    )
    loss.backward()
    assert loss == 0 and log_prob.grad is not None and (log_prob.grad == 0).all()
    assert metrics.active_count.tolist() == [0]


@pytest.mark.parametrize("value", [0.0, -3.0, torch.nan])
def test_a_normalizer_tensor_without_a_count_makes_everything_0(
    backend: Backend, value: float
) -> None:
    batch = random_batch(16)
    normalizer = torch.tensor(value, device=backend.device)
    loss, gradient, _ = compute(batch, "mask", backend, normalizer=normalizer)
    assert loss == 0 and (gradient == 0).all()


@pytest.mark.parametrize(
    "normalizer",
    [torch.tensor(40), torch.tensor([40.0]), torch.tensor([[40]], dtype=torch.int16), 40.0],
    ids=str,
)
def test_normalizers_of_every_kind(backend: Backend, normalizer: Any) -> None:
    batch = random_batch(17)
    if isinstance(normalizer, torch.Tensor):
        normalizer = normalizer.to(backend.device)
    expected = compute(batch, "mask", backend, normalizer=40)
    found = compute(batch, "mask", backend, normalizer=normalizer)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


def test_the_same_bits_on_every_run(backend: Backend) -> None:
    batch = random_batch(18)
    first, second = compute(batch, "mask", backend), compute(batch, "mask", backend)
    assert torch.equal(first[1], second[1]) and torch.equal(first[2].words, second[2].words)


def test_a_batch_without_tokens_has_a_normalizer_of_0() -> None:
    log_prob = torch.zeros(2, 3, requires_grad=True)
    mask = torch.zeros(2, 3, dtype=torch.bool)
    loss, _ = qae.policy_loss(
        log_prob, log_prob.detach(), advantages=torch.ones(2), mask=mask, normalizer=0
    )
    loss.backward()
    assert loss.item() == 0.0 and log_prob.grad is not None
    assert torch.equal(log_prob.grad, torch.zeros(2, 3))
