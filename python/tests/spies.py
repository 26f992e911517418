"""What the operations and the native module are called with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from qae import _qae


def operation_arguments(call: Callable[[], object], name: str) -> tuple[Any, ...]:
    """The arguments that ``call`` gives to the operation ``name``."""
    recorded: list[tuple[Any, ...]] = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func is getattr(torch.ops.qae, name).default:
                recorded.append(args)
            return func(*args, **(kwargs or {}))

    with Recorder():
        call()
    (arguments,) = recorded
    return arguments


@contextmanager
def operations_on(shape: torch.Size) -> Iterator[set[str]]:
    """The names of the operations on tensors of this shape, filled meanwhile."""
    found: set[str] = set()

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if any(isinstance(tensor, Tensor) and tensor.shape == shape for tensor in args):
                found.add(str(func))
            return func(*args, **(kwargs or {}))

    with Recorder():
        yield found


def pointers(monkeypatch: pytest.MonkeyPatch, name: str) -> dict[str, int]:
    """Where the tensors that the native module is given start, filled by the next call."""
    found: dict[str, int] = {}
    native = getattr(_qae, name)

    def spy(inputs: Any, *arguments: Any) -> None:
        found.update({k: t.data_ptr() for k, t in inputs.items() if isinstance(t, Tensor)})
        native(inputs, *arguments)

    monkeypatch.setattr(_qae, name, spy)
    return found
