"""From the rewards that TRL gathered to advantages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from qae.advantages import advantages as group_advantages


@dataclass(frozen=True)
class Scored:
    """All processes' responses, in the order of their ranks."""

    advantages: torch.Tensor
    """f32 ``[responses]``; 0 where no reward function gave a reward."""
    hard_share: float | None
    """Of the groups; ``None`` where rewards have no threshold or the baseline no k."""
    easy_share: float | None


def score(trainer: Any, rewards_per_func: torch.Tensor, k: float) -> Scored:
    """Advantages with the baseline of ``trainer.args``, at level ``k`` if it is a quantile.

    ``scale_rewards`` and ``multi_objective_aggregation`` mean what they mean in TRL. With
    ``normalize_then_sum`` the baseline is that of the summed, normalized rewards: of their group if
    it is a quantile, of the batch if it is the mean, as in TRL.

    Parameters
    ----------
    rewards_per_func
        f32 ``[responses, functions]`` of all processes, groups back to back; NaN where a function
        does not apply.
    """
    args, mode = trainer.args, mode_of(trainer)
    size = trainer.num_generations if mode == "train" else trainer.num_generations_eval
    rewards_per_func = rewards_per_func.float()
    weights = trainer.reward_weights.to(rewards_per_func.device)
    sums_first = trainer.multi_objective_aggregation == "sum_then_normalize"
    per_func = (
        rewards_per_func
        if sums_first
        else _normalized(rewards_per_func, size, args.advantage_epsilon)
    )
    rewards = (per_func * weights).nansum(dim=1)
    # A sum of nothing is no reward of 0.
    rewards[rewards_per_func.isnan().all(dim=1)] = torch.nan

    scale = trainer.scale_rewards if sums_first else "batch"
    quantile = args.advantage_baseline == "quantile"
    options: dict[str, Any] = {
        "baseline": args.advantage_baseline,
        "scale": "std_unbiased" if scale == "group" else "none",
        "epsilon": args.advantage_epsilon,
        "singleton": "zero",
        "gate": args.quantile_gate,
        "success_threshold": args.success_threshold,
    }
    if quantile:
        options |= {"k": k, "interpolation": args.quantile_interpolation}
    groups = size if sums_first or quantile else rewards.numel()
    found = group_advantages(rewards, groups, **options)
    advantages = found.advantage
    if scale == "batch":
        advantages = advantages / (_std(rewards) + args.advantage_epsilon)
    if not (quantile and sums_first):
        return Scored(advantages, None, None)
    counts = found.metrics.to_dict()
    groups_in_all = max(counts["num_groups"], 1)
    return Scored(
        advantages, counts["hard_groups"] / groups_in_all, counts["easy_groups"] / groups_in_all
    )


def mode_of(trainer: Any) -> str:
    """TRL's name of what it is doing."""
    return "train" if trainer.model.training else "eval"


def _normalized(rewards_per_func: torch.Tensor, size: int, epsilon: float) -> torch.Tensor:
    """Each function's rewards in standard deviations from their group's mean, as TRL has them."""
    grouped = rewards_per_func.view(-1, size, rewards_per_func.size(1))
    mean = grouped.nanmean(dim=1, keepdim=True)
    variance = (grouped - mean).square().nansum(dim=1, keepdim=True)
    count = grouped.isfinite().sum(dim=1, keepdim=True)
    if size == 1:
        std = torch.zeros_like(mean)
    else:
        std = torch.where(count > 1, variance / (count - 1).clamp(min=1), torch.nan).sqrt()
    return ((grouped - mean) / (std + epsilon)).view(rewards_per_func.shape)


def _std(rewards: torch.Tensor) -> torch.Tensor:
    """Unbiased, of the rewards that are numbers; 0 for fewer than two."""
    finite = rewards[rewards.isfinite()].double()
    return finite.std().float() if finite.numel() > 1 else rewards.new_zeros(())
