"""Settings of ``qae.trl``: what they accept, what they refuse and by what name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("trl", minversion="1.16")

import trl_tiny as tiny
from test_trl import mixture
from transformers import HfArgumentParser, ProcessorMixin
from trl import GRPOConfig, GRPOTrainer

from qae.trl import QAEConfig, QAEMixin

torch.set_num_threads(1)


def config(tmp_path: Path, **options: Any) -> QAEConfig:
    return QAEConfig(**tiny.arguments(output_dir=str(tmp_path), **options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantile_k": 0.0}, r"quantile_k: expected a number in \(0, 1\), found 0.0"),
        ({"quantile_k": 1.0}, "quantile_k"),
        ({"quantile_k": float("nan")}, "quantile_k"),
        ({"quantile_interpolation": "lower"}, "quantile_interpolation: .*, found 'lower'"),
        ({"quantile_gate": "both"}, "quantile_gate"),
        ({"advantage_baseline": "median"}, "advantage_baseline: expected 'quantile' or 'mean'"),
        ({"advantage_epsilon": -1.0}, "advantage_epsilon"),
        ({"full_entropy_interval": -1}, "full_entropy_interval"),
        ({"quantile_gate": "two_regime", "advantage_baseline": "mean"}, "advantage_baseline"),
        (
            {
                "quantile_gate": "two_regime",
                "multi_objective_aggregation": "normalize_then_sum",
            },
            "multi_objective_aggregation: expected 'sum_then_normalize'",
        ),
        ({"beta": 0.04}, r"beta: expected 0.0 with drop_inactive=True \(the KL term"),
        ({"entropy_coef": 0.01}, "entropy_coef: .*the entropy bonus"),
        ({"use_adaptive_entropy": True}, "use_adaptive_entropy"),
        ({"top_entropy_quantile": 0.2}, "top_entropy_quantile"),
    ],
)
def test_refused_values(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        config(tmp_path, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"beta": 0.04},
        {"entropy_coef": 0.01},
        {"use_adaptive_entropy": True},
        {"top_entropy_quantile": 0.2},
        {"quantile_gate": "positive_mask", "quantile_interpolation": "linear"},
    ],
)
def test_accepted_without_dropping(options: dict[str, Any], tmp_path: Path) -> None:
    config(tmp_path, drop_inactive=False, **options)


def test_the_command_line_sets_every_field(tmp_path: Path) -> None:
    words = "--quantile_k 0.2 --quantile_gate two_regime --drop_inactive false --fused_loss false"
    given = [*words.split(), "--output_dir", str(tmp_path), "--bf16", "false", "--use_cpu", "true"]
    (args,) = HfArgumentParser(QAEConfig).parse_args_into_dataclasses(given)
    assert (args.quantile_k, args.quantile_gate) == (0.2, "two_regime")
    assert (args.drop_inactive, args.fused_loss) == (False, False)


def test_experts_with_a_balancing_loss_are_not_dropped(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="^router_aux_loss_coef: expected 0.0 .*found 0.1"):
        tiny.make_trainer(tmp_path, model=mixture())
    tiny.make_trainer(tmp_path, model=mixture(), router_aux_loss_coef=0.0)


def test_a_loss_with_another_denominator_is_not_dropped(tmp_path: Path) -> None:
    trainer = tiny.make_trainer(tmp_path)
    trainer.loss_type = "of a later release"
    with pytest.raises(ValueError, match="^loss_type: expected one of grpo, .* found 'of a later"):
        trainer._qae_check_drop()


def test_images_are_not_dropped(tmp_path: Path) -> None:
    trainer = tiny.make_trainer(tmp_path)
    trainer.processing_class = object.__new__(ProcessorMixin)
    with pytest.raises(TypeError, match="^processing_class: expected a tokenizer .*ProcessorMixin"):
        trainer._qae_check_drop()


def test_the_configuration_must_be_qaes(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="^args: expected a QAEConfig, found GRPOConfig"):
        tiny.make_trainer(tmp_path, config=GRPOConfig)


def test_a_trl_with_other_methods_is_refused(tmp_path: Path) -> None:
    class Renamed(GRPOTrainer):
        def _compute_loss(self, policy, inputs):
            return super()._compute_loss(policy, inputs)

    class Mine(QAEMixin, Renamed):
        pass

    expected = r"^trl: expected GRPOTrainer._compute_loss\(model, inputs\), found _compute_loss\("
    with pytest.raises(RuntimeError, match=expected):
        tiny.make_trainer(tmp_path, cls=Mine)

    class Removed(GRPOTrainer):
        _calculate_rewards = None

    class Yours(QAEMixin, Removed):
        pass

    with pytest.raises(RuntimeError, match="found none in trl 1"):
        tiny.make_trainer(tmp_path, cls=Yours)


def test_a_trainer_that_does_not_gather_rewards_is_refused(tmp_path: Path) -> None:
    class Local(QAEMixin, GRPOTrainer):
        def _calculate_rewards(self, *args: Any) -> torch.Tensor:
            return GRPOTrainer._calculate_rewards(self, *args)

    trainer = tiny.make_trainer(tmp_path, cls=Local)
    with pytest.raises(RuntimeError, match="^trl: expected the rewards of 8 responses, found none"):
        tiny.generate(trainer)


def test_the_mixin_extends_other_trainers(tmp_path: Path) -> None:
    """A subclass of GRPOTrainer with a loss of its own: its loss, without the inactive rows."""

    class Doubled(GRPOTrainer):
        def _compute_loss(self, model, inputs):
            return 2 * super()._compute_loss(model, inputs)

    class Mine(QAEMixin, Doubled):
        pass

    trainer = tiny.make_trainer(tmp_path, cls=Mine, full_entropy_interval=0, fused_loss=False)
    inputs = tiny.off_policy(trainer, tiny.generate(trainer))
    _, ours = tiny.loss_and_gradient(trainer, trainer._compute_loss, inputs)
    _, once = tiny.loss_and_gradient(
        trainer, lambda m, i: GRPOTrainer._compute_loss(trainer, m, i), inputs
    )
    assert torch.allclose(ours, 2 * once, rtol=1e-4, atol=1e-6)
    fused = tiny.make_trainer(tmp_path, cls=Mine, full_entropy_interval=0)
    with pytest.raises(RuntimeError, match="^fused_loss: expected the gradient of trl"):
        fused._compute_loss(fused.model, inputs)
