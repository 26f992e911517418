"""A vocabulary in shards on several processes against the whole of it on one."""

from __future__ import annotations

import processes
import pytest
import torch

import qae
import qae.parallel

VOCAB = 37
SPLITS = {2: [[18, 19], [1, 36], [30, 7]], 4: [[9, 10, 9, 9], [5, 1, 30, 1], [1, 1, 1, 34]]}
SHAPE = (6, 5)
TEMPERATURES = (1.0, 0.7)
DTYPES = (torch.float32, torch.float64, torch.bfloat16)
NEGATIVE = -torch.inf


def whole_input(dtype, splits):
    """Logits with -inf entries, and tokens at the borders of the shards."""
    generator = torch.Generator().manual_seed(5)
    logits = 4 * torch.randn(*SHAPE, VOCAB, generator=generator, dtype=torch.float64)
    token_ids = torch.randint(0, VOCAB, SHAPE, generator=generator)
    starts = torch.tensor([0, *splits]).cumsum(0)[:-1]
    borders = torch.cat((starts, starts[1:] - 1, torch.tensor([VOCAB - 1])))
    token_ids.view(-1)[: len(borders)] = borders

    rows = logits.view(-1, VOCAB)
    rows[-1, : splits[0]] = NEGATIVE  # a shard without a finite logit
    rows[-2, splits[0] :] = NEGATIVE  # all others
    rows[-3, ::2] = NEGATIVE
    rows[-4] += 300.0  # exponentials that overflow unless the maximum is subtracted
    token_ids.view(-1)[-1] = splits[0]
    token_ids.view(-1)[-2] = 0
    token_ids.view(-1)[-3] = 2  # a token whose own logit is -inf
    rows[-5] = NEGATIVE  # a row of which nothing can be said
    d_log_prob = torch.randn(SHAPE, generator=generator, dtype=torch.float64)
    d_entropy = torch.randn(SHAPE, generator=generator, dtype=torch.float64)
    return logits.to(dtype), token_ids, d_log_prob, d_entropy


def reference(logits, token_ids, d_log_prob, d_entropy, temperature):
    """The formulas of docs/math.md, in float64, on the logits as the shards see them."""
    z = logits.double() / temperature
    log_p = z.log_softmax(-1)
    p = log_p.exp()
    log_prob = log_p.gather(-1, token_ids.unsqueeze(-1)).squeeze(-1)
    terms = torch.where(p > 0, p * log_p, 0.0)
    entropy = -terms.sum(-1)
    usable = z.amax(-1) > NEGATIVE
    entropy = torch.where(usable, entropy, torch.nan)

    own = torch.nn.functional.one_hot(token_ids, VOCAB)
    g = torch.where(log_prob > NEGATIVE, d_log_prob, 0.0).unsqueeze(-1)
    h = d_entropy.unsqueeze(-1)
    # d entropy / d z = -p (log p + entropy)
    of_entropy = torch.where(p > 0, p * (log_p + entropy.unsqueeze(-1)), 0.0)
    gradient = (g * (own - p) - h * of_entropy) / temperature
    return log_prob, entropy, torch.where(usable.unsqueeze(-1), gradient, 0.0)


def sharded(rank, splits, dtype, temperature):
    logits, token_ids, d_log_prob, d_entropy = whole_input(dtype, splits)
    start = sum(splits[:rank])
    # A slice: its rows are further apart than they are wide.
    shard = logits[..., start : start + splits[rank]].requires_grad_()
    log_prob, entropy = qae.parallel.log_probs_and_entropy(
        shard, token_ids, vocab_start=start, temperature=temperature
    )
    out = log_prob.dtype
    torch.autograd.backward((log_prob, entropy), (d_log_prob.to(out), d_entropy.to(out)))
    found = {"log_prob": log_prob.detach(), "entropy": entropy.detach(), "gradient": shard.grad}

    # One of the two results alone, and no gradient at all.
    again = shard.detach().requires_grad_()
    options = {"vocab_start": start, "temperature": temperature}
    only = qae.parallel.log_probs_and_entropy(again, token_ids, **options)[0]
    only.backward(d_log_prob.to(out))
    found["of_log_prob"] = again.grad
    with torch.no_grad():
        plain = qae.parallel.log_probs_and_entropy(shard, token_ids, **options)[0]
    found["no_grad"] = not plain.requires_grad and torch.equal(
        plain.nan_to_num(), log_prob.detach().nan_to_num()
    )
    return found


def double_backward(rank, splits):
    logits, token_ids, *_ = whole_input(torch.float32, splits)
    start = sum(splits[:rank])
    shard = logits[:2, :, start : start + splits[rank]].requires_grad_()
    entropy = qae.parallel.log_probs_and_entropy(shard, token_ids[:2], vocab_start=start)[1]
    try:
        torch.autograd.grad(entropy.sum(), shard, create_graph=True)
    except RuntimeError as error:
        return str(error)


def all_cases(rank, world_size):
    cases = [
        (split, dtype, temperature)
        for split in range(len(SPLITS[world_size]))
        for dtype in DTYPES
        for temperature in TEMPERATURES
    ]
    found = {case: sharded(rank, SPLITS[world_size][case[0]], *case[1:]) for case in cases}
    found["double backward"] = double_backward(rank, SPLITS[world_size][0])
    return found


@pytest.fixture(scope="module", params=sorted(SPLITS))
def results(request):
    """What every rank found; a fixture, so that a group that fails is started once."""
    return processes.run(request.param, all_cases, request.param)


# Of sums over a row in float32, in another order than the reference's; a log-sum-exp of 300 is
# rounded to its own last place.
EPS = torch.finfo(torch.float32).eps
TOLERANCE = {torch.float32: VOCAB * EPS, torch.bfloat16: VOCAB * EPS, torch.float64: 1e-12}


@pytest.mark.parametrize("split", range(3))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_equals_the_whole_vocabulary(results, split, dtype, temperature):
    splits = SPLITS[len(results)][split]
    inputs = whole_input(dtype, splits)
    log_prob, entropy, gradient = reference(*inputs, temperature)
    no_entropy = reference(*inputs[:3], torch.zeros(SHAPE, dtype=torch.float64), temperature)[2]
    scale = 4 * 310 / temperature  # of the logits and of an upstream gradient
    tolerance = TOLERANCE[dtype]
    ranks = [rank[split, dtype, temperature] for rank in results]
    for rank in ranks:
        assert rank["no_grad"]
        assert rank["log_prob"].dtype == (
            torch.float64 if dtype == torch.float64 else torch.float32
        )
        # Replicated, to the last bit.
        assert rank["log_prob"].nan_to_num().equal(ranks[0]["log_prob"].nan_to_num())
        for name, expected in (("log_prob", log_prob), ("entropy", entropy)):
            torch.testing.assert_close(
                rank[name].double(),
                expected,
                rtol=tolerance,
                atol=tolerance * scale,
                equal_nan=True,
            )
    found = torch.cat([rank["gradient"] for rank in ranks], -1)
    assert found.dtype == dtype
    of_log_prob = torch.cat([rank["of_log_prob"] for rank in ranks], -1)
    rounding = torch.finfo(dtype).eps
    for result, expected in ((found, gradient), (of_log_prob, no_entropy)):
        torch.testing.assert_close(
            result.double(), expected, rtol=rounding + tolerance, atol=tolerance * scale
        )


@pytest.mark.parametrize("split", range(3))
def test_equals_the_operation_on_one_process(results, split):
    inputs = whole_input(torch.float32, SPLITS[len(results)][split])
    logits = inputs[0].requires_grad_()
    log_prob, entropy = qae.log_probs_and_entropy(logits, inputs[1])
    torch.autograd.backward((log_prob, entropy), [d.float() for d in inputs[2:]])
    ranks = [rank[split, torch.float32, 1.0] for rank in results]
    scale = TOLERANCE[torch.float32] * 4 * 310
    for found, expected in (
        (ranks[0]["log_prob"], log_prob),
        (ranks[0]["entropy"], entropy),
        (torch.cat([rank["gradient"] for rank in ranks], -1), logits.grad),
    ):
        torch.testing.assert_close(found, expected.detach(), rtol=0, atol=scale, equal_nan=True)


def test_double_backward_is_refused(results):
    for rank in results:
        assert "log_probs_and_entropy is differentiable once" in rank["double backward"]
