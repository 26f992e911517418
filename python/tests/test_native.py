"""The native module alone: arguments by name, memory, threads and processes."""

from __future__ import annotations

import contextlib
import os
import struct
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from qae import _qae

ROWS, WIDTH = 4, 6
COUNTED = '{"normalizer": {"batch_num_tokens": 20}}'
HAS_EMULATOR = "emulator" in _qae.features()


def loss_inputs(dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(5)
    log_prob = -torch.rand(ROWS, WIDTH, generator=generator).to(dtype)
    old = log_prob + 0.2 * torch.randn(ROWS, WIDTH, generator=generator).to(dtype)
    return {
        "log_prob": log_prob,
        "old_log_prob": old,
        "advantages": torch.tensor([1.0, 0.0, -2.0, 0.5]),
    }


def loss_outputs(dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    return {
        "words": torch.full((_qae.LOSS_WORDS,), -1),
        "d_log_prob": torch.full((ROWS, WIDTH), torch.nan, dtype=dtype),
    }


def rewards_inputs() -> dict[str, Any]:
    return {
        "rewards": torch.tensor([0.0, 1.0, 0.0, 0.0]),
        "num_responses": 4,
        "num_groups": 1,
        "group_size": 4,
        "max_group_size": 4,
    }


def metrics(outputs: dict[str, Any]) -> dict[str, float]:
    return _qae.read_loss_metrics(outputs["words"].numpy().tobytes(), False, "all")


def clipped_loss(inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """In float64 by torch: token mean over 20 tokens, clip 0.2 / 0.28, dual clip 3."""
    log_prob = inputs["log_prob"].double().requires_grad_()
    advantage = inputs["advantages"].double()[:, None]
    ratio = (log_prob - inputs["old_log_prob"].double()).exp()
    token = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(0.8, 1.28))
    token = torch.where(advantage < 0, torch.minimum(token, -3 * advantage), token)
    loss = token.sum() / 20
    (gradient,) = torch.autograd.grad(loss, log_prob)
    return loss.detach(), gradient


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_loss_is_that_of_torch(dtype: torch.dtype) -> None:
    inputs, outputs = loss_inputs(dtype), loss_outputs(dtype)
    outputs["loss"] = torch.empty((), dtype=torch.float64)
    _qae.loss_from_log_probs(inputs, COUNTED, outputs)
    loss, gradient = clipped_loss(inputs)
    epsilon = 4 * torch.finfo(torch.float64).eps
    assert abs(outputs["loss"].item() - loss.item()) <= epsilon * abs(loss.item())
    # Computed in float64 and rounded once to the gradient's dtype.
    torch.testing.assert_close(
        outputs["d_log_prob"].double(),
        gradient,
        rtol=torch.finfo(dtype).eps / 2 + epsilon,
        atol=torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps,
    )
    assert metrics(outputs)["loss"] == outputs["loss"].item()


def test_rows_may_lie_apart() -> None:
    packed, apart = loss_inputs(), loss_inputs()
    for name in ("log_prob", "old_log_prob"):
        apart[name] = torch.cat([apart[name], torch.full((ROWS, 3), torch.nan)], 1)[:, :WIDTH]
    wide = torch.full((ROWS, WIDTH + 5), 7.0)
    expected, outputs = (loss_outputs(), {**loss_outputs(), "d_log_prob": wide[:, 2 : 2 + WIDTH]})
    _qae.loss_from_log_probs(packed, COUNTED, expected)
    _qae.loss_from_log_probs(apart, COUNTED, outputs)
    assert torch.equal(outputs["d_log_prob"], expected["d_log_prob"])
    assert torch.equal(outputs["words"], expected["words"])
    assert (wide[:, :2] == 7).all() and (wide[:, 2 + WIDTH :] == 7).all()


def test_inputs_are_only_read() -> None:
    inputs = {**loss_inputs(), "mask": torch.ones(ROWS, WIDTH, dtype=torch.bool)}
    before = {name: tensor.clone() for name, tensor in inputs.items()}
    _qae.loss_from_log_probs(inputs, COUNTED, loss_outputs())
    assert all(torch.equal(inputs[name], before[name]) for name in inputs)


def test_a_normalizer_that_is_not_positive_makes_everything_zero() -> None:
    for value in (0.0, -1.0, torch.nan):
        inputs = {**loss_inputs(), "normalizer": torch.tensor([value], dtype=torch.float64)}
        outputs = loss_outputs()
        _qae.loss_from_log_probs(inputs, "{}", outputs)
        assert metrics(outputs)["loss"] == 0 and metrics(outputs)["tokens"] == ROWS * WIDTH
        assert (outputs["d_log_prob"] == 0).all()


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)])
def test_empty_batches(shape: tuple[int, int]) -> None:
    inputs = {
        "log_prob": torch.empty(shape),
        "old_log_prob": torch.empty(shape),
        "advantages": torch.ones(shape[0]),
    }
    outputs = {
        "words": torch.full((_qae.LOSS_WORDS,), -1),
        "d_log_prob": torch.empty(shape),
        "active_count": torch.full((1,), -1, dtype=torch.int32),
    }
    _qae.loss_from_log_probs(inputs, "{}", outputs)
    found = metrics(outputs)
    assert (found["loss"], found["tokens"], outputs["active_count"].item()) == (0, 0, 0)


class Malformed:
    """Says of itself what torch never would."""

    def __init__(self, tensor: Tensor, **wrong: Any) -> None:
        self._tensor, self._wrong = tensor, wrong

    def __getattr__(self, name: str) -> Any:
        if name in self._wrong:
            return self._wrong[name]
        return getattr(self._tensor, name)


VALUES = torch.zeros(ROWS, WIDTH)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"log_prob": None}, ValueError, "log_prob: expected the log-probs of the policy, found"),
        ({"log_prob": [1.0]}, TypeError, "log_prob: expected a torch.Tensor, found list"),
        ({"log_prob": VALUES.long()}, TypeError, "log_prob: expected dtype torch.float32 or"),
        ({"log_prob": VALUES.to(torch.complex64)}, TypeError, "log_prob: expected a dtype among"),
        ({"log_prob": VALUES.to("meta")}, ValueError, "log_prob: expected a tensor on cpu or"),
        ({"log_prob": VALUES.t()}, ValueError, "log_prob: expected stride 1 in the last dim"),
        ({"log_prob": VALUES[0]}, ValueError, r"log_prob: expected shape \[rows, width\], or"),
        ({"log_prob": torch.zeros(1, WIDTH).expand(ROWS, -1)}, ValueError, "stride"),
        ({"old_log_prob": VALUES.double()}, TypeError, "old_log_prob: expected dtype .* as log_"),
        ({"old_log_prob": VALUES[:2]}, ValueError, r"old_log_prob: expected shape \[4, 6\]"),
        ({"old_log_prob": torch.zeros(ROWS, 9)[:, :WIDTH]}, ValueError, "row stride 6 as the oth"),
        ({"old_log_prob": None}, ValueError, "old_log_prob: expected the log-probs of the policy"),
        ({"mask": VALUES}, TypeError, "mask: expected dtype torch.bool or torch.uint8"),
        ({"mask": torch.ones(ROWS, 5, dtype=torch.bool)}, ValueError, "mask: expected shape"),
        ({"lengths": torch.zeros(ROWS)}, TypeError, "lengths: expected dtype torch.int32, found"),
        ({"lengths": torch.full((ROWS,), 7, dtype=torch.int32)}, ValueError, r"lengths\[0\]: "),
        ({"offsets": torch.zeros(3, dtype=torch.int64)}, ValueError, r"shape \[slots\] beside o"),
        ({"advantages": None}, ValueError, "rewards: expected rewards or advantages, found not"),
        ({"advantages": torch.ones(3)}, ValueError, r"advantages: expected shape \[4\], found"),
        ({"token_advantages": VALUES}, ValueError, "token_advantages: expected none beside adva"),
        (rewards_inputs(), ValueError, "rewards: expected none beside advantages"),
        ({"response_index": torch.zeros(4, dtype=torch.int32)}, ValueError, "response_index: expe"),
        ({"num_groups": -1}, ValueError, "num_groups: expected an int, at least 0, found -1"),
        ({"num_groups": "1"}, TypeError, "num_groups: expected an int, found str"),
        ({"normalizer": torch.ones(1)}, TypeError, "normalizer: expected dtype torch.float64"),
        ({"logprob": VALUES}, TypeError, "inputs: expected keys among log_prob, .*, found logprob"),
        ({"log_prob": torch._neg_view(VALUES)}, ValueError, "log_prob: .*resolve_neg"),
        ({"log_prob": Malformed(VALUES, data_ptr=lambda: 0)}, ValueError, "fake or a wrapped"),
        ({"log_prob": Malformed(VALUES, data_ptr=lambda: 5)}, ValueError, "not aligned to its"),
        ({"log_prob": Malformed(VALUES, device=torch.device("cuda:1"))}, Exception, "cuda"),
    ],
)
def test_inputs_are_refused_by_name(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    outputs = loss_outputs()
    with pytest.raises(error, match=message) as raised:
        _qae.loss_from_log_probs({**loss_inputs(), **change}, COUNTED, outputs)
    assert "\n" not in str(raised.value)
    assert (outputs["words"] == -1).all() and outputs["d_log_prob"].isnan().all()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"words": None}, ValueError, "words: expected the metrics, found nothing"),
        ({"words": torch.zeros(3, dtype=torch.int64)}, ValueError, "words: expected shape"),
        ({"d_log_prob": None}, ValueError, "d_log_prob: expected the gradient, found nothing"),
        ({"d_log_prob": torch.zeros(ROWS, 5)}, ValueError, "d_log_prob: expected shape"),
        ({"d_log_prob": VALUES.half()}, TypeError, "d_log_prob: expected dtype torch.float32"),
        ({"baseline": torch.zeros(ROWS)}, ValueError, "baseline: expected none, as there are no"),
        ({"active_rows": torch.zeros(2, dtype=torch.int32)}, ValueError, "active_rows: expected"),
        ({"loss": torch.zeros(2)}, ValueError, "loss: expected one element, found shape"),
        ({"d_logits": VALUES}, TypeError, "outputs: expected keys among words|d_logits"),
    ],
)
def test_outputs_are_refused_by_name(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        _qae.loss_from_log_probs(loss_inputs(), COUNTED, {**loss_outputs(), **change})


def test_outputs_share_no_memory() -> None:
    inputs, outputs = loss_inputs(), loss_outputs()
    taken = {**outputs, "d_log_prob": inputs["old_log_prob"]}
    with pytest.raises(ValueError, match="d_log_prob: expected memory apart from old_log_prob"):
        _qae.loss_from_log_probs(inputs, COUNTED, taken)
    words = outputs["words"]
    taken = {**outputs, "loss": words[:1].view(torch.float64)}
    with pytest.raises(ValueError, match="loss: expected memory apart from words"):
        _qae.loss_from_log_probs(inputs, COUNTED, taken)


@pytest.mark.parametrize("vocab_start", [None, 0])
def test_rows_of_a_gradient_do_not_overlap(vocab_start: int | None) -> None:
    inputs = {
        "logits": torch.zeros(2, 3, 4),
        "token_ids": torch.zeros(2, 3, dtype=torch.int64),
        "vocab_start": vocab_start,
        "stats": torch.zeros(2, 3, 4),
        "d_log_prob": torch.ones(2, 3),
    }
    for d_logits in (torch.zeros(1, 4).expand(2, 3, 4), torch.zeros(3, 2, 4).transpose(0, 1)):
        with pytest.raises(ValueError, match="d_logits: expected rows that do not overlap"):
            _qae.log_probs_from_logits_backward(inputs, {"d_logits": d_logits})


def test_a_gradient_is_scaled_with_strides_in_place_and_not() -> None:
    gradient = torch.randn(3, 5, 7)[:, :4, :6]
    given = torch.tensor([[1.0, 0.0, 2.0, 0.0]]).repeat(3, 1)
    inputs = {"gradient": gradient, "factor": torch.tensor(0.5), "row_gradient": given}
    expected = gradient * 0.5 * (given != 0)[..., None]
    scaled = torch.full((3, 4, 9), torch.nan)[..., :6]
    _qae.scale_gradient(inputs, {"scaled": scaled})
    assert torch.equal(scaled, expected)
    untouched = gradient[given == 0].clone()
    _qae.scale_gradient(inputs, {"scaled": gradient})
    assert torch.equal(gradient[given != 0], expected[given != 0])
    assert torch.equal(gradient[given == 0], untouched)
    narrow = torch.empty(20, 1, dtype=torch.float16)
    wide = {"gradient": torch.full((20, 1), 2e-8), "factor": torch.tensor([1024.0]).double()}
    _qae.scale_gradient(wide, {"scaled": narrow})
    assert torch.equal(narrow, (wide["gradient"] * 1024).half())


def test_a_scaled_gradient_is_refused_by_name() -> None:
    gradient, factor = torch.ones(4, 6), torch.tensor(2.0)
    plain = {"gradient": gradient, "factor": factor}
    apart = torch.full((4, 6), torch.nan)
    for inputs, scaled, message in [
        (plain | {"factor": None}, apart, "factor: expected"),
        (plain | {"factor": torch.ones(2)}, apart, "factor: expected one element, found"),
        (plain | {"row_gradient": torch.ones(5)}, apart, r"row_gradient: expected shape \[4\]"),
        (plain, apart[:3], r"scaled: expected shape \[4, 6\]"),
        (plain, apart.bfloat16(), "scaled: expected dtype torch.float32 as gradient"),
        (plain, gradient.t().contiguous().t(), "scaled: expected stride 1"),
        (
            plain | {"gradient": apart.view(-1)[:16].view(4, 4)},
            apart.view(-1)[2:18].view(4, 4),
            "scaled: expected memory apart from gradient",
        ),
    ]:
        with pytest.raises((ValueError, TypeError), match=message):
            _qae.scale_gradient(inputs, {"scaled": scaled})
    assert apart.isnan().all()


def test_a_tensor_may_be_given_twice() -> None:
    inputs, outputs = loss_inputs(), loss_outputs()
    inputs["old_log_prob"] = inputs["log_prob"]
    _qae.loss_from_log_probs(inputs, COUNTED, outputs)
    assert metrics(outputs)["max_ratio"] == 1


def test_groups_must_be_what_their_counts_say() -> None:
    outputs = loss_outputs()
    inputs = {**loss_inputs(), **rewards_inputs()}
    del inputs["advantages"]
    _qae.loss_from_log_probs(inputs, COUNTED, outputs)
    assert metrics(outputs)["active"] == 1
    for name, value in [("group_size", 3), ("num_groups", 2), ("max_group_size", 3)]:
        with pytest.raises(ValueError, match=name):
            _qae.loss_from_log_probs({**inputs, name: value}, COUNTED, outputs)
    del inputs["num_groups"]
    with pytest.raises(ValueError, match="num_groups: expected an int, with rewards, found noth"):
        _qae.loss_from_log_probs(inputs, COUNTED, outputs)


def test_a_panic_is_an_exception() -> None:
    malformed = Malformed(torch.zeros(ROWS, WIDTH), stride=lambda: (WIDTH,))
    with pytest.raises(RuntimeError, match="qae: expected no panic, found "):
        _qae.loss_from_log_probs({**loss_inputs(), "log_prob": malformed}, "{}", loss_outputs())
    _qae.loss_from_log_probs(loss_inputs(), "{}", loss_outputs())


def test_group_index() -> None:
    offsets, order, group_of_response = _qae.group_index(torch.tensor([5, -1, 5, 3, -1]))
    assert order is not None
    values = [struct.unpack(f"{len(b) // 4}i", b) for b in (offsets, order, group_of_response)]
    assert values == [(0, 2, 3, 5), (1, 4, 3, 0, 2), (2, 0, 2, 1, 0)]
    assert _qae.group_index(torch.tensor([1, 1, 2]))[1] is None
    assert _qae.group_index(torch.tensor([], dtype=torch.int64))[0] == struct.pack("i", 0)
    with pytest.raises(TypeError, match="ids: expected dtype torch.int64"):
        _qae.group_index(torch.tensor([1.0]))
    with pytest.raises(ValueError, match="ids: expected a contiguous tensor"):
        _qae.group_index(torch.arange(6)[::2])


def test_words_are_read_whole() -> None:
    with pytest.raises(ValueError, match=f"words: expected {8 * _qae.LOSS_WORDS} bytes, found 8"):
        _qae.read_loss_metrics(bytes(8), False, "all")
    with pytest.raises(ValueError, match="scope: expected all or active, found some"):
        _qae.read_loss_metrics(bytes(8 * _qae.LOSS_WORDS), False, "some")
    with pytest.raises(ValueError, match="words: expected"):
        _qae.read_group_metrics(bytes(8))


def test_non_finite_values_are_counted_and_checked() -> None:
    inputs, outputs = loss_inputs(), loss_outputs()
    inputs["log_prob"][0, 1] = torch.nan
    _qae.loss_from_log_probs(inputs, COUNTED, outputs)
    assert metrics(outputs)["nonfinite_tokens"] == 1
    words = outputs["words"].numpy().tobytes()
    with pytest.raises(ValueError, match="log-ratios: expected finite values in range, found 1"):
        _qae.check_loss_metrics(words, False, "all")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_child_process_has_threads_of_its_own() -> None:
    inputs, expected = loss_inputs(), loss_outputs()
    _qae.loss_from_log_probs(inputs, COUNTED, expected)
    for _ in range(3):
        child = os.fork()
        if child == 0:
            outputs = loss_outputs()
            _qae.loss_from_log_probs(inputs, COUNTED, outputs)
            os._exit(0 if torch.equal(outputs["words"], expected["words"]) else 1)
        assert os.waitpid(child, 0)[1] == 0


def test_threads_of_python_run_at_once() -> None:
    inputs, expected = loss_inputs(), loss_outputs()
    _qae.loss_from_log_probs(inputs, COUNTED, expected)
    results: list[bool] = []

    def work() -> None:
        for _ in range(50):
            outputs = loss_outputs()
            _qae.loss_from_log_probs(inputs, COUNTED, outputs)
            results.append(torch.equal(outputs["words"], expected["words"]))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 200


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="no list of threads")
def test_as_many_threads_as_torch_uses() -> None:
    before = torch.get_num_threads()
    found = []
    try:
        for count in (1, 3, before):
            torch.set_num_threads(count)
            outputs = loss_outputs()
            _qae.loss_from_log_probs(loss_inputs(), COUNTED, outputs)
            found.append(outputs["words"])
        # A thread names itself once it runs, which may be after the call.
        deadline = time.monotonic() + 60
        while "qae-2" not in thread_names() and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(words, found[0]) for words in found)
    assert "qae-2" in thread_names()


def thread_names() -> list[str]:
    tasks = Path("/proc/self/task")
    names = []
    for task in tasks.iterdir():
        with contextlib.suppress(OSError):  # it ended meanwhile
            names.append(task.joinpath("comm").read_text().strip())
    return names


@pytest.mark.skipif(HAS_EMULATOR, reason="the build has the emulator")
def test_emulation_needs_a_build_with_it() -> None:
    _qae.set_emulation(None)
    with pytest.raises(RuntimeError, match="set_emulation: expected a build with the feature"):
        _qae.set_emulation({})


@pytest.mark.skipif(not HAS_EMULATOR, reason="a build without the emulator")
def test_emulated_kernels_refuse_what_a_gpu_would() -> None:
    for options, error in [({"row_policy": "x"}, ValueError), ({"sm80": 1.5}, TypeError)]:
        with pytest.raises(error):
            _qae.set_emulation(options)
    _qae.set_emulation({})
    try:
        with pytest.raises(TypeError, match="log_prob: expected dtype torch.float32 or torch.bfl"):
            _qae.loss_from_log_probs(loss_inputs(torch.float64), COUNTED, loss_outputs())
        with pytest.raises(ValueError, match="loss: expected none where kernels run"):
            outputs = {**loss_outputs(), "loss": torch.zeros(())}
            _qae.loss_from_log_probs(loss_inputs(), COUNTED, outputs)
        with pytest.raises(ValueError, match="normalizer: expected a number, or a scalar"):
            _qae.loss_from_log_probs(loss_inputs(), "{}", loss_outputs())
        outputs = loss_outputs()
        _qae.loss_from_log_probs(loss_inputs(), COUNTED, outputs)
    finally:
        _qae.set_emulation(None)
    expected = loss_outputs()
    _qae.loss_from_log_probs(loss_inputs(), COUNTED, expected)
    torch.testing.assert_close(outputs["d_log_prob"], expected["d_log_prob"])


@pytest.mark.skipif("cuda" not in _qae.features(), reason="a build without the kernels")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_a_launch_says_so() -> None:
    device = torch.device("cuda:0")
    inputs = {k: Malformed(v, device=device) for k, v in loss_inputs().items()}
    outputs = {k: Malformed(v, device=device) for k, v in loss_outputs().items()}
    size = _qae.loss_from_log_probs_workspace(inputs, COUNTED, outputs)
    with pytest.raises(ValueError, match=f"workspace: expected {size} bytes, 256-byte aligned"):
        _qae.loss_from_log_probs(inputs, COUNTED, outputs)
    room = torch.zeros(size + 256, dtype=torch.uint8)
    workspace = room[-room.data_ptr() % 256 :][:size]
    outputs["workspace"] = Malformed(workspace, device=device)
    with pytest.raises(RuntimeError, match=r"loss_from_log_probs: CUDA error \d+ \(cudaError"):
        _qae.loss_from_log_probs(inputs, COUNTED, outputs)
