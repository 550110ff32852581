"""What goes into a dream and what comes out: the types that the engine and its backends share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from wm_engine.checks import check_tensor
from wm_engine.policies.controller import ControllerSpec


@dataclass(frozen=True)
class Starts:
    """States that dreams begin from: z [N, Z], h and c [N, H]; missing h and c are zero. Any float dtype, finite.

    For an ensemble h and c are all its members' side by side, of which an episode takes its own member's.

    Starts taken from the middle of recorded rollouts, with (h, c) burnt in by running M over the recorded frames, are
    what makes a dream cover the whole environment.
    """

    z: Tensor
    h: Tensor | None = None
    c: Tensor | None = None

    def __post_init__(self) -> None:
        check_tensor("starts.z", self.z, ["N", "Z"])
        for name in ("h", "c"):
            value = getattr(self, name)
            if value is not None:
                check_tensor(f"starts.{name}", value, [self.z.shape[0], "H"])

    def __len__(self) -> int:
        return int(self.z.shape[0])

    def to(self, device: torch.device, dtype: torch.dtype, hidden: int) -> tuple[Tensor, Tensor, Tensor]:
        """(z [N, Z], h [N, H], c [N, H]) on a device, contiguous, zeros filled in."""

        def fill(value: Tensor | None) -> Tensor:
            if value is None:
                return torch.zeros(len(self), hidden, device=device, dtype=dtype)
            return value.to(device, dtype).contiguous()

        return self.z.to(device, dtype).contiguous(), fill(self.h), fill(self.c)


@dataclass(frozen=True)
class RolloutPlan:
    """A dream as it is asked for, checked by the engine: see :meth:`wm_engine.dream.engine.DreamEngine.rollout`.

    population : how many rollouts the whole has of which this may be a share; 0 where this is all of it. What a backend
        chooses by size it chooses by this, so that shares have the bits of the whole
    open_loop : actions are given in the controllers' place
    first_episode, episode_stride : the episodes are numbers first, first + stride, ... of the random-number contract
        and of the starts: those that one member of an ensemble dreams
    """

    episodes: int
    max_steps: int
    temperature: float = 1.0
    seed: int = 0
    reward: str = "predicted"
    done: str = "threshold"
    common_random_numbers: bool = True
    first_candidate: int = 0
    record: bool = False
    population: int = 0
    open_loop: bool = False
    first_episode: int = 0
    episode_stride: int = 1


def checked_controls(spec: ControllerSpec, params: Tensor | None, actions: Tensor | None) -> Tensor:
    """Return what acts in a dream, controllers [P, D] or actions [P, T, A], of which exactly one must be given.

    TypeError where both are given or none, ValueError for another shape or numbers that are not finite.
    """
    if actions is None:
        return check_tensor("params", params, ["P", spec.num_params])
    if params is not None:
        raise TypeError("params must be None where actions are given, which stand in the controllers' place")
    return check_tensor("actions", actions, ["P", "T", spec.action])


@dataclass(frozen=True)
class DreamOutput:
    """The dreams of a population.

    returns : float32 [P, E], sums of rewards; NaN where the rollout failed
    lengths : int32 [P, E], steps lived, the last one included
    failed : bool [P], whether a rollout of the candidate met a non-finite output of the controller (before its squash),
        reward, latent or end logit; such a rollout stops there, and no other is touched
    z : float32 [T, P, E, Z], the latent that each step led to; with ``record=True`` only, like the next two
    actions : float32 [T, P, E, A]
    rewards : float32 [T, P, E]; all three are zero after an episode's end
    """

    returns: Tensor
    lengths: Tensor
    failed: Tensor
    z: Tensor | None = None
    actions: Tensor | None = None
    rewards: Tensor | None = None


def join(parts: list[DreamOutput], device: torch.device) -> DreamOutput:
    """The output of a population, on a device, from those of its shares in order."""
    if len(parts) == 1:
        return parts[0]

    def joined(name: str, dim: int) -> Tensor:
        return torch.cat([getattr(part, name).to(device) for part in parts], dim=dim)

    names = ("returns", "lengths", "failed")
    tracks = () if parts[0].z is None else ("z", "actions", "rewards")
    return DreamOutput(*(joined(name, 0) for name in names), *(joined(name, 1) for name in tracks))


class Backend(Protocol):
    """One way to compute dreams. Arguments have been checked when they arrive here."""

    def rollout(self, controls: Tensor, starts: Starts, plan: RolloutPlan) -> DreamOutput:
        """Dream ``plan.episodes`` episodes of each of ``controls``.

        controls : controllers' parameters float32 [P, D]; of an open loop actions float32 [P, plan.max_steps, A]
        """
        ...

    def release(self) -> None:
        """Let go of the memory that is kept between calls."""
        ...
