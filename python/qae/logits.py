"""From logits to log-probs, entropies and the policy-gradient loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import _logits_ops, _native, _ops
from ._arguments import (
    LossArguments,
    Normalizer,
    Tokens,
    dense,
    floating,
    integers,
    is_number,
    log_prob_like,
    operation_arguments,
    policy,
    require,
    shaped,
    tokens_of,
)
from .config import AdvantageOptions, Aggregation, Kl, LossOptions, MetricsScope, Objective
from .groups import GroupsLike
from .loss import as_dtype
from .metrics import Metrics

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = [
    "log_probs_and_entropy",
    "merge_softmax_stats",
    "policy_loss_from_logits",
    "softmax_stats",
]

_CLIP = Objective.clip()


def policy_loss_from_logits(
    logits: Tensor,
    token_ids: Tensor,
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
    temperature: float = 1.0,
    entropy_coef: float = 0.0,
    inplace: bool = False,
    **options: Unpack[AdvantageOptions],
) -> tuple[Tensor, Metrics]:
    """Policy-gradient loss of logits: reads them once and writes their gradient once; with
    ``inplace`` the backward pass of a loss that nothing scales moves none of it again.

    :func:`qae.policy_loss` with log_prob = z[token] - logsumexp(z), z = logits / temperature, minus
    ``entropy_coef`` times the entropies, aggregated likewise. Rows of logits of inactive responses
    are read for the metrics alone, and with ``metrics_scope="active"`` not at all; their gradient
    is 0. Arguments, results, errors and notes are those of :func:`qae.policy_loss` but for:

    Parameters
    ----------
    logits : Tensor
        Scores before the temperature: [rows, width, vocab], or [slots, vocab] with ``offsets``.
        float32, bfloat16, float16; on the CPU float64 too. Rows may be strided
        (``logits[:, :-1]`` is not copied); what is contiguous in another order, or overlaps, is
        copied. -inf has probability 0; a token whose own logit is -inf is left out and counted.
    token_ids : Tensor
        Integers [rows, width] or [slots]: the token that each slot's logits predict. Where no token
        counts anything may stand, such as -100.
    temperature : float
        Above 0.
    entropy_coef : float
        Of the entropy bonus; with one no response is inactive.
    inplace : bool
        The gradient takes the memory of the logits, which hold no logits from then on; on a GPU
        nothing of their size is allocated, and the backward pass reads and writes it only where the
        factor from upstream is not 1, and only the rows that act (all, with an entropy term). For
        the logits of one backward pass without ``torch.compile``. Autograd refuses if an operation
        had saved them; who reads them later reads the gradient.

    Returns
    -------
    loss : Tensor
        float32 (float64 of float64), without dimension. Differentiable once, with respect to
        ``logits`` alone. Gradients have the dtype of the logits, to which a float16 one underflows
        before a loss scaler helps: give its factor as ``grad_scale``. A factor from upstream that is
        not finite leaves rows without a gradient at 0. Without grad mode, or where
        ``logits`` needs no gradient, none is allocated.
    metrics : Metrics
        With entropies, and the log-prob and entropy of each token.

    Raises
    ------
    ValueError
        Also for ``inplace=True`` where ``logits`` needs no gradient, is a leaf, or would be copied.
    RuntimeError
        Also for ``inplace=True`` within ``torch.compile``, and for its second backward pass.
    """
    logits, token_ids, tokens = _logits_and_tokens(logits, token_ids, lengths, offsets)
    loss_options = LossOptions(
        objective,
        kl,
        aggregation,
        loss_scale_factor,
        log_ratio_clamp,
        loss_multiplier,
        grad_scale,
        metrics_scope,
        temperature,
        entropy_coef,
    )
    require(loss_options, old_log_prob, ref_log_prob)
    if old_log_prob is not None:
        old_log_prob = log_prob_like("old_log_prob", old_log_prob, tokens)
    if ref_log_prob is not None:
        ref_log_prob = log_prob_like("ref_log_prob", ref_log_prob, tokens)
    if old_log_prob is not None and ref_log_prob is not None:
        dtype = torch.promote_types(old_log_prob.dtype, ref_log_prob.dtype)
        old_log_prob, ref_log_prob = as_dtype(old_log_prob, dtype), as_dtype(ref_log_prob, dtype)
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
    arguments = operation_arguments(given, tokens, ref_log_prob, loss_options, options)
    if inplace:
        _check_inplace(logits)
        d_logits = logits.detach()
        row_gradient = _logits_ops.row_gradient_like(d_logits, token_ids)
        outputs = _logits_ops.compute_loss_from_logits(
            d_logits, d_logits, row_gradient, token_ids, old_log_prob, *arguments
        )
        loss_of = _ops.LossInPlace.apply
    else:
        needs_gradient = logits.requires_grad and torch.is_grad_enabled()
        d_logits, row_gradient, *outputs = _logits_ops.loss_from_logits(
            logits.detach(), token_ids, old_log_prob, *arguments, needs_gradient
        )
        loss_of = _ops.loss_of
    words, log_prob, entropy, baseline, advantage, active_rows, active_count = outputs
    # An entropy term has a gradient of its own.
    known_rows = None if entropy_coef != 0 else row_gradient
    loss = loss_of(logits, words, d_logits, known_rows, "policy_loss_from_logits")
    has_rewards = rewards is not None
    metrics = Metrics(
        words,
        advantage if has_rewards else None,
        baseline if has_rewards else None,
        active_rows,
        active_count,
        metrics_scope,
        log_prob,
        entropy,
    )
    return loss, metrics


def log_probs_and_entropy(
    logits: Tensor,
    token_ids: Tensor,
    *,
    temperature: float = 1.0,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """log_prob = z[token] - logsumexp(z) and entropy = logsumexp(z) - sum softmax(z) z of each row
    of logits, in nats, z = logits / temperature; one read of the logits.

    Parameters
    ----------
    logits : Tensor
        [..., vocab] before the temperature: float32, bfloat16, float16; on the CPU float64 too.
        Two or three dimensions may be strided as for :func:`policy_loss_from_logits`; other
        non-contiguous tensors are copied. The backward pass reads them again.
    token_ids : Tensor
        Integers [...]. On the CPU one outside the vocabulary is refused, on a GPU its results are
        NaN.
    temperature : float
        Above 0.
    mask : Tensor, optional
        [...] of any dtype: rows where it is 0 are not read, their results and gradients are 0.

    Returns
    -------
    log_prob, entropy : Tensor
        float32 (float64 of float64), shaped as ``token_ids``. Both are differentiable once, with
        respect to the logits. A token whose own logit is -inf has log_prob -inf and no gradient
        from it; a row with NaN, +inf, or -inf alone has NaN in both and gradient 0.

    Raises
    ------
    ValueError, TypeError
        ``name: expected X, found Y``.
    RuntimeError
        A GPU, but a build without its kernels; ``create_graph=True`` in the backward pass.

    Notes
    -----
    The same bits on every run. Sums are taken in float64 on the CPU, in float32 on a GPU.
    """
    logits, token_ids, mask, shape = _rows(logits, token_ids, mask)
    log_prob, entropy, _ = _logits_ops.log_probs_from_logits(
        logits, token_ids, mask, _temperature(temperature)
    )
    return log_prob.reshape(shape), entropy.reshape(shape)


def softmax_stats(
    logits_shard: Tensor,
    token_ids: Tensor,
    *,
    vocab_start: int,
    temperature: float = 1.0,
) -> Tensor:
    """What a softmax over a whole vocabulary needs to know of one shard of it, row by row.

    Parameters
    ----------
    logits_shard : Tensor
        [..., columns]: the logits of token ids ``vocab_start`` and up, as for
        :func:`log_probs_and_entropy`.
    token_ids : Tensor
        Integers [...], in the whole vocabulary.
    vocab_start : int
        At least 0.
    temperature : float
        Above 0.

    Returns
    -------
    Tensor
        float32 (float64 of float64) [..., 4]: the largest logit, sum exp((x - max) / T),
        sum exp((x - max) / T) (x - max) / T, and the token's own logit, -inf where another shard
        has it. Gather those of all shards for :func:`merge_softmax_stats`. Not differentiable;
        :mod:`qae.parallel` has the whole operation.

    Raises
    ------
    ValueError, TypeError
        ``name: expected X, found Y``.
    """
    logits, token_ids, _, shape = _rows(logits_shard.detach(), token_ids, None, "logits_shard")
    if not isinstance(vocab_start, (int, torch.SymInt)) or isinstance(vocab_start, bool):
        raise TypeError(f"vocab_start: expected an int, found {type(vocab_start).__name__}")
    if vocab_start < 0:
        raise ValueError(f"vocab_start: expected an int of at least 0, found {vocab_start}")
    stats: Tensor = _logits_ops.softmax_stats(
        logits, token_ids, vocab_start, _temperature(temperature)
    )
    return stats.reshape((*shape, 4))


def merge_softmax_stats(
    shards: Tensor, *, temperature: float = 1.0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-probs and entropies from the statistics of all shards of a vocabulary.

    Parameters
    ----------
    shards : Tensor
        float32 or, on the CPU, float64 [shards, ..., 4], of :func:`softmax_stats`, in any order.
    temperature : float
        The same as there.

    Returns
    -------
    log_prob, entropy, log_sum_exp : Tensor
        [...] in nats, of the dtype of ``shards``. Not differentiable.
    stats : Tensor
        [..., 4]: the statistics of the whole vocabulary.

    Raises
    ------
    ValueError, TypeError
        ``name: expected X, found Y``.
    """
    shards = floating("shards", shards).detach()
    if shards.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"shards: expected float32, found {shards.dtype}")
    if shards.dim() < 2 or shards.shape[-1] != 4 or shards.shape[0] == 0:
        raise ValueError(f"shards: expected shape [shards, ..., 4], found {list(shards.shape)}")
    log_prob, entropy, log_sum_exp, stats = _logits_ops.merge_softmax_stats(
        shards, _temperature(temperature)
    )
    return log_prob, entropy, log_sum_exp, stats


def log_probs_backward(
    logits: Tensor,
    token_ids: Tensor,
    stats: Tensor,
    d_log_prob: Tensor | None,
    d_entropy: Tensor | None,
    *,
    temperature: float = 1.0,
    vocab_start: int | None = None,
) -> Tensor:
    """Gradient with respect to ``logits``, or a shard of them from ``vocab_start`` on, from the
    ``stats`` of the whole vocabulary and the gradients of log-probs and entropies."""
    rows, ids, _, shape = _rows(logits.detach(), token_ids, None)

    def flat(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.reshape(ids.shape)

    gradient: Tensor = _logits_ops.log_probs_from_logits_backward(
        rows,
        ids,
        stats.reshape((*ids.shape, 4)),
        flat(d_log_prob),
        flat(d_entropy),
        None,
        vocab_start,
        _temperature(temperature),
    )
    return gradient.reshape((*shape, logits.shape[-1]))


def _logits_and_tokens(
    logits: object, token_ids: object, lengths: Tensor | None, offsets: Tensor | None
) -> tuple[Tensor, Tensor, Tokens]:
    found = policy("logits", logits)
    ids = integers("token_ids", token_ids, found.device)
    tokens = tokens_of("token_ids", ids, lengths, offsets)
    _check_logits("logits", found, ids)
    return found, ids, tokens


def _check_logits(name: str, logits: Tensor, token_ids: Tensor) -> None:
    expected = [*token_ids.shape, "vocab"]
    if logits.dim() != len(expected) or logits.shape[:-1] != token_ids.shape:
        shape = ", ".join(map(str, expected))
        raise ValueError(
            f"{name}: expected shape [{shape}], as token_ids, found {list(logits.shape)}"
        )
    if logits.shape[-1] == 0:
        raise ValueError(f"{name}: expected at least one column, found {list(logits.shape)}")


def _rows(
    logits: object, token_ids: object, mask: object, name: str = "logits"
) -> tuple[Tensor, Tensor, Tensor | None, torch.Size]:
    """Logits, ids and mask with one or two dimensions of rows, and the shape of the ids."""
    found = policy(name, logits)
    ids = integers("token_ids", token_ids, found.device)
    _check_logits(name, found, ids)
    shape = ids.shape
    found_mask = None
    if mask is not None:
        found_mask = shaped("mask", dense("mask", mask, found.device), shape, "token_ids")
    if ids.dim() not in (1, 2):
        found = found.reshape(-1, found.shape[-1])
        ids = ids.reshape(-1)
        found_mask = None if found_mask is None else found_mask.reshape(-1)
    return found, ids, found_mask, shape


def _temperature(temperature: object) -> float:
    if not is_number(temperature):
        found = type(temperature).__name__
        raise TypeError(f"temperature: expected a number, found {found}")
    return float(temperature)  # type: ignore[arg-type]


def _check_inplace(logits: Tensor) -> None:
    if torch.compiler.is_compiling():
        raise RuntimeError("inplace: expected False within torch.compile, found True")
    if not (logits.requires_grad and torch.is_grad_enabled()):
        raise ValueError("inplace: expected False where logits need no gradient, found True")
    base = logits._base  # of a view, even of a view of a view
    if logits.is_leaf or (base is not None and base.is_leaf and base.requires_grad):
        raise ValueError(
            "inplace: expected False where logits are a leaf, which keeps its values, found True"
        )
    if _native.logits_rows(logits.detach()).data_ptr() != logits.data_ptr():
        raise ValueError(
            "inplace: expected False where logits would be copied "
            f"(strides {list(logits.stride())}), found True"
        )
