"""The dream of an ensemble: each member's backend dreams its episodes, and what comes out is put in their order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from wm_engine.dream.types import Backend, DreamOutput, RolloutPlan, Starts


class EnsembleBackend:
    """A backend of one device, made of one for each of N members; episode e is member e mod N's.

    An episode keeps its place in the random-number contract and its start, so that it is the dream that its member
    alone would make of it, to the bit, whatever the sharding.

    members : the members' backends; hidden : H of each
    """

    def __init__(self, members: Sequence[Backend], hidden: int) -> None:
        self.members, self._hidden = list(members), hidden

    def rollout(self, controls: Tensor, starts: Starts, plan: RolloutPlan) -> DreamOutput:
        """See :class:`wm_engine.dream.types.Backend`; h and c of the starts are all members' side by side."""
        count, whole = len(self.members), plan.episodes
        parts = []
        for number, member in enumerate(self.members[:whole]):
            episodes = len(range(number, whole, count))
            its_plan = replace(
                plan, episodes=episodes, first_episode=number, episode_stride=count,
                population=plan.population * episodes // whole,
            )  # fmt: skip
            parts.append(member.rollout(controls, self._starts_of(starts, number), its_plan))
        return _interleaved(parts, whole)

    def release(self) -> None:
        """See :class:`wm_engine.dream.types.Backend`."""
        for member in self.members:
            member.release()

    def _starts_of(self, starts: Starts, number: int) -> Starts:
        columns = slice(number * self._hidden, (number + 1) * self._hidden)
        h, c = (None if part is None else part[:, columns] for part in (starts.h, starts.c))
        return Starts(starts.z, h, c)


def _interleaved(parts: list[DreamOutput], episodes: int) -> DreamOutput:
    """Put the parts' episodes in turn: the first of each, the second of each, ..."""

    def merged(name: str, dim: int) -> Tensor:
        values = [getattr(part, name) for part in parts]
        shape = [*values[0].shape[:dim], episodes, *values[0].shape[dim + 1 :]]
        whole = values[0].new_empty(shape)
        for number, value in enumerate(values):
            whole.movedim(dim, 0)[number :: len(parts)] = value.movedim(dim, 0)
        return whole

    failed = torch.stack([part.failed for part in parts]).any(dim=0)
    tracks = () if parts[0].z is None else tuple(merged(name, 2) for name in ("z", "actions", "rewards"))
    return DreamOutput(merged("returns", 1), merged("lengths", 1), failed, *tracks)
