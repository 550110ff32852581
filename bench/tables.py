"""Measurements as text that a person can read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .dreams import Entry
from .history import Line
from .measure import WIDE
from .workload import Workload

_NEWEST = 5
_SHORT = {
    "one rollout at a time fp32": "loop",
    "one rollout at a time, tuned fp32": "tuned loop",
    "torch eager, batched fp32": "eager",
    "torch.compile, batched fp32": "compile",
    "torch, CUDA graph fp32": "graph",
    "JAX jit(scan), batched fp32": "JAX",
}


def machine_lines(origin: dict[str, Any]) -> list[str]:
    """The machine and the versions, two lines."""
    versions = [f"{name} {origin[name]}" for name in ("wm_engine", "python", "torch", "jax", "triton") if origin[name]]
    commit = f", commit {origin['commit']}" if origin["commit"] else ""
    return [
        f"{origin['cpu']}, {origin['threads']} of {origin['cpus']} CPUs, device {origin['device']}, "
        f"core {origin['isa'] or 'not built'}",
        f"{', '.join(versions)}{commit}, {origin['date']}, load {origin['load']:.1f}",
    ]


def dream_table(entries: Sequence[Entry]) -> list[str]:
    """A table of one workload: rates and their spread, ratios to the peers, share of the ceiling."""
    timed = sorted((e for e in entries if e.steps_per_second is not None), key=lambda e: -(e.steps_per_second or 0.0))
    peers = [name for name in _SHORT if any(name in entry.versus for entry in timed)]
    head = ["", "steps/s", "p20 - p80", "rollouts/s", *(f"x {_SHORT[peer]}" for peer in peers), "of ceiling"]
    rows = [
        [
            entry.name + (" *" if entry.kind == "engine" else ""),
            _thousands(entry.steps_per_second),
            f"{_thousands(entry.p20)} - {_thousands(entry.p80)}",
            f"{entry.rollouts_per_second:,.0f}",
            *(f"{entry.versus[peer]:.2f}" if peer in entry.versus else "" for peer in peers),
            "" if entry.of_ceiling is None or entry.kind == "ceiling" else f"{100 * entry.of_ceiling:.0f} %",
        ]
        for entry in timed
    ]
    lines = aligned([head, *rows])
    wide = [f"{entry.name} ({100 * entry.spread:.0f} %)" for entry in timed if entry.spread and entry.spread > WIDE]
    if wide:
        lines.append(
            f"warning: wide spread, (p80 - p20) / median above {100 * WIDE:.0f} %, of {', '.join(wide)}: the machine "
            "was busy with something else, so trust the ratios (taken within rounds) more than the rates"
        )
    return lines + [f"WRONG: {entry.wrong}" for entry in entries if entry.wrong]


def history_table(lines: Mapping[str, Line]) -> list[str]:
    """One workload's rates on one machine: a row a rival, the newest few measurements side by side."""
    whens = sorted({when for line in lines.values() for when in line.rates})[-_NEWEST:]
    rows = [[name, *(_thousands(line.rates.get(when)) for when in whens)] for name, line in lines.items()]
    return aligned([["dream steps/s", *whens], *rows])


def workload_line(w: Workload) -> str:
    """The workload in letters of the legend."""
    ends = f", {100 * w.early_end:.0f} % of the rollouts end early" if w.early_end else ""
    return (
        f"P={w.candidates} E={w.episodes} T={w.steps} Z={w.latent} H={w.hidden} K={w.mixtures} A={w.action}, "
        f"mixture {w.mixture}{ends}"
    )


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of equal length as columns: the first flush left, the others flush right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return lines


def _thousands(rate: float | None) -> str:
    if rate is None:
        return ""
    return f"{rate / 1e3:,.0f} k" if rate >= 1e4 else f"{rate / 1e3:,.1f} k"
