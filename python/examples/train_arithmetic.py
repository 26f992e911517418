"""Trains a tiny model on addition with TRL: the mean baseline, QAE, and QAE with an automatic K.

    pip install './python[trl]' matplotlib
    python python/examples/train_arithmetic.py

Under three minutes on a free CPU core. The model is made from scratch and sees worked answers with
wrong digits for some seconds, until it gets about one in four sums right; then all methods start
from the same weights and see the same questions. For a longer run on a GPU:
``--device cuda --steps 2000``. The plot needs matplotlib. ``--rollouts FOLDER`` keeps what was sampled,
for ``qae analyze``.
"""

from __future__ import annotations

import argparse
import copy
import os
import tempfile
import time
import warnings
from typing import Any, NamedTuple

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")

import torch
import transformers
from arithmetic import (
    LONGEST_ANSWER,
    make_model,
    make_questions,
    make_tokenizer,
    reward,
    warm_up,
)
from arithmetic_report import plot, print_table
from arithmetic_rollouts import Recorded, write_rollouts
from datasets import Dataset
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from qae.trl import QAEConfig, QAETrainer


class Method(NamedTuple):
    """What is trained, and what its rollouts are called."""

    trainer: type
    config: type
    options: dict[str, Any]
    file: str


_QAE = {"quantile_k": 0.4, "full_entropy_interval": 10}
METHODS = {
    "mean baseline (GRPO)": Method(GRPOTrainer, GRPOConfig, {}, "mean"),
    "QAE, K = 0.4": Method(QAETrainer, QAEConfig, _QAE, "qae"),
    "QAE, automatic K": Method(QAETrainer, QAEConfig, _QAE | {"auto_k": True}, "auto-k"),
}


class Timed:
    """Times the updates without the generation: forward, loss, backward."""

    update_seconds = 0.0

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        start = self._now()
        loss = super().training_step(*args, **kwargs)
        self.update_seconds += self._now() - start
        return loss

    def _prepare_inputs(self, *args: Any) -> dict[str, Any]:
        start = self._now()
        inputs = super()._prepare_inputs(*args)
        self.update_seconds -= self._now() - start
        tokens = int(inputs["completion_mask"].sum())
        self._metrics["train"]["update_tokens"].append(tokens)
        return inputs

    def _now(self) -> float:
        if self.accelerator.device.type == "cpu":
            # What other programs do on the same cores is not in it.
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def log(self, logs: dict[str, float], *args: Any) -> None:
        if "loss" in logs:
            logs["update_seconds"], self.update_seconds = self.update_seconds, 0.0
        super().log(logs, *args)


class Progress(TrainerCallback):
    """A line every so many steps: the means since the last one."""

    def __init__(self, name: str, every: int) -> None:
        self.name, self.every = name, every
        self.rewards: list[float] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if logs and logs.get("reward") is not None:
            self.rewards.append(logs["reward"])
        if logs and "loss" in logs and state.global_step % self.every == 0:
            mean = sum(self.rewards) / max(len(self.rewards), 1)
            self.rewards.clear()
            step = f"step {state.global_step:4d} of {state.max_steps}"
            print(f"  {self.name:22s} {step}   reward {mean:.2f}", flush=True)


def train(
    name: str, model: torch.nn.Module, tokenizer: Any, options: argparse.Namespace
) -> list[dict[str, float]]:
    """A run of one method; what TRL logged at each step."""
    method = METHODS[name]
    with tempfile.TemporaryDirectory() as output:
        args = method.config(
            output_dir=output,
            max_steps=options.steps,
            seed=options.seed,
            use_cpu=options.device == "cpu",
            bf16=False,
            gradient_checkpointing=False,
            # 16 questions with 16 answers each; two optimizer steps on each batch of answers.
            per_device_train_batch_size=128,
            num_generations=16,
            steps_per_generation=2,
            max_completion_length=LONGEST_ANSWER,
            epsilon=0.2,
            epsilon_high=0.28,
            learning_rate=5e-4,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=20,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            **method.options,
        )
        extensions = (Timed, Recorded) if options.rollouts else (Timed,)
        trainer = type("ExampleTrainer", (*extensions, method.trainer), {})(
            model=copy.deepcopy(model),
            reward_funcs=reward,
            args=args,
            train_dataset=Dataset.from_dict({"prompt": make_questions(4096, options.seed)}),
            processing_class=tokenizer,
            callbacks=[Progress(name, max(options.steps // 5, 1))],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    if options.rollouts:
        write_rollouts(trainer.rollouts, options.rollouts, method.file)
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps of each method")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plot", default="train_arithmetic.svg", help="file to draw into")
    parser.add_argument("--rollouts", metavar="FOLDER", help="write what each method sampled there")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    if options.device == "cpu":
        # The matrices are tiny: a second thread gains little, and waiting for it costs much more
        # where the cores are shared.
        torch.set_num_threads(1)

    start = time.perf_counter()
    tokenizer = make_tokenizer()
    model = make_model(tokenizer, options.seed).to(options.device)
    size = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"warm-up of a model of {size:.1f} M parameters on answers with wrong digits", flush=True)
    steps, loss = warm_up(model, tokenizer, target=0.37, seed=options.seed)
    taken = time.perf_counter() - start
    print(f"  {steps} steps, {loss:.2f} nats a token, {taken:.0f} s", flush=True)

    logs = {}
    for name in METHODS:
        print(f"training with {'the ' if 'mean' in name else ''}{name}")
        logs[name] = train(name, model, tokenizer, options)
    print_table(logs)
    print(f"{time.perf_counter() - start:.0f} s in all")
    plot(logs, options.plot)


if __name__ == "__main__":
    main()
