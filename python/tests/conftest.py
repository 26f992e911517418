"""Backends that every test of an operation runs on, and poison for what it does not write."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from qae import _qae
from qae.testing import emulated_kernels

UNIT_ROUNDOFF = {
    torch.float64: 2.0**-53,
    torch.float32: 2.0**-24,
    torch.bfloat16: 2.0**-8,
    torch.float16: 2.0**-11,
}
DTYPES = list(UNIT_ROUNDOFF)


@dataclass(frozen=True)
class Backend:
    """Where an operation runs."""

    name: str
    device: torch.device

    @property
    def is_exact(self) -> bool:
        """float64 within, one rounding at the end."""
        return self.name == "cpu"

    def assert_close(
        self,
        found: Tensor,
        expected: Tensor,
        single: Tensor | None = None,
        what: str = "",
        terms: float = 0.0,
    ) -> None:
        """``expected`` in float64; ``single``: the same formulas run by torch in float32.

        Exact backends: one rounding to the dtype of ``found``, over the noise of float64 sums. The
        kernels: twenty times what torch itself loses in float32, at least 2e-6 of the largest
        value, as for the golden cases; and the rounding to the dtype. ``terms``: how large the terms
        are of which the values are differences.
        """
        expected = expected.detach().double()
        largest = expected.abs().max().item() if expected.numel() else 0.0
        largest = max(largest, terms)
        error = (found.detach().cpu().double() - expected).abs()
        rounding = UNIT_ROUNDOFF[found.dtype] * expected.abs()
        if self.is_exact:
            floor = 1e-12 * largest
        else:
            lost = 0.0 if single is None else (single.double() - expected).abs().max().item()
            floor = max(2e-6 * largest, 20 * lost)
        # Below its normal numbers, float16 rounds to multiples of 2^-24.
        floor += 2.0**-25 if found.dtype == torch.float16 else 1e-300
        bad = ~(error <= 1.001 * rounding + floor)
        assert not bad.any(), (
            f"{what}: off by {error[bad].max().item():.3e} of {largest:.3e}, "
            f"tolerance {floor:.3e} at {bad.nonzero()[:5].tolist()}"
        )


def emulator_is_missing() -> str | None:
    """Why the emulated kernels cannot be tested, if they cannot."""
    if "emulator" in _qae.features():
        return None
    reason = "built without the emulator (QAE_EMULATOR=1 pip install ./python)"
    if os.environ.get("QAE_REQUIRE_EMULATOR") == "1":
        pytest.fail(f"QAE_REQUIRE_EMULATOR=1, but {reason}")
    return reason


def gpu_is_missing() -> str | None:
    if not torch.cuda.is_available():
        return "no GPU"
    return None if "cuda" in _qae.features() else "built without CUDA kernels"


@pytest.fixture(params=["cpu", "emulated", "cuda"])
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """The Rust implementation, the CUDA kernels in the emulator, and on a GPU."""
    name = request.param
    if name == "cuda":
        if reason := gpu_is_missing():
            pytest.skip(reason)
        yield Backend(name, torch.device("cuda", torch.cuda.current_device()))
    elif name == "emulated":
        if reason := emulator_is_missing():
            pytest.skip(reason)
        with emulated_kernels():
            yield Backend(name, torch.device("cpu"))
    else:
        yield Backend(name, torch.device("cpu"))


def assert_same(backend: Backend, found: Tensor, expected: Tensor) -> None:
    """Of other strides: the same bits, or where that changes the order of sums nearly so."""
    if backend.is_exact:
        assert torch.equal(found, expected)
    else:
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-7)


def skip_unless_supported(backend: Backend, dtype: torch.dtype) -> None:
    if dtype == torch.float64 and not backend.is_exact:
        pytest.skip("float64 is for the CPU")


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Memory that torch allocates without writing to it holds NaN, or the largest integer."""
    was_deterministic = torch.are_deterministic_algorithms_enabled()
    fills = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(was_deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = fills
