"""drop_inactive: what it keeps, what it refuses, and that the gradient of a model stays."""

from __future__ import annotations

import pathlib

import numpy
import pytest
import torch
from safetensors.torch import load_file

import qae
from qae.drop import refuse_verl_config

ROLLOUTS = pathlib.Path(__file__).parents[2] / "data" / "trl-addition.safetensors"
K = 0.4


def small_batch():
    """Rows 1 and 5 are active, row 3 has no token, row 2 the fewest of the others."""
    return {
        "advantages": torch.tensor([0.0, 1.0, -0.0, -1.0, 0.0, 2.0]),
        "completion_mask": torch.tensor(
            [[1, 1, 1], [1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 1, 0], [1, 1, 1]]
        ),
        "row": torch.arange(6),
    }


class TestRows:
    def test_keeps_active_rows_in_order_and_counts_the_full_batch(self):
        batch = small_batch()
        before = {key: value.clone() for key, value in batch.items()}
        dropped = qae.drop_inactive(batch)
        assert dropped.batch["row"].tolist() == [1, 5]
        assert dropped.index.tolist() == [1, 5]
        assert dropped.index.dtype == torch.int64
        assert dropped.advantages.tolist() == [1.0, 2.0]
        assert dropped.active.tolist() == [True, True]
        assert (dropped.num_tokens, dropped.num_sequences) == (11, 5)
        assert (dropped.num_rows, dropped.num_active, dropped.num_padding) == (2, 2, 0)
        assert dropped.num_dropped == 4
        assert all(torch.equal(batch[key], before[key]) for key in before)

    def test_fills_up_with_the_shortest_inactive_rows_in_their_places(self):
        dropped = qae.drop_inactive(small_batch(), multiple_of=4)
        assert dropped.batch["row"].tolist() == [1, 2, 3, 5]
        assert dropped.active.tolist() == [True, False, False, True]
        assert (dropped.num_active, dropped.num_padding, dropped.num_dropped) == (2, 2, 2)

    def test_repeats_a_row_without_effect_where_inactive_rows_are_too_few(self):
        batch = small_batch()
        batch["advantages"][:] = 1.0
        dropped = qae.drop_inactive(batch, multiple_of=4)
        assert dropped.num_active == 5 and dropped.num_rows == 8
        assert dropped.batch["row"].tolist()[:6] == list(range(6))
        assert dropped.batch["advantages"].tolist() == [1.0] * 6 + [0.0] * 2
        assert dropped.advantages.tolist() == [1.0] * 6 + [0.0] * 2
        assert dropped.batch["completion_mask"][6:].eq(0).all()
        assert dropped.batch["completion_mask"][:6].equal(batch["completion_mask"])
        assert dropped.active.tolist() == [True] * 3 + [False] + [True] * 2 + [False] * 2
        assert dropped.num_dropped == 0

    def test_repeats_an_inactive_row_rather_than_an_active_one(self):
        dropped = qae.drop_inactive(small_batch(), multiple_of=7)
        assert dropped.batch["row"].tolist() == [0, 1, 2, 3, 4, 5, 0]

    @pytest.mark.parametrize("min_rows, rows", [(0, []), (1, [3]), (2, [2, 3])])
    def test_a_batch_without_active_rows(self, min_rows, rows):
        batch = small_batch()
        batch["advantages"].zero_()
        dropped = qae.drop_inactive(batch, min_rows=min_rows)
        assert dropped.batch["row"].tolist() == rows
        assert dropped.num_tokens == 11

    def test_nan_is_not_zero(self):
        batch = small_batch()
        batch["advantages"][0] = torch.nan
        assert qae.drop_inactive(batch).batch["row"].tolist() == [0, 1, 5]

    def test_advantages_of_tokens_count_where_the_mask_does(self):
        batch = small_batch()
        batch["advantages"] = torch.zeros(6, 3)
        batch["advantages"][2, 2] = 1.0  # masked
        batch["advantages"][4, 1] = -1.0
        batch["advantages"][3] = torch.inf  # a row without tokens
        assert qae.drop_inactive(batch).batch["row"].tolist() == [4]
        lengths = batch["completion_mask"].sum(-1)
        dropped = qae.drop_inactive(batch, mask=lengths, multiple_of=2)
        assert dropped.index.tolist() == [3, 4]
        assert (dropped.num_tokens, dropped.num_sequences) == (11, 5)

    def test_tensors_in_place_of_keys(self):
        batch = small_batch()
        advantages, mask = batch.pop("advantages"), batch.pop("completion_mask")
        for shape in ([6], [6, 1]):
            dropped = qae.drop_inactive(batch, advantages=advantages.view(shape), mask=mask)
            assert dropped.batch["row"].tolist() == [1, 5]
            assert dropped.advantages.shape == torch.Size([2, *shape[1:]])

    def test_values_of_every_kind(self):
        batch = small_batch() | {
            "array": numpy.array(list("abcdef")),
            "list": [{"n": n} for n in range(6)],
            "nested": {"inner": torch.arange(12).view(6, 2), "note": "text"},
            "num_items_in_batch": torch.tensor(11),
            "constants": torch.arange(4),
            "note": "sixsix",
            "absent": None,
        }
        kept = qae.drop_inactive(batch, shared=["constants"]).batch
        assert kept["array"].tolist() == ["b", "f"]
        assert kept["list"] == [{"n": 1}, {"n": 5}]
        assert kept["nested"]["inner"].tolist() == [[2, 3], [10, 11]]
        assert kept["nested"]["note"] == "text" and kept["note"] == "sixsix"
        assert kept["num_items_in_batch"] is batch["num_items_in_batch"]
        assert kept["constants"] is batch["constants"]
        assert kept["absent"] is None

    def test_jagged_rows(self):
        mask = torch.nested.as_nested_tensor(
            [torch.ones(n, dtype=torch.int64) for n in (3, 1, 2, 4)], layout=torch.jagged
        )
        batch = {"advantages": torch.tensor([0.0, 1.0, 1.0, 1.0]), "response_mask": mask}
        dropped = qae.drop_inactive(batch)
        assert [part.tolist() for part in dropped.batch["response_mask"].unbind()] == [
            [1],
            [1, 1],
            [1, 1, 1, 1],
        ]
        assert dropped.num_tokens == 10
        repeated = qae.drop_inactive(batch, multiple_of=5).batch["response_mask"]
        assert [part.sum().item() for part in repeated.unbind()] == [3, 1, 2, 4, 0]


class TestRefusals:
    @pytest.mark.parametrize(
        "options, message",
        [
            ({"kl_coef": 1e-3}, "kl_coef: expected 0"),
            ({"entropy_coef": -1e-3}, "entropy_coef: expected 0"),
            ({"aux_loss_coef": float("nan")}, "aux_loss_coef: expected 0"),
            ({"multiple_of": 0}, "multiple_of: expected at least 1, found 0"),
            ({"min_rows": -1}, "min_rows: expected at least 0, found -1"),
            ({"advantages": "reward"}, "advantages: expected the key 'reward'"),
            ({"mask": torch.ones(5, 3)}, r"mask: expected \[6, width\] or \[6\], found \[5, 3\]"),
            ({"advantages": torch.ones(6, 2)}, r"advantages: expected \[6\] or \[6, 3\], found"),
        ],
    )
    def test_values(self, options, message):
        with pytest.raises(ValueError, match=message):
            qae.drop_inactive(small_batch(), **options)

    def test_entries_of_another_length_are_named(self):
        batch = small_batch() | {"images": {"pixels": torch.zeros(9, 2)}}
        with pytest.raises(ValueError, match=r"batch\['images'\]\['pixels'\]: expected 6 rows"):
            qae.drop_inactive(batch)
        with pytest.raises(ValueError, match=r"batch\['texts'\]: expected 6 rows .* found 2"):
            qae.drop_inactive(small_batch() | {"texts": ["a", "b"]})

    def test_types(self):
        with pytest.raises(TypeError, match="batch: expected a mapping, TensorDict or DataProto"):
            qae.drop_inactive([1, 2])
        with pytest.raises(TypeError, match="mask: expected integers in one dimension"):
            qae.drop_inactive(small_batch(), mask=torch.ones(6))
        with pytest.raises(TypeError, match="advantages: expected a tensor"):
            qae.drop_inactive(small_batch(), advantages=[1.0] * 6)

    def test_no_mask_and_no_row(self):
        with pytest.raises(ValueError, match="mask: expected a tensor or one of response_mask"):
            qae.drop_inactive({"advantages": torch.ones(2)})
        empty = {key: value[:0] for key, value in small_batch().items()}
        with pytest.raises(ValueError, match="batch: expected a row to fill 1 rows up with"):
            qae.drop_inactive(empty)
        assert qae.drop_inactive(empty, min_rows=0).num_rows == 0

    @pytest.mark.parametrize(
        "changes, message",
        [
            ({"use_kl_loss": True}, "kl_loss_coef: expected 0 .* found 0.001"),
            ({"entropy_coeff": 0.01}, "entropy_coeff: expected 0"),
            ({"policy_loss": {"loss_mode": "kl_cov"}}, "policy_loss.loss_mode: .* found kl_cov"),
            ({"policy_loss": {"loss_mode": "mine"}}, "policy_loss.loss_mode: .* found mine"),
            ({"use_prefix_grouper": True}, "use_prefix_grouper: expected False"),
        ],
    )
    def test_actor_configuration(self, changes, message):
        config = {
            "use_kl_loss": False,
            "kl_loss_coef": 0.001,
            "entropy_coeff": 0,
            "policy_loss": {"loss_mode": "vanilla"},
        }
        refuse_verl_config(config)
        with pytest.raises(ValueError, match=message):
            qae.drop_inactive(small_batch(), config=config | changes)


def tiny_model(dtype):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=36,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
    )
    return LlamaForCausalLM(config).to(dtype)


def rollout_batch(extra_columns):
    """Six groups of stored TRL rollouts with QAE's advantages, and columns that no mask counts."""
    stored = load_file(ROLLOUTS)
    rows = stored["group_index"] < 6
    stored = {key: value[rows] for key, value in stored.items() if len(value) == len(rows)}
    advantages = qae.advantages(stored["rewards"], stored["group_index"], k=K).advantage
    width = stored["completion_ids"].shape[1] + extra_columns
    padded = {
        key: torch.nn.functional.pad(stored[key], (0, width - stored[key].shape[1]))
        for key in ("completion_ids", "completion_mask", "old_per_token_logps")
    }
    return padded | {
        "prompt_ids": stored["prompt_ids"],
        "prompt_mask": stored["prompt_mask"],
        "advantages": advantages,
    }


def clipped_loss(log_prob, batch, num_tokens):
    """TRL's loss (dapo) as its paper writes it."""
    advantages = batch["advantages"].to(log_prob.dtype).unsqueeze(1)
    ratio = (log_prob - batch["old_per_token_logps"].to(log_prob.dtype)).exp()
    losses = -torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.28) * advantages)
    return torch.where(batch["completion_mask"] != 0, losses, 0.0).sum() / num_tokens


def fused_loss(log_prob, batch, num_tokens):
    loss, _ = qae.policy_loss(
        log_prob,
        batch["old_per_token_logps"],
        advantages=batch["advantages"],
        mask=batch["completion_mask"],
        normalizer=num_tokens,
        log_ratio_clamp=None,
    )
    return loss


def backward(model, batch, loss_of, num_tokens):
    from trl.trainer.utils import selective_log_softmax

    ids = torch.cat((batch["prompt_ids"], batch["completion_ids"]), 1).long()
    attention_mask = torch.cat((batch["prompt_mask"], batch["completion_mask"]), 1).long()
    width = batch["completion_ids"].shape[1]
    logits = model(input_ids=ids, attention_mask=attention_mask).logits[:, :-1]
    log_prob = selective_log_softmax(logits[:, -width:] / 0.9, ids[:, -width:])
    loss = loss_of(log_prob, batch, num_tokens)
    loss.backward()
    return loss.detach()


def gradient(model, micro_batches, loss_of, num_tokens):
    """Of all parameters, flat, and the sum of losses."""
    model.zero_grad()
    loss = sum(backward(model, batch, loss_of, num_tokens) for batch in micro_batches)
    return torch.cat([weight.grad.double().flatten() for weight in model.parameters()]), loss


def split(batch, rows):
    size = batch["advantages"].shape[0]
    starts = range(0, size, rows)
    return [{key: value[i : i + rows] for key, value in batch.items()} for i in starts]


# A gradient sums one term for each of the batch's valid tokens. Rounding errors of its sums add up
# like the square root of their number, each at most half a unit in the last place of the largest.
NUM_TOKENS = 2579
TOLERANCES = {
    torch.float32: torch.finfo(torch.float32).eps * NUM_TOKENS**0.5,
    torch.float64: 1e-12,
}


class TestModelGradient:
    """Parameters of a Llama trained as TRL does, on stored rollouts of TRL."""

    @pytest.mark.parametrize("loss_of", [clipped_loss, fused_loss])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_one_batch(self, dtype, loss_of):
        model, batch = tiny_model(dtype), rollout_batch(extra_columns=3)
        dropped = qae.drop_inactive(batch, multiple_of=16)
        assert dropped.num_tokens == NUM_TOKENS
        assert 0 < dropped.num_padding and 2 * dropped.num_rows <= dropped.num_dropped
        expected, loss = gradient(model, [batch], loss_of, NUM_TOKENS)
        found, small_loss = gradient(model, [dropped.batch], loss_of, dropped.num_tokens)
        assert_close(found, expected, dtype)
        assert abs(loss - small_loss) <= TOLERANCES[dtype] * batch["advantages"].abs().max()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_micro_batches_some_of_them_inactive(self, dtype):
        model, batch = tiny_model(dtype), rollout_batch(extra_columns=0)
        order = batch["advantages"].abs().argsort()
        batch = {key: value[order] for key, value in batch.items()}
        micro_batches = split(batch, 16)
        assert not micro_batches[0]["advantages"].any()
        expected, _ = gradient(model, micro_batches, fused_loss, NUM_TOKENS)

        dropped = [qae.drop_inactive(micro_batch) for micro_batch in micro_batches]
        assert dropped[0].num_rows == 1 and dropped[0].num_active == 0
        assert sum(part.num_tokens for part in dropped) == NUM_TOKENS
        parts = [part.batch for part in dropped]
        assert_close(gradient(model, parts, fused_loss, NUM_TOKENS)[0], expected, dtype)

        whole = qae.drop_inactive(batch, multiple_of=16)
        parts = split(whole.batch, 16)
        assert_close(gradient(model, parts, fused_loss, whole.num_tokens)[0], expected, dtype)

    def test_nothing_active_is_a_zero_loss_with_a_gradient(self):
        model, batch = tiny_model(torch.float32), rollout_batch(extra_columns=0)
        batch["advantages"] = torch.zeros_like(batch["advantages"])
        dropped = qae.drop_inactive(batch)
        assert dropped.num_rows == 1
        for loss_of in (clipped_loss, fused_loss):
            found, loss = gradient(model, [dropped.batch], loss_of, dropped.num_tokens)
            assert loss == 0 and not found.any()

    def test_copies_change_nothing(self):
        model, batch = tiny_model(torch.float64), rollout_batch(extra_columns=0)
        rows = batch["advantages"].nonzero()[:6, 0]
        batch = {key: value[rows] for key, value in batch.items()}
        num_tokens = int(batch["completion_mask"].sum())
        expected, _ = gradient(model, [batch], fused_loss, num_tokens)
        dropped = qae.drop_inactive(batch, multiple_of=4)
        assert dropped.num_rows == 8 and dropped.num_tokens == num_tokens
        found, _ = gradient(model, [dropped.batch], fused_loss, dropped.num_tokens)
        assert_close(found, expected, torch.float64)

    def test_the_comparison_sees_one_missing_row(self):
        model, batch = tiny_model(torch.float32), rollout_batch(extra_columns=0)
        expected, _ = gradient(model, [batch], clipped_loss, NUM_TOKENS)
        weakest = torch.where(
            batch["advantages"] == 0, torch.inf, batch["advantages"].abs()
        ).argmin()
        batch["advantages"][weakest] = 0
        found, _ = gradient(model, [batch], clipped_loss, NUM_TOKENS)
        with pytest.raises(AssertionError):
            assert_close(found, expected, torch.float32)


def assert_close(found, expected, dtype):
    error = (found - expected).norm() / expected.norm()
    assert error <= TOLERANCES[dtype], f"relative error {error:.1e}"


class TestDataProto:
    def data_proto(self):
        from verl import DataProto

        batch = small_batch()
        tensors = {
            "advantages": batch["advantages"].unsqueeze(1).expand(6, 3) * batch["completion_mask"],
            "response_mask": batch["completion_mask"],
            "row": batch["row"],
        }
        return DataProto.from_dict(
            tensors=tensors,
            non_tensors={"uid": numpy.array(list("aabbcc"), dtype=object)},
            meta_info={"global_token_num": [7, 6, 5, 4, 6, 7], "temperature": 0.9},
        )

    def test_tensors_arrays_and_metadata(self):
        data = self.data_proto()
        dropped = qae.drop_inactive(data, multiple_of=3)
        kept = dropped.batch
        assert type(kept) is type(data) and len(kept) == 3
        kept.check_consistency()
        assert kept.batch["row"].tolist() == [1, 3, 5]
        assert kept.non_tensor_batch["uid"].tolist() == ["a", "b", "c"]
        assert kept.meta_info == {
            "global_token_num": [6, 4, 7],
            "temperature": 0.9,
            "batch_num_tokens": 11,
            "global_batch_size": 6,
        }
        assert len(data) == 6 and "batch_num_tokens" not in data.meta_info

    def test_loss_of_verl_with_the_metadata(self):
        """Divided by what the metadata says, verl's loss is that of the full batch."""
        from verl.trainer.ppo.core_algos import agg_loss

        data = self.data_proto()
        kept = qae.drop_inactive(data, multiple_of=8).batch
        info = {key: kept.meta_info[key] for key in ("batch_num_tokens", "global_batch_size")}
        for mode in ("token-mean", "seq-mean-token-sum", "seq-mean-token-mean"):
            full, small = (
                agg_loss(
                    -part.batch["advantages"].double(),
                    part.batch["response_mask"].double(),
                    mode,
                    batch_num_tokens=11,
                    global_batch_size=6,
                )
                if part is data
                else agg_loss(
                    -part.batch["advantages"].double(),
                    part.batch["response_mask"].double(),
                    mode,
                    **info,
                )
                for part in (data, kept)
            )
            assert abs(full - small) <= 1e-15

    def test_keeps_a_global_batch_size(self):
        data = self.data_proto()
        data.meta_info["global_batch_size"] = 512
        assert qae.drop_inactive(data).batch.meta_info["global_batch_size"] == 512
