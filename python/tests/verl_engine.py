"""verl's actor update on the CPU: its worker, FSDP engine, mini-batches and loss, with a toy model.

verl imports rollout servers and adapters next to its engines; those that are not installed are
replaced by stand-ins that nothing calls. So this belongs in a process of its own.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from contextlib import nullcontext
from unittest import mock

import torch

_NOT_CALLED = ("uvicorn", "fastapi", "zmq", "vllm", "peft", "tensorboard", "aiohttp", "cachetools")


class StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in _NOT_CALLED:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        module = mock.MagicMock(name=spec.name)
        module.__name__, module.__spec__, module.__path__ = spec.name, spec, []
        return module

    def exec_module(self, module):
        pass


def install_stand_ins():
    sys.meta_path.append(StandIns())

    from verl.plugin.platform.platform_cuda import PlatformCUDA
    from verl.plugin.platform.platform_manager import set_platform

    class Cpu(PlatformCUDA):
        device_name = "cpu"
        device_module = types.SimpleNamespace(
            max_memory_allocated=lambda: 0, max_memory_reserved=lambda: 0
        )

        def current_device(self):
            return "cpu"

    set_platform(Cpu())


class Bigram(torch.nn.Module):
    """The log-prob of each token given the one before it, in verl's packed layout."""

    def __init__(self, vocab_size):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        start = torch.randn(vocab_size, vocab_size, generator=generator, dtype=torch.float64)
        self.logits = torch.nn.Parameter(start)

    def forward(self, tokens):
        log_probs = self.logits[tokens].log_softmax(-1)
        return log_probs.gather(-1, tokens.roll(-1).unsqueeze(-1)).squeeze(-1)


def engine(model):
    """verl's FSDPEngine with a model that is not sharded: all but the model's own step is verl's."""
    from verl.workers.engine.fsdp.transformer_impl import FSDPEngine

    class Engine(FSDPEngine):
        def __init__(self):
            self.module = model
            self.ulysses_device_mesh = None
            self.ulysses_sequence_parallel_size = 1
            self.engine_config = types.SimpleNamespace()
            self.gradients, self.rows, self.micro_batches = [], [], 0

        def train_mode(self, **kwargs):
            return nullcontext()

        def optimizer_zero_grad(self):
            model.zero_grad()
            self.rows.append(0)

        def forward_step(self, micro_batch, loss_function, forward_only):
            input_ids = micro_batch["input_ids"]
            self.rows[-1] += len(micro_batch)
            self.micro_batches += 1
            log_probs = torch.nested.nested_tensor_from_jagged(
                model(input_ids.values()), offsets=input_ids.offsets()
            )
            loss, metrics = loss_function(model_output={"log_probs": log_probs}, data=micro_batch)
            return loss, {"loss": loss.detach().item(), "metrics": metrics}

        def optimizer_step(self):
            # As FSDP does: the mean over data-parallel ranks.
            gradient = model.logits.grad / torch.distributed.get_world_size()
            torch.distributed.all_reduce(gradient)
            self.gradients.append(gradient)
            return gradient.norm().item()

        def lr_scheduler_step(self):
            return 0.0

        def is_mp_src_rank_with_outputs(self):
            return True

    return Engine()


def actor_config(**changes):
    from verl.workers.config import FSDPActorConfig, PolicyLossConfig

    loss_mode = changes.pop("loss_mode", "vanilla")
    options = {
        "strategy": "fsdp",
        "rollout_n": 1,
        "ppo_micro_batch_size_per_gpu": 2,
        "policy_loss": PolicyLossConfig(loss_mode=loss_mode),
    }
    return FSDPActorConfig(**options | changes)


def worker(worker_cls, config, micro_batch_size, max_token_len):
    """A worker as ``ActorRolloutRefWorker.init_model`` leaves it."""
    from verl.workers.utils.losses import ppo_loss

    made = object.__new__(worker_cls)
    made.engine = engine(Bigram(11))
    made.engine_config = types.SimpleNamespace(
        strategy=config.strategy,
        forward_only=False,
        use_dynamic_bsz=max_token_len is not None,
        max_token_len_per_gpu=max_token_len,
        micro_batch_size_per_gpu=micro_batch_size,
        use_fused_kernels=False,
    )
    made.model_config = {"use_remove_padding": True}
    made.device_name = "cpu"
    made.flops_counter = mock.Mock(estimate_flops=mock.Mock(return_value=(1.0, 1.0)))
    made.profiler = mock.MagicMock(rank=0, **{"check_enable.return_value": False})
    made.loss_fn = functools.partial(ppo_loss, config=config)
    return made
