"""The compiled C++ core, or why it is missing."""

from __future__ import annotations

import functools
import importlib
import json
from importlib import resources
from types import ModuleType

_REMEDY = "install a C++17 compiler and Python's headers, then install wm_engine again"


@functools.cache
def core() -> tuple[ModuleType | None, str]:
    """``wm_engine._C`` and "", or None and the reason with its remedy."""
    try:
        return importlib.import_module("wm_engine._C"), ""
    except ImportError as error:
        try:
            info = json.loads((resources.files("wm_engine") / "_build_info.json").read_text(encoding="utf-8"))
            reason = info["reason"] or str(error)
        except (OSError, ValueError, KeyError):
            reason = str(error)
        return None, f"the C++ core was not built ({reason}); {_REMEDY}"
