"""The configuration of :class:`qae.trl.QAETrainer`."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from trl import GRPOConfig

from qae.trl.auto_k import has_old_log_probs, make_auto_k

_CHOICES = {
    "advantage_baseline": ("quantile", "mean"),
    "quantile_interpolation": ("inverted_cdf", "linear"),
    "quantile_gate": ("none", "two_regime", "positive_mask", "negative_mask"),
}


@dataclass
class QAEConfig(GRPOConfig):
    """TRL's ``GRPOConfig`` with the settings of QAE.

    All of TRL's fields keep their meaning. ``scale_rewards`` chooses what the distance from the
    baseline is divided by: the standard deviation of the ``group`` or the ``batch``, or ``none``.

    Parameters
    ----------
    quantile_k
        Quantile level of the baseline, in (0, 1). Only the rank ⌈k · num_generations⌉ matters: with
        8 generations 0.4 and 0.5 are the same method.
    auto_k
        K starts at ``quantile_k`` and then follows the policy's entropy, rollout by rollout, as
        :class:`qae.AutoK` does. Where TRL computes old log-probs, a rollout's own entropy moves its
        K, elsewhere that of the last rollout of which nothing was dropped. Stored in checkpoints.
    auto_k_gain, auto_k_min_k, auto_k_max_k, auto_k_target_share, auto_k_target_entropy
        The parameters of :class:`qae.AutoK`; for ``auto_k`` only.
    quantile_interpolation
        ``inverted_cdf``: the baseline is one of the rewards, so that those that tie with it have an
        advantage of exactly 0. ``linear``: as ``torch.quantile``.
    quantile_gate
        Which signs of the advantage act: ``none`` (as computed), ``two_regime``,
        ``positive_mask`` or ``negative_mask``. For rewards that are not 0 or 1.
    success_threshold
        A reward above it is a success; decides hard and easy groups, and the gates.
    advantage_baseline
        ``quantile``, or ``mean`` for GRPO's baseline.
    advantage_epsilon
        Added to the standard deviation, in units of reward. TRL's 1e-4.
    drop_inactive
        Responses whose advantage is exactly 0 leave a micro-batch before the policy's forward pass.
        The denominators of the loss stay those of the whole micro-batch, so the gradient is the
        same. Refused where another term acts on all responses: KL, entropy bonus, load balancing.
    full_entropy_interval
        In optimizer steps: nothing is dropped in one of as many, so that TRL's ``entropy``, the
        mean over all tokens, is measured. 0: never.
    fused_loss
        The gradient of the policy's log-probs comes from one ``qae`` kernel instead of autograd
        through TRL's expressions. It is compared with TRL's own on the first micro-batch that has
        one. Options without an equal in ``qae`` fall back to TRL's loss with a warning.

    Raises
    ------
    ValueError
        For a value out of its range, and for combinations that would change what is optimized.
    """

    quantile_k: float = field(
        default=0.4, metadata={"help": "Quantile level of the baseline, in (0, 1)."}
    )
    auto_k: bool = field(
        default=False,
        metadata={"help": "Move K with the policy's entropy, starting from `quantile_k`."},
    )
    auto_k_gain: float = field(
        default=0.1, metadata={"help": "How far K moves if the entropy is off by a factor of e."}
    )
    auto_k_min_k: float = field(default=0.1, metadata={"help": "Smallest K, in (0, 1)."})
    auto_k_max_k: float = field(default=0.6, metadata={"help": "Largest K, in (0, 1)."})
    auto_k_target_share: float | None = field(
        default=None,
        metadata={"help": "Target entropy as a share of the first one. 0.8 if no target is given."},
    )
    auto_k_target_entropy: float | None = field(
        default=None, metadata={"help": "Target entropy in nats per token."}
    )
    quantile_interpolation: str = field(
        default="inverted_cdf",
        metadata={"help": "Quantile between two rewards: `inverted_cdf` or `linear`."},
    )
    quantile_gate: str = field(
        default="none",
        metadata={
            "help": "Signs of the advantage that act: `none` (as computed), `two_regime`, "
            "`positive_mask` or `negative_mask`."
        },
    )
    success_threshold: float = field(
        default=0.5, metadata={"help": "A reward above this is a success."}
    )
    advantage_baseline: str = field(
        default="quantile", metadata={"help": "`quantile`, or `mean` for GRPO's baseline."}
    )
    advantage_epsilon: float = field(
        default=1e-4, metadata={"help": "Added to the standard deviation of the rewards."}
    )
    drop_inactive: bool = field(
        default=True,
        metadata={
            "help": "Drop responses of advantage 0 from a micro-batch before the policy's forward "
            "pass; the gradient is the same."
        },
    )
    full_entropy_interval: int = field(
        default=10,
        metadata={
            "help": "Nothing is dropped in one of as many optimizer steps, to measure the entropy "
            "over all tokens. 0: never."
        },
    )
    fused_loss: bool = field(
        default=True,
        metadata={"help": "Take the gradient of the log-probs from qae's fused loss."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            _expect(name, value in choices, " or ".join(map(repr, choices)), value)
        k = self.quantile_k
        _expect("quantile_k", 0.0 < k < 1.0, "a number in (0, 1)", k)
        epsilon = self.advantage_epsilon
        _expect("advantage_epsilon", epsilon >= 0.0, "a number of at least 0", epsilon)
        interval = self.full_entropy_interval
        _expect("full_entropy_interval", interval >= 0, "an integer of at least 0", interval)
        self._check_gate()
        self._check_auto_k()
        if self.drop_inactive:
            self._check_drop()

    def _check_gate(self) -> None:
        if self.quantile_gate == "none":
            return
        baseline = self.advantage_baseline
        _expect(
            "advantage_baseline",
            baseline == "quantile",
            f"'quantile', whose k quantile_gate={self.quantile_gate!r} needs",
            baseline,
        )
        aggregation = self.multi_objective_aggregation
        _expect(
            "multi_objective_aggregation",
            aggregation == "sum_then_normalize",
            "'sum_then_normalize', since normalized rewards have no success_threshold for "
            f"quantile_gate={self.quantile_gate!r}",
            aggregation,
        )

    def _check_auto_k(self) -> None:
        if not self.auto_k:
            for parameter in fields(self):
                name, default = parameter.name, parameter.default
                if name.startswith("auto_k_"):
                    found = getattr(self, name)
                    _expect(name, found == default, f"{default} with auto_k=False", found)
            return
        baseline = self.advantage_baseline
        _expect(
            "advantage_baseline",
            baseline == "quantile",
            "'quantile', whose k auto_k=True moves",
            baseline,
        )
        make_auto_k(self)
        interval = self.full_entropy_interval
        is_measured = not self.drop_inactive or interval > 0 or has_old_log_probs(self)
        _expect(
            "full_entropy_interval",
            is_measured,
            "at least 1 with auto_k=True and drop_inactive=True, since TRL computes no old "
            "log-probs with this gradient_accumulation_steps (K would never move)",
            interval,
        )

    def _check_drop(self) -> None:
        """Refuses what gives a response of advantage 0 a gradient, or depends on all of them."""
        wanted = {
            "beta": (0.0, "the KL term acts on every response"),
            "entropy_coef": (0.0, "the entropy bonus acts on every response"),
            "use_adaptive_entropy": (False, "the entropy bonus acts on every response"),
            "top_entropy_quantile": (1.0, "the quantile is taken over the tokens of all responses"),
        }
        for name, (expected, reason) in wanted.items():
            found = getattr(self, name)
            _expect(
                name, found == expected, f"{expected} with drop_inactive=True ({reason})", found
            )


def _expect(name: str, holds: bool, expected: str, found: Any) -> None:
    if not holds:
        raise ValueError(f"{name}: expected {expected}, found {found!r}")
