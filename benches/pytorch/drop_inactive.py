"""A policy update with and without its inactive responses, side by side on real rollouts.

An update is what a trainer does with a generation: micro-batches of the policy's forward pass, the
loss (`qae.policy_loss`) and backward, then one step of AdamW. The policy is a Llama from scratch;
tokens, lengths, groups and rewards are those of the rollouts. Both sides have the same advantages
(quantile K) and the same normalizer, the tokens of the full generation; one of them first calls
`qae.drop_inactive`, whose time counts. They take turns, and so does who goes first. Before that the
gradients of all parameters are compared on the first generation.

    python benches/pytorch/drop_inactive.py [--k 0.4] [--repeats 5] [--json]

Seconds and, as other programs of the machine do not change them much, CPU seconds of this process; on
a machine that is shared take OMP_NUM_THREADS=1, as threads that wait for each other count as busy.

Needs `pip install ./python`, transformers and safetensors. `--rollouts`: a file such as
data/trl-addition.safetensors (one generation), or a JSON lines file as verl writes it, with `input`,
`output`, `score`, `uid` and `step` (one generation a step; characters are tokens).
"""

import argparse
import collections
import json
import os
import pathlib
import statistics
import time

import torch
import transformers
from safetensors.torch import load_file

import qae

ROOT = pathlib.Path(__file__).resolve().parents[2]
TEMPERATURE = 0.9
VARIANTS = ("full", "dropped")
COLUMNS = (8, 7, 17, 16, 12, 7, 16, 7)


def load_trl(path):
    stored = load_file(path)
    names = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
    batch = {name: stored[name].long() for name in names}
    return [batch | {"rewards": stored["rewards"], "group": stored["group_index"]}]


def load_verl(path):
    """Prompts padded on the left, responses on the right, as TRL has them."""
    rows = [json.loads(line) for line in pathlib.Path(path).read_text().splitlines()]
    characters = sorted({c for row in rows for c in row["input"] + row["output"]})
    ids = {character: number for number, character in enumerate(characters, start=2)}

    def padded(texts, left):
        width = max(map(len, texts))
        tokens = torch.zeros(len(texts), width, dtype=torch.int64)
        for row, text in zip(tokens, texts):
            own = torch.tensor([ids.get(c, 1) for c in text])
            row[width - len(own) :] = own if left else row[width - len(own) :]
            row[: len(own)] = row[: len(own)] if left else own
        return tokens

    generations = collections.defaultdict(list)
    for row in rows:
        generations[row["step"]].append(row)
    batches = []
    for generation in generations.values():
        prompt_ids = padded([row["input"] for row in generation], left=True)
        # A character of its own ends a response.
        completion_ids = padded([row["output"] + "\0" for row in generation], left=False)
        batches.append(
            {
                "prompt_ids": prompt_ids,
                "prompt_mask": (prompt_ids != 0).long(),
                "completion_ids": completion_ids,
                "completion_mask": (completion_ids != 0).long(),
                "rewards": torch.tensor([float(row["score"]) for row in generation]),
                "group": [row["uid"] for row in generation],
            }
        )
    return batches


def load_rollouts(path, k, device):
    """Generations with advantages and a normalizer, which no side has to compute."""
    batches = load_verl(path) if path.suffix == ".jsonl" else load_trl(path)
    for batch in batches:
        advantages = qae.advantages(batch.pop("rewards"), batch.pop("group"), k=k)
        batch["advantages"] = advantages.advantage
        for name, value in batch.items():
            batch[name] = value.to(device)
    return batches


def make_policy(batches, options):
    tokens = max(int(batch["completion_ids"].max()) for batch in batches) + 1
    config = transformers.LlamaConfig(
        vocab_size=max(tokens, options.vocab),
        hidden_size=options.width,
        intermediate_size=4 * options.width,
        num_hidden_layers=options.layers,
        num_attention_heads=max(options.width // 64, 1),
        max_position_embeddings=1024,
        use_cache=False,
    )
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(config).to(options.device)


def backward(policy, batch, num_tokens, micro_batch):
    for start in range(0, len(batch["advantages"]), micro_batch):
        part = {name: value[start : start + micro_batch] for name, value in batch.items()}
        ids = torch.cat((part["prompt_ids"], part["completion_ids"]), 1)
        mask = torch.cat((part["prompt_mask"], part["completion_mask"]), 1)
        width = part["completion_ids"].shape[1]
        logits = policy(input_ids=ids, attention_mask=mask, logits_to_keep=width + 1).logits
        log_probs = (logits[:, :-1] / TEMPERATURE).log_softmax(-1)
        log_prob = log_probs.gather(-1, part["completion_ids"].unsqueeze(-1)).squeeze(-1)
        loss, _ = qae.policy_loss(
            log_prob,
            log_prob.detach(),
            advantages=part["advantages"],
            mask=part["completion_mask"],
            normalizer=num_tokens,
        )
        loss.backward()


def run(policy, batch, variant, micro_batch):
    """Adds the gradient of a generation; rows, tokens and normalizer of what was computed."""
    if variant == "full":
        num_tokens = batch["completion_mask"].sum()
    else:
        dropped = qae.drop_inactive(batch)
        batch, num_tokens = dropped.batch, dropped.num_tokens
    backward(policy, batch, num_tokens, micro_batch)
    return batch, num_tokens


def synchronize(device):
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def compare_gradients(policy, batch, micro_batch):
    """Largest difference of an element, of the largest element."""
    gradients = []
    for variant in VARIANTS:
        policy.zero_grad()
        run(policy, batch, variant, micro_batch)
        gradients.append(torch.cat([p.grad.double().flatten() for p in policy.parameters()]))
    policy.zero_grad()
    full, dropped = gradients
    return ((full - dropped).abs().max() / full.abs().max()).item()


def measure(policy, batches, options):
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-5)

    def update(variant):
        synchronize(options.device)
        started, cpu_started = time.perf_counter(), time.process_time()
        for batch in batches:
            run(policy, batch, variant, options.micro_batch)
            optimizer.step()
            optimizer.zero_grad()
        synchronize(options.device)
        taken = time.perf_counter() - started, time.process_time() - cpu_started
        return [seconds / len(batches) for seconds in taken]

    seconds = {variant: [] for variant in VARIANTS}
    for repeat in range(-1, options.repeats):
        for variant in VARIANTS[:: 1 if repeat % 2 else -1]:
            taken = update(variant)
            if repeat >= 0:  # the one before warms up
                seconds[variant].append(taken)
    return {variant: list(zip(*seconds[variant])) for variant in VARIANTS}


def describe(batches, variant):
    """Rows, tokens in the policy's forward pass (prompts too) and tokens in the loss."""
    if variant == "dropped":
        batches = [qae.drop_inactive(batch).batch for batch in batches]
    masks = [(batch["prompt_mask"], batch["completion_mask"]) for batch in batches]
    return {
        "rows": sum(len(response) for _, response in masks),
        "response_tokens": sum(int(response.sum()) for _, response in masks),
        "forward_tokens": sum(int(prompt.sum() + response.sum()) for prompt, response in masks),
    }


def report(result):
    print(
        f"{result['updates']} update(s) of {result['policy']} on {result['device']}, "
        f"threads {result['threads']}, load {result['load']}, torch {result['torch']}; K = {result['k']}"
    )
    heads = (
        "",
        "rows",
        "response tokens",
        "forward tokens",
        "s / update",
        "",
        "CPU s / update",
        "",
    )
    print("".join(head.rjust(width) for head, width in zip(heads, COLUMNS)))
    for variant in VARIANTS:
        side, full = result[variant], result["full"]
        cells = [variant, side["rows"], side["response_tokens"], side["forward_tokens"]]
        for name in ("median_seconds", "median_cpu_seconds"):
            cells += [f"{side[name]:.3f}", f"{side[name] / full[name]:.2f}x"]
        print("".join(str(cell).rjust(width) for cell, width in zip(cells, COLUMNS)))
    print(
        f"speed-up {result['speedup']:.2f}x (each pair: {result['speedup_low']:.2f} to "
        f"{result['speedup_high']:.2f}); largest gradient difference "
        f"{result['gradient_difference']:.1e} of the largest element"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    default = ROOT / "data" / "trl-addition.safetensors"
    parser.add_argument("--rollouts", type=pathlib.Path, default=default)
    parser.add_argument("--k", type=float, default=0.4)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--vocab", type=int, default=36, help="at least; more than tokens need")
    parser.add_argument("--micro-batch", type=int, default=32, help="rows")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    options = parser.parse_args()

    batches = load_rollouts(options.rollouts, options.k, options.device)
    policy = make_policy(batches, options)
    difference = compare_gradients(policy, batches[0], options.micro_batch)
    seconds = measure(policy, batches, options)
    pairs = [full / dropped for full, dropped in zip(seconds["full"][0], seconds["dropped"][0])]
    medians = {variant: statistics.median(seconds[variant][0]) for variant in VARIANTS}
    on_gpu = options.device.startswith("cuda")
    result = {
        "kind": "drop_inactive",
        "rollouts": options.rollouts.name,
        "k": options.k,
        "updates": len(batches),
        "policy": f"{options.layers} layers of width {options.width}, vocabulary "
        f"{policy.config.vocab_size}, float32, micro-batches of {options.micro_batch}",
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
        "torch": torch.__version__,
        "gradient_difference": difference,
        "speedup": medians["full"] / medians["dropped"],
        "speedup_low": min(pairs),
        "speedup_high": max(pairs),
    }
    for variant in VARIANTS:
        wall, cpu = seconds[variant]
        result[variant] = describe(batches, variant) | {
            "seconds": wall,
            "cpu_seconds": cpu,
            "median_seconds": medians[variant],
            "median_cpu_seconds": statistics.median(cpu),
        }
    if options.json:
        print(json.dumps(result))
    else:
        report(result)


if __name__ == "__main__":
    main()
