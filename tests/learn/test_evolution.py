"""Evolution as a learner: what it refuses, how it goes on from round to round and from a kill, what it gives."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checker import check
from models.drift import Drift
from pydantic import ValidationError
from torch import Tensor
from toy_env import TOY

from wm_engine.dream.types import DreamOutput, Starts
from wm_engine.envs import Task
from wm_engine.errors import ConfigError, CorruptFileError, WMEngineError
from wm_engine.files import load_tensors, save_tensors
from wm_engine.learn.base import Problem, learner_kind
from wm_engine.learn.evolution import Evolution, EvolutionSettings
from wm_engine.policies.controller import Controllers
from wm_engine.rng import derive_seed, episode_seeds
from wm_engine.spaces import Box, Discrete, Spaces, Vector

CPU = torch.device("cpu")
STARTS = Starts(torch.zeros(5, 2), torch.zeros(5, 1), torch.zeros(5, 1))


class Killed(BaseException):
    """Stands for kill -9: nothing catches it."""


class Hill:
    """Dreams whose returns fall off with the distance from ``peak``, with noise common to a generation's candidates."""

    backend, device = "torch", CPU

    def __init__(
        self, peak: float = 1.0, spoil: Callable[[Tensor, int], Tensor] = lambda returns, call: returns
    ) -> None:
        self._peak, self._spoil = peak, spoil
        self.calls: list[dict[str, Any]] = []
        self.asked: list[Tensor] = []
        self.killed_at = -1

    def rollout(self, params: Tensor, starts: Starts, **plan: Any) -> DreamOutput:
        if len(self.calls) == self.killed_at:
            raise Killed
        assert params.dtype == torch.float32
        self.calls.append(plan | {"starts": starts})
        self.asked.append(params)
        noise = torch.randn(plan["episodes"], params.shape[1], generator=torch.Generator().manual_seed(plan["seed"]))
        returns = -((params.unsqueeze(1) - self._peak + 0.1 * noise) ** 2).sum(dim=2)
        returns = self._spoil(returns, len(self.calls) - 1)
        lengths = torch.full(returns.shape, 2, dtype=torch.int32)
        return DreamOutput(returns, lengths, torch.isnan(returns).any(dim=1))


class Road:
    """A real environment whose returns fall off with the distance from ``peak``; drives ``lanes`` episodes at once."""

    def __init__(self, peak: float = 1.0, lanes: int = 3) -> None:
        self.frames, self._peak, self._lanes = 0, peak, lanes
        self.calls: list[tuple[list[int], int, int]] = []

    def returns(
        self, policy: Callable[[np.ndarray], Controllers], seeds: list[int], max_frames: int, patience: int
    ) -> np.ndarray:
        self.calls.append((seeds, max_frames, patience))
        found = []
        for first in range(0, len(seeds), self._lanes):
            numbers = np.arange(first, min(first + self._lanes, len(seeds)))
            driving = policy(numbers)
            assert len(driving.candidate) == len(numbers)
            own = driving.params[driving.candidate]
            offsets = torch.tensor([0.01 * (seeds[number] % 7) for number in numbers])
            found.append(-(own - self._peak).square().sum(1) + offsets)
            self.frames += 10 * len(numbers)
        return torch.cat(found).numpy().astype(np.float32)


def settings(**changes: Any) -> EvolutionSettings:
    plain = {"population": 8, "sigma": 0.3, "dream_generations": 5, "dream_episodes": 3, "dream_steps": 7}
    return EvolutionSettings(**(plain | {"real_generations": 4} | changes))


def built(
    chosen: EvolutionSettings | None = None, task: Task = TOY, world: Drift | None = None, seed: int = 3
) -> Evolution:
    world = world or Drift(2, task.spaces.actions.size, hidden=1)
    return Evolution.build(chosen or settings(), task, world, seed, CPU)


def problem(number: int, hill: Any, real: Any = None) -> Problem:
    return Problem(number, 100 + number, Drift(hidden=1), STARTS, lambda spec: hill, real)


def learn(learner: Evolution, hill: Any, rounds: int = 1, real: Any = None) -> list[dict[str, float]]:
    return [row for number in range(rounds) for row in learner.learn(problem(number, hill, real), 0)]


def moved(state: Any, folder: Path) -> Any:
    """A state as it comes back from a file."""
    save_tensors(folder / "state.safetensors", state[0])
    return load_tensors(folder / "state.safetensors")[0], json.loads(json.dumps(state[1]))


def equal(one: Evolution, other: Evolution) -> bool:
    (ours, values), (theirs, others) = one.state(), other.state()
    return ours.keys() == theirs.keys() and values == others and all(torch.equal(ours[k], theirs[k]) for k in ours)


def task_of(actions: Any, **options: Any) -> Task:
    return Task("little", "Little-v0", Spaces(Vector(2), actions), **options)


# What fits the task and the world model


def test_it_is_the_learner_named_evolution() -> None:
    assert learner_kind("evolution") is Evolution
    with pytest.raises(ConfigError, match=r"controller\.kind: 'evolutoin' is unknown; the nearest known one is 'evol"):
        learner_kind("evolutoin")


def test_the_controller_has_the_shape_of_the_task_and_the_model() -> None:
    spec = built(settings(features="zhc", hidden_units=4), TOY, Drift(5, 3, hidden=2)).spec
    assert (spec.latent, spec.hidden, spec.action, spec.features, spec.hidden_units) == (5, 2, 3, "zhc", 4)
    assert spec.squash == ("tanh", "sigmoid", "sigmoid"), "what fits the task's bounds"


def test_discrete_actions_are_chosen_by_argmax() -> None:
    grid = task_of(Discrete(4))
    assert built(settings(), grid).spec.squash == "argmax"
    assert built(settings(squash="argmax"), grid).spec.action == 4
    with pytest.raises(ConfigError, match=r"controller\.squash: the 4 actions of little are discrete and want argmax"):
        built(settings(squash="tanh"), grid)


@pytest.mark.parametrize("squash", [("tanh", "sigmoid", "relu_tanh"), ("sigmoid",), ("argmax",)])
def test_a_squash_that_fits_is_taken(squash: tuple[str, ...]) -> None:
    words = built(settings(squash=squash)).spec.squash
    assert words == ("argmax" if squash == ("argmax",) else squash * (3 // len(squash)))


def test_one_word_stands_for_all_actions() -> None:
    assert settings(squash="sigmoid").squash == ("sigmoid",)
    assert settings(squash=["tanh", "sigmoid", "sigmoid"]).squash == ("tanh", "sigmoid", "sigmoid")


@pytest.mark.parametrize(
    ("squash", "message"),
    [
        (("tanh", "sigmoid"), r"must be one of .* for each of the 3 actions of toy"),
        (("tanh",) * 4, r"must be one of .* for each of the 3 actions of toy"),
        (("tanh", "sigmoid", "tahn"), r"must be one of .*but was \['tanh', 'sigmoid', 'tahn'\]"),
        (("tahn",), "must be one of"),
        (("tanh",), r"tanh puts out \[-1, 1\], but action 1 of toy must be in \[0, 1\]"),
        (("identity",), r"identity puts out \[-inf, inf\], but action 0"),
        (("tanh", "argmax", "sigmoid"), "argmax is of all actions at once"),
    ],
)
def test_a_squash_that_does_not_fit_is_refused(squash: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=rf"^controller\.squash: {message}"):
        built(settings(squash=squash))


def test_bounds_that_no_squash_keeps_to_are_named() -> None:
    with pytest.raises(ConfigError, match=r"sigmoid puts out \[0, 1\], but action 0 of little must be in \[0, 0\.5\]"):
        built(settings(), task_of(Box((0.0,), (0.5,))))
    assert built(settings(), task_of(Box((-2.0,), (2.0,)))).spec.squash == ("tanh",)


@pytest.mark.parametrize("features", ["zh", "zhc"])
def test_a_hidden_state_that_there_is_not_cannot_be_seen(features: str) -> None:
    with pytest.raises(ConfigError, match=rf"controller\.features: '{features}' sees a hidden state.* set it to \"z\""):
        built(settings(features=features), world=Drift(2, 3))
    assert built(settings(features="z"), world=Drift(2, 3)).spec.num_params == 3 * (2 + 1)


def test_a_bound_of_the_spread_is_the_batched_ones_alone() -> None:
    with pytest.raises(ConfigError, match=r"controller\.optimizer: sigma_max must be infinite with pycma"):
        built(settings(optimizer="pycma", sigma_max=0.5))
    built(settings(optimizer="batched", sigma_max=0.5))


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("toaster", r"device must be one that is here \(cpu, cuda:0, mps\), but was 'toaster'"),
        ("cuda:1", r"device must be one that is here \(cpu, cuda:0, mps\), but was 'cuda:1'"),
        ("mps", "device must know float64, but was 'mps'"),
    ],
)
def test_an_optimizer_that_cannot_live_where_it_is_told_to_is_refused(
    monkeypatch: pytest.MonkeyPatch, device: str, message: str
) -> None:
    monkeypatch.setattr("wm_engine.checks.device_counts", lambda: {"cpu": 1, "cuda": 1, "mps": 1})
    with pytest.raises(ConfigError, match=rf"controller\.optimizer: {message}"):
        built(settings(optimizer_device=device))
    with pytest.raises(ConfigError, match=r"controller\.optimizer: device must be 'cpu' for 'pycma'"):
        built(settings(optimizer_device="cuda:0", optimizer="pycma"))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"dream_race": 1}, "dream_race"),
        ({"dream_race": 3}, "dream_race"),
        ({"population": 3}, "population"),
        ({"sigma": 0.0}, "sigma"),
        ({"sigma_max": 0.0}, "sigma_max"),
        ({"sigma": 0.3, "sigma_max": 0.29}, r"sigma_max: must be at least sigma \(0\.3\), but was 0\.29"),
        ({"average": 0}, "average"),
        ({"train_in": "dream_then_real"}, "train_in"),
        ({"temperature": -1.0}, "temperature"),
        ({"dream_steps_growth": 0.9}, "dream_steps_growth"),
        ({"init_from": "runs/old"}, "init_from"),
        ({"finalists": 4}, "finalists"),
    ],
)
def test_settings_are_bounded(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError, match=field):
        settings(**changes)


def test_dreams_grow_from_round_to_round_up_to_a_bound() -> None:
    chosen = settings(dream_steps=40, dream_steps_growth=1.5, most_dream_steps=100)
    assert [chosen.steps_in(number) for number in range(5)] == [40, 60, 90, 100, 100]
    assert settings(dream_steps=40).steps_in(10**9) == 40
    assert settings(dream_steps=40, dream_steps_growth=2.0).steps_in(10**9) == 1000
    assert settings(dream_steps=2000).steps_in(3) == 2000, "a first length above the bound stays"


# Learning


@pytest.mark.parametrize("optimizer", ["pycma", "batched"])
def test_it_climbs_and_goes_on_from_round_to_round(optimizer: str) -> None:
    learner, hill = built(settings(optimizer=optimizer, dream_generations=40)), Hill()
    rows = learn(learner, hill, rounds=2)
    assert len(rows) == 80
    assert rows[40]["mean"] > rows[0]["mean"], "the second round does not begin anew"
    assert (learner.policy().params - 1.0).abs().max() < 0.4
    assert rows[-1]["sigma"] < rows[0]["sigma"]


def test_a_generation_dreams_by_the_settings_with_numbers_of_its_own() -> None:
    chosen = settings(dream_steps=10, dream_steps_growth=2.0, temperature=1.3, done="sample")
    learner, hill = built(chosen), Hill()
    learn(learner, hill, rounds=2)
    assert [call["seed"] for call in hill.calls] == [
        derive_seed(100 + number, "dream", generation) for number in range(2) for generation in range(5)
    ]
    for number, call in enumerate(hill.calls):
        assert (call["episodes"], call["max_steps"], call["temperature"]) == (3, 20 if number >= 5 else 10, 1.3)
        assert (call["reward"], call["done"]) == ("predicted", "sample")
        assert len(call["starts"]) == 3


@pytest.mark.parametrize(
    ("chosen", "tasks", "found"),
    [("task", "predicted", "predicted"), ("task", "survival", "survival"), ("predicted", "survival", "predicted")],
)
def test_a_dreamt_step_is_worth_what_the_task_says_unless_told(chosen: str, tasks: str, found: str) -> None:
    learner, hill = built(settings(reward=chosen), task_of(Discrete(2), reward=tasks)), Hill()
    learn(learner, hill)
    assert {call["reward"] for call in hill.calls} == {found}


def test_units_are_generations() -> None:
    assert built(settings()).units(0) == built(settings()).units(7) == 5
    assert built(settings(train_in="real")).units(0) == 4
    assert list(built(settings(dream_generations=0)).learn(problem(0, Hill()), 0)) == []


def test_the_numbers_of_a_generation() -> None:
    def one_lost(returns: Tensor, call: int) -> Tensor:
        returns = returns.clone()
        returns[0, 1] = torch.nan
        return returns

    for row in learn(built(), Hill(spoil=one_lost)):
        assert row["nonfinite"] == 1
        assert row["mean"] <= row["best"] < 0
        assert row["std"] > 0
        assert row["sigma"] > 0
        assert row["steps"] == 8 * 3 * 2
        assert row["fitness_seconds"] > 0
        assert row["optimizer_seconds"] > 0


def test_episodes_differ_as_much_as_a_candidates_own_do() -> None:
    tables = [torch.randn(8, 3, generator=torch.Generator().manual_seed(call)) for call in range(5)]
    rows = learn(built(), Hill(spoil=lambda returns, call: tables[call]))
    for row, table in zip(rows, tables, strict=True):
        own = table.double() - table.double().mean(1, keepdim=True)
        check("episode_std", np.array(row["episode_std"]), (own.square().sum() / (8 * 2)).sqrt())
        check("mean", np.array(row["mean"]), table.double().mean())
        check("std", np.array(row["std"]), table.double().mean(1).std(correction=0))


def test_filled_in_returns_say_nothing_of_how_episodes_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    dreamt = torch.rand(8, 3, generator=generator) < 0.5
    dreamt[:, :2] = True
    table = torch.randn(8, 3, generator=generator)

    class Raced:
        unit, backend, device, steps = "dream_steps", "torch", CPU, 0

        def __init__(self, mask: Tensor | None) -> None:
            self.dreamt = mask

        def __call__(self, params: Tensor, generation: int) -> Tensor:
            return table if self.dreamt is None else torch.where(self.dreamt, table, 100.0)

    for mask in (dreamt, None):
        learner = built(settings(dream_generations=1))
        monkeypatch.setattr(learner, "_fitness", lambda problem, mask=mask: Raced(mask))
        (row,) = learn(learner, Hill())
        there = torch.ones_like(dreamt) if mask is None else mask
        rows = [own[kept].double() for own, kept in zip(table, there, strict=True)]
        squares = sum(float((own - own.mean()).square().sum()) for own in rows)
        freedom = sum(len(own) - 1 for own in rows)
        check("episode_std", np.array(row["episode_std"]), np.array((squares / freedom) ** 0.5))


@pytest.mark.parametrize("lost", [0, 3])
def test_equal_returns_are_logged(caplog: pytest.LogCaptureFixture, lost: int) -> None:
    def equal_ones(returns: Tensor, call: int) -> Tensor:
        returns = torch.ones_like(returns)
        returns[:lost] = torch.nan
        return returns

    with caplog.at_level(logging.WARNING):
        learn(built(), Hill(spoil=equal_ones))
    assert caplog.text.count("all finite returns of a generation are equal") == 5
    assert caplog.text.count("3 of 8 candidates had no finite return") == (5 if lost else 0)


def test_a_population_that_is_lost_again_and_again_is_an_error(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """However the ten generations are spread over rounds and kills."""

    def all_lost(returns: Tensor, call: int) -> Tensor:
        return torch.full_like(returns, torch.nan) if call >= 2 else returns

    learner, hill = built(), Hill(spoil=all_lost)
    learn(learner, hill, rounds=2)  # two sound generations, and eight lost ones
    resumed = built()
    resumed.load_state(*moved(learner.state(), tmp_path))
    with caplog.at_level(logging.WARNING), pytest.raises(WMEngineError, match="10 generations in a row"):
        list(resumed.learn(problem(2, hill), 0))
    assert len(hill.calls) == 12
    assert "8 of 8 candidates had no finite return" in caplog.text


def test_a_sound_generation_ends_the_row_of_lost_ones() -> None:
    def often_lost(returns: Tensor, call: int) -> Tensor:
        return returns if call % 10 == 9 else torch.full_like(returns, torch.nan)

    rows = learn(built(settings(dream_generations=40)), Hill(spoil=often_lost))
    assert sum(math.isnan(row["mean"]) for row in rows) == 36


# Killed and gone on with


@pytest.mark.parametrize("optimizer", ["pycma", "batched"])
@pytest.mark.parametrize("train_in", ["dream", "real"])
def test_killed_at_any_unit_it_ends_the_same(tmp_path: Path, optimizer: str, train_in: str) -> None:
    chosen = settings(optimizer=optimizer, train_in=train_in, average=2)
    whole = built(chosen)
    learn(whole, Hill(), rounds=2, real=Road())
    units = whole.units(0)
    for cut_round in range(2):
        for unit in range(units):
            begun = built(chosen)
            for number in range(cut_round + 1):
                iterator = begun.learn(problem(number, Hill(), Road()), 0)
                taken = units if number < cut_round else unit
                for _ in range(taken):
                    next(iterator)
                if number < cut_round:
                    assert next(iterator, None) is None
            state = moved(begun.state(), tmp_path)
            resumed = built(chosen, seed=99)
            resumed.load_state(*state)
            list(resumed.learn(problem(cut_round, Hill(), Road()), unit))
            for number in range(cut_round + 1, 2):
                list(resumed.learn(problem(number, Hill(), Road()), 0))
            assert equal(resumed, whole)
            assert torch.equal(resumed.policy().params, whole.policy().params)
            assert torch.equal(resumed.candidates(4, 1).params, whole.candidates(4, 1).params)


@pytest.mark.parametrize("optimizer", ["pycma", "batched"])
def test_a_kill_in_the_middle_of_a_generation_costs_that_generation(tmp_path: Path, optimizer: str) -> None:
    chosen = settings(optimizer=optimizer)
    whole = built(chosen)
    learn(whole, Hill())
    fatal, begun = Hill(), built(chosen)
    fatal.killed_at = 3
    iterator = begun.learn(problem(0, fatal), 0)
    for _ in range(3):
        next(iterator)
    state = moved(begun.state(), tmp_path)
    with pytest.raises(Killed):
        next(iterator)
    resumed = built(chosen)
    resumed.load_state(*state)
    assert len(list(resumed.learn(problem(0, Hill()), 3))) == 2
    assert equal(resumed, whole)


@pytest.mark.parametrize("optimizer", ["pycma", "batched"])
def test_a_state_that_lacks_something_is_corrupt(optimizer: str) -> None:
    learner = built(settings(optimizer=optimizer))
    learn(learner, Hill())
    tensors, values = learner.state()
    for lacking in (({}, values), (tensors, {}), (tensors, {"unranked": 0})):
        with pytest.raises(CorruptFileError, match="lacks its optimiser"):
            built(settings(optimizer=optimizer)).load_state(*lacking)
    with pytest.raises(CorruptFileError, match="the optimiser's state"):
        built(settings(optimizer=optimizer)).load_state(tensors, values | {"optimizer": {"kind": "guess"}})


def test_another_seed_is_another_search() -> None:
    one, same, other = (built(seed=seed) for seed in (3, 3, 4))
    for learner in (one, same, other):
        learn(learner, Hill())
    assert equal(one, same)
    assert not torch.equal(one.policy().params, other.policy().params)


# In the real environment


def test_trained_for_real_no_dream_is_dreamt() -> None:
    chosen = settings(train_in="real", real_generations=60, real_episodes=2, real_frames=70, real_patience=9)
    assert chosen.wants_real()
    assert not settings().wants_real()
    learner, hill, road = built(chosen), Hill(), Road()
    rows = learn(learner, hill, real=road)
    assert hill.calls == []
    assert (learner.policy().params - 1.0).abs().max() < 0.4
    assert [row["steps"] for row in rows] == [8 * 2 * 10] * 60
    for generation, (seeds, frames, patience) in enumerate(road.calls):
        own = episode_seeds(derive_seed(100, "tracks", generation), 2)
        assert seeds == own * 8, "the same for every candidate"
        assert (frames, patience) == (70, 9)


def test_a_missing_real_environment_is_named() -> None:
    with pytest.raises(ValueError, match="train_in is real, but the problem has no real environment"):
        learn(built(settings(train_in="real")), Hill())


# What it gives


def test_before_it_has_learnt_it_begins_at_zero() -> None:
    learner = built()
    assert not learner.policy().params.any()
    assert torch.equal(learner.candidates(3, 0).params[0], learner.policy().params[0])


def test_the_policy_is_the_mean_of_the_last_rounds_means() -> None:
    single, averaged = built(settings()), built(settings(average=3))
    means = []
    for number in range(5):
        for learner in (single, averaged):
            list(learner.learn(problem(number, Hill()), 0))
        means.append(single.policy().params[0])
        last = torch.stack(means[-3:]).double()
        check(f"after round {number}", averaged.policy().params[0], last.mean(0), last.float().mean(0))
    assert len(averaged.state()[0]["means"]) == 3


@pytest.mark.parametrize("optimizer", ["pycma", "batched"])
def test_candidates_are_drawn_from_the_distribution_about_its_mean(optimizer: str) -> None:
    learner = built(settings(optimizer=optimizer, dream_generations=30))
    learn(learner, Hill())
    found, count = learner._optimizer.distribution, 4001
    drawn = learner.candidates(count, 7)
    assert drawn.params.shape == (count, learner.spec.num_params)
    assert drawn.candidate.tolist() == list(range(count))
    assert torch.equal(drawn.params[0], found.mean.float())
    steps = (drawn.params[1:].double() - found.mean).T / found.sigma
    white = torch.linalg.solve_triangular(found.factor, steps, upper=False)
    error = white @ white.T / (count - 1) - torch.eye(len(white), dtype=torch.float64)
    assert float(error.abs().max()) < 6 * (2 / (count - 1)) ** 0.5  # six standard errors of a variance
    assert torch.equal(learner.candidates(count, 7).params, drawn.params)
    assert not torch.equal(learner.candidates(count, 8).params[1:], drawn.params[1:])
    state = learner.state()[1]
    assert state == built_after(optimizer).state()[1], "asking for candidates changes no search"


def built_after(optimizer: str) -> Evolution:
    learner = built(settings(optimizer=optimizer, dream_generations=30))
    learn(learner, Hill())
    return learner


@pytest.mark.parametrize("bound", [0.3, 0.5])
def test_no_weight_spreads_beyond_the_bound(bound: float) -> None:
    """A fitness of noise alone lets the step size run away."""

    def noise(returns: Tensor, call: int) -> Tensor:
        return torch.randn(returns.shape, generator=torch.Generator().manual_seed(call))

    chosen = {"dream_generations": 150, "sigma": 0.3, "population": 16}
    free, held = built(settings(**chosen)), built(settings(**chosen, sigma_max=bound))
    spread = {id(learner): [] for learner in (free, held)}
    for learner in (free, held):
        for _ in learner.learn(problem(0, Hill(spoil=noise)), 0):
            found = learner._optimizer.distribution
            spread[id(learner)].append(found.sigma * float(found.factor.norm(dim=1).max()))
    assert max(spread[id(free)]) > bound
    check("largest spread", np.maximum(spread[id(held)], bound), np.full(150, bound))


def test_a_policy_survives_its_file(tmp_path: Path) -> None:
    learner = built(settings(features="zhc", hidden_units=3))
    learn(learner, Hill())
    learner.save_policy(tmp_path / "c.safetensors", learner.policy())
    back = Evolution.load_policy(tmp_path / "c.safetensors")
    assert back.spec == learner.spec
    assert torch.equal(back.params, learner.policy().params)
    assert back.candidate.tolist() == [0]
    Drift().save(tmp_path / "m.safetensors")
    with pytest.raises(CorruptFileError, match=r"m\.safetensors: not a controller"):
        Evolution.load_policy(tmp_path / "m.safetensors")


@pytest.mark.parametrize(
    ("reward", "in_a_task_of", "survival"),
    [
        ("task", "predicted", False),
        ("task", "survival", True),
        ("survival", "predicted", True),
        ("predicted", "survival", False),
    ],
)
def test_the_rules_of_its_dreams_say_what_a_step_is_worth(reward, in_a_task_of, survival):
    rules = settings(reward=reward, temperature=1.3, done="sample").dream_rules(0)
    assert (rules.steps, rules.temperature, rules.done) == (7, 1.3, "sample")
    assert rules.survival(in_a_task_of) is survival
