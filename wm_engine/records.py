"""The record of a run: ``metrics.jsonl`` for programs, TensorBoard events for people."""

from __future__ import annotations

import copy
import json
import math
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from wm_engine.runs import finite_or_null, storage_errors


class Recorder:
    """Appends scalars to ``FOLDER/metrics.jsonl`` and to TensorBoard events in the same folder.

    A row: ``{"stage", "iteration", "step", "time" (Unix seconds), NAME: number, ...}``, null for a number that is not
    finite. A resumed run repeats the steps since its last checkpoint; :func:`read_metrics` keeps the newest row of each
    (stage, iteration, step).
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.path = self.folder / "metrics.jsonl"
        with storage_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            _end_torn_line(self.path)
        self._prefix = ""
        self._events: list[SummaryWriter] = []

    def log(self, stage: str, step: int, iteration: int = 0, **scalars: float | None) -> None:
        """Record the numbers of one step of ``stage``, None where there is none. A curve is a row for each point."""
        stage = self._prefix + stage
        row: dict[str, Any] = {"stage": stage, "iteration": iteration, "step": step, "time": time.time()}
        row |= {name: None if value is None else float(value) for name, value in scalars.items()}
        with storage_errors(self.path), open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(finite_or_null(row), allow_nan=False) + "\n")
        with storage_errors(self.folder):
            if not self._events:
                # Made at the first row: a run with nothing left to do adds no empty events file.
                self._events.append(SummaryWriter(str(self.folder)))
            for name, value in scalars.items():
                if value is not None and math.isfinite(value):
                    tag = f"{stage}/{name}" if iteration == 0 else f"{stage}.{iteration}/{name}"
                    self._events[0].add_scalar(tag, float(value), step)

    def within(self, stage: str) -> Recorder:
        """The same record, for a part of ``stage`` that logs under a name of its own: "vision" as "STAGE.vision"."""
        inner = copy.copy(self)
        inner._prefix = f"{self._prefix}{stage}."
        return inner

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
    """All rows of a ``metrics.jsonl``, the newest of each (stage, iteration, step), in order of first appearance.

    A number that was not finite is None. A line that is no row, cut short by a kill for one, is left out.
    """
    rows: dict[tuple[str, int, int], dict[str, Any]] = {}
    if not Path(path).exists():
        return []
    for line in Path(path).read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
            place = row["stage"], row["iteration"], row["step"]
        except (ValueError, KeyError, TypeError):
            continue
        rows[place] = row
    return list(rows.values())
