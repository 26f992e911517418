"""Dropping inside verl's actor update: the same gradients at every optimizer step.

Two ranks run verl's own `train_mini_batch`, FSDP engine and `ppo_loss` on the same data, once with
verl's worker and once with the one that `qae.verl_drop` puts in its place.
"""

from __future__ import annotations

import itertools

import processes
import pytest
import torch

WORLD_SIZE = 2
ROWS, MINI_BATCH = 24, 12
PROMPT, RESPONSE, VOCAB = 4, 6, 11
AGGREGATIONS = (
    "token-mean",
    "seq-mean-token-mean",
    "seq-mean-token-sum",
    "seq-mean-token-sum-norm",
)
CASES = [
    *itertools.product(("padded", "jagged"), ("static", "dynamic"), AGGREGATIONS, ("vanilla",)),
    ("padded", "static", "seq-mean-token-mean", "gspo"),
    ("jagged", "dynamic", "token-mean", "cispo"),
]


def rollouts():
    """Rank 0 has active rows in both mini-batches, rank 1 only in the first. One row has no token,
    another a mask that counts for the normalizer alone (verl's rejection sampling)."""
    generator = torch.Generator().manual_seed(2)
    prompts = torch.randint(1, VOCAB, (ROWS, PROMPT), generator=generator)
    responses = torch.randint(1, VOCAB, (ROWS, RESPONSE), generator=generator)
    prompt_lengths = torch.randint(1, PROMPT + 1, (ROWS, 1), generator=generator)
    lengths = torch.randint(1, RESPONSE + 1, (ROWS, 1), generator=generator)
    prompt_mask = (torch.arange(PROMPT) >= PROMPT - prompt_lengths).long()
    response_attention = (torch.arange(RESPONSE) < lengths).long()
    attention_mask = torch.cat((prompt_mask, response_attention), 1)
    response_mask = response_attention.clone()
    response_mask[3] = 0
    response_mask[5:9, 1:2] = 0  # what a tool wrote
    per_row = torch.randn(ROWS, 1, generator=generator, dtype=torch.float64)
    inactive = torch.rand(ROWS, 1, generator=generator) < 0.7
    inactive[18:] = True  # the second mini-batch of rank 1
    inactive[[0, 2, 7, 13]] = False
    per_row[inactive] = 0
    return {
        "prompts": prompts,
        "responses": responses,
        "input_ids": torch.cat((prompts, responses), 1) * attention_mask,
        "attention_mask": attention_mask,
        "position_ids": (attention_mask.cumsum(1) - 1).clamp(min=0),
        "response_mask": response_mask,
        "old_log_probs": -2 - torch.rand(ROWS, RESPONSE, generator=generator, dtype=torch.float64),
        "advantages": per_row * response_mask,
    }


def mini_batches(layout):
    """What verl's trainers send: V0 pads responses, V1 sends jagged tensors."""
    from verl import DataProto
    from verl.utils import tensordict_utils as tu
    from verl.workers.utils.padding import left_right_2_no_padding

    tensors = rollouts()
    lengths = tensors["attention_mask"][:, PROMPT:].sum(1)
    prompt_lengths = tensors["attention_mask"][:, :PROMPT].sum(1)
    data = left_right_2_no_padding(DataProto.from_dict(tensors=tensors).to_tensordict())
    if layout == "jagged":
        for key in ("attention_mask", "max_seq_len", "max_response_len", "indices"):
            data.pop(key)
        for key in ("responses", "response_mask", "loss_mask", "old_log_probs", "advantages"):
            parts = [row[:length] for row, length in zip(data[key], lengths)]
            data[key] = torch.nested.as_nested_tensor(parts, layout=torch.jagged)
        parts = [row[PROMPT - n :] for row, n in zip(data["prompts"], prompt_lengths)]
        data["prompts"] = torch.nested.as_nested_tensor(parts, layout=torch.jagged)
        # Row 4 is left out of the loss after its tokens were counted.
        loss_mask = data["response_mask"].clone()
        mask = data["response_mask"]
        mask.values()[mask.offsets()[4] : mask.offsets()[5]] = 0
        data["loss_mask"] = loss_mask
    tu.assign_non_tensor(
        data,
        global_batch_size=MINI_BATCH,
        mini_batch_size=MINI_BATCH,
        epochs=2,
        seed=7,
        dataloader_kwargs={"shuffle": True},
        temperature=1.0,
    )
    return data


def update(rank, worker_cls, layout, batching, aggregation, loss_mode):
    import verl_engine
    from verl.utils import tensordict_utils as tu

    config = verl_engine.actor_config(
        loss_agg_mode=aggregation, loss_scale_factor=100, loss_mode=loss_mode
    )
    max_token_len = 24 if batching == "dynamic" else None
    worker = verl_engine.worker(worker_cls, config, micro_batch_size=2, max_token_len=max_token_len)
    data = tu.chunk_tensordict(mini_batches(layout), WORLD_SIZE)[rank]
    output = worker.train_mini_batch(data)
    return {
        "gradients": torch.stack(worker.engine.gradients),
        "rows": worker.engine.rows,
        "micro_batches": worker.engine.micro_batches,
        "loss": torch.tensor(tu.get(output, "metrics")["loss"]),
        "lengths": [call.args[0] for call in worker.flops_counter.estimate_flops.call_args_list],
    }


def refused(worker_cls, **changes):
    import verl_engine
    from verl.utils import tensordict_utils as tu

    strategy = changes.pop("strategy", "fsdp")
    loss_fn = changes.pop("loss_fn", None)
    micro_batch_size = changes.pop("micro_batch_size", 2)
    config = verl_engine.actor_config(**changes)
    worker = verl_engine.worker(worker_cls, config, micro_batch_size, None)
    worker.engine_config.strategy = strategy
    worker.loss_fn = loss_fn or worker.loss_fn
    try:
        worker.train_mini_batch(tu.chunk_tensordict(mini_batches("jagged"), WORLD_SIZE)[0])
    except ValueError as error:
        return str(error)


def on_rank(rank):
    import verl_engine

    verl_engine.install_stand_ins()
    from verl.workers.engine_workers import ActorRolloutRefWorker, TrainingWorker

    before = ActorRolloutRefWorker.actor_worker_cls
    from verl.utils.import_utils import import_external_libs

    import_external_libs("qae.verl_drop")
    dropping = ActorRolloutRefWorker.actor_worker_cls
    import qae.verl_drop

    qae.verl_drop.install()
    found = {
        "installed": before is TrainingWorker
        and issubclass(dropping, TrainingWorker)
        and ActorRolloutRefWorker.actor_worker_cls is dropping
        and ActorRolloutRefWorker.ref_worker_cls is TrainingWorker
    }
    for case in CASES:
        found[case] = {
            "verl": update(rank, before, *case),
            "dropping": update(rank, dropping, *case),
        }
    found["refused"] = {
        "kl": refused(dropping, use_kl_loss=True, kl_loss_coef=0.5),
        "entropy": refused(dropping, entropy_coeff=0.01),
        "entropy metric": refused(dropping, calculate_entropy=True),
        "loss mode": refused(dropping, loss_mode="clip_cov"),
        "width": refused(dropping, loss_agg_mode="seq-mean-token-sum-norm"),
        "strategy": refused(dropping, strategy="megatron"),
        "loss": refused(dropping, loss_fn=len),
        "micro-batch": refused(dropping, micro_batch_size=8),
    }
    return found


@pytest.fixture(scope="module")
def results():
    """What both ranks found; a fixture, so that a group that fails is started once."""
    return processes.run(WORLD_SIZE, on_rank)


def test_the_import_replaces_the_actor_and_nothing_else(results):
    assert all(rank["installed"] for rank in results)


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_every_optimizer_step_has_the_same_gradient(results, case):
    for rank in results:
        expected, found = rank[case]["verl"], rank[case]["dropping"]
        assert len(expected["gradients"]) == 4  # two mini-batches, two epochs
        assert all(step.norm() > 0 for step in expected["gradients"])
        torch.testing.assert_close(
            found["gradients"], expected["gradients"], rtol=1e-12, atol=1e-14
        )
        torch.testing.assert_close(found["loss"], expected["loss"], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_fewer_rows_and_equally_many_on_all_ranks(results, case):
    dropping = [rank[case]["dropping"] for rank in results]
    assert dropping[0]["rows"] == dropping[1]["rows"]
    assert dropping[0]["micro_batches"] == dropping[1]["micro_batches"]
    full = results[0][case]["verl"]
    assert all(few < many for few, many in zip(dropping[0]["rows"], full["rows"]))
    for rank in dropping:
        assert [len(lengths) for lengths in rank["lengths"]] == [2 * n for n in rank["rows"]]


@pytest.mark.parametrize(
    "reason, message",
    [
        ("kl", "kl_loss_coef: expected 0 "),
        ("entropy", "entropy_coeff: expected 0 "),
        ("entropy metric", "calculate_entropy: expected False "),
        ("loss mode", "policy_loss.loss_mode: expected one of cispo, "),
        ("width", "loss_scale_factor: expected a constant"),
        ("strategy", "strategy: expected one of ('fsdp', 'fsdp2'), found 'megatron'"),
        ("loss", "loss_fn: expected verl's ppo_loss, found "),
        ("micro-batch", "micro_batch_size_per_gpu: expected a divisor of the 6 rows "),
    ],
)
def test_refusals(results, reason, message):
    for rank in results:
        assert (rank["refused"][reason] or "nothing refused").startswith(message)
