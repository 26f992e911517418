"""What each of two ranks does in ``test_two_processes``: run by torchrun, writes a JSON file."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

torch.set_num_threads(1)

import trl_tiny as tiny


def run(output: Path, drop: bool) -> tuple[list[float], list[float]]:
    """Parameters before and after two optimizer steps on the same rollouts."""
    trainer = tiny.make_trainer(
        output,
        per_device_train_batch_size=6,
        max_steps=2,
        drop_inactive=drop,
        full_entropy_interval=0,
    )
    start = tiny.parameters(trainer).tolist()
    trainer.train()
    return start, tiny.parameters(trainer).tolist()


def scored(output: Path) -> tuple[list[float], list[float]]:
    """The gathered rewards and this rank's advantages; three groups of four on six rows a rank."""
    trainer = tiny.make_trainer(
        output, per_device_train_batch_size=6, gradient_accumulation_steps=1
    )
    gathered = []
    inner = trainer._calculate_rewards

    def calculate(*args: Any) -> torch.Tensor:
        gathered.append(inner(*args))
        return gathered[-1]

    trainer._calculate_rewards = calculate
    rank = trainer.accelerator.process_index
    prompts = [prompt for prompt in tiny.prompts(3) for _ in range(tiny.GROUP)]
    rows = [{"prompt": prompt} for prompt in prompts[6 * rank : 6 * rank + 6]]
    found = trainer._generate_and_score_completions(rows)
    return gathered[0].squeeze(1).tolist(), found["advantages"].tolist()


def one_idle(output: Path) -> tuple[float, list[int]]:
    """The averaged gradient where rank 0 has nothing to do: its error, and the rows forwarded."""
    trainer = tiny.make_trainer(output, per_device_train_batch_size=6, full_entropy_interval=0)
    rank = trainer.accelerator.process_index
    rows = [{"prompt": prompt} for prompt in tiny.prompts(2) for _ in range(3)]
    inputs = tiny.off_policy(trainer, trainer._generate_and_score_completions(rows))
    keep = torch.tensor([0.0] * 6 if rank == 0 else [1.0, 0, 0, 1, 0, 1])
    inputs["advantages"] = torch.ones(6) * keep
    model = torch.nn.parallel.DistributedDataParallel(trainer.model)
    forwarded = []
    trainer.model.get_input_embeddings().register_forward_hook(
        lambda module, args, output: forwarded.append(args[0].size(0))
    )
    gradients = []
    for drop in (False, True):
        trainer.args.drop_inactive = drop
        model.zero_grad()
        trainer._compute_loss(model, inputs).backward()
        gradients.append(tiny.gradients(trainer).clone())
    full, dropped = gradients
    return float((full - dropped).abs().max() / full.abs().max()), forwarded


def moved(output: Path, own_entropy: bool) -> dict[str, Any]:
    """The controller after three rollouts, and this rank's sums over the tokens of each."""
    steps = 2 if own_entropy else 1
    trainer = tiny.make_trainer(
        output,
        per_device_train_batch_size=6,
        gradient_accumulation_steps=1,
        steps_per_generation=steps,
        max_steps=3 * steps,
        full_entropy_interval=1,
        auto_k=True,
    )
    seen = []
    control = trainer._qae_auto_k
    inner = control._step

    def step(sums: torch.Tensor) -> None:
        seen.append(sums.tolist())
        inner(sums)

    control._step = step
    trainer.train()
    return {"state": control.auto_k.state_dict(), "sums": seen}


def main() -> None:
    output = Path(sys.argv[1])
    start, full = run(output, drop=False)
    _, dropped = run(output, drop=True)
    rewards, advantages = scored(output)
    error, rows = one_idle(output)
    auto_k = [moved(output, own_entropy) for own_entropy in (True, False)]
    rank = torch.distributed.get_rank()
    found = {
        "rank": rank,
        "start": start,
        "full": full,
        "dropped": dropped,
        "rewards": rewards,
        "advantages": advantages,
        "one_idle_gradient_error": error,
        "rows": rows,
        "auto_k": auto_k,
    }
    (output / f"rank{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
