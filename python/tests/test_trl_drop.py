"""Dropping inactive responses from TRL's micro-batches: the same gradient, fewer rows."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("trl", minversion="1.16")

import trl_tiny as tiny
from trl_tiny import off_policy

from qae.trl.rows import without_inactive

torch.set_num_threads(1)

CASES = [
    {"loss_type": "grpo"},
    {"loss_type": "bnpo"},
    {"loss_type": "dr_grpo"},
    {"loss_type": "dapo"},
    {"loss_type": "luspo"},
    {"loss_type": "cispo", "epsilon_high": 1.05},
    {"loss_type": "cispo"},
    {"loss_type": "sapo"},
    {"loss_type": "vespo"},
    {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.02},
    {"loss_type": "grpo", "off_policy_mask_threshold": 0.0},
]


def name(options: dict[str, Any]) -> str:
    return "-".join(map(str, options.values()))


def scored(trainer: Any, active: tuple[int, ...] = (0, 3, 5)) -> dict[str, Any]:
    """A micro-batch of 8 whose other rows have an advantage of 0, the longest among them."""
    inputs = off_policy(trainer, tiny.generate(trainer))
    keep = torch.zeros(8)
    keep[list(active)] = 1.0
    inputs["advantages"] = inputs["advantages"].where(keep > 0, 0.0)
    for row in active:
        inputs["completion_mask"][row, 3:] = 0
    inputs["completion_mask"][7] = 1
    return inputs


def run(trainer: Any, inputs: dict[str, Any], drop: bool) -> tuple[Any, dict[str, Any], list[Any]]:
    """Loss and gradient; what was logged; the shapes that went through the model."""
    shapes = []
    hook = trainer.model.get_input_embeddings().register_forward_hook(
        lambda module, args, output: shapes.append(tuple(args[0].shape))
    )
    trainer.args.drop_inactive = drop
    trainer._metrics["train"].clear()
    result = tiny.loss_and_gradient(trainer, trainer._compute_loss, inputs)
    hook.remove()
    return result, dict(trainer._metrics["train"]), shapes


def assert_same(dropped: Any, full: Any) -> None:
    """To the rounding of float32 sums, taken in another order."""
    largest = full[1].abs().max()
    assert largest > 1e-3
    assert (dropped[1] - full[1]).abs().max() <= 1e-5 * largest
    assert torch.allclose(dropped[0], full[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "own"])
@pytest.mark.parametrize("options", CASES, ids=name)
@pytest.mark.filterwarnings("ignore:fused_loss")
def test_the_gradient_is_the_same(options: dict[str, Any], fused: bool, tmp_path: Path) -> None:
    trainer = tiny.make_trainer(
        tmp_path, full_entropy_interval=0, fused_loss=fused, temperature=0.8, **options
    )
    inputs = scored(trainer)
    full, _, full_shapes = run(trainer, inputs, drop=False)
    dropped, _, shapes = run(trainer, inputs, drop=True)
    assert_same(dropped, full)
    prompt = inputs["prompt_ids"].size(1)
    assert full_shapes == [(8, prompt + 6)] and shapes == [(3, prompt + 3)]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_models_with_relative_and_absolute_positions(kind: str, tmp_path: Path) -> None:
    trainer = tiny.make_trainer(tmp_path, full_entropy_interval=0, model=tiny.make_model(kind))
    inputs = scored(trainer)
    assert inputs["prompt_mask"].min() == 0, "some prompts are padded"
    full, _, _ = run(trainer, inputs, drop=False)
    dropped, _, _ = run(trainer, inputs, drop=True)
    assert_same(dropped, full)


def test_positions_that_depend_on_the_width_keep_it(tmp_path: Path) -> None:
    model = tiny.make_model()
    model.config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    trainer = tiny.make_trainer(tmp_path, full_entropy_interval=0, model=model)
    inputs = scored(trainer)
    shapes = run(trainer, inputs, drop=True)[2]
    assert shapes == [(3, inputs["prompt_ids"].size(1) + 6)]


def test_widths_stay_multiples(tmp_path: Path) -> None:
    trainer = tiny.make_trainer(tmp_path, full_entropy_interval=0, pad_to_multiple_of=4)
    inputs = scored(trainer)
    assert inputs["completion_ids"].size(1) == 8
    full, _, _ = run(trainer, inputs, drop=False)
    dropped, _, shapes = run(trainer, inputs, drop=True)
    assert_same(dropped, full)
    assert shapes == [(3, inputs["prompt_ids"].size(1) + 4)]


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "own"])
@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dapo"])
def test_a_micro_batch_that_is_all_inactive(loss_type: str, fused: bool, tmp_path: Path) -> None:
    trainer = tiny.make_trainer(
        tmp_path, full_entropy_interval=0, fused_loss=fused, loss_type=loss_type
    )
    inputs = scored(trainer, active=())
    inputs["completion_mask"][2, 1:] = 0
    (loss, gradient), log, shapes = run(trainer, inputs, drop=True)
    assert loss == 0 and torch.equal(gradient, torch.zeros_like(gradient))
    assert shapes == [(1, inputs["prompt_ids"].size(1) + 1)], "the shortest row stays"
    assert log["qae/dropped_responses"] == [7 / 8]


def test_rows_without_tokens_are_inactive(tmp_path: Path) -> None:
    trainer = tiny.make_trainer(tmp_path, full_entropy_interval=0, loss_type="grpo")
    inputs = scored(trainer)
    inputs["tool_mask"] = torch.ones_like(inputs["completion_mask"])
    inputs["tool_mask"][3] = 0
    inputs["completion_mask"][5] = 0
    full, _, _ = run(trainer, inputs, drop=False)
    dropped, _, shapes = run(trainer, inputs, drop=True)
    assert_same(dropped, full)
    assert shapes[0][0] == 1


def test_metrics_say_what_they_cover(tmp_path: Path) -> None:
    trainer = tiny.make_trainer(tmp_path, full_entropy_interval=0, epsilon=0.1)
    inputs = scored(trainer)
    _, full, _ = run(trainer, inputs, drop=False)
    _, dropped, _ = run(trainer, inputs, drop=True)
    assert full["clip_ratio/region_mean"][0] > 0
    for key in (
        "clip_ratio/low_mean",
        "clip_ratio/high_mean",
        "clip_ratio/region_mean",
        "clip_ratio/low_min",
        "clip_ratio/high_max",
        "entropy/positive",
        "entropy/negative",
    ):
        assert math.isclose(full[key][0], dropped[key][0], rel_tol=1e-5, abs_tol=1e-7), key
    assert "entropy" in full and "entropy/zero" in full
    assert "entropy" not in dropped and "entropy/zero" not in dropped
    mask = inputs["completion_mask"]
    kept = inputs["advantages"] != 0
    tokens = mask.sum(dim=1)
    by_sign = [inputs["advantages"] > 0, inputs["advantages"] < 0]
    shares = [tokens[rows].sum().item() / tokens[kept].sum().item() for rows in by_sign]
    expected = shares[0] * full["entropy/positive"][0] + shares[1] * full["entropy/negative"][0]
    assert math.isclose(dropped["entropy/kept"][0], expected, rel_tol=1e-5)
    assert dropped["qae/dropped_responses"] == [5 / 8]
    gone = 1 - tokens[kept].sum().item() / tokens.sum().item()
    assert math.isclose(dropped["qae/dropped_tokens"][0], gone, rel_tol=1e-9)


def test_a_dropped_response_is_the_least_clipped(tmp_path: Path) -> None:
    trainer = tiny.make_trainer(tmp_path, full_entropy_interval=0, loss_type="dapo")
    inputs = scored(trainer)
    inputs["advantages"] = -inputs["advantages"].abs()
    inputs["old_per_token_logps"] += 1.0
    _, full, _ = run(trainer, inputs, drop=False)
    _, dropped, _ = run(trainer, inputs, drop=True)
    assert full["clip_ratio/low_mean"][0] > 0.1
    assert full["clip_ratio/low_min"] == dropped["clip_ratio/low_min"] == [0.0]
    inputs["advantages"] -= 1.0
    assert run(trainer, inputs, drop=True)[1]["clip_ratio/low_min"][0] > 0


def test_clip_metrics_of_sequence_ratios(tmp_path: Path) -> None:
    options = {"importance_sampling_level": "sequence", "epsilon": 0.02, "loss_type": "grpo"}
    trainer = tiny.make_trainer(tmp_path, full_entropy_interval=0, **options)
    inputs = scored(trainer)
    _, full, _ = run(trainer, inputs, drop=False)
    _, dropped, _ = run(trainer, inputs, drop=True)
    clipped = [key for key in full if key.startswith("clip_ratio")]
    assert full["clip_ratio/region_mean"][0] > 0
    assert all(math.isclose(full[key][0], dropped[key][0], rel_tol=1e-5) for key in clipped)


def test_nothing_is_dropped_where_entropy_is_measured(tmp_path: Path) -> None:
    trainer = tiny.make_trainer(tmp_path, full_entropy_interval=3)
    inputs = scored(trainer)
    rows = []
    for step in range(5):
        trainer.state.global_step = step
        rows.append(run(trainer, inputs, drop=True)[2][0][0])
    assert rows == [8, 3, 3, 8, 3]


def test_columns_of_unknown_tensors_stop_trimming() -> None:
    inputs = {
        "prompt_ids": torch.ones(4, 2, dtype=torch.long),
        "prompt_mask": torch.ones(4, 2, dtype=torch.long),
        "completion_ids": torch.ones(4, 5, dtype=torch.long),
        "completion_mask": torch.tensor([[1, 1, 0, 0, 0]] * 3 + [[1] * 5]),
        "advantages": torch.tensor([1.0, 0.0, -1.0, 0.0]),
        "mm_token_type_ids": torch.zeros(4, 7, dtype=torch.long),
        "num_items_in_batch": torch.tensor(11),
    }
    batch = without_inactive(inputs, trim=True)
    assert (batch.num_rows, batch.kept_rows) == (4, 2)
    assert (int(batch.num_tokens), int(batch.kept_tokens)) == (11, 4)
    assert batch.inputs["completion_ids"].shape == (2, 2)
    assert batch.inputs["mm_token_type_ids"].shape == (2, 4)
    assert batch.inputs["prompt_ids"].shape == (2, 2)
    assert batch.inputs["num_items_in_batch"] == 11
    assert inputs["completion_ids"].shape == (4, 5), "TRL's batch is used again"
    assert without_inactive(inputs, trim=False).inputs["completion_ids"].shape == (2, 5)
    unknown = without_inactive(dict(inputs, features=torch.zeros(4, 5)), trim=True)
    assert unknown.inputs["completion_ids"].shape == (2, 5)
    with pytest.raises(ValueError, match="pixel_values"):
        without_inactive(dict(inputs, pixel_values=torch.zeros(9, 3)), trim=True)
