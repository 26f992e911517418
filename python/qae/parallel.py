"""Operations over the ranks of a ``torch.distributed`` process group.

Data-parallel ranks gather the rewards of all responses, so that a group whose responses are on
several ranks has one baseline. Ranks that hold a part of the vocabulary each turn their logits into
the log-probs and entropies of the whole vocabulary.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ._collectives import all_gather, collective_device
from ._ops import once_differentiable
from .groups import Groups
from .logits import log_probs_backward, merge_softmax_stats, softmax_stats

_NO_IDS, _INTEGERS, _OBJECTS = range(3)


def gather_rewards(
    rewards: Tensor,
    group_ids: Tensor | Sequence[Hashable],
    process_group: Any = None,
) -> tuple[Tensor, Groups, Tensor]:
    """The rewards and groups of all ranks, as :func:`qae.policy_loss` takes them.

    Parameters
    ----------
    rewards
        Float [local responses]; ranks may have different numbers of them, or none.
    group_ids
        [local responses]: which prompt each response belongs to. Equal ids are one group, on
        whatever ranks they are, so ids must be unique to a prompt over the ranks. Integers (a
        tensor or a sequence), or other hashables that pickle, such as verl's ``uid`` strings.
    process_group
        All its ranks call this. None: the default group.

    Returns
    -------
    rewards
        [responses of all ranks], in the order of ranks; dtype and device of the input.
    groups
        Their groups.
    response_index
        int32 [local responses]: where each local response is among them; a slice of it is the
        ``response_index`` of a micro-batch.

    Raises
    ------
    ValueError
        Another number of ids than of rewards. TypeError: rewards that are not floating point.
    """
    if not rewards.is_floating_point():
        raise TypeError(f"rewards: expected a floating-point dtype, found {rewards.dtype}")
    if rewards.dim() != 1:
        raise ValueError(f"rewards: expected [responses], found {list(rewards.shape)}")
    if len(group_ids) != rewards.shape[0]:
        raise ValueError(f"group_ids: expected {rewards.shape[0]} ids, found {len(group_ids)}")
    device = collective_device(process_group)
    ids, kind = _integers(group_ids, device)
    headers = all_gather(torch.tensor([rewards.shape[0], kind], device=device), process_group)
    counts, kinds = torch.stack(headers).T.tolist()

    # f64 holds every dtype of rewards exactly, so that ranks need not agree on one.
    gathered = _gather_ragged(rewards.detach().to(device, torch.float64), counts, process_group)
    if _OBJECTS in kinds:
        own = group_ids.tolist() if isinstance(group_ids, Tensor) else list(group_ids)
        of_ranks: list[Any] = [None] * len(counts)
        dist.all_gather_object(of_ranks, own, group=process_group)
        groups = Groups.from_ids([group_id for rank in of_ranks for group_id in rank])
    else:
        groups = Groups.from_ids(_gather_ragged(ids, counts, process_group))
    start = sum(counts[: dist.get_rank(process_group)])
    response_index = torch.arange(
        start, start + rewards.shape[0], dtype=torch.int32, device=rewards.device
    )
    return gathered.to(rewards.device, rewards.dtype), groups, response_index


def log_probs_and_entropy(
    logits_shard: Tensor,
    token_ids: Tensor,
    *,
    vocab_start: int,
    process_group: Any = None,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Log-prob of each token and entropy of its distribution, from a vocabulary in shards.

    Every rank of the group calls this with its columns of the logits and the same tokens, and has
    the same results: those of :func:`qae.log_probs_and_entropy` on the whole logits, to rounding.
    One ``all_gather`` of four numbers for each token forward, no communication backward: each rank
    computes the gradient of its own logits. As results are replicated, so must be what is computed
    from them: every rank calls ``backward`` on the same loss, and gradients of the logits are not
    summed over the ranks.

    Parameters
    ----------
    logits_shard
        Float [..., columns of this rank]; shards may differ in width.
    token_ids
        int32 or int64 [...], in the whole vocabulary, the same on all ranks. An id that no rank
        holds has a log-prob of minus infinity and no gradient.
    vocab_start
        Token id of this rank's first column.
    process_group
        The ranks that share a vocabulary. None: the default group.
    temperature
        Logits are divided by it; above 0.

    Returns
    -------
    log_prob, entropy
        [...], nats, float32 (float64 for float64 logits). Differentiable once.
    """
    results: tuple[Tensor, Tensor] = _VocabularyParallel.apply(
        logits_shard, token_ids, vocab_start, process_group, temperature
    )
    return results


class _VocabularyParallel(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        token_ids: Tensor,
        vocab_start: int,
        process_group: Any,
        temperature: float,
    ) -> tuple[Tensor, Tensor]:
        own = softmax_stats(logits, token_ids, vocab_start=vocab_start, temperature=temperature)
        shards = torch.stack(all_gather(own, process_group))
        log_prob, entropy, _, stats = merge_softmax_stats(shards, temperature=temperature)
        ctx.save_for_backward(logits, token_ids, stats)
        ctx.vocab_start, ctx.temperature = vocab_start, temperature
        return log_prob, entropy

    @staticmethod
    def backward(ctx: Any, d_log_prob: Tensor, d_entropy: Tensor) -> tuple[Tensor | None, ...]:
        once_differentiable("parallel.log_probs_and_entropy")
        logits, token_ids, stats = ctx.saved_tensors
        d_logits = log_probs_backward(
            logits,
            token_ids,
            stats,
            d_log_prob,
            d_entropy,
            temperature=ctx.temperature,
            vocab_start=ctx.vocab_start,
        )
        return d_logits, None, None, None, None


def _gather_ragged(tensor: Tensor, counts: list[int], process_group: Any) -> Tensor:
    """Rows of all ranks; collectives want equal shapes, so what is sent is padded."""
    padded = tensor.new_zeros(max(counts))
    padded[: tensor.shape[0]] = tensor
    of_ranks = all_gather(padded, process_group)
    return torch.cat([rank[:count] for rank, count in zip(of_ranks, counts)])


def _integers(group_ids: Tensor | Sequence[Hashable], device: torch.device) -> tuple[Tensor, int]:
    """The ids as int64, if they are integers, and which kind of ids they are."""
    none = torch.empty(0, dtype=torch.int64, device=device)
    if len(group_ids) == 0:
        return none, _NO_IDS
    if not isinstance(group_ids, Tensor):
        if any(isinstance(group_id, Tensor) for group_id in group_ids):
            raise TypeError("group_ids: expected a tensor or values, found tensors in a sequence")
        # What int64 does not hold goes as an object too.
        if not all(isinstance(i, int) and -(2**63) <= i < 2**63 for i in group_ids):
            return none, _OBJECTS
        group_ids = torch.tensor(group_ids)
    if group_ids.is_floating_point():
        raise TypeError(f"group_ids: expected integers, found {group_ids.dtype}")
    return group_ids.to(device, torch.int64), _INTEGERS
