#!/usr/bin/env python3
"""Collects what scripts/gpu-suite.sh measured into one record, and prints it as tables.

    scripts/gpu-record.py --part P --logs OUT/logs/P --manifest MANIFEST.json --out OUT

Writes OUT/<date>-<gpu>-<part>.json; benches/records/README.md describes its fields. Figures come
from the logs alone: what was not measured is absent from the record and a dash in the tables. Needs
no package beyond the standard library.
"""

import argparse
import csv
import datetime
import json
import pathlib
import re
import statistics
import sys

SCHEMA = 1
# Kinds of lines that the programs print, by their place in the record: one, or a list.
SINGLE = ["device", "copy", "pytorch_device", "pytorch_copy"]
FROM_LOGITS = ["loss_from_logits", "log_probs_from_logits", "log_probs_from_logits_backward"]
LISTS = ["loss_from_log_probs", *FROM_LOGITS, "logits_check", "repeat_bits"]
LISTS += ["pytorch", "pytorch_logits", "skipped"]
# This package among the contenders of the Python programs.
OWN = "qae"

# What a kernel from logits is to reach, by its case: the part of the copy bandwidth, and how many
# times faster than the fastest peer that moves the logits three times, and than eager PyTorch.
LOGITS_TARGETS = {
    "bf16/dense/in-place": (0.95, 1.4, 3.0),
    "bf16/inactive-80/zero-fill": (0.93, 2.3, None),
    "bf16/inactive-80/untouched": (0.89, 6.5, None),
    "bf16/forward": (0.93, None, None),
}


def is_optional(step):
    return step["step"].startswith("ncu")


def json_lines(path):
    """The objects of a log; a last line that a time limit cut off is left out."""
    objects = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            found = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(found, dict):
            objects.append(found)
    return objects


def read_steps(path):
    """What scripts/gpu-suite.sh noted of each step; a skipped one has no exit status."""
    steps = []
    for line in path.read_text().splitlines() if path.exists() else []:
        name, status, code, seconds, limit, reason = line.split("\t")
        steps.append(
            {
                "step": name,
                "status": status,
                "exit": None if code == "-" else int(code),
                "seconds": int(seconds),
                "limit": int(limit),
                "reason": reason,
            }
        )
    return steps


def gpu_states(path):
    """Rows of `nvidia-smi --query-gpu ... --format=csv`, units included."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        rows = list(csv.reader(file, skipinitialspace=True))
    header = [name.split(" [")[0] for name in rows[0]] if rows else []
    return [dict(zip(header, row)) for row in rows[1:] if len(row) == len(header)]


def counters(path):
    """Rows of `ncu --csv`: the counters of one launch."""
    if not path.exists():
        return []
    lines = path.read_text().splitlines()
    starts = [i for i, line in enumerate(lines) if line.startswith('"ID"')]
    if not starts:
        return []
    names = ("Kernel Name", "Metric Name", "Metric Unit", "Metric Value")
    # The profiled program prints to the same place.
    rows = csv.DictReader(line for line in lines[starts[0] :] if line.startswith('"'))
    return [{name.lower().replace(" ", "_"): row.get(name) for name in names} for row in rows]


def make_record(part, logs, manifest, now):
    steps = read_steps(logs / "steps.tsv")
    required = [step for step in steps if not is_optional(step)]
    before = gpu_states(logs / "gpu-before.csv")
    record = {
        "schema": SCHEMA,
        "part": part,
        "date": now.isoformat(timespec="seconds"),
        "complete": bool(required) and all(step["status"] == "passed" for step in required),
        "build": manifest,
        "steps": steps,
        "gpu": before[0] if before else None,
        "gpu_during": gpu_states(logs / "gpu-during.csv"),
        "counters": [row for path in sorted(logs.glob("ncu*.out")) for row in counters(path)],
    }
    record |= {name: None for name in SINGLE} | {name: [] for name in LISTS}
    # The profiled programs print their lines as well, of times that count for nothing.
    for path in sorted(set(logs.glob("*.out")) - set(logs.glob("ncu*.out"))):
        for line in json_lines(path):
            kind = line.pop("kind", None)
            if kind in SINGLE:
                record[kind] = line
            elif kind in LISTS:
                record[kind].append(line)
    return record


def serialized(record):
    """JSON with a line for each entry of a list: readable, and a change shows as one line."""
    fields = []
    for name, value in record.items():
        text = json.dumps(value)
        if isinstance(value, list) and value:
            text = "[\n" + ",\n".join(f"  {json.dumps(entry)}" for entry in value) + "\n ]"
        fields.append(f" {json.dumps(name)}: {text}")
    return "{\n" + ",\n".join(fields) + "\n}\n"


def gpu_name(record):
    device = record["device"] or record["gpu"] or {}
    return device.get("name", "unknown GPU")


def file_name(record):
    slug = re.sub(r"[^a-z0-9]+", "-", gpu_name(record).lower()).strip("-")
    return f"{record['date'][:10]}-{slug}-{record['part']}.json"


def copy_bandwidth(record, by="copy"):
    """Bytes per second, read and written."""
    copy = record[by]
    return copy["bytes"] / statistics.median(copy["seconds"]) if copy else None


def of_peer(record, peer):
    """Median seconds of a peer by slots and by whether responses are inactive."""
    found = {}
    for entry in record["pytorch"]:
        if entry["peer"] == peer:
            variant = entry["case"].split("/")[2]
            found[entry["slots"], variant] = statistics.median(entry["seconds"])
    return found


def shown(value, form):
    return "-" if value is None else format(value, form)


def ratio(peer, own):
    return None if peer is None else peer / own


def size_name(slots):
    if slots % (1 << 20) == 0:
        return f"{slots / 1e6:.1f} M"
    return f"{slots / 1e3:.1f} k"


def table(rows):
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        # Names to the left, figures to the right.
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:])]
        lines.append("  ".join(cells).rstrip())
    return lines


def loss_table(record):
    bandwidth = copy_bandwidth(record)
    peers = [of_peer(record, peer) for peer in ("eager", "compile")]
    header = ["loss_from_log_probs", "tokens", "by", "us", "spread", "GB/s", "of copy"]
    rows = [header + ["x eager", "x compile"]]
    for entry in record["loss_from_log_probs"]:
        seconds = entry["seconds"]
        median = statistics.median(seconds)
        deciles = statistics.quantiles(seconds, n=10) if len(seconds) > 1 else None
        spread = (deciles[8] - deciles[0]) / median if deciles else None
        rate = entry["bytes"] / median
        dtype, _, variant = entry["case"].split("/")[:3]
        row = [entry["case"], size_name(entry["slots"]), entry["launched_by"]]
        row += [f"{median * 1e6:.1f}", shown(spread, ".1%"), f"{rate / 1e9:.0f}"]
        row.append(shown(ratio(rate, bandwidth) if bandwidth else None, ".1%"))
        for peer in peers:
            # PyTorch launches from the host, in f32: only the like is compared.
            is_alike = dtype == "f32" and entry["launched_by"] == "stream"
            seconds = peer.get((entry["slots"], variant)) if is_alike else None
            row.append(shown(ratio(seconds, median), ".1f"))
        rows.append(row)
    return rows


def pytorch_table(record):
    rows = [["step in Python", "tokens", "peer", "us", "launches", "peak MB"]]
    for entry in record["pytorch"]:
        peak = entry["peak_bytes"]
        row = [entry["case"], size_name(entry["slots"]), entry["peer"]]
        row.append(f"{statistics.median(entry['seconds']) * 1e6:.1f}")
        row.append(shown(entry["launches"], "d"))
        rows.append(row + [shown(peak / 1e6 if peak is not None else None, ".1f")])
    return rows


def of_logits_peers(record, case):
    """Median seconds of each peer in what `case` of this crate does too, by name."""
    variant = "/".join(case.split("/")[:2])
    entries = [entry for entry in record["pytorch_logits"] if entry["case"] == variant]
    others = [entry for entry in entries if entry["peer"].split("-")[0] != OWN]
    return {entry["peer"]: statistics.median(entry["seconds"]) for entry in others}


def beside(value, target, form):
    """A figure with its target."""
    if value is None or target is None:
        return shown(value, form)
    return f"{value:{form}} (>= {target:{form}})"


def logits_table(record):
    bandwidth = copy_bandwidth(record)
    rows = [["from logits", "V", "ms", "GB/s", "of copy", "x fastest peer", "x eager", "beyond MB"]]
    for entry in (entry for kind in FROM_LOGITS for entry in record[kind]):
        median = statistics.median(entry["seconds"])
        rate = entry["bytes"] / median
        peers = of_logits_peers(record, entry["case"])
        eager = peers.get("eager")
        fastest = min(peers, key=peers.get, default=None)
        targets = LOGITS_TARGETS.get(entry["case"], (None,) * 3)
        of_fastest = beside(fastest and peers[fastest] / median, targets[1], ".2f")
        peak = entry.get("peak_bytes")
        row = [entry["case"], str(entry["vocab"]), f"{median * 1e3:.3f}", f"{rate / 1e9:.0f}"]
        row.append(beside(bandwidth and rate / bandwidth, targets[0], ".1%"))
        row.append(f"{of_fastest} {fastest}" if fastest else "-")
        row.append(beside(eager and eager / median, targets[2], ".2f"))
        rows.append([*row, shown(peak and peak / 1e6, ".1f")])
    return rows


def logits_peers_table(record):
    rows = [["peer", "case", "ms", "copies", "launches", "beyond MB", "error"]]
    copy = record["pytorch_copy"]
    of_copy = statistics.median(copy["seconds"]) if copy else None
    if copy:
        rows.append(["copy of the logits", "-", f"{of_copy * 1e3:.3f}", "1.0", "-", "-", "-"])
    for entry in record["pytorch_logits"]:
        median = statistics.median(entry["seconds"])
        peak = entry["peak_bytes"]
        row = [entry["peer"], entry["case"], f"{median * 1e3:.3f}"]
        row.append(shown(of_copy and median / of_copy, ".1f"))
        row += [shown(entry["launches"], "d"), shown(peak and peak / 1e6, ".1f")]
        rows.append([*row, f"{entry['error']:.1e}"])
    return rows


TABLES = {
    "tokens": [loss_table, pytorch_table],
    "logits": [logits_table, logits_peers_table],
}


def report(record):
    build = record["build"]
    changed = " with uncommitted changes" if build.get("uncommitted_changes") else ""
    driver = (record["gpu"] or {}).get("driver_version", "unknown")
    lines = [f"{gpu_name(record)}, driver {driver}, commit {build.get('commit')}{changed}"]
    for make_table in TABLES.get(record["part"], []):
        rows = make_table(record)
        lines += ["", *(table(rows) if len(rows) > 1 else [f"{rows[0][0]}: not measured"])]
    if record["part"] in TABLES:
        bandwidth = copy_bandwidth(record)
        lines.insert(1, f"copy bandwidth: {shown(bandwidth and bandwidth / 1e9, '.0f')} GB/s")
    for entry in record["skipped"]:
        lines.append(f"not measured: {', '.join(entry['cases'])}: {entry['reason']}")
    bits = record["repeat_bits"]
    if bits:
        differing = sum(entry["differing"] for entry in bits)
        launches = sum(entry["launches"] for entry in bits)
        lines += ["", f"same bits: {len(bits)} cases, {launches} launches, {differing} differ"]
    for entry in record["logits_check"]:
        error = f"off by {entry['error']:.1e}"
        lines.append(f"checked: {entry['case']}, V = {entry['vocab']}: {error}")
    others = [step for step in record["steps"] if step["status"] != "passed"]
    lines += [f"NOT PASSED: {step['step']}: {step['status']} {step['reason']}" for step in others]
    if not record["complete"]:
        lines.append("INCOMPLETE: not every required step passed")
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", required=True, help="of scripts/gpu-suite.sh")
    parser.add_argument("--logs", type=pathlib.Path, required=True)
    parser.add_argument("--manifest", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    options = parser.parse_args()
    try:
        manifest = json.loads(options.manifest.read_text())
    except (OSError, json.JSONDecodeError) as error:
        sys.exit(f"gpu-record: {options.manifest}: {error}")
    # The digests are in the bundle; the commit identifies what they are digests of.
    manifest.pop("sha256", None)
    now = datetime.datetime.now(datetime.timezone.utc)
    record = make_record(options.part, options.logs, manifest, now)
    path = options.out / file_name(record)
    path.write_text(serialized(record))
    print("\n".join(["", *report(record), "", f"record: {path}"]))


if __name__ == "__main__":
    main()
