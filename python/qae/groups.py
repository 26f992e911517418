"""Which responses belong to the same prompt."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Groups", "GroupsLike"]

_MAX_RESPONSES = 2**31 - 1


class GroupIndex(NamedTuple):
    """The partition as the operations take it: four counts and, if ragged, three int32 tensors."""

    num_responses: int
    num_groups: int
    group_size: int
    max_group_size: int
    offsets: Tensor | None
    order: Tensor | None
    group_of_response: Tensor | None


class Groups:
    """The partition of a batch's responses into groups, one group a prompt. Immutable.

    It describes the *global* batch: advantages do not depend on how it was cut into micro-batches.
    Build it once, on the host, outside a compiled function; the copies of its index tensors on
    other devices are made once and kept.

    Wherever an argument is called ``groups``, a ``Groups``, an int (a group size, for neighbors) or
    ids (as for :meth:`from_ids`) will do.
    """

    __slots__ = ("_copies", "_group_size", "_max_size", "_num_groups", "_num_responses")

    _num_responses: int
    _num_groups: int
    _max_size: int
    _group_size: int
    _copies: dict[torch.device, tuple[Tensor, Tensor | None, Tensor]]

    def __init__(self) -> None:
        raise TypeError("Groups: expected uniform, from_ids or from_offsets, found a direct call")

    @classmethod
    def uniform(cls, num_responses: int, group_size: int) -> Groups:
        """``num_responses / group_size`` groups of neighbors.

        Raises
        ------
        ValueError
            ``group_size`` is below 1 or does not divide ``num_responses``.
        TypeError
            One of them is no int.
        """
        check_count("num_responses", num_responses)
        check_group_size(num_responses, group_size)
        return cls._new(num_responses, num_responses // group_size, group_size, None)

    @classmethod
    def from_offsets(cls, offsets: Sequence[int] | Tensor) -> Groups:
        """Group g is the responses ``offsets[g]`` to ``offsets[g + 1] - 1``.

        ``offsets``: integers ``[num_groups + 1]``, from 0, increasing; a tensor on a GPU is waited
        for.

        Raises
        ------
        ValueError
            It does not start at 0, or a group is empty.
        """
        values = torch.as_tensor(offsets).cpu()
        if values.dim() != 1 or values.numel() == 0 or not _is_integer(values):
            raise ValueError(
                "group_offsets: expected integers [num_groups + 1], "
                f"found {values.dtype} {list(values.shape)}"
            )
        values = values.long()
        if values[0] != 0:
            raise ValueError(f"group_offsets[0]: expected 0, found {values[0]}")
        sizes = values.diff()
        if (sizes <= 0).any():
            group = int((sizes <= 0).nonzero()[0]) + 1
            raise ValueError(
                f"group_offsets[{group}]: expected more than {values[group - 1]} "
                f"(a group holds at least one response), found {values[group]}"
            )
        labels = torch.repeat_interleave(torch.arange(sizes.numel()), sizes)
        return cls._from_labels(labels)

    @classmethod
    def from_ids(cls, ids: Iterable[Hashable] | Tensor) -> Groups:
        """Responses with the same id form a group, wherever they stand.

        ``ids``: one per response: a one-dimensional integer tensor (on a GPU it is waited for), a
        numpy array, or any sequence of hashable values such as verl's uid strings. Within a group
        responses keep their order.

        Raises
        ------
        ValueError
            A tensor or an array that is not one-dimensional.
        TypeError
            A tensor that is no integer tensor, ids that cannot be hashed, or a list of tensors, whose
        hashes are not those of their values.
        """
        if isinstance(ids, Tensor):
            if ids.dim() != 1:
                raise ValueError(f"groups: expected ids [num_responses], found {list(ids.shape)}")
            if not _is_integer(ids) and ids.dtype != torch.bool:
                raise TypeError(f"groups: expected integer ids, found {ids.dtype}")
            _, labels = torch.unique(ids.detach().cpu().long(), return_inverse=True)
            return cls._from_labels(labels)
        shape = getattr(ids, "shape", None)
        if shape is not None and len(shape) != 1:
            raise ValueError(f"groups: expected ids [num_responses], found {list(shape)}")
        if isinstance(ids, (str, bytes)) or not isinstance(ids, Iterable):
            raise TypeError(f"groups: expected a sequence of ids, found {type(ids).__name__}")
        numbers: dict[Hashable, int] = {}
        values: Any = ids.tolist() if shape is not None and hasattr(ids, "tolist") else ids
        values = list(values)
        if any(isinstance(label, Tensor) for label in values):
            raise TypeError(
                "groups: expected a tensor or a sequence of values, found tensors in it"
            )
        try:
            labels_list = [numbers.setdefault(label, len(numbers)) for label in values]
        except TypeError as error:
            raise TypeError(f"groups: expected hashable ids, found {error}") from None
        return cls._from_labels(torch.tensor(labels_list, dtype=torch.int64))

    @classmethod
    def _from_labels(cls, labels: Tensor) -> Groups:
        """``labels``: int64 on the CPU, 0 to num_groups - 1, each at least once."""
        num_responses = labels.numel()
        check_count("num_responses", num_responses)
        sizes = torch.bincount(labels)
        num_groups = sizes.numel()
        ordered, order = torch.sort(labels, stable=True)
        in_order = torch.equal(ordered, labels)
        first = int(sizes[0]) if num_groups else 0
        if in_order and num_groups and bool((sizes == first).all()):
            return cls._new(num_responses, num_groups, first, None)
        offsets = torch.zeros(num_groups + 1, dtype=torch.int32)
        offsets[1:] = sizes.cumsum(0)
        tensors = (offsets, None if in_order else order.int(), labels.int())
        groups = cls._new(num_responses, num_groups, 0, tensors)
        groups._max_size = int(sizes.max()) if num_groups else 0
        return groups

    @classmethod
    def _new(
        cls,
        num_responses: int,
        num_groups: int,
        group_size: int,
        tensors: tuple[Tensor, Tensor | None, Tensor] | None,
    ) -> Groups:
        groups = object.__new__(cls)
        groups._num_responses = num_responses
        groups._num_groups = num_groups
        groups._group_size = group_size
        groups._max_size = min(group_size, num_responses)
        groups._copies = {} if tensors is None else {torch.device("cpu"): tensors}
        return groups

    @property
    def num_responses(self) -> int:
        """Responses in all groups."""
        return self._num_responses

    @property
    def num_groups(self) -> int:
        """Number of groups."""
        return self._num_groups

    @property
    def max_size(self) -> int:
        """Responses in the largest group; 0 without any."""
        return self._max_size

    @property
    def group_size(self) -> int:
        """Responses in each group; 0 if that differs or groups are not neighbors."""
        return self._group_size

    def to(self, device: torch.device | str) -> Groups:
        """These groups, with their index tensors on ``device`` from now on.

        Operations do the same on first use; before a CUDA graph is captured it has to be done.
        """
        found = torch.device(device)
        if found.type == "cuda" and found.index is None:
            found = torch.device("cuda", torch.cuda.current_device())
        self.index(found)
        return self

    def index(self, device: torch.device) -> GroupIndex:
        """Counts, and the index tensors on ``device``."""
        counts = (self._num_responses, self._num_groups, self._group_size, self._max_size)
        if self._group_size or not self._copies:
            return GroupIndex(*counts, None, None, None)
        copies = self._copies.get(device)
        if copies is None:
            offsets, order, labels = self._copies[torch.device("cpu")]
            copies = (
                offsets.to(device),
                None if order is None else order.to(device),
                labels.to(device),
            )
            self._copies[device] = copies
        return GroupIndex(*counts, *copies)

    def __repr__(self) -> str:
        size = f"group_size={self._group_size}" if self._group_size else f"max_size={self.max_size}"
        return f"Groups(num_responses={self.num_responses}, num_groups={self.num_groups}, {size})"

    def __reduce__(self) -> tuple[Any, ...]:
        cpu = self._copies.get(torch.device("cpu"))
        if cpu is None:
            return (Groups.uniform, (self._num_responses, max(self._group_size, 1)))
        return (Groups._from_labels, (cpu[2].long(),))


GroupsLike = Groups | int | Tensor | Iterable[Hashable]
"""What an argument called ``groups`` may be."""


def group_index(groups: GroupsLike, num_responses: int, device: torch.device) -> GroupIndex:
    """The index of an argument called ``groups`` for rewards ``[num_responses]`` on ``device``."""
    if isinstance(groups, int) and not isinstance(groups, bool):
        # A compiled function traces this with a symbolic count, of which no object can be made.
        check_group_size(num_responses, groups)
        max_size = min(groups, num_responses)
        return GroupIndex(
            num_responses, num_responses // groups, groups, max_size, None, None, None
        )
    if isinstance(groups, bool):
        raise TypeError("groups: expected a qae.Groups, a group size or ids, found bool")
    if not isinstance(groups, Groups):
        if torch.compiler.is_compiling():
            found = type(groups).__name__
            raise TypeError(
                "groups: expected a qae.Groups or a group size within torch.compile, as ids are "
                f"sorted on the host, found {found}"
            )
        groups = Groups.from_ids(groups)
    if groups.num_responses != num_responses:
        raise ValueError(
            f"rewards: expected shape [{groups.num_responses}], as the groups, "
            f"found [{num_responses}]"
        )
    return groups.index(device)


def check_group_size(num_responses: int, group_size: int) -> None:
    if not isinstance(group_size, int) or isinstance(group_size, bool):
        raise TypeError(f"group_size: expected an int, found {type(group_size).__name__}")
    if group_size < 1 or num_responses % group_size != 0:
        raise ValueError(
            f"group_size: expected a divisor of the {num_responses} responses, found {group_size}"
        )


def check_count(name: str, count: int) -> None:
    if not isinstance(count, int) or isinstance(count, bool):
        raise TypeError(f"{name}: expected an int, found {type(count).__name__}")
    if not 0 <= count <= _MAX_RESPONSES:
        raise ValueError(f"{name}: expected 0 to {_MAX_RESPONSES}, found {count}")


def _is_integer(tensor: Tensor) -> bool:
    dtype = tensor.dtype
    return not (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool)
