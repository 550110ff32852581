"""Kinds found by name: a task, a V, a world model or a learner is a module, and its name says which.

A bare name is a module of the package's own folder for that role; a dotted one is any module on Python's path. Either
way the module holds the kind under an attribute named for the role.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from typing import Any

from wm_engine.errors import ConfigError


def known_kinds(package: str, role: str) -> list[str]:
    """Name the modules of ``package`` that hold a kind for ``role``."""
    folder = importlib.import_module(package)
    names = [info.name for info in pkgutil.iter_modules(folder.__path__)]
    return sorted(name for name in names if hasattr(importlib.import_module(f"{package}.{name}"), role))


def find_kind(setting: str, name: Any, package: str, role: str) -> Any:
    """Return what the module called ``name`` holds for ``role``.

    ``setting`` names the thing in the ConfigError that an unknown name raises, with the nearest known one; so does a
    class that another module defines, since files name a class by its own module.
    """
    wanted = str(name)
    path = wanted if "." in wanted else f"{package}.{wanted}"
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        # A module that is there, but lacks something that it imports itself, is not an unknown name.
        if error.name is None or not (path == error.name or path.startswith(f"{error.name}.")):
            raise
        module = None
    except (TypeError, ValueError):  # "a..b", ".a"
        module = None
    if module is None or not hasattr(module, role):
        known = known_kinds(package, role)
        nearest = difflib.get_close_matches(wanted, known, 1, cutoff=0.4)
        hint = f"; the nearest known one is {nearest[0]!r}" if nearest else ""
        raise ConfigError(
            f"{setting}: {wanted!r} is unknown{hint}. There are {', '.join(known)}; a dotted name is a module of your "
            f"own with an attribute {role!r}."
        )
    found = getattr(module, role)
    if isinstance(found, type) and found.__module__ != path:
        raise ConfigError(
            f"{setting}: {wanted!r} takes its {role!r} from {found.__module__}, and files would name that module; give "
            f"{found.__module__!r} instead, or derive a class in {path}."
        )
    return found


def kind_name(kind: type, package: str) -> str:
    """Return the name under which :func:`find_kind` finds a class again."""
    return kind.__module__.removeprefix(f"{package}.")
