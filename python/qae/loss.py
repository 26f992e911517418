"""From log-probs to the policy-gradient loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import _ops
from ._arguments import (
    LossArguments,
    Normalizer,
    log_prob_like,
    operation_arguments,
    policy,
    require,
    tokens_of,
)
from .config import AdvantageOptions, Aggregation, Kl, LossOptions, MetricsScope, Objective
from .groups import GroupsLike
from .metrics import Metrics

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["policy_loss"]

_CLIP = Objective.clip()


def policy_loss(
    log_prob: Tensor,
    old_log_prob: Tensor | None = None,
    *,
    rewards: Tensor | None = None,
    groups: GroupsLike | None = None,
    response_index: Tensor | None = None,
    advantages: Tensor | None = None,
    mask: Tensor | None = None,
    lengths: Tensor | None = None,
    offsets: Tensor | None = None,
    ref_log_prob: Tensor | None = None,
    kl: Kl | None = None,
    importance_weight: Tensor | None = None,
    objective: Objective = _CLIP,
    aggregation: Aggregation = "token-mean",
    normalizer: Normalizer,
    loss_scale_factor: float | None = None,
    log_ratio_clamp: float | None = 20.0,
    loss_multiplier: float = 1.0,
    grad_scale: float = 1.0,
    metrics_scope: MetricsScope = "all",
    **options: Unpack[AdvantageOptions],
) -> tuple[Tensor, Metrics]:
    r"""Policy-gradient loss of log-probs, with advantages from rewards in the same launch.

    L = sum_i w_i sum_t m_it l_it over the tokens t of the local responses i: the objective l
    (:class:`Objective`) times the importance weight, plus ``kl.coef`` times the KL estimate; m the
    mask, w_i of ``aggregation``. The forward pass computes the gradient, the backward pass scales
    it; no launch waits for another, nothing is copied to or from the host.

    Parameters
    ----------
    log_prob : Tensor
        log pi(token) in nats of the policy that is trained, with its temperature: [rows, width], a
        row for each local response, or [slots] with ``offsets``. float32, bfloat16, float16; on the
        CPU float64 too. Rows may be any distance apart (``all[:, prompt:]`` is not copied if all
        token tensors are so); other non-contiguous tensors are copied.
    old_log_prob, ref_log_prob : Tensor, optional
        The same of the policy that sampled and of the reference policy, shaped as ``log_prob``; all
        are converted to the promoted dtype. ``Objective.reinforce()`` needs no old log-probs;
        the reference is needed with ``kl``.
    rewards, groups : Tensor and Groups, int or ids
        [num_responses] of the *global* batch and its groups, as for :func:`advantages`; or instead:
    advantages : Tensor
        [rows], [rows, 1] or shaped as ``log_prob``; used as float32. Where ``offsets`` describe as
        many slots as rows, one for each row is [rows, 1].
    response_index : Tensor, optional
        Integers [rows]: the global response of each local row. ``None``: row i is response i.
    mask : Tensor, optional
        Shaped as ``log_prob``, of any dtype: non-zero where the slot is a token that counts. bool
        and uint8 are not copied.
    lengths : Tensor, optional
        Integers [rows]: only the first slots of each row are tokens.
    offsets : Tensor, optional
        Integers [rows + 1]: row i is slots ``offsets[i]`` to ``offsets[i + 1] - 1``.
    importance_weight : Tensor, optional
        Multiplies the policy term (rollout correction): [rows], [rows, 1] or shaped as
        ``log_prob``; used as float32.
    objective, kl : Objective, Kl
        The objective, :meth:`Objective.clip` by default, and the KL term.
    aggregation : str
        "token-mean" (DAPO): w_i = 1 / tokens; "seq-mean-token-mean" (GRPO): 1 / (responses len_i);
        "seq-mean-token-sum": 1 / responses; "seq-mean-token-sum-norm" (Dr. GRPO):
        1 / (responses ``loss_scale_factor``).
    normalizer : number, Tensor or "batch"
        Tokens of the *global* batch for "token-mean", else its responses: a number, a tensor of one
        element on the device of ``log_prob`` (not waited for), or "batch": the valid tokens, or the rows with any, of this call, which is
        right only if that is the whole batch. Within ``torch.compile`` an int or a tensor: torch
        compiles every value of a float anew. Where it is 0, the count of a batch without tokens, loss
        and gradient are 0.
    loss_scale_factor : float
        With "seq-mean-token-sum-norm" alone, in tokens.
    log_ratio_clamp : float, optional
        \|log_prob - old_log_prob\| in nats is clamped to it, without gradient outside (verl);
        ``None``: not (TRL). Objectives but gspo and reinforce.
    loss_multiplier, grad_scale : float
        Factor of the loss and its gradient (data-parallel size); of the gradient alone.
    metrics_scope : {"all", "active"}
        Whether the metrics cover all valid tokens, or only those of responses with an advantage
        other than 0, so that nothing of the others is read.
    **options
        :class:`AdvantageOptions`, with ``rewards``.

    Returns
    -------
    loss : Tensor
        float32 (float64 of float64), without dimension. Differentiable once, with respect to
        ``log_prob`` alone: all other tensors are constants. Gradients have the dtype of
        ``log_prob``.
    metrics : Metrics
        On the device; :meth:`Metrics.to_dict` waits for it.

    Raises
    ------
    ValueError
        ``name: expected X, found Y``: a shape, a device, a number out of its range; on the CPU also
        an index, offset or length out of range, which a GPU counts and leaves out
        (:meth:`Metrics.check`).
    TypeError
        A wrong type or dtype.
    RuntimeError
        A GPU, but a build without its kernels; ``create_graph=True`` in the backward pass.

    Notes
    -----
    Masked slots, whatever they hold, have gradient 0 and leave no trace, as have all slots of
    inactive responses but in the metrics. Without any valid token, loss and gradient are 0. A token
    whose log-prob, loss or gradient is not finite is left out and counted. The same bits on every
    run. On the CPU sums are taken in float64, on a GPU each token in float32 and sums in float64.
    Not for ``torch.func`` transforms but vmap, nor for forward-mode derivatives. The gradient may be
    handed out as it was saved: whoever changes it in place has no second backward pass.
    """
    tokens = tokens_of("log_prob", policy("log_prob", log_prob), lengths, offsets)
    loss_options = LossOptions(
        objective,
        kl,
        aggregation,
        loss_scale_factor,
        log_ratio_clamp,
        loss_multiplier,
        grad_scale,
        metrics_scope,
    )
    require(loss_options, old_log_prob, ref_log_prob)
    dtype = log_prob.dtype
    if old_log_prob is not None:
        old_log_prob = log_prob_like("old_log_prob", old_log_prob, tokens)
        dtype = torch.promote_types(dtype, old_log_prob.dtype)
    if ref_log_prob is not None:
        ref_log_prob = log_prob_like("ref_log_prob", ref_log_prob, tokens)
        dtype = torch.promote_types(dtype, ref_log_prob.dtype)
    given = LossArguments(
        rewards,
        groups,
        response_index,
        advantages,
        mask,
        lengths,
        offsets,
        importance_weight,
        normalizer,
    )
    arguments = operation_arguments(
        given, tokens, as_dtype(ref_log_prob, dtype), loss_options, options
    )
    log_prob = log_prob.to(dtype)
    words, d_log_prob, baseline, advantage, active_rows, active_count = _ops.loss_from_log_probs(
        log_prob.detach(), as_dtype(old_log_prob, dtype), *arguments
    )
    loss = _ops.loss_of(log_prob, words, d_log_prob, None, "policy_loss")
    has_rewards = rewards is not None
    metrics = Metrics(
        words,
        advantage if has_rewards else None,
        baseline if has_rewards else None,
        active_rows,
        active_count,
        metrics_scope,
    )
    return loss, metrics


def as_dtype(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """``tensor`` in ``dtype``, where there is one."""
    return None if tensor is None else tensor.to(dtype)
