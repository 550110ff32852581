"""The CPU's table: ``python -m bench.cpu`` times the C++ core beside the batched peers, and on one thread beside all.

Both mixtures, all precisions of the core, peers in float32, P=64, E=16, T=100 at the paper's size; a mixture's rivals
are timed in turn, in one run. Prints the tables of ``wm-engine bench``, then the ratios, and how far the machine itself
comes with all threads; writes cpu.json with every row. A rival whose result is wrong gets no speed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from wm_engine.dream.cpp_backend import CppBackend
from wm_engine.files import write_json
from wm_engine.machine import available_cpus
from wm_engine.ops.mdn import MIXTURES

from .ceiling import PEAK, instruction_peak
from .dreams import ONE_THREAD, Entry, measure
from .measure import interleave, ratio
from .peers import jax_scan, torch_compile, torch_eager
from .provenance import provenance
from .rivals import Rival, rivals
from .tables import aligned, dream_table, machine_lines, workload_line
from .workload import Workload

_BACKEND = "cpp"
_PEERS = tuple(f"{peer.NAME} fp32" for peer in (jax_scan, torch_compile, torch_eager))
_SUFFIX = ", 1 thread"


def contestants(threads: int) -> tuple[list[Rival], dict[str, str]]:
    """The core in every precision, on all threads and on one, and the peers; the reasons why a peer is missing."""
    here, reasons = rivals("cpu", threads)
    field = [rival for rival in here if rival.name.split()[0] == _BACKEND or rival.name in _PEERS]
    for rival in rivals("cpu", 1)[0]:
        if rival.name.split()[0] == _BACKEND:
            field.append(Rival(rival.name + _SUFFIX, ONE_THREAD, "cpu", rival.precision, rival.build))
    return field, {name: reason for name, reason in reasons.items() if name in _PEERS}


def ratio_rows(entries: Sequence[Entry], threads: int) -> list[list[str]]:
    """For every mixture and precision of the core, its rate over each peer's, and over its own on one thread."""
    peers = [name for name in _PEERS if any(name in entry.versus for entry in entries)]
    rows = [["", *(f"x {name}" for name in peers), f"{threads} threads x 1"]]
    for entry in entries:
        if entry.kind == "engine":
            names = [*peers, entry.name + _SUFFIX]
            values = (f"{entry.versus[name]:.2f}" if name in entry.versus else "-" for name in names)
            rows.append([f"{entry.workload.mixture} {entry.precision}", *values])
    return rows


def peak_scaling(threads: int, rounds: int) -> dict[str, float]:
    """How many times one thread's instruction peak all threads together have, by precision.

    What the machine grants a program that shares nothing: cores of one clock, no sibling threads, nobody else. Empty on
    a level whose peaks the core does not know.
    """
    peaks = {
        (precision, count): instruction_peak(precision, count)
        for precision in CppBackend.PRECISIONS
        for count in (1, threads)
    }
    here = {key: peak for key, peak in peaks.items() if peak is not None}
    if not here:
        return {}
    timings = interleave({f"{precision} {count}": peak[0] for (precision, count), peak in here.items()}, rounds)
    return {
        precision: ratio(timings[f"{precision} {threads}"], flops, timings[f"{precision} 1"], here[precision, 1][1])
        for (precision, count), (_, flops) in here.items()
        if count == threads
    }


def run(rounds: int, work: dict[str, Any], out: Path) -> int:
    """Measure, print and write; 1 if a result was wrong."""
    threads = available_cpus()
    torch.set_num_threads(threads)
    field, reasons = contestants(threads)
    origin = provenance("cpu", threads)
    for line in (*machine_lines(origin), *(f"not here: {name}: {reason}" for name, reason in reasons.items())):
        print(line, flush=True)
    entries: list[Entry] = []
    for mixture in MIXTURES:
        workload = Workload(mixture=mixture, **work)
        entries += measure(workload, field, rounds, lambda text: print(text, file=sys.stderr, flush=True))
        mine = [entry for entry in entries if entry.workload == workload]
        print("\n".join(["", workload_line(workload), *dream_table(mine)]), flush=True)
    print("\n" + "\n".join(aligned(ratio_rows(entries, threads))))
    out.mkdir(parents=True, exist_ok=True)
    scaling = peak_scaling(threads, rounds)
    if scaling:
        factors = ", ".join(f"{name} {value:.2f}" for name, value in scaling.items())
        print(f"\n{PEAK}, {threads} threads x 1: {factors}")
    rows = [entry.row() for entry in entries]
    write_json(out / "cpu.json", {"machine": origin, "rows": rows, "peak_scaling": scaling})
    print(f"\n{out / 'cpu.json'} has every row")
    return int(any(entry.wrong for entry in entries))


def main(arguments: list[str] | None = None) -> int:
    """The command; 2 where the core was not built."""
    parser = argparse.ArgumentParser(prog="python -m bench.cpu", description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=9, help="timed runs of each rival (default 9)")
    parser.add_argument("--out", type=Path, default=Path(), help="folder of cpu.json (default: this one)")
    parser.add_argument("-P", dest="candidates", type=int, default=64)
    parser.add_argument("-E", dest="episodes", type=int, default=16)
    parser.add_argument("-T", dest="steps", type=int, default=100)
    parser.add_argument("-H", dest="hidden", type=int, default=256)
    chosen = parser.parse_args(arguments)
    there, reason = CppBackend.available()
    if not there:
        print(reason, file=sys.stderr)
        return 2
    sizes = {name: getattr(chosen, name) for name in ("candidates", "episodes", "steps", "hidden")}
    return run(chosen.rounds, sizes, chosen.out)


if __name__ == "__main__":
    raise SystemExit(main())
