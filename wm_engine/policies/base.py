"""What acts on a world model's features, in dreams and in the real environment alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


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


@dataclass(frozen=True)
class OnLanes:
    """A policy at other lanes than its own: lane i here acts as its lane ``lanes[i]``, int64 [n]."""

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

    def act(self, features: Tensor, lanes: Tensor) -> Tensor:
        """See :class:`Policy`."""
        return self.policy.act(features, self.lanes.to(lanes.device)[lanes])
