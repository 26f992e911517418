"""From tensors of any strides to calls of the native module.

Only the implementations of the custom operations come here: below autograd and tracing, where a
tensor has memory. Nothing here waits for a device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from . import _qae

Arguments = Mapping[str, Tensor | int | float | None]
Operation = Callable[[Arguments, Arguments, int], None]
Workspace = Callable[[Arguments, Arguments], int]

_INT32_MAX = 2**31 - 1
_EXACT_IN_INT32 = (torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)

_is_emulated = False


def set_emulated(is_emulated: bool) -> None:
    """Whether CPU tensors go through the emulated kernels."""
    global _is_emulated
    _is_emulated = is_emulated


def runs_emulated() -> bool:
    """Whether :func:`set_emulated` is on."""
    return _is_emulated


def runs_kernels(device: torch.device) -> bool:
    """Whether the CUDA kernels run there, emulated or not."""
    return _is_emulated or device.type == "cuda"


def run(
    device: torch.device,
    operation: Operation,
    inputs: Arguments,
    outputs: Arguments,
    workspace: Workspace | None = None,
) -> None:
    """Runs ``operation`` on ``device``, on its current stream."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            stream = torch.cuda.current_stream(device).cuda_stream
            outputs = _with_workspace(device, inputs, outputs, workspace)
            operation(inputs, outputs, stream)
    else:
        operation(inputs, outputs, 0)


def _with_workspace(
    device: torch.device, inputs: Arguments, outputs: Arguments, workspace: Workspace | None
) -> Arguments:
    size = 0 if workspace is None else workspace(inputs, outputs)
    if size == 0:
        return outputs
    # Of this call alone, so that calls on several streams, or in a CUDA graph, share nothing.
    return {**outputs, "workspace": torch.zeros(size, dtype=torch.uint8, device=device)}


def rows(tensor: Tensor) -> Tensor:
    """``[n, width]`` with contiguous rows that do not overlap, or ``[n]`` contiguous; copied only
    if it is not."""
    if tensor.dim() == 2:
        row_stride, stride = tensor.stride()
        if stride == 1 and row_stride >= max(tensor.size(1), 1):
            return tensor
    return tensor.contiguous()


def aligned_rows(tensors: Mapping[str, Tensor | None]) -> dict[str, Tensor | None]:
    """Token tensors, whose rows have to be the same distance apart; copied only where they are
    not."""
    plain = {name: None if t is None else rows(t) for name, t in tensors.items()}
    strides = {t.stride(0) for t in plain.values() if t is not None and t.dim() == 2}
    if len(strides) <= 1:
        return plain
    return {name: None if t is None else t.contiguous() for name, t in plain.items()}


def logits_rows(logits: Tensor) -> Tensor:
    """``[..., vocab]`` whose rows are contiguous and do not overlap, those of a response before
    those of the next; copied only if they are not."""
    vocab = logits.size(-1)
    strides = logits.stride()
    is_plain = strides[-1] == 1 and strides[-2] >= vocab
    if logits.dim() == 3:
        is_plain = is_plain and strides[0] >= (logits.size(1) - 1) * strides[1] + vocab
    return logits if is_plain else logits.contiguous()


def mask_bytes(mask: Tensor | None) -> Tensor | None:
    """Bool or uint8 with plain rows; a bool or uint8 mask is not copied."""
    if mask is None:
        return None
    return rows(mask if mask.dtype in (torch.bool, torch.uint8) else mask != 0)


def int32(tensor: Tensor | None) -> Tensor | None:
    """int32; what does not fit stays out of range."""
    if tensor is None:
        return None
    if tensor.dtype not in _EXACT_IN_INT32:
        tensor = tensor.clamp(-1, _INT32_MAX)
    return tensor.to(torch.int32).contiguous()


def int64(tensor: Tensor | None) -> Tensor | None:
    """int64, contiguous."""
    return None if tensor is None else tensor.to(torch.int64).contiguous()


def count(device: torch.device, inputs: Arguments, counted: str) -> Tensor:
    """``tokens`` or non-empty ``rows`` of a batch, float64 [1] on the device."""
    counts = torch.empty(2, dtype=torch.float64, device=device)
    outputs = {"num_tokens": counts[:1], "num_rows": counts[1:]}
    run(device, _qae.token_counts, inputs, outputs, _qae.token_counts_workspace)
    return outputs["num_tokens" if counted == "tokens" else "num_rows"]
