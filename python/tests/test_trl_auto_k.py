"""K that follows the entropy: which rollout's entropy moves which K, and what a checkpoint keeps."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("trl", minversion="1.16")

import trl_tiny as tiny
from test_trl_train import quantile_advantages, spy_on_rewards
from transformers import HfArgumentParser, TrainerCallback

from qae import AutoK, KSchedule
from qae.trl import QAEConfig

torch.set_num_threads(1)

# Old log-probs: the rollout of 32 responses is used in four optimizer steps. Without: in one.
SCORED = {"gradient_accumulation_steps": 1, "steps_per_generation": 4, "num_iterations": 2}
UNSCORED = {"gradient_accumulation_steps": 2, "steps_per_generation": 2}
# Far from its target, so that K moves by more than the steps of a group of four.
EAGER = {"auto_k": True, "auto_k_gain": 0.5, "auto_k_max_k": 0.8, "full_entropy_interval": 1}


def entropy_of(trainer: Any, inputs: dict[str, Any]) -> float:
    """Mean over all valid tokens, from the logits."""
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    attention = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    width = inputs["completion_ids"].size(1)
    with torch.no_grad():
        logits = trainer.model(input_ids=ids, attention_mask=attention).logits[:, -width - 1 : -1]
    log_probs = (logits.double() / trainer.args.temperature).log_softmax(dim=-1)
    entropies = -(log_probs.exp() * log_probs).sum(dim=-1)
    return float(entropies[inputs["completion_mask"].bool()].mean())


def watched(tmp_path: Path, **options: Any) -> tuple[Any, list[dict[str, Any]]]:
    """A trainer, and of each rollout its entropy, rewards, advantages and K."""
    trainer = tiny.make_trainer(tmp_path, temperature=0.7, **options)
    gathered, rollouts = spy_on_rewards(trainer), []
    inner = trainer._generate_and_score_completions

    def generate(inputs: Any) -> dict[str, Any]:
        output = inner(inputs)
        if trainer.model.training:
            found = {"entropy": entropy_of(trainer, output), "rewards": gathered[-1].squeeze(1)}
            found["advantages"] = output["advantages"].double()
            found["k"] = trainer._metrics["train"]["qae/k"][-1]
            rollouts.append(found)
        return output

    trainer._generate_and_score_completions = generate
    return trainer, rollouts


def expected_ks(rollouts: list[dict[str, Any]], moved_by: list[int | None]) -> list[float]:
    """K of each rollout, where ``moved_by`` says whose entropy moves it, if any."""
    target = 0.8 * rollouts[0]["entropy"]
    k, found = 0.4, []
    for index in moved_by:
        if index is not None:
            k += 0.5 * math.log(target / rollouts[index]["entropy"])
            k = min(max(k, 0.1), 0.8)
        found.append(k)
    return found


def assert_used(rollouts: list[dict[str, Any]], ks: list[float]) -> None:
    for rollout, k in zip(rollouts, ks, strict=True):
        assert math.isclose(rollout["k"], k, rel_tol=1e-5)
        expected = quantile_advantages(rollout["rewards"], tiny.GROUP, rollout["k"], "group")
        assert torch.allclose(rollout["advantages"], expected, rtol=1e-6, atol=0)
    assert len({math.ceil(4 * k) for k in ks}) > 1, "not the same method throughout"


@pytest.mark.parametrize("interval", [0, 1])
def test_with_old_log_probs_a_rollout_moves_its_own_k(interval: int, tmp_path: Path) -> None:
    """Also where its inactive responses never pass through the loss."""
    options = EAGER | SCORED | {"full_entropy_interval": interval}
    trainer, rollouts = watched(tmp_path, max_steps=24, **options)
    trainer.train()
    assert len(rollouts) == 3
    assert_used(rollouts, expected_ks(rollouts, [0, 1, 2]))
    log = [entry for entry in trainer.state.log_history if "qae/k" in entry]
    assert [entry["qae/k"] for entry in log] == [rollout["k"] for rollout in rollouts]
    for entry, rollout in zip(log, rollouts, strict=True):
        assert math.isclose(entry["qae/rollout_entropy"], rollout["entropy"], rel_tol=1e-5)
        assert math.isclose(entry["qae/target_entropy"], 0.8 * rollouts[0]["entropy"], rel_tol=1e-5)


@pytest.mark.parametrize(
    ("options", "moved_by"),
    [
        ({}, [None, 0, 1, 2, 3]),
        ({"drop_inactive": False, "full_entropy_interval": 0}, [None, 0, 1, 2, 3]),
        ({"full_entropy_interval": 2}, [None, 0, None, 2, None]),
        # Both rollouts of an optimizer step, whose passes are all with the same weights.
        ({"gradient_accumulation_steps": 4, "max_steps": 3}, [None, 0, 1, 2, 3, 4]),
        ({"num_iterations": 2, "gradient_accumulation_steps": 4}, [None, 0, 1, 2, 3]),
    ],
)
def test_without_them_the_last_whole_rollout_does(
    options: dict[str, Any], moved_by: list[int | None], tmp_path: Path
) -> None:
    trainer, rollouts = watched(tmp_path, **(EAGER | UNSCORED | {"max_steps": 5} | options))
    trainer.train()
    assert_used(rollouts, expected_ks(rollouts, moved_by))


def test_evaluations_use_k_and_leave_it_alone(tmp_path: Path) -> None:
    trainer, _ = watched(tmp_path, per_device_eval_batch_size=8, **EAGER, **SCORED)
    auto_k = trainer._qae_auto_k.auto_k
    moved = {"k": 0.8, "steps": 1, "initial_entropy": 0.5}
    auto_k.load_state_dict(auto_k.state_dict() | moved)
    trainer.model.eval()
    gathered = spy_on_rewards(trainer)
    found = tiny.generate(trainer, count=2)["advantages"].double()
    expected = quantile_advantages(gathered[0].squeeze(1), tiny.GROUP, 0.8, "group")
    assert torch.allclose(found, expected, rtol=1e-6, atol=0) and (found < 0).any()
    trainer.prediction_step(trainer.model, [{"prompt": "ab"}] * 8, prediction_loss_only=True)
    assert auto_k.steps == 1 and auto_k.k == 0.8


def ks_of(log: list[dict[str, float]]) -> list[float]:
    return [entry["qae/k"] for entry in log if "qae/k" in entry]


@pytest.mark.parametrize("options", [UNSCORED, SCORED | {"steps_per_generation": 2}])
def test_a_resumed_run_has_the_same_ks(options: dict[str, Any], tmp_path: Path) -> None:
    """The policy does not move, so that both runs measure the same entropies; K does."""
    rollout = 1 if options is UNSCORED else 4
    options = EAGER | options | {"save_strategy": "steps", "save_steps": 2 * rollout}
    options |= {"learning_rate": 0.0, "auto_k_gain": 0.1, "auto_k_target_entropy": 2.0}
    straight = tiny.make_trainer(tmp_path / "a", max_steps=4 * rollout, **options)
    straight.train()
    first = tiny.make_trainer(tmp_path / "b", max_steps=2 * rollout, **options)
    first.train()
    checkpoint = tmp_path / "b" / f"checkpoint-{2 * rollout}"
    stored = json.loads((checkpoint / "qae_auto_k.json").read_text())
    assert stored == first._qae_auto_k.auto_k.state_dict() and stored["steps"] == 2
    assert [path.name for path in checkpoint.glob("qae*")] == ["qae_auto_k.json"]
    second = tiny.make_trainer(tmp_path / "b", max_steps=4 * rollout, **options)
    second.train(resume_from_checkpoint=str(checkpoint))
    expected, found = ks_of(straight.state.log_history), ks_of(second.state.log_history)
    assert len(expected) == 4 and len(set(expected)) == 4
    assert found == expected
    assert second._qae_auto_k.auto_k == straight._qae_auto_k.auto_k


def test_a_checkpoint_of_other_parameters_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = {**UNSCORED, "auto_k": True}
    first = tiny.make_trainer(tmp_path, save_strategy="steps", save_steps=1, **options)
    first.train()
    file = tmp_path / "checkpoint-1" / "qae_auto_k.json"
    for change, found in (
        ({"auto_k_gain": 0.2}, "gain=0.1, as in .*, found 0.2"),
        ({"quantile_k": 0.3}, "initial_k=0.4, as in .*, found 0.3"),
        ({"auto_k_target_share": 0.5}, "target={'initial_share': 0.8}, as in .*, found {"),
    ):
        other = tiny.make_trainer(tmp_path, max_steps=2, **options, **change)
        with pytest.raises(ValueError, match=f"^auto_k: expected {found}"):
            other.train(resume_from_checkpoint=str(file.parent))
    second = tiny.make_trainer(tmp_path, max_steps=2, **options)
    for text in ('{"k": 0.4', '{"k": 0.4}', "[]"):
        file.write_text(text)
        with pytest.raises(ValueError, match=r"qae_auto_k.json: ") as caught:
            second.train(resume_from_checkpoint=str(file.parent))
        assert "\n" not in str(caught.value)
    file.unlink()
    second.train(resume_from_checkpoint=str(file.parent))
    assert "qae_auto_k.json, so that K starts from 0.4" in caplog.text


def test_what_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="qae")
    trainer, rollouts = watched(tmp_path, **EAGER, **UNSCORED)
    trainer.train()
    same = AutoK(gain=0.5, max_k=0.8)
    line = str(same.step(rollouts[0]["entropy"]))
    assert [
        record.getMessage() for record in caplog.records if record.name == "qae.trl.auto_k"
    ] == [line]


@pytest.mark.parametrize("entropy", [math.nan, 0.0])
def test_an_entropy_that_is_none_moves_nothing(
    entropy: float, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer, _ = watched(tmp_path, **EAGER, **UNSCORED)
    control = trainer._qae_auto_k
    before = control.auto_k.state_dict()
    control.end({})
    mask = torch.tensor([[True, False]])
    for _ in range(2):
        control.add(torch.tensor([[entropy, 1.0]]), mask, is_whole=True)
    assert control.auto_k.state_dict() == before
    assert "auto_k: K stays at 0.4: " in caplog.text
    control.end({})
    for _ in range(2):
        control.add(torch.tensor([[0.5, math.nan]]), mask, is_whole=True)
    assert control.auto_k.steps == 1


def test_a_trl_without_old_log_probs_is_refused(tmp_path: Path) -> None:
    trainer = tiny.make_trainer(tmp_path, **EAGER, **SCORED)
    trainer._qae_auto_k.begin()
    with pytest.raises(RuntimeError, match="^trl: expected old_per_token_logps .* found none"):
        trainer._qae_auto_k.end({})
    with pytest.raises(RuntimeError, match="found others; set auto_k=False"):
        trainer._qae_auto_k.end({"old_per_token_logps": torch.zeros(1)})


def test_the_reference_is_not_the_policy(tmp_path: Path) -> None:
    control = tiny.make_trainer(tmp_path, **EAGER, **SCORED)._qae_auto_k
    old, ref = torch.zeros(2, 3), torch.zeros(2, 3)
    control.begin()
    control.passed(ref, torch.full((2, 3), 9.0))
    control.passed(old, torch.tensor([[0.2, 0.4, 9.0], [0.3, 9.0, 9.0]]))
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    tools = torch.tensor([[1, 1, 0], [1, 1, 1]])
    control.end({"old_per_token_logps": old, "completion_mask": mask, "tool_mask": tools})
    assert math.isclose(control.auto_k.target_entropy, 0.8 * 0.3, rel_tol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"auto_k_gain": 0.2}, "auto_k_gain: expected 0.1 with auto_k=False, found 0.2"),
        ({"auto_k_target_entropy": 0.2}, "auto_k_target_entropy: expected None with auto_k=False"),
        (
            {"auto_k": True, "advantage_baseline": "mean"},
            "advantage_baseline: expected 'quantile', whose k auto_k=True moves, found 'mean'",
        ),
        (
            {"auto_k": True, "full_entropy_interval": 0},
            "full_entropy_interval: expected at least 1 with auto_k=True and drop_inactive=True",
        ),
        ({"auto_k": True, "auto_k_gain": 0.0}, "auto_k_gain: expected a finite number above 0"),
        ({"auto_k": True, "auto_k_min_k": 0.0}, r"auto_k_min_k: expected a number in \(0, 1\)"),
        ({"auto_k": True, "quantile_k": 0.7}, r"quantile_k: expected a number in \[0.1, 0.6\]"),
        (
            {"auto_k": True, "auto_k_target_share": 0.8, "auto_k_target_entropy": 0.3},
            "auto_k_target_entropy: expected None with target_share=0.8, found 0.3",
        ),
    ],
)
def test_refused_settings(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        QAEConfig(**tiny.arguments(output_dir=str(tmp_path), **options))
    assert "\n" not in str(caught.value)


def test_the_command_line(tmp_path: Path) -> None:
    words = "--auto_k --auto_k_gain 0.2 --auto_k_target_entropy 0.3 --bf16 false --use_cpu true"
    given = [*words.split(), "--output_dir", str(tmp_path)]
    (args,) = HfArgumentParser(QAEConfig).parse_args_into_dataclasses(given)
    assert (args.auto_k, args.auto_k_gain, args.auto_k_target_entropy) == (True, 0.2, 0.3)


def test_a_schedule_is_a_callback(tmp_path: Path) -> None:
    """As docs/trl.md has it."""
    schedule = KSchedule.two_phase(0.2, 0.8, 2)

    class Scheduled(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            args.quantile_k = schedule.k(state.global_step)

    trainer, rollouts = watched(tmp_path, max_steps=4, **UNSCORED)
    trainer.add_callback(Scheduled())
    trainer.train()
    assert_used(rollouts, [0.2, 0.2, 0.8, 0.8])
