"""The quantile level K over a training: moved with the policy's entropy, or by a schedule."""

from __future__ import annotations

import json
import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from . import _qae

__all__ = ["AutoK", "AutoKStep", "KSchedule"]

_LARGEST_COUNT = 2**63 - 1


@dataclass(frozen=True)
class AutoKStep:
    """One step of an :class:`AutoK`. ``str()`` of it is a line for a log."""

    step: int
    """Which step, from 1; in rollouts."""
    previous_k: float
    """K before it."""
    entropy: float
    """H, as measured, in nats."""
    target_entropy: float
    """H*, in nats."""
    gain: float
    """What ln(H* / H) was multiplied by."""
    k: float
    """K after it: the level for this rollout's advantages."""
    held_at: Literal["min", "max"] | None
    """The bound that K was held at, if the formula led beyond it."""
    _line: str = field(repr=False, compare=False)

    def __str__(self) -> str:
        return self._line


class AutoK:
    """Sets K once per rollout: K becomes K + gain ln(H* / H), clamped to [min_k, max_k].

    H is the entropy of the policy that the caller measures, the mean over all valid tokens of the
    rollout in nats, inactive responses included; H* is its target. Where H is too high, K falls,
    where it is too low, K rises (docs/auto-k.md).

    A controller is its state: pickled, copied or restored from :meth:`state_dict` it continues with
    the same K, bit for bit. With several processes give all of them the entropy of all their
    tokens, and their K stay equal.

    Parameters
    ----------
    initial_k : float
        K before the first step, in [``min_k``, ``max_k``].
    gain : float
        How far K moves when the entropy is off by a factor of e; above 0.
    min_k, max_k : float
        Bounds of K, in (0, 1).
    target_share : float, optional
        H* as a share of the first entropy that is measured; above 0. 0.8 without ``target_entropy``.
    target_entropy : float, optional
        H* itself, in nats; above 0.

    Raises
    ------
    ValueError
        ``name: expected X, found Y``: a number out of its range, bounds that cross, two targets.
    TypeError
        No number.

    Examples
    --------
    >>> auto_k = AutoK(gain=0.2)
    >>> auto_k.step(0.5).k < 0.4  # 0.5 nats are more than 0.8 of them, the target
    True
    >>> resumed = AutoK()
    >>> resumed.load_state_dict(auto_k.state_dict())
    >>> resumed == auto_k
    True
    """

    __slots__ = ("_native",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(
        self,
        *,
        initial_k: float = 0.4,
        gain: float = 0.1,
        min_k: float = 0.1,
        max_k: float = 0.6,
        target_share: float | None = None,
        target_entropy: float | None = None,
    ) -> None:
        if target_share is not None and target_entropy is not None:
            raise ValueError(
                f"target_entropy: expected None with target_share={target_share!r}, "
                f"found {target_entropy!r}"
            )
        share = 0.8 if target_share is None else _above_0("target_share", target_share)
        entropy = None if target_entropy is None else _above_0("target_entropy", target_entropy)
        self._native = _qae.AutoK(
            _real("initial_k", initial_k),
            _real("gain", gain),
            _real("min_k", min_k),
            _real("max_k", max_k),
            share,
            entropy,
        )

    def step(self, entropy: float | Tensor) -> AutoKStep:
        """Moves K by one rollout.

        Parameters
        ----------
        entropy : float, numpy scalar or Tensor without dimensions
            Of the policy as it sampled the rollout, in nats per token, at least 0. An entropy of 0
            gives ``max_k``. A CUDA tensor makes the call wait for its device.

        Returns
        -------
        AutoKStep
            What it did; its ``k`` is for this rollout's advantages.

        Raises
        ------
        ValueError
            An entropy that is negative or not finite, or a first one of 0, of which no share is a
            target. Nothing has changed then.
        TypeError
            No number, with nothing changed either.
        """
        return AutoKStep(*self._native.step(_real("entropy", entropy)))

    @property
    def k(self) -> float:
        """K as the last step left it, or the initial one."""
        return self._native.k

    @property
    def target_entropy(self) -> float | None:
        """H* in nats; ``None`` while it depends on a first entropy that was not measured yet."""
        return self._native.target_entropy

    @property
    def steps(self) -> int:
        """Steps taken, in rollouts."""
        return self._native.steps

    def state_dict(self) -> dict[str, Any]:
        """The controller with its parameters, in the types and the form of its JSON in Rust."""
        state: dict[str, Any] = json.loads(self._native.to_json())
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Becomes the controller that ``state_dict`` was taken from, its parameters included.

        Raises
        ------
        ValueError
            ``state: ...``: a state that no controller can have. Nothing has changed then.
        TypeError
            No mapping.
        """
        self._native = _qae.AutoK.from_json(_dumped("state_dict", "state", state_dict))

    def __getstate__(self) -> dict[str, Any]:
        return self.state_dict()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.load_state_dict(state)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AutoK) and self.state_dict() == other.state_dict()

    def __repr__(self) -> str:
        config = self.state_dict()["config"]
        bounds = f"gain={config['gain']}, min_k={config['min_k']}, max_k={config['max_k']}"
        target = f"target_entropy={self.target_entropy}"
        return f"AutoK(k={self.k}, steps={self.steps}, {target}, {bounds})"


class KSchedule:
    """K by rollout, whatever the entropy does; rollouts count from 0.

    Made by :meth:`constant`, :meth:`linear` and :meth:`two_phase`, or ``KSchedule(**fields)`` from
    its JSON form, which is that of Rust: ``{"kind": "constant", "k": 0.4}``. Immutable and
    hashable.

    Raises
    ------
    ValueError
        ``name: expected X, found Y``: a K outside (0, 1), steps below 1; ``schedule: ...``: other
        fields than those of its kind.
    TypeError
        No number.
    """

    __slots__ = ("_native",)

    def __init__(self, kind: str, **fields: float) -> None:
        counts = ("steps", "switch_at")
        checked = {
            name: (_count if name in counts else _finite)(name, value)
            for name, value in fields.items()
        }
        self._native = _qae.KSchedule.from_json(json.dumps({"kind": kind, **checked}))

    @classmethod
    def constant(cls, k: float) -> KSchedule:
        """The same K throughout."""
        return cls("constant", k=k)

    @classmethod
    def linear(cls, from_: float, to: float, steps: int) -> KSchedule:
        """From one K to another in ``steps`` equal steps, and there from then on."""
        return cls("linear", **{"from": from_, "to": to, "steps": steps})

    @classmethod
    def two_phase(cls, first: float, second: float, switch_at: int) -> KSchedule:
        """``first`` before rollout ``switch_at``, ``second`` from it on."""
        return cls("two_phase", first=first, second=second, switch_at=switch_at)

    def k(self, step: int) -> float:
        """K of rollout ``step``, at least 0."""
        return self._native.k(_count("step", step))

    def to_dict(self) -> dict[str, Any]:
        """Its JSON form."""
        fields: dict[str, Any] = json.loads(self._native.to_json())
        return fields

    def __getstate__(self) -> dict[str, Any]:
        return self.to_dict()

    def __setstate__(self, fields: dict[str, Any]) -> None:
        self.__init__(**fields)  # type: ignore[misc]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, KSchedule) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash(self._native.to_json())

    def __repr__(self) -> str:
        kind, *fields = self.to_dict().values()
        return f"KSchedule.{kind}({', '.join(map(repr, fields))})"


def _real(name: str, value: object) -> float:
    """A number as a float; whether it is finite is the caller's to check."""
    number = value
    if isinstance(value, Tensor) and value.dim() == 0:
        number = value.item()
    if isinstance(number, bool) or not isinstance(number, numbers.Real):
        found = type(value).__name__
        if isinstance(value, Tensor):
            found = f"a tensor of shape {list(value.shape)} and dtype {value.dtype}"
        raise TypeError(f"{name}: expected a number, found {found}")
    try:
        return float(number)
    except OverflowError:
        expected = "a number that a float holds"
        raise ValueError(f"{name}: expected {expected}, found a larger one") from None


def _finite(name: str, value: object) -> float:
    number = _real(name, value)
    if math.isfinite(number):
        return number
    raise ValueError(f"{name}: expected a finite number, found {number}")


def _above_0(name: str, value: object) -> float:
    number = _real(name, value)
    if number > 0 and math.isfinite(number):
        return number
    raise ValueError(f"{name}: expected a finite number above 0, found {number}")


def _count(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name}: expected an int, found {type(value).__name__}")
    count = int(value)
    if 0 <= count <= _LARGEST_COUNT:
        return count
    raise ValueError(f"{name}: expected an int in [0, {_LARGEST_COUNT}], found {count}")


def _dumped(name: str, what: str, fields: Mapping[str, Any]) -> str:
    if not isinstance(fields, Mapping):
        raise TypeError(f"{name}: expected a mapping, found {type(fields).__name__}")
    try:
        return json.dumps(dict(fields), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what}: expected JSON, found {error}") from None
