"""Training on several processes: groups over ranks and micro-batches, with and without dropping.

Every rank has some responses, so that groups straddle ranks, and cuts them into micro-batches. The
gradients of all ranks, summed, must be the gradient of one process that has the whole batch, which
is computed here with torch alone, in float64.
"""

from __future__ import annotations

import processes
import pytest
import torch
import torch.distributed as dist

import qae
import qae.parallel

K = 0.4
VOCAB, WIDTH, HIDDEN = 23, 9, 8
MICRO_BATCH = 3
CLIP_LOW, CLIP_HIGH, EPSILON = 0.2, 0.28, 1e-6


class Model(torch.nn.Module):
    """A language model in that a token's log-prob depends on all tokens before it."""

    def __init__(self, dtype):
        super().__init__()
        torch.manual_seed(3)
        self.embedding = torch.nn.Embedding(VOCAB, HIDDEN)
        self.recurrent = torch.nn.RNN(HIDDEN, HIDDEN, batch_first=True)
        self.head = torch.nn.Linear(HIDDEN, VOCAB)
        self.to(dtype)

    def forward(self, token_ids):
        hidden, _ = self.recurrent(self.embedding(token_ids[:, :-1]))
        log_probs = self.head(hidden).log_softmax(-1)
        return log_probs.gather(-1, token_ids[:, 1:].unsqueeze(-1)).squeeze(-1)


def global_batch(seed):
    """Ragged groups in random order, with a group that is all zeros and one response without tokens."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [5, 4, 1, 7, 6, 3]
    group = torch.repeat_interleave(torch.arange(6), torch.tensor(sizes))
    group = group[torch.randperm(len(group), generator=generator)]
    rows = len(group)
    lengths = torch.randint(1, WIDTH + 1, (rows,), generator=generator)
    lengths[4] = 0
    rewards = torch.randint(0, 2, (rows,), generator=generator).float()
    rewards[group == 2] = 0.0
    return {
        "group": group,
        "rewards": rewards,
        "token_ids": torch.randint(0, VOCAB, (rows, WIDTH + 1), generator=generator),
        "mask": (torch.arange(WIDTH) < lengths.unsqueeze(1)).to(torch.uint8),
        "noise": 0.3 * torch.randn(rows, WIDTH, generator=generator, dtype=torch.float64),
    }


def reference_advantages(rewards, group):
    """The paper's: the reward minus the ceil(K n)-th smallest of its group, over the group's std."""
    advantages = torch.zeros(len(rewards), dtype=torch.float64)
    for prompt in group.unique():
        own = rewards[group == prompt].double()
        if len(own) == 1:
            advantages[group == prompt] = own / (1 + EPSILON)
            continue
        rank = -(-2 * len(own) // 5)  # K = 2/5
        centered = own - own.sort().values[rank - 1]
        advantages[group == prompt] = centered / (own.std() + EPSILON)
    return advantages


def reference_gradient(batch):
    """One process, the whole batch, float64: PPO-clip, mean over tokens."""
    model = Model(torch.float64)
    log_prob = model(batch["token_ids"])
    advantages = reference_advantages(batch["rewards"], batch["group"]).unsqueeze(1)
    ratio = (-batch["noise"] + log_prob - log_prob.detach()).exp()
    losses = -torch.minimum(
        ratio * advantages, ratio.clamp(1 - CLIP_LOW, 1 + CLIP_HIGH) * advantages
    )
    loss = torch.where(batch["mask"] != 0, losses, 0.0).sum() / batch["mask"].sum()
    loss.backward()
    return flat_gradient(model), loss.item()


def flat_gradient(model):
    return torch.cat([weight.grad.double().flatten() for weight in model.parameters()])


def rows_of_ranks(batch, world_size):
    """Uneven parts; the last rank has inactive responses only."""
    inactive = reference_advantages(batch["rewards"], batch["group"]) == 0
    rows = torch.arange(len(inactive))
    last = rows[inactive][::2]
    others = rows[~torch.isin(rows, last)]
    shares = torch.arange(1, world_size).float()
    cuts = (shares.cumsum(0) / shares.sum() * len(others)).round().long()[:-1]
    return [*torch.tensor_split(others, cuts), last]


def local_gradient(rank, world_size, seed, drop, source, dtype):
    """This rank's part of the training step; what is returned is summed over the ranks."""
    whole = global_batch(seed)
    rows = rows_of_ranks(whole, world_size)[rank]
    local = {key: value[rows] for key, value in whole.items()}
    ids = [f"prompt-{group}" for group in local["group"].tolist()]
    rewards, groups, response_index = qae.parallel.gather_rewards(local["rewards"], ids)
    local["response_index"] = response_index
    advantages = qae.advantages(rewards, groups, k=K).advantage[response_index]
    local["advantages"] = advantages
    num_active = int((advantages[local["mask"].any(-1)] != 0).sum())
    num_tokens = local["mask"].sum()
    dist.all_reduce(num_tokens)
    if drop:
        dropped = qae.drop_inactive(
            local, mask="mask", multiple_of=MICRO_BATCH, process_group=dist.group.WORLD
        )
        assert dropped.num_tokens == num_tokens and dropped.num_active == num_active
        local, num_tokens = dropped.batch, dropped.num_tokens

    model = Model(dtype)
    loss = torch.zeros((), dtype=torch.float64)
    steps = 0
    for start in range(0, len(local["advantages"]), MICRO_BATCH):
        part = {key: value[start : start + MICRO_BATCH] for key, value in local.items()}
        log_prob = model(part["token_ids"])
        old_log_prob = log_prob.detach() + part["noise"].to(dtype)
        of_global = {
            "rewards": rewards,
            "groups": groups,
            "response_index": part["response_index"],
            "k": K,
        }
        part_loss, _ = qae.policy_loss(
            log_prob,
            old_log_prob,
            **(of_global if source == "rewards" else {"advantages": part["advantages"]}),
            mask=part["mask"],
            objective=qae.Objective.clip(CLIP_LOW, CLIP_HIGH),
            normalizer=num_tokens,
        )
        part_loss.backward()
        loss += part_loss.detach().double()
        steps += 1
    gradient = flat_gradient(model)
    dist.all_reduce(gradient)
    dist.all_reduce(loss)
    return {"gradient": gradient, "loss": loss.item(), "steps": steps, "num_active": num_active}


def gathered(rank, world_size):
    """Rank 1 has no response."""
    count = 0 if rank == 1 else rank + 2
    own = torch.arange(count, dtype=torch.float64) / 3 + rank
    integers = torch.arange(count, dtype=torch.int32) % 2
    cases = {
        "tensor": integers,
        "list": integers.tolist(),
        "strings": [f"prompt-{n}" for n in integers.tolist()],
        "mixed": integers.tolist() if rank == 0 else [(n, "a") for n in integers.tolist()],
    }
    found = {}
    for name, ids in cases.items():
        rewards, groups, index = qae.parallel.gather_rewards(own, ids)
        assert index.dtype == torch.int32 and rewards.dtype == torch.float64
        assert torch.equal(rewards[index], own)
        found[name] = (rewards, groups.num_groups, groups.max_size, groups.num_responses)
    half = qae.parallel.gather_rewards(own.bfloat16(), integers)[0]
    assert half.dtype == torch.bfloat16
    pair = dist.new_group([0, world_size - 1])
    if rank in (0, world_size - 1):
        found["pair"] = qae.parallel.gather_rewards(own, integers, pair)[0]
    return found


CASES = [
    (drop, source, dtype)
    for drop in (False, True)
    for source in ("rewards", "advantages")
    for dtype in (torch.float32, torch.float64)
]
SEEDS = range(3)


def all_steps(rank, world_size):
    steps = {
        (seed, *case): local_gradient(rank, world_size, seed, *case)
        for seed in SEEDS
        for case in CASES
    }
    return steps | {"gathered": gathered(rank, world_size)}


@pytest.fixture(scope="module", params=[2, 4])
def results(request):
    """What every rank found; a fixture, so that a group that fails is started once."""
    return processes.run(request.param, all_steps, request.param)


def tolerance(dtype, num_tokens):
    """Advantages are float32, in both; the rest is a sum of one term a token in ``dtype``."""
    single = torch.finfo(torch.float32).eps
    return 2 * single + torch.finfo(dtype).eps * num_tokens


@pytest.mark.parametrize("drop, source, dtype", CASES)
def test_summed_gradient_is_that_of_one_process(results, drop, source, dtype):
    for seed in SEEDS:
        batch = global_batch(seed)
        expected, expected_loss = reference_gradient(batch)
        bound = tolerance(dtype, int(batch["mask"].sum()))
        for rank in results:
            found = rank[seed, drop, source, dtype]
            error = (found["gradient"] - expected).norm() / expected.norm()
            assert error <= bound, f"seed {seed}: relative error {error:.1e}"
            assert abs(found["loss"] - expected_loss) <= bound * batch["rewards"].numel()


def test_ranks_are_uneven_and_run_equally_many_micro_batches(results):
    for seed in SEEDS:
        ranks = [rank[seed, True, "advantages", torch.float32] for rank in results]
        active = [rank["num_active"] for rank in ranks]
        assert active[-1] == 0 and len(set(active)) >= 2
        steps = {rank["steps"] for rank in ranks}
        assert steps == {-(-max(active) // MICRO_BATCH)}
        full = sum(rank[seed, False, "advantages", torch.float32]["steps"] for rank in results)
        assert sum(rank["steps"] for rank in ranks) < full


@pytest.mark.parametrize("world_size", [2, 4])
def test_groups_straddle_ranks_and_micro_batches(world_size):
    """What the other tests rely on."""
    for seed in SEEDS:
        group = global_batch(seed)["group"]
        rows = rows_of_ranks(global_batch(seed), world_size)
        micro_batches = [part for own in rows for part in own.split(MICRO_BATCH)]
        for parts, least in ((rows, 2), (micro_batches, 4)):
            times = torch.stack([group[part].bincount(minlength=6) > 0 for part in parts]).sum(0)
            assert times.max() >= least


def test_gathered_rewards(results):
    ranks = [rank for rank in range(len(results)) if rank != 1]
    own = {rank: torch.arange(rank + 2, dtype=torch.float64) / 3 + rank for rank in ranks}
    expected = torch.cat(list(own.values()))
    even = sum(-(-len(part) // 2) for part in own.values())
    for rank in results:
        for name in ("tensor", "list", "strings"):
            rewards, *counts = rank["gathered"][name]
            assert rewards.equal(expected)
            assert counts == [2, even, len(expected)]
        # Integers on the first rank, tuples on the others: no group in common.
        assert rank["gathered"]["mixed"][1] == (4 if len(ranks) > 1 else 2)
        if "pair" in rank["gathered"]:
            of_pair = [own[number] for number in (0, len(results) - 1) if number in own]
            assert rank["gathered"]["pair"].equal(torch.cat(of_pair))


@pytest.mark.parametrize(
    "rewards, ids, error, message",
    [
        (torch.ones(2, dtype=torch.int64), [0, 1], TypeError, "rewards: expected a floating"),
        (torch.ones(2, 1), [0, 1], ValueError, r"rewards: expected \[responses\]"),
        (torch.ones(2), [0], ValueError, "group_ids: expected 2 ids, found 1"),
    ],
)
def test_refused_before_any_communication(rewards, ids, error, message):
    with pytest.raises(error, match=message):
        qae.parallel.gather_rewards(rewards, ids)
