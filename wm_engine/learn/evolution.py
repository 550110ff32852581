"""Evolution of controllers (Ha & Schmidhuber 2018, section 2.3): one CMA-ES that goes on from round to round.

    ask ─► P candidates ─► returns in M's dream, or in the real environment ─► tell ─► ...

The search's distribution is never begun anew: V and M change a little from round to round, and it follows them.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import BeforeValidator, Field, field_validator, model_validator
from torch import Tensor

from wm_engine.envs.task import Task
from wm_engine.errors import ConfigError, CorruptFileError, RunMismatchError, WMEngineError
from wm_engine.learn.base import DreamRules, Learner, LearnerSettings, Problem, State
from wm_engine.learn.evolve.fitness import DreamFitness, Fitness, RealFitness, ThinnedDreams
from wm_engine.learn.evolve.optimizers import choose_optimizer, make_optimizer, restore_optimizer
from wm_engine.learn.evolve.protocol import GREATEST_SIGMA, LEAST_SIGMA, Optimizer, Ranking
from wm_engine.models.base import WorldModel
from wm_engine.policies.base import Policy
from wm_engine.policies.controller import SQUASH_RANGES, Controllers, ControllerSpec, load_controller, save_controller
from wm_engine.rng import derive_seed
from wm_engine.spaces import Discrete

_log = logging.getLogger(__name__)

# So many generations in a row without one finite return are no accident: the candidates, or M, are broken.
_MOST_UNRANKED = 10


def _words(given: object) -> object:
    """One word, or a list of them, as a tuple; the rest for pydantic to refuse."""
    return (given,) if isinstance(given, str) else tuple(given) if isinstance(given, list) else given


class EvolutionSettings(LearnerSettings):
    """C's shape, and how and where it is evolved.

    Every round has ``dream_generations`` of ``population`` candidates, each dreaming ``dream_episodes`` of
    ``dream_steps`` decisions, or ``real_generations`` in the real environment.
    """

    # The device that is found, not what was asked for, decides whether a search can go on.
    free: ClassVar[frozenset[str]] = frozenset({"optimizer_device"})

    kind: Literal["evolution"] = "evolution"
    features: Literal["z", "zh", "zhc"] = Field("zh", description="what C sees of M's state")
    hidden_units: int = Field(0, ge=0, description="width of C's hidden layer; 0: linear")
    squash: Annotated[tuple[str, ...], BeforeValidator(_words)] = Field(
        (), description="C's squash for each action, or one word for all; none: the task's own"
    )
    train_in: Literal["dream", "real"] = Field(
        "dream",
        description="where candidates are ranked; in the dream no real return ranks one or moves the distribution",
    )
    optimizer: Literal["auto", "pycma", "batched"] = Field(
        "auto", description="the evolution strategy; auto takes batched, the faster one at every size"
    )
    optimizer_device: str = Field(
        "auto",
        description="where a batched one lives: cpu, cuda, cuda:1; auto takes the dream's device, if that has float64",
    )
    population: int = Field(64, ge=4, description="candidates a generation")
    sigma: float = Field(0.1, ge=LEAST_SIGMA, le=GREATEST_SIGMA, description="first step size")
    sigma_max: float | None = Field(
        None, gt=0.0, description="the largest standard deviation of a weight of C; left out: no bound"
    )
    average: int = Field(
        1, ge=1, description="the policy is the mean of the distribution's means in so many last rounds"
    )

    dream_generations: int = Field(20, ge=0, description="in the dream, each round")
    dream_episodes: int = Field(32, ge=1, description="dreams of each candidate, in each generation")
    dream_race: int = Field(
        0,
        ge=0,
        description="racing: candidates whose place is clear stop after this many of their dreams, or twice as many, "
        "or four times; at least 2, and less than dream_episodes; 0: all dream all",
    )
    dream_steps: int = Field(40, ge=1, description="most decisions of a dream, in the first round")
    dream_steps_growth: float = Field(1.0, ge=1.0, description="what they are multiplied by from round to round")
    most_dream_steps: int = Field(1000, ge=1, description="where that growth ends")
    temperature: float = Field(
        1.0, ge=0.0, le=1e6, description="of M's mixture in the dream; higher is harder to exploit"
    )
    reward: Literal["task", "predicted", "survival"] = Field(
        "task", description="what a dreamt step is worth: what M predicts, 1, or as the task says"
    )
    done: Literal["threshold", "sample"] = Field("threshold", description="how a dream ends")
    end_reward: float = Field(
        0.0, description="what a dream is paid for ending before its last decision; see memory.end_rewards"
    )
    dream_dropout: float = Field(
        0.0, ge=0.0, lt=1.0, description="dropout in dreams, one mask a dream; see memory.dropout for that in training"
    )
    dream_masks: int = Field(4, ge=1, description="masks that a generation's dreams share out, the same for all")
    anew: bool = Field(False, description="begin the search anew in every round, in place of going on with it")

    real_generations: int = Field(20, ge=0, description="in the real environment, each round")
    real_episodes: int = Field(1, ge=1, description="episodes that each candidate drives, the same for all")
    real_frames: int = Field(1000, ge=1, description="most frames of a real episode during training")
    real_patience: int = Field(
        0, ge=0, description="end a training episode after so many frames in a row without a positive reward; 0: never"
    )

    @field_validator("dream_race")
    @classmethod
    def _a_race_needs_a_variance(cls, value: int) -> int:
        if value == 1:
            raise ValueError("must be 0 or at least 2: one dream does not say how much dreams differ")
        return value

    @model_validator(mode="after")
    def _a_race_can_end_early(self) -> EvolutionSettings:
        if self.dream_race >= self.dream_episodes and self.dream_race:
            raise ValueError(
                f"dream_race: must be less than dream_episodes ({self.dream_episodes}), or nothing is raced, but was "
                f"{self.dream_race}; 0 lets all candidates dream all episodes"
            )
        return self

    @model_validator(mode="after")
    def _the_first_step_is_within_its_bound(self) -> EvolutionSettings:
        if self.sigma_max is not None and self.sigma > self.sigma_max:
            raise ValueError(f"sigma_max: must be at least sigma ({self.sigma:g}), but was {self.sigma_max:g}")
        return self

    def wants_real(self) -> bool:
        return self.train_in == "real"

    def dream_rules(self, round_index: int) -> DreamRules:
        return DreamRules(self.steps_in(round_index), self.temperature, self.done, self.reward)

    def steps_in(self, round_index: int) -> int:
        """Return the most decisions of a round's dreams."""
        most = max(self.most_dream_steps, self.dream_steps)
        return int(min(most, round(self.dream_steps * self.dream_steps_growth ** min(round_index, 1000))))


class Evolution(Learner):
    """CMA-ES over controllers, ranked by their dreams, or by the real environment."""

    Settings = EvolutionSettings

    def __init__(
        self, settings: EvolutionSettings, spec: ControllerSpec, reward: str, seed: int, device: torch.device
    ) -> None:
        self.settings, self.spec = settings, spec
        self._reward = reward if settings.reward == "task" else settings.reward
        try:
            name, home = choose_optimizer(settings.optimizer, settings.optimizer_device, device)
            self._optimizer = self._begun(name, home, derive_seed(seed, "optimizer"))
        except ValueError as error:
            raise ConfigError(f"controller.optimizer: {error}") from error
        self._home, self._seed, self._name = home, seed, name
        self._means: list[Tensor] = []  # of the last rounds, oldest first
        self._unranked = 0

    @classmethod
    def build(
        cls, settings: EvolutionSettings, task: Task, world: WorldModel, seed: int, device: torch.device
    ) -> Evolution:
        actions = task.spaces.actions
        try:
            spec = ControllerSpec(
                world.latent, world.hidden or 1, actions.size, settings.features, _squash(settings, task),
                settings.hidden_units,
            )  # fmt: skip
        except ValueError as error:
            raise ConfigError(f"controller: {error}") from error
        if not world.hidden and settings.features != "z":
            raise ConfigError(
                f"controller.features: {settings.features!r} sees a hidden state, but this world model has none: "
                'set it to "z"'
            )
        return cls(settings, spec, task.reward, seed, device)

    def _begun(self, name: str, home: torch.device, seed: int) -> Optimizer:
        s = self.settings
        return make_optimizer(
            name, torch.zeros(self.spec.num_params), s.sigma, s.population, seed, device=home,
            sigma_max=s.sigma_max or math.inf,
        )  # fmt: skip

    def units(self, round_index: int) -> int:
        s = self.settings
        return s.dream_generations if s.train_in == "dream" else s.real_generations

    def learn(self, problem: Problem, done: int) -> Iterator[dict[str, float]]:
        if done == 0 and self.settings.anew and problem.round:
            self._optimizer = self._begun(self._name, self._home, derive_seed(self._seed, "optimizer", problem.round))
        if done == 0:
            self._means.append(self._optimizer.mean.cpu())
        fitness = self._fitness(problem)
        for generation in range(done, self.units(problem.round)):
            yield self._generation(fitness, generation)
        _log.debug("controller: %d generations so far", self._optimizer.generation)

    def _fitness(self, problem: Problem) -> Fitness:
        s = self.settings
        if s.train_in == "real":
            if problem.real is None:
                raise ValueError("controller.train_in is real, but the problem has no real environment")
            return RealFitness(
                problem.real, self.spec, episodes=s.real_episodes, max_frames=s.real_frames, patience=s.real_patience,
                seed=problem.seed,
            )  # fmt: skip
        return self.dream_fitness(problem, s.dream_episodes, s.steps_in(problem.round), s.dream_race)

    def dream_fitness(self, problem: Problem, episodes: int, steps: int, race: int = 0) -> DreamFitness:
        """Return the dream as candidates are ranked in it."""
        s = self.settings
        dreamer = problem.dreamer(self.spec)
        if s.dream_dropout:
            dreamer = ThinnedDreams(dreamer, problem, self.spec, s.dream_dropout, s.dream_masks)
        return DreamFitness(
            dreamer,
            problem.starts,
            episodes=episodes,
            max_steps=steps,
            temperature=s.temperature,
            reward=self._reward,
            done=s.done,
            seed=problem.seed,
            race=race,
            end_reward=s.end_reward,
        )

    def _generation(self, fitness: Fitness, generation: int) -> dict[str, float]:
        steps_before, began = fitness.steps, time.perf_counter()
        params = self._optimizer.ask().float().to(fitness.device)
        float(params[0, 0])  # waits for a GPU, whose work would count as the fitness's otherwise
        asked = time.perf_counter()
        returns = fitness(params, generation).double()
        evaluated = time.perf_counter()
        self._optimizer.tell(returns.mean(dim=1))
        told = time.perf_counter()
        ranking = self._optimizer.last_ranking
        assert ranking is not None
        self._watch(ranking)
        self._means[-1] = self._optimizer.mean.cpu()
        del self._means[: -self.settings.average]
        return _statistics(returns, getattr(fitness, "dreamt", None)) | {
            "nonfinite": float(ranking.nonfinite),
            "sigma": self._optimizer.sigma,
            "steps": float(fitness.steps - steps_before),
            "fitness_seconds": evaluated - asked,
            "optimizer_seconds": (asked - began) + (told - evaluated),
        }

    def _watch(self, ranking: Ranking) -> None:
        lost, population = ranking.nonfinite, len(ranking.order)
        if lost:
            _log.warning("controller: %d of %d candidates had no finite return and ranked worst", lost, population)
        if ranking.flat and population - lost > 1:
            _log.warning("controller: all finite returns of a generation are equal; they taught nothing")
        self._unranked = self._unranked + 1 if lost == population else 0
        if self._unranked >= _MOST_UNRANKED:
            raise WMEngineError(
                f"controller: no return of {_MOST_UNRANKED} generations in a row was finite. Look at M's losses, lower "
                "controller.sigma or controller.temperature, and begin again."
            )

    def policy(self) -> Controllers:
        params = torch.stack(self._means).mean(0) if self._means else self._optimizer.mean.cpu()
        return Controllers(self.spec, params.float().unsqueeze(0), torch.zeros(1, dtype=torch.int64))

    def candidates(self, count: int, seed: int) -> Controllers:
        """Return the present policy and ``count`` - 1 candidates drawn from the distribution for this occasion."""
        found = self._optimizer.distribution
        noise = torch.randn(count, self.spec.num_params, generator=torch.Generator().manual_seed(seed)).double()
        factor = found.factor
        steps = noise if factor is None else noise * factor if factor.dim() == 1 else noise @ factor.T
        params = (found.mean + found.sigma * steps).float()
        params[0] = self.policy().params[0]
        return Controllers(self.spec, params, torch.arange(count))

    def state(self) -> State:
        tensors, values = self._optimizer.state()
        named = {f"optimizer.{name}": tensor for name, tensor in tensors.items()}
        if self._means:
            named["means"] = torch.stack(self._means)
        return named, {"optimizer": values, "unranked": self._unranked}

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        prefix = "optimizer."
        parts = {name.removeprefix(prefix): part for name, part in tensors.items() if name.startswith(prefix)}
        if "optimizer" not in values or not parts:
            raise CorruptFileError("the learner's state lacks its optimiser")
        begun_on = values["optimizer"].get("device", "cpu")
        if begun_on != str(self._home):
            raise RunMismatchError(
                f"controller.optimizer_device: the search was begun on {begun_on!r}, and would go on on "
                f"{str(self._home)!r}, which draws other candidates. Go on where it was begun, or name that device."
            )
        kept = dict(values["optimizer"])
        if "sigma_max" in kept:  # as the settings have it now: a run may go on with others
            kept["sigma_max"] = self.settings.sigma_max
        self._optimizer = restore_optimizer(parts, kept, self._home)
        self._means = list(tensors["means"]) if "means" in tensors else []
        self._unranked = values.get("unranked", 0)

    def save_policy(self, path: Path, policy: Policy) -> None:
        assert isinstance(policy, Controllers)
        save_controller(path, policy.spec, policy.params[0])

    @classmethod
    def load_policy(cls, path: Path) -> Controllers:
        spec, params = load_controller(path)
        return Controllers(spec, params.unsqueeze(0), torch.zeros(1, dtype=torch.int64))


def _squash(settings: EvolutionSettings, task: Task) -> tuple[str, ...] | str:
    """C's squash, as set or as the task says.

    An action outside the environment's bounds would be clipped there: M learns from the clipped ones, so a dream of the
    others is of another world. Raises ConfigError for such a squash, an unknown word, or not one word for each action.
    """
    actions = task.spaces.actions
    words = settings.squash or ((task.squash,) if isinstance(task.squash, str) else task.squash)
    if isinstance(actions, Discrete):
        if words != ("argmax",):
            raise ConfigError(
                f"controller.squash: the {actions.count} actions of {task.name} are discrete and want argmax, but it "
                f"was {list(words)}"
            )
        return "argmax"
    each = words * actions.size if len(words) == 1 else words
    if len(each) != actions.size or not all(word in SQUASH_RANGES for word in each):
        raise ConfigError(
            f"controller.squash: must be one of {', '.join(SQUASH_RANGES)} for each of the {actions.size} actions of "
            f"{task.name}, or one word for all, but was {list(words)}"
        )
    if "argmax" in each and len(words) != 1:
        raise ConfigError(f"controller.squash: argmax is of all actions at once, but was {list(words)}")
    for dimension, (word, low, high) in enumerate(zip(each, actions.low, actions.high, strict=True)):
        least, most = SQUASH_RANGES[word]
        if least < low or most > high:
            raise ConfigError(
                f"controller.squash: {word} puts out [{least:g}, {most:g}], but action {dimension} of {task.name} "
                f"must be in [{low:g}, {high:g}]"
            )
    return words[0] if len(words) == 1 else words


def _statistics(returns: Tensor, dreamt: Tensor | None) -> dict[str, float]:
    """Numbers of a generation's returns [P, E], over the candidates that finished.

    Which of the returns were ``dreamt`` and not filled in, bool [P, E]; None: all. One that was filled in is what was
    expected, so it says nothing of how much episodes differ.
    """
    means = returns.mean(dim=1)
    finite = torch.isfinite(means)
    if not bool(finite.any()):
        return {"mean": math.nan, "std": math.nan, "best": math.nan, "episode_std": math.nan}
    kept = means[finite]
    return {
        "mean": float(kept.mean()),
        "std": float(kept.std(unbiased=False)),
        "best": float(kept.max()),
        "episode_std": _episode_std(returns[finite], None if dreamt is None else dreamt[finite]),
    }


def _episode_std(returns: Tensor, dreamt: Tensor | None) -> float:
    """The standard deviation of a candidate's returns over its own episodes, all candidates' together."""
    there = torch.ones_like(returns) if dreamt is None else dreamt.to(returns)
    counts = there.sum(dim=1, keepdim=True)
    means = (returns * there).sum(dim=1, keepdim=True) / counts
    squares = ((returns - means) * there).square().sum()
    return math.sqrt(float(squares / (counts - 1.0).sum().clamp(min=1.0)))


learner = Evolution
