"""The compiled C++ core, or why it is missing."""

from __future__ import annotations

import functools
import importlib
import json
from importlib import resources
from types import ModuleType
from typing import Any

_REMEDY = "install a C++17 compiler and Python's headers, then install wm_engine again"


@functools.cache
def core() -> tuple[ModuleType | None, str]:
    """``wm_engine._C`` and "", or None and the reason with its remedy."""
    try:
        return importlib.import_module("wm_engine._C"), ""
    except ImportError as error:
        reason = _build_info().get("reason") or str(error)
        return None, f"the C++ core was not built ({reason}); {_REMEDY}"


def core_sources() -> str | None:
    """A hash of what the core was built from; None where the build did not record it."""
    return _build_info().get("sources")


def _build_info() -> dict[str, Any]:
    """Read what ``setup.py`` wrote beside the core; empty where it cannot be read."""
    try:
        info = json.loads((resources.files("wm_engine") / "_build_info.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return info if isinstance(info, dict) else {}
