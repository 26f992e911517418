"""Against the fused loss of Liger, and against the log-probs and entropies of TRL and verl.

Liger's Triton kernels run in Triton's interpreter, which has to be asked for before Triton is
imported: this file is also the program that does so in a process of its own.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import Backend
from torch import Tensor

import qae

ROWS, WIDTH, VOCAB, GROUP_SIZE = 8, 4, 50, 4
TEMPERATURE = 0.9
TOKENS = 26  # of the mask below

# What Liger calls it, and what qae does.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "dapo": ({}, {}),
    "dapo-delta-kl": (
        {"delta": 1.15, "beta": 0.04},
        {
            "objective": qae.Objective.clip(ratio_cap=1.15),
            "kl": qae.Kl("k3", coef=0.04, clamp=False),
        },
    ),
    "grpo": ({"loss_type": "grpo"}, {"aggregation": "seq-mean-token-mean"}),
    "dr_grpo": (
        {"loss_type": "dr_grpo", "max_completion_length": 7},
        {"aggregation": "seq-mean-token-sum-norm", "loss_scale_factor": 7},
    ),
    "gspo": (
        {"loss_type": "grpo", "importance_sampling_level": "sequence"},
        {
            "objective": qae.Objective.gspo(low=0.2, high=0.28, log_ratio_max=None),
            "aggregation": "seq-mean-token-mean",
        },
    ),
    "cispo": (
        {"loss_type": "cispo", "eps_high": 1.1},  # of the ratio itself
        {"objective": qae.Objective.cispo(low=None, high=0.1)},
    ),
    "sapo": (
        {"loss_type": "sapo"},
        {
            "objective": qae.Objective.sapo(tau_positive=1.0, tau_negative=1.05),
            "aggregation": "seq-mean-token-mean",
        },
    ),
}
# Both sides compute in float32.
TOLERANCE = 1e-5


def batch() -> dict[str, Tensor]:
    """Ratios on both sides of the clip, a hard and an easy prompt, rows of different lengths."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(ROWS, WIDTH + 1, VOCAB, generator=generator)
    token_ids = torch.randint(VOCAB, (ROWS, WIDTH), generator=generator)
    log_softmax = (logits[:, :WIDTH].double() / TEMPERATURE).log_softmax(-1)
    log_prob = log_softmax.gather(-1, token_ids.unsqueeze(-1)).squeeze(-1).float()
    lengths = torch.tensor([4, 2, 4, 3, 1, 4, 4, 4])
    return {
        "logits": logits,
        "token_ids": token_ids,
        "old": log_prob + 0.3 * torch.randn(ROWS, WIDTH, generator=generator),
        "reference": log_prob + 0.3 * torch.randn(ROWS, WIDTH, generator=generator),
        "mask": (torch.arange(WIDTH) < lengths[:, None]).int(),
        "rewards": torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 1.0]),
        # At K = 0.4 the lone success of the first four acts, and the lone failure of the others.
        "advantages": torch.tensor([0.0, 0.0, 0.0, 2.0, 0.0, 0.0, -2.0, 0.0]) / (1 + 2e-6),
    }


def run_liger(path: str) -> None:
    """Losses and gradients of every case, and log-probs."""
    from liger_kernel.ops.grpo_loss import fused_selective_log_softmax
    from liger_kernel.transformers.grpo_loss import triton_grpo_loss

    given = batch()
    log_prob = fused_selective_log_softmax(given["logits"], given["token_ids"], TEMPERATURE)
    results: dict[str, Tensor | tuple[Tensor, Tensor]] = {"log_prob": log_prob}
    for name, (options, _) in CASES.items():
        logits = given["logits"].clone().requires_grad_()
        defaults = {"temperature": TEMPERATURE, "beta": 0.0, "eps_low": 0.2, "eps_high": 0.28}
        loss, _ = triton_grpo_loss(
            logits,
            given["old"],
            given["reference"],
            given["token_ids"],
            given["advantages"],
            given["mask"],
            **{**defaults, "inplace": False, "reduce": True, **options},
        )
        loss.backward()
        results[name] = (loss.detach(), logits.grad)
    torch.save(results, path)


@pytest.fixture(scope="module")
def liger(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    pytest.importorskip("liger_kernel")
    path = tmp_path_factory.mktemp("liger") / "results.pt"
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, str(pathlib.Path(__file__)), str(path)]
    subprocess.run(command, env=environment, check=True)
    return torch.load(path)


def close(found: Tensor, expected: Tensor, what: str) -> None:
    error = (found.detach().cpu() - expected).abs().max().item()
    assert error <= TOLERANCE * expected.abs().max().item(), f"{what}: off by {error:.2e}"


def options(name: str, given: dict[str, Tensor]) -> dict[str, Any]:
    chosen = dict(CASES[name][1])
    is_token_mean = chosen.get("aggregation", "token-mean") == "token-mean"
    if "kl" in chosen:
        chosen["ref_log_prob"] = given["reference"]
    return {
        "rewards": given["rewards"],
        "groups": GROUP_SIZE,
        "mask": given["mask"],
        "normalizer": TOKENS if is_token_mean else ROWS,
        "log_ratio_clamp": None,
        **chosen,
    }


@pytest.mark.parametrize("name", CASES)
def test_the_loss_from_logits_is_ligers(name: str, backend: Backend, liger: dict[str, Any]) -> None:
    given = {key: value.to(backend.device) for key, value in batch().items()}
    logits = given["logits"].requires_grad_()
    loss, _ = qae.policy_loss_from_logits(
        logits[:, :-1],
        given["token_ids"],
        given["old"],
        temperature=TEMPERATURE,
        **options(name, given),
    )
    loss.backward()
    close(loss, liger[name][0], "loss")
    close(logits.grad, liger[name][1], "gradient")


@pytest.mark.parametrize("name", CASES)
def test_the_loss_from_log_probs_is_ligers(
    name: str, backend: Backend, liger: dict[str, Any]
) -> None:
    given = {key: value.to(backend.device) for key, value in batch().items()}
    logits = given["logits"].requires_grad_()
    log_prob, _ = qae.log_probs_and_entropy(
        logits[:, :-1], given["token_ids"], temperature=TEMPERATURE
    )
    loss, _ = qae.policy_loss(log_prob, given["old"], **options(name, given))
    loss.backward()
    close(log_prob, liger["log_prob"], "log-probs")
    close(loss, liger[name][0], "loss")
    close(logits.grad, liger[name][1], "gradient")


def trl_functions() -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    pytest.importorskip("trl")
    from trl.trainer.utils import entropy_from_logits, selective_log_softmax

    return selective_log_softmax, entropy_from_logits


def verl_functions() -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    pytest.importorskip("verl")
    from verl.utils.torch_functional import entropy_from_logits, logprobs_from_logits

    return logprobs_from_logits, entropy_from_logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("functions", [trl_functions, verl_functions])
def test_log_probs_entropies_and_their_gradients(
    functions: Callable[[], tuple[Callable[..., Tensor], Callable[..., Tensor]]],
    dtype: torch.dtype,
    backend: Backend,
) -> None:
    of_log_prob, of_entropy = functions()
    given = batch()
    d_log_prob, d_entropy = given["old"], given["reference"]

    def run(compute: Callable[[Tensor], tuple[Tensor, Tensor]], logits: Tensor) -> list[Tensor]:
        leaf = logits.detach().requires_grad_()
        log_prob, entropy = compute(leaf)
        outputs = (log_prob * d_log_prob.to(log_prob)).sum() + (
            entropy * d_entropy.to(entropy)
        ).sum()
        outputs.backward()
        return [log_prob, entropy, leaf.grad]

    def theirs(logits: Tensor) -> tuple[Tensor, Tensor]:
        scaled = logits / TEMPERATURE
        return of_log_prob(scaled, given["token_ids"]), of_entropy(scaled)

    def ours(logits: Tensor) -> tuple[Tensor, Tensor]:
        token_ids = given["token_ids"].to(logits.device)
        return qae.log_probs_and_entropy(logits, token_ids, temperature=TEMPERATURE)

    logits = given["logits"][:, :-1].to(dtype)
    expected = run(theirs, logits.double())
    single = run(theirs, logits.float())
    found = run(ours, logits.to(backend.device))
    for name, *values in zip(
        ("log-prob", "entropy", "d_logits"), found, expected, single, strict=True
    ):
        backend.assert_close(*values, what=name)


if __name__ == "__main__":
    run_liger(sys.argv[1])
