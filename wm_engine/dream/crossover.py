"""From how many rollouts on one form of the Triton dream is faster than the other: measured once, kept on disk.

    key ─► this process ─► the file in the cache folder ─► measured on the device, and written to the file

The file is JSON, ``{key: rollouts}``, and may be deleted at any time. The environment variable ``WM_ENGINE_CACHE``
names another folder for it.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

from wm_engine.errors import CorruptFileError, StorageError
from wm_engine.files import read_json, write_json

_log = logging.getLogger(__name__)

SIZES = (1 << 10, 1 << 11, 1 << 12, 1 << 13, 1 << 14, 1 << 15)
"""Numbers of rollouts at which the forms are compared."""

_known: dict[str, int] = {}
_measuring = threading.Lock()


def cache_file() -> Path:
    """Return the crossovers' file, in ``$WM_ENGINE_CACHE``, ``$XDG_CACHE_HOME/wm_engine`` or ``~/.cache/wm_engine``."""
    folder = os.environ.get("WM_ENGINE_CACHE")
    if not folder:
        folder = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "wm_engine")
    return Path(folder) / "crossovers.json"


def crossover(key: str, seconds: Callable[[str, int], float]) -> int:
    """The least of SIZES at which the persistent form is as fast as the steps, or twice the largest where it never is.

    Parameters
    ----------
    key : names all that the answer depends on: device, versions, sizes, settings
    seconds : the time of "persistent" or "steps" at a number of rollouts; asked only where no answer is kept

    A file that cannot be read is passed over, one that cannot be written left alone; both are logged. Threads that ask
    at once, for several devices of a kind, wait for one of them to measure, and get the same answer.
    """
    with _measuring:
        if key not in _known:
            kept = _read()
            if key not in kept:
                kept[key] = next((n for n in SIZES if seconds("persistent", n) <= seconds("steps", n)), 2 * SIZES[-1])
                _log.info("triton: one persistent kernel from %d rollouts on, as measured", kept[key])
                _write(kept)
            _known[key] = kept[key]
        return _known[key]


def _read() -> dict[str, int]:
    path = cache_file()
    try:
        kept = read_json(path)
    except FileNotFoundError:
        return {}
    except (CorruptFileError, OSError) as error:
        _log.warning("%s is passed over: %s", path, error)
        return {}
    if not isinstance(kept, dict) or not all(type(rollouts) is int for rollouts in kept.values()):
        _log.warning("%s is passed over: it should hold a number of rollouts for each key", path)
        return {}
    return kept


def _write(kept: dict[str, int]) -> None:
    try:
        write_json(cache_file(), kept)
    except (StorageError, OSError) as error:
        _log.warning("the crossover is measured again next time: %s", error)
