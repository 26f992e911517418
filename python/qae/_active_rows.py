"""Which rows of a batch have a gradient, and which of the others fill it up."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._collectives import all_gather, collective_device


class Activity(NamedTuple):
    """Of each row: whether it has a gradient, and its valid tokens."""

    active: Tensor
    """bool [rows]"""
    num_tokens: Tensor
    """int64 [rows]"""


def activity(advantages: Tensor, mask: Tensor) -> Activity:
    """Which rows are active; shapes as for :func:`drop_inactive`, jagged tensors too."""
    advantages, mask = _dense(advantages).detach(), _dense(mask)
    rows = advantages.shape[0] if advantages.dim() else 0
    if mask.device != advantages.device:
        raise ValueError(
            f"mask: expected the device of advantages, {advantages.device}, found {mask.device}"
        )
    if mask.dim() == 1 and mask.shape[0] == rows:
        if mask.is_floating_point() or mask.dtype == torch.bool:
            raise TypeError(f"mask: expected integers in one dimension, found {mask.dtype}")
        num_tokens, valid = mask.clamp(min=0).long(), None
    elif mask.dim() == 2 and mask.shape[0] == rows:
        valid = mask != 0
        num_tokens = valid.sum(-1)
    else:
        raise ValueError(f"mask: expected [{rows}, width] or [{rows}], found {list(mask.shape)}")
    if advantages.numel() == rows:
        nonzero = advantages.reshape(rows) != 0
    elif advantages.dim() == 2 and (valid is None or advantages.shape == valid.shape):
        if valid is None:
            columns = torch.arange(advantages.shape[1], device=advantages.device)
            valid = columns < num_tokens.unsqueeze(1)
        nonzero = ((advantages != 0) & valid).any(-1)
    else:
        raise ValueError(
            f"advantages: expected [{rows}] or {list(mask.shape)}, found {list(advantages.shape)}"
        )
    return Activity(nonzero & (num_tokens > 0), num_tokens)


class Kept(NamedTuple):
    """Which rows stay; the last ``num_copies`` of ``index`` repeat a row."""

    index: Tensor  # type: ignore[assignment]
    active: Tensor
    num_tokens: int
    num_sequences: int
    num_rows: int
    num_active: int
    num_copies: int
    num_dropped: int
    rows_in: int
    """Rows of the full batch, over all ranks."""


def keep(rows: Activity, *, multiple_of: int, min_rows: int, process_group: Any) -> Kept:
    """Chooses the rows that stay, as :func:`drop_inactive` says."""
    for name, value, least in (("multiple_of", multiple_of, 1), ("min_rows", min_rows, 0)):
        if value < least:
            raise ValueError(f"{name}: expected at least {least}, found {value}")
    active, num_tokens = rows
    size = active.shape[0]
    counts = torch.stack((active.sum(), num_tokens.sum(), (num_tokens > 0).sum()))
    if process_group is None:
        num_active, total_tokens, num_sequences = counts.tolist()
        most_active, rows_in = num_active, size
    else:
        of_ranks = _of_ranks(torch.cat((counts, counts.new_full((1,), size))), process_group)
        num_active = of_ranks[torch.distributed.get_rank(process_group)][0]
        most_active = max(rank[0] for rank in of_ranks)
        total_tokens, num_sequences, rows_in = (sum(column) for column in list(zip(*of_ranks))[1:])
    num_rows = -(-max(most_active, min_rows) // multiple_of) * multiple_of
    if size == 0 and num_rows > 0:
        raise ValueError(f"batch: expected a row to fill {num_rows} rows up with, found none")

    order = torch.argsort(torch.where(active, -1, num_tokens), stable=True)[:num_rows]
    index = order.sort().values
    num_copies = num_rows - index.shape[0]
    still_active = active[index]
    if num_copies:
        # The last in order: an inactive row if there is one. Any will do, the copies are masked.
        index = torch.cat((index, order[-1:].expand(num_copies)))
        still_active = torch.cat((still_active, still_active.new_zeros(num_copies)))
    return Kept(
        index=index,
        active=still_active,
        num_tokens=total_tokens,
        num_sequences=num_sequences,
        num_rows=num_rows,
        num_active=num_active,
        num_copies=num_copies,
        num_dropped=size - (num_rows - num_copies),
        rows_in=rows_in,
    )


def select_rows(tensor: Tensor, index: Tensor) -> Tensor:
    """Copies of the rows ``index``, of dense or jagged tensors."""
    if not tensor.is_nested:
        return tensor.index_select(0, index)
    parts = tensor.unbind()
    return torch.nested.as_nested_tensor(
        [parts[row] for row in index.tolist()], layout=torch.jagged
    )


def zero_tail(tensor: Tensor, count: int) -> None:
    """Sets the last ``count`` rows to 0, in place."""
    if count == 0:
        return
    if tensor.is_nested:
        start = int(tensor.offsets()[-1 - count])  # type: ignore[attr-defined]
        tensor.values()[start:].zero_()
    else:
        tensor[-count:].zero_()


def _of_ranks(counts: Tensor, process_group: Any) -> list[list[int]]:
    counts = counts.to(collective_device(process_group))
    return torch.stack(all_gather(counts, process_group)).tolist()


def _dense(tensor: Tensor) -> Tensor:
    return torch.nested.to_padded_tensor(tensor, 0) if tensor.is_nested else tensor
