"""``GRPOTrainer`` with quantile advantages, dropping, and the fused loss.

Methods of TRL are extended, none is replaced: the rewards are read on their way through
``_calculate_rewards``, the advantages exchanged in what ``_generate_and_score_completions``
returns, and ``_compute_loss`` runs on the rows that are kept. TRL's own ``_compute_loss`` always runs, so
that its metrics stay its own; with the fused loss it runs on log-probs that are cut off from the
model, which get their gradient from ``qae.policy_loss`` instead.
"""

from __future__ import annotations

import inspect
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import trl
from transformers import ProcessorMixin
from trl import GRPOTrainer

from qae.config import Objective
from qae.loss import policy_loss
from qae.trl.advantages import Scored, mode_of, score
from qae.trl.auto_k import RolloutK, checkpoint_folder
from qae.trl.compare import expect_same
from qae.trl.config import QAEConfig
from qae.trl.metrics import log_generation, log_micro_batch
from qae.trl.objective import Plan, Unmapped, importance_weight, normalizer, plan_loss
from qae.trl.rows import MicroBatch, loss_mask, whole, without_inactive

# Parameters that the methods of GRPOTrainer must have for the extensions here to mean what they do.
_HOOKS = {
    "_calculate_rewards": ("inputs", "prompts", "completions", "completion_ids_list"),
    "_generate_and_score_completions": ("inputs",),
    "_compute_loss": ("model", "inputs"),
    "_get_per_token_logps_and_entropies": (
        "model",
        "input_ids",
        "attention_mask",
        "logits_to_keep",
    ),
    "_save_checkpoint": ("model", "trial"),
    "_load_optimizer_and_scheduler": ("checkpoint",),
}
# Micro-batches on which TRL's loss is compared, while none shows the whole objective.
_MOST_COMPARISONS = 32
_SCALED_BY_ROWS = ("grpo", "sapo", "luspo", "dr_grpo")
_SCALED_BY_BATCH = ("dapo", "cispo", "vespo")


@dataclass
class _Capture:
    """The log-probs and entropies of one ``_compute_loss``, on their way from the model to TRL."""

    cut: bool
    grad: bool
    log_probs: torch.Tensor | None = None
    entropies: torch.Tensor | None = None
    handed: torch.Tensor | None = None


if TYPE_CHECKING:
    # A mixin is checked as the class that it is for.
    _Extended = GRPOTrainer
else:
    _Extended = object


class QAEMixin(_Extended):
    """Puts QAE into a class derived from TRL's ``GRPOTrainer``: ``class Mine(QAEMixin, Theirs)``.

    Takes the arguments of that class; ``args`` must be a :class:`QAEConfig`.

    Raises
    ------
    TypeError
        If ``args`` is not a ``QAEConfig``; for a multimodal processor with ``drop_inactive``.
    ValueError
        For a model or a loss type with which dropping responses would change the gradient.
    RuntimeError
        If the installed TRL lacks a method that is extended here, or computes another loss than
        the fused one.
    """

    args: QAEConfig
    model: Any
    pad_to_multiple_of: int | None
    _qae_capture: _Capture | None = None
    _qae_rewards: torch.Tensor | None = None
    _qae_comparisons = _MOST_COMPARISONS
    _qae_auto_k: RolloutK | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        _check_hooks(super())
        super().__init__(*args, **kwargs)
        if not isinstance(self.args, QAEConfig):
            raise TypeError(f"args: expected a QAEConfig, found {type(self.args).__name__}")
        if self.args.drop_inactive:
            self._qae_check_drop()
        if self.args.auto_k:
            self._qae_auto_k = RolloutK(self)
        self._qae_trim = not _depends_on_width(self.model.config)
        self._qae_plan = self._qae_make_plan() if self.args.fused_loss else None

    def _qae_check_drop(self) -> None:
        off = "set drop_inactive=False"
        if self.aux_loss_enabled:
            coef = self.router_aux_loss_coef
            raise ValueError(
                "router_aux_loss_coef: expected 0.0 with drop_inactive=True (the load-balancing "
                f"loss acts on every response), found {coef}; {off}"
            )
        if isinstance(self.processing_class, ProcessorMixin):
            found = type(self.processing_class).__name__
            raise TypeError(
                f"processing_class: expected a tokenizer with drop_inactive=True, found {found}, "
                f"whose images are not rows of the batch; {off}"
            )
        known = (*_SCALED_BY_ROWS, *_SCALED_BY_BATCH, "bnpo")
        if self.loss_type not in known:
            names = ", ".join(known)
            raise ValueError(
                f"loss_type: expected one of {names} with drop_inactive=True, "
                f"found {self.loss_type!r}; {off}"
            )

    def _qae_make_plan(self) -> Plan | None:
        try:
            return plan_loss(self)
        except Unmapped as reason:
            warnings.warn(
                f"fused_loss: TRL's own loss is used, since qae has no equal of {reason}",
                UserWarning,
                stacklevel=4,
            )
            return None

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        self._qae_rewards = super()._calculate_rewards(*args, **kwargs)
        return self._qae_rewards

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        self._qae_rewards = None
        output = self._qae_generate(inputs)
        rewards, self._qae_rewards = self._qae_rewards, None
        local = output["advantages"]
        rows = local.size(0)
        expected = rows * self.accelerator.num_processes
        if rewards is None or rewards.size(0) != expected:
            found = "none" if rewards is None else str(rewards.size(0))
            raise RuntimeError(f"trl: expected the rewards of {expected} responses, found {found}")
        k = self.args.quantile_k if self._qae_auto_k is None else self._qae_auto_k.auto_k.k
        scored: Scored = score(self, rewards, k)
        start = self.accelerator.process_index * rows
        output["advantages"] = scored.advantages[start : start + rows].to(local)
        log_generation(self, scored, k)
        return output

    def _qae_generate(self, inputs: Any) -> dict[str, Any]:
        """What TRL generates, with K moved where its entropy is known."""
        auto_k = self._qae_auto_k
        if auto_k is None or mode_of(self) == "eval":
            return super()._generate_and_score_completions(inputs)
        auto_k.begin()
        output = super()._generate_and_score_completions(inputs)
        auto_k.end(output)
        return output

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        capture, auto_k = self._qae_capture, self._qae_auto_k
        if capture is None and auto_k is not None and auto_k.is_generating:
            kwargs["compute_entropy"] = True
            found = super()._get_per_token_logps_and_entropies(*args, **kwargs)
            auto_k.passed(*found[:2])
            return found
        if capture is None:
            return super()._get_per_token_logps_and_entropies(*args, **kwargs)
        with torch.set_grad_enabled(capture.grad):
            log_probs, entropies, *rest = super()._get_per_token_logps_and_entropies(
                *args, **kwargs
            )
        capture.log_probs, capture.entropies = log_probs, entropies
        if not capture.cut:
            return log_probs, entropies, *rest
        capture.handed = log_probs.detach().requires_grad_()
        return capture.handed, entropies.detach(), *rest

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        if not self.model.training:
            return super()._compute_loss(model, inputs)
        drops = self._qae_drops_now()
        if drops:
            batch = without_inactive(
                inputs,
                trim=self._qae_trim,
                pad_to_multiple_of=self.pad_to_multiple_of,
                process_group=_ranks(),
            )
        else:
            batch = whole(inputs)
        logged = {key: len(values) for key, values in self._metrics["train"].items()}
        plan, grad = self._qae_plan, torch.is_grad_enabled()
        compares = plan is not None and grad and self._qae_comparisons > 0
        self._qae_capture = capture = _Capture(cut=plan is not None, grad=grad)
        try:
            # With the fused loss TRL's is a number for its metrics, differentiated to compare.
            with torch.set_grad_enabled(grad if plan is None else compares):
                loss = super()._compute_loss(model, batch.inputs)
        finally:
            self._qae_capture = None
        log_probs, entropies = capture.log_probs, capture.entropies
        if log_probs is None or entropies is None:
            raise RuntimeError("trl: expected _compute_loss to ask for log-probs, found none")
        entropies = entropies.detach()
        if self._qae_auto_k is not None:
            self._qae_auto_k.add(entropies, loss_mask(batch.inputs), is_whole=not drops)
        loss = self._qae_rescale(loss, batch)
        nonfinite = None
        if plan is not None:
            arguments = self._qae_loss_arguments(plan, batch, log_probs.detach(), entropies)
            if compares and capture.handed is not None:
                leaf = log_probs.detach().requires_grad_()
                ours, metrics = policy_loss(leaf, **arguments)
                # A micro-batch without a gradient proves nothing, and one whose ratios are all
                # alike, or within the bounds, nothing about the others.
                if expect_same(ours, leaf, loss, capture.handed):
                    proven = _shows_objective(plan.objective, metrics.to_dict())
                    self._qae_comparisons = 0 if proven else self._qae_comparisons - 1
            loss, metrics = policy_loss(log_probs, **arguments)
            nonfinite = metrics.to_dict()["nonfinite_tokens"]
        log_micro_batch(self, batch, entropies, nonfinite, logged if drops else None)
        return loss

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        # First, so that a checkpoint that the trainer takes for complete has it.
        if self._qae_auto_k is not None and self.args.should_save:
            self._qae_auto_k.save(checkpoint_folder(self, trial))
        super()._save_checkpoint(model, trial)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if self._qae_auto_k is not None and checkpoint is not None:
            self._qae_auto_k.load(checkpoint)

    def _qae_drops_now(self) -> bool:
        interval = self.args.full_entropy_interval
        measures = interval > 0 and self.state.global_step % interval == 0
        return self.args.drop_inactive and not measures

    def _qae_rescale(self, loss: torch.Tensor, batch: MicroBatch) -> torch.Tensor:
        """From TRL's denominator, which counts what is left, to that of the whole micro-batch."""
        if batch.kept_rows == batch.num_rows or self.loss_type in _SCALED_BY_BATCH:
            return loss
        if self.loss_type in _SCALED_BY_ROWS:
            return loss * (batch.kept_rows / batch.num_rows)
        return loss * (batch.kept_tokens.clamp(min=1) / batch.num_tokens.clamp(min=1))

    def _qae_loss_arguments(
        self, plan: Plan, batch: MicroBatch, log_probs: torch.Tensor, entropies: torch.Tensor
    ) -> dict[str, Any]:
        inputs = batch.inputs
        mask = loss_mask(inputs)
        old = inputs.get("old_per_token_logps")
        return {
            "old_log_prob": log_probs if old is None else old,
            "ref_log_prob": inputs.get("ref_per_token_logps"),
            "advantages": inputs["advantages"].float(),
            "mask": mask,
            "importance_weight": importance_weight(self, inputs, mask, log_probs, entropies),
            "kl": plan.kl,
            "objective": plan.objective,
            "aggregation": plan.aggregation,
            "normalizer": normalizer(self, inputs, batch.num_rows, batch.num_tokens),
            "log_ratio_clamp": None,
        }


class QAETrainer(QAEMixin, GRPOTrainer):
    """TRL's ``GRPOTrainer`` with quantile advantages (arXiv 2509.22611).

    ``QAETrainer(model=..., reward_funcs=..., args=QAEConfig(...), train_dataset=...)``: in place of
    ``GRPOTrainer`` and ``GRPOConfig``, everything else as there. See :class:`QAEConfig` for the
    settings and :class:`QAEMixin` for what is refused.

    Logged besides TRL's metrics, over the responses of all processes: ``qae/k`` and, with
    ``auto_k``, ``qae/rollout_entropy`` and ``qae/target_entropy`` (nats), ``qae/zero_advantage``,
    ``qae/positive``, ``qae/negative`` (shares of the responses), ``qae/hard_groups``,
    ``qae/easy_groups`` (shares of the groups), ``qae/dropped_responses``, ``qae/dropped_tokens``
    (shares that did not pass through the policy), ``entropy/positive``, ``entropy/negative``,
    ``entropy/zero`` (in nats, by the sign of the advantage, of the tokens that did),
    ``qae/nonfinite_tokens``. Where responses were dropped, a metric of TRL's that would be a mean
    over all tokens is logged by its name and ``/kept`` instead, such as ``entropy/kept``: over the
    tokens that passed through the policy.
    """

    _tag_names = ["trl", "grpo", "qae"]  # noqa: RUF012


def _check_hooks(base: Any) -> None:
    """Whether the class extended here has the methods that are extended."""
    for name, expected in _HOOKS.items():
        method = getattr(base, name, None)
        found = tuple(inspect.signature(method).parameters) if callable(method) else None
        if found is None or found[: len(expected)] != expected:
            signature = f"{name}({', '.join(expected)})"
            shown = "none" if found is None else f"{name}({', '.join(found)})"
            raise RuntimeError(
                f"trl: expected GRPOTrainer.{signature}, found {shown} in trl {trl.__version__}"
            )


def _ranks() -> Any:
    """The process group of a run of several processes."""
    dist = torch.distributed
    several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    return dist.group.WORLD if several else None


def _depends_on_width(config: Any) -> bool:
    """Whether positions are scaled by the width of the batch, padding included."""
    text = config.get_text_config()
    rope = [getattr(text, name, None) for name in ("rope_parameters", "rope_scaling")]
    return any(kind in str(rope) for kind in ("dynamic", "longrope"))


def _shows_objective(objective: Objective, metrics: dict[str, Any]) -> bool:
    """Whether a micro-batch has tokens on both sides of the clip bounds, or ratios at all."""
    if objective.kind == "sapo":
        return bool(metrics["max_ratio"] > metrics["min_ratio"])
    return 0.0 < metrics["clip_fraction"] < 1.0
