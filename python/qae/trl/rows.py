"""A micro-batch of TRL without the responses that do not act."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from qae.drop import drop_inactive

_COMPLETION_WIDE = (
    "completion_ids",
    "completion_mask",
    "tool_mask",
    "old_per_token_logps",
    "ref_per_token_logps",
    "sampling_per_token_logps",
    "importance_sampling_ratio",
)
_SEQUENCE_WIDE = ("token_type_ids", "mm_token_type_ids")
_PROMPT_WIDE = ("prompt_ids", "prompt_mask")


@dataclass(frozen=True)
class MicroBatch:
    """What goes through the model, and the counts of what TRL made."""

    inputs: dict[str, Any]
    num_rows: int
    num_tokens: torch.Tensor
    kept_rows: int
    kept_tokens: torch.Tensor


def loss_mask(inputs: dict[str, Any]) -> torch.Tensor:
    """The tokens that TRL's loss counts, ``[rows, width]``."""
    mask = inputs["completion_mask"]
    return mask if "tool_mask" not in inputs else mask * inputs["tool_mask"]


def whole(inputs: dict[str, Any]) -> MicroBatch:
    """Nothing is dropped."""
    tokens = loss_mask(inputs).sum()
    rows = inputs["advantages"].size(0)
    return MicroBatch(inputs, rows, tokens, rows, tokens)


def without_inactive(
    inputs: dict[str, Any],
    *,
    trim: bool,
    pad_to_multiple_of: int | None = None,
    process_group: Any = None,
) -> MicroBatch:
    """Leaves out the rows whose advantage is 0 or that have no valid token.

    One row stays where all are inactive, so that every rank runs a forward and a backward pass, and
    all ranks keep as many as the one with the most: TRL gathers metrics with a number per row,
    which hangs or aborts where the ranks have different numbers.

    Parameters
    ----------
    process_group
        The ranks, where there are several.
    trim
        Also leave out the columns of padding behind the longest completion that stays. Not those
        before the prompts: absolute positions count from the first column.
    """
    mask = loss_mask(inputs)
    rows = inputs["advantages"].size(0)
    dropped = drop_inactive(inputs, mask=mask, process_group=process_group)
    kept = dict(dropped.batch)
    if trim:
        kept = _trimmed(kept, pad_to_multiple_of or 1)
    return MicroBatch(kept, rows, mask.sum(), dropped.num_rows, loss_mask(kept).sum())


def _trimmed(inputs: dict[str, Any], multiple: int) -> dict[str, Any]:
    mask = inputs["completion_mask"]
    used = mask.ne(0).any(dim=0).nonzero()
    width = int(used[-1]) + 1 if used.numel() else 1
    width = -(-width // multiple) * multiple
    surplus = mask.size(1) - width
    if surplus <= 0 or not _widths_known(inputs):
        return inputs
    trimmed = dict(inputs)
    for name in (*_COMPLETION_WIDE, *_SEQUENCE_WIDE):
        tensor = inputs.get(name)
        # A ratio per response has one column.
        if tensor is not None and tensor.size(1) > 1:
            trimmed[name] = tensor[:, :-surplus]
    return trimmed


def _widths_known(inputs: dict[str, Any]) -> bool:
    known = {*_COMPLETION_WIDE, *_SEQUENCE_WIDE, *_PROMPT_WIDE}
    tensors = {key for key, value in inputs.items() if getattr(value, "ndim", 0) > 1}
    return tensors <= known
