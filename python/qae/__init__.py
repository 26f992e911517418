"""Quantile advantage estimation (arXiv 2509.22611) fused with the clipped policy-gradient loss.

``policy_loss`` and ``policy_loss_from_logits`` go from rewards and log-probs, or logits, to the loss
and its gradient in one launch; ``advantages`` stops at the advantages. CPU tensors are computed by
Rust, CUDA tensors by hand-written kernels. ``AutoK`` moves the quantile level with the entropy.
"""

from __future__ import annotations

from . import parallel
from ._qae import version as _version
from .advantages import Advantages, active_responses, advantages
from .auto_k import AutoK, AutoKStep, KSchedule
from .config import AdvantageOptions, Kl, Objective
from .drop import Dropped, drop_inactive
from .groups import Groups
from .logits import (
    log_probs_and_entropy,
    merge_softmax_stats,
    policy_loss_from_logits,
    softmax_stats,
)
from .loss import policy_loss
from .metrics import GroupMetrics, Metrics

__all__ = [
    "AdvantageOptions",
    "Advantages",
    "AutoK",
    "AutoKStep",
    "Dropped",
    "GroupMetrics",
    "Groups",
    "KSchedule",
    "Kl",
    "Metrics",
    "Objective",
    "active_responses",
    "advantages",
    "drop_inactive",
    "log_probs_and_entropy",
    "merge_softmax_stats",
    "parallel",
    "policy_loss",
    "policy_loss_from_logits",
    "softmax_stats",
]

__version__ = _version()
