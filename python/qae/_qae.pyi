"""The native module: operations on tensors that Python has allocated.

Every operation takes two dicts, of inputs and of outputs, with exactly the keys that its docstring
names; a key that is absent is the same as ``None``, an unknown key is a ``TypeError``. All tensors
of a call are on one device, which chooses what runs: on CUDA the kernels, enqueued on ``stream`` (a
``cudaStream_t`` as a number) of the device that is current; on the CPU the Rust implementation, on
``torch.get_num_threads()`` threads and without the GIL; on the CPU under :func:`set_emulation` the
CUDA kernels themselves.

Layouts. A *slot* is a place for a token. Padded: token tensors are ``[rows, width]``, their last
dimension contiguous, their rows any distance apart, which is the same for all of them but the mask
and the outputs. Packed: token tensors are ``[slots]``, contiguous, and ``offsets`` says where rows
start.

Errors: ``ValueError`` (a value, shape, stride or configuration), ``TypeError`` (a dtype, an unknown
key, no tensor), ``RuntimeError`` (a device without kernels, a failed launch). Each is one line,
``name: expected X, found Y``. Nothing is written then.
"""

from collections.abc import Mapping
from typing import Literal, TypeAlias, final

from torch import Tensor

_Arguments: TypeAlias = Mapping[str, Tensor | int | float | None]

LOSS_WORDS: int
"""8-byte words of ``qae_loss_metrics``."""
LOGITS_WORDS: int
"""8-byte words of ``qae_logits_metrics``."""
GROUP_WORDS: int
"""8-byte words of ``qae_group_metrics``."""

def version() -> str: ...
def features() -> list[str]:
    """What was built in: any of ``cuda``, ``emulator``."""

def cuda_architectures() -> str | None:
    """Compute capabilities of the kernels, such as ``80 90a 100 120``; ``None`` without them."""

def resolve_config(json: str) -> str:
    """The configuration with every default spelled out, or ``ValueError``."""

def group_index(ids: Tensor) -> tuple[bytes, bytes | None, bytes]:
    """The index tensors of a partition: i32 offsets, order (``None``: responses stand in order) and
    group of each response, as bytes. ``ids``: int64 ``[num_responses]`` on the CPU; groups are
    numbered by ascending id."""

def read_loss_metrics(words: bytes, from_logits: bool, scope: str) -> dict[str, int | float]:
    """Metrics by name. ``words``: ``LOSS_WORDS`` or, from logits, ``LOGITS_WORDS`` words;
    ``scope``: ``all`` or ``active``, as configured."""

def check_loss_metrics(words: bytes, from_logits: bool, scope: str) -> None:
    """``ValueError`` where values were left out or the loss is not finite."""

def read_group_metrics(words: bytes) -> dict[str, int]: ...

@final
class AutoK:
    """``qae::AutoK``. ``target_entropy`` is the target where there is one, else ``target_share``."""

    def __init__(
        self,
        initial_k: float,
        gain: float,
        min_k: float,
        max_k: float,
        target_share: float,
        target_entropy: float | None,
    ) -> None: ...
    @staticmethod
    def from_json(json: str) -> AutoK:
        """``ValueError`` for a state that no controller can have."""

    def to_json(self) -> str: ...
    def step(
        self, entropy: float
    ) -> tuple[int, float, float, float, float, float, Literal["min", "max"] | None, str]:
        """The fields of ``qae.AutoKStep`` and its line; ``ValueError`` changes nothing."""

    @property
    def k(self) -> float: ...
    @property
    def target_entropy(self) -> float | None: ...
    @property
    def steps(self) -> int: ...

@final
class KSchedule:
    """``qae::KSchedule``, checked."""

    @staticmethod
    def from_json(json: str) -> KSchedule: ...
    def to_json(self) -> str: ...
    def k(self, step: int) -> float: ...

# The groups of the global batch, in every operation that takes rewards:
#   rewards            f32 [num_responses]
#   num_responses, num_groups, group_size (0: ragged), max_group_size   ints
#   group_offsets      i32 [num_groups + 1]    None if uniform
#   group_order        i32 [num_responses]     None if responses stand in the order of groups
#   group_of_response  i32 [num_responses]     None if uniform

def advantages(inputs: _Arguments, config: str, outputs: _Arguments, stream: int = 0) -> None:
    """Rewards to advantages.

    inputs: the groups (above).
    outputs: advantage f32 [num_responses]; words i64 [GROUP_WORDS]; optional: baseline f32
    [num_responses], active i32 [num_responses] (ascending), active_count i32 [1]; on CUDA:
    workspace u8, zeroed.
    """

def advantages_workspace(inputs: _Arguments, config: str, outputs: _Arguments) -> int:
    """Bytes of the workspace; 0 where none is needed. Arguments as for the operation, without the
    workspace. Likewise the functions of this name below."""

def loss_from_log_probs(
    inputs: _Arguments, config: str, outputs: _Arguments, stream: int = 0
) -> None:
    """Log-probs to loss, gradient and metrics.

    inputs:
      log_prob                 f32, bf16, f16, on the CPU f64; [rows, width] or [slots]
      old_log_prob, ref_log_prob   the same dtype, shape and row stride
      mask                     bool or u8, shaped as log_prob, row stride of its own; None: all count
      lengths                  i32 [rows], padded only; None: width
      offsets                  i64 [rows + 1]: packed
      importance_weight        f32 [rows]; or token_importance_weight f32 as log_prob
      advantages               f32 [rows]; or token_advantages f32 as log_prob; or the groups
      response_index           i32 [rows], with rewards: the response of each row; None: row i is i
      normalizer               f64 [1], in place of the configuration's; one that is not above 0
                               makes loss and gradient 0
    outputs:
      words                    i64 [LOSS_WORDS]
      d_log_prob               f32 or the dtype of log_prob; shaped as log_prob, row stride of its own
      loss                     f32 or f64, one element; optional, CPU only
      baseline, advantage      f32 [num_responses]; optional, with rewards only
      active_rows              i32 [rows]; optional
      active_count             i32 [1]; optional
      workspace                u8, zeroed; CUDA only

    Without a normalizer of either kind the CPU counts tokens or rows itself; CUDA refuses
    (see :func:`token_counts`).
    """

def loss_from_log_probs_workspace(inputs: _Arguments, config: str, outputs: _Arguments) -> int: ...
def token_counts(inputs: _Arguments, outputs: _Arguments, stream: int = 0) -> None:
    """Tokens and non-empty rows of a batch, for a normalizer.

    inputs: rows and width (ints) with optional lengths, or slots (int) with offsets; optional mask.
    outputs: num_tokens f64 [1]; num_rows f64 [1]; on CUDA: workspace u8, zeroed.
    """

def token_counts_workspace(inputs: _Arguments, outputs: _Arguments) -> int: ...
def loss_from_logits(inputs: _Arguments, config: str, outputs: _Arguments, stream: int = 0) -> None:
    """Logits to loss, gradient and metrics.

    inputs: those of :func:`loss_from_log_probs` without log_prob, and
      logits                   f32, bf16, f16, on the CPU f64; [rows, width, vocab] or [slots, vocab],
                               last dimension contiguous
      token_ids                i32 or i64; [rows, width] or [slots]: the row stride of token tensors
      slot_response            i32 [slots]: slots in any order, of this local response each, below 0:
                               none; then rows are num_local_responses (int), without offsets and
                               lengths
    outputs: those of :func:`loss_from_log_probs` with LOGITS_WORDS words and d_log_prob optional, and
      d_logits                 dtype and shape of logits, strides of its own; the logits' own memory:
                               in place (on the CPU by way of a copy); [room, vocab] if compact;
                               optional (but to kernels with slot_response)
      log_prob, entropy        f32, on the CPU f64 too; shaped and strided as d_log_prob; optional
      active_slots             i64 [slots], compact only; optional
      active_slot_count        i64 [1], compact only; optional
    """

def loss_from_logits_workspace(inputs: _Arguments, config: str, outputs: _Arguments) -> int: ...
def log_probs_from_logits(inputs: _Arguments, outputs: _Arguments, stream: int = 0) -> None:
    """Log-prob of each token, entropy and log-sum-exp, or the statistics of a shard.

    inputs:
      logits                   as for loss_from_logits: [rows, width, vocab] or [slots, vocab]
      token_ids                i32 or i64, [rows, width] or [slots], contiguous
      mask                     bool or u8, as token_ids, contiguous; optional
      vocab_start              int: logits are a shard from this token id on; None: all columns
      temperature              float, default 1
    outputs, each f32 (on the CPU f64 too), contiguous, optional: log_prob, entropy, log_sum_exp
    [as token_ids], not of a shard; stats [as token_ids, 4].
    """

def log_probs_from_logits_backward(
    inputs: _Arguments, outputs: _Arguments, stream: int = 0
) -> None:
    """Gradient with respect to the logits.

    inputs: those of the forward pass, stats of the whole vocabulary (needed on CUDA and for a
    shard), d_log_prob and optional d_entropy: f32 (on the CPU f64 too), as token_ids, contiguous.
    outputs: d_logits, dtype and shape of the logits; their own memory: in place.
    """

def merge_softmax_stats(inputs: _Arguments, outputs: _Arguments, stream: int = 0) -> None:
    """Statistics of all shards to those of the whole vocabulary and what follows from them.

    inputs: shards f32 (on the CPU f64 too) [shards, ..., 4], contiguous; optional mask [...];
    temperature.
    outputs: as for the forward pass.
    """

def scale_gradient(inputs: _Arguments, outputs: _Arguments, stream: int = 0) -> None:
    """A gradient times a factor, multiplied in f32 (of f64 in f64) and rounded once.

    inputs:
      gradient                 f32, bf16, f16, on the CPU f64; [rows, width, columns] or
                               [slots, columns], last dimension contiguous
      factor                   f32 or f64, one element
      row_gradient             f32, as the gradient without its last dimension, contiguous; 0: the row
                               is 0 and stays so, whatever the factor; optional
    outputs: scaled, dtype (or f16 of f32) and shape of the gradient, strides of its own; the
    gradient's own memory: in place. A single column that is 0 stays 0 too.
    """

def set_emulation(options: Mapping[str, str | bool] | None) -> None:
    """Feature ``emulator``: whether CPU tensors go through the emulated kernels from now on, in all
    threads. ``row_policy``: ``auto`` (default), ``cluster`` or ``block``; ``sm80``: a device of
    compute capability 8.0 rather than 9.0. ``None``: off."""
