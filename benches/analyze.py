#!/usr/bin/env python3
"""`qae analyze` beside pandas and polars, on the same file, in turns.

    benches/analyze.py [--qae target/release/qae] [--gigabytes 1] [--text 1200] [--rounds 3]

Writes a JSONL file as verl dumps it (prompts, responses of about --text characters, uid with session)
into a temporary folder, runs every program once for warming up and --rounds times in turns, and
prints wall time, CPU time and the most memory of each. All of them compute, for K = 0.1 … 0.9, the
share of responses and of tokens with advantage 0, and must agree; `qae analyze` does the rest of its
report as well. Needs pandas, pyarrow and polars.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

LEVELS = [j / 10 for j in range(1, 10)]
GROUP_SIZE = 16


def write(path: Path, size: int, text: int) -> int:
    """Returns the number of rows."""
    rng = random.Random(0)
    words = [f"word{i}" for i in range(400)] + ["\n", "x^2 + \\frac{1}{2}", '"quoted"', "größe"]
    blocks = [" ".join(rng.choices(words, k=4000)) for _ in range(8)]
    # Escaped as Python does it, and cut at spaces, where no escape is cut.
    blocks = [json.dumps(block, ensure_ascii=False)[1:-1] for block in blocks]
    written = rows = step = 0
    with open(path, "w", encoding="utf-8", buffering=1 << 22) as f:
        while written < size:
            step += 1
            for _ in range(64):
                uid = uuid.UUID(int=rng.getrandbits(128))
                prompt = f"Problem {rng.getrandbits(40)}: {blocks[0][:300].rsplit(' ', 1)[0]}"
                chance = rng.random()
                for session in range(GROUP_SIZE):
                    length = int(text * rng.uniform(0.3, 1.7))
                    block = rng.choice(blocks)
                    start = block.index(" ", rng.randrange(len(block) - length - 100)) + 1
                    response = block[start : start + length].rsplit(" ", 1)[0]
                    line = (
                        f'{{"input": "{prompt}", "output": "{response}", "gts": "42", '
                        f'"score": {float(rng.random() < chance)}, "step": {step}, '
                        f'"response_length": {length // 4}, "uid": "{uid}_{session}_0"}}\n'
                    )
                    written += len(line.encode())
                    rows += 1
                    f.write(line)
    return rows


def ranks(sizes, level: float):
    """⌈k·n⌉ of the decimal k."""
    import numpy as np

    return np.ceil(np.round(level * sizes, 9)).astype(np.int64)


def with_pandas(path: str, engine: str) -> dict:
    import numpy as np
    import pandas as pd

    columns = ["uid", "score", "response_length"]
    rows = pd.read_json(path, lines=True, engine=engine)[columns]
    rows["uid"] = rows["uid"].str.rsplit("_", n=2).str[0]
    rows = rows.sort_values(["uid", "score"])
    names, starts, sizes = np.unique(rows["uid"], return_index=True, return_counts=True)
    score, length = rows["score"].to_numpy(), rows["response_length"].to_numpy()
    result = {"responses": len(rows), "groups": len(names)}
    for level in LEVELS:
        baseline = np.repeat(score[starts + ranks(sizes, level) - 1], sizes)
        zero = score == baseline
        result[str(level)] = [zero.mean(), length[zero].sum() / length.sum()]
    return result


def with_polars(path: str) -> dict:
    import polars as pl

    schema = {"uid": pl.String, "score": pl.Float64, "response_length": pl.Int64}
    rows = pl.scan_ndjson(path, schema=schema)
    group = pl.col("uid").str.replace(r"_\d+_\d+$", "")
    figures = [pl.len().alias("n"), pl.col("response_length").sum().alias("tokens")]
    for level in LEVELS:
        rank = (level * pl.len()).round(9).ceil().cast(pl.Int64)
        zero = pl.col("score") == pl.col("score").sort().get(rank - 1)
        figures.append(zero.sum().alias(f"zero {level}"))
        figures.append((pl.col("response_length") * zero).sum().alias(f"saved {level}"))
    groups = rows.group_by(group).agg(figures)
    total = groups.select(pl.len().alias("groups"), pl.exclude("uid").sum())
    total = total.collect(engine="streaming").to_dicts()[0]
    result = {"responses": total["n"], "groups": total["groups"]}
    for level in LEVELS:
        zero, saved = total[f"zero {level}"], total[f"saved {level}"]
        result[str(level)] = [zero / total["n"], saved / total["tokens"]]
    return result


def of_qae(output: bytes) -> dict:
    report = json.loads(output)
    result = {"responses": report["responses"], "groups": report["groups"]}
    for by_k in report["by_k"]:
        result[str(by_k["k"])] = [by_k["zero_share"], by_k["tokens_saved_share"]]
    return result


def measure(command: list[str]) -> tuple[bytes, float, float, float]:
    """Output, wall seconds, CPU seconds and the most memory in megabytes of a process."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    if status:
        sys.exit(f"{command}: status {status}")
    return output, wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1e3


def agree(results: dict[str, dict]) -> None:
    first = next(iter(results.values()))
    for name, result in results.items():
        for key, value in first.items():
            pairs = zip(value, result[key]) if isinstance(value, list) else [(value, result[key])]
            for a, b in pairs:
                if not abs(a - b) < 1e-9:
                    sys.exit(f"{name} finds {b} for {key}, another {a}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--qae", default="target/release/qae")
    parser.add_argument("--gigabytes", type=float, default=1)
    parser.add_argument("--text", type=int, default=1200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--without", nargs="*", default=[], help="programs to leave out")
    parser.add_argument("--only", choices=["pandas", "pandas-pyarrow", "polars"])
    parser.add_argument("file", nargs="?", help="with --only: the file to read")
    options = parser.parse_args()
    if options.only:
        runs = {
            "pandas": lambda path: with_pandas(path, "ujson"),
            "pandas-pyarrow": lambda path: with_pandas(path, "pyarrow"),
            "polars": with_polars,
        }
        print(json.dumps(runs[options.only](options.file), default=float))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "1.jsonl"
        rows = write(path, int(options.gigabytes * 1e9), options.text)
        print(f"{path.stat().st_size} bytes, {rows} rows, {os.cpu_count()} cores")
        again = [sys.executable, __file__, "--only"]
        commands = {
            "qae analyze": [options.qae, "analyze", str(path), "--format", "json"],
            "polars": [*again, "polars", str(path)],
            "pandas (pyarrow)": [*again, "pandas-pyarrow", str(path)],
            "pandas": [*again, "pandas", str(path)],
        }
        for name in options.without:
            del commands[name]
        figures: dict[str, list] = {name: [] for name in commands}
        for round_number in range(options.rounds + 1):
            results = {}
            for name, command in commands.items():
                output, *figure = measure(command)
                results[name] = of_qae(output) if name == "qae analyze" else json.loads(output)
                if round_number > 0:
                    figures[name].append(figure)
            agree(results)
        print(f"{'':18} {'wall s (least, median)':>24} {'CPU s':>8} {'memory MB':>10}")
        for name, runs in figures.items():
            wall, cpu, memory = zip(*runs)
            times = f"{min(wall):.2f}, {statistics.median(wall):.2f}"
            print(f"{name:18} {times:>24} {statistics.median(cpu):8.2f} {max(memory):10.0f}")


if __name__ == "__main__":
    main()
