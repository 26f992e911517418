"""Every argument that cannot be used is refused in one line that names it."""

from __future__ import annotations

import pickle
import re
from dataclasses import replace
from typing import Any

import pytest
import torch

import qae
from qae.testing import emulated_kernels

ROWS, WIDTH, VOCAB = 4, 3, 5


def tokens() -> dict[str, Any]:
    return {
        "log_prob": torch.full((ROWS, WIDTH), -1.0),
        "old_log_prob": torch.full((ROWS, WIDTH), -1.1),
        "rewards": torch.tensor([1.0, 0.0, 0.0, 0.0]),
        "groups": 4,
        "normalizer": 12,
    }


def packed() -> dict[str, Any]:
    return tokens() | {
        "log_prob": torch.full((8,), -1.0),
        "old_log_prob": torch.full((8,), -1.1),
        "offsets": torch.tensor([0, 2, 4, 6, 8]),
    }


def logits() -> dict[str, Any]:
    given = tokens()
    del given["log_prob"]
    return given | {
        "logits": torch.zeros(ROWS, WIDTH, VOCAB),
        "token_ids": torch.zeros(ROWS, WIDTH, dtype=torch.int64),
    }


def given_advantages(**others: Any) -> dict[str, Any]:
    return {"rewards": None, "groups": None, **others}


META = torch.zeros(ROWS, WIDTH, device="meta")
NESTED = torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)], layout=torch.jagged)
TABLE: list[tuple[dict[str, Any], type[Exception], str]] = [
    # The policy's log-probs
    ({"log_prob": [[0.0]]}, TypeError, "log_prob: expected a tensor, found list"),
    ({"log_prob": torch.zeros(4)}, ValueError, "log_prob: expected shape [rows, width]"),
    ({"log_prob": torch.zeros(4, 3, 2)}, ValueError, "log_prob: expected shape [rows, width]"),
    ({"log_prob": torch.zeros(4, 3).long()}, TypeError, "log_prob: expected float32, bfloat16"),
    ({"log_prob": torch.zeros(4, 3) * 1j}, TypeError, "log_prob: expected float32, bfloat16"),
    ({"log_prob": torch.zeros(4, 3).to_sparse()}, TypeError, "log_prob: expected a dense tensor"),
    ({"log_prob": NESTED}, TypeError, "log_prob: expected a dense tensor"),
    # Those of other policies
    ({"old_log_prob": None}, ValueError, "old_log_prob: expected the log-probs of the policy"),
    ({"old_log_prob": torch.zeros(4, 4)}, ValueError, "old_log_prob: expected shape [4, 3]"),
    ({"old_log_prob": torch.zeros(1, 3)}, ValueError, "old_log_prob: expected shape [4, 3]"),
    ({"old_log_prob": META}, ValueError, "old_log_prob: expected a tensor on cpu, found one on"),
    ({"old_log_prob": 0.0}, TypeError, "old_log_prob: expected a tensor, found float"),
    ({"kl": qae.Kl()}, ValueError, "ref_log_prob: expected the reference's log-probs for kl"),
    ({"ref_log_prob": META}, ValueError, "ref_log_prob: expected None without kl"),
    ({"kl": 0.1, "ref_log_prob": torch.zeros(4, 3)}, TypeError, "kl: expected a qae.Kl or None"),
    # Rewards, groups, advantages
    (
        {"rewards": None},
        ValueError,
        "rewards: expected either rewards or advantages, found neither",
    ),
    ({"advantages": torch.zeros(4)}, ValueError, "rewards: expected either rewards or advantages"),
    ({"rewards": [1.0, 0.0]}, TypeError, "rewards: expected a tensor, found list"),
    ({"rewards": torch.zeros(4, 1)}, ValueError, "rewards: expected shape [num_responses]"),
    ({"rewards": torch.zeros(8)}, ValueError, "rewards (without response_index): expected shape"),
    ({"rewards": torch.zeros(4).bool()}, TypeError, "rewards: expected real numbers, found bool"),
    ({"groups": None}, ValueError, "groups: expected a qae.Groups, a group size or ids, found"),
    ({"groups": 3}, ValueError, "group_size: expected a divisor of the 4 responses, found 3"),
    ({"groups": 0}, ValueError, "group_size: expected a divisor of the 4 responses, found 0"),
    ({"groups": True}, TypeError, "groups: expected a qae.Groups, a group size or ids, found"),
    ({"groups": 2.0}, TypeError, "groups: expected a sequence of ids, found float"),
    ({"groups": "abcd"}, TypeError, "groups: expected a sequence of ids, found str"),
    ({"groups": [0, 1]}, ValueError, "rewards: expected shape [2], as the groups, found [4]"),
    ({"groups": torch.zeros(4)}, TypeError, "groups: expected integer ids, found torch.float32"),
    ({"groups": torch.zeros(2, 2).int()}, ValueError, "groups: expected ids [num_responses]"),
    ({"groups": [[1], [2], [3], [4]]}, TypeError, "groups: expected hashable ids"),
    ({"response_index": torch.zeros(4)}, TypeError, "response_index: expected an integer tensor"),
    ({"response_index": torch.zeros(3).int()}, ValueError, "response_index: expected shape [4]"),
    ({"response_index": torch.tensor([0, 1, 2, 4])}, ValueError, "response_index[3]: expected"),
    ({"response_index": torch.tensor([2**32, 1, 2, 3])}, ValueError, "response_index[0]: expect"),
    (
        given_advantages(advantages=torch.zeros(5)),
        ValueError,
        "advantages: expected shape [4] or [4, 3], found [5]",
    ),
    (
        given_advantages(advantages=torch.zeros(4), k=0.4),
        ValueError,
        "k: expected nothing with advantages",
    ),
    (
        given_advantages(advantages=torch.zeros(4), groups=4),
        ValueError,
        "groups: expected None with advantages",
    ),
    # Places of tokens
    ({"mask": torch.ones(4)}, ValueError, "mask: expected shape [4, 3], as log_prob, found [4]"),
    ({"mask": META}, ValueError, "mask: expected a tensor on cpu, found one on meta"),
    ({"lengths": torch.ones(4)}, TypeError, "lengths: expected an integer tensor, found float32"),
    ({"lengths": torch.ones(3).int()}, ValueError, "lengths: expected shape [4]"),
    ({"lengths": torch.full((4,), 4)}, ValueError, "lengths[0]: expected at least 0 and less"),
    ({"lengths": torch.full((4,), 2**32 + 1)}, ValueError, "lengths[0]: expected at least 0"),
    ({"lengths": torch.full((4,), -1)}, ValueError, "lengths[0]: expected at least 0"),
    ({"offsets": torch.arange(5)}, ValueError, "log_prob: expected shape [slots] with offsets"),
    # Weights and normalizer
    ({"importance_weight": torch.ones(3)}, ValueError, "importance_weight: expected shape [4] or"),
    ({"importance_weight": 1.0}, TypeError, "importance_weight: expected a tensor, found float"),
    ({"normalizer": -1}, ValueError, "normalizer: expected a number of at least 0, found -1"),
    (
        {"normalizer": float("nan")},
        ValueError,
        "normalizer: expected a number of at least 0, found nan",
    ),
    ({"normalizer": float("inf")}, ValueError, "normalizer: expected a finite number, found inf"),
    ({"normalizer": None}, TypeError, "normalizer: expected a number, a tensor or 'batch'"),
    ({"normalizer": "tokens"}, ValueError, "normalizer: expected a number, a tensor or 'batch'"),
    ({"normalizer": torch.ones(2)}, ValueError, "normalizer: expected one element, found [2]"),
    ({"normalizer": torch.ones((), device="meta")}, ValueError, "normalizer: expected a tensor on"),
    # Options
    ({"objective": "ppo_clip"}, TypeError, "objective: expected a qae.Objective, found str"),
    ({"aggregation": "mean"}, ValueError, "aggregation: expected one of token-mean, seq-mean"),
    (
        {"aggregation": "seq-mean-token-sum-norm"},
        ValueError,
        "loss_scale_factor: expected a number",
    ),
    ({"loss_scale_factor": 9.0}, ValueError, "loss_scale_factor: expected None with aggregation"),
    ({"metrics_scope": "none"}, ValueError, "metrics_scope: expected one of all, active"),
    ({"log_ratio_clamp": -1.0}, ValueError, "log_ratio_clamp: expected a finite number above 0"),
    ({"grad_scale": "1"}, TypeError, "grad_scale: expected a number, found str"),
    ({"k": 1.0}, ValueError, "baseline.k: expected a number in (0, 1), found 1"),
    ({"k": "0.4"}, TypeError, "k: expected a number, found str"),
    ({"k": 0.4, "baseline": "mean"}, ValueError, "baseline.k: expected nothing with baseline mean"),
    ({"baseline": "median"}, ValueError, "baseline.kind: expected one of mean, leave_one_out"),
    ({"baseline": ["mean"]}, TypeError, "baseline: expected a name, found ['mean']"),
    ({"kl": ["k3"], "ref_log_prob": torch.zeros(4, 3)}, TypeError, "kl: expected a qae.Kl or None"),
    ({"gate": 'a"b'}, TypeError, "gate: expected a name, found"),
    ({"gate": "two_regime", "baseline": "mean"}, ValueError, "gate: expected none, since only a"),
    ({"epsilon": -1.0}, ValueError, "epsilon: expected a finite number, at least 0, found -1"),
    ({"quantile": 0.4}, TypeError, "quantile: expected one of k, baseline"),
]
PACKED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"offsets": [0, 2, 4, 6, 8]}, TypeError, "offsets: expected a tensor, found list"),
    ({"offsets": torch.zeros(5)}, TypeError, "offsets: expected an integer tensor, found float32"),
    ({"offsets": torch.zeros(0).int()}, ValueError, "offsets: expected shape [rows + 1]"),
    ({"offsets": torch.zeros(5, 1).int()}, ValueError, "offsets: expected shape [rows + 1]"),
    ({"offsets": torch.tensor([1, 2, 4, 6, 8])}, ValueError, "offsets[0]: expected 0, found 1"),
    ({"offsets": torch.tensor([0, 4, 2, 6, 8])}, ValueError, "offsets[2]: expected at least 4"),
    ({"offsets": torch.tensor([0, 2, 4, 6, 9])}, ValueError, "log_prob: expected 9 elements"),
    ({"lengths": torch.ones(4).int()}, ValueError, "lengths: expected None with offsets"),
    ({"mask": torch.ones(4, 3)}, ValueError, "mask: expected shape [8], as log_prob"),
    (
        given_advantages(
            log_prob=torch.zeros(4),
            old_log_prob=torch.zeros(4),
            offsets=torch.tensor([0, 0, 2, 4, 4]),
            advantages=torch.ones(4),
        ),
        ValueError,
        "advantages: expected shape [4, 1] where there are as many tokens as rows",
    ),
]
LOGITS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"logits": torch.zeros(ROWS, WIDTH)}, ValueError, "logits: expected shape [4, 3, vocab]"),
    ({"logits": torch.zeros(4, 2, 5)}, ValueError, "logits: expected shape [4, 3, vocab]"),
    ({"logits": torch.zeros(4, 3, 0)}, ValueError, "logits: expected at least one column"),
    ({"logits": torch.zeros(4, 3, 5).int()}, TypeError, "logits: expected float32, bfloat16"),
    ({"token_ids": torch.zeros(4, 3)}, TypeError, "token_ids: expected an integer tensor"),
    ({"token_ids": torch.zeros(4).int()}, ValueError, "token_ids: expected shape [rows, width]"),
    ({"token_ids": torch.full((4, 3), 5)}, ValueError, "token_id"),
    ({"token_ids": torch.full((4, 3), -1)}, ValueError, "token_id"),
    ({"temperature": 0.0}, ValueError, "temperature: expected a finite number above 0, found 0"),
    ({"entropy_coef": float("nan")}, ValueError, "entropy_coef: expected a finite number"),
    ({"old_log_prob": torch.zeros(4, 4)}, ValueError, "old_log_prob: expected shape [4, 3], as"),
    ({"inplace": True}, ValueError, "inplace: expected False where logits need no gradient"),
]


def check(function: Any, arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)) as caught:
        function(**arguments)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def name(entry: Any) -> str:
    return "-".join(entry) if isinstance(entry, dict) else ""


@pytest.mark.parametrize(("change", "error", "message"), TABLE, ids=name)
def test_policy_loss(change: dict[str, Any], error: type[Exception], message: str) -> None:
    check(qae.policy_loss, tokens() | change, error, message)


@pytest.mark.parametrize(("change", "error", "message"), PACKED, ids=name)
def test_packed(change: dict[str, Any], error: type[Exception], message: str) -> None:
    check(qae.policy_loss, packed() | change, error, message)


@pytest.mark.parametrize(("change", "error", "message"), LOGITS, ids=name)
def test_policy_loss_from_logits(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    check(qae.policy_loss_from_logits, logits() | change, error, message)


def test_the_arguments_without_a_change_are_accepted() -> None:
    assert qae.policy_loss(**tokens())[0].isfinite()
    assert qae.policy_loss(**packed())[0].isfinite()
    assert qae.policy_loss_from_logits(**logits())[0].isfinite()


ROW = torch.zeros(2, 5)
IDS = torch.zeros(2, dtype=torch.int64)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: qae.Objective("ppo"), ValueError, "objective.kind: expected one of ppo_clip"),
        (lambda: qae.Objective("sapo", low=1.0), ValueError, "objective.low: expected one of tau"),
        (lambda: qae.Objective("gspo", low="1"), TypeError, "objective.low: expected a number"),
        (lambda: qae.Kl("k4"), ValueError, "kl.kind: expected one of k1, k2, k3, found 'k4'"),
        (lambda: qae.Kl("k3", float("inf")), ValueError, "kl.coef: expected a finite number"),
        (lambda: qae.Kl("k3", clamp=1), TypeError, "kl.clamp: expected a bool, found int"),
        (lambda: qae.Groups.uniform(-1, 1), ValueError, "num_responses: expected 0 to"),
        (lambda: qae.Groups.uniform(4, "2"), TypeError, "group_size: expected an int, found str"),
        (lambda: qae.Groups.from_offsets([]), ValueError, "group_offsets: expected integers"),
        (lambda: qae.Groups.from_offsets([1, 2]), ValueError, "group_offsets[0]: expected 0"),
        (lambda: qae.Groups.from_offsets([0, 2, 2]), ValueError, "group_offsets[2]: expected more"),
        (lambda: qae.advantages(torch.rand(5), 2), ValueError, "group_size: expected a divisor"),
        (
            lambda: qae.log_probs_and_entropy(ROW, IDS, temperature="1"),
            TypeError,
            "temperature: expected a number, found str",
        ),
        (
            lambda: qae.log_probs_and_entropy(ROW, IDS, temperature=-1.0),
            ValueError,
            "temperature: expected",
        ),
        (
            lambda: qae.log_probs_and_entropy(ROW, IDS, mask=torch.ones(3)),
            ValueError,
            "mask: expected shape [2], as token_ids, found [3]",
        ),
        (lambda: qae.log_probs_and_entropy(ROW, IDS + 5), ValueError, "token_id"),
        (
            lambda: qae.softmax_stats(ROW[0], IDS, vocab_start=0),
            ValueError,
            "logits_shard: expected shape [2, vocab], as token_ids, found [5]",
        ),
        (lambda: qae.softmax_stats(ROW, IDS, vocab_start=-1), ValueError, "vocab_start: expected"),
        (lambda: qae.softmax_stats(ROW, IDS, vocab_start=1.0), TypeError, "vocab_start: expected"),
        (lambda: qae.merge_softmax_stats(torch.zeros(0, 2, 4)), ValueError, "shards: expected sha"),
        (lambda: qae.merge_softmax_stats(torch.zeros(2, 3)), ValueError, "shards: expected shape"),
        (lambda: qae.merge_softmax_stats(torch.zeros(2, 4).half()), TypeError, "shards: expected"),
    ],
)
def test_other_functions(call: Any, error: type[Exception], message: str) -> None:
    check(call, {}, error, message)


def test_a_build_without_the_emulator_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qae._qae, "features", list)
    message = r"QAE_EMULATOR=1 pip install \./python"
    with pytest.raises(RuntimeError, match=message), emulated_kernels():
        pass


def test_the_options_of_an_objective_are_read_back() -> None:
    objective = qae.Objective("ppo_clip", dual_clip=3.0)
    assert objective == qae.Objective.clip(dual_clip=3.0) and hash(objective)
    assert (objective.low, objective.high, objective.ratio_cap) == (0.2, 0.28, None)
    assert replace(objective, low=0.1) == qae.Objective.clip(low=0.1, dual_clip=3.0)
    assert replace(qae.Objective.sapo(), tau_negative=2.0).tau_negative == 2.0
    assert pickle.loads(pickle.dumps(objective)) == objective
    with pytest.raises(AttributeError):
        objective.low = 0.1  # type: ignore[misc]
