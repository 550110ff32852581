"""Dream a population on a fleet: each worker dreams a shard of the candidates."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from wm_engine.checks import check_type
from wm_engine.dream import DreamEngine, DreamOutput, Starts
from wm_engine.dream.types import checked_controls, join
from wm_engine.errors import MissingDependencyError
from wm_engine.fleet import Fleet, shards
from wm_engine.models.base import WorldModel
from wm_engine.policies.controller import ControllerSpec


@dataclass(frozen=True)
class DreamRecipe:
    """Make a DreamEngine on each worker.

    m : the world model, of any kind; copied to the CPU as it is now, so train on and make a new recipe
    spec : the controllers' shape
    device, precision : where and how to dream
    backend : by name, not "auto", so that all workers dream on the same one or say that they cannot
    crossovers : see :class:`wm_engine.dream.engine.DreamEngine`
    """

    m: WorldModel
    spec: ControllerSpec
    device: str
    backend: str
    precision: str
    crossovers: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "m", copy.deepcopy(self.m).cpu())

    def engine(self, cpus: int) -> DreamEngine:
        """Make the engine on a worker of ``cpus`` cores; MissingDependencyError where it cannot dream so."""
        threads = cpus if self.backend == "cpp" else None
        try:
            return DreamEngine(
                self.m, self.spec, self.device, self.backend, self.precision, threads, crossovers=self.crossovers
            )
        except RuntimeError as error:
            raise MissingDependencyError(f"dream.backend: on a worker: {error}") from error

    def build(self, cpus: int) -> Callable[[dict[str, Any]], DreamOutput]:
        """See :class:`wm_engine.fleet.Recipe`; a task is the arguments of a rollout, by name."""
        engine = self.engine(cpus)

        def dream(arguments: dict[str, Any]) -> DreamOutput:
            return _on_cpu(engine.rollout(**arguments))

        return dream


@dataclass(frozen=True)
class CrossoverRecipe:
    """Measure the crossovers on one worker, for all to take: :meth:`wm_engine.dream.engine.DreamEngine.crossovers`."""

    dream: DreamRecipe

    def build(self, cpus: int) -> Callable[[None], dict[str, int]]:
        """See :class:`wm_engine.fleet.Recipe`; a task is None."""
        engine = self.dream.engine(cpus)
        return lambda _: engine.crossovers()


class FleetEngine:
    """Dreams as :class:`wm_engine.dream.engine.DreamEngine` does, each worker of a fleet a shard of the candidates.

    Results are those of one engine with the same backend and precision, to the bit: the random-number contract counts
    candidates within the whole population (``first_candidate``), and a backend's rollouts do not depend on each other.
    M's weights travel once to each worker.

    device : of the driver, where it would dream by itself: the output is gathered there, and an optimiser beside this
        engine lives there, with the fleet as without
    """

    def __init__(self, recipe: DreamRecipe, fleet: Fleet, device: str | torch.device = "cpu") -> None:
        self._recipe, self._fleet = recipe, fleet
        self.controller, self.device, self.backend = recipe.spec, torch.device(device), recipe.backend

    def rollout(
        self,
        params: Tensor | None = None,
        starts: Starts | None = None,
        first_candidate: int = 0,
        actions: Tensor | None = None,
        **plan: Any,
    ) -> DreamOutput:
        """See :meth:`wm_engine.dream.engine.DreamEngine.rollout`; shards and answers travel by way of the CPU."""
        name = "params" if actions is None else "actions"
        controls = checked_controls(self.controller, params, actions).detach().cpu()
        starts = check_type("starts", starts, Starts)
        starts = Starts(*(None if part is None else part.cpu() for part in (starts.z, starts.h, starts.c)))  # type: ignore[arg-type]
        tasks = [
            # A slice would travel with the whole tensor behind it.
            {name: controls[part.start : part.stop].clone(), "first_candidate": first_candidate + part.start}
            | {"starts": starts, "population": len(controls)}
            | plan
            for part in shards(len(controls), self._fleet.workers)
        ]
        return join(list(self._fleet.map(self._recipe, tasks)), self.device)


def _on_cpu(output: DreamOutput) -> DreamOutput:
    return replace(output, **{name: value.cpu() for name, value in vars(output).items() if value is not None})
