"""From log-probs to the loss and its gradient: PyTorch, verl and TRL beside this package.

    python3 benches/pytorch/loss_from_log_probs.py [--sizes 1m] [--device cpu]

A step is what a trainer does between log-probs and the backward of the model: advantages from the
rewards of a group, the clipped loss with dual clip (token-mean) with its metrics, and the gradient
down to the log-probs. `eager` and `compile` are verl's operations with metrics left on the device;
`verl` is its `compute_policy_loss_vanilla`, which copies each to the host; `trl` the arithmetic of
its trainer; `qae` is `qae.policy_loss`, `qae-active` the same with the metrics of active responses
alone, so that it does not read the others.

The batch is that of `examples/gpu_bench`: [rows, 1024] f32 with a u8 mask, groups of 16, rewards
that leave every response active with the mean as baseline (`dense`) and one in five with the
quantile (`inactive-80`). Steps rotate over copies that no cache holds. With --json one object a
line; fields as in benches/records/README.md.
"""

import argparse
import collections
import math

import torch
from side_by_side import (
    BASELINES,
    CLIP_HIGH,
    CLIP_LOW,
    DUAL_CLIP,
    GROUP_SIZE,
    Clock,
    Report,
    WrongResult,
    eager_loss,
    expected_of_tokens,
    group_advantages,
    made,
    own_options,
    parser,
    rewards_of,
    run_case,
    trl_loss,
)

WIDTH = 1024
SPREAD = 128  # the mask leaves out at most this many slots of a row
ROTATED_BYTES = 1 << 30
SAMPLE_SECONDS = 1e-3
MAX_STEPS_PER_SAMPLE = 100
TOLERANCE = 1e-5

Batch = collections.namedtuple("Batch", "rewards log_prob old_log_prob mask")


def make_batch(slots, device):
    rows = slots // WIDTH
    generator = torch.Generator(device).manual_seed(0)

    def uniform(*shape):
        return torch.rand(*shape, generator=generator, device=device)

    old_log_prob = torch.log(1.0 - uniform(rows, WIDTH))  # of (0, 1]
    log_ratio = 0.5 * (uniform(rows, WIDTH) - uniform(rows, WIDTH))
    lengths = WIDTH - (uniform(rows, 1) * (SPREAD + 1)).long()
    mask = (torch.arange(WIDTH, device=device) < lengths).to(torch.uint8)
    return Batch(rewards_of(rows, device), old_log_prob + log_ratio, old_log_prob, mask)


def with_advantages(policy_loss):
    def forward(log_prob, old_log_prob, mask, rewards, baseline, num_tokens):
        advantages = group_advantages(rewards, baseline).unsqueeze(-1) * mask
        return policy_loss(log_prob, old_log_prob, advantages, mask, num_tokens)[0]

    return forward


def differentiated(forward, variant, num_tokens):
    """A step: loss and gradient of a batch."""

    def step(batch):
        log_prob = batch.log_prob.detach().requires_grad_()
        inputs = (batch.old_log_prob, batch.mask, batch.rewards)
        loss = forward(log_prob, *inputs, BASELINES[variant], num_tokens)
        return loss.detach(), torch.autograd.grad(loss, log_prob)[0]

    return step


def eager(variant, num_tokens):
    return differentiated(with_advantages(eager_loss), variant, num_tokens)


def compiled(variant, num_tokens):
    torch.compiler.reset()  # every case is compiled for itself, with no limit on how many
    forward = torch.compile(with_advantages(eager_loss), dynamic=False)
    return differentiated(forward, variant, num_tokens)


def verl(variant, num_tokens):
    from verl.trainer.ppo.core_algos import compute_policy_loss_vanilla
    from verl.workers.config import FSDPActorConfig

    options = {"clip_ratio_low": CLIP_LOW, "clip_ratio_high": CLIP_HIGH, "clip_ratio_c": DUAL_CLIP}
    config = FSDPActorConfig(
        strategy="fsdp", rollout_n=GROUP_SIZE, ppo_micro_batch_size_per_gpu=1, **options
    )
    config.global_batch_info.update(dp_size=1, batch_num_tokens=num_tokens)

    def policy_loss(log_prob, old_log_prob, advantages, mask, _):
        given = (old_log_prob, log_prob, advantages, mask)
        return compute_policy_loss_vanilla(*given, "token-mean", config)

    return differentiated(with_advantages(policy_loss), variant, num_tokens)


def trl(variant, num_tokens):
    return differentiated(with_advantages(trl_loss), variant, num_tokens)


def own(variant, num_tokens, **options):
    import qae

    options |= own_options(variant)

    def forward(log_prob, old_log_prob, mask, rewards, _, num_tokens):
        given = {"rewards": rewards, "mask": mask, "normalizer": num_tokens}
        return qae.policy_loss(log_prob, old_log_prob, **given, **options)[0]

    return differentiated(forward, variant, num_tokens)


def own_active(variant, num_tokens):
    return own(variant, num_tokens, metrics_scope="active")


PEERS = {
    "eager": eager,
    "compile": compiled,
    "verl": verl,
    "trl": trl,
    "qae": own,
    "qae-active": own_active,
}


class Case:
    def __init__(self, variant, batches, num_tokens, clock):
        self.variant, self.batches, self.clock = variant, batches, clock
        self.num_tokens = num_tokens
        self.name = f"f32/padded+mask/{variant}"
        slots = batches[0].mask.numel()
        self.fields = {"kind": "pytorch", "slots": slots, "tokens": num_tokens}

    def once(self, step):
        return step(self.batches[0])

    def check(self, step):
        """Loss and gradient against the formulas in float64, some rows at a time."""
        batch = self.batches[0]
        loss, gradient = step(batch)
        advantages = group_advantages(batch.rewards.double(), BASELINES[self.variant])
        expected_loss, square_error, square = 0.0, 0.0, 0.0
        for start in range(0, len(advantages), 4096):
            part = slice(start, start + 4096)
            log_probs = (batch.log_prob[part], batch.old_log_prob[part])
            of_token = expected_of_tokens(
                *log_probs, advantages[part].unsqueeze(-1), self.num_tokens
            )
            losses, expected = (torch.where(batch.mask[part] != 0, x, 0.0) for x in of_token[:2])
            expected_loss += losses.sum().item()
            difference = torch.where(of_token[2], 0.0, gradient[part].double() - expected)
            square_error += difference.square().sum().item()
            square += expected.square().sum().item()
        error = math.sqrt(square_error / square)
        # Negated, so that NaN fails.
        if not error <= TOLERANCE or not abs(loss.item() - expected_loss) <= TOLERANCE:
            raise WrongResult(f"gradient off by {error:e}, loss {loss} for {expected_loss}")
        return error

    def sampler(self, step):
        """Samples of at least a millisecond, over copies that are in no cache."""
        position = 0

        def run(count):
            nonlocal position
            for _ in range(count):
                step(self.batches[position])
                position = (position + 1) % len(self.batches)

        run(3)
        estimate = self.clock.time(lambda: run(2)) / 2
        steps = min(max(1, math.ceil(SAMPLE_SECONDS / estimate)), MAX_STEPS_PER_SAMPLE)
        return lambda: self.clock.time(lambda: run(steps)) / steps


def run_size(slots, options, clock, report):
    first = make_batch(slots, options.device)
    set_bytes = sum(tensor.nbytes for tensor in first)
    copies = max(2, -(-ROTATED_BYTES // set_bytes)) if clock.is_cuda else 2
    batches = [first]
    batches += [Batch(*(tensor.clone() for tensor in first)) for _ in range(copies - 1)]
    num_tokens = first.mask.sum(dtype=torch.int64).item()
    peers = {name: PEERS[name] for name in options.peers}
    for variant in BASELINES:
        case = Case(variant, batches, num_tokens, clock)
        steps = made(peers, (variant, num_tokens), [case.name], report)
        run_case(case, steps, clock, report, options.samples)


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
    options = parser(__doc__.split("\n\n")[0], samples=30)
    options.add_argument("--sizes", type=sizes, help="slots, such as 64k,1m,16m,128m")
    options.add_argument("--peers", nargs="+", choices=PEERS, help="all of them")
    options = options.parse_args()
    if options.sizes is None:
        default = "64k,1m,16m,128m" if options.device == "cuda" else "1m"
        options.sizes = sizes("16k" if options.quick else default)
    if options.peers is None:
        options.peers = [name for name in PEERS if not options.quick or name != "compile"]
    if options.quick:
        options.samples = 2
    clock = Clock(options)
    report = Report(options)
    for slots in options.sizes:
        try:
            run_size(slots, options, clock, report)
        except torch.OutOfMemoryError as error:
            reason = str(error).splitlines()[0]
            report.line(kind="skipped", slots=slots, cases=["PyTorch"], reason=reason)
    report.close()


if __name__ == "__main__":
    main()
