"""Argument checks with one voice: every message names the argument, what it was and what it should be."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

T = TypeVar("T")


def check_int(name: str, value: Any, *, least: int) -> int:
    """Return ``value`` as an int of at least ``least``; TypeError or ValueError otherwise."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an int, but was {value!r} ({type(value).__name__})")
    number = int(value.__index__())
    if number < least:
        raise ValueError(f"{name} must be at least {least}, but was {number}")
    return number


FLOAT32_MAX = float(torch.finfo(torch.float32).max)
"""The largest number that the backends can be given."""


def check_float(name: str, value: Any, *, least: float, most: float = float("inf")) -> float:
    """Return ``value`` as a finite float from ``least`` to ``most``; TypeError or ValueError otherwise."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a float, but was {value!r} ({type(value).__name__})")
    number = float(value)
    if not least <= number < float("inf"):
        raise ValueError(f"{name} must be finite and at least {least:g}, but was {number}")
    if number > most:
        raise ValueError(f"{name} must be at most {most:.8g}, but was {number}")
    return number


def check_bool(name: str, value: Any) -> bool:
    """Return ``value`` if it is True or False; TypeError otherwise: "no" would count as true."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, but was {value!r} ({type(value).__name__})")
    return value


def flag_of(text: str) -> bool:
    """Return what "True" or "False" stands for; ValueError for another text: ``bool("False")`` is true."""
    if text not in ("True", "False"):
        raise ValueError(f"a flag must be 'True' or 'False', but was {text!r}")
    return text == "True"


def check_type(name: str, value: Any, wanted: type[T]) -> T:
    """Return ``value`` if it is a ``wanted``; TypeError otherwise."""
    if not isinstance(value, wanted):
        raise TypeError(f"{name} must be a wm_engine.{wanted.__name__}, but was of type {type(value).__name__}")
    return value


def check_choice(name: str, value: Any, choices: Sequence[str]) -> str:
    """Return ``value`` if it is one of ``choices``; ValueError otherwise."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, but was {value!r}")
    return str(value)


def check_tensor(name: str, value: Any, shape: Sequence[int | str], *, finite: bool = True) -> Tensor:
    """Return ``value``, a floating tensor of the given shape.

    ``shape`` holds a number where the size is fixed and a letter of the legend where any size of at least 1 will do.
    Raises TypeError for another type or dtype, ValueError for another shape or entries that float32 does not hold as
    finite numbers (1e300 is finite in float64 only).
    """
    wanted = "[" + ", ".join(map(str, shape)) + "]"
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor of shape {wanted}, but was {type(value).__name__}")
    if not value.is_floating_point():
        raise TypeError(f"{name} must be a floating tensor, but its dtype was {value.dtype}")
    fits = value.dim() == len(shape) and all(
        size >= 1 if isinstance(want, str) else size == want for size, want in zip(value.shape, shape, strict=True)
    )
    if not fits:
        raise ValueError(f"{name} must have shape {wanted}, but had {list(value.shape)}")
    if finite:
        bad = value.numel() - _count_finite(value.detach().float())
        if bad:
            raise ValueError(f"{name} must be finite in float32, but {bad} of its {value.numel()} entries were not")
    return value


LARGEST_SIZE = 1 << 16
"""Of a head's Z and K; the C++ core has the same bound."""


def check_heads(
    logits: Tensor,
    means: Tensor,
    log_stds: Tensor,
    *,
    target: Tensor | None = None,
    grad: Tensor | None = None,
    counters: Tensor | None = None,
    leading: bool = False,
) -> None:
    """Check heads of a mixture and what an operator takes with them; TypeError for a dtype, ValueError otherwise.

    logits [B, C, K], where C is 1 or Z, means [B, Z, K], log_stds [B, Z, K], target [B, Z] and grad [B], all of one
    floating dtype, and counters int64 [B, 3], all on one device. ``leading``: any leading dimensions do instead of B.
    """
    if means.dim() != 3 and not (leading and means.dim() >= 2):
        raise ValueError(f"means must have shape [{'...' if leading else 'B'}, Z, K], but had {list(means.shape)}")
    *batch, latent, mixtures = means.shape
    for axis, size in enumerate((latent, mixtures), start=len(batch)):
        if not 1 <= size <= LARGEST_SIZE:
            raise ValueError(f"means.shape[{axis}] must be from 1 to {LARGEST_SIZE}, but was {size}")
    if not means.is_floating_point():
        raise TypeError(f"means must be a floating tensor, but its dtype was {means.dtype}")
    shared, per_dim = [*batch, 1, mixtures], [*batch, latent, mixtures]
    if (had := list(logits.shape)) != shared and had != per_dim:
        wanted = f"{shared} or {per_dim}" if latent > 1 else f"{shared}"
        raise ValueError(f"logits must have shape {wanted}, but had {had}")
    _check_beside("logits", logits, means, had)
    _check_beside("log_stds", log_stds, means, per_dim)
    if target is not None:
        _check_beside("target", target, means, [*batch, latent])
    if grad is not None:
        _check_beside("grad", grad, means, batch)
    if counters is not None:
        _check_beside("counters", counters, means, [*batch, 3], torch.int64)


def check_output(name: str, out: Tensor, shape: list[int], means: Tensor) -> None:
    """Check where results for heads of these means go: contiguous, of their dtype, on their device; as check_heads."""
    _check_beside(name, out, means, shape)
    if not out.is_contiguous():
        raise ValueError(f"{name} must be contiguous, but had strides {list(out.stride())}")


def _check_beside(name: str, value: Tensor, means: Tensor, shape: list[int], dtype: torch.dtype | None = None) -> None:
    if list(value.shape) != shape:
        raise ValueError(f"{name} must have shape {shape}, but had {list(value.shape)}")
    if value.dtype != (dtype or means.dtype):
        raise TypeError(f"{name} must be {dtype or f'{means.dtype}, as means is'}, but was {value.dtype}")
    if value.device != means.device:
        raise ValueError(f"{name} must be on {means.device}, as means is, but was on {value.device}")


def as_device(name: str, value: Any) -> torch.device:
    """Return ``value`` as a torch device, here or not; ValueError where it names none."""
    try:
        return torch.device(value)
    except (RuntimeError, TypeError) as error:
        raise ValueError(_not_here(name, value)) from error


def check_device(name: str, value: Any) -> torch.device:
    """Return ``value`` as a device that is here; ValueError that names those that are."""
    device = as_device(name, value)
    if (device.index or 0) >= device_counts().get(device.type, 0):
        raise ValueError(_not_here(name, value))
    return device


def device_counts() -> dict[str, int]:
    """Count the devices of each kind that torch finds here."""
    return {
        "cpu": 1,
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "mps": int(torch.backends.mps.is_available()),
    }


def _not_here(name: str, value: Any) -> str:
    counts = device_counts().items()
    here = [kind if kind != "cuda" else f"cuda:{index}" for kind, count in counts for index in range(count)]
    return f"{name} must be one that is here ({', '.join(here)}), but was {str(value)!r}"


def _count_finite(value: Tensor) -> int:
    if value.device.type == "cpu" and value.layout is torch.strided:
        # Not torch: its OpenMP threads would spin for milliseconds after it, on cores that the next dream is to have.
        return int(np.isfinite(value.resolve_neg().numpy()).sum())
    return int(value.isfinite().sum())
