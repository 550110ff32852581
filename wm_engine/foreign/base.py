"""What every reader of another program's files gives, and what a file is told that is not what it says.

A format is a file of this folder with a module attribute ``read``, a function from paths to a :class:`Foreign`; a
dotted name is any module on Python's path.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wm_engine.errors import CorruptFileError
from wm_engine.kinds import find_kind, known_kinds
from wm_engine.models.base import Vision
from wm_engine.models.blind import Blind
from wm_engine.models.mdn_rnn import MDNRNN
from wm_engine.policies.controller import ControllerSpec

_PACKAGE = "wm_engine.foreign"
# The end's logit where a model has none: sigmoid(-40) is below every uniform number of the contract.
NEVER = -40.0


@dataclass(frozen=True)
class Foreign:
    """Models that others trained, in this program's form.

    vision : V; :class:`wm_engine.models.blind.Blind` where there was none
    world : M, finished
    spec, params : C, its shape and parameters float32 [D]
    start_mean, start_log_variance : float32 [N, Z], the posterior of states that dreams begin from
    files : what was read
    notes : what is not as it was there, a sentence each
    """

    vision: Vision
    world: MDNRNN
    spec: ControllerSpec
    params: Tensor
    start_mean: Tensor
    start_log_variance: Tensor
    files: tuple[Path, ...]
    notes: tuple[str, ...]


def find_format(name: str) -> Callable[[Sequence[Path]], Foreign]:
    """Find what reads a format; ConfigError with the nearest known name where there is none."""
    found: Callable[[Sequence[Path]], Foreign] = find_kind("format", name, _PACKAGE, "read")
    return found


def formats() -> list[str]:
    """Name the formats that can be read."""
    return known_kinds(_PACKAGE, "read")


def checked(path: Path, name: str, value: Any, shape: Sequence[int]) -> Tensor:
    """Return ``value`` as float32; CorruptFileError that names the file and the part where it has another shape or is
    not finite."""
    tensor = torch.as_tensor(value)
    if list(tensor.shape) != list(shape):
        raise CorruptFileError(f"{path}: {name} should have shape {list(shape)}, but had {list(tensor.shape)}.")
    tensor = tensor.to(torch.float32).contiguous()
    if not bool(torch.isfinite(tensor).all()):
        raise CorruptFileError(f"{path}: {name} should be finite, but was not.")
    return tensor


def blind(latent: int) -> tuple[Vision, str]:
    """Return what stands in V's place where there is none, and the sentence that says so."""
    return Blind(latent), "no V was there: the models dream, but neither see the real environment nor show pictures"


def no_controller(world: MDNRNN, squash: tuple[str, ...] | str) -> tuple[ControllerSpec, Tensor, str]:
    """Return a controller of zeros, and the sentence that says so."""
    spec = ControllerSpec(world.latent, world.hidden, world.action, "zh", squash)
    return spec, torch.zeros(spec.num_params), "no C was there: a controller of zeros stands in its place"


def standard_starts(latent: int) -> tuple[Tensor, Tensor, str]:
    """Return the prior of a VAE as what dreams begin from, and the sentence that says so."""
    return (
        torch.zeros(1, latent),
        torch.zeros(1, latent),
        "no start was there: dreams begin from z ~ N(0, 1), V's prior",
    )
