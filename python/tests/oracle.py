"""The formulas in plain torch, in float64: what the operations are compared with.

Written from the papers and from verl's and TRL's definitions, not from this library's code.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import ceil

import torch
from torch import Tensor

import qae


def rank(k: float, n: int) -> int:
    """ceil(k n) of the decimal k, exactly."""
    return min(max(ceil(Fraction(repr(k)) * n), 1), n)


def quantile(rewards: Tensor, k: float, interpolation: str) -> Tensor:
    ordered = rewards.sort().values
    if interpolation == "linear":
        return torch.quantile(ordered, k)
    return ordered[rank(k, len(ordered)) - 1]


def center_of(rewards: Tensor, baseline: str, k: float, interpolation: str) -> Tensor:
    """The baseline of each reward of a group, or of all of them."""
    if baseline == "leave_one_out":
        return (rewards.sum() - rewards) / (len(rewards) - 1)
    return rewards.mean() if baseline == "mean" else quantile(rewards, k, interpolation)


def advantages(
    rewards: Tensor,
    ids: list[object],
    *,
    k: float = 0.4,
    baseline: str = "quantile",
    interpolation: str = "inverted_cdf",
    scale: str = "std_unbiased",
    epsilon: float = 1e-6,
    gate: str = "none",
    singleton: str = "reward",
    success_threshold: float = 0.5,
) -> tuple[Tensor, Tensor]:
    """Advantage and baseline of each response, float64."""
    rewards = rewards.double()
    advantage = torch.zeros_like(rewards)
    base = torch.zeros_like(rewards)
    for label in dict.fromkeys(ids):
        members = torch.tensor([i for i, other in enumerate(ids) if other == label])
        finite = members[rewards[members].isfinite()]
        values = rewards[finite]
        n = len(values)
        if n == 0:
            continue
        if n == 1:
            if singleton == "zero":
                continue
            center, divisor = torch.zeros(1).double(), 1.0 + epsilon
        else:
            center = center_of(values, baseline, k, interpolation)
            divisor = values.std(correction=1 if scale == "std_unbiased" else 0) + epsilon
        if scale == "none":
            divisor = 1.0
        base[finite] = center
        if n > 1 and bool((values == values[0]).all()):
            continue
        distance = values - center
        success = values > success_threshold
        sign = torch.where(success, 1.0, -1.0).double()
        hard = not bool(quantile(values, k, "inverted_cdf") > success_threshold)
        numerator = {
            "none": distance,
            "two_regime": torch.where((distance > 0) == hard, distance, 0.0),
            "positive_mask": torch.where(~success | torch.tensor(hard), sign, 0.0),
            "negative_mask": torch.where(success | torch.tensor(not hard), sign, 0.0),
        }[gate]
        advantage[finite] = numerator / divisor
    return advantage, base


def policy_term(
    objective: qae.Objective,
    log_prob: Tensor,
    old: Tensor | None,
    advantage: Tensor,
    valid: Tensor,
    clamp: float | None,
) -> Tensor:
    """Loss of each token, [rows, width], whose autograd gradient is the objective's."""
    if objective.kind == "reinforce":
        return -advantage * log_prob
    delta = log_prob - old
    if objective.kind == "gspo":
        length = valid.sum(-1, keepdim=True).clamp(min=1)
        mean = torch.where(valid, delta, 0.0).sum(-1, keepdim=True) / length
        log_ratio = mean.detach() + log_prob - log_prob.detach()
        if objective.log_ratio_max is not None:
            log_ratio = log_ratio.clamp(max=objective.log_ratio_max)
        ratio = log_ratio.exp()
    else:
        ratio = (delta if clamp is None else delta.clamp(-clamp, clamp)).exp()
    if objective.kind == "sapo":
        negative = torch.full_like(advantage, objective.tau_negative)
        tau = torch.where(advantage > 0, objective.tau_positive, negative)
        return -(4.0 / tau) * torch.sigmoid(tau * (ratio - 1.0)) * advantage
    low = -torch.inf if objective.low is None else 1.0 - objective.low
    high = torch.inf if objective.high is None else 1.0 + objective.high
    clipped = ratio.clamp(low, high)
    if objective.kind == "cispo":
        return -clipped.detach() * advantage * log_prob
    capped = ratio if objective.ratio_cap is None else ratio.clamp(max=objective.ratio_cap)
    unclipped_loss, clipped_loss = -advantage * capped, -advantage * clipped
    # Selected rather than torch.max, whose gradient is halved in a tie.
    loss = torch.where(clipped_loss > unclipped_loss, clipped_loss.detach(), unclipped_loss)
    if objective.dual_clip is not None:
        bound = -objective.dual_clip * advantage
        loss = torch.where((advantage < 0) & (loss > bound), bound, loss)
    return loss


def kl_term(kl: qae.Kl, log_prob: Tensor, reference: Tensor) -> Tensor:
    difference = log_prob - reference
    if kl.kind == "k1":
        return difference
    if kl.kind == "k2":
        return 0.5 * difference**2
    x = -difference
    if not kl.clamp:
        return torch.expm1(x) - x
    x = x.clamp(-20.0, 20.0)
    return (torch.expm1(x) - x).clamp(-10.0, 10.0)


@dataclass
class Loss:
    """A loss, its parts, and the tokens that it is made of."""

    loss: Tensor
    pg_loss: Tensor
    kl_loss: Tensor
    entropy_loss: Tensor


def loss(
    log_prob: Tensor,
    old: Tensor | None,
    advantage: Tensor,
    valid: Tensor,
    *,
    objective: qae.Objective,
    aggregation: str = "token-mean",
    normalizer: float | None = None,
    loss_scale_factor: float | None = None,
    clamp: float | None = 20.0,
    reference: Tensor | None = None,
    kl: qae.Kl | None = None,
    weight: Tensor | None = None,
    entropy: Tensor | None = None,
    entropy_coef: float = 0.0,
    loss_multiplier: float = 1.0,
) -> Loss:
    """All tensors [rows, width] of one dtype; ``advantage`` and ``weight`` broadcast."""
    advantage = advantage.expand_as(log_prob)
    # Before any arithmetic: what is not a token may hold anything.
    log_prob = torch.where(valid, log_prob, 0.0)
    old = None if old is None else torch.where(valid, old, 0.0)
    terms = policy_term(objective, log_prob, old, advantage, valid, clamp)
    if weight is not None:
        terms = terms * weight
    lengths = valid.sum(-1, keepdim=True)
    if normalizer is None:
        counted = lengths if aggregation == "token-mean" else lengths > 0
        normalizer = max(int(counted.sum()), 1)
    row_weight = {
        "token-mean": lambda: torch.ones_like(lengths).double(),
        "seq-mean-token-mean": lambda: 1.0 / lengths.clamp(min=1).double(),
        "seq-mean-token-sum": lambda: torch.ones_like(lengths).double(),
        "seq-mean-token-sum-norm": lambda: torch.full_like(
            lengths, 1.0 / loss_scale_factor, dtype=torch.float64
        ),
    }[aggregation]()
    row_weight = row_weight.to(log_prob.dtype) * (loss_multiplier / normalizer)

    def aggregate(tokens: Tensor) -> Tensor:
        return (torch.where(valid, tokens, 0.0) * row_weight).sum()

    pg_loss = aggregate(terms)
    zero = torch.zeros_like(pg_loss)
    kl_loss = zero
    if kl is not None:
        kl_loss = aggregate(kl_term(kl, log_prob, torch.where(valid, reference, 0.0)))
    entropy_loss = zero if entropy is None else aggregate(entropy)
    total = pg_loss + (kl.coef * kl_loss if kl else 0.0) - entropy_coef * entropy_loss
    return Loss(total, pg_loss, kl_loss, entropy_loss)


def log_probs_and_entropy(
    logits: Tensor, token_ids: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Differentiable, of whatever dtype the logits have. -inf has probability 0."""
    log_p = torch.log_softmax(logits / temperature, -1)
    chosen = log_p.gather(-1, token_ids.long().unsqueeze(-1)).squeeze(-1)
    finite = torch.where(log_p == -torch.inf, 0.0, log_p)
    return chosen, -(log_p.exp() * finite).sum(-1)
