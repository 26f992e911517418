"""The operations on rewards and log-probs as custom torch operations.

Functional: each returns new tensors and touches no other. The fakes give the same shapes and dtypes
without computing, so that ``torch.compile`` traces through.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, library

from . import _native, _qae

GROUPS_SCHEMA = (
    "Tensor? group_offsets, Tensor? group_order, Tensor? group_of_response, "
    "SymInt num_responses, SymInt num_groups, SymInt group_size, SymInt max_group_size"
)
LOSS_SCHEMA = (
    "Tensor? ref_log_prob, Tensor? importance_weight, "
    "Tensor? token_importance_weight, Tensor? advantages, Tensor? token_advantages, "
    f"Tensor? rewards, {GROUPS_SCHEMA}, Tensor? response_index, "
    "Tensor? mask, Tensor? lengths, Tensor? offsets, Tensor? normalizer, str counted, str config"
)


def once_differentiable(operation: str) -> None:
    """What a backward function calls first: the gradient was computed in the forward pass, so that
    there is nothing to differentiate again, and autograd would take it for a constant."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            f"qae: {operation} is differentiable once: "
            "expected create_graph=False, found create_graph=True"
        )


# ---------------------------------------------------------------------------------- advantages


def _advantages(
    rewards: Tensor,
    group_offsets: Tensor | None,
    group_order: Tensor | None,
    group_of_response: Tensor | None,
    num_responses: int,
    num_groups: int,
    group_size: int,
    max_group_size: int,
    config: str,
) -> tuple[Tensor, Tensor, Tensor]:
    advantage, baseline, words = _advantages_like(rewards)
    inputs: dict[str, Any] = {
        "rewards": rewards.contiguous(),
        "num_responses": num_responses,
        "num_groups": num_groups,
        "group_size": group_size,
        "max_group_size": max_group_size,
        "group_offsets": group_offsets,
        "group_order": group_order,
        "group_of_response": group_of_response,
    }
    outputs = {"advantage": advantage, "baseline": baseline, "words": words}
    _native.run(
        rewards.device,
        lambda i, o, stream: _qae.advantages(i, config, o, stream),
        inputs,
        outputs,
        lambda i, o: _qae.advantages_workspace(i, config, o),
    )
    return advantage, baseline, words


def _advantages_like(rewards: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.empty_like(rewards, memory_format=torch.contiguous_format),
        torch.empty_like(rewards, memory_format=torch.contiguous_format),
        rewards.new_empty(_qae.GROUP_WORDS, dtype=torch.int64),
    )


advantages = library.custom_op(
    "qae::advantages",
    _advantages,
    mutates_args=(),
    schema=f"(Tensor rewards, {GROUPS_SCHEMA}, str config) -> (Tensor, Tensor, Tensor)",
)
advantages.register_fake(_advantages_like)


# ------------------------------------------------------------------------- loss_from_log_probs


def loss_inputs(
    device: torch.device,
    token_tensors: dict[str, Tensor | None],
    is_packed: bool,
    arguments: tuple[Any, ...],
) -> dict[str, Any]:
    """The native inputs of a loss; the first of ``token_tensors`` has the shape of the tokens."""
    (
        ref_log_prob,
        importance_weight,
        token_importance_weight,
        advantages,
        token_advantages,
        rewards,
        group_offsets,
        group_order,
        group_of_response,
        num_responses,
        num_groups,
        group_size,
        max_group_size,
        response_index,
        mask,
        lengths,
        offsets,
        normalizer,
        counted,
        _,
    ) = arguments
    tokens = _native.aligned_rows(
        {
            **token_tensors,
            "ref_log_prob": ref_log_prob,
            "token_importance_weight": token_importance_weight,
            "token_advantages": token_advantages,
        }
    )
    layout = {
        "mask": _native.mask_bytes(mask),
        "lengths": _native.int32(lengths),
        "offsets": _native.int64(offsets),
    }
    if counted and _native.runs_kernels(device):
        shape = next(t.shape for t in token_tensors.values() if t is not None)
        size = {"slots": shape[0]} if is_packed else {"rows": shape[0], "width": shape[1]}
        normalizer = _native.count(device, {**size, **layout}, counted)
    inputs = {
        **tokens,
        **layout,
        "importance_weight": _contiguous(importance_weight),
        "advantages": _contiguous(advantages),
        "normalizer": _contiguous(normalizer),
    }
    if rewards is not None:
        inputs |= {
            "rewards": _contiguous(rewards),
            "group_offsets": group_offsets,
            "group_order": group_order,
            "group_of_response": group_of_response,
            "num_responses": num_responses,
            "num_groups": num_groups,
            "group_size": group_size,
            "max_group_size": max_group_size,
            "response_index": _native.int32(response_index),
        }
    return inputs


def response_outputs(
    tokens: Tensor, rewards: Tensor | None, offsets: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Baseline, advantage, active rows and their count, not computed yet."""
    num_rows = tokens.shape[0] if offsets is None else offsets.shape[0] - 1
    num_responses = 0 if rewards is None else rewards.shape[0]
    return (
        tokens.new_empty(num_responses, dtype=torch.float32),
        tokens.new_empty(num_responses, dtype=torch.float32),
        tokens.new_full((num_rows,), -1, dtype=torch.int32),
        tokens.new_empty(1, dtype=torch.int32),
    )


def response_arguments(outputs: list[Tensor], has_rewards: bool) -> dict[str, Tensor]:
    """The native outputs for :func:`response_outputs`."""
    baseline, advantage, active_rows, active_count = outputs
    named = {"active_rows": active_rows, "active_count": active_count}
    return {**named, "baseline": baseline, "advantage": advantage} if has_rewards else named


def loss_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of a loss of log-probs or logits of ``dtype``, and of log-probs computed from logits."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _loss_from_log_probs(
    log_prob: Tensor, old_log_prob: Tensor | None, *arguments: Any
) -> tuple[Tensor, ...]:
    rewards, offsets, config = arguments[5], arguments[16], arguments[19]
    tokens = {"log_prob": log_prob, "old_log_prob": old_log_prob}
    words, d_log_prob, *responses = outputs = _loss_from_log_probs_like(
        log_prob, old_log_prob, *arguments
    )
    _native.run(
        log_prob.device,
        lambda i, o, stream: _qae.loss_from_log_probs(i, config, o, stream),
        loss_inputs(log_prob.device, tokens, offsets is not None, arguments),
        {
            "words": words,
            "d_log_prob": d_log_prob,
            **response_arguments(responses, rewards is not None),
        },
        lambda i, o: _qae.loss_from_log_probs_workspace(i, config, o),
    )
    return outputs


def _loss_from_log_probs_like(
    log_prob: Tensor, old_log_prob: Tensor | None, *arguments: Any
) -> tuple[Tensor, ...]:
    # float16 would underflow before a loss scaler, whose factor arrives in the backward pass.
    dtype = torch.float32 if log_prob.dtype == torch.float16 else log_prob.dtype
    return (
        log_prob.new_empty(_qae.LOSS_WORDS, dtype=torch.int64),
        torch.empty_like(log_prob, dtype=dtype, memory_format=torch.contiguous_format),
        *response_outputs(log_prob, arguments[5], arguments[16]),
    )


loss_from_log_probs = library.custom_op(
    "qae::loss_from_log_probs",
    _loss_from_log_probs,
    mutates_args=(),
    schema=f"(Tensor log_prob, Tensor? old_log_prob, {LOSS_SCHEMA}) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
loss_from_log_probs.register_fake(_loss_from_log_probs_like)


# ------------------------------------------------------------------------------------- the loss
#
# What is differentiable is an operation of its own, with few arguments: for each argument of a
# differentiable operation torch converts the whole schema anew, about 0.1 ms for those of a loss.


def _loss_of(
    policy: Tensor, words: Tensor, gradient: Tensor, row_gradient: Tensor | None, operation: str
) -> Tensor:
    """The loss, which is the first of its metrics, as a function of log-probs or logits.
    ``row_gradient`` is 0 where a row of ``gradient`` is known to be 0."""
    return _loss(policy, words)


def _loss(policy: Tensor, words: Tensor) -> Tensor:
    return words[:1].view(torch.float64).reshape(()).to(loss_dtype(policy.dtype), copy=True)


def _loss_of_like(policy: Tensor, *_: Any) -> Tensor:
    return policy.new_empty((), dtype=loss_dtype(policy.dtype))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    policy, words, gradient, row_gradient, operation = inputs
    ctx.save_for_backward(gradient, row_gradient)
    ctx.dtype = policy.dtype
    ctx.by_element = words.shape[0] == _qae.LOSS_WORDS  # of log-probs
    ctx.operation = operation


def _backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
    once_differentiable(ctx.operation)
    gradient, row_gradient = ctx.saved_tensors
    if gradient.dtype != ctx.dtype or not _is_known_as_1(grad_loss):
        gradient = scale_gradient(gradient, grad_loss, row_gradient, ctx.by_element, ctx.dtype)
    return gradient, None, None, None, None


def _is_known_as_1(factor: Tensor) -> bool:
    """Whether the host sees that it is 1: a device is not waited for, a traced value is unknown."""
    if type(factor) is not Tensor or factor.device.type != "cpu":
        return False
    try:
        return bool(factor == 1)
    except RuntimeError:  # one of several at once, under vmap
        return False


loss_of = library.custom_op(
    "qae::loss_of",
    _loss_of,
    mutates_args=(),
    schema="(Tensor policy, Tensor words, Tensor gradient, Tensor? row_gradient, str operation) "
    "-> Tensor",
)
loss_of.register_fake(_loss_of_like)
loss_of.register_autograd(_backward, setup_context=_setup_context)


def _scale_gradient(
    gradient: Tensor,
    grad_loss: Tensor,
    row_gradient: Tensor | None,
    by_element: bool,
    dtype: torch.dtype,
) -> Tensor:
    gradient = gradient.contiguous()
    scaled = _scaled_like(gradient, grad_loss, row_gradient, by_element, dtype)
    if by_element:
        rows = (gradient.numel(), 1)
        _scale(gradient.view(rows), grad_loss, row_gradient, scaled.view(rows))
    else:
        _scale(gradient, grad_loss, row_gradient, scaled)
    return scaled


def _scaled_like(
    gradient: Tensor,
    grad_loss: Tensor,
    row_gradient: Tensor | None,
    by_element: bool,
    dtype: torch.dtype,
) -> Tensor:
    return torch.empty_like(gradient, dtype=dtype, memory_format=torch.contiguous_format)


def _scale(
    gradient: Tensor, grad_loss: Tensor, row_gradient: Tensor | None, scaled: Tensor
) -> None:
    inputs = {"gradient": gradient, "factor": grad_loss, "row_gradient": row_gradient}
    _native.run(gradient.device, _qae.scale_gradient, inputs, {"scaled": scaled})


scale_gradient = library.custom_op(
    "qae::scale_gradient",
    _scale_gradient,
    mutates_args=(),
    schema="(Tensor gradient, Tensor grad_loss, Tensor? row_gradient, bool by_element, "
    "ScalarType dtype) -> Tensor",
)
scale_gradient.register_fake(_scaled_like)


class LossInPlace(torch.autograd.Function):
    """:data:`loss_of` for a gradient that has taken the memory of ``policy`` already."""

    @staticmethod
    def forward(
        ctx: Any,
        policy: Tensor,
        words: Tensor,
        gradient: Tensor,
        row_gradient: Tensor | None,
        operation: str,
    ) -> Tensor:
        # What had saved the values for its own backward pass must notice that they are gone.
        torch.autograd.graph.increment_version(policy)
        ctx.gradient = gradient
        ctx.row_gradient = row_gradient
        ctx.version = gradient._version
        ctx.operation = operation
        return _loss(policy, words)

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        once_differentiable(ctx.operation)
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:
            raise RuntimeError(
                f"qae: {ctx.operation} with inplace=True: "
                "expected one backward pass, found a second one"
            )
        if gradient._version != ctx.version:
            raise RuntimeError(
                f"qae: {ctx.operation} with inplace=True: expected the logits, which hold their "
                "gradient, to be left alone until the backward pass, found them modified"
            )
        # On a device only the kernel knows whether the factor is 1, and then touches nothing.
        _scale(gradient, grad_loss, ctx.row_gradient, gradient)
        torch.autograd.graph.increment_version(gradient)
        return gradient, None, None, None, None
