"""That the gradient of a model stays where its inactive responses are dropped."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

import qae

pytest.importorskip("trl")
ROOT = pathlib.Path(__file__).parents[2]
ROLLOUTS = ROOT / "data" / "trl-addition.safetensors"
K = 0.4


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


def test_the_measurement_runs():
    command = [sys.executable, ROOT / "benches" / "pytorch" / "drop_inactive.py", "--json"]
    sizes = ["--layers", "1", "--width", "64", "--repeats", "1"]
    result = json.loads(subprocess.run(command + sizes, capture_output=True, check=True).stdout)
    assert result["gradient_difference"] <= TOLERANCES[torch.float32]
    assert (result["full"]["rows"], result["dropped"]["rows"]) == (256, 52)
    assert result["full"]["response_tokens"] == 7438
