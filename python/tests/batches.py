"""Random batches in every layout that the losses take, and what the oracle says about them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import oracle
import torch
from torch import Tensor

import qae

CPU = torch.device("cpu")
LAYOUTS = ("mask", "lengths", "packed", "packed-mask", "strided")


@dataclass
class Batch:
    """Token tensors [rows, width], of which a slot counts where ``valid``."""

    log_prob: Tensor
    old: Tensor
    reference: Tensor
    weight: Tensor
    rewards: Tensor
    ids: list[int]
    lengths: Tensor
    mask: Tensor
    logits: Tensor
    token_ids: Tensor

    @property
    def rows(self) -> int:
        return len(self.lengths)

    @property
    def width(self) -> int:
        return self.mask.shape[1]

    def valid(self, layout: str) -> Tensor:
        """Which slots are tokens that count."""
        within = torch.arange(self.width) < self.lengths[:, None]
        return {
            "mask": self.mask,
            "lengths": within,
            "packed": within,
            "packed-mask": within & self.mask,
            "strided": self.mask,
        }[layout]

    def places(self, layout: str, device: torch.device = CPU) -> dict[str, Tensor]:
        """The arguments that say where tokens are."""
        if layout == "strided":
            return {"mask": strided(self.mask.to(device), True)}
        offsets = torch.cat([torch.zeros(1), self.lengths.cumsum(0)]).to(torch.int32)
        found = {
            "mask": {"mask": self.mask.to(torch.float32)},
            "lengths": {"lengths": self.lengths},
            "packed": {"offsets": offsets},
            "packed-mask": {"offsets": offsets, "mask": self.pack(self.mask)},
        }[layout]
        return {name: tensor.to(device) for name, tensor in found.items()}

    def pack(self, tensor: Tensor) -> Tensor:
        """The slots within the lengths of a tensor with one for each, one after another."""
        return tensor[torch.arange(self.width) < self.lengths[:, None]]

    def put(
        self, tensor: Tensor, layout: str, device: torch.device = CPU, poison: Any = torch.nan
    ) -> Tensor:
        """A new token tensor as ``layout`` has it, what does not count poisoned."""
        counts = self.valid(layout)
        counts = counts.reshape(counts.shape + (1,) * (tensor.dim() - counts.dim()))
        poisoned = torch.where(counts, tensor, torch.full_like(tensor, poison))
        if layout.startswith("packed"):
            return self.pack(poisoned).to(device)
        poisoned = poisoned.to(device)
        return strided(poisoned, poison) if layout == "strided" else poisoned

    def take(self, found: Tensor, layout: str) -> Tensor:
        """A gradient laid out as ``layout`` has it, as [rows, width]; 0 where it has no slot."""
        if not layout.startswith("packed"):
            return found
        padded = torch.zeros((*self.mask.shape, *found.shape[1:]), dtype=found.dtype)
        padded[torch.arange(self.width) < self.lengths[:, None]] = found.cpu()
        return padded


def strided(tensor: Tensor, poison: Any) -> Tensor:
    """Equal, but the rows are part of longer ones that hold poison."""
    shape = list(tensor.shape)
    shape[1] += 5
    wide = torch.full(shape, poison, dtype=tensor.dtype, device=tensor.device)
    wide[:, 3 : 3 + tensor.shape[1]] = tensor
    return wide[:, 3 : 3 + tensor.shape[1]]


def random_batch(
    seed: int = 0, *, dtype: torch.dtype = torch.float32, vocab: int = 11, binary: bool = True
) -> Batch:
    """Twelve responses of up to nine tokens to three prompts; one has no token that counts."""
    g = torch.Generator().manual_seed(seed)
    rows, width = 12, 9

    def normal(scale: float, *shape: int) -> Tensor:
        return scale * torch.randn(*shape, generator=g, dtype=torch.float64)

    log_prob = (normal(0.4, rows, width) - 1.5).to(dtype)
    old = (log_prob.double() + normal(0.25, rows, width)).to(dtype)
    reference = (log_prob.double() + normal(0.25, rows, width)).to(dtype)
    lengths = torch.randint(1, width + 1, (rows,), generator=g)
    lengths[5] = 0
    mask = torch.rand(rows, width, generator=g) > 0.25
    mask[5] = False
    rewards = (
        torch.randint(0, 2, (rows,), generator=g).float()
        if binary
        else torch.rand(rows, generator=g)
    )
    rewards[:2] = torch.tensor([0.0, 1.0])
    return Batch(
        log_prob=log_prob,
        old=old,
        reference=reference,
        weight=torch.rand(rows, width, generator=g) + 0.5,
        rewards=rewards,
        ids=[i // 4 for i in range(rows)],
        lengths=lengths,
        mask=mask,
        logits=normal(2.0, rows, width, vocab).to(dtype),
        token_ids=torch.randint(0, vocab, (rows, width), generator=g),
    )


def parameter(tensor: Tensor, device: torch.device | None = None) -> Tensor:
    """A copy that requires grad, on ``device``."""
    return tensor.detach().to(device, copy=True).requires_grad_()


def expected_loss(
    batch: Batch, layout: str, dtype: torch.dtype = torch.float64, **options: Any
) -> tuple[oracle.Loss, Tensor, Tensor]:
    """The oracle's loss, its gradient with respect to log-probs, and the advantages, in ``dtype``."""
    options = dict(options)
    advantage_options = {
        name: options.pop(name) for name in qae.AdvantageOptions.__annotations__ if name in options
    }
    advantage, _ = oracle.advantages(batch.rewards, batch.ids, **advantage_options)
    log_prob = parameter(batch.log_prob.to(dtype))
    expected = oracle.loss(
        log_prob,
        batch.old.to(dtype),
        advantage.to(dtype)[:, None],
        batch.valid(layout),
        reference=batch.reference.to(dtype),
        **options,
    )
    (gradient,) = torch.autograd.grad(expected.loss, log_prob)
    return expected, gradient, advantage


def near_policy(batch: Batch, temperature: float) -> Batch:
    """Old log-probs close to those of the logits, so that ratios are around 1."""
    log_prob, _ = oracle.log_probs_and_entropy(batch.logits.double(), batch.token_ids, temperature)
    noise = batch.old.double() - batch.log_prob.double()
    batch.old = (log_prob + noise).float()
    batch.reference = (log_prob - noise).float()
    return batch


def loss_from_logits(logits: Tensor, batch: Batch, **options: Any) -> tuple[Tensor, qae.Metrics]:
    """Of a batch with everything but the logits its own; see :func:`near_policy`."""
    arguments: dict[str, Any] = {
        "rewards": batch.rewards.to(logits.device),
        "groups": 4,
        "mask": batch.mask.to(logits.device),
        "normalizer": 31,
        "temperature": 0.9,
    }
    return qae.policy_loss_from_logits(
        logits,
        batch.token_ids.to(logits.device),
        batch.old.to(logits.device),
        **(arguments | options),
    )
