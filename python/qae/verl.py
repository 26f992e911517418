"""Plug-in for verl: advantage estimator ``qae`` and policy losses ``qae_fused*``.

Importing this module registers them. verl does that by itself through the entry point group
``verl.plugins``, or through ``VERL_USE_EXTERNAL_MODULES=qae.verl``. Then::

    algorithm.adv_estimator=qae ++algorithm.quantile_k=0.4
    actor_rollout_ref.actor.policy_loss.loss_mode=qae_fused

``qae_fused`` computes verl's ``vanilla``; ``qae_fused_gspo``, ``qae_fused_cispo`` and
``qae_fused_sapo`` the losses of those names. See docs/verl.md.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from verl.trainer.ppo.core_algos import register_adv_est, register_policy_loss

import qae

from .config import Aggregation

__all__ = ["compute_advantage", "fused_cispo", "fused_gspo", "fused_sapo", "fused_vanilla"]

_logger = logging.getLogger(__name__)

_ALGORITHM_KEYS = (
    "k",
    "interpolation",
    "scale",
    "epsilon",
    "gate",
    "singleton",
    "success_threshold",
)
_GLOBAL_BATCH_INFO = ("dp_size", "batch_num_tokens", "global_batch_size", "loss_scale_factor")


@register_adv_est("qae")
def compute_advantage(
    token_level_rewards: torch.Tensor,
    response_mask: torch.Tensor,
    index: Any = None,
    config: Mapping[str, Any] | None = None,
    **_unused: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Advantage over the K-quantile of a prompt's rewards, in verl's form of an estimator.

    Parameters
    ----------
    token_level_rewards : tensor [responses, width]
        Summed over a response; the outcome reward wherever it stands.
    response_mask : tensor [responses, width]
        1 where a token belongs to the response.
    index : sequence of `responses` hashables
        verl's ``uid``: the prompt of each response, in any order.
    config : mapping, optional
        verl's ``algorithm``: ``quantile_k`` (0.4), ``quantile_interpolation``,
        ``quantile_scale`` (else from ``norm_adv_by_std_in_grpo``), ``quantile_epsilon``,
        ``quantile_gate``, ``quantile_singleton``, ``quantile_success_threshold``.

    Returns
    -------
    (advantages, returns) : the same float32 tensor [responses, width] twice, 0 outside the mask.

    Raises
    ------
    ValueError
        Without ``index``, for an unknown ``algorithm.quantile_*`` or a value out of range.
    """
    if index is None:
        raise ValueError("uid: expected the prompt of each response, found none")
    if token_level_rewards.shape != response_mask.shape:
        raise ValueError(
            f"response_mask: expected the shape of token_level_rewards "
            f"{tuple(token_level_rewards.shape)}, found {tuple(response_mask.shape)}"
        )
    options = _advantage_options(config)
    with torch.no_grad():
        rewards = token_level_rewards.sum(dim=-1).float()
        try:
            result = qae.advantages(rewards, index, **options)
        except (TypeError, ValueError) as error:
            raise type(error)(_with_the_users_key(str(error))) from error
        nonfinite = int((~torch.isfinite(rewards)).sum())
        if nonfinite:
            _logger.warning(
                "%d of %d rewards are not finite: their responses get advantage 0",
                nonfinite,
                rewards.numel(),
            )
        advantages = torch.where(response_mask != 0, result.advantage.unsqueeze(-1), 0.0)
    return advantages, advantages


def _with_the_users_key(message: str) -> str:
    field, separator, rest = message.partition(": ")
    key = field.rpartition(".")[2]
    return f"algorithm.quantile_{key}{separator}{rest}" if key in _ALGORITHM_KEYS else message


def _advantage_options(config: Mapping[str, Any] | None) -> dict[str, Any]:
    if config is None:
        return {}
    # A dataclass config of verl's lists its fields only, not what was set on it later.
    present = {*config, *getattr(config, "__dict__", {})}
    known = [f"quantile_{key}" for key in _ALGORITHM_KEYS]
    for key in sorted(str(key) for key in present):
        if key.startswith("quantile") and key not in known:
            raise ValueError(
                f"algorithm.{key}: expected one of {', '.join(known)}, found an unknown key"
            )
    given = {key: config.get(f"quantile_{key}", None) for key in _ALGORITHM_KEYS}
    options = {key: value for key, value in given.items() if value is not None}
    if "scale" not in options:
        by_std = config.get("norm_adv_by_std_in_grpo", True)
        options["scale"] = "std_unbiased" if by_std else "none"
    return options


@register_policy_loss("qae_fused")
def fused_vanilla(
    old_log_prob: torch.Tensor,
    log_prob: torch.Tensor,
    advantages: torch.Tensor,
    response_mask: torch.Tensor,
    loss_agg_mode: str = "token-mean",
    config: Any = None,
    rollout_is_weights: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, Any]]:
    """verl's ``vanilla``: PPO's clip with dual clip, in one pass over the tokens.

    Parameters
    ----------
    old_log_prob, log_prob, advantages : float tensors [responses, width]
    response_mask : tensor [responses, width]
        Bool, or numbers that are 0 or 1.
    loss_agg_mode : str
        Any of verl's.
    config : verl's ActorConfig
        Clip bounds, taus, and ``global_batch_info`` (the normalizers).
    rollout_is_weights : float tensor [responses, width], optional
        Multiply the tokens' losses.

    Returns
    -------
    (loss, metrics) : float32 scalar, differentiable in `log_prob`; verl's metrics as floats, and
        qae's own under ``actor/qae/``.

    Raises
    ------
    ValueError
        Names the option or tensor that verl's numerics cannot be computed for.
    """
    config = _checked(config)
    low, high = _clip_bounds(config)
    objective = qae.Objective.clip(
        low=low, high=high, dual_clip=float(config.get("clip_ratio_c", 3.0))
    )
    tokens = _Tokens(old_log_prob, log_prob, advantages, response_mask, rollout_is_weights)
    return _fused(tokens, objective, loss_agg_mode, config)


@register_policy_loss("qae_fused_gspo")
def fused_gspo(
    old_log_prob: torch.Tensor,
    log_prob: torch.Tensor,
    advantages: torch.Tensor,
    response_mask: torch.Tensor,
    loss_agg_mode: str = "seq-mean-token-mean",
    config: Any = None,
    rollout_is_weights: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, Any]]:
    """verl's ``gspo``: the clip of a response's mean ratio. As :func:`fused_vanilla`."""
    config = _checked(config)
    low, high = _clip_bounds(config)
    objective = qae.Objective.gspo(low=low, high=high, log_ratio_max=10.0)
    tokens = _Tokens(old_log_prob, log_prob, advantages, response_mask, rollout_is_weights)
    return _fused(tokens, objective, loss_agg_mode, config)


@register_policy_loss("qae_fused_cispo")
def fused_cispo(
    old_log_prob: torch.Tensor,
    log_prob: torch.Tensor,
    advantages: torch.Tensor,
    response_mask: torch.Tensor,
    loss_agg_mode: str = "token-mean",
    config: Any = None,
    rollout_is_weights: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, Any]]:
    """verl's ``cispo``: clipped, detached ratios as weights. As :func:`fused_vanilla`."""
    config = _checked(config)
    low, high = _clip_bounds(config)
    objective = qae.Objective.cispo(low=low, high=high)
    tokens = _Tokens(old_log_prob, log_prob, advantages, response_mask, rollout_is_weights)
    return _fused(tokens, objective, loss_agg_mode, config)


@register_policy_loss("qae_fused_sapo")
def fused_sapo(
    old_log_prob: torch.Tensor,
    log_prob: torch.Tensor,
    advantages: torch.Tensor,
    response_mask: torch.Tensor,
    loss_agg_mode: str = "seq-mean-token-mean",
    config: Any = None,
    rollout_is_weights: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, Any]]:
    """verl's ``sapo``: a sigmoid gate on the ratio. As :func:`fused_vanilla`."""
    config = _checked(config)
    objective = qae.Objective.sapo(
        tau_positive=float(config.tau_pos), tau_negative=float(config.tau_neg)
    )
    tokens = _Tokens(old_log_prob, log_prob, advantages, response_mask, rollout_is_weights)
    # verl ignores loss_agg_mode here.
    return _fused(tokens, objective, "seq-mean-token-mean", config)


class _Tokens(NamedTuple):
    old_log_prob: torch.Tensor
    log_prob: torch.Tensor
    advantages: torch.Tensor
    response_mask: torch.Tensor
    rollout_is_weights: torch.Tensor | None

    def check(self) -> None:
        shape = tuple(self.log_prob.shape)
        if len(shape) != 2:
            raise ValueError(f"log_prob: expected shape [responses, width], found {shape}")
        for name, tensor in self._asdict().items():
            if tensor is not None and tuple(tensor.shape) != shape:
                raise ValueError(
                    f"{name}: expected the shape of log_prob {shape}, found {tuple(tensor.shape)}"
                )

    def mask(self) -> torch.Tensor:
        mask = self.response_mask
        if mask.dtype == torch.bool:
            return mask
        valid = mask != 0
        # verl multiplies by the mask, so that any other number would be a weight.
        if not bool(((mask == 1) | ~valid).all()):
            raise ValueError("response_mask: expected 0 or 1, found another number")
        return valid


def _checked(config: Any) -> Any:
    if config is None or not hasattr(config, "global_batch_info"):
        raise ValueError(f"config: expected verl's ActorConfig, found {type(config).__name__}")
    return config


def _clip_bounds(config: Any) -> tuple[float | None, float]:
    low = config.clip_ratio if config.clip_ratio_low is None else config.clip_ratio_low
    high = config.clip_ratio if config.clip_ratio_high is None else config.clip_ratio_high
    # A ratio is above 0, so that a bound of 1 - low <= 0 never holds it.
    return (None if low >= 1 else float(low)), float(high)


class _Divided(NamedTuple):
    aggregation: Aggregation
    normalizer: float | Literal["batch"]
    loss_scale_factor: float | None = None


def _divided(loss_agg_mode: str, info: Mapping[str, Any], width: int) -> _Divided:
    """What verl's ``agg_loss`` divides by."""
    for key in info:
        if key not in _GLOBAL_BATCH_INFO:
            known = ", ".join(_GLOBAL_BATCH_INFO)
            raise ValueError(f"global_batch_info: expected keys among {known}, found {key}")
    if loss_agg_mode == "token-sum":
        return _Divided("token-mean", 1.0)
    if loss_agg_mode == "token-mean":
        return _Divided("token-mean", _normalizer(info, "batch_num_tokens"))
    if loss_agg_mode == "seq-mean-token-sum":
        return _Divided("seq-mean-token-sum", _normalizer(info, "global_batch_size"))
    if loss_agg_mode == "seq-mean-token-mean":
        return _Divided("seq-mean-token-mean", _normalizer(info, "global_batch_size"))
    if loss_agg_mode == "seq-mean-token-sum-norm":
        scale = info.get("loss_scale_factor")
        normalizer = _normalizer(info, "global_batch_size")
        return _Divided(
            "seq-mean-token-sum-norm", normalizer, float(width if scale is None else scale)
        )
    raise ValueError(
        "loss_agg_mode: expected token-mean, token-sum, seq-mean-token-sum, seq-mean-token-mean "
        f"or seq-mean-token-sum-norm, found {loss_agg_mode}"
    )


def _normalizer(info: Mapping[str, Any], key: str) -> float | Literal["batch"]:
    count = info.get(key)
    if count is not None:
        return float(count)
    if info.get("dp_size", 1) > 1:
        raise ValueError(f"{key}: expected the global count where dp_size is above 1, found none")
    return "batch"


def _fused(
    tokens: _Tokens, objective: qae.Objective, loss_agg_mode: str, config: Any
) -> tuple[torch.Tensor, dict[str, Any]]:
    tokens.check()
    info = config.global_batch_info
    divided = _divided(loss_agg_mode, info, tokens.log_prob.shape[1])
    # Where no token of the global batch is valid verl divides 0 by 0; the loss is 0 here.
    is_empty = divided.normalizer == 0
    loss, metrics = qae.policy_loss(
        tokens.log_prob,
        tokens.old_log_prob,
        advantages=tokens.advantages,
        mask=tokens.mask(),
        importance_weight=tokens.rollout_is_weights,
        objective=objective,
        aggregation=divided.aggregation,
        normalizer=1.0 if is_empty else divided.normalizer,
        loss_scale_factor=divided.loss_scale_factor,
        # Of no effect on gspo, whose clamp is in the objective.
        log_ratio_clamp=20.0,
        loss_multiplier=float(info.get("dp_size", 1)),
    )
    report = metrics.to_dict()
    if is_empty and report["tokens"]:
        raise ValueError(
            f"global_batch_info: expected a count above 0, found 0 with {report['tokens']} tokens"
        )
    if report["nonfinite_tokens"]:
        _logger.warning(
            "%d of %d tokens have a log-prob, loss or gradient that is not finite: left out",
            report["nonfinite_tokens"],
            report["tokens"],
        )
    return loss, _verl_metrics(report)


def _verl_metrics(report: Mapping[str, Any]) -> dict[str, float]:
    # verl averages each over micro-batches and ranks, so that every call reports the same keys and
    # nothing whose mean says little (extremes).
    return {
        "actor/pg_clipfrac": float(report["clip_fraction"]),
        "actor/ppo_kl": float(report["approx_kl"]),
        "actor/pg_clipfrac_lower": float(report["dual_clip_fraction"]),
        "actor/qae/active_token_fraction": report["active_tokens"] / max(report["tokens"], 1),
        "actor/qae/clip_fraction_above": float(report["clip_fraction_above"]),
        "actor/qae/clip_fraction_below": float(report["clip_fraction_below"]),
        "actor/qae/nonfinite_tokens": float(report["nonfinite_tokens"]),
    }
