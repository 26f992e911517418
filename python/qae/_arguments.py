"""What the two losses have in common: their arguments, checked and in the order of the operations.

Everything here is seen by ``torch.compile``: it looks at shapes, dtypes and devices, never at
values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .config import AdvantageOptions, LossOptions, loss_config
from .groups import GroupIndex, GroupsLike, group_index

Normalizer = int | float | Tensor | Literal["batch"]

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_NO_GROUPS = GroupIndex(0, 0, 0, 0, None, None, None)


@dataclass(frozen=True)
class Tokens:
    """The places of the tokens of a call, named after the tensor that has one element for each."""

    name: str
    shape: torch.Size
    num_rows: int
    device: torch.device

    @property
    def is_packed(self) -> bool:
        return len(self.shape) == 1


@dataclass(frozen=True)
class LossArguments:
    """The tensors that both losses take, as the caller gave them."""

    rewards: Tensor | None
    groups: GroupsLike | None
    response_index: Tensor | None
    advantages: Tensor | None
    mask: Tensor | None
    lengths: Tensor | None
    offsets: Tensor | None
    importance_weight: Tensor | None
    normalizer: Normalizer


def dense(name: str, tensor: object, device: torch.device | None = None) -> Tensor:
    """``tensor``, if it is a dense tensor on ``device``."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected a tensor, found {type(tensor).__name__}")
    if tensor.is_nested or tensor.layout != torch.strided:
        raise TypeError(f"{name}: expected a dense tensor, found layout {tensor.layout}")
    if device is None:
        if tensor.device.type not in ("cpu", "cuda", "meta"):
            raise ValueError(f"{name}: expected a tensor on cpu or cuda, found {tensor.device}")
    elif tensor.device != device:
        raise ValueError(f"{name}: expected a tensor on {device}, found one on {tensor.device}")
    return tensor


def floating(name: str, tensor: object, device: torch.device | None = None) -> Tensor:
    """A dense tensor of log-probs or logits."""
    tensor = dense(name, tensor, device)
    if tensor.dtype not in FLOATS:
        raise TypeError(
            f"{name}: expected float32, bfloat16, float16 or (on the CPU) float64, "
            f"found {_short(tensor.dtype)}"
        )
    if tensor.dtype == torch.float64 and tensor.device.type == "cuda":
        raise TypeError(f"{name}: expected float32, bfloat16 or float16 on cuda, found float64")
    return tensor


def policy(name: str, tensor: object) -> Tensor:
    """A dense tensor of log-probs or logits that the result is a function of."""
    found = floating(name, tensor)
    # The operations would take its tangent for 0.
    in_forward_mode = not torch.compiler.is_compiling() and forward_ad._current_level >= 0
    if in_forward_mode and forward_ad.unpack_dual(found).tangent is not None:  # type: ignore[no-untyped-call]
        raise RuntimeError(
            f"qae: {name}: expected a tensor without tangent, as there is no forward-mode "
            "derivative, found one with"
        )
    return found


def integers(name: str, tensor: object, device: torch.device) -> Tensor:
    """A dense integer tensor."""
    tensor = dense(name, tensor, device)
    if tensor.dtype.is_floating_point or tensor.dtype.is_complex or tensor.dtype == torch.bool:
        raise TypeError(f"{name}: expected an integer tensor, found {_short(tensor.dtype)}")
    return tensor


def numbers(name: str, tensor: object, device: torch.device) -> Tensor:
    """A dense real tensor as float32, without its history."""
    tensor = dense(name, tensor, device)
    if tensor.dtype.is_complex or tensor.dtype == torch.bool:
        raise TypeError(f"{name}: expected real numbers, found {_short(tensor.dtype)}")
    return tensor.detach().to(torch.float32)


def shaped(name: str, tensor: Tensor, shape: torch.Size | tuple[int, ...], like: str) -> Tensor:
    """``tensor``, if it has ``shape``."""
    if tensor.shape != torch.Size(shape):
        raise ValueError(
            f"{name}: expected shape {list(shape)}, as {like}, found {list(tensor.shape)}"
        )
    return tensor


def tokens_of(name: str, tensor: Tensor, lengths: Tensor | None, offsets: Tensor | None) -> Tokens:
    """The places that ``tensor``, ``[rows, width]`` or with ``offsets`` ``[slots]``, has."""
    if offsets is None:
        if tensor.dim() != 2:
            raise ValueError(
                f"{name}: expected shape [rows, width] (or [slots] with offsets), "
                f"found {list(tensor.shape)}"
            )
        return Tokens(name, tensor.shape, tensor.shape[0], tensor.device)
    if lengths is not None:
        raise ValueError("lengths: expected None with offsets, found a tensor")
    if tensor.dim() != 1:
        raise ValueError(f"{name}: expected shape [slots] with offsets, found {list(tensor.shape)}")
    offsets = integers("offsets", offsets, tensor.device)
    if offsets.dim() != 1 or offsets.shape[0] == 0:
        raise ValueError(f"offsets: expected shape [rows + 1], found {list(offsets.shape)}")
    return Tokens(name, tensor.shape, offsets.shape[0] - 1, tensor.device)


def log_prob_like(name: str, tensor: object, tokens: Tokens) -> Tensor:
    """Log-probs of another policy: constants with one value for each token."""
    found = floating(name, tensor, tokens.device)
    return shaped(name, found.detach(), tokens.shape, tokens.name)


def require(options: LossOptions, old_log_prob: object, ref_log_prob: object) -> None:
    """Whether what the objective and the KL term need is there."""
    if old_log_prob is None and options.objective.kind != "reinforce":
        raise ValueError(
            "old_log_prob: expected the log-probs of the policy that sampled, found None"
        )
    if ref_log_prob is None and options.kl is not None:
        raise ValueError("ref_log_prob: expected the reference's log-probs for kl, found None")
    if ref_log_prob is not None and options.kl is None:
        raise ValueError("ref_log_prob: expected None without kl, found a tensor")


def operation_arguments(
    given: LossArguments,
    tokens: Tokens,
    ref_log_prob: Tensor | None,
    options: LossOptions,
    advantage: AdvantageOptions,
) -> tuple[Any, ...]:
    """What follows ``old_log_prob`` in the schema of either loss."""
    rewards, groups, response_index = _rewards(given, tokens, advantage)
    advantages, token_advantages = _per_row_or_token("advantages", given.advantages, tokens)
    weight, token_weight = _per_row_or_token("importance_weight", given.importance_weight, tokens)
    mask = given.mask
    if mask is not None:
        shaped("mask", dense("mask", mask, tokens.device), tokens.shape, tokens.name)
    lengths = given.lengths
    if lengths is not None:
        lengths = integers("lengths", lengths, tokens.device)
        shaped("lengths", lengths, (tokens.num_rows,), f"the rows of {tokens.name}")
    normalizer, number, counted = _normalizer(given.normalizer, tokens, options)
    options_of_rewards: Mapping[str, object] = dict(advantage)
    config = loss_config(options, number, options_of_rewards)
    return (
        ref_log_prob,
        weight,
        token_weight,
        advantages,
        token_advantages,
        rewards,
        groups.offsets,
        groups.order,
        groups.group_of_response,
        groups.num_responses,
        groups.num_groups,
        groups.group_size,
        groups.max_group_size,
        response_index,
        mask,
        lengths,
        given.offsets,
        normalizer,
        counted,
        config,
    )


def rewards_of(
    rewards: object, groups: GroupsLike | None, device: torch.device | None
) -> tuple[Tensor, GroupIndex]:
    """Rewards as float32 ``[num_responses]`` and the index of their groups."""
    found = dense("rewards", rewards, device)
    found = numbers("rewards", found, found.device)
    if found.dim() != 1:
        raise ValueError(f"rewards: expected shape [num_responses], found {list(found.shape)}")
    if groups is None:
        raise ValueError("groups: expected a qae.Groups, a group size or ids, found None")
    return found, group_index(groups, found.shape[0], found.device)


def _rewards(
    given: LossArguments, tokens: Tokens, advantage: AdvantageOptions
) -> tuple[Tensor | None, GroupIndex, Tensor | None]:
    if (given.rewards is None) == (given.advantages is None):
        found = "neither" if given.rewards is None else "both"
        raise ValueError(f"rewards: expected either rewards or advantages, found {found}")
    if given.rewards is None:
        for name, value in (("groups", given.groups), ("response_index", given.response_index)):
            if value is not None:
                raise ValueError(f"{name}: expected None with advantages, found one")
        for name in advantage:
            raise ValueError(f"{name}: expected nothing with advantages, found a value")
        return None, _NO_GROUPS, None
    rewards, groups = rewards_of(given.rewards, given.groups, tokens.device)
    index = given.response_index
    if index is None:
        shaped(
            "rewards (without response_index)",
            rewards,
            (tokens.num_rows,),
            f"the rows of {tokens.name}",
        )
    else:
        index = integers("response_index", index, tokens.device)
        shaped("response_index", index, (tokens.num_rows,), f"the rows of {tokens.name}")
    return rewards, groups, index


def _per_row_or_token(
    name: str, tensor: Tensor | None, tokens: Tokens
) -> tuple[Tensor | None, Tensor | None]:
    """A float32 tensor with a value for each row, or for each token."""
    if tensor is None:
        return None, None
    tensor = numbers(name, tensor, tokens.device)
    shape = list(tensor.shape)
    if shape == [tokens.num_rows, 1] and shape != list(tokens.shape):
        return tensor.reshape(-1), None
    is_rows = shape == [tokens.num_rows]
    is_tokens = shape == list(tokens.shape)
    if is_rows and is_tokens and shape[0] > 1:
        raise ValueError(
            f"{name}: expected shape [{shape[0]}, 1] where there are as many tokens as rows, "
            f"which says that they are one for each row, found {shape}"
        )
    if is_rows:
        return tensor, None
    if is_tokens:
        return None, tensor
    raise ValueError(
        f"{name}: expected shape [{tokens.num_rows}] or {list(tokens.shape)}, found {shape}"
    )


def _normalizer(
    normalizer: Normalizer, tokens: Tokens, options: LossOptions
) -> tuple[Tensor | None, float | None, str]:
    """A tensor, a number, or what is to be counted; exactly one of them."""
    if isinstance(normalizer, Tensor):
        found = dense("normalizer", normalizer, tokens.device)
        if found.numel() != 1:
            raise ValueError(f"normalizer: expected one element, found {list(found.shape)}")
        if found.dtype.is_complex or found.dtype == torch.bool:
            raise TypeError(f"normalizer: expected a real number, found {_short(found.dtype)}")
        return found.detach().to(torch.float64).reshape(1), None, ""
    if isinstance(normalizer, str):
        if normalizer != "batch":
            raise ValueError(
                f"normalizer: expected a number, a tensor or 'batch', found {normalizer!r}"
            )
        return None, None, "tokens" if options.aggregation == "token-mean" else "rows"
    if not is_number(normalizer):
        found_type = type(normalizer).__name__
        raise TypeError(f"normalizer: expected a number, a tensor or 'batch', found {found_type}")
    if not normalizer >= 0:
        raise ValueError(f"normalizer: expected a number of at least 0, found {normalizer}")
    if normalizer == 0:
        # As in a tensor: of a batch whose tokens are all masked, where loss and gradient are 0.
        return torch.zeros(1, dtype=torch.float64, device=tokens.device), None, ""
    if torch.compiler.is_compiling():
        # As a tensor: it changes with every batch, and text would be compiled anew each time.
        value = torch.full((1,), normalizer, dtype=torch.float64, device=tokens.device)
        return value, None, ""
    return None, normalizer, ""


def is_number(value: object) -> bool:
    """Whether it is a real number, symbolic ones included."""
    if isinstance(value, bool):
        return False
    return isinstance(value, (int, float, torch.SymInt, torch.SymFloat))


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
