"""The configuration of :class:`qae.trl.QAETrainer`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from trl import GRPOConfig

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
