"""The dream of a run: its M, its controller, and states that its episodes went through."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from wm_engine.dream.types import Starts
from wm_engine.errors import ConfigError
from wm_engine.learn.evolution import EvolutionSettings
from wm_engine.models.base import WorldModel
from wm_engine.policies.controller import Controllers, ControllerSpec
from wm_engine.rng import derive_seed
from wm_engine.run.published import load_run


@dataclass(frozen=True)
class RecordedDream:
    """What a run published, as a dream.

    round : of the run that the models are of
    m, spec, params : M, the controller's shape and its parameters float32 [D]
    starts : where dreams begin
    settings : of the learner; rules : ``temperature``, ``reward`` and ``done``, by which the controller was evolved, as
        :class:`wm_engine.learn.evolve.DreamFitness` takes them
    dream_steps : the most decisions of a dream in that round
    """

    round: int
    m: WorldModel
    spec: ControllerSpec
    params: Tensor
    starts: Starts
    settings: EvolutionSettings
    rules: dict[str, Any]
    dream_steps: int

    @classmethod
    def of_run(cls, root: Path, seed: int) -> RecordedDream:
        """Read what the run in ``root`` has published; ``seed`` draws the starts.

        Raises WMEngineError, naming the file, where the folder holds no run, or one that has published nothing yet or
        evolves no controllers.
        """
        run = load_run(root)
        settings, policy = run.config.controller, run.controller
        if not isinstance(settings, EvolutionSettings) or not isinstance(policy, Controllers):
            raise ConfigError(f"{root}: controller.kind must be evolution, but was {settings.kind!r}")
        reward = run.config.env.found().reward if settings.reward == "task" else settings.reward
        index = int(run.published["round"])
        return cls(
            round=index,
            m=run.world,
            spec=policy.spec,
            params=policy.params[0],
            starts=run.starts(settings.starts, derive_seed(seed, "starts")),
            settings=settings,
            rules={"temperature": settings.temperature, "reward": reward, "done": settings.done},
            dream_steps=settings.steps_in(index),
        )
