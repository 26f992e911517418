"""The parts of ``examples/train_arithmetic.py``, and a few of its steps."""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import pytest
import torch

pytest.importorskip("trl", minversion="1.16")

EXAMPLES = Path(__file__).parents[1] / "examples"

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def examples_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))


def test_worked_answers_are_right() -> None:
    import arithmetic

    pairs = [(a, b) for a in range(100) for b in range(100)]
    questions = [arithmetic.question(*pair) for pair in pairs]
    answers = [arithmetic.answer(*pair) for pair in pairs]
    assert arithmetic.answer(47, 85) == "7+5=12;4+8+1=13;132."
    assert set(arithmetic.reward(questions, answers)) == {1.0}
    assert max(map(len, answers)) <= arithmetic.LONGEST_ANSWER
    wrong = [text.replace(";", ";1") for text in answers]
    assert set(arithmetic.reward(questions, wrong)) == {0.0}
    tokenizer = arithmetic.make_tokenizer()
    ids = tokenizer(questions[5] + answers[5])["input_ids"]
    assert len(ids) == len(questions[5] + answers[5])
    assert tokenizer.decode(ids, skip_special_tokens=True) == questions[5] + answers[5][:-1]


def test_slips_change_digits_only() -> None:
    import arithmetic

    text = arithmetic.answer(47, 85) * 20
    slipped = arithmetic.with_slips(text, random.Random(1))
    changed = [(a, b) for a, b in zip(text, slipped, strict=True) if a != b]
    assert changed and all(a.isdigit() and b.isdigit() for a, b in changed)


def test_some_steps_of_all_methods(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import arithmetic
    import arithmetic_report
    import train_arithmetic

    options = argparse.Namespace(steps=4, device="cpu", seed=1, rollouts=None)
    tokenizer = arithmetic.make_tokenizer()
    model = arithmetic.make_model(tokenizer, seed=1)
    _, before = arithmetic.warm_up(model, tokenizer, target=9.0, seed=1)
    _, after = arithmetic.warm_up(model, tokenizer, target=0.0, seed=1, max_steps=15)
    assert after < before
    logs = {
        name: train_arithmetic.train(name, model, tokenizer, options)
        for name in train_arithmetic.METHODS
    }
    assert all(log[-1]["step"] == 4 for log in logs.values())
    assert all(entry["update_seconds"] > 0 for log in logs.values() for entry in log)
    arithmetic_report.print_table(logs)
    lines = capsys.readouterr().out.splitlines()
    assert sum("->" in line for line in lines) == len(logs)
    arithmetic_report.plot(logs, str(tmp_path / "plot.svg"))
    drawn = (tmp_path / "plot.svg").exists()
    assert drawn or "matplotlib is not installed" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["mean baseline (GRPO)", "QAE, automatic K"])
def test_rollouts_are_what_was_sampled(name: str, tmp_path: Path) -> None:
    """And their entropies those of the policy that sampled them, from its logits."""
    import arithmetic
    import train_arithmetic
    from pyarrow import parquet

    options = argparse.Namespace(steps=3, device="cpu", seed=1, rollouts=str(tmp_path / "new"))
    tokenizer = arithmetic.make_tokenizer()
    model = arithmetic.make_model(tokenizer, seed=1)
    arithmetic.warm_up(model, tokenizer, target=0.9, seed=1)
    log = train_arithmetic.train(name, model, tokenizer, options)
    file = train_arithmetic.METHODS[name].file
    table = parquet.read_table(tmp_path / "new" / f"arithmetic-{file}.parquet")
    rows = table.to_pylist()
    assert len(rows) == 512 and {row["step"] for row in rows} == {1, 3}
    for row in rows:
        assert [row["score"]] == arithmetic.reward([row["input"]], [row["output"]])
        assert str(sum(map(int, row["input"].rstrip("?").split("+")))) == row["gts"]
        assert len({other["input"] for other in rows if other["uid"] == row["uid"]}) == 1
        assert 0 <= row["response_length"] - len(row["output"])
        assert row["response_length"] <= arithmetic.LONGEST_ANSWER
    assert {sum(row["uid"] == uid for row in rows) for uid in {r["uid"] for r in rows}} == {16}
    # The model is still the one that sampled the first rollout: what is trained is a copy.
    plain = [row for row in rows[:256] if row["response_length"] == len(row["output"]) + 1]
    cut = [row for row in rows[:256] if len(row["output"]) == arithmetic.LONGEST_ANSWER]
    assert len(plain) >= 20 and cut
    for row in plain[:20] + cut[:5]:
        text = row["input"] + row["output"] + arithmetic.END
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            log_probs = model(input_ids=ids).logits[0].double().log_softmax(dim=-1)
        first = len(row["input"]) - 1
        entropies = -(log_probs.exp() * log_probs).sum(dim=-1)[first:][: row["response_length"]]
        assert abs(row["entropy"] - entropies.mean()) < 2e-4
    if name == "QAE, automatic K":
        tokens = sum(row["response_length"] for row in rows[:256])
        entropy = sum(row["entropy"] * row["response_length"] for row in rows[:256]) / tokens
        assert abs(log[0]["qae/rollout_entropy"] - entropy) < 1e-4


def test_the_report_compares_first_and_last_tenth() -> None:
    import arithmetic_report

    values = [(step, float(step)) for step in range(1, 101)]
    assert arithmetic_report._ends(values, 100) == (5.5, 95.5)
    sparse = [(step, float(step)) for step in range(1, 101, 30)]
    assert arithmetic_report._ends(sparse, 100) == (1.0, 91.0)
