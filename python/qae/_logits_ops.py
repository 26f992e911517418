"""The operations on logits as custom torch operations; see ``_ops``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, library

from . import _native, _qae
from ._ops import (
    LOSS_SCHEMA,
    loss_dtype,
    loss_inputs,
    once_differentiable,
    response_arguments,
    response_outputs,
)

# ---------------------------------------------------------------------------- loss_from_logits


def compute_loss_from_logits(
    logits: Tensor,
    d_logits: Tensor | None,
    row_gradient: Tensor | None,
    token_ids: Tensor,
    old_log_prob: Tensor | None,
    *arguments: Any,
) -> tuple[Tensor, ...]:
    """Words, log-probs, entropies and what a loss has for each response; writes the gradient to
    ``d_logits``, which may be the logits themselves, if their rows are plain, and that of each
    token's log-prob to ``row_gradient``."""
    rewards, offsets, config = arguments[5], arguments[16], arguments[19]
    tokens = {"token_ids": _token_ids(token_ids), "old_log_prob": old_log_prob}
    inputs = loss_inputs(logits.device, tokens, offsets is not None, arguments)
    inputs["logits"] = _native.logits_rows(logits)
    words, log_prob, entropy, *responses = outputs = _loss_outputs(logits, token_ids, arguments)
    _native.run(
        logits.device,
        lambda i, o, stream: _qae.loss_from_logits(i, config, o, stream),
        inputs,
        {
            "words": words,
            "log_prob": log_prob,
            "entropy": entropy,
            "d_logits": d_logits,
            "d_log_prob": row_gradient,
            **response_arguments(responses, rewards is not None),
        },
        lambda i, o: _qae.loss_from_logits_workspace(i, config, o),
    )
    return outputs


def _loss_from_logits(
    logits: Tensor, token_ids: Tensor, old_log_prob: Tensor | None, *arguments: Any
) -> tuple[Tensor, ...]:
    *others, needs_gradient = arguments
    gradients = _gradients_like(logits, token_ids) if needs_gradient else (None, None)
    outputs = compute_loss_from_logits(logits, *gradients, token_ids, old_log_prob, *others)
    return (*_present(logits, gradients), *outputs)


def _present(logits: Tensor, gradients: tuple[Tensor | None, ...]) -> tuple[Tensor, ...]:
    """Of what an operation returns nothing can be ``None``."""
    return tuple(logits.new_empty(0) if tensor is None else tensor for tensor in gradients)


def _gradients_like(logits: Tensor, token_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Those with respect to the logits and to the log-probs, not computed yet."""
    return _gradient_like(logits), row_gradient_like(logits, token_ids)


def row_gradient_like(logits: Tensor, token_ids: Tensor) -> Tensor:
    """The second of :func:`_gradients_like`: without an entropy term a row of the first is 0 where
    it is."""
    return logits.new_empty(token_ids.shape, dtype=loss_dtype(logits.dtype))


def _loss_from_logits_like(
    logits: Tensor, token_ids: Tensor, old_log_prob: Tensor | None, *arguments: Any
) -> tuple[Tensor, ...]:
    *others, needs_gradient = arguments
    gradients = _gradients_like(logits, token_ids) if needs_gradient else (None, None)
    return (*_present(logits, gradients), *_loss_outputs(logits, token_ids, others))


def _loss_outputs(
    logits: Tensor, token_ids: Tensor, arguments: Sequence[Any]
) -> tuple[Tensor, ...]:
    """Those of :func:`compute_loss_from_logits`, not computed yet."""
    rewards, offsets = arguments[5], arguments[16]
    dtype = loss_dtype(logits.dtype)
    return (
        logits.new_empty(_qae.LOGITS_WORDS, dtype=torch.int64),
        logits.new_empty(token_ids.shape, dtype=dtype),
        logits.new_empty(token_ids.shape, dtype=dtype),
        *response_outputs(token_ids, rewards, offsets),
    )


def _gradient_like(logits: Tensor) -> Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


def _token_ids(token_ids: Tensor) -> Tensor:
    is_exact = token_ids.dtype in (torch.int32, torch.int64)
    return token_ids if is_exact else token_ids.to(torch.int64)


loss_from_logits = library.custom_op(
    "qae::loss_from_logits",
    _loss_from_logits,
    mutates_args=(),
    schema=f"(Tensor logits, Tensor token_ids, Tensor? old_log_prob, {LOSS_SCHEMA}, "
    "bool needs_gradient) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
loss_from_logits.register_fake(_loss_from_logits_like)


# ----------------------------------------------------------------------- log_probs_from_logits


def _log_probs(
    logits: Tensor, token_ids: Tensor, mask: Tensor | None, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    log_prob, entropy, stats = _log_probs_fake(logits, token_ids)
    inputs = _rows_inputs(logits, token_ids, mask, None, temperature)
    outputs = {"log_prob": log_prob, "entropy": entropy, "stats": stats}
    _native.run(logits.device, _qae.log_probs_from_logits, inputs, outputs)
    return log_prob, entropy, stats


def _log_probs_fake(logits: Tensor, token_ids: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    dtype = loss_dtype(logits.dtype)
    return (
        logits.new_empty(token_ids.shape, dtype=dtype),
        logits.new_empty(token_ids.shape, dtype=dtype),
        logits.new_empty((*token_ids.shape, 4), dtype=dtype),
    )


def _rows_inputs(
    logits: Tensor,
    token_ids: Tensor,
    mask: Tensor | None,
    vocab_start: int | None,
    temperature: float,
) -> dict[str, Any]:
    mask = _native.mask_bytes(mask)
    return {
        "logits": _native.logits_rows(logits),
        "token_ids": _token_ids(token_ids).contiguous(),
        "mask": None if mask is None else mask.contiguous(),
        "vocab_start": vocab_start,
        "temperature": temperature,
    }


def _log_probs_backward(
    logits: Tensor,
    token_ids: Tensor,
    stats: Tensor,
    d_log_prob: Tensor | None,
    d_entropy: Tensor | None,
    mask: Tensor | None,
    vocab_start: int | None,
    temperature: float,
) -> Tensor:
    d_logits = _gradient_like(logits)
    inputs = _rows_inputs(logits, token_ids, mask, vocab_start, temperature)
    dtype = loss_dtype(logits.dtype)
    if d_log_prob is None:
        d_log_prob = torch.zeros(token_ids.shape, dtype=dtype, device=logits.device)
    # The statistics of a masked row say that nothing can be said of it: its gradient is 0.
    inputs["stats"] = stats.contiguous()
    inputs["d_log_prob"] = d_log_prob.to(dtype).contiguous()
    inputs["d_entropy"] = None if d_entropy is None else d_entropy.to(dtype).contiguous()
    _native.run(logits.device, _qae.log_probs_from_logits_backward, inputs, {"d_logits": d_logits})
    return d_logits


log_probs_from_logits_backward = library.custom_op(
    "qae::log_probs_from_logits_backward",
    _log_probs_backward,
    mutates_args=(),
    schema="(Tensor logits, Tensor token_ids, Tensor stats, Tensor? d_log_prob, "
    "Tensor? d_entropy, Tensor? mask, SymInt? vocab_start, float temperature) -> Tensor",
)
log_probs_from_logits_backward.register_fake(lambda logits, *_: _gradient_like(logits))


def _setup_log_probs(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, token_ids, mask, temperature = inputs
    stats = output[2]
    ctx.mark_non_differentiable(stats)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(logits, token_ids, stats, mask)
    ctx.temperature = temperature


def _log_probs_gradient(
    ctx: Any, d_log_prob: Tensor | None, d_entropy: Tensor | None, _: Any
) -> tuple[Tensor | None, ...]:
    once_differentiable("log_probs_and_entropy")
    if d_log_prob is None and d_entropy is None:
        return None, None, None, None
    logits, token_ids, stats, mask = ctx.saved_tensors
    gradient = log_probs_from_logits_backward(
        logits, token_ids, stats, d_log_prob, d_entropy, mask, None, ctx.temperature
    )
    return gradient, None, None, None


log_probs_from_logits = library.custom_op(
    "qae::log_probs_from_logits",
    _log_probs,
    mutates_args=(),
    schema="(Tensor logits, Tensor token_ids, Tensor? mask, float temperature) "
    "-> (Tensor, Tensor, Tensor)",
)
log_probs_from_logits.register_fake(_log_probs_fake)
log_probs_from_logits.register_autograd(_log_probs_gradient, setup_context=_setup_log_probs)


# ------------------------------------------------------------------------- vocabulary-parallel


def _softmax_stats(
    logits: Tensor, token_ids: Tensor, vocab_start: int, temperature: float
) -> Tensor:
    stats = _softmax_stats_fake(logits, token_ids)
    inputs = _rows_inputs(logits, token_ids, None, vocab_start, temperature)
    _native.run(logits.device, _qae.log_probs_from_logits, inputs, {"stats": stats})
    return stats


def _softmax_stats_fake(logits: Tensor, token_ids: Tensor, *_: Any) -> Tensor:
    return logits.new_empty((*token_ids.shape, 4), dtype=loss_dtype(logits.dtype))


softmax_stats = library.custom_op(
    "qae::softmax_stats",
    _softmax_stats,
    mutates_args=(),
    schema="(Tensor logits, Tensor token_ids, SymInt vocab_start, float temperature) -> Tensor",
)
softmax_stats.register_fake(_softmax_stats_fake)


def _merge_softmax_stats(shards: Tensor, temperature: float) -> tuple[Tensor, ...]:
    log_prob, entropy, log_sum_exp, stats = _merge_softmax_stats_fake(shards)
    inputs: dict[str, Any] = {"shards": shards.contiguous(), "temperature": temperature}
    outputs = {
        "log_prob": log_prob,
        "entropy": entropy,
        "log_sum_exp": log_sum_exp,
        "stats": stats,
    }
    _native.run(shards.device, _qae.merge_softmax_stats, inputs, outputs)
    return log_prob, entropy, log_sum_exp, stats


def _merge_softmax_stats_fake(shards: Tensor, *_: Any) -> tuple[Tensor, ...]:
    rows = shards.shape[1:-1]
    return (
        shards.new_empty(rows),
        shards.new_empty(rows),
        shards.new_empty(rows),
        shards.new_empty((*rows, 4)),
    )


merge_softmax_stats = library.custom_op(
    "qae::merge_softmax_stats",
    _merge_softmax_stats,
    mutates_args=(),
    schema="(Tensor shards, float temperature) -> (Tensor, Tensor, Tensor, Tensor)",
)
merge_softmax_stats.register_fake(_merge_softmax_stats_fake)
