"""Runs a function on several processes of a gloo group."""

from __future__ import annotations

import os
import tempfile

import torch
import torch.multiprocessing


def run(world_size, function, *arguments):
    """``function(rank, *arguments)`` on every rank; what each returns, in the order of ranks."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(
            _rank, (world_size, folder, function, arguments), nprocs=world_size
        )
        return [
            torch.load(os.path.join(folder, str(rank)), weights_only=False)
            for rank in range(world_size)
        ]


def _rank(rank, world_size, folder, function, arguments):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size
    )
    result = function(rank, *arguments)
    torch.save(result, os.path.join(folder, str(rank)))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
