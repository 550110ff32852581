"""What the mixture's operators have to refuse, whichever implementation it reaches, and what is said of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

ARGUMENTS = {
    "mdn_nll": ("logits", "means", "log_stds", "target"),
    "mdn_nll_backward": ("grad", "logits", "means", "log_stds", "target"),
    "mdn_sample": ("logits", "means", "log_stds", "counters", "seed", "temperature"),
}


def sound(operator: str, dtype: torch.dtype = torch.float32, device: torch.device | None = None) -> dict[str, Any]:
    """Arguments of an operator, by name, for 8 heads with Z = 4, K = 5 and a choice for every dimension."""
    shapes = {"logits": (8, 4, 5), "means": (8, 4, 5), "log_stds": (8, 4, 5), "target": (8, 4), "grad": (8,)}
    values: dict[str, Any] = {name: torch.zeros(shape, dtype=dtype, device=device) for name, shape in shapes.items()}
    values |= {"counters": torch.zeros(8, 3, dtype=torch.int64, device=device), "seed": 1, "temperature": 1.0}
    return {name: values[name] for name in ARGUMENTS[operator]}


def _other_dtype(value: Tensor) -> Tensor:
    return value.to(torch.float32 if value.dtype == torch.float64 else torch.float64)


def _elsewhere(value: Tensor) -> Tensor:
    return torch.empty_like(value, device="cpu" if value.is_meta else "meta")


_CHOICES = r"logits must have shape \[8, 1, 5\] or \[8, 4, 5\], but had"
_DTYPE = r"must be torch\.float\d\d, as means is, but was torch\.float\d\d"
_DEVICE = r"must be on \S+, as means is, but was on (cpu|meta)"
WRONG: list[tuple[str, Callable[[Tensor], Tensor], type[Exception], str]] = [
    ("means", lambda x: x[..., 0], ValueError, r"means must have shape \[B, Z, K\], but had \[8, 4\]"),
    ("means", lambda x: x[None], ValueError, r"means must have shape \[B, Z, K\], but had \[1, 8, 4, 5\]"),
    ("means", lambda x: x[:, :0], ValueError, r"means\.shape\[1\] must be from 1 to 65536, but was 0"),
    ("means", lambda x: x[..., :1].expand(8, 4, 65537), ValueError, r"means\.shape\[2\] must be .*, but was 65537"),
    ("means", lambda x: x.long(), TypeError, r"means must be a floating tensor, but its dtype was torch\.int64"),
    ("logits", lambda x: x[:, :2], ValueError, rf"{_CHOICES} \[8, 2, 5\]"),
    ("logits", lambda x: x[:7], ValueError, rf"{_CHOICES} \[7, 4, 5\]"),
    ("logits", lambda x: x[..., :4], ValueError, rf"{_CHOICES} \[8, 4, 4\]"),
    ("logits", lambda x: x[:, 0], ValueError, rf"{_CHOICES} \[8, 5\]"),
    ("logits", _other_dtype, TypeError, f"logits {_DTYPE}"),
    ("logits", _elsewhere, ValueError, f"logits {_DEVICE}"),
    ("log_stds", lambda x: x[..., :3], ValueError, r"log_stds must have shape \[8, 4, 5\], but had \[8, 4, 3\]"),
    ("log_stds", _other_dtype, TypeError, f"log_stds {_DTYPE}"),
    ("log_stds", _elsewhere, ValueError, f"log_stds {_DEVICE}"),
    ("target", lambda x: x[:5], ValueError, r"target must have shape \[8, 4\], but had \[5, 4\]"),
    ("target", lambda x: x[:, :3], ValueError, r"target must have shape \[8, 4\], but had \[8, 3\]"),
    ("target", lambda x: x.flatten(), ValueError, r"target must have shape \[8, 4\], but had \[32\]"),
    ("target", _other_dtype, TypeError, f"target {_DTYPE}"),
    ("target", _elsewhere, ValueError, f"target {_DEVICE}"),
    ("grad", lambda x: x[:7], ValueError, r"grad must have shape \[8\], but had \[7\]"),
    ("grad", lambda x: x.sum(), ValueError, r"grad must have shape \[8\], but had \[\]"),
    ("grad", _other_dtype, TypeError, f"grad {_DTYPE}"),
    ("grad", _elsewhere, ValueError, f"grad {_DEVICE}"),
    ("counters", lambda x: x[:2], ValueError, r"counters must have shape \[8, 3\], but had \[2, 3\]"),
    ("counters", lambda x: x[:, :2], ValueError, r"counters must have shape \[8, 3\], but had \[8, 2\]"),
    ("counters", lambda x: x.float(), TypeError, r"counters must be torch\.int64, but was torch\.float32"),
    ("counters", lambda x: x.int(), TypeError, r"counters must be torch\.int64, but was torch\.int32"),
    ("counters", _elsewhere, ValueError, f"counters {_DEVICE}"),
]
CASES = [
    pytest.param(operator, *wrong, id=f"{operator} {place} {wrong[0]}")
    for operator, names in ARGUMENTS.items()
    for place, wrong in enumerate(WRONG)
    if wrong[0] in names
]
"""(operator, the argument's name, what makes a sound one wrong, error, message)."""
