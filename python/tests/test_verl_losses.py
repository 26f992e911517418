"""`qae_fused*` inside verl's own `ppo_loss`, against verl's own losses in float64."""

from __future__ import annotations

import pathlib

import pytest
import torch

pytest.importorskip("verl")

from safetensors import safe_open
from tensordict import TensorDict
from verl.trainer.ppo.core_algos import get_policy_loss_fn
from verl.utils import tensordict_utils
from verl.utils.metric import AggregationType, Metric
from verl.workers.config import FSDPActorConfig, PolicyLossConfig
from verl.workers.utils.losses import ppo_loss

import qae.verl  # noqa: F401

ROLLOUTS = pathlib.Path(__file__).resolve().parents[2] / "data" / "trl-addition.safetensors"
FUSED = {
    "vanilla": "qae_fused",
    "gspo": "qae_fused_gspo",
    "cispo": "qae_fused_cispo",
    "sapo": "qae_fused_sapo",
}
AGGREGATIONS = [
    "token-mean",
    "token-sum",
    "seq-mean-token-mean",
    "seq-mean-token-sum",
    "seq-mean-token-sum-norm",
]
VERL_METRICS = ["actor/pg_clipfrac", "actor/ppo_kl", "actor/pg_clipfrac_lower"]
SINGLE_PROCESS = {"dp_size": 1, "batch_num_tokens": None, "global_batch_size": None}
OF_FOUR_RANKS = {"dp_size": 4, "batch_num_tokens": 813, "global_batch_size": 52}


def actor_config(loss_mode: str, **options) -> FSDPActorConfig:
    return FSDPActorConfig(
        strategy="fsdp",
        rollout_n=4,
        ppo_micro_batch_size_per_gpu=1,
        policy_loss=PolicyLossConfig(loss_mode=loss_mode),
        **options,
    )


def random_batch(seed: int, rows: int = 13, width: int = 29) -> dict[str, torch.Tensor]:
    """Padded float32 tensors as verl's trainer has them: int64 masks with holes, rows without a
    valid token, zero advantages, ratios inside and outside every bound."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator)

    lengths = (uniform(rows) * (width + 1)).long().clamp(1, width)
    lengths[0], lengths[1] = width, 1
    inside = torch.arange(width) < lengths.unsqueeze(1)
    holes = uniform(rows, width) < 0.2
    holes[2] = True
    log_prob = -3 * uniform(rows, width)
    log_ratio = 0.4 * torch.randn(rows, width, generator=generator)
    log_ratio[uniform(rows, width) < 0.1] *= 6
    log_ratio[3, ::5], log_ratio[4, ::4] = 24.0, -24.0
    # A row whose mean log-ratio is beyond GSPO's clamp.
    log_ratio[5] += 12.0
    advantages = torch.randn(rows, 1, generator=generator).expand(rows, width).clone()
    advantages[6:9] = 0.0
    return {
        "log_probs": log_prob,
        "old_log_probs": log_prob - log_ratio,
        "ref_log_prob": log_prob + 0.3 * torch.randn(rows, width, generator=generator),
        "advantages": advantages,
        "response_mask": (inside & ~holes).long(),
        "rollout_is_weights": 2 * uniform(rows, width),
        "entropy": uniform(rows, width),
        "lengths": lengths,
    }


def real_batch() -> dict[str, torch.Tensor]:
    """The rollouts that TRL captured, with this package's advantages at k = 0.4."""
    with safe_open(ROLLOUTS, "pt") as file:
        mask = file.get_tensor("completion_mask").long()
        advantages = file.get_tensor("qae_cdf.advantage").float()
        log_prob = file.get_tensor("per_token_logps")
        return {
            "log_probs": log_prob,
            "old_log_probs": file.get_tensor("old_per_token_logps"),
            "ref_log_prob": log_prob.roll(1, 0),
            "advantages": advantages.unsqueeze(1) * mask,
            "response_mask": mask,
            "rollout_is_weights": (log_prob.roll(1, 1) / 4).exp(),
            "entropy": file.get_tensor("entropies"),
            "lengths": mask.sum(1),
        }


def run(
    loss_mode: str,
    batch: dict[str, torch.Tensor],
    dtype: torch.dtype = torch.float32,
    global_batch: dict = SINGLE_PROCESS,
    weights: bool = False,
    nested: bool = False,
    entropy: bool = False,
    **options,
):
    """verl's ppo_loss: loss, gradients of log-probs and entropy (padded), metrics."""
    floats = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in batch.items()
    }
    data, starts = trainer_data(floats, weights, nested)
    tensordict_utils.assign_non_tensor(data, **global_batch)
    leaves = {name: floats[name].clone().requires_grad_() for name in ("log_probs", "entropy")}
    output = {name: unpadded(leaf, floats["lengths"], starts) for name, leaf in leaves.items()}
    if not entropy:
        del output["entropy"]
    loss, metrics = ppo_loss(actor_config(loss_mode, **options), output, data)
    loss.backward()
    gradients = [leaf.grad for leaf in leaves.values() if leaf.grad is not None]
    return loss.detach(), torch.stack(gradients), metrics


def trainer_data(floats, weights: bool, nested: bool):
    """The TensorDict that an engine hands to ppo_loss, and the prompts' lengths."""
    lengths, width = floats["lengths"], floats["log_probs"].shape[1]
    rows = len(lengths)
    prompt_lengths = 1 + torch.arange(rows) % 3
    names = ["old_log_probs", "ref_log_prob", "advantages", "response_mask"]
    fields = {name: floats[name] for name in names + ["rollout_is_weights"] * weights}
    fields["responses"] = torch.zeros(rows, width, dtype=torch.int64)
    fields["prompts"] = torch.zeros(rows, 3, dtype=torch.int64)
    if nested:
        for name, tensor in fields.items():
            of = prompt_lengths if name == "prompts" else lengths
            parts = [row[:length] for row, length in zip(tensor, of.tolist())]
            fields[name] = torch.nested.as_nested_tensor(parts, layout=torch.jagged)
    else:
        in_prompt = torch.arange(3).flip(0) < prompt_lengths.unsqueeze(1)
        in_response = torch.arange(width) < lengths.unsqueeze(1)
        fields["attention_mask"] = torch.cat([in_prompt, in_response], dim=1).long()
    data = TensorDict(fields, batch_size=rows)
    if nested:
        tensordict_utils.assign_non_tensor(data, max_response_len=width)
    return data, prompt_lengths


def unpadded(values: torch.Tensor, lengths: torch.Tensor, prompt_lengths: torch.Tensor):
    """A model's output: prompt and response of each row back to back, predictions one early."""
    parts = []
    for row, length, prompt in zip(values, lengths.tolist(), prompt_lengths.tolist()):
        parts += [row.new_zeros(prompt - 1), row[:length], row.new_zeros(1)]
    return torch.cat(parts)


def assert_as_verl(objective: str, batch, **how) -> None:
    loss, gradient, metrics = run(FUSED[objective], batch, **how)
    exact_loss, exact_gradient, exact_metrics = run(objective, batch, torch.float64, **how)
    f32_loss, f32_gradient, _ = run(objective, batch, **how)
    assert_close(loss, exact_loss, f32_loss)
    assert_close(gradient, exact_gradient, f32_gradient)
    assert exact_gradient.abs().max() > 0
    for name, exact in exact_metrics.items():
        if not isinstance(exact, Metric):
            assert metrics[name] == exact
            continue
        assert metrics[name].aggregation == exact.aggregation
        expected, found = exact.aggregate(), metrics[name].aggregate()
        # Means over at most 14,000 tokens, whose terms in float32 are below 30.
        assert found == pytest.approx(expected, rel=2e-5, abs=2e-5), name
    assert {type(value) for name in VERL_METRICS for value in metrics[name].values} == {float}


def assert_close(found: torch.Tensor, exact: torch.Tensor, f32: torch.Tensor) -> None:
    """Row by row within 4 times verl's own float32 error, at least 2e-6 of the largest value."""
    assert found.dtype == torch.float32 and exact.dtype == torch.float64

    def largest(of: torch.Tensor) -> torch.Tensor:
        return of.abs().amax(dim=-1) if of.dim() else of.abs()

    bound = torch.maximum(4 * largest(f32.double() - exact), 2e-6 * largest(exact))
    assert (largest(found.double() - exact) <= bound).all()


@pytest.mark.parametrize("objective", FUSED)
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("global_batch", [SINGLE_PROCESS, OF_FOUR_RANKS], ids=["own", "global"])
def test_random_batches(objective, aggregation, global_batch):
    for seed in range(3):
        assert_as_verl(
            objective,
            random_batch(seed),
            global_batch=global_batch,
            weights=seed == 1,
            nested=seed == 2,
            loss_agg_mode=aggregation,
        )


@pytest.mark.parametrize("objective", FUSED)
@pytest.mark.parametrize("weights", [False, True])
def test_real_rollouts(objective, weights):
    # The sequence ratios of GSPO are close to 1, and so are its bounds.
    bounds = (3e-4, 4e-4) if objective == "gspo" else (0.2, 0.28)
    assert_as_verl(
        objective,
        real_batch(),
        weights=weights,
        clip_ratio_low=bounds[0],
        clip_ratio_high=bounds[1],
        global_batch={"dp_size": 2, "batch_num_tokens": 7438, "global_batch_size": 256},
    )


@pytest.mark.parametrize("objective", FUSED)
def test_advantages_per_token(objective):
    batch = random_batch(5)
    generator = torch.Generator().manual_seed(6)
    batch["advantages"] = torch.randn(batch["advantages"].shape, generator=generator)
    assert_as_verl(objective, batch)


@pytest.mark.parametrize("objective", FUSED)
def test_kl_and_entropy_stay_verls(objective):
    """ppo_loss adds them in place to what the policy loss returned."""
    assert_as_verl(
        objective,
        random_batch(7),
        entropy=True,
        entropy_coeff=0.01,
        use_kl_loss=True,
        kl_loss_coef=0.2,
        loss_agg_mode="seq-mean-token-mean",
    )


@pytest.mark.parametrize(
    "options",
    [
        {"clip_ratio": 0.1, "clip_ratio_low": None, "clip_ratio_high": None},
        {"clip_ratio_low": 0.05, "clip_ratio_high": 0.4, "clip_ratio_c": 1.5},
        {"clip_ratio_low": 1.0, "clip_ratio_high": 3.0},
        {"clip_ratio_low": 1.7, "clip_ratio_high": 0.0},
        {"tau_pos": 2.0, "tau_neg": 0.7},
        {"loss_agg_mode": "seq-mean-token-sum-norm", "loss_scale_factor": 1000},
    ],
)
@pytest.mark.parametrize("objective", FUSED)
def test_options(objective, options):
    assert_as_verl(objective, random_batch(8), **options)


def test_the_random_batch_meets_every_branch():
    _, gradient, metrics = run("qae_fused", random_batch(1))
    for name in ["pg_clipfrac", "pg_clipfrac_lower", "qae/clip_fraction_above"]:
        assert metrics[f"actor/{name}"].aggregate() > 0
    assert metrics["actor/qae/clip_fraction_below"].aggregate() > 0
    assert 0 < metrics["actor/qae/active_token_fraction"].aggregate() < 1
    assert metrics["actor/qae/nonfinite_tokens"].aggregate() == 0
    batch = random_batch(1)
    counts = (batch["response_mask"] > 0) & (batch["advantages"] != 0)
    assert not gradient[0][~counts].any()


def test_own_metrics_share_keys_and_aggregation():
    for objective in FUSED.values():
        _, _, metrics = run(objective, random_batch(0))
        own = {name for name in metrics if name.startswith("actor/qae/")}
        assert own == {
            f"actor/qae/{name}"
            for name in (
                "active_token_fraction",
                "clip_fraction_above",
                "clip_fraction_below",
                "nonfinite_tokens",
            )
        }
        assert {metrics[name].aggregation for name in own} == {AggregationType.MEAN}


@pytest.mark.parametrize("objective", FUSED)
@pytest.mark.parametrize(
    "global_batch", [SINGLE_PROCESS, {"dp_size": 2, "batch_num_tokens": 0, "global_batch_size": 8}]
)
def test_nothing_valid_is_a_loss_of_zero(objective, global_batch):
    batch = random_batch(1)
    batch["response_mask"] = torch.zeros_like(batch["response_mask"])
    loss, gradient, _ = run(FUSED[objective], batch, global_batch=global_batch)
    assert loss == 0 and not gradient.any()


def test_masked_slots_may_hold_anything():
    batch = random_batch(2)
    loss, gradient, _ = run("qae_fused", batch)
    for name in ("old_log_probs", "advantages", "rollout_is_weights"):
        batch[name] = batch[name].masked_fill(batch["response_mask"] == 0, torch.nan)
    poisoned, poisoned_gradient, _ = run("qae_fused", batch)
    assert loss == poisoned and torch.equal(gradient, poisoned_gradient)


def test_tokens_that_are_not_finite_are_left_out_and_named(caplog):
    batch = random_batch(2)
    batch["old_log_probs"][0, :] = torch.nan
    loss, gradient, metrics = run("qae_fused", batch)
    assert torch.isfinite(loss) and torch.isfinite(gradient).all()
    left_out = int(batch["response_mask"][0].sum())
    assert metrics["actor/qae/nonfinite_tokens"].aggregate() == left_out > 0
    assert f"{left_out} of" in caplog.text


@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.int64, torch.uint8, torch.float32])
def test_direct_call_takes_masks_of_any_dtype(mask_dtype):
    batch = random_batch(3)
    arguments = (batch["old_log_probs"], batch["log_probs"], batch["advantages"])
    mask = batch["response_mask"].to(mask_dtype)
    config = actor_config("qae_fused")
    loss, _ = get_policy_loss_fn("qae_fused")(*arguments, mask, "token-mean", config)
    wide = [tensor.double() for tensor in arguments]
    expected, _ = get_policy_loss_fn("vanilla")(
        *wide, batch["response_mask"].bool(), "token-mean", config
    )
    assert loss.item() == pytest.approx(expected.item(), rel=2e-6)


def call(change=lambda tensors: None, objective="qae_fused", aggregation="token-mean", info=None):
    batch = random_batch(4)
    names = ("old_log_probs", "log_probs", "advantages", "response_mask", "rollout_is_weights")
    tensors = {name: batch[name] for name in names}
    change(tensors)
    config = actor_config(objective)
    config.global_batch_info.update(info or {})
    old, log_prob, advantages, mask, weights = tensors.values()
    return get_policy_loss_fn(objective)(
        old, log_prob, advantages, mask, aggregation, config, weights
    )


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"aggregation": "mean"}, r"^loss_agg_mode: expected token-mean, .*, found mean$"),
        ({"info": {"dp_size": 2}}, r"^batch_num_tokens: expected .* found none$"),
        (
            {"info": {"dp_size": 2}, "aggregation": "seq-mean-token-sum"},
            r"^global_batch_size: expected .* found none$",
        ),
        ({"info": {"world": 2}}, r"^global_batch_info: expected .*, found world$"),
        ({"info": {"batch_num_tokens": 0}}, r"^global_batch_info: expected .* above 0, found 0 wi"),
        (
            {"info": {"loss_scale_factor": 0}, "aggregation": "seq-mean-token-sum-norm"},
            r"loss_scale_factor: expected .* above 0, found 0$",
        ),
        (
            {"change": lambda t: t.update(advantages=t["advantages"][:, :1])},
            r"^advantages: expected the shape of log_prob \(13, 29\), found \(13, 1\)$",
        ),
        (
            {"change": lambda t: t.update(rollout_is_weights=t["rollout_is_weights"][:1])},
            r"^rollout_is_weights: expected the shape",
        ),
        (
            {"change": lambda t: t.update(log_probs=t["log_probs"][0])},
            r"^log_prob: expected shape \[responses, width\], found \(29,\)$",
        ),
        (
            {"change": lambda t: t.update(response_mask=t["response_mask"] * 0.5)},
            r"^response_mask: expected 0 or 1, found another number$",
        ),
    ],
)
def test_refusals(how, message):
    with pytest.raises(ValueError, match=message):
        call(**how)


@pytest.mark.parametrize(
    ("objective", "options", "message"),
    [
        ("qae_fused", {"clip_ratio_c": 1.0}, "dual_clip: expected a number above 1"),
        ("qae_fused", {"clip_ratio_low": -0.1}, "low: expected"),
        ("qae_fused_gspo", {"clip_ratio_high": -0.1}, "high: expected"),
        ("qae_fused_sapo", {"tau_neg": 0.0}, "tau_neg"),
    ],
)
def test_options_out_of_range_are_refused(objective, options, message):
    with pytest.raises(ValueError, match=message):
        run(objective, random_batch(4), **options)


def test_no_config_is_refused():
    batch = random_batch(4)
    with pytest.raises(ValueError, match=r"^config: expected verl's ActorConfig, found NoneType$"):
        get_policy_loss_fn("qae_fused")(
            batch["old_log_probs"], batch["log_probs"], batch["advantages"], batch["response_mask"]
        )
