"""The append-only history of measurements: a JSON line each, never rewritten."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from wm_engine.runs import storage_errors


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
