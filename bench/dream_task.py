"""Dreams to evolve in, and what a controller is worth there.

One that anyone can have, with a small M drawn from a seed: it is not trained, and as rough a landscape as a trained
one, since rewards, ends and latents follow from the hidden state, mixtures are sampled and episodes end at random. A
controller of 123 parameters rises from a return of 8 to 20.5. And that of any run: a trained M, with the rules by which
the run's controller was evolved in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wm_engine import MDNRNN, ControllerSpec, DreamEngine, Starts
from wm_engine.learn.evolve import DreamFitness, Optimizer, PycmaES

from .recorded import RecordedDream

POPULATION, EPISODES = 64, 16
_SPEC = ControllerSpec(latent=8, hidden=32, action=3, features="zh", squash=("tanh",) * 3)
_SCALE, _END = 0.3, -4.0
_TEST_EPISODES, _TEST_SEED = 512, 999


@dataclass(frozen=True)
class World:
    """A dream to search in, and how searches go there.

    dimension : D
    engine, starts : the dream, and where it begins; rules : :class:`wm_engine.learn.evolve.DreamFitness`'s settings
    sigma : the first step size
    targets : returns that a search is to reach, ascending: a good start, near the end, the last bit
    most_steps : when a search is given up, in dream steps
    """

    name: str
    dimension: int
    engine: DreamEngine
    starts: Starts
    rules: dict[str, Any]
    sigma: float
    targets: tuple[float, ...]
    most_steps: int


@dataclass(frozen=True)
class Point:
    """Where a search stands: evaluations of candidates, dream steps, and the mean's return on draws it has not met."""

    evaluations: int
    steps: int
    value: float


class DreamTask:
    """Searches in a world. ``episodes`` and ``race`` as in :class:`wm_engine.learn.evolve.DreamFitness`."""

    def __init__(self, world: World, episodes: int = EPISODES, race: int = 0) -> None:
        self.world = world
        self._episodes, self._race = episodes, race
        self._test = DreamFitness(world.engine, world.starts, episodes=_TEST_EPISODES, seed=_TEST_SEED, **world.rules)

    def search(self, optimizer: Optimizer, seed: int) -> Iterator[Point]:
        """Search with the draws of ``seed`` until it is given up; yields a point after each generation."""
        world = self.world
        options = {"episodes": self._episodes, "race": self._race, "seed": seed} | world.rules
        fitness = DreamFitness(world.engine, world.starts, **options)
        while fitness.steps < world.most_steps:
            optimizer.tell(fitness(optimizer.ask().float(), optimizer.generation).mean(dim=1))
            yield Point(optimizer.generation * optimizer.popsize, fitness.steps, self.value(optimizer.mean))

    def value(self, mean: Tensor) -> float:
        """Dream ``mean`` [D] on draws that no search meets; returns its mean return."""
        return float(self._test(mean.float()[None], 0).mean())


def drawn_world(seed: int = 0) -> World:
    """Make a dream of an M with weights drawn from N(0, 0.3²), and of 64 states to begin from."""
    generator = torch.Generator().manual_seed(seed)
    m = MDNRNN(_SPEC.latent, _SPEC.action, _SPEC.hidden, 3, "per_dim")
    for value in m.state_dict().values():
        value.copy_(_SCALE * torch.randn(value.shape, generator=generator))
    m.state_dict()["head.bias"][-1] += _END
    sizes = (_SPEC.latent, _SPEC.hidden, _SPEC.hidden)
    starts = Starts(*(0.5 * torch.randn(64, size, generator=generator) for size in sizes))
    rules = {"max_steps": 100, "done": "sample"}
    targets, most = (19.0, 19.75, 20.25), 4_000_000
    return World("an M drawn from a seed", _SPEC.num_params, DreamEngine(m, _SPEC), starts, rules, 0.1, targets, most)


# How far a search of the reference's comes, and the shares of its way that are the targets of others.
_PILOT_SEED, _PILOT_GENERATIONS = 1_000_000, 60
_SHARES = (0.5, 0.75, 0.9)


def recorded_world(root: Path, features: str | None = None) -> World:
    """Make the dream of what a run published, under the rules that its controller was evolved by.

    ``features``: what controllers see there, where not what the run's own sees.

    The targets lie at half, three quarters and nine tenths of the way that one search of pycma's makes in 60
    generations, from the return of its first mean to its best one; searches are given up after twice its dream steps.
    Raises as :meth:`RecordedDream.of_run`; ValueError where that search finds nothing better than what it began with.
    """
    run = RecordedDream.of_run(root, seed=0)
    rules = run.rules | {"max_steps": run.dream_steps}
    spec = run.spec if features is None else replace(run.spec, features=features)
    most = _PILOT_GENERATIONS * POPULATION * EPISODES * run.dream_steps
    name = f"round {run.round} of {root.name}"
    world = World(name, spec.num_params, DreamEngine(run.m, spec), run.starts, rules, run.settings.sigma, (), most)
    pilot = PycmaES(torch.zeros(world.dimension), world.sigma, POPULATION, _PILOT_SEED)
    task = DreamTask(world)
    begin, best = task.value(pilot.mean), max(point.value for point in task.search(pilot, _PILOT_SEED))
    if not best > begin:
        raise ValueError(f"{name}: a search must find better than its first mean's return, {begin:g}, but did not")
    targets = tuple(begin + share * (best - begin) for share in _SHARES)
    return replace(world, targets=targets, most_steps=2 * world.most_steps)
