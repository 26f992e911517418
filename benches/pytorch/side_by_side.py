"""What the programs of this folder share: contenders take turns and are compared in one table.

Before a contender is timed, its results are compared with float64. Then all of a case take turns,
sample by sample, so that what else the machine does meanwhile slows all of them. One that is not
installed, fails or computes something else is left out by name.
"""

import argparse
import json
import math
import statistics
import sys
import time

import torch

OWN = "qae"
CLIP_LOW, CLIP_HIGH, DUAL_CLIP = 0.2, 0.28, 3.0
GROUP_SIZE = 16
K = 0.4
EPSILON = 1e-6
BASELINES = {"dense": "mean", "inactive-80": "quantile"}


class WrongResult(Exception):
    pass


def parser(description, samples):
    found = argparse.ArgumentParser(description=description)
    default = "cuda" if torch.cuda.is_available() else "cpu"
    found.add_argument("--device", choices=("cuda", "cpu"), default=default)
    found.add_argument("--samples", type=int, default=samples, help="of each contender")
    found.add_argument("--cpu-time", action="store_true", help="of all threads, for a shared CPU")
    found.add_argument("--json", action="store_true", help="a line for each result, no table")
    found.add_argument("--quick", action="store_true", help="a tiny case: does everything run?")
    return found


class Report:
    """Prints results as lines of JSON when they come, or as a table at the end."""

    def __init__(self, options):
        self.as_json = options.json
        self.lines = []
        # What is wrong with this package, if anything is.
        self.own_failures = []
        is_cuda = options.device == "cuda"
        if is_cuda and not torch.cuda.is_available():
            raise SystemExit(f"{sys.argv[0]}: PyTorch finds no GPU")
        self.line(
            kind="pytorch_device",
            name=torch.cuda.get_device_name() if is_cuda else "cpu",
            torch=torch.__version__,
            python=sys.version.split()[0],
            threads=torch.get_num_threads(),
            clock="processor time" if options.cpu_time else "time",
        )

    def line(self, **fields):
        self.lines.append(fields)
        if self.as_json:
            print(json.dumps(fields), flush=True)

    def skip(self, contender, cases, reason):
        if contender.split("-")[0] == OWN:
            self.own_failures.append(f"{contender}: {reason}")
        self.line(kind="skipped", cases=[f"{contender} {case}" for case in cases], reason=reason)

    def close(self):
        """Prints the table; a failure of this package is one of the program."""
        if not self.as_json:
            print("\n".join(table(self.lines)))
        if self.own_failures:
            sys.exit("\n".join(self.own_failures))


def table(lines):
    device = lines[0]
    head = f"{device['name']}, {device['threads']} threads, torch {device['torch']}"
    head += f"; medians of {device['clock']}"
    rows = [["case", "contender", "ms", f"x {OWN}", "launches", "beyond MB", "error"]]
    own = {}
    timed = [line for line in lines if "seconds" in line and "peer" in line]
    for line in timed:
        if line["peer"] == OWN:
            own[line["case"], line.get("slots")] = statistics.median(line["seconds"])
    for line in timed:
        median = statistics.median(line["seconds"])
        of_own = own.get((line["case"], line.get("slots")))
        size = f" {line['slots']}" if "slots" in line else ""
        row = [line["case"] + size, line["peer"], f"{median * 1e3:.3f}"]
        row.append(f"{median / of_own:.2f}" if of_own else "-")
        row.append(str(line["launches"] or "-"))
        row.append(f"{line['peak_bytes'] / 1e6:.1f}" if line["peak_bytes"] is not None else "-")
        rows.append([*row, f"{line['error']:.1e}"])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    pads = (str.ljust, str.ljust, *[str.rjust] * 5)
    body = [
        "  ".join(pad(cell, width) for pad, cell, width in zip(pads, row, widths)) for row in rows
    ]
    skipped = [
        f"not measured: {', '.join(line['cases'])}: {line['reason']}"
        for line in lines
        if line["kind"] == "skipped"
    ]
    return [head, "", *body, *skipped]


class Clock:
    """Seconds of the device between two events; of the CPU by its own clock."""

    def __init__(self, options):
        self.is_cuda = options.device == "cuda"
        self.cpu_clock = time.process_time if options.cpu_time else time.perf_counter

    def time(self, work):
        if not self.is_cuda:
            start = self.cpu_clock()
            work()
            return self.cpu_clock() - start
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3


def made(makers, arguments, cases, report):
    """The contenders that can be had, by name; `makers` import what they need when called, and
    return None where they have nothing for a case."""
    found = {}
    for name, make in makers.items():
        try:
            found[name] = make(*arguments)
        except ImportError as error:
            report.skip(name, cases, f"not importable: {error}")
    return {name: step for name, step in found.items() if step is not None}


def run_case(case, steps, clock, report, samples):
    """Lets the contenders take turns, those whose results are right.

    `case` has a `name`, the `fields` of its lines, and, of a step: `check(step)`, the error of its
    results or WrongResult; `once(step)`, which runs it; `sampler(step)`, a function that takes a
    sample and returns seconds per step.
    """
    lines, take_sample = {}, {}
    for name, step in steps.items():
        start = time.perf_counter()
        try:
            line = {"error": case.check(step), "seconds_first": time.perf_counter() - start}
            take_sample[name] = case.sampler(step)
            lines[name] = line | on_device(lambda step=step: case.once(step), clock)
        except WrongResult as wrong:
            report.skip(name, [case.name], f"wrong: {wrong}")
        except Exception as failure:  # one that fails is none of the others' business
            reason = f"{type(failure).__name__}: {(str(failure).splitlines() or [''])[0]}"
            report.skip(name, [case.name], reason)
    seconds = {name: [] for name in lines}
    for _ in range(samples):
        for name, taken in seconds.items():
            taken.append(take_sample[name]())
    for name, taken in seconds.items():
        report.line(**case.fields, case=case.name, peer=name, **lines[name], seconds=taken)


def on_device(run, clock):
    """What a step launches, and what it allocates beyond its inputs; only on a GPU."""
    if not clock.is_cuda:
        return {"launches": None, "peak_bytes": None}
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = run()
    torch.cuda.synchronize()
    del result
    peak = torch.cuda.max_memory_allocated() - before
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        run()
        torch.cuda.synchronize()
    on_gpu = torch.autograd.DeviceType.CUDA
    launches = sum(event.device_type == on_gpu for event in profile.events())
    return {"launches": launches, "peak_bytes": peak}


def rewards_of(rows, device):
    """Half of the groups hard, half easy: with the mean every response acts, with the quantile one
    in five."""
    response = torch.arange(rows, device=device)
    group, member = response // GROUP_SIZE, response % GROUP_SIZE
    rare = (member * 5 + group) % GROUP_SIZE < torch.where(group % 5 == 4, 4, 3)
    return (rare == (group % 2 == 0)).float()


def group_advantages(rewards, baseline):
    """[rows] from [rows], all groups at once."""
    groups = rewards.view(-1, GROUP_SIZE)
    if baseline == "mean":
        subtracted = groups.mean(dim=1, keepdim=True)
    else:
        rank = math.ceil(K * GROUP_SIZE)
        subtracted = groups.sort(dim=1).values[:, rank - 1 : rank]
    return ((groups - subtracted) / (groups.std(dim=1, keepdim=True) + EPSILON)).view(-1)


def masked_mean(values, mask):
    """verl's: selects before it multiplies, so that what is masked may be anything."""
    selected = torch.where(mask.bool(), values, 0.0)
    return (selected * mask).sum() / (mask.sum() + 1e-8)


def eager_loss(log_prob, old_log_prob, advantages, mask, num_tokens):
    """verl's `vanilla` policy loss, operation by operation, with its metrics on the device."""
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


def trl_loss(log_prob, old_log_prob, advantages, mask, num_tokens):
    """The arithmetic of TRL 1.16's `GRPOTrainer._compute_loss` (`dapo` with `delta`), which is no
    function of its own, with its metrics on the device."""
    coef_1 = torch.exp(log_prob - old_log_prob)
    coef_2 = torch.clamp(coef_1, 1 - CLIP_LOW, 1 + CLIP_HIGH)
    coef_1 = torch.clamp(coef_1, max=DUAL_CLIP)
    losses = -torch.min(coef_1 * advantages, coef_2 * advantages)
    loss = (losses * mask).sum() / num_tokens
    is_low = (coef_1 < 1 - CLIP_LOW) & (advantages < 0)
    is_high = (coef_1 > 1 + CLIP_HIGH) & (advantages > 0)
    clipped = (is_low, is_high, is_low | is_high)
    return loss, [(part.float() * mask).sum() / mask.sum() for part in clipped]


def own_options(variant):
    """Keywords of this package for a case; they come with the rewards."""
    import qae

    objective = qae.Objective.clip(low=CLIP_LOW, high=CLIP_HIGH, dual_clip=DUAL_CLIP)
    baseline = {"mean": {"baseline": "mean"}, "quantile": {"k": K}}[BASELINES[variant]]
    return {"groups": GROUP_SIZE, "objective": objective, **baseline}


def expected_of_tokens(log_prob, old_log_prob, advantages, num_tokens):
    """In float64, each token's part of the loss, its derivative, and whether it is so near a bound
    that float32 may land on the other side."""
    ratio = torch.exp(log_prob.double() - old_log_prob.double())
    a = advantages.double()
    clipped = ratio.clamp(1 - CLIP_LOW, 1 + CLIP_HIGH)
    losses = torch.maximum(-a * ratio, -a * clipped)
    is_bound = (a < 0) & (losses > -a * DUAL_CLIP)
    is_taken = (-a * ratio >= -a * clipped) & ~is_bound
    bounds = torch.tensor([1 - CLIP_LOW, 1 + CLIP_HIGH, DUAL_CLIP], device=ratio.device)
    is_near = ((ratio.unsqueeze(-1) - bounds).abs() < 1e-6).any(dim=-1)
    losses = torch.where(is_bound, -a * DUAL_CLIP, losses) / num_tokens
    return losses, torch.where(is_taken, -ratio * a, 0.0) / num_tokens, is_near
