"""What to compute: objectives, KL terms, advantage options, and their JSON form.

The JSON form is that of ``src/config_json.rs``: the native module reads it, checks it and names the
field that is out of range.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, TypedDict

import torch

__all__ = [
    "AdvantageOptions",
    "Aggregation",
    "Baseline",
    "Gate",
    "Interpolation",
    "Kl",
    "KlKind",
    "MetricsScope",
    "Objective",
    "ObjectiveKind",
    "Scale",
    "Singleton",
]

Aggregation = Literal[
    "token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"
]
Baseline = Literal["quantile", "mean", "leave_one_out"]
Gate = Literal["none", "two_regime", "positive_mask", "negative_mask"]
Interpolation = Literal["inverted_cdf", "linear"]
KlKind = Literal["k1", "k2", "k3"]
MetricsScope = Literal["all", "active"]
ObjectiveKind = Literal["ppo_clip", "gspo", "cispo", "sapo", "reinforce"]
Scale = Literal["std_unbiased", "std_population", "none"]
Singleton = Literal["reward", "zero"]


class AdvantageOptions(TypedDict, total=False):
    """How rewards become advantages: the keywords of every function that takes rewards.

    =================== ================ ===========================================================
    keyword             default          meaning
    =================== ================ ===========================================================
    k                   0.4              quantile level in (0, 1), the decimal as written
    baseline            "quantile"       or "mean" (GRPO, DAPO), "leave_one_out" (RLOO)
    interpolation       "inverted_cdf"   the paper's quantile; "linear": as ``torch.quantile``
    scale               "std_unbiased"   divides by the group's standard deviation (divisor n - 1)
                                         + epsilon; "std_population" (divisor n); "none" (Dr.GRPO)
    epsilon             1e-6             reward units; verl's; TRL has 1e-4
    gate                "none"           "two_regime", "positive_mask", "negative_mask": which signs
                                         act (arXiv 2509.22611); needs a quantile
    singleton           "reward"         a group of one: its reward / (1 + epsilon) (verl), or "zero"
    success_threshold   0.5              a reward above it is a success (metrics and gates)
    =================== ================ ===========================================================
    """

    k: float
    baseline: Baseline
    interpolation: Interpolation
    scale: Scale
    epsilon: float
    gate: Gate
    singleton: Singleton
    success_threshold: float


_KINDS: dict[str, tuple[str, dict[str, float | None]]] = {
    "ppo_clip": ("ppo_clip", {"low": 0.2, "high": 0.28, "dual_clip": None, "ratio_cap": None}),
    "gspo": ("gspo", {"low": 3e-4, "high": 4e-4, "log_ratio_max": 10.0}),
    "cispo": ("cispo", {"low": 0.2, "high": 0.28}),
    "sapo": ("sapo", {"tau_positive": 1.0, "tau_negative": 1.05}),
    "reinforce": ("gpg", {}),
}
_NAMES = {
    "low": "clip_low",
    "high": "clip_high",
    "tau_positive": "tau_pos",
    "tau_negative": "tau_neg",
    "log_ratio_max": "seq_log_ratio_max",
}
_LOSS_PARAMS = ("log_ratio_max", "tau_positive", "tau_negative")
_PARAMETERS = ("low", "high", "dual_clip", "ratio_cap", *_LOSS_PARAMS)


@dataclass(frozen=True, init=False)
class Objective:
    """The policy-gradient objective of a token; rho is the importance ratio, A the advantage.

    ``Objective(kind, **parameters)`` takes the parameters of that kind, whose defaults are those of
    the class method of its name: :meth:`clip` ("ppo_clip"), :meth:`gspo`, :meth:`cispo`,
    :meth:`sapo`, :meth:`reinforce`. What a kind does not have is ``None``. Immutable and hashable.

    Raises
    ------
    ValueError
        ``objective...: expected X, found Y``: an unknown kind, or a parameter of another kind. A
        number out of its range is refused where the objective is used.
    TypeError
        A parameter that is no number.
    """

    kind: ObjectiveKind
    low: float | None
    high: float | None
    dual_clip: float | None
    ratio_cap: float | None
    log_ratio_max: float | None
    tau_positive: float | None
    tau_negative: float | None
    _json: str = field(init=False, repr=False, compare=False)

    def __init__(self, kind: ObjectiveKind = "ppo_clip", **parameters: float | None) -> None:
        if kind not in _KINDS:
            raise ValueError(f"objective.kind: expected one of {', '.join(_KINDS)}, found {kind!r}")
        loss, defaults = _KINDS[kind]
        for name, value in parameters.items():
            is_absent = value is None and name in _PARAMETERS
            if name not in defaults and not is_absent:
                raise ValueError(
                    f"objective.{name}: expected one of {', '.join(defaults) or 'none'} "
                    f"with {kind}, found {name}"
                )
        values = {name: parameters.get(name, default) for name, default in defaults.items()}
        object.__setattr__(self, "kind", kind)
        for name in _PARAMETERS:
            object.__setattr__(self, name, values.get(name))
        object.__setattr__(self, "_json", _objective_json(loss, values))

    @classmethod
    def clip(
        cls,
        low: float | None = 0.2,
        high: float | None = 0.28,
        dual_clip: float | None = None,
        ratio_cap: float | None = None,
    ) -> Objective:
        """-min(rho A, clip(rho, 1 - low, 1 + high) A): PPO (1707.06347), DAPO (2503.14476).

        ``low``, ``high``: offsets, ``None``: no bound. ``dual_clip``: c > 1, for A < 0 the loss is
        at most -c A (1912.09729; verl has 3). ``ratio_cap``: largest ratio of the unclipped branch
        (TRL's delta).
        """
        return cls("ppo_clip", low=low, high=high, dual_clip=dual_clip, ratio_cap=ratio_cap)

    @classmethod
    def gspo(
        cls,
        low: float | None = 3e-4,
        high: float | None = 4e-4,
        log_ratio_max: float | None = 10.0,
    ) -> Objective:
        """The clip with the response's ratio, exp of the mean log-ratio (2507.18071).

        ``log_ratio_max``: upper clamp of the mean log-ratio in nats, as verl has it; ``None``: off.
        """
        return cls("gspo", low=low, high=high, log_ratio_max=log_ratio_max)

    @classmethod
    def cispo(cls, low: float | None = 0.2, high: float | None = 0.28) -> Objective:
        """-sg[clip(rho)] A log_prob (2506.13585). verl clips both sides, TRL only above."""
        return cls("cispo", low=low, high=high)

    @classmethod
    def sapo(cls, tau_positive: float = 1.0, tau_negative: float = 1.05) -> Objective:
        """-(4 / tau) sigmoid(tau (rho - 1)) A, tau by the sign of A (2511.20347)."""
        return cls("sapo", tau_positive=tau_positive, tau_negative=tau_negative)

    @classmethod
    def reinforce(cls) -> Objective:
        """-A log_prob (verl's gpg). Needs no ``old_log_prob``."""
        return cls("reinforce")


@dataclass(frozen=True)
class Kl:
    """The KL term to the reference policy, with the estimator d = log_prob - ref_log_prob.

    ``kind``: "k1" (d), "k2" (d squared / 2) or "k3" (exp(-d) + d - 1). ``coef``: its coefficient,
    at least 0. ``clamp``: verl's clamps of k3, exponent to +-20 and value to +-10.

    Raises
    ------
    ValueError, TypeError
        ``kl...: expected X, found Y``.
    """

    kind: KlKind = "k3"
    coef: float = 0.001
    clamp: bool = True
    _json: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        one_of("kl.kind", self.kind, ("k1", "k2", "k3"))
        if not isinstance(self.clamp, bool):
            raise TypeError(f"kl.clamp: expected a bool, found {type(self.clamp).__name__}")
        clamp = "true" if self.clamp else "false"
        coef = _number("kl.coef", self.coef)
        json = f'"kl":{{"kind":"{self.kind}","coef":{coef},"clamp":{clamp}}}'
        object.__setattr__(self, "_json", json)


@dataclass(frozen=True)
class LossOptions:
    """What a loss is told besides tensors and the normalizer's value."""

    objective: Objective
    kl: Kl | None
    aggregation: str
    loss_scale_factor: float | None
    log_ratio_clamp: float | None
    loss_multiplier: float
    grad_scale: float
    metrics_scope: str
    temperature: float = 1.0
    entropy_coef: float = 0.0


def loss_config(
    options: LossOptions, normalizer: float | None, advantage: Mapping[str, object]
) -> str:
    """The JSON of a loss. ``normalizer``: the number, or ``None`` where a tensor has it."""
    items = tuple(advantage.items())
    if torch.compiler.is_compiling():
        head = _loss_head(options, items)
    else:
        try:
            head = _cached_loss_head(options, items)
        except TypeError:  # by name, also what cannot be hashed
            head = _loss_head(options, items)
    if normalizer is None:
        return head + "}}"
    by_tokens = options.aggregation == "token-mean"
    name = "batch_num_tokens" if by_tokens else "global_batch_size"
    return f'{head},"{name}":{_number("normalizer", normalizer)}}}}}'


def advantage_config(options: Mapping[str, object]) -> str:
    """The JSON of advantage options alone."""
    return "{" + _advantage_fields(options) + "}"


def one_of(name: str, value: object, known: tuple[str, ...]) -> None:
    """``ValueError`` unless ``value`` is a known string."""
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name}: expected one of {', '.join(known)}, found {value!r}")


def _loss_head(options: LossOptions, advantage: tuple[tuple[str, object], ...]) -> str:
    """All but the end of the object ``normalizer``, which changes with every batch."""
    aggregation = options.aggregation
    one_of(
        "aggregation",
        aggregation,
        ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"),
    )
    one_of("metrics_scope", options.metrics_scope, ("all", "active"))
    if not isinstance(options.objective, Objective):
        found = type(options.objective).__name__
        raise TypeError(f"objective: expected a qae.Objective, found {found}")
    if options.kl is not None and not isinstance(options.kl, Kl):
        raise TypeError(f"kl: expected a qae.Kl or None, found {type(options.kl).__name__}")
    scale = _loss_scale_factor(aggregation, options.loss_scale_factor)
    clamp = _number_or_null("log_ratio_clamp", options.log_ratio_clamp)
    advantage_fields = _advantage_fields(dict(advantage))
    parts = [
        *([advantage_fields] if advantage_fields else []),
        options.objective._json,
        *([] if options.kl is None else [options.kl._json]),
        f'"log_ratio_clamp":{clamp}',
        f'"aggregation":"{aggregation}"',
        f'"metrics_scope":"{options.metrics_scope}"',
        f'"grad_scale":{_number("grad_scale", options.grad_scale)}',
        f'"temperature":{_number("temperature", options.temperature)}',
        f'"entropy_coef":{_number("entropy_coef", options.entropy_coef)}',
        f'"normalizer":{{"dp_size":{_number("loss_multiplier", options.loss_multiplier)}{scale}',
    ]
    return "{" + ",".join(parts)


_cached_loss_head = lru_cache(maxsize=256)(_loss_head)


def _loss_scale_factor(aggregation: str, value: float | None) -> str:
    is_used = aggregation == "seq-mean-token-sum-norm"
    if is_used and value is None:
        raise ValueError(
            "loss_scale_factor: expected a number with aggregation seq-mean-token-sum-norm, "
            "found None"
        )
    if value is None:
        return ""
    if not is_used:
        raise ValueError(
            f"loss_scale_factor: expected None with aggregation {aggregation}, found {value!r}"
        )
    return f',"loss_scale_factor":{_number("loss_scale_factor", value)}'


def _objective_json(loss: str, values: Mapping[str, float | None]) -> str:
    fields = [f'"loss":"{loss}"']
    nested: list[str] = []
    for name, value in values.items():
        part = f'"{_NAMES.get(name, name)}":{_number_or_null(f"objective.{name}", value)}'
        (nested if name in _LOSS_PARAMS else fields).append(part)
    if nested:
        fields.append('"loss_params":{' + ",".join(nested) + "}")
    return ",".join(fields)


def _advantage_fields(options: Mapping[str, object]) -> str:
    known = AdvantageOptions.__annotations__
    baseline = []
    fields = []
    for name, value in options.items():
        if name not in known:
            raise TypeError(
                f"{name}: expected one of {', '.join(known)}, found an unexpected keyword"
            )
        if name in ("k", "epsilon", "success_threshold"):
            literal = _number(name, value)
        elif isinstance(value, str) and value.isidentifier():
            literal = f'"{value}"'
        else:
            raise TypeError(f"{name}: expected a name, found {value!r}")
        if name in ("k", "interpolation"):
            baseline.append(f'"{name}":{literal}')
        elif name == "baseline":
            baseline.append(f'"kind":{literal}')
        else:
            fields.append(f'"{name}":{literal}')
    if baseline:
        fields.append('"baseline":{' + ",".join(baseline) + "}")
    return ",".join(fields)


def _number_or_null(name: str, value: object) -> str:
    return "null" if value is None else _number(name, value)


def _number(name: str, value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: expected a number, found {type(value).__name__}")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{name}: expected a finite number, found {number}")
    return repr(number)
