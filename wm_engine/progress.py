"""Progress of long work: a bar with rate and time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
from typing import Any, TextIO

from tqdm import tqdm

_SECONDS_BETWEEN_LINES = 10.0


class _Lines:
    """A stream for tqdm that ends every refresh with a newline instead of returning to the line's start."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._last = ""

    def write(self, text: str) -> int:
        line = text.strip("\r\n ")
        # Closing a bar refreshes it once more, mostly with nothing new to say.
        if line and line != self._last:
            self._stream.write(line + "\n")
            self._last = line
        return len(text)

    def flush(self) -> None:
        self._stream.flush()


def track(total: int | None, description: str, unit: str, initial: int = 0) -> Any:
    """A progress bar on stderr: ``update(n)``, ``set_postfix_str(text)``, ``close()``; also a context manager.

    ``total``: how many units the work has; None where that is unknown. ``initial``: units done by an earlier run.
    """
    if sys.stderr.isatty():
        # A terminal may give its size as 0 by 0 (containers, some CI): tqdm would then draw nothing.
        known = os.get_terminal_size(sys.stderr.fileno()).columns > 0
        size: dict[str, Any] = {"dynamic_ncols": True} if known else {"ncols": 80, "nrows": 24}
        return tqdm(total=total, desc=description, unit=unit, initial=initial, unit_scale=True, **size)
    return tqdm(
        total=total,
        desc=description,
        unit=unit,
        initial=initial,
        file=_Lines(sys.stderr),
        mininterval=_SECONDS_BETWEEN_LINES,
        maxinterval=_SECONDS_BETWEEN_LINES,
        ncols=0,
        unit_scale=True,
    )
