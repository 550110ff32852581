"""The base of every configuration section.

Each stage declares its own section beside its code, ``config`` composes them, and pydantic does the checking.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """One section of the configuration: frozen, strictly typed, of finite numbers, without unknown keys."""

    free: ClassVar[frozenset[str]] = frozenset()
    """Settings that leave every result as it is (how often to log, to checkpoint): a run may go on with others."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    def identity(self) -> dict[str, Any]:
        """The settings that a result follows from, as plain values."""
        return self.model_dump(mode="json", exclude=set(self.free))
