"""Benchmarks: pytest-benchmark suites (``pytest bench``), the peers they compare with, and the commands' own measuring.

Installed as ``wm_engine.bench``; from a clone it is also importable as ``bench``.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import PathFinder
from pathlib import Path


def _prefer_the_installed_package(root: Path) -> None:
    """Import wm_engine from where it is installed, not from the source folder beside this one.

    From the root of a clone, ``python -m bench.X`` and ``pytest bench`` put the clone first on the path, where
    wm_engine has no compiled core and no kernels unless it was built in place. An editable installation is not
    affected: it is found by its own hook, and is this very folder.
    """
    if "wm_engine" in sys.modules or any((root / "wm_engine").glob("_C.*")):
        return
    elsewhere = [entry for entry in sys.path if Path(entry or ".").resolve() != root]
    spec = PathFinder.find_spec("wm_engine", elsewhere)
    if spec is None or spec.loader is None:
        return
    module = importlib.util.module_from_spec(spec)
    sys.modules["wm_engine"] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules["wm_engine"]
        raise


if __name__ == "bench":
    _prefer_the_installed_package(Path(__file__).resolve().parent.parent)
