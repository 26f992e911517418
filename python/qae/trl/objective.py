"""TRL's loss in the terms of ``qae.policy_loss``, where the two are equal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from qae.config import Kl, Objective

_CLIPPED = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")
_PER_RESPONSE = ("grpo", "sapo")


@dataclass(frozen=True)
class Plan:
    """The arguments of ``qae.policy_loss`` that a run does not change."""

    objective: Objective
    kl: Kl | None
    aggregation: str


class Unmapped(Exception):
    """An option of TRL without an equal in ``qae``; the message names it."""


def plan_loss(trainer: Any) -> Plan:
    """The plan of a ``GRPOTrainer``.

    Raises
    ------
    Unmapped
        Where ``qae.policy_loss`` would be another function than TRL's loss.
    """
    args = trainer.args
    if args.entropy_coef != 0.0 or args.use_adaptive_entropy:
        raise Unmapped("entropy_coef, use_adaptive_entropy: the bonus needs autograd through TRL")
    if trainer.aux_loss_enabled:
        raise Unmapped("router_aux_loss_coef: the auxiliary loss is not one of the log-probs")
    kl = None
    if trainer.beta != 0.0:
        if args.use_bias_correction_kl:
            raise Unmapped("use_bias_correction_kl: the KL term is not weighted by the ratio")
        kl = Kl(kind="k3", coef=trainer.beta, clamp=False)
    aggregation = "seq-mean-token-mean" if trainer.loss_type in _PER_RESPONSE else "token-mean"
    return Plan(_objective(trainer), kl, aggregation)


def _objective(trainer: Any) -> Objective:
    args, loss_type = trainer.args, trainer.loss_type
    low, high = trainer.epsilon_low, trainer.epsilon_high
    sequence = trainer.importance_sampling_level == "sequence"
    if sequence and loss_type not in _CLIPPED:
        raise Unmapped(f"importance_sampling_level='sequence' with loss_type={loss_type!r}")
    if loss_type in _CLIPPED:
        if not (0.0 <= low <= 1.0 and high >= 0.0):
            raise Unmapped(f"epsilon={low}, epsilon_high={high}: no clip range around 1")
        if sequence:
            return _sequence_objective(trainer)
        if args.delta is not None and args.delta < 1.0 + high:
            # TRL bounds one branch only, so a ratio between the two still has a gradient.
            raise Unmapped(f"delta={args.delta}: below 1 + epsilon_high")
        return Objective.clip(low=low, high=high, dual_clip=None, ratio_cap=args.delta)
    if loss_type == "cispo":
        # TRL's epsilon_high is the bound itself, an offset from 1 elsewhere.
        if high < 1.0:
            raise Unmapped(f"epsilon_high={high} with loss_type='cispo': a bound below 1")
        return Objective.cispo(low=None, high=high - 1.0)
    if loss_type == "sapo":
        return Objective.sapo(
            tau_positive=args.sapo_temperature_pos, tau_negative=args.sapo_temperature_neg
        )
    raise Unmapped(f"loss_type={loss_type!r}")


def _sequence_objective(trainer: Any) -> Objective:
    """One ratio per response. Its gradient spreads evenly over the tokens in TRL, so that weights
    that differ between a response's tokens have no equal."""
    args = trainer.args
    if args.delta is not None:
        raise Unmapped("delta with importance_sampling_level='sequence'")
    if trainer.top_entropy_quantile < 1.0:
        raise Unmapped("top_entropy_quantile with importance_sampling_level='sequence'")
    if _weighs_rollouts(trainer) and not trainer.vllm_importance_sampling_mode.startswith("seq"):
        mode = trainer.vllm_importance_sampling_mode
        raise Unmapped(
            f"vllm_importance_sampling_mode={mode!r} with importance_sampling_level='sequence'"
        )
    return Objective.gspo(low=trainer.epsilon_low, high=trainer.epsilon_high, log_ratio_max=None)


def _weighs_rollouts(trainer: Any) -> bool:
    return trainer.use_vllm and trainer.vllm_importance_sampling_correction


def normalizer(
    trainer: Any, inputs: dict[str, Any], num_rows: int, num_tokens: torch.Tensor
) -> torch.Tensor | float:
    """TRL's denominator of one micro-batch in training, gradient accumulation included.

    Parameters
    ----------
    num_rows, num_tokens
        Of the micro-batch as TRL made it, before anything was dropped.
    """
    steps = trainer.current_gradient_accumulation_steps
    loss_type = trainer.loss_type
    if loss_type in ("grpo", "sapo", "luspo"):
        return float(num_rows * steps)
    if loss_type == "dr_grpo":
        return float(num_rows * trainer.max_completion_length * steps)
    if loss_type == "bnpo":
        return num_tokens.clamp(min=1).double() * steps
    count = inputs["num_items_in_batch"].clamp(min=1).double()
    share = steps / (trainer.accelerator.num_processes * trainer.args.steps_per_generation)
    return count * share


def importance_weight(
    trainer: Any,
    inputs: dict[str, Any],
    mask: torch.Tensor,
    log_probs: torch.Tensor,
    entropies: torch.Tensor,
) -> torch.Tensor | None:
    """The factors of TRL's policy term: rollout correction, off-policy mask, high-entropy mask.

    Returns
    -------
    None without any of them; else f32 ``[rows]`` where all are one number per response, and shaped
    as ``log_probs`` where not.
    """
    weight = None
    if trainer.off_policy_mask_threshold is not None:
        old = inputs.get("old_per_token_logps")
        old = log_probs.detach() if old is None else old
        weight = trainer.get_off_policy_mask(
            advantages=inputs["advantages"].unsqueeze(1),
            per_token_logps=log_probs,
            sampling_per_token_logps=inputs.get("sampling_per_token_logps", old),
            mask=mask,
            off_policy_threshold=trainer.off_policy_mask_threshold,
        )
    if trainer.top_entropy_quantile < 1.0:
        threshold = 1.0 - trainer.top_entropy_quantile
        high = trainer.get_high_entropy_mask(entropies, mask, threshold)
        weight = high if weight is None else weight * high
    if _weighs_rollouts(trainer):
        ratio = inputs["importance_sampling_ratio"]
        weight = ratio if weight is None else weight * ratio
    if weight is None:
        return None
    weight = weight.detach().float()
    return weight.squeeze(1) if weight.size(1) == 1 else weight
