"""Whole runs: advantages over all rewards, gradient accumulation, evaluation, two processes."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("trl", minversion="1.16")

import trl_tiny as tiny
from trl import GRPOConfig, GRPOTrainer

import qae

torch.set_num_threads(1)


def constant_reward(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    return [1.0] * len(completions)


def sometimes_none(prompts: list[str], completions: list[str], **_: Any) -> list[float | None]:
    """No reward for some completions; the sum with ``binary_reward`` has several values."""
    return [None if text.startswith("a") else len(text) / 2 for text in completions]


def quantile_advantages(
    rewards: torch.Tensor, size: int, k: float, scale: str, epsilon: float = 1e-4
) -> torch.Tensor:
    """Independent of ``qae``: sorts, in float64; NaN rewards are in no statistic."""
    groups = rewards.double().view(-1, size)
    found = torch.zeros_like(groups)
    finite = rewards[~rewards.isnan()].double()
    for row, group in enumerate(groups):
        given = group[~group.isnan()]
        if given.numel() < 2:
            continue
        rank = math.ceil(round(k * given.numel(), 9))
        std = given.std() if scale == "group" else finite.std()
        divisor = 1.0 if scale == "none" else std + epsilon
        found[row] = (group - given.sort().values[rank - 1]).nan_to_num(0.0) / divisor
    return found.flatten()


def spy_on_rewards(trainer: Any) -> list[torch.Tensor]:
    """What TRL gathers, each time that it does."""
    gathered = []
    inner = trainer._calculate_rewards

    def calculate(*args: Any) -> torch.Tensor:
        gathered.append(inner(*args))
        return gathered[-1]

    trainer._calculate_rewards = calculate
    return gathered


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("k", [0.2, 0.4, 0.8])
def test_advantages_are_the_quantiles(scale: str, k: float, tmp_path: Path) -> None:
    trainer = tiny.make_trainer(
        tmp_path,
        reward_funcs=[tiny.binary_reward, sometimes_none],
        reward_weights=[1.0, 0.25],
        scale_rewards=scale,
        quantile_k=k,
    )
    gathered = spy_on_rewards(trainer)
    inputs = tiny.generate(trainer, count=8)
    (per_func,) = gathered
    assert per_func.isnan().any() and not per_func.isnan().all(dim=1).any()
    rewards = (per_func * torch.tensor([1.0, 0.25])).nansum(dim=1)
    expected = quantile_advantages(rewards, tiny.GROUP, k, scale)
    assert torch.allclose(inputs["advantages"].double(), expected, rtol=1e-6, atol=0)
    assert (expected == 0).any() and ((inputs["advantages"] == 0) == (expected == 0)).all()
    log = trainer._metrics["train"]
    assert math.isclose(log["qae/zero_advantage"][0], (expected == 0).double().mean())
    assert math.isclose(log["qae/positive"][0], (expected > 0).double().mean())
    logged = torch.tensor(list(trainer._logs["advantages"]))
    assert torch.equal(logged, inputs["advantages"][-len(logged) :])
    own = qae.advantages(rewards, tiny.GROUP, k=k, epsilon=1e-4, singleton="zero")
    assert scale != "group" or torch.equal(own.advantage, inputs["advantages"])


def test_completions_without_any_reward(tmp_path: Path) -> None:
    trainer = tiny.make_trainer(tmp_path, reward_funcs=sometimes_none)
    gathered = spy_on_rewards(trainer)
    inputs = tiny.generate(trainer, count=8)
    rewards = gathered[0].squeeze(1)
    expected = quantile_advantages(rewards, tiny.GROUP, 0.4, "group")
    assert rewards.isnan().any()
    assert torch.allclose(inputs["advantages"].double(), expected, rtol=1e-6, atol=0)
    assert (inputs["advantages"][rewards.isnan()] == 0).all()


@pytest.mark.parametrize("aggregation", ["sum_then_normalize", "normalize_then_sum"])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_the_mean_baseline_is_trls(aggregation: str, scale: str, tmp_path: Path) -> None:
    options = {
        "reward_funcs": [tiny.binary_reward, sometimes_none],
        "reward_weights": [1.0, 0.25],
        "multi_objective_aggregation": aggregation,
        "scale_rewards": scale,
    }
    ours = tiny.make_trainer(tmp_path, advantage_baseline="mean", **options)
    theirs = tiny.make_trainer(tmp_path, cls=GRPOTrainer, config=GRPOConfig, **options)
    found = []
    for trainer in (ours, theirs):
        torch.manual_seed(4)
        found.append(tiny.generate(trainer, count=8))
    assert torch.equal(found[0]["completion_ids"], found[1]["completion_ids"])
    assert found[1]["advantages"].abs().max() > 0.5
    assert torch.allclose(found[0]["advantages"], found[1]["advantages"], rtol=1e-5, atol=1e-6)


def test_normalized_rewards_have_a_quantile_too(tmp_path: Path) -> None:
    """The baseline of their sum, over the standard deviation of the batch."""
    trainer = tiny.make_trainer(
        tmp_path,
        reward_funcs=[tiny.binary_reward, sometimes_none],
        multi_objective_aggregation="normalize_then_sum",
    )
    gathered = spy_on_rewards(trainer)
    inputs = tiny.generate(trainer, count=8)
    per_func = gathered[0].view(-1, tiny.GROUP, 2)
    mean = per_func.nanmean(dim=1, keepdim=True)
    count = (~per_func.isnan()).sum(dim=1, keepdim=True)
    std = ((per_func - mean).square().nansum(dim=1, keepdim=True) / (count - 1)).sqrt()
    rewards = ((per_func - mean) / (std + 1e-4)).nansum(dim=2).flatten()
    expected = quantile_advantages(rewards, tiny.GROUP, 0.4, "batch")
    assert torch.allclose(inputs["advantages"].double(), expected, rtol=1e-4, atol=1e-4)


def test_advantages_follow_trls_shuffle(tmp_path: Path) -> None:
    """Each row of each micro-batch has the advantage of its own completion in its own group."""
    trainer = tiny.make_trainer(tmp_path, steps_per_generation=4, gradient_accumulation_steps=4)
    rows = [{"prompt": prompt} for prompt in tiny.prompts(8) for _ in range(tiny.GROUP)]
    trainer._prepare_inputs(rows)
    batches = trainer._buffered_inputs
    assert len(batches) == 4
    prompts, rewards, advantages = [], [], []
    decode = trainer.processing_class.batch_decode
    for batch in batches:
        prompts += decode(batch["prompt_ids"], skip_special_tokens=True)
        texts = decode(batch["completion_ids"], skip_special_tokens=True)
        rewards += tiny.binary_reward([], texts)
        advantages += batch["advantages"].tolist()
    order = sorted(range(len(prompts)), key=prompts.__getitem__)
    assert order != list(range(len(prompts))), "shuffled"
    grouped = torch.tensor([rewards[i] for i in order])
    expected = quantile_advantages(grouped, tiny.GROUP, 0.4, "group")
    found = torch.tensor([advantages[i] for i in order]).double()
    assert expected.abs().max() > 0
    assert torch.allclose(found, expected, rtol=1e-6, atol=0)


def trained(tmp_path: Path, **options: Any) -> tuple[Any, list[dict[str, float]]]:
    """The parameters after a run, and its log."""
    trainer = tiny.make_trainer(tmp_path, max_steps=3, **options)
    before = tiny.parameters(trainer).clone()
    trainer.train()
    after = tiny.parameters(trainer)
    assert (after - before).abs().max() > 1e-2
    return after, trainer.state.log_history


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("loss_type", ["dapo", "grpo"])
def test_a_run_with_the_mean_baseline_is_trls(loss_type: str, steps: int, tmp_path: Path) -> None:
    options = {
        "loss_type": loss_type,
        "gradient_accumulation_steps": steps,
        "steps_per_generation": 4,
        "num_iterations": 2,
    }
    theirs, their_log = trained(tmp_path, cls=GRPOTrainer, config=GRPOConfig, **options)
    ours, our_log = trained(tmp_path, advantage_baseline="mean", drop_inactive=False, **options)
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
    for mine, reference in zip(our_log, their_log, strict=True):
        assert reference.keys() <= mine.keys()


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "bnpo", "vespo"])
@pytest.mark.filterwarnings("ignore:fused_loss")
def test_a_run_with_dropping_ends_where_one_without_does(
    loss_type: str, steps: int, tmp_path: Path
) -> None:
    options = {
        "loss_type": loss_type,
        "gradient_accumulation_steps": steps,
        "steps_per_generation": 4,
        "num_iterations": 2,
    }
    full, _ = trained(tmp_path, drop_inactive=False, **options)
    dropped, log = trained(tmp_path, full_entropy_interval=0, **options)
    assert (dropped - full).abs().max() <= 1e-5 * full.abs().max()
    shares = [entry["qae/dropped_responses"] for entry in log if "reward" in entry]
    assert max(shares) > 0.25


def test_a_run_in_which_nothing_acts(tmp_path: Path) -> None:
    trainer = tiny.make_trainer(tmp_path, max_steps=2, reward_funcs=constant_reward)
    before = tiny.parameters(trainer).clone()
    trainer.train()
    assert torch.equal(tiny.parameters(trainer), before)
    log = trainer.state.log_history
    assert [entry["loss"] for entry in log if "loss" in entry] == [0.0, 0.0]
    assert log[1]["qae/zero_advantage"] == 1.0 and log[1]["qae/dropped_responses"] == 7 / 8


def test_evaluation_is_trls_with_quantile_advantages(tmp_path: Path) -> None:
    trainer = tiny.make_trainer(
        tmp_path, num_generations_eval=2, per_device_eval_batch_size=8, loss_type="grpo"
    )
    trainer.model.eval()
    gathered = spy_on_rewards(trainer)
    rows = [{"prompt": prompt} for prompt in tiny.prompts(4) for _ in range(2)]
    torch.manual_seed(1)
    loss, _, _ = trainer.prediction_step(trainer.model, rows, prediction_loss_only=True)
    expected = quantile_advantages(gathered[0].squeeze(1), 2, 0.4, "group")
    assert expected.abs().max() > 0
    # On the policy's own rollouts all ratios are 1.
    assert math.isclose(loss.item(), -expected.mean().item(), rel_tol=1e-5)
    assert "qae/zero_advantage" in trainer._metrics["eval"] and not trainer._metrics["train"]
    assert "entropy" in trainer._metrics["eval"]


def test_gradient_checkpointing(tmp_path: Path) -> None:
    plain, _ = trained(tmp_path)
    checkpointed, _ = trained(tmp_path, gradient_checkpointing=True)
    assert torch.allclose(plain, checkpointed, rtol=0, atol=1e-6)


def test_two_processes(tmp_path: Path) -> None:
    """Groups straddle the ranks; one rank's micro-batch is inactive where the other's is not."""
    script = Path(__file__).with_name("trl_two_processes.py")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*command, str(script), str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    for found in ranks:
        rewards = torch.tensor(found["rewards"])
        assert rewards.numel() == 12
        expected = quantile_advantages(rewards, 4, 0.4, "group")
        advantages = torch.tensor(ranks[0]["advantages"] + ranks[1]["advantages"])
        assert torch.allclose(advantages.double(), expected, rtol=1e-6, atol=0)
        assert expected.abs().max() > 0
        full, dropped = (torch.tensor(found[key]) for key in ("full", "dropped"))
        assert (full - dropped).abs().max() <= 1e-5 * full.abs().max()
        assert (full - torch.tensor(found["start"])).abs().max() > 1e-2
        assert found["one_idle_gradient_error"] <= 1e-5
        assert found["rows"] == [6, 3], "as many as the other rank"
    assert ranks[0]["dropped"] == ranks[1]["dropped"]
    for ours, theirs in zip(ranks[0]["auto_k"], ranks[1]["auto_k"], strict=True):
        assert ours["state"] == theirs["state"] and ours["state"]["steps"] == 3
        assert ours["sums"] != theirs["sums"], "each rank has tokens of its own"
        auto_k = qae.AutoK()
        for mine, other in zip(ours["sums"], theirs["sums"], strict=True):
            auto_k.step((mine[0] + other[0]) / (mine[1] + other[1]))
        assert auto_k.state_dict() == ours["state"]
