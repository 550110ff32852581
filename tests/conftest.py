"""Keeps the source folder from shadowing the installed package, and gives the modules of tests/ to all tests."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

TESTS = Path(__file__).parent
ROOT = TESTS.parent

# `python -m pytest` puts the current folder on the path, where wm_engine/ stands without the built core and kernels.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
if importlib.util.find_spec("wm_engine") is None:
    raise SystemExit("wm_engine is not installed: run `pip install '.[test]'` first, then `pytest`")
sys.path.insert(0, str(TESTS))
