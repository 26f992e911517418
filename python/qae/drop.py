"""Leaving out the responses that cannot change the gradient, before the policy's forward pass.

A response whose advantage is exactly 0 adds exactly 0 to the gradient of every objective that is
proportional to the advantage. It still counts in the normalizer: so the normalizer of the full
batch comes back with the smaller batch, and the loss must be divided by that one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._active_rows import Kept, activity, keep, select_rows, zero_tail

_MASK_KEYS = ("response_mask", "completion_mask")

# Policy losses of verl 0.9.1 that are 0 where the advantage is 0 and look at no other response.
# Not among them: clip_cov and kl_cov choose tokens by their covariance over the batch, dro has a
# penalty of its own, geo_mean divides by the rows that it is given, bypass_mode may normalize its
# weights over the batch.
_VERL_LOSS_MODES = frozenset(
    ("vanilla", "dppo_tv", "dppo_kl", "gspo", "sapo", "gpg", "cispo")
    + ("qae_fused", "qae_fused_gspo", "qae_fused_cispo", "qae_fused_sapo")
)


class Dropped(NamedTuple):
    """A batch without its inactive responses, and what the full batch is divided by.

    Of ``process_group``, where one was given: ``num_tokens`` and ``num_sequences`` are sums over
    its ranks; everything else is of this rank.
    """

    batch: Any
    """Of the type of the input; its rows are copies."""
    index: Tensor  # type: ignore[assignment]
    """int64 [num_rows], on the device of the advantages: the row in the input of each kept row."""
    advantages: Tensor
    """[num_rows] or as the mask: 0 for repeated rows."""
    active: Tensor
    """bool [num_rows]: False for the rows that only fill up the batch."""
    num_tokens: int
    """Valid tokens of the full batch: the normalizer of ``token-mean``."""
    num_sequences: int
    """Responses of the full batch with a valid token: the normalizer of ``seq-mean-*``."""
    num_rows: int
    """Kept rows, ``num_active + num_padding``."""
    num_active: int
    num_padding: int
    """Inactive or repeated rows that fill up the batch."""
    num_dropped: int
    """Rows of the input that are not in the batch."""


def drop_inactive(
    batch: Any,
    *,
    advantages: str | Tensor = "advantages",
    mask: str | Tensor | None = None,
    multiple_of: int = 1,
    min_rows: int = 1,
    process_group: Any = None,
    kl_coef: float = 0.0,
    entropy_coef: float = 0.0,
    aux_loss_coef: float = 0.0,
    config: Any = None,
    shared: Iterable[str] = (),
) -> Dropped:
    """Keep the rows of a batch whose advantage is not 0 and that have a valid token.

    The gradient of the loss is that of the full batch, to the rounding of its sums, if the loss is
    divided by ``num_tokens`` or ``num_sequences`` (or the constant of ``seq-mean-token-sum-norm``)
    and not by something that is counted in the smaller batch.

    Parameters
    ----------
    batch
        A mapping, a ``TensorDict`` or verl's ``DataProto``; it is not modified. Tensors, arrays,
        lists and tuples must have the rows as their first dimension; mappings may nest; scalars,
        strings, 0-dim tensors and None pass through.
    advantages
        Key in ``batch``, or a tensor: [rows], [rows, 1] or shaped as the mask, dimensionless. A NaN
        is not 0: such a row is kept, so that the loss can report it.
    mask
        Key or tensor: [rows, width], nonzero where a token counts, or integers [rows], the number
        of valid tokens. By default ``response_mask``, else ``completion_mask``.
    multiple_of, min_rows
        The number of kept rows is at least ``min_rows`` and a multiple of ``multiple_of``: rows of
        a micro-batch, times data-parallel ranks if the batch is split afterwards. What is missing
        is filled up with the inactive rows that have the fewest tokens, in their places, and if
        there are too few with copies of a row at the end, whose advantage and mask are set to 0 (in
        the entries of ``batch`` that were named by a key, and in ``Dropped.advantages``).
    process_group
        Of ``torch.distributed``: all its ranks call this, each with its part of the batch, and keep
        equally many rows, so that they run equally many micro-batches. None: this process alone.
    kl_coef, entropy_coef, aux_loss_coef
        Coefficients of the terms of your loss that an inactive response has a gradient of: must
        be 0. ``aux_loss_coef``: load balancing of a mixture of experts.
    config
        verl's ``ActorConfig``, as a dataclass or ``DictConfig``, to read the same from.
    shared
        Keys whose values do not have the rows as first dimension and pass through.

    Returns
    -------
    Dropped

    Raises
    ------
    ValueError
        A term of the loss that makes dropping change the gradient; an entry whose first dimension
        is not the rows; a missing key; no row to fill up with.
    TypeError
        A batch, mask or advantages of another type.

    Notes
    -----
    Waits once for the device, as the number of rows must be known to the host; once more if the
    batch has host-side entries. With ``process_group`` one ``all_gather`` of three integers.
    """
    refuse_other_terms(kl_coef=kl_coef, entropy_coef=entropy_coef, aux_loss_coef=aux_loss_coef)
    if config is not None:
        refuse_verl_config(config)
    entries = _entries(batch)
    mask_key = _mask_key(entries) if mask is None else mask
    values = _tensor("advantages", entries, advantages)
    rows = activity(values, _tensor("mask", entries, mask_key))
    kept = keep(rows, multiple_of=multiple_of, min_rows=min_rows, process_group=process_group)

    selected = select_rows(values, kept.index)
    zero_tail(selected, kept.num_copies)
    smaller = _select_batch(batch, kept, frozenset(shared))
    for key in (advantages, mask_key):
        if isinstance(key, str):
            zero_tail(_entries(smaller)[key], kept.num_copies)
    _describe_to_verl(batch, smaller, kept)
    return Dropped(
        batch=smaller,
        index=kept.index,
        advantages=selected,
        active=kept.active,
        num_tokens=kept.num_tokens,
        num_sequences=kept.num_sequences,
        num_rows=kept.num_rows,
        num_active=kept.num_active,
        num_padding=kept.num_rows - kept.num_active,
        num_dropped=kept.num_dropped,
    )


def refuse_other_terms(**coefficients: float) -> None:
    """ValueError unless all coefficients are 0."""
    for name, value in coefficients.items():
        if value != 0:
            raise ValueError(
                f"{name}: expected 0 (inactive responses have a gradient of this term), found {value}"
            )


def refuse_verl_config(config: Any) -> None:
    """ValueError where verl's actor configuration makes dropping change the gradient."""
    if _option(config, "use_kl_loss", False):
        refuse_other_terms(kl_loss_coef=_option(config, "kl_loss_coef", 0.0))
    refuse_other_terms(entropy_coeff=_option(config, "entropy_coeff", 0.0))
    loss_mode = _option(_option(config, "policy_loss", {}), "loss_mode", "vanilla")
    if loss_mode not in _VERL_LOSS_MODES:
        raise ValueError(
            f"policy_loss.loss_mode: expected one of {', '.join(sorted(_VERL_LOSS_MODES))} "
            f"(others mix responses or have terms besides the advantage), found {loss_mode}"
        )
    if _option(config, "use_prefix_grouper", False):
        raise ValueError("use_prefix_grouper: expected False (it needs whole groups), found True")


def _option(config: Any, name: str, default: Any) -> Any:
    get = getattr(config, "get", None)
    value = get(name, default) if callable(get) else getattr(config, name, default)
    return default if value is None else value


def _instance_of(value: Any, module: str, name: str) -> bool:
    """isinstance for a class of a package that only the caller may have imported."""
    loaded = sys.modules.get(module)
    return loaded is not None and isinstance(value, getattr(loaded, name))


def _entries(batch: Any) -> Any:
    if _instance_of(batch, "verl.protocol", "DataProto"):
        batch = batch.batch
    if isinstance(batch, Mapping) or _instance_of(batch, "tensordict", "TensorDictBase"):
        return batch
    raise TypeError(f"batch: expected a mapping, TensorDict or DataProto, found {type(batch)}")


def _mask_key(entries: Any) -> str:
    for key in _MASK_KEYS:
        if key in entries:
            return key
    raise ValueError(f"mask: expected a tensor or one of {', '.join(_MASK_KEYS)} in the batch")


def _tensor(name: str, entries: Any, value: str | Tensor) -> Tensor:
    if isinstance(value, str):
        if value not in entries:
            raise ValueError(f"{name}: expected the key {value!r} in the batch, found none")
        value = entries[value]
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor, found {type(value)}")
    return value


def _select_batch(batch: Any, kept: Kept, shared: frozenset[str]) -> Any:
    if _instance_of(batch, "verl.protocol", "DataProto"):
        host = kept.index.cpu().numpy()
        return type(batch)(
            batch=_select_tensordict(batch.batch, kept.index),
            non_tensor_batch={key: value[host] for key, value in batch.non_tensor_batch.items()},
            meta_info=dict(batch.meta_info),
        )
    if _instance_of(batch, "tensordict", "TensorDictBase"):
        return _select_tensordict(batch, kept.index)
    size = kept.num_dropped + kept.num_rows - kept.num_copies
    return _select_mapping(batch, size, _Index(kept.index), shared, "batch")


def _select_tensordict(batch: Any, index: Tensor) -> Any:
    # verl's own selection of a mini-batch, as it knows its jagged tensors and metadata.
    verl_utils = sys.modules.get("verl.utils.tensordict_utils")
    index = index if batch.device is None else index.to(batch.device)
    return batch[index] if verl_utils is None else verl_utils.index_select_tensor_dict(batch, index)


class _Index:
    """Rows to select, on every device that asks for them."""

    def __init__(self, index: Tensor) -> None:
        self._of_device = {index.device: index}
        self._index = index
        self._host: list[int] | None = None

    def on(self, device: torch.device) -> Tensor:
        if device not in self._of_device:
            self._of_device[device] = self._index.to(device)
        return self._of_device[device]

    @property
    def host(self) -> list[int]:
        if self._host is None:
            self._host = self._index.tolist()
        return self._host


def _select_mapping(
    batch: Mapping[str, Any], size: int, index: _Index, shared: frozenset[str], path: str
) -> dict[str, Any]:
    selected: dict[str, Any] = {}
    for key, value in batch.items():
        name = f"{path}[{key!r}]"
        if isinstance(value, Mapping) and key not in shared:
            selected[key] = _select_mapping(value, size, index, shared, name)
            continue
        select = None if key in shared else _selection(value, index)
        if select is not None:
            length = value.shape[0] if hasattr(value, "shape") else len(value)
            if length != size:
                raise ValueError(
                    f"{name}: expected {size} rows (or its key in `shared`), found {length}"
                )
        selected[key] = value if select is None else select()
    return selected


def _selection(value: Any, index: _Index) -> Callable[[], Any] | None:
    """How to take rows of a value; None if it has none."""
    if isinstance(value, Tensor):
        return (lambda: select_rows(value, index.on(value.device))) if value.dim() else None
    if _instance_of(value, "numpy", "ndarray"):
        return (lambda: value[index.host]) if value.ndim else None
    if isinstance(value, (list, tuple)):
        return lambda: [value[row] for row in index.host]
    return None


def _describe_to_verl(batch: Any, smaller: Any, kept: Kept) -> None:
    """Writes what loops of verl's kind read from ``meta_info``."""
    if not _instance_of(batch, "verl.protocol", "DataProto"):
        return
    meta = smaller.meta_info
    meta["batch_num_tokens"] = kept.num_tokens
    # verl divides by the rows of a mini-batch, those without valid tokens too.
    meta.setdefault("global_batch_size", kept.rows_in)
    lengths = meta.get("global_token_num")
    if isinstance(lengths, list) and len(lengths) == len(batch):
        meta["global_token_num"] = [lengths[row] for row in kept.index.tolist()]
