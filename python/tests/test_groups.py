"""``qae.Groups``."""

from __future__ import annotations

import copy
import pickle
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

import qae
from qae.groups import GroupIndex

CPU = torch.device("cpu")


def members(groups: qae.Groups) -> list[list[int]]:
    """The responses of each group, from the index that the operations are given."""
    index = groups.index(CPU)
    if index.offsets is None:
        size = index.group_size
        return [list(range(i * size, (i + 1) * size)) for i in range(index.num_groups)]
    order = range(index.num_responses) if index.order is None else index.order.tolist()
    offsets = index.offsets.tolist()
    found = [list(order[a:b]) for a, b in pairwise(offsets)]
    assert index.group_of_response is not None
    labels = index.group_of_response.tolist()
    assert all(labels[i] == g for g, group in enumerate(found) for i in group)
    assert {t.dtype for t in index[4:] if t is not None} == {torch.int32}
    return found


def test_the_three_forms_agree() -> None:
    for groups in [
        qae.Groups.uniform(6, 3),
        qae.Groups.from_offsets([0, 3, 6]),
        qae.Groups.from_ids([7, 7, 7, 9, 9, 9]),
    ]:
        assert members(groups) == [[0, 1, 2], [3, 4, 5]]
        assert (groups.num_responses, groups.num_groups) == (6, 2)
        assert (groups.max_size, groups.group_size) == (3, 3)


IDS = [5, -1, 5, 3, -1, 5]


@pytest.mark.parametrize(
    "ids",
    [
        IDS,
        tuple(IDS),
        [f"uid-{i}" for i in IDS],
        np.array([f"uid-{i}" for i in IDS], dtype=object),
        np.array(IDS),
        np.array([i + 1 for i in IDS], dtype=np.uint8),
        torch.tensor(IDS),
        torch.tensor(IDS, dtype=torch.int8),
        (i for i in IDS),
        [(i, "x") for i in IDS],
    ],
    ids=lambda ids: type(ids).__name__,
)
def test_ids_of_any_kind(ids: Any) -> None:
    groups = qae.Groups.from_ids(ids)
    assert sorted(members(groups)) == [[0, 2, 5], [1, 4], [3]]
    assert (groups.num_groups, groups.max_size, groups.group_size) == (3, 3, 0)


def test_ragged_neighbors_need_no_order() -> None:
    index = qae.Groups.from_offsets(torch.tensor([0, 1, 4])).index(CPU)
    assert index.order is None and index.offsets is not None
    assert members(qae.Groups.from_offsets([0, 1, 4])) == [[0], [1, 2, 3]]


def test_interleaved_groups_of_one_size_are_not_uniform() -> None:
    groups = qae.Groups.from_ids([0, 1, 0, 1])
    assert groups.group_size == 0 and members(groups) == [[0, 2], [1, 3]]


@pytest.mark.parametrize(
    "groups",
    [qae.Groups.uniform(0, 4), qae.Groups.from_ids([]), qae.Groups.from_offsets([0])],
    ids=["uniform", "ids", "offsets"],
)
def test_no_groups(groups: qae.Groups) -> None:
    assert (groups.num_responses, groups.num_groups, groups.max_size) == (0, 0, 0)
    out = qae.advantages(torch.zeros(0), groups)
    assert out.advantage.shape == (0,)


@pytest.mark.parametrize("ids", [IDS, [0, 0, 1, 1]])
def test_copies(ids: list[int]) -> None:
    groups = qae.Groups.from_ids(ids)
    for other in (copy.deepcopy(groups), pickle.loads(pickle.dumps(groups))):
        assert members(other) == members(groups) and repr(other) == repr(groups)


def test_index_tensors_are_copied_to_a_device_once() -> None:
    groups = qae.Groups.from_ids(IDS)
    meta = torch.device("meta")
    first = groups.to("meta").index(meta)
    second = groups.index(meta)
    assert isinstance(first, GroupIndex) and first.offsets is not None
    assert all(a is b for a, b in zip(first[4:], second[4:]))
    assert first.offsets.device == meta


def test_immutable() -> None:
    groups = qae.Groups.uniform(4, 2)
    for name in ("num_responses", "num_groups", "group_size", "max_size"):
        with pytest.raises(AttributeError):
            setattr(groups, name, 1)
    with pytest.raises(TypeError, match="expected uniform, from_ids or from_offsets"):
        qae.Groups()


def test_tensors_in_a_sequence_are_no_ids() -> None:
    """Their hashes are those of the objects: each response would be a group of its own."""
    with pytest.raises(TypeError, match="^groups: expected a tensor or a sequence of values"):
        qae.Groups.from_ids(list(torch.tensor([7, 7, 3])))
