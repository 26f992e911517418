"""The verl plug-in: how verl loads it, what reaches it, and its advantages."""

from __future__ import annotations

import math
import os
import pathlib
import subprocess
import sys
from fractions import Fraction
from unittest import mock

import numpy
import pytest
import torch

pytest.importorskip("verl")

import verl.trainer
from omegaconf import OmegaConf
from verl import DataProto
from verl.trainer.config import AlgoConfig
from verl.trainer.ppo import core_algos
from verl.trainer.ppo.ray_trainer import compute_advantage
from verl.utils.config import omega_conf_to_dataclass

import qae.verl

LOSSES = ("qae_fused", "qae_fused_gspo", "qae_fused_cispo", "qae_fused_sapo")
LOOK_UP = f"""
from verl.trainer.ppo.core_algos import get_adv_estimator_fn, get_policy_loss_fn
found = [get_adv_estimator_fn("qae"), *map(get_policy_loss_fn, {LOSSES})]
assert {{function.__module__ for function in found}} == {{"qae.verl"}}, found
"""


def run_python(code: str, **environment: str) -> None:
    inherited = {name: value for name, value in os.environ.items() if "VERL" not in name}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_entry_point():
    run_python("import verl\n" + LOOK_UP)


def test_entry_point_by_name():
    # The plug-in is also found where it is imported before verl.
    run_python("import qae.verl\n" + LOOK_UP, VERL_USE_EXTERNAL_PLUGINS="qae")


def test_external_module():
    run_python(
        "import verl\n" + LOOK_UP,
        VERL_USE_EXTERNAL_MODULES="qae.verl",
        VERL_USE_EXTERNAL_PLUGINS="none",
    )


def test_qae_alone_does_not_import_verl():
    run_python("import sys, qae\nassert not {'verl', 'trl'} & set(sys.modules)")


# What verl's trainer hands to an estimator.


def trainer_batch(rewards, uids, width: int = 6) -> DataProto:
    """The outcome reward on the last token of each response, as verl's reward managers put it."""
    rows = len(rewards)
    lengths = 1 + torch.arange(rows) % width
    token_rewards = torch.zeros(rows, width)
    token_rewards[torch.arange(rows), lengths - 1] = torch.tensor(rewards, dtype=torch.float32)
    mask = (torch.arange(width) < lengths.unsqueeze(1)).long()
    return DataProto.from_dict(
        tensors={"token_level_rewards": token_rewards, "response_mask": mask},
        non_tensors={"uid": numpy.array(uids, dtype=object)},
    )


def from_trainer(rewards, uids, config) -> torch.Tensor:
    """One advantage for each response, by way of verl's compute_advantage."""
    data = compute_advantage(trainer_batch(rewards, uids), adv_estimator="qae", config=config)
    advantages, mask = data.batch["advantages"], data.batch["response_mask"]
    assert advantages.dtype == torch.float32
    assert torch.equal(advantages, data.batch["returns"])
    first = advantages[:, 0]
    assert torch.equal(advantages, first.unsqueeze(1) * mask)
    return first


def algorithm(**keys):
    return OmegaConf.create({"norm_adv_by_std_in_grpo": True, **keys})


def random_groups(seed: int, binary: bool):
    """Rewards and uids of ragged, interleaved groups, one of them a single response."""
    generator = numpy.random.default_rng(seed)
    sizes = [1, *generator.integers(2, 17, size=20)]
    uids = [f"uid-{group}" for group, size in enumerate(sizes) for _ in range(size)]
    generator.shuffle(uids)
    rewards = generator.random(len(uids)).astype(numpy.float32)
    if binary:
        rewards = (rewards < 0.4).astype(numpy.float32)
    return rewards, uids


def inverted_cdf(rewards: numpy.ndarray, k: float) -> float:
    rank = math.ceil(Fraction(str(k)) * len(rewards))
    return numpy.sort(rewards)[rank - 1]


def linear(rewards: numpy.ndarray, k: float) -> float:
    return numpy.quantile(rewards, k, method="linear")


def expected_advantages(rewards, uids, baseline, by_std: bool = True) -> numpy.ndarray:
    rewards, uids = numpy.asarray(rewards, dtype=numpy.float64), numpy.asarray(uids)
    expected = numpy.empty(len(rewards))
    for uid in set(uids.tolist()):
        members = uids == uid
        group = rewards[members]
        if len(group) == 1:
            below, std = 0.0, 1.0
        else:
            below, std = baseline(group), group.std(ddof=1)
        expected[members] = (group - below) / (std + 1e-6 if by_std else 1.0)
    return expected


@pytest.mark.parametrize("k", [0.2, 0.4, 0.5, 0.8])
@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("quantile", [inverted_cdf, linear])
@pytest.mark.parametrize("by_std", [True, False])
def test_advantages_are_those_of_the_quantile(k, binary, quantile, by_std):
    rewards, uids = random_groups(int(10 * k), binary)
    config = algorithm(
        quantile_k=k, quantile_interpolation=quantile.__name__, norm_adv_by_std_in_grpo=by_std
    )
    found = from_trainer(rewards.tolist(), uids, config)
    expected = expected_advantages(rewards, uids, lambda group: quantile(group, k), by_std)
    if not by_std or quantile is inverted_cdf:
        numpy.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)
    else:
        # A group whose rewards are equal is exactly 0; the oracle's interpolation rounds.
        numpy.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_linear_is_verls_function_with_the_authors_line():
    rewards, uids = random_groups(3, binary=True)
    data = trainer_batch(rewards.tolist(), uids)
    with mock.patch.object(core_algos.torch, "mean", lambda group: torch.quantile(group, 0.4)):
        authors, _ = core_algos.compute_grpo_outcome_advantage(
            data.batch["token_level_rewards"].double(),
            data.batch["response_mask"],
            data.non_tensor_batch["uid"],
        )
    config = algorithm(quantile_k=0.4, quantile_interpolation="linear")
    found = from_trainer(rewards.tolist(), uids, config)
    numpy.testing.assert_allclose(found, authors[:, 0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("successes", range(1, 8))
def test_two_regimes(successes):
    """Binary rewards: only successes act where p <= 1 - k, only failures elsewhere."""
    rewards = [1.0] * successes + [0.0] * (8 - successes)
    std = numpy.std(rewards, ddof=1) + 1e-6
    is_hard = Fraction(successes, 8) <= 1 - Fraction(2, 5)
    expected = [reward / std if is_hard else (reward - 1) / std for reward in rewards]
    found = from_trainer(rewards, ["prompt"] * 8, algorithm(quantile_k=0.4))
    numpy.testing.assert_allclose(found, expected, rtol=1e-6)
    inactive = found[successes:] if is_hard else found[:successes]
    assert not inactive.any()


def test_keys_of_the_algorithm():
    rewards, uids = [1.0, 0.0, 0.0, 0.0, 3.0], ["a", "a", "a", "a", "b"]
    std = numpy.std(rewards[:4], ddof=0) + 0.25
    found = from_trainer(
        rewards,
        uids,
        algorithm(
            quantile_k=0.4,
            quantile_scale="std_population",
            quantile_epsilon=0.25,
            quantile_singleton="zero",
        ),
    )
    numpy.testing.assert_allclose(found, [1 / std, 0, 0, 0, 0], rtol=1e-6)
    # Above 3 nothing is a success: the group is hard at any k, and failures do not act.
    continuous, same = [1.0, 2.0, 3.0, 2.5], ["a"] * 4
    gated = {"quantile_k": 0.5, "quantile_gate": "two_regime", "norm_adv_by_std_in_grpo": False}
    hard = from_trainer(continuous, same, algorithm(**gated, quantile_success_threshold=3.0))
    easy = from_trainer(continuous, same, algorithm(**gated, quantile_success_threshold=0.5))
    assert hard.tolist() == [0, 0, 1.0, 0.5]
    assert easy.tolist() == [-1.0, 0, 0, 0]


def test_configs_of_any_kind():
    rewards, uids = random_groups(4, binary=True)
    expected = from_trainer(rewards.tolist(), uids, algorithm(quantile_k=0.6))
    assert not torch.equal(expected, from_trainer(rewards.tolist(), uids, algorithm()))
    dataclass = AlgoConfig()
    dataclass.quantile_k = 0.6
    for config in (dataclass, {"quantile_k": 0.6, "quantile_gate": None}):
        assert torch.equal(from_trainer(rewards.tolist(), uids, config), expected)
    dataclass.quantile_interp = "linear"
    with pytest.raises(ValueError, match=r"^algorithm\.quantile_interp: expected one of"):
        from_trainer(rewards.tolist(), uids, dataclass)
    default = from_trainer(rewards.tolist(), uids, AlgoConfig())
    assert torch.equal(from_trainer(rewards.tolist(), uids, None), default)


def test_a_reward_that_is_not_finite_is_left_out_and_named(caplog):
    rewards = [1.0, math.nan, 0.0, 0.0, 0.0, math.inf, 1.0, 0.0]
    found = from_trainer(rewards, list("aaaabbbb"), algorithm(quantile_k=0.4))
    group = numpy.array([1.0, 0.0, 0.0])
    assert found[1] == 0 and found[5] == 0
    assert found[0].item() == pytest.approx(1 / (group.std(ddof=1) + 1e-6), rel=1e-6)
    assert "2 of 8 rewards" in caplog.text


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"quantile_kk": 0.4}, r"^algorithm\.quantile_kk: expected one of quantile_k, "),
        ({"quantile_k": 1.5}, r"^algorithm\.quantile_k: expected .* found 1\.5"),
        ({"quantile_interpolation": "x"}, r"^algorithm\.quantile_interpolation: expected .*x"),
        ({"quantile_gate": "off"}, r"^algorithm\.quantile_gate: expected .* found .*off"),
    ],
)
def test_refusals(keys, message):
    with pytest.raises(ValueError, match=message):
        from_trainer([1.0, 0.0], ["a", "a"], algorithm(**keys))


def test_a_key_of_another_type_is_refused():
    with pytest.raises(TypeError, match=r"^algorithm\.quantile_k: expected a number, found str$"):
        from_trainer([1.0, 0.0], ["a", "a"], algorithm(quantile_k="0.4"))


def test_uid_and_shapes_are_checked():
    estimator = core_algos.get_adv_estimator_fn("qae")
    rewards, mask = torch.ones(4, 3), torch.ones(4, 3)
    with pytest.raises(
        ValueError, match=r"^uid: expected the prompt of each response, found none$"
    ):
        estimator(token_level_rewards=rewards, response_mask=mask, config=None)
    with pytest.raises(ValueError, match=r"^response_mask: expected the shape of token_level_rew"):
        estimator(rewards, mask[:, :2], numpy.array(["a"] * 4, dtype=object))
    with pytest.raises(ValueError):
        estimator(rewards, mask, numpy.array(["a"] * 3, dtype=object))


# The command line of the documentation, through verl's own configuration files.


def composed(*overrides: str):
    hydra = pytest.importorskip("hydra")
    directory = pathlib.Path(verl.trainer.__file__).parent / "config"
    with hydra.initialize_config_dir(config_dir=str(directory), version_base=None):
        return hydra.compose(
            "ppo_trainer",
            overrides=["actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1", *overrides],
        )


def test_command_line():
    config = composed(
        "algorithm.adv_estimator=qae",
        "++algorithm.quantile_k=0.6",
        "++algorithm.quantile_interpolation=linear",
        "actor_rollout_ref.actor.policy_loss.loss_mode=qae_fused_gspo",
    )
    rewards, uids = random_groups(5, binary=True)
    data = compute_advantage(
        trainer_batch(rewards.tolist(), uids),
        adv_estimator=config.algorithm.adv_estimator,
        config=config.algorithm,
    )
    expected = expected_advantages(rewards, uids, lambda group: linear(group, 0.6))
    numpy.testing.assert_allclose(data.batch["advantages"][:, 0], expected, rtol=1e-6, atol=1e-6)
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    loss = core_algos.get_policy_loss_fn(actor.policy_loss.loss_mode)
    assert loss is qae.verl.fused_gspo
    old, new = -torch.rand(2, 3), -torch.rand(2, 3)
    ours, _ = loss(old, new, torch.ones(2, 3), torch.ones(2, 3) > 0, "token-mean", actor)
    theirs, _ = core_algos.compute_policy_loss_gspo(
        old, new, torch.ones(2, 3), torch.ones(2, 3) > 0, "token-mean", actor
    )
    assert ours.item() == pytest.approx(theirs.item(), rel=2e-6)


def test_a_misspelled_key_does_not_pass():
    config = composed("algorithm.adv_estimator=qae", "++algorithm.quantile=0.6")
    assert "quantile" in config.algorithm
    with pytest.raises(ValueError, match=r"^algorithm\.quantile: expected one of quantile_k"):
        from_trainer([1.0, 0.0], ["a", "a"], config.algorithm)
