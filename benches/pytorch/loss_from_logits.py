"""From logits to the loss and its gradient: PyTorch, Liger, TRL, verl and QuACK beside this
package.

    python3 benches/pytorch/loss_from_logits.py [--rows 8192] [--vocab 151936] [--gpu-bench FILE]

bf16 logits; cases `dense` (mean baseline: every response active), `inactive-80` (quantile baseline
on the same rewards: one response in five is active, and only this package does less work), and
`forward` (log-prob and entropy of each row, no gradient). The loss is verl's clipped one with dual
clip, token-mean, as in loss_from_log_probs.py; advantages are given to the others and are part of
`qae.policy_loss_from_logits`, which returns entropies too. `qae-active` is that with the metrics of
active responses alone, so that it does not read the others. A copy of the logits shows the bandwidth
that a kernel can hope for.

Every sample is one step: its logits are restored and, on a GPU, a buffer larger than any cache is
overwritten before the clock starts, so that all of it is read from memory, and the host is ahead of
the device. Before a case is timed, the gradients of an active response and of an inactive one are
compared with float64. Triton's kernels (Liger's) run on a GPU, or with TRITON_INTERPRET=1, far
slower, on the CPU. With --json one object a line; fields as in benches/records/README.md. The lines
of FILE, which is examples/gpu_bench, are passed on.
"""

import collections
import functools
import gc
import math
import subprocess
import sys

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

CACHE_BYTES = 1 << 28
WARM_UPS = 2
# Of bf16 gradients, and of log-probs and entropies in nats.
TOLERANCE = 1e-2
FORWARD_TOLERANCE = 1e-3

# One step's inputs. `logits` is what it may overwrite.
Batch = collections.namedtuple("Batch", "logits token_ids old_log_prob mask advantages rewards")


class Data:
    """The batch, with the logits that every sample starts from."""

    def __init__(self, options):
        self.device = device = options.device
        self.width, self.vocab = options.width, options.vocab
        self.responses = options.rows // self.width
        generator = torch.Generator(device).manual_seed(0)
        shape = (self.responses, self.width + 1, self.vocab)
        self.pristine = torch.randn(shape, generator=generator, device=device, dtype=torch.bfloat16)
        self.pristine.mul_(2.0)
        self.work = torch.empty_like(self.pristine)
        cache_bytes = CACHE_BYTES if device == "cuda" else 1
        self.cache = torch.empty(cache_bytes, dtype=torch.uint8, device=device)
        ids = (self.responses, self.width)
        self.token_ids = torch.randint(self.vocab, ids, generator=generator, device=device)
        noise = torch.rand(ids, generator=generator, device=device)
        log_prob = torch.stack([self.row_log_probs(i)[0] for i in range(self.responses)])
        # Ratios of up to e^0.5 to either side: some are clipped.
        self.old_log_prob = log_prob.float() + (noise - 0.5)
        self.mask = torch.ones(ids, dtype=torch.uint8, device=device)
        self.rewards = rewards_of(self.responses, device)

    def row_log_probs(self, response):
        """Log-prob of each token of a response, its entropy, and the log-softmax, in float64."""
        log_softmax = self.pristine[response, : self.width].double().log_softmax(dim=-1)
        ids = self.token_ids[response].unsqueeze(-1)
        entropy = -(log_softmax.exp() * log_softmax).sum(dim=-1)
        return log_softmax.gather(-1, ids).squeeze(-1), entropy, log_softmax

    def batch(self, variant, extra):
        """`extra` rows follow the tokens of each response, as Liger wants them."""
        shape = (self.responses, self.width + extra, self.vocab)
        logits = self.work.view(-1)[: math.prod(shape)].view(shape)
        advantages = group_advantages(self.rewards, BASELINES.get(variant, "mean"))
        inputs = (self.token_ids, self.old_log_prob, self.mask)
        return Batch(logits, *inputs, advantages, self.rewards)

    def restore(self, batch):
        batch.logits.copy_(self.pristine[:, : batch.logits.shape[1]])
        self.cache.zero_()


def eager_log_probs(logits, token_ids):
    log_softmax = torch.log_softmax(logits.float(), dim=-1)
    log_prob = log_softmax.gather(-1, token_ids.unsqueeze(-1)).squeeze(-1)
    return log_prob, -(log_softmax.exp() * log_softmax).sum(dim=-1)


def eager_log_prob(logits, token_ids):
    log_softmax = torch.log_softmax(logits.float(), dim=-1)
    return log_softmax.gather(-1, token_ids.unsqueeze(-1)).squeeze(-1)


def with_log_prob(log_prob_of, policy_loss=eager_loss):
    def loss(logits, token_ids, old_log_prob, mask, advantages, _):
        log_prob = log_prob_of(logits, token_ids)
        given = (log_prob, old_log_prob, advantages.unsqueeze(-1), mask, mask.numel())
        return policy_loss(*given)[0]

    return loss


class Produced(torch.autograd.Function):
    """Logits as a model hands them over, in the same memory: neither a leaf nor a view of one,
    which may not be overwritten."""

    @staticmethod
    def forward(ctx, parameter, logits):
        return logits.detach()


def differentiated(loss):
    """A step: the gradient of `loss` of a batch."""

    def step(batch):
        parameter = torch.ones((), requires_grad=True)
        logits = Produced.apply(parameter, batch.logits)
        return torch.autograd.grad(loss(logits, *batch[1:]), logits)[0]

    return step


def without_gradient(log_probs_of):
    def step(batch):
        with torch.no_grad():
            return log_probs_of(*batch[:2])

    return step


# What makes a contender's step for a case; None where it has none.


def eager(variant):
    if variant == "forward":
        return without_gradient(eager_log_probs)
    return differentiated(with_log_prob(eager_log_prob))


def compiled(variant):
    torch.compiler.reset()  # every case is compiled for itself, with no limit on how many
    if variant == "forward":
        return without_gradient(torch.compile(eager_log_probs, dynamic=False))
    return differentiated(torch.compile(with_log_prob(eager_log_prob), dynamic=False))


def liger(variant):
    if variant == "forward":
        return None
    from liger_kernel.transformers.grpo_loss import triton_grpo_loss

    # Its wrapper's defaults are other than these.
    options = {"temperature": 1.0, "beta": 0.0, "eps_low": CLIP_LOW, "eps_high": CLIP_HIGH}
    options |= {"inplace": True, "loss_type": "dapo", "reduce": True, "delta": DUAL_CLIP}

    def loss(logits, token_ids, old_log_prob, mask, advantages, _):
        given = (logits, old_log_prob, None, token_ids, advantages, None)
        return triton_grpo_loss(*given, **options)[0]

    return differentiated(loss)


def trl(variant):
    try:
        from trl.trainer.utils import selective_log_softmax_and_entropy as both
    except ImportError:  # the trainer needs more than the kernels do
        from trl.kernels.logprob_entropy import selective_log_softmax_and_entropy as both

    def log_probs(logits, token_ids):
        # Without its kernel, results would be rounded to bf16.
        return both(logits if logits.is_cuda else logits.float(), token_ids)

    if variant == "forward":
        return without_gradient(log_probs)
    return differentiated(with_log_prob(lambda *given: log_probs(*given)[0], trl_loss))


def verl(variant):
    from verl.utils.torch_functional import entropy_from_logits, logprobs_from_logits

    # Without flash-attn, results would be rounded to bf16.
    def log_prob(logits, token_ids):
        return logprobs_from_logits(logits.float(), token_ids)

    def log_probs(logits, token_ids):
        logits = logits.float()
        return logprobs_from_logits(logits, token_ids), entropy_from_logits(logits)

    if variant == "forward":
        return without_gradient(log_probs)
    return differentiated(with_log_prob(log_prob))


def quack(variant):
    if variant == "forward":
        return None
    from quack.cross_entropy import cross_entropy

    def log_prob(logits, token_ids):
        options = {"reduction": "none", "inplace_backward": True}
        losses = cross_entropy(logits.view(-1, logits.shape[-1]), token_ids.view(-1), **options)
        return -losses.view(token_ids.shape)

    return differentiated(with_log_prob(log_prob))


def own(variant, **options):
    import qae

    if variant == "forward":
        return without_gradient(qae.log_probs_and_entropy)
    options |= own_options(variant)

    def loss(logits, token_ids, old_log_prob, mask, _, rewards):
        given = (logits, token_ids, old_log_prob)
        options.update(rewards=rewards, mask=mask, normalizer=mask.numel())
        return qae.policy_loss_from_logits(*given, inplace=True, **options)[0]

    return differentiated(loss)


def own_active(variant):
    return None if variant == "forward" else own(variant, metrics_scope="active")


PEERS = {
    "liger": liger,
    "quack": quack,
    "trl": trl,
    "verl": verl,
    "compile": compiled,
    "eager": eager,
    "qae": own,
    "qae-active": own_active,
}
EXTRA_ROWS = {"liger": 1}


def relative(found, expected):
    return ((found.double() - expected).norm() / expected.norm()).item()


class Case:
    def __init__(self, variant, data, clock):
        self.variant, self.data, self.clock = variant, data, clock
        self.name = f"bf16/{variant}"
        rows = data.responses * data.width
        active = data.width * int(data.batch(variant, 0).advantages.count_nonzero())
        self.fields = {"kind": "pytorch_logits", "rows": rows, "vocab": data.vocab}
        self.fields["active_rows"] = active

    def once(self, step):
        """A step on restored logits."""
        batch = self.data.batch(self.variant, step.extra)
        self.data.restore(batch)
        return step.run(batch)

    def check(self, step):
        check = self.check_forward if self.variant == "forward" else self.check_gradient
        return check(self.once(step))

    def check_gradient(self, gradient):
        """Relative error for an active response; an inactive one must have no gradient."""
        data = self.data
        is_active = data.batch(self.variant, 0).advantages != 0
        active = is_active.nonzero()[0].item()
        error = relative(gradient[active, : data.width], self.expected_gradient(active))
        if not is_active.all():
            inactive = (~is_active).nonzero()[0].item()
            if gradient[inactive, : data.width].count_nonzero().item():
                raise WrongResult("a response with advantage 0 has a gradient")
        # Negated, so that NaN fails.
        if not error <= TOLERANCE:
            raise WrongResult(f"the gradient is off by {error:e}")
        return error

    def expected_gradient(self, response):
        data, batch = self.data, self.data.batch(self.variant, 0)
        log_prob, _, log_softmax = data.row_log_probs(response)
        given = (log_prob, batch.old_log_prob[response], batch.advantages[response])
        _, of_log_prob, _ = expected_of_tokens(*given, batch.mask.numel())
        is_own = torch.nn.functional.one_hot(data.token_ids[response], data.vocab)
        return of_log_prob.unsqueeze(-1) * (is_own - log_softmax.exp())

    def check_forward(self, results):
        """Largest error of the log-probs and entropies of the last response, in nats."""
        response = self.data.responses - 1
        expected = self.data.row_log_probs(response)[:2]
        error = max(
            (found[response].double() - of_found).abs().max().item()
            for found, of_found in zip(results, expected)
        )
        if not error <= FORWARD_TOLERANCE:
            raise WrongResult(f"log-probs or entropies are off by {error:e}")
        return error

    def sampler(self, step):
        batch = self.data.batch(self.variant, step.extra)

        def sample():
            self.data.restore(batch)
            return self.clock.time(lambda: step.run(batch))

        for _ in range(WARM_UPS):
            sample()
        return sample


# What runs it, and how many rows it wants behind those of each response.
Step = collections.namedtuple("Step", "run extra")


def maker(name):
    def make(variant):
        run = PEERS[name](variant)
        return run and Step(run, EXTRA_ROWS.get(name, 0))

    return make


def run_cases(data, options, clock, report):
    for variant in (*BASELINES, "forward"):
        case = Case(variant, data, clock)
        makers = {name: maker(name) for name in options.peers}
        steps = made(makers, (variant,), [case.name], report)
        run_case(case, steps, clock, report, options.samples)
        gc.collect()
        if clock.is_cuda:
            torch.cuda.empty_cache()


def run_copy(data, samples, clock, report):
    copy = functools.partial(data.work.copy_, data.pristine)
    seconds = []
    for sample in range(WARM_UPS + samples):
        data.cache.zero_()
        taken = clock.time(copy)
        if sample >= WARM_UPS:
            seconds.append(taken)
    report.line(kind="pytorch_copy", bytes=2 * data.work.nbytes, seconds=seconds)


def run_gpu_bench(options):
    """This crate's kernels on the same shape, in a process of their own; its lines are passed on."""
    command = [options.gpu_bench, "--operation", "logits", "--samples", str(options.samples)]
    command += ["--rows", str(options.rows), "--vocab", str(options.vocab)]
    result = subprocess.run(command, check=False)
    if result.returncode:
        sys.exit(f"loss_from_logits.py: {options.gpu_bench} failed ({result.returncode})")


def chosen():
    options = parser(__doc__.split("\n\n")[0], samples=20)
    options.add_argument("--rows", type=int, help="tokens")
    options.add_argument("--width", type=int, default=64, help="tokens of a response")
    options.add_argument("--vocab", type=int)
    options.add_argument("--peers", nargs="*", choices=PEERS, help="all of them")
    options.add_argument("--gpu-bench", metavar="FILE", help="examples/gpu_bench, run first")
    found = options.parse_args()
    rows, vocab = (8192, 151936) if found.device == "cuda" else (1024, 32768)
    if found.quick:
        rows, vocab, found.width, found.samples = 2 * GROUP_SIZE, 50, 2, 2
    found.rows, found.vocab = found.rows or rows, found.vocab or vocab
    if found.peers is None:
        found.peers = [name for name in PEERS if not found.quick or name != "compile"]
    if found.rows <= 0 or found.rows % (found.width * GROUP_SIZE):
        options.error(f"--rows: expected a multiple of {found.width * GROUP_SIZE}")
    return found


def main():
    options = chosen()
    report = Report(options)
    if options.gpu_bench:
        run_gpu_bench(options)
    clock = Clock(options)
    data = Data(options)
    run_copy(data, options.samples, clock, report)
    run_cases(data, options, clock, report)
    report.close()


if __name__ == "__main__":
    main()
