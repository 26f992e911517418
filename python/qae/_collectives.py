"""What the modules that talk over ``torch.distributed`` share."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def collective_device(process_group: Any = None) -> torch.device:
    """Where tensors must be for the group's collectives: the CPU unless it has NCCL alone."""
    backend = dist.get_backend(process_group)
    if "gloo" in backend or "mpi" in backend:
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def all_gather(tensor: Tensor, process_group: Any = None) -> list[Tensor]:
    """The tensors of all ranks, which have equal shapes and dtypes, in the order of ranks."""
    tensor = tensor.contiguous()
    gathered = [torch.empty_like(tensor) for _ in range(dist.get_world_size(process_group))]
    dist.all_gather(gathered, tensor, group=process_group)
    return gathered
