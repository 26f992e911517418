"""What an operation reports besides its tensors, on the device until it is read."""

from __future__ import annotations

import struct
from typing import NamedTuple

from torch import Tensor

from . import _qae

__all__ = ["GroupMetrics", "Metrics"]


class GroupMetrics(NamedTuple):
    """Counts over the groups and responses of a batch of rewards, on their device."""

    words: Tensor
    """int64, one count each; :meth:`to_dict` names them."""

    def to_dict(self) -> dict[str, int]:
        """Counts by name; waits for the device.

        ``num_groups``; ``hard_groups`` and ``easy_groups`` (share of successes at most 1 - k, or
        above; 0 without a quantile); ``zero_variance_groups``; ``positive``, ``zero``, ``negative``
        responses by the sign of their advantage; ``nonfinite_rewards``, which were left out.
        """
        return _qae.read_group_metrics(_bytes(self.words))


class Metrics(NamedTuple):
    """Counts and sums of one loss and the tensors that it computed on the way, on its device.

    Reading them waits for the device; nothing before that does. None of them is differentiable.
    """

    words: Tensor
    """int64: the native struct; :meth:`to_dict` names its fields."""
    advantage: Tensor | None
    """float32 [num_responses], of the global batch; ``None`` where advantages were given."""
    baseline: Tensor | None
    """float32 [num_responses], what was subtracted from each reward; ``None`` likewise."""
    active_rows: Tensor
    """int32 [rows]: the first ``active_count`` are the local responses with an advantage other than
    0 and a valid token, ascending; the others are -1."""
    active_count: Tensor
    """int32 [1]."""
    scope: str
    """``"all"`` or ``"active"``: the tokens that are counted."""
    log_prob: Tensor | None = None
    """From logits: float32 (float64 of float64), nats, shaped as ``token_ids``; 0 where the token's
    logits were not read (masked, or inactive and out of scope)."""
    entropy: Tensor | None = None
    """From logits: nats, likewise."""

    def to_dict(self) -> dict[str, int | float]:
        """Metrics by name; waits for the device.

        Losses: ``loss``, ``pg_loss``, ``kl_loss`` (before its coefficient). Local responses:
        ``positive``, ``zero``, ``negative`` (sign of the advantage), ``active``. Valid tokens:
        ``tokens`` (in scope), ``active_tokens``, ``clip_fraction`` and its parts
        ``clip_fraction_above`` and ``clip_fraction_below``, ``dual_clip_fraction``, ``approx_kl``
        (mean of old_log_prob - log_prob, nats), ``min_ratio``, ``max_ratio``. Groups of the global
        batch: ``num_groups``, ``hard_groups``, ``easy_groups``, ``zero_variance_groups``, and its
        responses: ``global_positive``, ``global_zero``, ``global_negative``. Left out:
        ``nonfinite_rewards``, ``nonfinite_tokens``, ``out_of_range``. From logits also, in nats,
        ``entropy_loss`` (aggregated, before its coefficient) and the means ``entropy`` and, by the
        sign of the advantage, ``entropy_positive``, ``entropy_zero``, ``entropy_negative`` over as
        many tokens as ``entropy_..._tokens`` say.
        """
        return _qae.read_loss_metrics(_bytes(self.words), self._is_from_logits(), self.scope)

    def check(self) -> None:
        """Whether nothing was left out; waits for the device.

        Raises
        ------
        ValueError
            For rewards or tokens that are not finite, indices out of range, or a loss that is not
            finite, with their number.
        """
        _qae.check_loss_metrics(_bytes(self.words), self._is_from_logits(), self.scope)

    def _is_from_logits(self) -> bool:
        return self.words.numel() == _qae.LOGITS_WORDS


def _bytes(words: Tensor) -> bytes:
    values = words.tolist()
    return struct.pack(f"={len(values)}q", *values)
