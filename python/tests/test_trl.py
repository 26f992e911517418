"""The fused loss and its metrics against TRL's own, on real models."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("trl", minversion="1.16")

import trl_tiny as tiny
from transformers import MixtralConfig, MixtralForCausalLM
from trl import GRPOTrainer
from trl_tiny import off_policy

import qae.trl.trainer as trainer_module
from qae.config import Objective
from qae.trl.objective import Plan

torch.set_num_threads(1)

# Not TRL's default: its KL term is weighted by the importance ratio.
PLAIN_KL = {"use_bias_correction_kl": False}
MAPPED = [
    {"loss_type": "grpo"},
    {"loss_type": "bnpo"},
    {"loss_type": "dr_grpo"},
    {"loss_type": "dapo"},
    {"loss_type": "luspo"},
    {"loss_type": "cispo", "epsilon_high": 1.05},
    {"loss_type": "sapo"},
    {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.02},
    {"loss_type": "dapo", "importance_sampling_level": "sequence", "epsilon": 0.02},
    {"loss_type": "luspo", "importance_sampling_level": "sequence", "epsilon": 0.02},
    {"loss_type": "dapo", "delta": 1.3, "epsilon_high": 0.1},
    {"loss_type": "grpo", "beta": 0.3, **PLAIN_KL},
    {"loss_type": "cispo", "epsilon_high": 1.05, "beta": 0.3, **PLAIN_KL},
    {
        "loss_type": "grpo",
        "importance_sampling_level": "sequence",
        "beta": 0.3,
        **PLAIN_KL,
        "epsilon": 0.02,
    },
    {"loss_type": "grpo", "top_entropy_quantile": 0.4},
    {"loss_type": "bnpo", "top_entropy_quantile": 0.4, "beta": 0.3, **PLAIN_KL},
    {"loss_type": "dapo", "off_policy_mask_threshold": 0.0},
    {
        "loss_type": "grpo",
        "importance_sampling_level": "sequence",
        "epsilon": 0.02,
        "off_policy_mask_threshold": 0.0,
    },
    {"loss_type": "dapo", "steps_per_generation": 4},
]
UNMAPPED = [
    {"loss_type": "vespo"},
    {"loss_type": "cispo"},
    {"loss_type": "cispo", "epsilon_high": 5.0, "importance_sampling_level": "sequence"},
    {"loss_type": "sapo", "importance_sampling_level": "sequence"},
    {"loss_type": "dapo", "delta": 1.1},
    {"loss_type": "grpo", "importance_sampling_level": "sequence", "delta": 2.0},
    {"loss_type": "grpo", "importance_sampling_level": "sequence", "top_entropy_quantile": 0.5},
    {"loss_type": "dapo", "beta": 0.1, "use_bias_correction_kl": True},
    {"loss_type": "dapo", "entropy_coef": 0.01},
    {"loss_type": "dapo", "use_adaptive_entropy": True},
]


def name(options: dict[str, Any]) -> str:
    return "-".join(f"{key}={value}" for key, value in options.items()).removeprefix("loss_type=")


def both(trainer: Any, inputs: dict[str, Any]) -> tuple[Any, Any, dict, dict]:
    """Loss and gradient, and what is logged: ours, TRL's."""
    logs = []
    results = []
    for method in (trainer._compute_loss, lambda m, i: GRPOTrainer._compute_loss(trainer, m, i)):
        trainer._metrics["train"].clear()
        results.append(tiny.loss_and_gradient(trainer, method, inputs))
        logs.append(dict(trainer._metrics["train"]))
    return *results, *logs


def assert_same(ours: Any, theirs: Any) -> None:
    """To the rounding of float32 sums over some hundred terms: 1e-5 of the largest element."""
    assert theirs[1].abs().max() > 1e-3
    assert (ours[1] - theirs[1]).abs().max() <= 1e-5 * theirs[1].abs().max()
    assert torch.allclose(ours[0], theirs[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", MAPPED, ids=name)
def test_the_fused_loss_is_trls(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = tiny.make_model()
    monkeypatch.setattr(
        "trl.trainer.grpo_trainer.create_model_from_path", lambda *_, **__: reference
    )
    trainer = tiny.make_trainer(tmp_path, drop_inactive=False, **options)
    inputs = off_policy(trainer, tiny.generate(trainer))
    used = []
    fused = trainer_module.policy_loss
    monkeypatch.setattr(
        trainer_module, "policy_loss", lambda *a, **k: used.append(k) or fused(*a, **k)
    )
    ours, theirs, our_log, their_log = both(trainer, inputs)
    assert_same(ours, theirs)
    assert len(used) == 2 and trainer._qae_comparisons < 32, "compared, then used"
    assert their_log.keys() <= our_log.keys()
    assert all(our_log[key] == their_log[key] for key in their_log)
    clipped = [v for k, v in their_log.items() if k.endswith(("region_mean", "clip_ratio"))]
    assert not clipped or clipped[0][0] > 0, "the case clips"

    used.clear()
    assert_same(both(trainer, inputs)[0], theirs)
    assert len(used) == 1


@pytest.mark.parametrize("options", UNMAPPED, ids=name)
def test_what_has_no_equal_is_left_to_trl(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = tiny.make_model()
    monkeypatch.setattr(
        "trl.trainer.grpo_trainer.create_model_from_path", lambda *_, **__: reference
    )
    last = [key for key in options if key != "loss_type"] or ["loss_type"]
    with pytest.warns(UserWarning, match=f"fused_loss: TRL's own loss .*({'|'.join(last)})"):
        trainer = tiny.make_trainer(tmp_path, drop_inactive=False, **options)
    inputs = off_policy(trainer, tiny.generate(trainer))
    monkeypatch.delattr(trainer_module, "policy_loss")
    ours, theirs, _, _ = both(trainer, inputs)
    assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])


def test_balancing_loss_of_experts_is_left_to_trl(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="router_aux_loss_coef"):
        trainer = tiny.make_trainer(tmp_path, drop_inactive=False, model=mixture())
    ours, theirs, our_log, _ = both(trainer, off_policy(trainer, tiny.generate(trainer)))
    assert torch.equal(ours[1], theirs[1]) and our_log["aux_loss"][0] > 0


def mixture() -> MixtralForCausalLM:
    torch.manual_seed(2)
    config = MixtralConfig(
        vocab_size=14,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=2,
        max_position_embeddings=32,
        bos_token_id=None,
        eos_token_id=1,
        router_aux_loss_coef=0.1,
    )
    return MixtralForCausalLM(config)


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("mode", ["token_truncate", "sequence_truncate"])
def test_rollout_correction(level: str, mode: str, tmp_path: Path) -> None:
    """vLLM itself is not needed: its ratio is a tensor of the batch."""
    options = {
        "loss_type": "grpo",
        "importance_sampling_level": level,
        "vllm_importance_sampling_mode": mode,
    }
    trainer = tiny.make_trainer(tmp_path, drop_inactive=False, **options)
    inputs = off_policy(trainer, tiny.generate(trainer))
    shape = inputs["completion_ids"].shape if mode.startswith("token") else (8, 1)
    inputs["importance_sampling_ratio"] = torch.rand(shape) + 0.5
    trainer.use_vllm = True
    if level == "sequence" and mode.startswith("token"):
        with pytest.warns(UserWarning, match="vllm_importance_sampling_mode='token_truncate'"):
            trainer._qae_plan = trainer._qae_make_plan()
    ours, theirs, _, _ = both(trainer, inputs)
    assert_same(ours, theirs)
    without = dict(inputs, importance_sampling_ratio=torch.ones(shape))
    different = both(trainer, without)[0][1]
    assert (different - ours[1]).abs().max() > 1e-3, "the ratio matters"


def test_masks_of_tools_and_of_truncated_completions(tmp_path: Path) -> None:
    trainer = tiny.make_trainer(tmp_path, drop_inactive=False, loss_type="grpo")
    inputs = off_policy(trainer, tiny.generate(trainer))
    inputs["tool_mask"] = torch.ones_like(inputs["completion_mask"])
    inputs["tool_mask"][:, 2:4] = 0
    inputs["completion_mask"][3] = 0
    ours, theirs, _, _ = both(trainer, inputs)
    assert_same(ours, theirs)


def test_another_loss_than_trls_is_refused(tmp_path: Path) -> None:
    """As if a release of TRL had changed its clip range, or its denominator."""
    trainer = tiny.make_trainer(tmp_path, drop_inactive=False, loss_type="dapo")
    inputs = off_policy(trainer, tiny.generate(trainer))
    plan = trainer._qae_plan
    trainer._qae_plan = Plan(Objective.clip(low=0.1, high=0.2), plan.kl, plan.aggregation)
    with pytest.raises(RuntimeError, match=r"^fused_loss: expected the gradient of trl .* found"):
        trainer._compute_loss(trainer.model, inputs)
    trainer._qae_plan = Plan(plan.objective, plan.kl, "seq-mean-token-mean")
    with pytest.raises(RuntimeError, match="set fused_loss=False$"):
        trainer._compute_loss(trainer.model, inputs)
    trainer._qae_plan = plan
    trainer._compute_loss(trainer.model, inputs)


def test_a_micro_batch_on_policy_does_not_prove_the_clip(tmp_path: Path) -> None:
    trainer = tiny.make_trainer(tmp_path, drop_inactive=False, loss_type="dapo")
    plan = trainer._qae_plan
    trainer._qae_plan = Plan(Objective.clip(low=0.1, high=0.2), plan.kl, plan.aggregation)
    inputs = tiny.generate(trainer)
    on_policy = {key: value for key, value in inputs.items() if key != "old_per_token_logps"}
    trainer._compute_loss(trainer.model, on_policy)
    assert trainer._qae_comparisons == 31
    with pytest.raises(RuntimeError, match="^fused_loss: expected the gradient of trl"):
        trainer._compute_loss(trainer.model, off_policy(trainer, inputs))


def test_a_micro_batch_without_gradient_proves_nothing(tmp_path: Path) -> None:
    trainer = tiny.make_trainer(tmp_path, drop_inactive=False)
    inputs = off_policy(trainer, tiny.generate(trainer))
    zero = dict(inputs, advantages=torch.zeros(8))
    trainer._compute_loss(trainer.model, zero).backward()
    assert trainer._qae_comparisons == 32
    trainer._compute_loss(trainer.model, inputs)
    assert trainer._qae_comparisons == 0


def test_a_bfloat16_model(tmp_path: Path) -> None:
    """TRL rounds its expressions to bfloat16 where all their operands are; qae rounds once."""
    model = tiny.make_model().to(torch.bfloat16)
    trainer = tiny.make_trainer(tmp_path, drop_inactive=False, model=model)
    inputs = off_policy(trainer, tiny.generate(trainer))
    ours, theirs, _, _ = both(trainer, inputs)
    largest = theirs[1].abs().max()
    assert largest > 1e-2
    assert (ours[1] - theirs[1]).abs().max() <= 16 * 2.0**-8 * largest


def test_entropy_by_sign(tmp_path: Path) -> None:
    trainer = tiny.make_trainer(tmp_path, drop_inactive=False)
    inputs = off_policy(trainer, tiny.generate(trainer))
    trainer._compute_loss(trainer.model, inputs)
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    attention = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    with torch.no_grad():
        logits = trainer.model(input_ids=ids, attention_mask=attention).logits.double()
    log_probs = logits.log_softmax(dim=-1)
    width = inputs["completion_ids"].size(1)
    entropy = -(log_probs.exp() * log_probs).sum(dim=-1)[:, -width - 1 : -1]
    mask = inputs["completion_mask"].bool()
    sign = inputs["advantages"].sign().unsqueeze(1).expand_as(mask)
    for which, label in ((1, "positive"), (-1, "negative"), (0, "zero")):
        expected = entropy[mask & (sign == which)].mean().item()
        (found,) = trainer._metrics["train"][f"entropy/{label}"]
        assert math.isclose(found, expected, rel_tol=1e-5)
