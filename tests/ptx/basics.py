"""What all rooms share: the warp, the fault, types and the formats of numbers.

Source: the ISA, "Types".
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = Any
WARP = 32


class FaultError(Exception):
    """What a GPU would do wrong, or this machine does not know."""


class NotYetError(Exception):
    """What threads wait for has not come: others have to go first."""


# bfloat16, which NumPy lacks, is its bits.
TYPES = {
    "b8": np.uint8, "u8": np.uint8, "s8": np.int8, "b16": np.uint16, "u16": np.uint16, "s16": np.int16,
    "b32": np.uint32, "u32": np.uint32, "s32": np.int32, "f32": np.float32, "f16": np.float16, "bf16": np.uint16,
    "b64": np.uint64, "u64": np.uint64, "s64": np.int64, "f64": np.float64, "pred": np.bool_,
}  # fmt: skip


def to_bfloat16(x: Array) -> Array:
    """float32 to bfloat16's bits, uint16, to the nearest, ties to even; a NaN stays one."""
    bits = x.view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(x), np.uint16(0x7FFF), rounded)


def from_bfloat16(bits: Array) -> Array:
    """bfloat16's bits, uint16, as float32."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def from_halves(bits: Array, kind: str) -> Array:
    """The bits, uint16, of "bf16" or "f16" as float64."""
    return (bits.view(np.float16) if kind == "f16" else from_bfloat16(bits)).astype(np.float64)


def from_words(words: Array, kind: str) -> Array:
    """Of 32-bit registers, uint32 [..., N], the float64 elements: [..., N] of "tf32", [..., 2N] of "bf16" or "f16"."""
    words = np.ascontiguousarray(words)
    if kind == "tf32":
        return (words & ~np.uint32(0x1FFF)).view(np.float32).astype(np.float64)
    return from_halves(words.view(np.uint16), kind)


def flushed(x: Array) -> Array:
    """float32 with zeros of the same sign in the place of subnormals (.ftz)."""
    return np.where(np.abs(x) < np.float32(2.0**-126), np.copysign(np.float32(0), x), x)
