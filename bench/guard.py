"""``python -m bench.guard``: have the dreams become slower against their yardsticks?

Compares ratios with the committed baseline, not absolute times: the engine's rate over the machine's ceiling (its
instruction peak, or torch's bare matrix products), and over itself at another precision, all timed in turn in this run.
A ratio that fell by more than the margin fails. On a CPU everything runs on one thread and is timed in CPU seconds, so
that a busy neighbour moves no ratio. Ratios differ between processors, so the baseline holds a set for each; run by
hand, not by continuous checks.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from wm_engine.files import read_json, write_json
from wm_engine.ops.mdn import MIXTURES

from .dreams import Entry, measure
from .provenance import provenance
from .rivals import Rival, rivals
from .tables import aligned
from .workload import Workload

BASELINE = Path(__file__).resolve().parent / "baseline.json"
MARGIN = 0.15
"""How far a ratio may fall. On a quiet machine medians of the same build wander by about a third of this."""


def ratios(entries: Sequence[Entry]) -> dict[str, float]:
    """The engine's ratios in a measurement, by name: over the ceiling and over its own float32."""
    rates = {entry.name: entry.steps_per_second for entry in entries if entry.steps_per_second is not None}
    found = {}
    for entry in entries:
        if entry.kind != "engine" or entry.steps_per_second is None:
            continue
        # The instruction peak of int8 is of two minds on some processors, which moves the ratio by a sixth: int8 is
        # held to the backend's float32 alone.
        if entry.of_ceiling is not None and entry.precision != "int8":
            found[f"{entry.name} / ceiling {entry.precision}, {entry.workload.mixture}"] = entry.of_ceiling
        own = f"{entry.name.split()[0]} fp32"
        if entry.name != own and own in rates:
            found[f"{entry.name} / {own}, {entry.workload.mixture}"] = entry.steps_per_second / rates[own]
    return found


def regressions(baseline: Mapping[str, float], now: Mapping[str, float], margin: float) -> list[str]:
    """A line for every ratio of the baseline that fell by more than ``margin``, or that is no longer there."""
    lines = []
    for name, before in baseline.items():
        if name not in now:
            lines.append(f"{name}: was {before:.3f}, is not measured any more")
        elif now[name] < before * (1.0 - margin):
            lines.append(f"{name}: was {before:.3f}, is {now[name]:.3f}, {100 * (1 - now[name] / before):.0f} % less")
    return lines


def machine_key(origin: Mapping[str, Any]) -> str:
    """What ratios may be compared on: the processor and the number of threads."""
    return f"{origin['cpu']}, {origin['threads']} threads, {origin['device']}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0 within the margin, 1 past it or a wrong result, 2 without a baseline for this machine."""
    parser = argparse.ArgumentParser(prog="python -m bench.guard", description=__doc__)
    parser.add_argument("--baseline", type=Path, default=BASELINE)
    parser.add_argument("--margin", type=float, default=MARGIN, help="share that a ratio may fall by (%(default)s)")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--update", action="store_true", help="make this machine's measurement the baseline")
    options = parser.parse_args(arguments)

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(1)
    origin = provenance(device, 1)
    clock = time.process_time if device == "cpu" else None
    entries = [
        entry
        for mixture in MIXTURES
        for entry in measure(_workload(mixture), _field(device), options.rounds, _say, clock)
    ]
    wrong = [entry.wrong for entry in entries if entry.wrong]
    for line in wrong:
        print(f"WRONG: {line}")
    if wrong:
        return 1
    now = ratios(entries)
    known = read_json(options.baseline) if options.baseline.exists() else {}
    key = machine_key(origin)
    before = known.get(key, {}).get("ratios", {})
    rows = [[name, f"{before[name]:.3f}" if name in before else "", f"{value:.3f}"] for name, value in now.items()]
    print("\n".join(aligned([["ratio", "baseline", "now"], *rows])))
    if options.update:
        write_json(options.baseline, known | {key: {"ratios": now, "made": origin}})
        print(f"baseline of {key} written to {options.baseline}")
        return 0
    if not before:
        print(f"no baseline for {key} in {options.baseline}; --update makes one")
        return 2
    fallen = regressions(before, now, options.margin)
    for line in fallen:
        print(f"SLOWER: {line}")
    print(f"{len(fallen)} of {len(before)} ratios fell by more than {100 * options.margin:.0f} %")
    return 1 if fallen else 0


def _workload(mixture: str) -> Workload:
    return Workload(steps=50, mixture=mixture)


def _field(device: str) -> list[Rival]:
    here, _ = rivals(device, num_threads=1)
    return [rival for rival in here if rival.kind == "engine" and not (device == "cpu" and rival.precision == "fp16")]


def _say(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
