"""TRL's loss against the fused one, on a micro-batch of the run itself."""

from __future__ import annotations

import torch
import trl


def expect_same(
    ours: torch.Tensor, our_input: torch.Tensor, theirs: torch.Tensor, their_input: torch.Tensor
) -> bool:
    """Whether the two losses could be compared: not where neither has a gradient.

    Parameters
    ----------
    ours, theirs
        Losses of ``our_input`` and ``their_input``, equal log-probs.

    Raises
    ------
    RuntimeError
        If the losses or their gradients differ by more than rounding: then this release of TRL
        computes something else than the one that ``qae.trl`` was written for.
    """
    (our_gradient,) = torch.autograd.grad(ours, our_input)
    (their_gradient,) = torch.autograd.grad(theirs, their_input)
    largest = their_gradient.abs().max()
    # Rounding of a term: some units in the last place of the narrower of the two computations.
    tolerance = 64 * max(torch.finfo(t.dtype).eps for t in (our_input, our_gradient))
    tolerance = max(tolerance, 64 * torch.finfo(torch.float32).eps)
    off = (our_gradient - their_gradient).abs().max()
    if off > tolerance * largest:
        _refuse("gradient", their_gradient.norm(), our_gradient.norm())
    # The terms of the loss cancel, so its rounding is measured against the sum of their sizes.
    size = (their_gradient.double().abs() * our_input.double().abs().clamp(min=1.0)).sum()
    if (ours.double() - theirs.double()).abs() > tolerance * (size + theirs.double().abs()):
        _refuse("loss", theirs, ours)
    return bool(largest > 0)


def _refuse(what: str, expected: torch.Tensor, found: torch.Tensor) -> None:
    raise RuntimeError(
        f"fused_loss: expected the {what} of trl {trl.__version__}, {float(expected):.9g}, found "
        f"{float(found):.9g}; set fused_loss=False"
    )
