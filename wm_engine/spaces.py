"""What environments show and take: the spaces that tasks, models and controllers must agree on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np

from wm_engine.checks import check_int


@dataclass(frozen=True)
class Pixels:
    """Pictures, uint8 ``shape`` = [height, width, 3]."""

    shape: tuple[int, ...] = (64, 64, 3)
    dtype: ClassVar[type] = np.uint8


@dataclass(frozen=True)
class Vector:
    """A vector of ``size`` real numbers, float32."""

    size: int
    dtype: ClassVar[type] = np.float32

    @property
    def shape(self) -> tuple[int, ...]:
        """[size]."""
        return (self.size,)


@dataclass(frozen=True)
class Codes:
    """A grid ``shape`` of integers in [0, count), int32."""

    shape: tuple[int, ...]
    count: int
    dtype: ClassVar[type] = np.int32


Observations: TypeAlias = Pixels | Vector | Codes


@dataclass(frozen=True)
class Box:
    """Actions that are vectors of A real numbers, each within its bounds."""

    low: tuple[float, ...]
    high: tuple[float, ...]
    dtype: ClassVar[type] = np.float32

    def __post_init__(self) -> None:
        if len(self.low) != len(self.high) or not self.low:
            raise ValueError(f"low and high must be of one length of at least 1, but had {self.low} and {self.high}")

    @property
    def size(self) -> int:
        """A, the length of an action as M and C know it."""
        return len(self.low)

    @property
    def shape(self) -> tuple[int, ...]:
        """[A], of an action as it is stored."""
        return (self.size,)

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """The bounds, float32 [A] each."""
        return np.array(self.low, np.float32), np.array(self.high, np.float32)

    def clip(self, actions: np.ndarray) -> np.ndarray:
        """The nearest actions within the bounds, float32 [..., A]."""
        return np.clip(actions, *self.bounds).astype(np.float32)

    def to_stored(self, actions: np.ndarray) -> np.ndarray:
        """Actions [..., A] as they are stored: the same."""
        return np.asarray(actions, np.float32)

    def from_stored(self, stored: np.ndarray) -> np.ndarray:
        """Stored actions as M and C know them, float32 [..., A]."""
        return np.asarray(stored, np.float32)


@dataclass(frozen=True)
class Discrete:
    """One of ``count`` actions: a number to the environment and in the store, one-hot to M and C."""

    count: int
    dtype: ClassVar[type] = np.int32

    def __post_init__(self) -> None:
        check_int("count", self.count, least=2)

    @property
    def size(self) -> int:
        """A, the length of a one-hot action."""
        return self.count

    @property
    def shape(self) -> tuple[int, ...]:
        """[], of an action as it is stored."""
        return ()

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """0 and 1 in each place, float32 [A] each."""
        return np.zeros(self.count, np.float32), np.ones(self.count, np.float32)

    def clip(self, actions: np.ndarray) -> np.ndarray:
        """The one-hot vectors of the largest entries, the first of equals, float32 [..., A]."""
        return self.from_stored(self.to_stored(actions))

    def to_stored(self, actions: np.ndarray) -> np.ndarray:
        """The place of the largest entry of actions [..., A]: int32 [...]."""
        return np.asarray(np.argmax(actions, axis=-1), np.int32)

    def from_stored(self, stored: np.ndarray) -> np.ndarray:
        """Stored numbers [...] as one-hot vectors, float32 [..., A]."""
        return np.eye(self.count, dtype=np.float32)[np.asarray(stored)]


Actions: TypeAlias = Box | Discrete


@dataclass(frozen=True)
class Spaces:
    """The spaces of a task: what it shows and what it takes."""

    observations: Observations
    actions: Actions

    def to_json(self) -> dict[str, Any]:
        """Describe the spaces as plain values for a file's header: the kind by name, and its fields."""
        return {side: _plain(getattr(self, side)) for side in ("observations", "actions")}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Spaces:
        """Make the spaces that :meth:`to_json` described; ValueError where ``plain`` is no such description."""
        return cls(_made("observations", plain, (Pixels, Vector, Codes)), _made("actions", plain, (Box, Discrete)))


def _plain(space: Observations | Actions) -> dict[str, Any]:
    fields = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(space).items()}
    return {"kind": type(space).__name__} | fields


def _made(side: str, plain: Mapping[str, Any], kinds: tuple[type, ...]) -> Any:
    try:
        fields = dict(plain[side])
        kind = {kind.__name__: kind for kind in kinds}[fields.pop("kind")]
        return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        names = ", ".join(kind.__name__ for kind in kinds)
        raise ValueError(f"{side} must be described as one of {names}, but the description was {plain!r}") from error
