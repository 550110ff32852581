"""Ensembles of any kind of world model: members of one shape, each with weights and batches of its own.

What one member has got wrong the others have got wrong elsewhere, so that a policy which does well in the dreams of all
has not learnt the errors of one (Kurutach et al. 2018, "Model-ensemble trust-region policy optimization"). Here a
dreamt episode is of one member from its beginning to its end: episode e of member e mod N, for every candidate alike.
``memory.members`` makes an ensemble of whatever ``memory.kind`` names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import field_validator
from torch import Tensor, nn
from typing_extensions import Self

from wm_engine.data.sequences import SequenceBatch
from wm_engine.models.base import Imagined, MemorySettings, Scalars, WorldModel, WorldState, world_model_kind
from wm_engine.spaces import Spaces


class EnsembleSettings(MemorySettings):
    """No section: ``memory.kind`` names what the members are, and ``memory.members`` how many."""

    @field_validator("kind")
    @classmethod
    def _is_of_a_kind(cls, kind: str) -> str:
        raise ValueError("must be the kind of the members; memory.members makes an ensemble of them")


class Ensemble(WorldModel):
    """N world models of one kind and of one shape.

    A state's h and c are those of all members side by side, [B, N·H]: :meth:`observe` moves all of them on, so that
    recorded starts are burnt in for each, and a dreamt step its own member's alone. A controller sees one member's,
    [B, H]: in a dream its own member's, on the road the first one's. Hidden units of two members have nothing to do
    with each other, so that a controller which works in all dreams makes little of them: z is what it is best given.

    members : at least one; ValueError where they are not of one kind and sizes
    """

    Settings = EnsembleSettings
    SIZES: ClassVar[dict[str, type]] = {"latent": int, "action": int, "hidden": int}

    def __init__(self, members: Sequence[WorldModel]) -> None:
        super().__init__()
        if not members:
            raise ValueError("members must be at least one world model, but were none")
        kinds = {tuple(member.metadata().items()) for member in members}
        if len(kinds) > 1:
            raise ValueError("members must be of one kind and of the same sizes, but differed")
        first = members[0]
        self.latent, self.action, self.hidden, self.blocks = first.latent, first.action, first.hidden, first.blocks
        self.members = nn.ModuleList(members)

    @classmethod
    def build(cls, latent: int, spaces: Spaces, settings: Any) -> Ensemble:
        kind = world_model_kind(settings.kind)
        return cls([kind.build(latent, spaces, settings) for _ in range(settings.members)])

    @property
    def state_size(self) -> int:
        return self.hidden * len(self.members)

    def episode_models(self) -> list[WorldModel]:
        return list(self.members)  # type: ignore[arg-type]

    def _columns(self, number: int) -> slice:
        """Find a member's h among all members'."""
        return slice(number * self.hidden, (number + 1) * self.hidden)

    def _part(self, state: WorldState, number: int, rows: Any = slice(None)) -> WorldState:
        """Take a member's state out of some rows."""
        columns = self._columns(number)
        return WorldState(state.z[rows], state.h[rows, columns], state.c[rows, columns])

    def _groups(self, state: WorldState) -> Iterator[tuple[int, Tensor]]:
        """Yield members with the rows that are theirs: int64 [n]."""
        lanes = torch.arange(len(state.z), device=state.z.device)
        owners = torch.zeros_like(lanes) if state.episode is None else state.episode % len(self.members)
        for number in range(len(self.members)):
            rows = lanes[owners == number]
            if len(rows):
                yield number, rows

    def _own(self, state: WorldState) -> WorldState:
        """Take of every row the state of its own member."""
        h, c = (state.h.new_empty(len(state.z), self.hidden) for _ in range(2))
        for number, rows in self._groups(state):
            h[rows], c[rows] = (part[rows, self._columns(number)] for part in (state.h, state.c))
        return WorldState(state.z, h, c, state.episode)

    def initial(self, batch: int) -> tuple[Tensor, Tensor]:
        h, c = zip(*(member.initial(batch) for member in self.episode_models()), strict=True)
        return torch.cat(h, dim=1), torch.cat(c, dim=1)

    def observe(self, z: Tensor, action: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        after = []
        for number, member in enumerate(self.episode_models()):
            columns = self._columns(number)
            after.append(member.observe(z, action, (state[0][:, columns], state[1][:, columns])))
        h, c = zip(*after, strict=True)
        return torch.cat(h, dim=1), torch.cat(c, dim=1)

    def imagine(self, state: WorldState, action: Tensor, words: Tensor, temperature: float) -> Imagined:
        z, h, c = torch.empty_like(state.z), state.h.clone(), state.c.clone()
        reward, done = (state.z.new_empty(len(z)) for _ in range(2))
        for number, rows in self._groups(state):
            member, columns = self.episode_models()[number], self._columns(number)
            out = member.imagine(self._part(state, number, rows), action[rows], words[rows], temperature)
            z[rows], h[rows, columns], c[rows, columns] = out.state.z, out.state.h, out.state.c
            reward[rows], done[rows] = out.reward, out.done
        return Imagined(WorldState(z, h, c, state.episode), reward, done)

    def features(self, state: WorldState, names: str) -> Tensor:
        return super().features(self._own(state), names)

    def decode(self, state: WorldState) -> Tensor:
        seen = torch.empty_like(state.z)
        for number, rows in self._groups(state):
            seen[rows] = self.episode_models()[number].decode(self._part(state, number, rows))
        return seen

    def loss(self, batch: SequenceBatch, generator: torch.Generator, settings: Any) -> tuple[Tensor, Scalars]:
        """Return the sum of the members' losses, over the root of their number, and the means of their scalars.

        Of the batch's sequences member m learns from numbers m, m + N, m + 2 N, ...; ``memory.batch_size`` counts those
        of each. With the root the norm of all gradients together, which ``memory.clip`` bounds, is about one member's.
        """
        count, sequences = len(self.members), batch.live.shape[1]
        if sequences < count:
            raise ValueError(f"batch must hold a sequence for each of {count} members, but held {sequences}")
        values, scalars = [], []
        for number, member in enumerate(self.episode_models()):
            lanes = torch.arange(number, sequences, count, device=batch.live.device)
            value, said = member.loss(batch.lanes(lanes), generator, settings)
            values.append(value)
            scalars.append(said)
        means = {name: torch.stack([said[name] for said in scalars]).mean() for name in scalars[0]}
        return torch.stack(values).sum() / count**0.5, means

    def predict(self, batch: SequenceBatch, z: Tensor) -> dict[str, Tensor]:
        """Return the means of what the members say; see :meth:`WorldModel.predict`."""
        said = [member.predict(batch, z) for member in self.episode_models()]
        return {name: torch.stack([each[name] for each in said]).mean(dim=0) for name in said[0]}

    def scale_rewards(self, center: float, scale: float) -> None:
        for member in self.episode_models():
            member.scale_rewards(center, scale)

    def reward_units(self) -> tuple[float, float]:
        return self.episode_models()[0].reward_units()

    def set_reward_units(self, center: float, scale: float) -> None:
        for member in self.episode_models():
            member.set_reward_units(center, scale)

    def finished(self) -> Ensemble:
        return Ensemble([member.finished() for member in self.episode_models()]).eval()

    def metadata(self) -> dict[str, str]:
        """Return the members' kind, as ``of``, their sizes and their number as the metadata of a file."""
        of = self.episode_models()[0].metadata()
        return of | super().metadata() | {"of": of["kind"], "members": str(len(self.members))}

    @classmethod
    def shaped(cls, metadata: Mapping[str, str]) -> Self:
        kind = world_model_kind(metadata["of"])
        return cls([kind.shaped(metadata) for _ in range(int(metadata["members"]))])


def build_world_model(latent: int, spaces: Spaces, settings: Any) -> WorldModel:
    """Make a new world model for a ``[memory]`` section: of its kind, or an ensemble of several."""
    kind = Ensemble if settings.members > 1 else world_model_kind(settings.kind)
    return kind.build(latent, spaces, settings)


world_model = Ensemble
