"""A dream to evolve in that anyone can have: a small M drawn from a seed, and what a controller is worth in it.

M is not trained, and is as rough a landscape as a trained one: rewards, ends and latents follow from the hidden state,
mixtures are sampled, episodes end at random. A controller of 123 parameters rises from a return of 8 to 20.5.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from wm_engine import MDNRNN, ControllerSpec, DreamEngine, Starts
from wm_engine.evolve import DreamFitness, Optimizer

_SPEC = ControllerSpec(latent=8, hidden=32, action=3, features="zh", squash=("tanh",) * 3)
_SCALE, _END = 0.3, -4.0
_TEST_EPISODES = 512


def make_world(seed: int = 0) -> tuple[DreamEngine, Starts]:
    """The engine on M's weights drawn from N(0, 0.3²), and 64 states to begin from."""
    generator = torch.Generator().manual_seed(seed)
    m = MDNRNN(_SPEC.latent, _SPEC.action, _SPEC.hidden, 3, "per_dim")
    for value in m.state_dict().values():
        value.copy_(_SCALE * torch.randn(value.shape, generator=generator))
    m.state_dict()["head.bias"][-1] += _END
    sizes = (_SPEC.latent, _SPEC.hidden, _SPEC.hidden)
    return DreamEngine(m, _SPEC), Starts(*(0.5 * torch.randn(64, size, generator=generator) for size in sizes))


@dataclass(frozen=True)
class Point:
    """Where a search stands: evaluations of candidates, dream steps, and the mean's return on luck it has not met."""

    evaluations: int
    steps: int
    value: float


class DreamTask:
    """Searches in the world. ``episodes`` and ``race`` as in :class:`wm_engine.evolve.DreamFitness`."""

    def __init__(self, episodes: int = 16, race: int = 0) -> None:
        self._engine, self._starts = make_world()
        self._options = {"max_steps": 100, "done": "sample"}
        self._episodes, self._race = episodes, race
        self._test = DreamFitness(self._engine, self._starts, seed=999, **self._options)  # type: ignore[arg-type]

    @property
    def dimension(self) -> int:
        """D."""
        return _SPEC.num_params

    def search(self, optimizer: Optimizer, seed: int, steps: int) -> Iterator[Point]:
        """The points of a search with luck of its own, a generation each, until it has dreamt ``steps``."""
        options = {"episodes": self._episodes, "race": self._race, "seed": seed} | self._options
        fitness = DreamFitness(self._engine, self._starts, **options)  # type: ignore[arg-type]
        while fitness.steps < steps:
            optimizer.tell(fitness(optimizer.ask().float(), optimizer.generation).mean(dim=1))
            value = self._test.fresh(optimizer.mean.float()[None], _TEST_EPISODES, "test").mean()
            yield Point(optimizer.generation * optimizer.popsize, fitness.steps, float(value))
