"""For tests of what uses ``qae``: the CUDA kernels without a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from . import _native, _qae

__all__ = ["emulated_kernels"]

RowPolicy = Literal["auto", "cluster", "block"]


@contextmanager
def emulated_kernels(row_policy: RowPolicy | None = None, sm80: bool = False) -> Iterator[None]:
    """Within it, operations on CPU tensors run the CUDA kernels' own source in an emulator, with
    the pointers, strides and offsets that a GPU would be given. In all threads; not nested.

    Parameters
    ----------
    row_policy : {"auto", "cluster", "block"}, optional
        How the kernels on logits keep a row on the chip.
    sm80 : bool
        A device of compute capability 8.0, without clusters, rather than 9.0.

    Raises
    ------
    ValueError
        ``row_policy`` is unknown, or not for that device.
    RuntimeError
        The build has no emulator, or this is within another ``emulated_kernels``.
    """
    if "emulator" not in _qae.features():
        raise RuntimeError(
            "qae: expected a build with the emulator (QAE_EMULATOR=1 pip install ./python), "
            "found one without"
        )
    if sm80 and row_policy == "cluster":
        raise ValueError(
            "row_policy: expected auto or block on compute capability 8.0, found cluster"
        )
    if _native.runs_emulated():
        raise RuntimeError("qae: expected no emulated_kernels around this one, found one")
    _qae.set_emulation({"row_policy": row_policy or "auto", "sm80": sm80})
    _native.set_emulated(True)
    try:
        yield
    finally:
        _native.set_emulated(False)
        _qae.set_emulation(None)
