"""The work of `loss_from_log_probs` in PyTorch: eager and torch.compile, on the same kind of batch.

A step is what a trainer does between log-probs and the backward of the model: advantages from the
rewards of a group, verl's sequence of operations for the clipped loss with dual clip (`vanilla`,
token-mean) with its metrics, and autograd down to the log-probs. Metrics stay on the device: verl
copies each to the host, which would add waits that are not arithmetic. Advantages are vectorized
over groups here; verl's loop over responses is timed on its own, on the CPU, where verl runs it.

    python3 benches/pytorch/loss_from_log_probs.py [--sizes 64k,1m,16m,128m] [--device cuda]

The batch is that of `examples/gpu_bench`: [rows, 1024] f32 with a u8 mask, groups of 16, rewards
that leave every response active with the mean as baseline and one in five with the quantile. Steps
rotate over copies that no cache holds. Before a case is timed, its loss and gradient are compared
with the formulas in float64. One JSON object a line; fields as in benches/records/README.md.
"""

import argparse
import collections
import json
import math
import sys
import time

import torch

WIDTH = 1024
GROUP_SIZE = 16
SPREAD = 128  # the mask leaves out at most this many slots of a row
CLIP_LOW, CLIP_HIGH, DUAL_CLIP = 0.2, 0.28, 3.0
K = 0.4
EPSILON = 1e-6
ROTATED_BYTES = 1 << 30
SAMPLE_SECONDS = 1e-3
MAX_STEPS_PER_SAMPLE = 100
MODES = ("eager", "compile")
MAX_LOOP_ROWS = 16384  # verl's loop takes seconds beyond

Batch = collections.namedtuple("Batch", "rewards log_prob old_log_prob mask")


def masked_mean(values, mask):
    """verl's: selects before it multiplies, so that what is masked may be anything."""
    selected = torch.where(mask.bool(), values, 0.0)
    return (selected * mask).sum() / (mask.sum() + 1e-8)


def policy_loss(log_prob, old_log_prob, advantages, mask, num_tokens):
    """verl's `vanilla` policy loss, operation by operation, and its metrics."""
    log_ratio = torch.clamp(log_prob - old_log_prob, min=-20.0, max=20.0)
    ratio = torch.exp(log_ratio)
    ppo_kl = masked_mean(-log_ratio, mask)
    unclipped = -advantages * ratio
    clipped = -advantages * torch.clamp(ratio, 1 - CLIP_LOW, 1 + CLIP_HIGH)
    worse = torch.maximum(unclipped, clipped)
    clip_fraction = masked_mean(torch.gt(clipped, unclipped).float(), mask)
    bound = -advantages * DUAL_CLIP
    bounded = torch.min(bound, worse)
    lower = torch.gt(worse, bound) * (advantages < 0).float()
    lower_fraction = masked_mean(lower, mask)
    losses = torch.where(advantages < 0, bounded, worse)
    loss = (torch.where(mask.bool(), losses, 0.0) * mask).sum() / num_tokens
    return loss, (ppo_kl, clip_fraction, lower_fraction)


def group_advantages(rewards, baseline):
    """[rows] from [rows], all groups at once."""
    groups = rewards.view(-1, GROUP_SIZE)
    if baseline == "mean":
        subtracted = groups.mean(dim=1, keepdim=True)
    else:
        rank = math.ceil(K * GROUP_SIZE)
        subtracted = groups.sort(dim=1).values[:, rank - 1 : rank]
    return ((groups - subtracted) / (groups.std(dim=1, keepdim=True) + EPSILON)).view(-1)


def forward(log_prob, old_log_prob, mask, rewards, baseline, num_tokens):
    advantages = group_advantages(rewards, baseline).unsqueeze(-1) * mask
    return policy_loss(log_prob, old_log_prob, advantages, mask, num_tokens)


def verl_loop(rewards, index):
    """verl's loop over responses and prompts, with the quantile of torch in place of the mean."""
    scores = rewards.clone()
    members, baseline, scale = collections.defaultdict(list), {}, {}
    for row in range(len(scores)):
        members[index[row]].append(scores[row])
    for prompt, values in members.items():
        stacked = torch.stack(values)
        baseline[prompt] = torch.quantile(stacked, K)
        scale[prompt] = torch.std(stacked)
    for row in range(len(scores)):
        prompt = index[row]
        scores[row] = (scores[row] - baseline[prompt]) / (scale[prompt] + EPSILON)
    return scores


def make_batch(slots, device):
    rows = slots // WIDTH
    generator = torch.Generator(device).manual_seed(0)

    def uniform(*shape):
        return torch.rand(*shape, generator=generator, device=device)

    old_log_prob = torch.log(1.0 - uniform(rows, WIDTH))  # of (0, 1]
    log_ratio = 0.5 * (uniform(rows, WIDTH) - uniform(rows, WIDTH))
    lengths = WIDTH - (uniform(rows, 1) * (SPREAD + 1)).long()
    mask = (torch.arange(WIDTH, device=device) < lengths).to(torch.uint8)
    response = torch.arange(rows, device=device)
    group, member = response // GROUP_SIZE, response % GROUP_SIZE
    rare = (member * 5 + group) % GROUP_SIZE < torch.where(group % 5 == 4, 4, 3)
    rewards = (rare == (group % 2 == 0)).float()
    return Batch(rewards, old_log_prob + log_ratio, old_log_prob, mask)


def check(step, batch, baseline, num_tokens):
    """Loss and gradient against the formulas in float64, some rows at a time."""
    loss, gradient = step(batch)
    loss = loss.item()
    advantages = group_advantages(batch.rewards.double(), baseline)
    expected_loss, square_error, square = 0.0, 0.0, 0.0
    for rows in torch.arange(len(advantages), device="cpu").split(4096):
        part = slice(rows[0].item(), rows[-1].item() + 1)
        log_ratio = batch.log_prob[part].double() - batch.old_log_prob[part].double()
        ratio, a = torch.exp(log_ratio), advantages[part].unsqueeze(-1)
        clipped = ratio.clamp(1 - CLIP_LOW, 1 + CLIP_HIGH)
        losses = torch.maximum(-a * ratio, -a * clipped)
        is_bound = (a < 0) & (losses > -a * DUAL_CLIP)
        # Float32 may land on the other side of a bound: such tokens are compared with neither.
        bounds = torch.tensor([1 - CLIP_LOW, 1 + CLIP_HIGH, DUAL_CLIP], device=ratio.device)
        is_near = ((ratio.unsqueeze(-1) - bounds).abs() < 1e-6).any(dim=-1)
        is_taken = (-a * ratio >= -a * clipped) & ~is_bound
        is_token = batch.mask[part].bool()
        losses = torch.where(is_bound, -a * DUAL_CLIP, losses)
        expected_loss += torch.where(is_token, losses, 0.0).sum().item() / num_tokens
        expected = torch.where(is_taken & is_token, -ratio * a, 0.0) / num_tokens
        difference = torch.where(is_near, 0.0, gradient[part].double() - expected)
        square_error += difference.square().sum().item()
        square += expected.square().sum().item()
    error = math.sqrt(square_error / square)
    # Negated, so that NaN fails.
    if not error <= 1e-5 or not abs(loss - expected_loss) <= 1e-5:
        raise SystemExit(f"wrong: gradient {error:e}, loss {loss} instead of {expected_loss}")
    return error


class Clock:
    """Seconds of the device between two events; of the CPU by its own clock."""

    def __init__(self, device):
        self.is_cuda = device == "cuda"

    def time(self, work):
        if not self.is_cuda:
            start = time.perf_counter()
            work()
            return time.perf_counter() - start
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3


def sampled(step, batches, samples, clock):
    """Seconds per step of each sample, and the steps that a sample spans."""
    position = 0

    def run(count):
        nonlocal position
        for _ in range(count):
            step(batches[position])
            position = (position + 1) % len(batches)

    run(3)
    estimate = clock.time(lambda: run(2)) / 2
    steps = min(max(1, math.ceil(SAMPLE_SECONDS / estimate)), MAX_STEPS_PER_SAMPLE)
    return steps, [clock.time(lambda: run(steps)) / steps for _ in range(samples)]


def count_launches(step, batch):
    """Kernels, copies and fills on the device in one step."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        step(batch)
        torch.cuda.synchronize()
    on_device = torch.autograd.DeviceType.CUDA
    return sum(event.device_type == on_device for event in profile.events())


def peak_bytes(step, batch):
    """What one step allocates beyond its inputs, gradient included."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = step(batch)
    torch.cuda.synchronize()
    del result
    return torch.cuda.max_memory_allocated() - before


def steps_of(mode, baseline, num_tokens):
    function = torch.compile(forward, dynamic=False) if mode == "compile" else forward

    def step(batch):
        log_prob = batch.log_prob.detach().requires_grad_()
        inputs = (batch.old_log_prob, batch.mask, batch.rewards)
        loss, _ = function(log_prob, *inputs, baseline, num_tokens)
        return loss.detach(), torch.autograd.grad(loss, log_prob)[0]

    return step


def report(**line):
    print(json.dumps(line), flush=True)


def run_size(slots, options, clock):
    first = make_batch(slots, options.device)
    set_bytes = sum(tensor.nbytes for tensor in first)
    copies = max(2, -(-ROTATED_BYTES // set_bytes)) if clock.is_cuda else 2
    batches = [first]
    batches += [Batch(*(tensor.clone() for tensor in first)) for _ in range(copies - 1)]
    num_tokens = first.mask.sum(dtype=torch.int64).item()
    for mode in options.modes:
        for name, baseline in (("dense", "mean"), ("inactive-80", "quantile")):
            torch.compiler.reset()  # every case is compiled for itself, with no limit on how many
            step = steps_of(mode, baseline, num_tokens)
            start = time.perf_counter()
            error = check(step, first, baseline, num_tokens)
            line = {
                "kind": "pytorch",
                "case": f"f32/padded+mask/{name}",
                "mode": mode,
                "slots": slots,
                "tokens": num_tokens,
                "relative_error": error,
                "seconds_first": time.perf_counter() - start,
                "peak_bytes": peak_bytes(step, first) if clock.is_cuda else None,
                "launches": count_launches(step, first) if clock.is_cuda else None,
            }
            steps, seconds = sampled(step, batches, options.samples, clock)
            report(**line, steps_per_sample=steps, seconds=seconds)


def run_loop(slots):
    rewards = make_batch(slots, "cpu").rewards
    rows = len(rewards)
    if rows > MAX_LOOP_ROWS:
        return
    index = [f"prompt-{row // GROUP_SIZE}" for row in range(rows)]
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        verl_loop(rewards, index)
        seconds.append(time.perf_counter() - start)
    # The first run warms up.
    report(kind="verl_loop", slots=slots, rows=rows, seconds=seconds[1:])


def sizes(text):
    """Such as 64k,16m in units of 1024 and 1024 squared."""
    found = []
    for part in text.split(","):
        unit = {"k": 1 << 10, "m": 1 << 20}.get(part[-1:], 1)
        found.append(int(part.rstrip("km")) * unit)
        if found[-1] <= 0 or found[-1] % (WIDTH * GROUP_SIZE):
            raise argparse.ArgumentTypeError(f"expected multiples of {WIDTH * GROUP_SIZE}: {part}")
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=sizes, default=sizes("64k,1m,16m,128m"))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--samples", type=int, default=30)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("loss_from_log_probs.py: PyTorch finds no GPU")
    name = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    report(kind="pytorch_device", name=name, torch=torch.__version__, python=sys.version.split()[0])
    clock = Clock(options.device)
    for slots in options.sizes:
        try:
            run_size(slots, options, clock)
        except torch.OutOfMemoryError as error:
            reason = str(error).splitlines()[0]
            report(kind="skipped", slots=slots, cases=["PyTorch"], reason=reason)
        run_loop(slots)


if __name__ == "__main__":
    main()
