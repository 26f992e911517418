"""The table and the plot of ``train_arithmetic.py``, from what TRL logged."""

from __future__ import annotations

import math
from collections.abc import Callable

Log = list[dict[str, float]]
Series = list[tuple[int, float]]

# Okabe and Ito's vermilion, blue and bluish green, told apart in every kind of color vision.
STYLES = [("#D55E00", "--"), ("#0072B2", "-"), ("#009E73", "-.")]


def series(log: Log, value: Callable[[dict[str, float]], float | None]) -> Series:
    """``value`` at each step that has one."""
    found = [(entry["step"], value(entry)) for entry in log]
    return [(step, x) for step, x in found if x is not None]


def inactive(entry: dict[str, float]) -> float | None:
    """Share of the responses of advantage 0, which GRPO has in groups of equal rewards only."""
    share = entry.get("qae/zero_advantage", entry.get("frac_reward_zero_std"))
    return None if share is None else 100 * share


def speed(entry: dict[str, float]) -> float | None:
    """Completion tokens a second of forward and backward, in thousands, dropped ones included."""
    return entry["update_tokens"] / entry["update_seconds"] / 1e3


COLUMNS: dict[str, Callable[[dict[str, float]], float | None]] = {
    "reward": lambda entry: entry.get("reward"),
    "entropy": lambda entry: entry.get("entropy"),
    "inactive": inactive,
    "speed": speed,
}


def _mean(values: Series) -> float:
    return sum(x for _, x in values) / len(values) if values else math.nan


def _ends(values: Series, steps: int) -> tuple[float, float]:
    """Means of the first and of the last tenth of the steps."""
    if not values:
        return math.nan, math.nan
    span = max(steps // 10, 1)
    first = [(s, x) for s, x in values if s <= max(span, values[0][0])]
    last = [(s, x) for s, x in values if s > min(steps - span, values[-1][0] - 1)]
    return _mean(first), _mean(last)


def print_table(logs: dict[str, Log]) -> None:
    """Reward and entropy of the first and last tenth; the rest over all steps.

    Entropies are those of the steps in which all methods log it: it falls so fast that others are
    no comparison.
    """
    entropies = [series(log, COLUMNS["entropy"]) for log in logs.values()]
    common = set.intersection(*({step for step, _ in values} for values in entropies))
    print()
    print(f"{'':22s} {'reward':>15s} {'entropy, nats':>15s} {'inactive':>9s} {'update':>16s}")
    for name, log in logs.items():
        steps = log[-1]["step"]
        reward = _ends(series(log, COLUMNS["reward"]), steps)
        values = series(log, COLUMNS["entropy"])
        entropy = _ends([(step, x) for step, x in values if step in common], steps)
        share = _mean(series(log, inactive))
        tokens = sum(entry["update_tokens"] for entry in log)
        rate = tokens / sum(entry["update_seconds"] for entry in log)
        print(
            f"{name:22s} {reward[0]:6.2f} -> {reward[1]:5.2f} "
            f"{entropy[0]:6.3f} -> {entropy[1]:5.3f} {share:7.0f} % {rate:9,.0f} tok/s"
        )
    print(
        "inactive: responses of advantage 0. update: completion tokens, dropped ones included, a\n"
        "second of forward and backward, generation not counted; on the CPU in CPU time."
    )


def plot(logs: dict[str, Log], path: str) -> None:
    """Four panels, smoothed over a twentieth of the steps."""
    try:
        import matplotlib
    except ImportError:
        print("no plot: matplotlib is not installed")
        return
    matplotlib.use("Agg")
    # Reproducible files, with text that can be searched.
    matplotlib.rcParams.update({"svg.hashsalt": "qae", "svg.fonttype": "none", "font.size": 11})
    from matplotlib import pyplot

    titles = {
        "reward": "Reward (share of right sums)",
        "entropy": "Entropy of all tokens, nats",
        "inactive": "Responses of advantage 0, %",
        "speed": "Update, thousand tokens a second",
    }
    figure, axes = pyplot.subplots(2, 2, figsize=(9, 6), sharex=True, constrained_layout=True)
    for axis, (key, title) in zip(axes.flat, titles.items(), strict=True):
        for (name, log), (color, dash) in zip(logs.items(), STYLES, strict=True):
            points = _smoothed(series(log, COLUMNS[key]), log[-1]["step"] / 20)
            axis.plot(*zip(*points, strict=True), color=color, linestyle=dash, lw=2, label=name)
        axis.set_title(title, loc="left", fontsize=11)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    for axis in axes[1]:
        axis.set_xlabel("optimizer step")
    axes[0][0].legend(frameon=False, loc="lower right")
    figure.savefig(path, metadata={"Date": None} if path.endswith(".svg") else None)
    print(f"plot: {path}")


def _smoothed(values: Series, width: float) -> Series:
    """Means over the points within half of ``width`` steps."""
    near = [[x for s, x in values if abs(s - step) <= width / 2] for step, _ in values]
    return [(step, sum(xs) / len(xs)) for (step, _), xs in zip(values, near, strict=True)]
