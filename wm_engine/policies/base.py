"""What acts on a world model's features, in dreams and in the real environment alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from wm_engine.models.base import WorldModel


class Policy(Protocol):
    """Acts for n lanes.

    features : which parts of a world model's state it sees, by letters ("zh"), in this order
    """

    @property
    def features(self) -> str: ...

    def act(self, features: Tensor, lanes: Tensor) -> Tensor:
        """Return actions float32 [m, A] on features [m, F] of the given lanes int64 [m], on the features' device.

        A row may be non-finite: its lane has then failed, and no other is touched.
        """
        ...


@runtime_checkable
class EpisodicPolicy(Policy, Protocol):
    """A policy that keeps something of an episode from step to step, by lane: a plan, say.

    Its lanes differ by that alone, so a lane is nobody else's.
    """

    def begin(self, lanes: int, world: WorldModel) -> None:
        """Begin new episodes in so many lanes, and forget all others; ``world`` is whose features it will see."""
        ...


def begin_episodes(policy: Policy, lanes: int, world: WorldModel) -> None:
    """Tell a policy that new episodes begin in so many lanes, if it keeps anything of them."""
    if isinstance(policy, EpisodicPolicy):
        policy.begin(lanes, world)


@dataclass(frozen=True)
class OnLanes:
    """A policy at other lanes than its own: lane i here acts as its lane ``lanes[i]``, int64 [n].

    An episodic policy keeps its own account of every lane here.
    """

    policy: Policy
    lanes: Tensor

    @classmethod
    def everywhere(cls, policy: Policy, count: int) -> OnLanes:
        """Put a policy for one lane at ``count`` lanes."""
        return cls(policy, torch.zeros(count, dtype=torch.int64))

    @property
    def features(self) -> str:
        """The policy's own."""
        return self.policy.features

    def begin(self, lanes: int, world: WorldModel) -> None:
        """See :class:`EpisodicPolicy`."""
        begin_episodes(self.policy, lanes, world)

    def act(self, features: Tensor, lanes: Tensor) -> Tensor:
        """See :class:`Policy`."""
        own = lanes if isinstance(self.policy, EpisodicPolicy) else self.lanes.to(lanes.device)[lanes]
        return self.policy.act(features, own)
