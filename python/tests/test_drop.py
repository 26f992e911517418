"""drop_inactive: what it keeps, what it counts, what it refuses."""

from __future__ import annotations

import numpy
import pytest
import torch

import qae
from qae.drop import refuse_verl_config


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


class TestDataProto:
    def data_proto(self):
        verl = pytest.importorskip("verl")
        batch = small_batch()
        tensors = {
            "advantages": batch["advantages"].unsqueeze(1).expand(6, 3) * batch["completion_mask"],
            "response_mask": batch["completion_mask"],
            "row": batch["row"],
        }
        return verl.DataProto.from_dict(
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
        agg_loss = pytest.importorskip("verl.trainer.ppo.core_algos").agg_loss

        def loss(part, mode, normalizers):
            loss_mat = -part.batch["advantages"].double()
            return agg_loss(loss_mat, part.batch["response_mask"].double(), mode, **normalizers)

        full = self.data_proto()
        small = qae.drop_inactive(full, multiple_of=8).batch
        found = {key: small.meta_info[key] for key in ("batch_num_tokens", "global_batch_size")}
        normalizers = {"batch_num_tokens": 11, "global_batch_size": 6}
        for mode in ("token-mean", "seq-mean-token-sum", "seq-mean-token-mean"):
            assert abs(loss(full, mode, normalizers) - loss(small, mode, found)) <= 1e-15

    def test_keeps_a_global_batch_size(self):
        data = self.data_proto()
        data.meta_info["global_batch_size"] = 512
        assert qae.drop_inactive(data).batch.meta_info["global_batch_size"] == 512
