"""From logits to the loss and its gradient: PyTorch, Liger, TRL and QuACK beside this crate's
kernels, in one run on one GPU.

    python3 benches/pytorch/loss_from_logits.py [--rows 8192] [--vocab 151936] [--gpu-bench FILE]

bf16 logits; cases `dense` (mean baseline: every response active), `inactive-80` (quantile baseline
on the same rewards: one response in five is active, and only this crate does less work), and
`forward` (log-prob and entropy of each row, no gradient). The loss is verl's clipped one with dual
clip, token-mean, as in loss_from_log_probs.py; advantages are given to the peers and are part of the
launch of this crate, which returns entropies too. A peer that is not installed is left out, and
said so. A copy of the logits shows the bandwidth that a kernel can hope for.

Every sample is one step: its logits are restored and a buffer larger than any cache is overwritten
before the clock starts, so that all of it is read from memory, and the host is ahead of the device.
Before a case is timed, the gradients of an active response and of an inactive one are compared with
float64. One JSON object a line; fields as in benches/records/README.md. The lines of FILE, which is
examples/gpu_bench, are passed on.
"""

import argparse
import collections
import gc
import importlib
import math
import subprocess
import sys
import time

import torch
from loss_from_log_probs import (
    CLIP_HIGH,
    CLIP_LOW,
    DUAL_CLIP,
    GROUP_SIZE,
    Clock,
    count_launches,
    group_advantages,
    peak_bytes,
    policy_loss,
    report,
)

WIDTH = 64  # tokens of a response
CACHE_BYTES = 1 << 28
WARM_UPS = 2
# Of bf16 gradients, and of log-probs and entropies in nats.
TOLERANCE = 1e-2
FORWARD_TOLERANCE = 1e-3
BASELINES = {"dense": "mean", "inactive-80": "quantile"}

# One step's inputs. `logits` is what the peer may overwrite.
Batch = collections.namedtuple("Batch", "logits token_ids old_log_prob mask advantages")


class Data:
    """The batch, with the logits that every sample starts from."""

    def __init__(self, rows, vocab, device):
        self.rows, self.vocab, self.device = rows, vocab, device
        self.responses = rows // WIDTH
        generator = torch.Generator(device).manual_seed(0)
        shape = (self.responses, WIDTH + 1, vocab)
        self.pristine = torch.randn(shape, generator=generator, device=device, dtype=torch.bfloat16)
        self.pristine.mul_(2.0)
        self.work = torch.empty_like(self.pristine)
        cache_bytes = CACHE_BYTES if device == "cuda" else 1
        self.cache = torch.empty(cache_bytes, dtype=torch.uint8, device=device)
        ids = (self.responses, WIDTH)
        self.token_ids = torch.randint(vocab, ids, generator=generator, device=device)
        noise = torch.rand(ids, generator=generator, device=device)
        log_prob = torch.stack([self.row_log_probs(i)[0] for i in range(self.responses)])
        # Ratios of up to e^0.5 to either side: some are clipped.
        self.old_log_prob = log_prob.float() + (noise - 0.5)
        self.mask = torch.ones(ids, dtype=torch.uint8, device=device)
        response = torch.arange(self.responses, device=device)
        group, member = response // GROUP_SIZE, response % GROUP_SIZE
        rare = (member * 5 + group) % GROUP_SIZE < torch.where(group % 5 == 4, 4, 3)
        self.rewards = (rare == (group % 2 == 0)).float()

    def row_log_probs(self, response):
        """Log-prob of each token of a response, its entropy, and the log-softmax, in float64."""
        log_softmax = self.pristine[response, :WIDTH].double().log_softmax(dim=-1)
        ids = self.token_ids[response].unsqueeze(-1)
        entropy = -(log_softmax.exp() * log_softmax).sum(dim=-1)
        return log_softmax.gather(-1, ids).squeeze(-1), entropy, log_softmax

    def batch(self, variant, extra):
        """`extra` rows follow the tokens of each response, as Liger wants them."""
        shape = (self.responses, WIDTH + extra, self.vocab)
        logits = self.work.view(-1)[: math.prod(shape)].view(shape)
        advantages = group_advantages(self.rewards, BASELINES.get(variant, "mean"))
        return Batch(logits, self.token_ids, self.old_log_prob, self.mask, advantages)

    def restore(self, batch):
        batch.logits.copy_(self.pristine[:, : batch.logits.shape[1]])
        self.cache.zero_()


def log_prob_and_entropy(logits, token_ids):
    log_softmax = torch.log_softmax(logits.float(), dim=-1)
    log_prob = log_softmax.gather(-1, token_ids.unsqueeze(-1)).squeeze(-1)
    return log_prob, -(log_softmax.exp() * log_softmax).sum(dim=-1)


def eager_loss(logits, token_ids, old_log_prob, mask, advantages):
    log_softmax = torch.log_softmax(logits.float(), dim=-1)
    log_prob = log_softmax.gather(-1, token_ids.unsqueeze(-1)).squeeze(-1)
    return clipped_loss(log_prob, old_log_prob, mask, advantages)


def clipped_loss(log_prob, old_log_prob, mask, advantages):
    loss, _ = policy_loss(log_prob, old_log_prob, advantages.unsqueeze(-1), mask, mask.numel())
    return loss


def differentiated(loss):
    """A step: the gradient of `loss` of a batch."""

    def step(batch):
        logits = batch.logits.detach().requires_grad_()
        value = loss(logits, *batch[1:])
        return torch.autograd.grad(value, logits)[0]

    return step


def eager(_):
    return differentiated(eager_loss), lambda batch: log_prob_and_entropy(*batch[:2])


def compiled(_):
    torch.compiler.reset()
    loss = torch.compile(eager_loss, dynamic=False)
    both = torch.compile(log_prob_and_entropy, dynamic=False)

    def forward(batch):
        with torch.no_grad():
            return both(*batch[:2])

    return differentiated(loss), forward


def liger(_):
    module = importlib.import_module("liger_kernel.transformers.grpo_loss")

    def loss(logits, token_ids, old_log_prob, mask, advantages):
        options = {"temperature": 1.0, "beta": 0.0, "eps_low": CLIP_LOW, "eps_high": CLIP_HIGH}
        options |= {"inplace": True, "loss_type": "dapo", "reduce": True, "delta": DUAL_CLIP}
        given = (logits, old_log_prob, None, token_ids, advantages, None)
        return module.triton_grpo_loss(*given, **options)[0]

    return differentiated(loss), None


def trl(_):
    module = importlib.import_module("trl.kernels.logprob_entropy")
    both = module.selective_log_softmax_and_entropy

    def loss(logits, token_ids, *others):
        return clipped_loss(both(logits, token_ids)[0], *others)

    def forward(batch):
        with torch.no_grad():
            return both(*batch[:2])

    return differentiated(loss), forward


def quack(vocab):
    module = importlib.import_module("quack.cross_entropy")

    def loss(logits, token_ids, *others):
        options = {"reduction": "none", "inplace_backward": True}
        losses = module.cross_entropy(logits.view(-1, vocab), token_ids.view(-1), **options)
        return clipped_loss(-losses.view(token_ids.shape), *others)

    return differentiated(loss), None


# Name, steps of it (of the gradient, of the forward pass), rows that it wants behind each response,
# and whether the gradient replaces the logits. The fastest first, should time run out.
Peer = collections.namedtuple("Peer", "name make extra in_place", defaults=[0, False])
PEERS = [
    Peer("liger", liger, extra=1, in_place=True),
    Peer("quack", quack, in_place=True),
    Peer("trl", trl),
    Peer("compile", compiled),
    Peer("eager", eager),
]


def relative(found, expected):
    return ((found.double() - expected).norm() / expected.norm()).item()


def expected_gradient(data, batch, response):
    """Of one response, in float64."""
    log_prob, _, log_softmax = data.row_log_probs(response)
    advantage = batch.advantages[response].double()
    ratio = torch.exp(log_prob - batch.old_log_prob[response].double())
    clipped = ratio.clamp(1 - CLIP_LOW, 1 + CLIP_HIGH)
    losses = torch.maximum(-advantage * ratio, -advantage * clipped)
    is_bound = (advantage < 0) & (losses > -advantage * DUAL_CLIP)
    is_taken = (-advantage * ratio >= -advantage * clipped) & ~is_bound
    of_log_prob = torch.where(is_taken, -ratio * advantage, 0.0) / batch.mask.numel()
    own = torch.nn.functional.one_hot(data.token_ids[response], data.vocab)
    return of_log_prob.unsqueeze(-1) * (own - log_softmax.exp())


def check_gradient(data, batch, step):
    """Relative error of the gradient of an active response; an inactive one must have none."""
    data.restore(batch)
    gradient = step(batch)
    is_active = batch.advantages != 0
    active = is_active.nonzero()[0].item()
    error = relative(gradient[active, :WIDTH], expected_gradient(data, batch, active))
    if not is_active.all():
        inactive = (~is_active).nonzero()[0].item()
        if gradient[inactive, :WIDTH].count_nonzero().item():
            raise WrongResult("a response with advantage 0 has a gradient")
    # Negated, so that NaN fails.
    if not error <= TOLERANCE:
        raise WrongResult(f"the gradient is off by {error:e}")
    return error


def check_forward(data, batch, step):
    """Largest error of the log-probs and entropies of the last response, in nats."""
    data.restore(batch)
    response = data.responses - 1
    expected = data.row_log_probs(response)[:2]
    error = max(
        (found[response].double() - of_found).abs().max().item()
        for found, of_found in zip(step(batch), expected)
    )
    if not error <= FORWARD_TOLERANCE:
        raise WrongResult(f"log-probs or entropies are off by {error:e}")
    return error


class WrongResult(Exception):
    pass


def sampled(data, batch, step, samples, clock):
    seconds = []
    for sample in range(WARM_UPS + samples):
        data.restore(batch)
        taken = clock.time(lambda: step(batch))
        if sample >= WARM_UPS:
            seconds.append(taken)
    return seconds


def run_case(data, peer, variant, step, options, clock):
    batch = data.batch(variant, peer.extra)
    start = time.perf_counter()
    checked = check_forward if variant == "forward" else check_gradient
    error = checked(data, batch, step)
    line = {
        "kind": "pytorch_logits",
        "case": f"bf16/{variant}",
        "peer": peer.name,
        "rows": data.rows,
        "vocab": data.vocab,
        "active_rows": int(batch.advantages.count_nonzero()) * WIDTH,
        "in_place": peer.in_place,
        "error": error,
        "seconds_first": time.perf_counter() - start,
        "peak_bytes": peak_bytes(step, batch) if clock.is_cuda else None,
        "launches": count_launches(step, batch) if clock.is_cuda else None,
    }
    report(**line, seconds=sampled(data, batch, step, options.samples, clock))


def skipped(peer, cases, reason):
    names = [f"{peer} bf16/{case}" for case in cases]
    report(kind="skipped", cases=names, reason=reason)


def run_peer(data, peer, options, clock):
    try:
        gradient, forward = peer.make(data.vocab)
    except ImportError as error:
        skipped(peer.name, [*BASELINES, "forward"], f"not importable: {error}")
        return
    for variant in (*BASELINES, "forward"):
        step = forward if variant == "forward" else gradient
        if step is None:
            continue
        try:
            run_case(data, peer, variant, step, options, clock)
        except WrongResult as error:
            skipped(peer.name, [variant], f"wrong: {error}")
        except Exception as error:  # a peer that fails is none of the others' business
            skipped(peer.name, [variant], f"{type(error).__name__}: {str(error).splitlines()[0]}")


def run_copy(data, options, clock):
    def copy():
        data.work.copy_(data.pristine)

    seconds = []
    for sample in range(WARM_UPS + options.samples):
        data.cache.zero_()
        taken = clock.time(copy)
        if sample >= WARM_UPS:
            seconds.append(taken)
    report(kind="pytorch_copy", bytes=2 * data.work.nbytes, seconds=seconds)


def run_gpu_bench(options):
    """This crate's kernels on the same shape, in a process of their own; its lines are passed on."""
    command = [options.gpu_bench, "--operation", "logits", "--samples", str(options.samples)]
    command += ["--rows", str(options.rows), "--vocab", str(options.vocab)]
    result = subprocess.run(command, check=False)
    if result.returncode:
        sys.exit(f"loss_from_logits.py: {options.gpu_bench} failed ({result.returncode})")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--vocab", type=int, default=151936)
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    names = [peer.name for peer in PEERS]
    parser.add_argument("--peers", nargs="*", choices=names, default=names)
    parser.add_argument("--gpu-bench", metavar="FILE", help="examples/gpu_bench, run first")
    options = parser.parse_args()
    if options.rows <= 0 or options.rows % (WIDTH * GROUP_SIZE):
        parser.error(f"--rows: expected a multiple of {WIDTH * GROUP_SIZE}")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("loss_from_logits.py: PyTorch finds no GPU")
    if options.gpu_bench:
        run_gpu_bench(options)
    name = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    report(kind="pytorch_device", name=name, torch=torch.__version__, python=sys.version.split()[0])
    clock = Clock(options.device)
    data = Data(options.rows, options.vocab, options.device)
    run_copy(data, options, clock)
    for peer in PEERS:
        if peer.name in options.peers:
            run_peer(data, peer, options, clock)
            gc.collect()
            if clock.is_cuda:
                torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
