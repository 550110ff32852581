"""What there is on this machine: versions, devices, backends, and for what is missing, why and what to do."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Any

import torch

from wm_engine import envs
from wm_engine.dream import BACKENDS
from wm_engine.dream.cpp_backend import CppBackend
from wm_engine.machine import available_cpus
from wm_engine.rng import RNG_VERSION

_PACKAGES = ("torch", "numpy", "gymnasium", "envpool", "vizdoom", "cma", "safetensors", "triton", "ray")


def collect_info() -> dict[str, Any]:
    """A JSON-able description of this installation and machine.

    ``dream_backends`` and ``environments`` map a name to ``{"available": bool, "detail": str}``; the detail says what
    it runs on, or why it is missing and how to get it.
    """
    return {
        "version": _version("wm-engine"),
        "rng_version": RNG_VERSION,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "cpus": available_cpus(),
        "devices": _devices(),
        "dream_backends": _dream_backends(),
        "environments": _environments(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _devices() -> dict[str, str]:
    devices = {"cpu": f"{available_cpus()} CPUs for this process, {platform.machine()}"}
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        devices[f"cuda:{index}"] = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    if torch.backends.mps.is_available():
        devices["mps"] = "Apple GPU"
    return devices


def _dream_backends() -> dict[str, dict[str, Any]]:
    found = {}
    for entry in BACKENDS:
        reason = entry.missing()
        runs = f"on {', '.join(entry.devices)}; precisions {', '.join(entry.precisions)}"
        if entry.name == "cpp" and reason is None:
            runs += f"; {CppBackend.describe()}"
        found[entry.name] = {"available": reason is None, "detail": reason or runs}
    return found


def _environments() -> dict[str, dict[str, Any]]:
    found = {}
    for name, task in (("envpool", "car_racing"), ("gymnasium", "car_racing"), ("vizdoom", "takecover")):
        problem = envs.backends(task)[name]
        found[name] = {"available": problem is None, "detail": problem or f"runs {envs.find_task(task).env_id}"}
    return found


def format_info(info: dict[str, Any]) -> str:
    """The description as text for people."""
    lines = [f"wm-engine {info['version'] or '(not installed)'}, random-number contract {info['rng_version']}"]
    lines.append(f"Python {info['python']} on {info['platform']}")
    lines.append("packages:")
    lines += [f"  {name:<12} {version or 'not installed'}" for name, version in info["packages"].items()]
    lines.append("devices:")
    lines += [f"  {name:<12} {detail}" for name, detail in info["devices"].items()]
    for title, key in (("dream backends, fastest first:", "dream_backends"), ("environments:", "environments")):
        lines.append(title)
        for name, state in info[key].items():
            mark = "yes" if state["available"] else "no "
            lines.append(f"  {name:<12} {mark}  {state['detail']}")
    return "\n".join(lines)
