"""The base of every configuration section.

Each stage declares its own section beside its code, ``config`` composes them, and pydantic does the checking.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """One section of the configuration: frozen, strictly typed, and without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
