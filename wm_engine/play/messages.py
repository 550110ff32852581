"""What a page may say: small JSON messages, each checked before anything is done."""

from __future__ import annotations

import json
import struct
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

MOST_BYTES = 4096
_SEED = Field(None, ge=0, lt=2**31)
_PLACE = Field(ge=0, lt=2**31)


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Begin(_Message):
    """Begin a dream where a recorded episode begins, anywhere in one, or with the same start and seed as the last."""

    type: Literal["begin"]
    where: Literal["beginning", "anywhere", "again"]
    seed: int | None = _SEED


class BeginAt(_Message):
    """Begin a dream at a picked step of a picked episode."""

    type: Literal["begin_at"]
    episode: int = _PLACE
    step: int = _PLACE
    seed: int | None = _SEED


class Act(_Message):
    """The visitor's action [A] from now on."""

    type: Literal["act"]
    action: Annotated[list[float], Field(max_length=128)]


class Wheel(_Message):
    """Who is at the wheel."""

    type: Literal["wheel"]
    who: Literal["controller", "you"]


class Temperature(_Message):
    """The dream's temperature from now on."""

    type: Literal["temperature"]
    value: float = Field(ge=0.0, le=4.0)


class Switch(_Message):
    """Hold the dream, show the road beside it, or record a film."""

    type: Literal["pause", "road", "record"]
    on: bool


class Thumbnails(_Message):
    """Ask for pictures of recorded states to choose from."""

    type: Literal["thumbnails"]


Message: TypeAlias = Begin | BeginAt | Act | Wheel | Temperature | Switch | Thumbnails


def read_message(text: str) -> Message:
    """Read a message; ValueError says in a sentence what is wrong with it."""
    adapter: TypeAdapter[Message] = TypeAdapter(Annotated[Message, Field(discriminator="type")])
    try:
        return adapter.validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "message"
        raise ValueError(f"{place}: {first['msg']}, but was {str(first['input'])[:60]!r}") from None


def packed(header: dict[str, Any], parts: list[np.ndarray | bytes] | None = None) -> bytes:
    """Pack what the page is told: the header's length (uint32, little endian), the header as JSON, then the parts.

    Parts are films as they are, and pictures as their uint8 values row by row. The header says of each in ``parts``
    how many bytes it has and, of pictures, the ``shape``.
    """
    told: list[dict[str, Any]] = []
    raw: list[bytes] = []
    for part in parts or []:
        data = part if isinstance(part, bytes) else np.ascontiguousarray(part).tobytes()
        told.append({"bytes": len(data)} | ({} if isinstance(part, bytes) else {"shape": list(part.shape)}))
        raw.append(data)
    text = json.dumps(header | {"parts": told}, allow_nan=False).encode()
    return b"".join([struct.pack("<I", len(text)), text, *raw])
