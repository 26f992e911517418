"""K that follows the entropy of the policy, rollout by rollout.

Where TRL computes the old log-probs of a rollout, the same pass through the policy has its entropy,
before there are advantages: it moves the K of this very rollout. Elsewhere the loss's own first pass
over a rollout has it, with the weights that sampled it, after the advantages: it moves the K of the
next one.
"""

from __future__ import annotations

import json
import logging
import math
import os
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list  # type: ignore[import-untyped]
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from qae.auto_k import AutoK
from qae.trl.rows import loss_mask

_logger = logging.getLogger(__name__)

FILE_NAME = "qae_auto_k.json"


def make_auto_k(args: Any) -> AutoK:
    """The controller that a ``QAEConfig`` describes; ``ValueError`` by the name of its field."""
    try:
        return AutoK(
            initial_k=args.quantile_k,
            gain=args.auto_k_gain,
            min_k=args.auto_k_min_k,
            max_k=args.auto_k_max_k,
            target_share=args.auto_k_target_share,
            target_entropy=args.auto_k_target_entropy,
        )
    except (TypeError, ValueError) as error:
        message = str(error)
        field = message.replace("initial_k", "quantile_k", 1)
        named = field if field != message else f"auto_k_{message}"
        raise type(error)(named) from None


def has_old_log_probs(args: Any) -> bool:
    """Whether TRL computes them: where the policy may have moved on since it sampled."""
    generate_every = args.steps_per_generation * args.num_iterations
    is_misaligned = args.gradient_accumulation_steps % generate_every != 0
    return is_misaligned or (args.use_vllm and args.vllm_importance_sampling_correction)


class RolloutK:
    """The controller of a run, and what it still has to see of a rollout."""

    def __init__(self, trainer: Any) -> None:
        self.auto_k = make_auto_k(trainer.args)
        self.is_generating = False
        self._trainer = trainer
        self._has_old_log_probs = has_old_log_probs(trainer.args)
        self._passes: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._sums: list[torch.Tensor] = []
        self._missing = 0

    def begin(self) -> None:
        """A rollout of the training is about to be generated."""
        self.is_generating = True
        self._passes.clear()

    def passed(self, log_probs: torch.Tensor, entropies: torch.Tensor) -> None:
        """A model has seen the whole rollout: the policy, or the reference."""
        self._passes.append((log_probs, entropies))

    def end(self, output: dict[str, Any]) -> None:
        """The rollout is there. Moves its K, or waits for the passes of the loss."""
        self.is_generating = False
        passes, self._passes = self._passes, []
        self._sums.clear()
        if not self._has_old_log_probs:
            self._missing = self._trainer.args.steps_per_generation
            return
        old = output.get("old_per_token_logps")
        entropies = next((found for log_probs, found in passes if log_probs is old), None)
        if entropies is None:
            raise RuntimeError(
                "trl: expected old_per_token_logps from the policy's pass over the rollout, found "
                f"{'none' if old is None else 'others'}; set auto_k=False"
            )
        self._step(_sums(entropies, loss_mask(output)))

    def add(self, entropies: torch.Tensor, mask: torch.Tensor, is_whole: bool) -> None:
        """A micro-batch went through the policy for its loss; ``is_whole``: nothing was dropped.

        K moves after the last one of the rollout, so that a checkpoint holds no half of a rollout.
        """
        if self._missing == 0:
            return
        if not is_whole:
            self._missing = 0
            return
        self._sums.append(_sums(entropies, mask))
        self._missing -= 1
        if self._missing == 0:
            self._step(torch.stack(self._sums).sum(dim=0))

    def save(self, folder: str) -> None:
        """Into a checkpoint, whole or not at all."""
        path = Path(folder) / FILE_NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".tmp")
        unfinished.write_text(json.dumps(self.auto_k.state_dict()))
        unfinished.replace(path)

    def load(self, checkpoint: str) -> None:
        """From a checkpoint, with the parameters of this run; one without a controller has a K that
        starts anew. The main process reads for all: another node need not see the same files."""
        path = Path(checkpoint) / FILE_NAME
        is_main = self._trainer.accelerator.is_main_process
        texts = [path.read_text() if is_main and path.exists() else None]
        (text,) = broadcast_object_list(texts)
        if text is None:
            _logger.warning("auto_k: no %s, so that K starts from %s", path, self.auto_k.k)
            return
        found = AutoK()
        try:
            found.load_state_dict(json.loads(text))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from None
        here, there = self.auto_k.state_dict()["config"], found.state_dict()["config"]
        for name, value in there.items():
            if here[name] != value:
                raise ValueError(
                    f"auto_k: expected {name}={value}, as in {path}, found {here[name]}"
                )
        self.auto_k = found

    def _step(self, sums: torch.Tensor) -> None:
        """``sums``: of the entropies and of the tokens of this process."""
        trainer = self._trainer
        # Gathered and then summed, so that all processes add in one order: their K never part.
        total, tokens = trainer.accelerator.gather(sums).view(-1, 2).sum(dim=0).tolist()
        entropy = total / tokens if tokens else math.nan
        try:
            step = self.auto_k.step(entropy)
        except ValueError as error:
            # A rollout like this is no reason to lose a run.
            if trainer.accelerator.is_main_process:
                _logger.warning("auto_k: K stays at %s: %s", self.auto_k.k, error)
            return
        metrics = trainer._metrics["train"]
        metrics["qae/rollout_entropy"].append(step.entropy)
        metrics["qae/target_entropy"].append(step.target_entropy)
        if trainer.accelerator.is_main_process:
            _logger.info("%s", step)


def checkpoint_folder(trainer: Any, trial: Any) -> str:
    """Where the trainer is about to put a checkpoint."""
    name = f"{PREFIX_CHECKPOINT_DIR}-{trainer.state.global_step}"
    return os.path.join(trainer._get_output_dir(trial=trial), name)


def _sums(entropies: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    valid = mask.bool()
    counted = torch.where(valid, entropies.detach(), 0).double().sum()
    return torch.stack([counted, valid.sum().double()])
