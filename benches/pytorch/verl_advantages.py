"""verl's advantage loop against `qae.advantages`, in one run on one machine.

Runs `compute_grpo_outcome_advantage` of the installed verl; where it cannot be imported, a
restatement of its loop in the same shape (a dict of lists by prompt id, a tensor mean and standard
deviation for each group, one assignment for each row). The report says which. Both sides build
their groups from an id for each response, in turns; responses have one token, so that the loop is timed and
not the product with the mask.

    python benches/pytorch/verl_advantages.py [--groups 512] [--group-size 16]

Needs `pip install ./python`.
"""

import argparse
import collections
import json
import statistics
import time

import numpy
import torch

import qae


def restated_loop(token_level_rewards, response_mask, index, epsilon=1e-6):
    scores = token_level_rewards.sum(dim=-1)
    scores_of_prompt = collections.defaultdict(list)
    mean_of_prompt = {}
    std_of_prompt = {}
    with torch.no_grad():
        for row in range(scores.shape[0]):
            scores_of_prompt[index[row]].append(scores[row])
        for prompt, members in scores_of_prompt.items():
            if len(members) == 1:
                mean_of_prompt[prompt] = torch.tensor(0.0)
                std_of_prompt[prompt] = torch.tensor(1.0)
            else:
                stacked = torch.stack(members)
                mean_of_prompt[prompt] = torch.mean(stacked)
                std_of_prompt[prompt] = torch.std(stacked)
        for row in range(scores.shape[0]):
            prompt = index[row]
            scores[row] = (scores[row] - mean_of_prompt[prompt]) / (std_of_prompt[prompt] + epsilon)
        scores = scores.unsqueeze(-1) * response_mask
    return scores, scores


def verl_or_restated():
    try:
        import verl
        from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage
    except ImportError as error:
        return f"restated loop (verl: {error})", restated_loop
    return f"verl {verl.__version__}", compute_grpo_outcome_advantage


def make_batch(groups, group_size):
    count = groups * group_size
    rewards = (torch.arange(count) * 7919 % 97).to(torch.float32).div(96.0)
    ids = [f"prompt-{row // group_size}" for row in range(count)]
    return rewards, ids


def take_turns(functions, calls):
    """Median seconds of each, and what it returned; the first call of each warms up."""
    seconds = {name: [] for name in functions}
    results = {}
    for _ in range(calls + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            results[name] = function()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(taken[1:]) for name, taken in seconds.items()}, results


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--groups", type=int, default=512)
    parser.add_argument("--group-size", type=int, default=16)
    parser.add_argument("--calls", type=int, default=9, help="timed calls of each side")
    options = parser.parse_args()

    rewards, ids = make_batch(options.groups, options.group_size)
    token_rewards, index = rewards.unsqueeze(-1), numpy.array(ids, dtype=object)
    mask = torch.ones_like(token_rewards)
    name, function = verl_or_restated()
    functions = {
        "verl": lambda: function(token_rewards, mask, index)[0].squeeze(-1),
        "qae": lambda: qae.advantages(rewards, ids, baseline="mean").advantage,
    }
    seconds, results = take_turns(functions, options.calls)
    if not torch.allclose(results["verl"], results["qae"], rtol=1e-4, atol=1e-5):
        raise SystemExit("different advantages")
    report = {
        "groups": options.groups,
        "group_size": options.group_size,
        "python": name,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "python_seconds": seconds["verl"],
        "qae_seconds": seconds["qae"],
        "ratio": round(seconds["verl"] / seconds["qae"], 1),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
