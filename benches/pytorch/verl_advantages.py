"""verl's advantage loop against this crate's `cpu::advantages`, in one run on one machine.

Runs `compute_grpo_outcome_advantage` of the installed verl; where it cannot be imported, a
restatement of its loop in the same shape (a dict of lists by prompt id, a tensor mean and standard
deviation for each group, one assignment for each row). The report says which. Both sides build
their groups from an id for each response; responses have one token, so that the loop is timed and
not the product with the mask.

    python benches/pytorch/verl_advantages.py [--groups 512] [--group-size 16]

Needs torch and cargo.
"""

import argparse
import collections
import json
import pathlib
import statistics
import subprocess
import time

import numpy
import torch

ROOT = pathlib.Path(__file__).resolve().parents[2]


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


def time_python(function, groups, group_size, calls):
    count = groups * group_size
    rewards = (torch.arange(count) * 7919 % 97).to(torch.float32).div(96.0).unsqueeze(-1)
    mask = torch.ones_like(rewards)
    index = numpy.array([f"prompt-{row // group_size}" for row in range(count)], dtype=object)
    seconds = []
    for _ in range(calls + 1):
        start = time.perf_counter()
        advantages, _ = function(rewards, mask, index)
        seconds.append(time.perf_counter() - start)
    # The first call warms up.
    return statistics.median(seconds[1:]), advantages.double().abs().sum().item()


def time_rust(groups, group_size):
    command = ["cargo", "run", "--quiet", "--release", "--example", "advantages_bench", "--"]
    command += [str(groups), str(group_size)]
    output = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return json.loads(output)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--groups", type=int, default=512)
    parser.add_argument("--group-size", type=int, default=16)
    parser.add_argument("--calls", type=int, default=9, help="timed calls of the Python side")
    options = parser.parse_args()

    rust = time_rust(options.groups, options.group_size)
    name, function = verl_or_restated()
    seconds, checksum = time_python(function, options.groups, options.group_size, options.calls)
    # Float32 on the Python side.
    if not abs(checksum - rust["sum_abs_advantage"]) <= 1e-4 * checksum:
        raise SystemExit(f"different results: {checksum} and {rust['sum_abs_advantage']}")
    report = {
        "groups": options.groups,
        "group_size": options.group_size,
        "python": name,
        "torch": torch.__version__,
        "python_threads": torch.get_num_threads(),
        "python_ns_per_call": round(seconds * 1e9),
        "qae_threads": rust["threads"],
        "qae_ns_per_call": rust["ns_per_call"],
        "ratio": round(seconds * 1e9 / rust["ns_per_call"], 1),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
