"""Where a number comes from: machine, versions, commit, date."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

import wm_engine
from wm_engine.dream.cpp_backend import CppBackend
from wm_engine.kernels import triton_version
from wm_engine.machine import available_cpus


def provenance(device: str, threads: int | None) -> dict[str, Any]:
    """A flat JSON-able record of what a measurement was made on and with."""
    cpp_here, _ = CppBackend.available()
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "wm_engine": wm_engine.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "jax": _version("jax"),
        "triton": triton_version() if device == "cuda" else None,
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu(),
        "cpus": available_cpus(),
        "threads": threads or available_cpus(),
        "isa": CppBackend.describe() if cpp_here else None,
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def _commit() -> str | None:
    """The commit of the source tree that this runs from, with a + where it was changed; None outside a clone."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        answers = [
            subprocess.run(
                ["git", "-C", str(root), *words], capture_output=True, text=True, timeout=10, check=True
            ).stdout
            for words in (["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    return answers[0].strip() + ("+" if answers[1].strip() else "")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    named = {key.strip(): value.strip() for key, value in fields.items()}
    family = ", ".join(f"{key} {named[key]}" for key in ("cpu family", "model") if key in named)
    return f"{named.get('model name', platform.machine())} ({family})" if family else platform.machine()
