"""The record of a run: ``metrics.jsonl`` for programs, TensorBoard events for people."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from wm_engine.files import finite_or_null, storage_errors


class Recorder:
    """Appends scalars to ``FOLDER/metrics.jsonl`` and to TensorBoard events in the same folder.

    A row: ``{"stage", "round", "step", "time" (Unix seconds), NAME: number, ...}``, null for a number that is not
    finite. A resumed run repeats the steps since its last checkpoint; :func:`read_metrics` keeps the newest row of each
    (stage, round, step).
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.path = self.folder / "metrics.jsonl"
        with storage_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            _end_torn_line(self.path)
        self._events: list[SummaryWriter] = []

    def log(self, stage: str, step: int, round_index: int = 0, **scalars: float | None) -> None:
        """Record the numbers of one step of ``stage``, None where there is none. ``step`` counts over all rounds."""
        self._write(stage, stage, step, round_index, scalars)

    def log_point(self, curve: str, place: int, round_index: int = 0, **scalars: float | None) -> None:
        """Record a point of a curve that every round draws anew; ``place`` is where it stands."""
        self._write(curve, f"{curve}.{round_index}", place, round_index, scalars)

    def _write(self, stage: str, tag: str, step: int, round_index: int, scalars: Mapping[str, float | None]) -> None:
        row: dict[str, Any] = {"stage": stage, "round": round_index, "step": step, "time": time.time()}
        row |= {name: None if value is None else float(value) for name, value in scalars.items()}
        with storage_errors(self.path), open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(finite_or_null(row), allow_nan=False) + "\n")
        with storage_errors(self.folder):
            if not self._events:
                # Made at the first row: a run with nothing left to do adds no empty events file.
                self._events.append(SummaryWriter(str(self.folder)))
            for name, value in scalars.items():
                if value is not None and math.isfinite(value):
                    self._events[0].add_scalar(f"{tag}/{name}", float(value), step)

    def close(self) -> None:
        """Write what is still in memory."""
        with storage_errors(self.folder):
            for events in self._events:
                events.close()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _end_torn_line(path: Path) -> None:
    # A kill can cut the last line short; without its newline the next row would be lost with it.
    if not path.exists() or path.stat().st_size == 0:
        return
    with open(path, "rb+") as file:
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.write(b"\n")


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """All rows of a ``metrics.jsonl``, the newest of each (stage, round, step), in order of first appearance.

    A number that was not finite is None. A line that is no row, cut short by a kill for one, is left out.
    """
    rows: dict[tuple[str, int, int], dict[str, Any]] = {}
    if not Path(path).exists():
        return []
    for line in Path(path).read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
            place = row["stage"], row["round"], row["step"]
        except (ValueError, KeyError, TypeError):
            continue
        rows[place] = row
    return list(rows.values())
