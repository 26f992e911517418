"""From rewards to advantages."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from . import _ops
from ._arguments import rewards_of
from .config import AdvantageOptions, advantage_config
from .groups import GroupsLike
from .metrics import GroupMetrics

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Advantages", "active_responses", "advantages"]


class Advantages(NamedTuple):
    """What :func:`advantages` returns, on the device of the rewards."""

    advantage: Tensor
    """float32 [num_responses], dimensionless: (R - b) / (std + epsilon); exactly 0 in a group whose
    rewards are all equal, and for a reward that is not finite."""
    baseline: Tensor
    """float32 [num_responses], units of reward: b."""
    active: Tensor
    """bool [num_responses]: the advantage is not 0."""
    metrics: GroupMetrics
    """Counts over groups and responses."""


def advantages(
    rewards: Tensor, groups: GroupsLike, **options: Unpack[AdvantageOptions]
) -> Advantages:
    """Group-relative advantages with a quantile baseline, A = (R - b) / (std + epsilon).

    b is the k-quantile of the rewards of the response's group (arXiv 2509.22611, Eq. 4), by default
    the ceil(k n)-th smallest of n, so that most advantages are exactly 0. Statistics are computed
    in float64. Deterministic. Not differentiable.

    Parameters
    ----------
    rewards : Tensor
        [num_responses] of the global batch, on a CPU or a GPU; any real dtype, used as float32.
    groups : Groups, int or ids
        Which responses share a prompt: a :class:`Groups` of as many responses, the size of groups
        of neighbors, or ids as for :meth:`Groups.from_ids`, which waits for ids on a GPU.
    **options
        :class:`AdvantageOptions`.

    Returns
    -------
    Advantages
        Advantage, baseline, active responses and counts. Empty for an empty batch. A reward that is
        not finite is left out of its group, has advantage 0, and is counted.

    Raises
    ------
    ValueError
        ``name: expected X, found Y``: shapes that do not fit, an option out of its range.
    TypeError
        No tensor, an option that does not exist or of the wrong type.
    RuntimeError
        A GPU, but a build without its kernels.
    """
    found, index = rewards_of(rewards, groups, None)
    advantage, baseline, words = _ops.advantages(
        found,
        index.offsets,
        index.order,
        index.group_of_response,
        index.num_responses,
        index.num_groups,
        index.group_size,
        index.max_group_size,
        advantage_config(dict(options)),
    )
    return Advantages(advantage, baseline, advantage != 0, GroupMetrics(words))


def active_responses(
    rewards: Tensor, groups: GroupsLike, **options: Unpack[AdvantageOptions]
) -> Tensor:
    """bool [num_responses]: the responses whose advantage is not 0, the only ones that a loss
    without a KL or an entropy term has a gradient for. Arguments and errors as :func:`advantages`.
    """
    return advantages(rewards, groups, **options).active
