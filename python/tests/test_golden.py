"""The repository's golden cases, whose float64 values verl, TRL and torch computed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import UNIT_ROUNDOFF, Backend
from safetensors import safe_open
from torch import Tensor

import qae

pytestmark = pytest.mark.usefixtures("poisoned")

DATA = Path(__file__).parents[2] / "tests" / "data"
UNSUPPORTED = ("clip_cov", "kl_cov", "geo_mean")


def manifest(kind: str) -> list[dict[str, Any]]:
    cases = json.loads((DATA / kind / "manifest.json").read_text())["cases"]
    assert len(cases) == {"token": 52, "logits": 8}[kind]
    return [case for case in cases if case["config"]["loss"] not in UNSUPPORTED]


def read(kind: str, case: dict[str, Any]) -> dict[str, Tensor]:
    with safe_open(DATA / kind / case["file"], "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def objective_of(config: dict[str, Any]) -> qae.Objective:
    low, high = config.get("clip_low", 0.2), config.get("clip_high", 0.28)
    params = config["loss_params"]
    loss = config["loss"]
    if loss == "ppo_clip":
        dual_clip = config.get("dual_clip", 3.0)
        return qae.Objective.clip(low, high, dual_clip, config.get("ratio_cap"))
    if loss == "gspo":
        return qae.Objective.gspo(low, high, params["seq_log_ratio_max"])
    if loss == "cispo":
        return qae.Objective.cispo(low, high)
    if loss == "sapo":
        return qae.Objective.sapo(params["tau_pos"], params["tau_neg"])
    assert loss == "gpg"
    return qae.Objective.reinforce()


def options_of(config: dict[str, Any], tensors: dict[str, Tensor], width: int) -> dict[str, Any]:
    """The keywords for a configuration of ``src/config_json.rs``."""
    normalizer = config["normalizer"]
    aggregation = config["aggregation"]
    name = "batch_num_tokens" if aggregation == "token-mean" else "global_batch_size"
    options: dict[str, Any] = {
        "objective": objective_of(config),
        "aggregation": aggregation,
        "normalizer": normalizer[name] or "batch",
        "loss_multiplier": normalizer["dp_size"],
        "log_ratio_clamp": config["log_ratio_clamp"],
        "scale": config["scale"],
        "epsilon": config["epsilon"],
        "gate": config["gate"],
        "rewards": tensors["rewards"],
        "groups": tensors["group_id"],
        "mask": tensors["mask"],
    }
    if aggregation == "seq-mean-token-sum-norm":
        options["loss_scale_factor"] = normalizer["loss_scale_factor"] or width
    baseline = dict(config["baseline"])
    options["baseline"] = baseline.pop("kind")
    options |= baseline
    kl = dict(config["kl"])
    if kl["kind"] != "none":
        options["kl"] = qae.Kl(**kl)
        options["ref_log_prob"] = tensors["ref_logp"]
    if "rollout_is_weights" in tensors and config["rollout_is_weights"]:
        options["importance_weight"] = tensors["rollout_is_weights"]
    if "cu_seqlens" in tensors:
        options["offsets"] = tensors["cu_seqlens"]
    return options


class Tolerance:
    """How far a backend may be off, relative to the largest value: as tests/golden/tolerance.rs."""

    def __init__(self, backend: Backend, case: dict[str, Any]) -> None:
        self.is_exact = backend.is_exact
        self.floor = 1e-12 if self.is_exact else 2e-6
        self.case = case
        self.errors = case["float32_error_of_the_reference"]

    def error(self, key: str) -> float:
        """Twenty times what the packages lose in float32."""
        return 0.0 if self.is_exact else 20.0 * (self.errors.get(key) or 0.0)

    def of(self, name: str, largest: float) -> float:
        scale = largest or 1.0
        verl = self.verl_epsilon(name)
        if name in ("loss", "pg_loss", "metrics.kl_loss"):
            cancellation = 2e-14 if self.is_exact else 0.0
            return self.floor + (self.error("loss_abs") + cancellation + verl) / scale
        if name == "metrics.ppo_kl":
            log_ratio = 0.0 if self.is_exact else 6e-8
            return self.floor + (log_ratio + self.error("logp_max_abs")) / scale + verl
        lost = {
            "advantage": self.error("advantage_max_abs") / scale,
            "baseline": self.error("advantage_max_abs") / scale,
            "dlogp": self.error("dlogp_max_over_largest") + self.error("logp_max_abs"),
            "logp": self.error("logp_max_abs") / scale,
            "entropy": self.error("entropy_max_abs") / scale,
            "dlogits": self.error("dlogits_max_over_largest"),
            "dlogits_row_l1": self.error("dlogits_max_over_largest"),
            "dlogits_row_l2": self.error("dlogits_max_over_largest"),
            "dlogits_row_sum": self.error("dlogits_max_over_largest"),
            "dlogits_columns": self.error("dlogits_max_abs") / scale,
        }
        return self.floor + lost.get(name, 0.0) + verl

    def verl_epsilon(self, name: str) -> float:
        """verl adds 1e-8 to the token counts of masked means."""
        means = ("metrics.pg_clipfrac", "metrics.pg_clipfrac_lower", "metrics.ppo_kl")
        if name in means:
            return 1e-8 / (0.5 * self.case["shape"].get("tokens", 200.0))
        of_loss = name.startswith("dlog") or name in ("loss", "pg_loss", "metrics.kl_loss")
        is_mean = self.case["config"]["aggregation"] == "seq-mean-token-mean"
        return 1e-8 if of_loss and is_mean else 0.0


def compare(
    case: dict[str, Any],
    backend: Backend,
    tensors: dict[str, Tensor],
    found: dict[str, Tensor | float],
) -> None:
    """Everything that the file expects, but for TRL's metrics of each response and the gradient
    of log-probs that come from logits."""
    elsewhere = {"metrics.kl", *(["dlogp"] if "dlogits" in found else [])}
    for name in tensors:
        if name.startswith("expected.") and "clip_ratio_" not in name.replace("trl_clip", ""):
            assert name.removeprefix("expected.") in {*found, *elsewhere}
    tolerance = Tolerance(backend, case)
    for name, value in found.items():
        if f"expected.{name}" not in tensors:
            continue
        expected = tensors[f"expected.{name}"].double()
        tensor = torch.as_tensor(value)
        rounding = UNIT_ROUNDOFF[tensor.dtype] if tensor.dtype != torch.float64 else 0.0
        if name.startswith("dlogits_"):
            rounding = UNIT_ROUNDOFF[found["dlogits"].dtype]  # type: ignore[union-attr]
        largest = expected.abs().max().item()
        if name == "dlogits_row_sum":  # a row sums to 0, of terms as large as this
            largest = tensors["expected.dlogits_row_l1"].max().item()
        error = (tensor.detach().cpu().double().reshape(expected.shape) - expected).abs().max()
        bound = tolerance.of(name, largest) + 1.001 * rounding
        assert error <= bound * largest, f"{name}: off by {error / largest:.3e} over {bound:.3e}"


def losses(loss: Tensor, metrics: qae.Metrics) -> dict[str, Tensor | float]:
    """What both kinds of cases expect of a loss."""
    values = metrics.to_dict()
    metrics.check()
    assert metrics.advantage is not None and metrics.baseline is not None
    zeros = (metrics.advantage.abs() <= 1e-9).double().mean().item()
    return {
        "loss": loss,
        "pg_loss": values["pg_loss"],
        "advantage": metrics.advantage,
        "baseline": metrics.baseline,
        "metrics.kl_loss": values["kl_loss"],
        "metrics.pg_clipfrac": values["clip_fraction"],
        "metrics.pg_clipfrac_lower": values["dual_clip_fraction"],
        "metrics.ppo_kl": values["approx_kl"],
        "metrics.trl_clip_ratio_low_mean": values["clip_fraction_below"],
        "metrics.trl_clip_ratio_high_mean": values["clip_fraction_above"],
        "metrics.zero_advantage_share": zeros,
    }


@pytest.mark.parametrize("wide", [False, True], ids=["", "float64"])
@pytest.mark.parametrize("case", manifest("token"), ids=lambda case: case["name"])
def test_from_log_probs(backend: Backend, case: dict[str, Any], wide: bool) -> None:
    if wide and not backend.is_exact:
        pytest.skip("float64 is for the CPU")
    tensors = read("token", case)
    given = {
        name: tensor.double() if wide and name.endswith("logp") else tensor.to(backend.device)
        for name, tensor in tensors.items()
        if not name.startswith("expected.")
    }
    log_prob = given["logp"].clone().requires_grad_()
    width = log_prob.shape[-1]
    options = options_of(case["config"], given, width)
    loss, metrics = qae.policy_loss(log_prob, given.get("old_logp"), **options)
    loss.backward()
    assert log_prob.grad is not None
    compare(case, backend, tensors, {**losses(loss, metrics), "dlogp": log_prob.grad})
    assert metrics.advantage is not None
    silent = given["mask"] == 0
    if "kl" not in options and "offsets" not in options:
        silent = silent | (metrics.advantage == 0)[:, None]
    assert (log_prob.grad[silent] == 0).all()


@pytest.mark.parametrize("wide", [False, True], ids=["", "float64"])
@pytest.mark.parametrize("case", manifest("logits"), ids=lambda case: case["name"])
def test_from_logits(backend: Backend, case: dict[str, Any], wide: bool) -> None:
    if wide and (not backend.is_exact or case["shape"]["V"] > 100_000):
        pytest.skip("float64 is for the CPU, and small cases")
    tensors = read("logits", case)
    given = {
        name: tensor.double() if wide and name.startswith("log") else tensor.to(backend.device)
        for name, tensor in tensors.items()
        if not name.startswith("expected.")
    }
    logits = given["logits"].clone().requires_grad_()
    width = logits.shape[-2]
    temperature = case["config"]["temperature"]
    options = options_of(case["config"], given, width)
    loss, metrics = qae.policy_loss_from_logits(
        logits, given["token_id"], given.get("old_logp"), temperature=temperature, **options
    )
    loss.backward()
    assert logits.grad is not None
    log_prob, entropy = qae.log_probs_and_entropy(
        logits.detach(), given["token_id"], temperature=temperature
    )
    d_logits = logits.grad.double()
    found: dict[str, Tensor | float] = {
        **losses(loss, metrics),
        "logp": log_prob,
        "entropy": entropy,
        "dlogits": logits.grad,
        "dlogits_row_l1": d_logits.abs().sum(-1),
        "dlogits_row_l2": d_logits.norm(dim=-1),
        "dlogits_row_sum": d_logits.sum(-1),
    }
    if "dlogits_column_index" in given:
        columns = given["dlogits_column_index"].long()
        found["dlogits_columns"] = logits.grad.gather(-1, columns)
    compare(case, backend, tensors, found)


def test_other_losses_are_unknown() -> None:
    for loss in UNSUPPORTED:
        with pytest.raises(ValueError, match="objective.kind: expected one of"):
            qae.Objective(loss)  # type: ignore[arg-type]
