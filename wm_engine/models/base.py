"""What every kind of V and of world model promises, and how a kind is found by its name.

A kind of V is a file of this folder with a module attribute ``vision``, a kind of world model one with ``world_model``;
each is a class with a ``Settings`` section of its own. A dotted name ("toys.world_model") names a module from anywhere
on Python's path, so that a new kind needs no line in this package.
"""

from __future__ import annotations

import copy
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import Self

from wm_engine.data.sequences import SequenceBatch
from wm_engine.errors import ConfigError, CorruptFileError
from wm_engine.files import load_tensors, save_tensors
from wm_engine.kinds import find_kind, kind_name
from wm_engine.settings import Section
from wm_engine.spaces import Observations, Spaces

Scalars = dict[str, Tensor]


class LearningSettings(Section):
    """Settings of every model that learns by gradient descent: its budget, and Adam's numbers."""

    first_steps: int = Field(400, ge=0, description="optimiser steps in the first round")
    steps: int = Field(80, ge=0, description="optimiser steps in each later round")
    batch_size: int = Field(64, ge=1, description="what one optimiser step learns from")
    learning_rate: float = Field(1e-3, gt=0.0, description="Adam's, in the first round")
    learning_rate_decay: float = Field(1.0, gt=0.0, le=1.0, description="what it is multiplied by from round to round")
    least_learning_rate: float = Field(1e-4, gt=0.0, description="where the decay ends")
    clip: float = Field(1.0, ge=0.0, description="the largest norm of the gradient; 0: no bound")
    recent: float = Field(0.5, ge=0.0, le=1.0, description="share of a batch drawn from the newest episodes")
    recent_episodes: int = Field(64, ge=1, description="how many of the newest episodes count as new")

    def learning_rate_of(self, round_index: int) -> float:
        """Return Adam's learning rate in a round."""
        least = min(self.least_learning_rate, self.learning_rate)
        return max(least, self.learning_rate * self.learning_rate_decay**round_index)


class VisionSettings(LearningSettings):
    """Settings of every kind of V."""

    kind: str = "vae"
    every: int = Field(1, ge=1, description="V learns in every such round")
    until: int = Field(1_000_000, ge=0, description="V stays as it is from this round on")

    def encoding_precision(self) -> str:
        """Return the precision, or "auto", that V encodes in while it drives."""
        return "fp32"

    def steps_in(self, round_index: int) -> int:
        """Return the optimiser steps of a round."""
        if round_index == 0:
            return self.first_steps
        return self.steps if round_index % self.every == 0 and round_index < self.until else 0


class MemorySettings(LearningSettings):
    """Settings of every kind of world model."""

    kind: str = "mdn_rnn"
    batch_size: int = Field(16, ge=1, description="sequences in one optimiser step")
    sequence_length: int = Field(
        0, ge=0, description="steps of a sequence, after a burn-in that gradients do not reach; 0: whole episodes"
    )
    members: int = Field(
        1, ge=1, description="an ensemble of so many, each with batches of its own; a dreamt episode is all of one"
    )

    @property
    def sequences(self) -> int:
        """Sequences in one optimiser step, of all members together."""
        return self.batch_size * self.members

    def steps_in(self, round_index: int) -> int:
        """Return the optimiser steps of a round."""
        return self.steps if round_index else self.first_steps


_PACKAGE = "wm_engine.models"
_Kind = TypeVar("_Kind", bound="SavedModel")


class SavedModel(nn.Module):
    """A model that is a file: its weights, its kind, and the sizes that make a module of its shape."""

    SIZES: ClassVar[Mapping[str, Callable[[str], Any]]]
    """The constructor's arguments, each an attribute of the same name, with what makes them of their text."""

    SIZES_OF_OLD: ClassVar[Mapping[str, str]] = {}
    """Sizes that files written before they came do not name, and what those files mean."""

    @property
    def device(self) -> torch.device:
        """Where the weights are; the CPU where there are none."""
        return next((part.device for part in self.parameters()), torch.device("cpu"))

    def metadata(self) -> dict[str, str]:
        """Return kind and sizes as the metadata of a file."""
        sizes = {name: str(getattr(self, name)) for name in self.SIZES}
        return {"kind": kind_name(type(self), _PACKAGE)} | sizes

    @classmethod
    def shaped(cls, metadata: Mapping[str, str]) -> Self:
        """Make a module of the sizes in a file's metadata; KeyError, TypeError or ValueError where there are none."""
        sizes = {**cls.SIZES_OF_OLD, **metadata}
        return cls(**{name: of(sizes[name]) for name, of in cls.SIZES.items()})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write weights, kind and sizes as safetensors, atomically."""
        save_tensors(path, self.state_dict(), self.metadata())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read back what :meth:`save` wrote. CorruptFileError where the file holds something else."""
        tensors, metadata = load_tensors(path)
        try:
            model = cls.shaped(metadata)
            model.load_state_dict(tensors)
        except (ConfigError, KeyError, ValueError, RuntimeError, TypeError) as error:
            raise CorruptFileError(f"{path}: not a {cls.__name__} of this project ({error}).") from error
        return model


class Vision(SavedModel, ABC):
    """A kind of V: compresses what is observed to a latent.

    latent : Z; learns : False where there is nothing to learn
    """

    Settings: ClassVar[type[VisionSettings]]
    latent: int
    learns: ClassVar[bool] = True

    @classmethod
    @abstractmethod
    def build(cls, observations: Observations, settings: Any) -> Vision:
        """Make a new one for these observations; ConfigError where this kind cannot see them."""

    @abstractmethod
    def encode(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """Encode [B, ...] to the posterior's mean and log variance, float32 [B, Z] each."""

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """Decode latents float [B, Z] to observations: pictures as float32 in [0, 1], vectors in their own units."""

    def fit(self, observations: Tensor) -> None:
        """Take from observations [N, ...] what a V that does not learn needs; once, in the first round."""

    def loss(self, observations: Tensor, generator: torch.Generator, settings: Any) -> tuple[Tensor, Scalars]:
        """Return the loss of a batch, a scalar, and named scalars for the record."""
        raise NotImplementedError(f"{type(self).__name__} has nothing to learn")

    @abstractmethod
    def measure(self, observations: Tensor) -> dict[str, float]:
        """Say in named numbers how well observations [B, ...] are compressed; ``error`` is one of them."""


@dataclass(frozen=True)
class WorldState:
    """The state of B dreams, or real episodes: z [B, Z], and the recurrent h and c [B, S] (S may be 0).

    episode : int64 [B], which dreamt episode each is of, for ensembles to know its member by; None on the road
    """

    z: Tensor
    h: Tensor
    c: Tensor
    episode: Tensor | None = None

    def __getitem__(self, index: Any) -> WorldState:
        episode = None if self.episode is None else self.episode[index]
        return WorldState(self.z[index], self.h[index], self.c[index], episode)


@dataclass(frozen=True)
class Imagined:
    """The outcome of a dreamt step: the next state, its reward [B], and the logit of the episode's end [B]."""

    state: WorldState
    reward: Tensor
    done: Tensor


class WorldModel(SavedModel, ABC):
    """A kind of M: dreams the next latent, the reward and the end from (state, action).

    latent : Z; action : A; hidden : H, the length of h and of c as a controller sees them, 0 where there are none
    blocks : how many Philox blocks of four words a dreamt step draws (the random-number contract)
    """

    Settings: ClassVar[type[MemorySettings]]
    latent: int
    action: int
    hidden: int
    blocks: int

    @classmethod
    @abstractmethod
    def build(cls, latent: int, spaces: Spaces, settings: Any) -> WorldModel:
        """Make a new one over latents of length Z for a task's spaces."""

    @property
    def state_size(self) -> int:
        """S, the length of h and of c in a state: H, or in an ensemble all members' together."""
        return self.hidden

    def episode_models(self) -> list[WorldModel]:
        """Return the N models that dreams are dreamt by, episode e by number e mod N: this one, or its members."""
        return [self]

    @abstractmethod
    def initial(self, batch: int) -> tuple[Tensor, Tensor]:
        """Return (h, c) at the beginning of an episode, [batch, S] each, on the model's device and in its dtype."""

    @abstractmethod
    def observe(self, z: Tensor, action: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Take a real step: from z [B, Z], the action [B, A] done there and (h, c), to the next (h, c)."""

    @abstractmethod
    def imagine(self, state: WorldState, action: Tensor, words: Tensor, temperature: float) -> Imagined:
        """Dream a step under actions [B, A], with random words int64 [B, blocks, 4] of 32 bits each."""

    @abstractmethod
    def loss(self, batch: SequenceBatch, generator: torch.Generator, settings: Any) -> tuple[Tensor, Scalars]:
        """Return the loss of a batch, a scalar, and named scalars for the record."""

    @abstractmethod
    def predict(self, batch: SequenceBatch, z: Tensor) -> dict[str, Tensor]:
        """Say of every recorded step of a batch, read with latents z [T+1, B, Z]: ``nll`` [T, B], the negative
        log-likelihood of the next latent in nats a dimension, ``reward`` [T, B] in the task's units and ``done``
        [T, B], the logit of the end."""

    def features(self, state: WorldState, names: str) -> Tensor:
        """Return what a controller sees [B, F]: the parts of the state named by letters, "z", "zh" or "zhc"."""
        return torch.cat([getattr(state, name) for name in names], dim=-1)

    def decode(self, state: WorldState) -> Tensor:
        """Return the latent that V decodes to a picture of the state, [B, Z]."""
        return state.z

    def scale_rewards(self, center: float, scale: float) -> None:
        """Learn rewards as ``(reward - center) / scale`` from now on; what was learnt so far is kept."""

    def reward_units(self) -> tuple[float, float]:
        """Return the center and the scale that rewards are learnt in."""
        return 0.0, 1.0

    def set_reward_units(self, center: float, scale: float) -> None:
        """Say in which center and scale the weights that are about to be loaded have learnt rewards."""

    def finished(self) -> WorldModel:
        """Return a copy to dream with and to save, whose rewards are in the task's units."""
        return copy.deepcopy(self).eval()


def vision_kind(name: Any) -> type[Vision]:
    """Find a kind of V; ConfigError with the nearest known name where there is none."""
    found: type[Vision] = find_kind("vision.kind", name, _PACKAGE, "vision")
    return found


def world_model_kind(name: Any) -> type[WorldModel]:
    """Find a kind of world model; ConfigError with the nearest known name where there is none."""
    found: type[WorldModel] = find_kind("memory.kind", name, _PACKAGE, "world_model")
    return found


def load_vision(path: str | os.PathLike[str]) -> Vision:
    """Read a V of whatever kind the file names; CorruptFileError where it holds something else."""
    return _kind_in(path, "V", vision_kind).load(path).eval()


def load_world_model(path: str | os.PathLike[str]) -> WorldModel:
    """Read a world model of whatever kind the file names; CorruptFileError where it holds something else."""
    return _kind_in(path, "world model", world_model_kind).load(path).eval()


def _kind_in(path: str | os.PathLike[str], what: str, kind_of: Callable[[str], type[_Kind]]) -> type[_Kind]:
    _, metadata = load_tensors(path)
    if "kind" not in metadata:
        raise CorruptFileError(f"{path}: not a {what} of this project (no kind is named in it).")
    try:
        return kind_of(metadata["kind"])
    except ConfigError as error:
        raise CorruptFileError(f"{path}: not a {what} that is known here ({error})") from error
