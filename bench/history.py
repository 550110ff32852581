"""The append-only history of measurements: a JSON line each, never rewritten."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wm_engine.files import storage_errors


def default_path() -> Path:
    """``bench.jsonl`` in the user's data folder (XDG_DATA_HOME, or ~/.local/share)."""
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "wm_engine" / "bench.jsonl"


def append(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Add rows at the end, in one write, so that two processes do not mix their lines."""
    text = "".join(json.dumps(dict(row), sort_keys=True) + "\n" for row in rows)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8") as file:
            file.write(text)


def read(path: Path) -> list[dict[str, Any]]:
    """All rows, oldest first; a line cut short by a kill is left out. Empty where there is no history yet."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


@dataclass
class Line:
    """One rival's dream steps a second, by when and which commit, oldest first."""

    kind: str
    rates: dict[str, float] = field(default_factory=dict)

    @property
    def last(self) -> float:
        """The newest rate."""
        return next(reversed(self.rates.values()))


def dreams(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Line]]:
    """The rates of dreams, by workload and machine, then by rival, those of the fastest last rate first.

    What was measured twice in a minute keeps the later rate.
    """
    found: dict[str, dict[str, Line]] = {}
    for row in rows:
        if row.get("op") == "dream" and row.get("steps_per_second"):
            line = found.setdefault(_workload(row), {}).setdefault(row["name"], Line(row["kind"]))
            line.rates[_when(row)] = row["steps_per_second"]
    return {work: dict(sorted(lines.items(), key=lambda item: -item[1].last)) for work, lines in found.items()}


def _workload(row: Mapping[str, Any]) -> str:
    # Without T: the rate of a step hardly depends on how many there are.
    sizes = {"P": "candidates", "E": "episodes", "Z": "latent", "H": "hidden", "K": "mixtures", "A": "action"}
    work = " ".join(f"{letter}={row[name]}" for letter, name in sizes.items())
    ends = f", {100 * row['early_end']:.0f} % end early" if row["early_end"] else ""
    device = row["cpu"] if row["device"] == "cpu" else row["device"]
    return f"{work}, {row['mixture']}{ends}; {device}, {row['threads']} threads"


def _when(row: Mapping[str, Any]) -> str:
    return f"{row['date'][:16].replace('T', ' ')} {(row['commit'] or row['wm_engine'])[:7]}"
