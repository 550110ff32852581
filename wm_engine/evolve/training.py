"""Training of controllers: evolution in the dream, in the real environment, or in one after the other."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import BeforeValidator, Field, field_validator, model_validator
from torch import Tensor

from wm_engine.checks import check_tensor
from wm_engine.controller import ControllerSpec, spec_metadata, spec_of
from wm_engine.errors import CorruptFileError, RunMismatchError, WMEngineError
from wm_engine.evolve.fitness import BEGIN, CHOOSE, SCORE, Fitness
from wm_engine.evolve.optimizers import choose_optimizer, make_optimizer, restore_optimizer
from wm_engine.evolve.protocol import GREATEST_SIGMA, LEAST_SIGMA, Distribution, Optimizer, Ranking, derive_seed
from wm_engine.progress import track
from wm_engine.records import Recorder
from wm_engine.rng import RNG_VERSION
from wm_engine.runs import Checkpoints, load_tensors, save_tensors, tensors_fingerprint
from wm_engine.settings import Section

_log = logging.getLogger(__name__)

# So many generations in a row without one finite return are no bad luck: the candidates, or M, are broken.
_MOST_UNRANKED = 10


def _words(given: object) -> object:
    """One word, or a list of them, as a tuple; the rest for pydantic to refuse."""
    return (given,) if isinstance(given, str) else tuple(given) if isinstance(given, list) else given


class ControllerSettings(Section):
    """C's shape, and how and where it is evolved.

    The dream phase runs ``dream_generations`` of ``population`` candidates, each dreaming ``dream_episodes`` of
    ``dream_steps``; the real phase the same with its own numbers. ``dream_then_real`` begins the real phase at the mean
    that the dream phase ended with, or at the search's first point where that one does better in the real environment:
    what a poor dream has taught can be worse than nothing. Each phase ends with ``finalists`` of the best candidates
    seen, and the distribution's mean, meeting ``final_*_episodes`` of fresh luck; the best is the phase's winner.
    """

    # The device that is found, not what was asked for, decides whether a search can go on (train_controller).
    free: ClassVar[frozenset[str]] = frozenset({"checkpoint_seconds", "optimizer_device"})

    features: Literal["z", "zh", "zhc"] = Field("zh", description="what C sees of M's state")
    hidden_units: int = Field(0, ge=0, description="width of C's hidden layer; 0: linear")
    init_from: str = Field(
        "",
        description="begin the first round's search where another run's ended: its folder, one of its rounds', or an "
        "evolution/result.safetensors of the same controller shape",
    )
    init_with: Literal["mean", "distribution"] = Field(
        "distribution", description="what of init_from: its mean alone, or its step size and covariance too"
    )
    squash: Annotated[tuple[str, ...], BeforeValidator(_words)] = Field(
        (), description="C's squash for each action, or one word for all; none: tanh for [-1, 1], sigmoid for [0, 1]"
    )
    train_in: Literal["dream", "real", "dream_then_real"] = Field("dream", description="where C is evolved")
    optimizer: Literal["auto", "pycma", "batched"] = Field(
        "auto", description="the evolution strategy; auto takes batched, the faster one at every size"
    )
    optimizer_device: str = Field(
        "auto",
        description="where a batched one lives: cpu, cuda, cuda:1; auto takes the dream's device, if that has float64",
    )
    population: int = Field(64, ge=4, description="candidates a generation")
    sigma: float = Field(0.1, ge=LEAST_SIGMA, le=GREATEST_SIGMA, description="first step size")

    dream_generations: int = Field(100, ge=1)
    dream_episodes: int = Field(16, ge=1, description="dreams of each candidate, in each generation")
    dream_race: int = Field(
        0,
        ge=0,
        description="racing: candidates whose place is clear stop after this many of their dreams, or twice as many, "
        "or four times; at least 2, and less than dream_episodes; 0: all dream all",
    )
    dream_steps: int = Field(1000, ge=1, description="most steps of a dream")
    temperature: float = Field(
        1.0, ge=0.0, le=1e6, description="of M's mixture in the dream; higher is harder to exploit"
    )
    reward: Literal["predicted", "survival"] = Field("predicted", description="what a dreamt step is worth")
    done: Literal["threshold", "sample"] = Field("threshold", description="how a dream ends")
    starts: int = Field(256, ge=1, description="recorded states that dreams begin from")
    mid_fraction: float = Field(0.75, ge=0.0, le=1.0, description="share of them from the middle of episodes")

    real_generations: int = Field(30, ge=1)
    real_episodes: int = Field(1, ge=1, description="tracks that each candidate drives, the same for all")
    real_steps: int = Field(400, ge=1, description="most steps of a real episode during training")
    real_sigma: float = Field(0.1, ge=LEAST_SIGMA, le=GREATEST_SIGMA, description="first step size of the real phase")
    real_patience: int = Field(
        0, ge=0, description="end a training episode after so many steps in a row without a positive reward; 0: never"
    )
    real_lanes: int = Field(64, ge=1, description="environments driven at once")

    finalists: int = Field(4, ge=0, description="best candidates seen that meet the mean in the final")
    final_dream_episodes: int = Field(64, ge=1)
    final_real_episodes: int = Field(8, ge=1)
    final_real_steps: int = Field(1000, ge=1, description="most steps of a final's real episode, without patience")
    checkpoint_seconds: float = Field(
        10.0, ge=0.0, description="how much work a kill may cost, beside a generation's; 0: every generation is kept"
    )

    @field_validator("dream_race")
    @classmethod
    def _a_race_needs_a_variance(cls, value: int) -> int:
        if value == 1:
            raise ValueError("must be 0 or at least 2: one dream does not say how much dreams differ")
        return value

    @model_validator(mode="after")
    def _a_race_can_end_early(self) -> ControllerSettings:
        if self.dream_race >= self.dream_episodes and self.dream_race:
            raise ValueError(
                f"dream_race: must be less than dream_episodes ({self.dream_episodes}), or nothing is raced, but was "
                f"{self.dream_race}; 0 lets all candidates dream all episodes"
            )
        return self


@dataclass(frozen=True)
class ControllerResult:
    """What a training found.

    params : f32 [D], the winner
    source : who it was: "PHASE mean", "PHASE best of generation G" or "dream winner"
    scores : its returns on fresh luck, in each environment that the training was given: "dream_mean", "dream_std",
        "real_mean", "real_std" over episodes
    winners : f32 [D] of each phase's winner, by the phase's name
    history : f32 [G, D] for each phase, the best candidate of every generation
    spec : C's shape
    distribution : the last phase's search distribution at its end, which a new run may begin with. Both are None where
        they were read from a file that was written before they were kept.
    """

    params: Tensor
    source: str
    scores: dict[str, float]
    winners: dict[str, Tensor]
    history: dict[str, Tensor]
    spec: ControllerSpec | None = None
    distribution: Distribution | None = None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything as one safetensors file, atomically."""
        tensors = {"params": self.params}
        tensors |= {f"winner.{phase}": winner for phase, winner in self.winners.items()}
        tensors |= {f"history.{phase}": best for phase, best in self.history.items()}
        metadata = {f"score.{name}": repr(value) for name, value in self.scores.items()}
        if self.spec is not None and self.distribution is not None:
            tensors |= {f"distribution.{name}": part for name, part in self.distribution.tensors().items()}
            metadata |= {f"spec.{name}": value for name, value in spec_metadata(self.spec).items()}
        save_tensors(path, tensors, {"kind": "evolution", "source": self.source} | metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ControllerResult:
        """Read back what :meth:`save` wrote; CorruptFileError where it is something else."""
        tensors, metadata = load_tensors(path)
        if metadata.get("kind") != "evolution" or "params" not in tensors:
            raise CorruptFileError(f"{path}: not the result of a controller's training")

        scores = {name: float(value) for name, value in _named("score.", metadata).items()}
        winners, history = _named("winner.", tensors), _named("history.", tensors)
        parts, shape = _named("distribution.", tensors), _named("spec.", metadata)
        spec, distribution = (spec_of(shape), Distribution.of(parts)) if parts and shape else (None, None)
        return cls(tensors["params"], metadata["source"], scores, winners, history, spec, distribution)


def _named(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of ``values`` whose names begin with ``prefix``, by the rest of their names."""
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}


@dataclass(frozen=True)
class _Phase:
    """One stretch of evolution: its name, its fitness, its optimiser's name and device, its share of the settings."""

    name: str
    fitness: Fitness
    optimizer: str
    device: torch.device
    generations: int
    sigma: float
    final_episodes: int


def train_controller(
    settings: ControllerSettings,
    spec: ControllerSpec,
    *,
    dream: Fitness | None = None,
    real: Fitness | None = None,
    seed: int = 0,
    checkpoints: Checkpoints,
    recorder: Recorder,
    iteration: int = 0,
    initial: Tensor | Distribution | None = None,
    identity: Mapping[str, Any] | None = None,
) -> ControllerResult:
    """Evolve a controller, from the newest checkpoint on.

    Parameters
    ----------
    spec : C's shape, giving D
    dream, real : the fitnesses of the phases that ``settings.train_in`` names; one that is given beyond these only
        scores the winner
    seed : of the optimisers; the fitnesses have their own
    initial : where the search begins: f32 [D], a mean; a whole distribution, whose step size and covariance replace
        the settings' in the first phase; None: at zero
    identity : JSON-able; what the result follows from beside the settings (M, V, data), so that checkpoints of another
        training are refused

    Killed at any moment and called again, it ends with the same result to the bit on the same machine: everything
    follows from the seeds, the settings and the generation's number, nothing from the clock.

    Raises ValueError where a needed fitness is missing or the optimiser cannot live on the device that the settings
    name, or a fitness returns something else than [P, E]; RunMismatchError where the checkpoints belong to a training
    with other settings, another beginning, other backends or its optimiser on another kind of device, or cannot be gone
    on with to the bit (:class:`wm_engine.evolve.pycma.PycmaES`); WMEngineError where generation after generation, or a
    whole phase, has no finite return, or no finalist of a phase does.
    """
    fitnesses = {"dream": dream, "real": real}
    phases = [_phase(settings, name, fitnesses[name]) for name in settings.train_in.split("_then_")]
    if not isinstance(initial, Distribution):
        mean = torch.zeros(spec.num_params) if initial is None else initial
        initial = Distribution(mean, phases[0].sigma)
    start = check_tensor("initial", initial.mean, [spec.num_params])
    begin = replace(initial, mean=start.detach().cpu().double())
    # Other kinds of device draw other candidates.
    devices = {phase.name: phase.device.type for phase in phases}
    backends = {phase.name: f"{phase.fitness.backend} on {phase.fitness.device.type}" for phase in phases}
    key = {"settings": settings.identity(), "seed": seed, "iteration": iteration, "identity": dict(identity or {})}
    key |= {
        "optimizer_device": devices,
        "backend": backends,
        "rng_version": RNG_VERSION,
        "initial": tensors_fingerprint(begin.tensors()),
    }
    training = _Training(settings, phases, begin, seed, iteration, key, checkpoints, recorder)
    training.run()
    return training.result(fitnesses, spec)


def _phase(settings: ControllerSettings, name: str, fitness: Fitness | None) -> _Phase:
    if fitness is None:
        raise ValueError(f"{name} must be a fitness where train_in is {settings.train_in!r}, but was None")
    where = (name, fitness, *choose_optimizer(settings.optimizer, settings.optimizer_device, fitness.device))
    if name == "dream":
        return _Phase(*where, settings.dream_generations, settings.sigma, settings.final_dream_episodes)
    sigma = settings.real_sigma if settings.train_in == "dream_then_real" else settings.sigma
    return _Phase(*where, settings.real_generations, sigma, settings.final_real_episodes)


# Where a phase stands at its start. unranked: generations in a row without a finite return; ranked: those with one.
_FRESH: dict[str, Any] = {"generation": 0, "unranked": 0, "ranked": 0, "elite": []}


class _Training:
    """The phases one after the other. ``_tensors`` and ``_where`` are the state, the rest follows from the call."""

    def __init__(
        self,
        settings: ControllerSettings,
        phases: list[_Phase],
        begin: Distribution,
        seed: int,
        iteration: int,
        key: dict[str, Any],
        checkpoints: Checkpoints,
        recorder: Recorder,
    ) -> None:
        self._settings, self._phases, self._seed, self._iteration = settings, phases, seed, iteration
        self._key, self._checkpoints, self._recorder = json.loads(json.dumps(key)), checkpoints, recorder
        self._initial = begin
        self._tensors: dict[str, Tensor] = {"start": begin.mean}
        self._where: dict[str, Any] = {"phase": 0, "sources": {}} | _FRESH
        self._saving_seconds = 0.0
        self._optimizer: Optimizer | None = None
        self._restore()

    def run(self) -> None:
        """All phases that are not done yet."""
        while self._where["phase"] < len(self._phases):
            phase = self._phases[self._where["phase"]]
            if self._optimizer is None:
                seed = derive_seed(self._seed, "optimizer", phase.name, self._iteration)
                begin, population = self._begin(phase), self._settings.population
                _log.info("controller (%s): optimizer %s (%s)", phase.name, phase.optimizer, phase.device)
                self._optimizer = make_optimizer(
                    phase.optimizer,
                    begin.mean,
                    begin.sigma,
                    population,
                    seed,
                    factor=begin.factor,
                    device=phase.device,
                )
            self._evolve(phase, self._optimizer)
            self._crown(phase, self._optimizer)

    def _begin(self, phase: _Phase) -> Distribution:
        """Where a phase begins: at the mean of the one before, or at the first point if that does better here."""
        if self._where["phase"] == 0:
            return self._initial
        points = [self._tensors["start"], self._initial.mean]
        returns = phase.fitness.fresh(torch.stack(points).float(), phase.final_episodes, BEGIN).double()
        means = torch.nan_to_num(returns.mean(dim=1), nan=-math.inf, posinf=-math.inf)
        _log.info("controller (%s): the mean so far makes %.1f here, the first point %.1f", phase.name, *means.tolist())
        return Distribution(points[int(means.argmax())], phase.sigma)

    def _evolve(self, phase: _Phase, optimizer: Optimizer) -> None:
        saved_at = time.monotonic()
        done = self._where["generation"]
        with track(phase.generations, f"controller ({phase.name})", "generation", initial=done) as bar:
            for generation in range(done, phase.generations):
                postfix = self._generation(phase, optimizer, generation)
                self._where["generation"] = generation + 1
                last = generation + 1 == phase.generations
                if last or time.monotonic() - saved_at >= self._settings.checkpoint_seconds:
                    self._save()
                    saved_at = time.monotonic()
                bar.set_postfix_str(postfix, refresh=False)
                bar.update(1)

    def _generation(self, phase: _Phase, optimizer: Optimizer, generation: int) -> str:
        steps_before, began = phase.fitness.steps, time.monotonic()
        params = optimizer.ask().float().to(phase.fitness.device)
        float(params[0, 0])  # waits for a GPU, whose work would count as the fitness's otherwise
        asked = time.monotonic()
        returns = _checked(phase, phase.fitness(params, generation), len(params)).double()
        evaluated = time.monotonic()
        means = returns.mean(dim=1)
        optimizer.tell(means)
        told = time.monotonic()
        ranking = optimizer.last_ranking
        assert ranking is not None
        self._remember(phase, params, means, generation)

        steps = phase.fitness.steps - steps_before
        rate = steps / max(evaluated - asked, 1e-9)
        numbers = _statistics(returns, getattr(phase.fitness, "dreamt", None)) | {
            "nonfinite": ranking.nonfinite,
            "sigma": optimizer.sigma,
            "steps": steps,
            f"{phase.fitness.unit}_per_second": rate,
            "fitness_seconds": evaluated - asked,
            "optimizer_seconds": (asked - began) + (told - evaluated),
            "checkpoint_seconds": self._saving_seconds,
        }
        self._saving_seconds = 0.0
        self._recorder.log(f"controller_{phase.name}", generation + 1, self._iteration, **numbers)
        self._watch(phase, generation, ranking)
        return f"mean {numbers['mean']:.1f}, best {numbers['best']:.1f}, {rate:,.0f} {phase.fitness.unit}/s"

    def _watch(self, phase: _Phase, generation: int, ranking: Ranking) -> None:
        lost, population = ranking.nonfinite, len(ranking.order)
        if lost:
            _log.warning(
                "controller (%s): generation %d: %d of %d candidates had no finite return and ranked worst",
                phase.name,
                generation,
                lost,
                population,
            )
        if ranking.flat and population - lost > 1:
            _log.warning(
                "controller (%s): generation %d: all finite returns are equal; they taught nothing",
                phase.name,
                generation,
            )
        ranked = lost < population
        self._where["ranked"] += ranked
        self._where["unranked"] = 0 if ranked else self._where["unranked"] + 1
        if self._where["unranked"] >= _MOST_UNRANKED:
            raise _nothing_finite(phase, f"no return of {_MOST_UNRANKED} generations in a row")

    def _remember(self, phase: _Phase, params: Tensor, means: Tensor, generation: int) -> None:
        """Keep the generation's best in the history, and the best of all so far as the elite."""
        ranked = torch.nan_to_num(means, nan=-math.inf, posinf=-math.inf).cpu()
        best = ranked.argsort(descending=True, stable=True)[: max(1, self._settings.finalists)]
        found = params[best].cpu()  # all that is kept of them leaves their device
        self._append(f"history.{phase.name}", found[:1])

        # Returns of different generations met different luck, so this is a shortlist, not a verdict: the final decides.
        pool = torch.cat([self._tensors["elite"], found]) if self._where["elite"] else found
        entries = self._where["elite"] + [[value, generation] for value in ranked[best].tolist()]
        order = sorted(range(len(entries)), key=lambda i: -entries[i][0])
        order = [i for i in order if math.isfinite(entries[i][0])][: self._settings.finalists]
        self._tensors["elite"] = pool[order].clone()
        self._where["elite"] = [entries[i] for i in order]

    def _append(self, name: str, rows: Tensor) -> None:
        self._tensors[name] = torch.cat([self._tensors[name], rows]) if name in self._tensors else rows.clone()

    def _crown(self, phase: _Phase, optimizer: Optimizer) -> None:
        """Let the mean, the elite and the earlier phase's winner meet fresh luck; the best is the phase's winner."""
        if not self._where["ranked"]:
            raise _nothing_finite(phase, f"no return of all {phase.generations} generations")
        names, finalists = [f"{phase.name} mean"], [optimizer.mean.float().cpu()]
        for (_, generation), params in zip(self._where["elite"], self._tensors["elite"], strict=True):
            names.append(f"{phase.name} best of generation {generation + 1}")
            finalists.append(params)
        for earlier in self._where["sources"]:
            names.append(f"{earlier} winner")
            finalists.append(self._tensors[f"winner.{earlier}"])
        returns = phase.fitness.fresh(torch.stack(finalists), phase.final_episodes, CHOOSE).double()
        means = torch.nan_to_num(returns.mean(dim=1), nan=-math.inf, posinf=-math.inf)
        if not bool(torch.isfinite(means).any()):
            raise _nothing_finite(phase, f"in the final, no mean return of {len(names)} finalists")
        first = int(means.argmax())
        for name, mean in zip(names, means.tolist(), strict=True):
            _log.info("controller (%s), final of %d episodes: %s %.1f", phase.name, phase.final_episodes, name, mean)

        self._tensors[f"winner.{phase.name}"] = finalists[first].clone()
        last = optimizer.distribution
        self._tensors = {name: value for name, value in self._tensors.items() if not name.startswith("distribution.")}
        self._tensors |= {f"distribution.{name}": part for name, part in last.tensors().items()}
        self._tensors["start"] = last.mean.clone()
        del self._tensors["elite"]
        self._where |= {"phase": self._where["phase"] + 1} | _FRESH
        self._where["sources"][phase.name] = names[first]
        self._optimizer = None
        self._save()

    def result(self, fitnesses: Mapping[str, Fitness | None], spec: ControllerSpec) -> ControllerResult:
        """The last phase's winner, scored on luck that no choice was made with."""
        last = self._phases[-1].name
        winner = self._tensors[f"winner.{last}"]
        episodes = {"dream": self._settings.final_dream_episodes, "real": self._settings.final_real_episodes}
        scores: dict[str, float] = {}
        for name, fitness in fitnesses.items():
            if fitness is not None:
                returns = fitness.fresh(winner.unsqueeze(0), episodes[name], SCORE).double()
                scores |= {f"{name}_mean": float(returns.mean()), f"{name}_std": float(returns.std(unbiased=False))}
        self._recorder.log("controller", 0, self._iteration, **scores)
        names = [phase.name for phase in self._phases]
        return ControllerResult(
            params=winner.clone(),
            source=self._where["sources"][last],
            scores=scores,
            winners={name: self._tensors[f"winner.{name}"] for name in names},
            history={name: self._tensors[f"history.{name}"] for name in names},
            spec=spec,
            distribution=Distribution.of(_named("distribution.", self._tensors)),
        )

    def _save(self) -> None:
        began = time.monotonic()
        tensors = dict(self._tensors)
        values: dict[str, Any] = {}
        if self._optimizer is not None:
            parts, values = self._optimizer.state()
            tensors |= {f"optimizer.{name}": part for name, part in parts.items()}
        done = sum(phase.generations + 1 for phase in self._phases[: self._where["phase"]]) + self._where["generation"]
        self._checkpoints.save(done, tensors, {"key": self._key, "where": self._where, "optimizer": values})
        self._saving_seconds += time.monotonic() - began

    def _restore(self) -> None:
        latest = self._checkpoints.latest()
        if latest is None:
            return
        _, tensors, state = latest
        differences = _differences(state.get("key", {}), self._key)
        if differences:
            raise RunMismatchError(
                f"{self._checkpoints.folder}: belongs to another training of the controller: {'; '.join(differences)}. "
                "Delete the folder to begin anew, or restore the settings to go on."
            )
        parts = {
            name.removeprefix("optimizer."): part for name, part in tensors.items() if name.startswith("optimizer.")
        }
        self._tensors = {name: value for name, value in tensors.items() if not name.startswith("optimizer.")}
        self._where = state["where"]
        if parts:
            device = self._phases[self._where["phase"]].device
            try:
                self._optimizer = restore_optimizer(parts, state["optimizer"], device)
            except (RunMismatchError, CorruptFileError) as error:
                raise type(error)(f"{self._checkpoints.folder}: {error}") from error


def _checked(phase: _Phase, returns: Any, population: int) -> Tensor:
    """What a fitness returned, if it is [P, E]; ValueError otherwise."""
    shape = list(returns.shape) if isinstance(returns, Tensor) else type(returns).__name__
    if not isinstance(returns, Tensor) or returns.dim() != 2 or len(returns) != population or not returns.shape[1]:
        raise ValueError(
            f"the fitness {phase.name!r} must return a tensor [P, E] of returns, here [{population}, E], but it was "
            f"{shape}"
        )
    return returns


def _nothing_finite(phase: _Phase, what: str) -> WMEngineError:
    return WMEngineError(
        f"controller ({phase.name}): {what} was finite. Look at M's losses, lower controller.sigma or "
        "controller.temperature, and run the stage again."
    )


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


def _differences(before: Any, now: Any, name: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        names = sorted(before.keys() | now.keys())
        return [
            line for key in names for line in _differences(before.get(key), now.get(key), f"{name}.{key}".lstrip("."))
        ]
    return [] if before == now else [f"{name} was {before!r} and is now {now!r}"]
