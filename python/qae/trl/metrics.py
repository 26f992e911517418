"""What is logged besides TRL's metrics, and which tokens TRL's then cover."""

from __future__ import annotations

from typing import Any

import torch

from qae.trl.advantages import Scored, mode_of
from qae.trl.rows import MicroBatch, loss_mask

# Means over tokens of something that is 0 where the advantage is: known without a forward pass.
_ZERO_WHERE_DROPPED = (
    "clip_ratio/low_mean",
    "clip_ratio/high_mean",
    "clip_ratio/region_mean",
    "cispo_clip_ratio",
)
_MINIMUM, _MAXIMUM = "clip_ratio/low_min", "clip_ratio/high_max"


def log_generation(trainer: Any, scored: Scored, k: float) -> None:
    """K, shares of the signs and regimes, and the advantages of TRL's table of completions."""
    advantages = scored.advantages
    table = trainer._logs["advantages"]
    for _ in range(min(advantages.numel(), len(table))):
        table.pop()
    table.extend(advantages.tolist())
    signs = torch.stack([advantages == 0, advantages > 0, advantages < 0])
    zero, positive, negative = signs.double().mean(dim=1).tolist()
    metrics = trainer._metrics[mode_of(trainer)]
    if trainer.args.advantage_baseline == "quantile":
        metrics["qae/k"].append(k)
    metrics["qae/zero_advantage"].append(zero)
    metrics["qae/positive"].append(positive)
    metrics["qae/negative"].append(negative)
    if scored.hard_share is not None:
        metrics["qae/hard_groups"].append(scored.hard_share)
        metrics["qae/easy_groups"].append(scored.easy_share)


def log_micro_batch(
    trainer: Any,
    batch: MicroBatch,
    entropies: torch.Tensor,
    nonfinite_tokens: float | None,
    logged: dict[str, int] | None,
) -> None:
    """Entropy by the sign of the advantage, what was dropped, and the scope of TRL's metrics.

    Parameters
    ----------
    logged
        How many values of each metric there were before TRL's ``_compute_loss``, if it ran without
        the inactive responses; else ``None``.
    """
    metrics = trainer._metrics["train"]
    kept_rows, kept_tokens = batch.kept_rows, batch.kept_tokens
    advantages = batch.inputs["advantages"].unsqueeze(1)
    mask = loss_mask(batch.inputs).bool()
    sums = [kept_rows, batch.num_rows, kept_tokens, batch.num_tokens, nonfinite_tokens or 0]
    for sign in (advantages > 0, advantages < 0, advantages == 0):
        of_sign = mask & sign
        sums += [torch.where(of_sign, entropies, 0).sum(), of_sign.sum()]
    stacked = torch.stack([torch.as_tensor(x, device=mask.device).double() for x in sums])
    totals = trainer.accelerator.reduce(stacked, reduction="sum").tolist()
    kept_rows, rows, kept_tokens, tokens, nonfinite = totals[:5]
    names = ("positive", "negative", "zero")
    for name, total, count in zip(names, totals[5::2], totals[6::2], strict=True):
        # Of the inactive responses one may have stayed, which stands for nobody.
        if count > 0 and (name != "zero" or logged is None):
            metrics[f"entropy/{name}"].append(total / count)
    if nonfinite_tokens is not None:
        metrics["qae/nonfinite_tokens"].append(nonfinite)
    if trainer.args.drop_inactive:
        metrics["qae/dropped_responses"].append(1 - kept_rows / max(rows, 1))
        metrics["qae/dropped_tokens"].append(1 - kept_tokens / max(tokens, 1))
    if logged is not None:
        per_row = trainer.importance_sampling_level == "sequence"
        share = kept_rows / max(rows, 1) if per_row else kept_tokens / max(tokens, 1)
        _rescope(metrics, logged, share, dropped=kept_rows < rows)


def _rescope(
    metrics: dict[str, list[float]], logged: dict[str, int], share: float, dropped: bool
) -> None:
    """Extends TRL's clip metrics to the tokens that were dropped; renames what covers the others
    only."""
    own = ("qae/", "entropy/")
    grown = [key for key, values in metrics.items() if len(values) > logged.get(key, 0)]
    for key in grown:
        if key.startswith(own):
            continue
        values = metrics[key]
        if key in _ZERO_WHERE_DROPPED:
            values[-1] *= share
        elif key == _MINIMUM:
            values[-1] = 0.0 if dropped else values[-1]
        elif key == _MAXIMUM:
            # NaN: no response with a token was kept.
            values[-1] = max(0.0, values[-1]) if values[-1] == values[-1] else 0.0
        else:
            metrics[f"{key}/kept"].append(values.pop())
            if not values:
                del metrics[key]
