"""Leaving out inactive responses in the actor update of verl 0.9.1.

Switched on by one line of verl's configuration, which has every worker import this module::

    actor_rollout_ref.model.external_lib=qae.verl_drop

The import sets ``ActorRolloutRefWorker.actor_worker_cls``, verl's own place for another actor. The
actor then drops the inactive rows of each mini-batch, after verl has cut the mini-batches and
before it cuts micro-batches, and keeps both normalizers of verl's engine as they were:

- ``global_batch_size`` is a constant of the configuration that travels with the mini-batch;
- ``batch_num_tokens`` is counted by the engine, as the sum of ``loss_mask`` over the ranks. Nothing
  else in the FSDP engine and in ``ppo_loss`` reads ``loss_mask`` (the loss reads ``response_mask``),
  so one of its elements takes up the count of the dropped tokens.

Advantages, optimizer steps, ``ppo_epochs`` and ``shuffle`` are not touched.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from tensordict import NonTensorData, TensorDict
from torch import Tensor
from verl.utils import tensordict_utils as tu
from verl.workers.engine_workers import ActorRolloutRefWorker
from verl.workers.utils.losses import ppo_loss

from ._active_rows import activity, keep
from .drop import refuse_verl_config

# Their engine code is what the module's claim about `loss_mask` was checked against.
_STRATEGIES = ("fsdp", "fsdp2")


def drop_from_mini_batch(
    data: TensorDict, *, process_group: Any = None, multiple_of: int = 1
) -> TensorDict:
    """One rank's rows of a mini-batch without the inactive ones; ``data`` is not modified.

    ``data`` is what verl's ``TrainingWorker.train_batch`` takes: ``advantages``, ``response_mask``
    and ``loss_mask`` [rows, width], or jagged. All ranks of ``process_group`` call this and keep
    equally many rows, at least one and a multiple of ``multiple_of``.
    """
    rows = activity(data["advantages"], data["response_mask"])
    kept = keep(rows, multiple_of=multiple_of, min_rows=1, process_group=process_group)
    if kept.num_copies:
        raise ValueError(
            f"micro_batch_size_per_gpu: expected a divisor of the {len(data)} rows that each rank "
            f"has of a mini-batch, found {multiple_of}"
        )
    smaller = tu.index_select_tensor_dict(data, kept.index)
    smaller["loss_mask"] = _of_sum(smaller["loss_mask"], _values(data["loss_mask"]).sum())
    if tu.get(smaller, "global_token_num") is not None:
        # verl's FLOP counter: of what is computed now.
        lengths = smaller["input_ids"].offsets().diff().tolist()
        of_ranks = NonTensorData(_gathered(lengths, process_group))
        tu.assign_non_tensor(smaller, global_token_num=of_ranks)
    return smaller


class DropInactive:
    """Mixin of a ``TrainingWorker`` whose loss function is verl's ``ppo_loss``."""

    engine: Any
    engine_config: Any
    loss_fn: Any

    def train_batch(self, data: TensorDict) -> TensorDict:
        if "advantages" in data:
            self._refuse(data)
            data = drop_from_mini_batch(
                data,
                process_group=self.engine.get_data_parallel_group(),
                multiple_of=self._micro_batch_size(data),
            )
        return super().train_batch(data)  # type: ignore[misc]

    def _refuse(self, data: TensorDict) -> None:
        strategy = self.engine_config.strategy
        if strategy not in _STRATEGIES:
            raise ValueError(f"strategy: expected one of {_STRATEGIES}, found {strategy!r}")
        is_ppo = isinstance(self.loss_fn, functools.partial) and self.loss_fn.func is ppo_loss
        if not is_ppo:
            raise ValueError(f"loss_fn: expected verl's ppo_loss, found {self.loss_fn!r}")
        config = self.loss_fn.keywords["config"]
        refuse_verl_config(config)
        if config.get("calculate_entropy", False):
            raise ValueError(
                "calculate_entropy: expected False (verl would divide the entropy of the rows that "
                "are left by the tokens of all), found True"
            )
        per_width = (
            config.loss_agg_mode == "seq-mean-token-sum-norm" and not config.loss_scale_factor
        )
        if per_width and data["response_mask"].is_nested:
            raise ValueError(
                "loss_scale_factor: expected a constant (without one verl divides by the longest "
                "response of a micro-batch), found None"
            )

    def _micro_batch_size(self, data: TensorDict) -> int:
        defaults = self.engine_config
        if tu.get(data, "use_dynamic_bsz", defaults.use_dynamic_bsz):
            return 1
        return tu.get(data, "micro_batch_size_per_gpu", defaults.micro_batch_size_per_gpu)


def install(worker_cls: type = ActorRolloutRefWorker) -> None:
    """Makes actors that ``worker_cls`` builds from now on drop inactive responses."""
    actor_cls = worker_cls.actor_worker_cls
    if not issubclass(actor_cls, DropInactive):
        worker_cls.actor_worker_cls = type(
            f"Dropping{actor_cls.__name__}", (DropInactive, actor_cls), {"__module__": __name__}
        )


def _values(tensor: Tensor) -> Tensor:
    return tensor.values() if tensor.is_nested else tensor


def _of_sum(mask: Tensor, total: Tensor) -> Tensor:
    """The mask as int64, with one element changed so that its sum is ``total``."""
    mask = mask.to(torch.int64)
    flat = _values(mask).view(-1)
    # An element that counts already, where there is one: it stays nonzero.
    flat[flat.argmax()] += total - flat.sum()
    return mask


def _gathered(lengths: list[int], process_group: Any) -> list[int]:
    if process_group is None:
        return lengths
    of_ranks: list[Any] = [None] * torch.distributed.get_world_size(process_group)
    torch.distributed.all_gather_object(of_ranks, lengths, group=process_group)
    return [length for rank in of_ranks for length in rank]


install()
