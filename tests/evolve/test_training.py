"""Training of controllers on cheap stand-ins for the dream and the real environment."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from world import World

from wm_engine import DreamEngine
from wm_engine.controller import ControllerSpec
from wm_engine.dream.types import DreamOutput
from wm_engine.errors import RunMismatchError, WMEngineError
from wm_engine.evolve import training
from wm_engine.evolve.fitness import DreamFitness
from wm_engine.evolve.protocol import Distribution, derive_seed
from wm_engine.evolve.training import ControllerResult, ControllerSettings, train_controller
from wm_engine.records import Recorder, read_metrics
from wm_engine.runs import Checkpoints, save_tensors

SPEC = ControllerSpec(latent=2, hidden=3, action=1, features="zh", squash="tanh")
D = SPEC.num_params


class Killed(BaseException):
    """Stands for kill -9: nothing catches it."""


class Hill:
    """Returns that fall off with the distance from ``peak``, with noise common to a generation's candidates."""

    unit, backend, device = "steps", "cpp", torch.device("cpu")

    def __init__(
        self, peak: float, spoil: Callable[[Tensor, int], Tensor] = lambda returns, generation: returns
    ) -> None:
        self._peak, self._spoil = peak, spoil
        self.steps, self.calls, self.killed_at = 0, 0, -1

    def __call__(self, params: Tensor, generation: int) -> Tensor:
        assert params.dtype == torch.float32
        return self._spoil(self._returns(params, 3, generation), generation)

    def fresh(self, params: Tensor, episodes: int, stream: str) -> Tensor:
        return self._returns(params, episodes, stream)

    def _returns(self, params: Tensor, episodes: int, luck: int | str) -> Tensor:
        if self.calls == self.killed_at:
            raise Killed
        self.calls += 1
        self.steps += params.shape[0] * episodes
        noise = torch.randn(episodes, D, generator=torch.Generator().manual_seed(derive_seed(0, luck)))
        return -((params.unsqueeze(1) - self._peak + 0.1 * noise) ** 2).sum(dim=2)


def settings(**changes: Any) -> ControllerSettings:
    plain = {"population": 8, "sigma": 0.3, "dream_generations": 6, "real_generations": 4, "finalists": 2}
    plain |= {"checkpoint_seconds": 0.0}
    return ControllerSettings(**(plain | {"final_dream_episodes": 5, "final_real_episodes": 5} | changes))


def train(folder: Path, **arguments: Any) -> ControllerResult:
    chosen = arguments.pop("settings", None) or settings()
    with Recorder(folder / "metrics") as recorder:
        return train_controller(
            chosen, SPEC, checkpoints=Checkpoints(folder / "checkpoints"), recorder=recorder, **arguments
        )


def assert_equal(first: ControllerResult, second: ControllerResult) -> None:
    assert torch.equal(first.params, second.params)
    assert (first.source, first.scores) == (second.source, second.scores)
    assert first.spec == second.spec
    assert torch.equal(first.distribution.mean, second.distribution.mean)
    assert torch.equal(first.distribution.factor, second.distribution.factor)
    assert first.distribution.sigma == second.distribution.sigma
    for ours, theirs in ((first.winners, second.winners), (first.history, second.history)):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_dream_phase_climbs_and_scores(tmp_path: Path) -> None:
    result = train(tmp_path, settings=settings(dream_generations=80), dream=Hill(1.0), real=Hill(0.5))
    assert (result.params - 1.0).abs().max() < 0.4
    assert result.source.startswith("dream ")
    assert set(result.scores) == {"dream_mean", "dream_std", "real_mean", "real_std"}
    assert result.scores["dream_mean"] > result.scores["real_mean"]
    assert result.history["dream"].shape == (80, D)
    assert torch.equal(result.winners["dream"], result.params)


def test_the_second_phase_begins_where_the_first_ended(tmp_path: Path) -> None:
    asked: list[Tensor] = []

    class Watched(Hill):
        def __call__(self, params: Tensor, generation: int) -> Tensor:
            asked.append(params)
            return super().__call__(params, generation)

    chosen = settings(train_in="dream_then_real", dream_generations=80, real_sigma=0.001)
    result = train(tmp_path, settings=chosen, dream=Hill(1.0), real=Watched(1.0))
    assert (asked[0] - 1.0).abs().max() < 0.4
    assert float(asked[0].std(dim=0).max()) < 0.005
    assert set(result.winners) == {"dream", "real"}
    assert {name: len(best) for name, best in result.history.items()} == {"dream": 80, "real": 4}


def test_a_dream_winner_that_drives_better_is_kept(tmp_path: Path) -> None:
    misled = Hill(1.0, spoil=lambda returns, generation: -returns)
    chosen = settings(
        train_in="dream_then_real", dream_generations=80, real_generations=30, real_sigma=0.5, finalists=0
    )
    result = train(tmp_path, settings=chosen, dream=Hill(1.0), real=misled)
    assert result.source == "dream winner"
    assert torch.equal(result.params, result.winners["dream"])


def test_the_final_chooses_by_fresh_luck(tmp_path: Path) -> None:
    """A candidate that was only lucky once is on the shortlist, and loses the final."""
    lucky = torch.zeros(D)

    def one_hit(returns: Tensor, generation: int) -> Tensor:
        if generation == 2:
            returns = returns.clone()
            returns[5] += 1000.0
        return returns

    hill = Hill(1.0, spoil=one_hit)
    result = train(tmp_path, settings=settings(dream_generations=60), dream=hill)
    rows = [row for row in read_metrics(tmp_path / "metrics" / "metrics.jsonl") if row["stage"] == "controller_dream"]
    assert rows[2]["best"] > 900
    lucky = result.history["dream"][2]
    assert not torch.equal(result.params, lucky)
    assert (result.params - 1.0).norm() < (lucky - 1.0).norm()


@pytest.mark.parametrize("optimizer", ["pycma", "batched"])
@pytest.mark.parametrize("train_in", ["dream", "dream_then_real"])
def test_killed_at_any_call_it_ends_the_same(tmp_path: Path, train_in: str, optimizer: str) -> None:
    chosen = settings(train_in=train_in, optimizer=optimizer)
    dream, real = Hill(1.0), Hill(0.5)
    whole = train(tmp_path / "whole", settings=chosen, dream=dream, real=real)
    for which, calls in (("dream", dream.calls), ("real", real.calls)):
        for kill in range(calls):
            folder = tmp_path / f"{which}{kill}"
            fitnesses = {"dream": Hill(1.0), "real": Hill(0.5)}
            fitnesses[which].killed_at = kill
            with pytest.raises(Killed):
                train(folder, settings=chosen, **fitnesses)
            assert_equal(train(folder, settings=chosen, dream=Hill(1.0), real=Hill(0.5)), whole)


@pytest.mark.parametrize("optimizer", ["pycma", "batched"])
def test_killed_while_a_checkpoint_is_written_it_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    chosen = settings(train_in="dream_then_real", optimizer=optimizer)
    whole = train(tmp_path / "whole", settings=chosen, dream=Hill(1.0), real=Hill(0.5))
    for kill in range(6 + 1 + 4 + 1):
        saves = 0

        def dying_save(*arguments: Any, kill: int = kill) -> None:
            nonlocal saves
            if saves == kill:
                raise Killed
            saves += 1
            save_tensors(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr("wm_engine.runs.save_tensors", dying_save)
            with pytest.raises(Killed):
                train(tmp_path / str(kill), settings=chosen, dream=Hill(1.0), real=Hill(0.5))
        assert_equal(train(tmp_path / str(kill), settings=chosen, dream=Hill(1.0), real=Hill(0.5)), whole)


def test_rare_checkpoints_give_the_same_result(tmp_path: Path) -> None:
    often = train(tmp_path / "often", dream=Hill(1.0))
    rarely = settings(checkpoint_seconds=1000.0)
    hill = Hill(1.0)
    hill.killed_at = 4
    with pytest.raises(Killed):
        train(tmp_path / "rarely", settings=rarely, dream=hill)
    assert Checkpoints(tmp_path / "rarely" / "checkpoints").latest() is None
    assert_equal(train(tmp_path / "rarely", settings=rarely, dream=Hill(1.0)), often)


def test_a_finished_training_is_only_scored_again(tmp_path: Path) -> None:
    first = train(tmp_path, dream=Hill(1.0))
    hill = Hill(1.0)
    assert_equal(train(tmp_path, dream=hill), first)
    assert hill.calls == 1


def test_another_training_is_refused_with_the_difference(tmp_path: Path) -> None:
    train(tmp_path, dream=Hill(1.0), identity={"memory": "a1"})
    with pytest.raises(RunMismatchError, match=r"settings\.sigma was 0\.3 and is now 0\.4"):
        train(tmp_path, settings=settings(sigma=0.4), dream=Hill(1.0), identity={"memory": "a1"})
    with pytest.raises(RunMismatchError, match=r"identity\.memory was 'a1' and is now 'b2'"):
        train(tmp_path, dream=Hill(1.0), identity={"memory": "b2"})


def test_other_backends_are_refused(tmp_path: Path) -> None:
    """What "auto" comes to may be another one where a run goes on, or with a cluster."""
    hill, other = Hill(1.0), Hill(1.0)
    hill.killed_at, other.backend = 3, "torch"
    with pytest.raises(Killed):
        train(tmp_path, dream=hill)
    with pytest.raises(RunMismatchError, match=r"backend\.dream was 'cpp on cpu' and is now 'torch on cpu'"):
        train(tmp_path, dream=other)


def test_another_beginning_is_refused(tmp_path: Path) -> None:
    begin = Distribution(torch.zeros(D), 0.2, torch.ones(D).double())
    train(tmp_path, dream=Hill(1.0), initial=begin)
    others = [torch.zeros(D), None, replace(begin, sigma=0.21), replace(begin, factor=2.0 * begin.factor)]
    for other in others:
        with pytest.raises(RunMismatchError, match=r"initial was '\w+' and is now"):
            train(tmp_path, dream=Hill(1.0), initial=other)
    train(tmp_path, dream=Hill(1.0), initial=replace(begin, mean=begin.mean.double()))


def test_other_random_numbers_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tmp_path, dream=Hill(1.0))
    monkeypatch.setattr(training, "RNG_VERSION", 2)
    with pytest.raises(RunMismatchError, match="rng_version was 1 and is now 2"):
        train(tmp_path, dream=Hill(1.0))


@pytest.mark.parametrize("kept", [{}, {"key": {"seed": 3}}])
def test_checkpoints_that_do_not_say_what_they_are_of_are_refused(kept: dict[str, Any], tmp_path: Path) -> None:
    """As earlier versions wrote them."""
    Checkpoints(tmp_path / "checkpoints").save(1, {"start": torch.zeros(D)}, {"where": {"phase": 0}} | kept)
    with pytest.raises(RunMismatchError, match="rng_version was None and is now 1"):
        train(tmp_path, dream=Hill(1.0))


def test_pycmas_search_that_cannot_be_replayed_is_refused_with_its_folder(tmp_path: Path) -> None:
    hill, chosen = Hill(1.0), settings(optimizer="pycma")
    hill.killed_at = 3
    with pytest.raises(Killed):
        train(tmp_path, settings=chosen, dream=hill)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    step, tensors, state = checkpoints.latest()
    checkpoints.save(step, tensors | {"optimizer.mean": tensors["optimizer.mean"] + 1.0}, state)
    with pytest.raises(RunMismatchError, match=r"checkpoints: pycma's search cannot be replayed here"):
        train(tmp_path, settings=chosen, dream=Hill(1.0))


@pytest.mark.parametrize("returns", [torch.zeros(8), torch.zeros(7, 3), torch.zeros(8, 0), [[0.0]] * 8])
def test_returns_of_another_shape_are_named(tmp_path: Path, returns: Any) -> None:
    with pytest.raises(ValueError, match=r"fitness 'dream' must return a tensor \[P, E\].*here \[8, E\]"):
        train(tmp_path, dream=Fixed(returns))


class Fixed(Hill):
    """Returns the same, whoever is asked about."""

    def __init__(self, returns: Any) -> None:
        super().__init__(1.0)
        self._fixed = returns

    def __call__(self, params: Tensor, generation: int) -> Tensor:
        return self._fixed


def test_metrics_of_every_generation(tmp_path: Path) -> None:
    def one_lost(returns: Tensor, generation: int) -> Tensor:
        returns = returns.clone()
        returns[0, 1] = torch.nan
        return returns

    train(tmp_path, dream=Hill(1.0, spoil=one_lost), iteration=2)
    rows = read_metrics(tmp_path / "metrics" / "metrics.jsonl")
    generations = [row for row in rows if row["stage"] == "controller_dream"]
    assert [(row["step"], row["iteration"]) for row in generations] == [(step, 2) for step in range(1, 7)]
    for row in generations:
        assert row["nonfinite"] == 1
        assert row["mean"] <= row["best"] < 0
        assert row["std"] > 0
        assert row["sigma"] > 0
        assert row["steps"] == 8 * 3
        assert row["steps_per_second"] > 0
    # A row's are those that were written since the row before.
    assert [row["checkpoint_seconds"] > 0 for row in generations] == [False] + 5 * [True]
    final = next(row for row in rows if row["stage"] == "controller")
    assert final["dream_mean"] < 0


def test_lost_candidates_are_logged_and_a_lost_population_is_an_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def all_lost(returns: Tensor, generation: int) -> Tensor:
        return torch.full_like(returns, torch.nan) if generation >= 2 else returns

    chosen = settings(dream_generations=40)
    with caplog.at_level(logging.WARNING), pytest.raises(WMEngineError, match="10 generations in a row"):
        train(tmp_path, settings=chosen, dream=Hill(1.0, spoil=all_lost))
    assert "8 of 8 candidates had no finite return" in caplog.text


@pytest.mark.parametrize("finalists", [0, 2])
def test_a_phase_without_one_finite_return_is_an_error(tmp_path: Path, finalists: int) -> None:
    """Too short for as many lost generations in a row as are borne; the finals alone could still be finite."""
    lost = Hill(1.0, spoil=lambda returns, generation: torch.full_like(returns, torch.nan))
    for _ in range(2):
        with pytest.raises(WMEngineError, match=r"\(dream\): no return of all 6 generations was finite.*temperature"):
            train(tmp_path, settings=settings(finalists=finalists), dream=lost)


def test_a_final_without_one_finite_return_is_an_error(tmp_path: Path) -> None:
    class Lost(Hill):
        def fresh(self, params: Tensor, episodes: int, stream: str) -> Tensor:
            return torch.full_like(super().fresh(params, episodes, stream), torch.inf)

    with pytest.raises(WMEngineError, match=r"in the final, no mean return of 3 finalists was finite"):
        train(tmp_path, dream=Lost(1.0))


def test_a_finite_generation_in_the_first_phase_does_not_count_in_the_second(tmp_path: Path) -> None:
    lost = Hill(1.0, spoil=lambda returns, generation: torch.full_like(returns, torch.nan))
    with pytest.raises(WMEngineError, match=r"\(real\): no return of all 4 generations was finite"):
        train(tmp_path, settings=settings(train_in="dream_then_real"), dream=Hill(1.0), real=lost)


def test_filled_in_returns_say_nothing_of_how_episodes_differ(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    dreamt = torch.rand(8, 3, generator=generator) < 0.5
    dreamt[:, :2] = True

    table = torch.randn(8, 3, generator=generator)
    for name, mask in (("raced", dreamt), ("full", torch.ones_like(dreamt))):
        hill = Fixed(torch.where(mask, table, 100.0))
        hill.dreamt = mask if name == "raced" else None
        train(tmp_path / name, settings=settings(dream_generations=1), dream=hill)
        row = read_metrics(tmp_path / name / "metrics" / "metrics.jsonl")[0]
        rows = [own[there].double() for own, there in zip(table, mask, strict=True)]
        squares = sum(float((own - own.mean()).square().sum()) for own in rows)
        freedom = sum(len(own) - 1 for own in rows)
        assert row["episode_std"] == pytest.approx((squares / freedom) ** 0.5)


@pytest.mark.parametrize("lost", [0, 3])
def test_equal_returns_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture, lost: int) -> None:
    def equal(returns: Tensor, generation: int) -> Tensor:
        returns = torch.ones_like(returns)
        returns[:lost] = torch.nan
        return returns

    with caplog.at_level(logging.WARNING):
        train(tmp_path, dream=Hill(1.0, spoil=equal))
    assert caplog.text.count("all finite returns are equal") == 6
    assert caplog.text.count("3 of 8 candidates had no finite return") == (6 if lost else 0)


def test_a_missing_fitness_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="real must be a fitness where train_in is 'dream_then_real'"):
        train(tmp_path, settings=settings(train_in="dream_then_real"), dream=Hill(1.0))


def test_the_search_begins_at_initial(tmp_path: Path) -> None:
    chosen = settings(dream_generations=1, sigma=1e-6, finalists=0)
    result = train(tmp_path, settings=chosen, dream=Hill(1.0), initial=torch.full((D,), 0.25))
    assert (result.params - 0.25).abs().max() < 1e-4
    with pytest.raises(ValueError, match="initial must have shape"):
        train(tmp_path / "other", dream=Hill(1.0), initial=torch.zeros(D + 1))


@pytest.mark.parametrize("optimizer", ["pycma", "batched"])
def test_a_new_training_goes_on_with_an_earlier_ones_distribution(tmp_path: Path, optimizer: str) -> None:
    chosen = settings(dream_generations=30, optimizer=optimizer)
    first = train(tmp_path / "first", settings=chosen, dream=Hill(1.0))
    assert first.distribution is not None
    assert first.distribution.sigma < 0.3
    begun = train(
        tmp_path / "new",
        settings=settings(dream_generations=1, finalists=0),
        dream=Hill(1.0),
        initial=first.distribution,
    )
    spread = (begun.history["dream"] - first.distribution.mean).norm()
    assert spread < 3 * first.distribution.sigma * first.distribution.factor.norm()
    rows = read_metrics(tmp_path / "new" / "metrics" / "metrics.jsonl")
    assert rows[0]["mean"] > read_metrics(tmp_path / "first" / "metrics" / "metrics.jsonl")[0]["mean"]


@pytest.mark.parametrize("optimizer", ["pycma", "batched"])
def test_killed_at_any_call_a_training_from_a_distribution_ends_the_same(tmp_path: Path, optimizer: str) -> None:
    initial = Distribution(torch.full((D,), 0.5, dtype=torch.float64), 0.2, torch.linspace(0.5, 2.0, D).double())
    chosen = settings(train_in="dream_then_real", optimizer=optimizer)
    dream = Hill(1.0)
    whole = train(tmp_path / "whole", settings=chosen, dream=dream, real=Hill(0.5), initial=initial)
    for kill in range(dream.calls):
        fatal = Hill(1.0)
        fatal.killed_at = kill
        with pytest.raises(Killed):
            train(tmp_path / str(kill), settings=chosen, dream=fatal, real=Hill(0.5), initial=initial)
        again = train(tmp_path / str(kill), settings=chosen, dream=Hill(1.0), real=Hill(0.5), initial=initial)
        assert_equal(again, whole)


def test_a_result_survives_its_file(tmp_path: Path) -> None:
    result = train(tmp_path, settings=settings(train_in="dream_then_real"), dream=Hill(1.0), real=Hill(0.5))
    result.save(tmp_path / "evolution.safetensors")
    assert_equal(ControllerResult.load(tmp_path / "evolution.safetensors"), result)


RACERS = 24


class Racetrack:
    """Dreams of candidates that race. ``rounds`` says how many candidates dreamt in each round of each generation here;
    ``meet(generation, round)`` is called as a round begins, a final being round 0 of the next generation."""

    def __init__(self, world: World, meet: Callable[[int, int], None] = lambda generation, round_: None) -> None:
        self._engine, self._meet = DreamEngine(world.m, world.spec, backend="torch"), meet
        self.device, self.backend = self._engine.device, self._engine.backend
        self.rounds: list[list[int]] = []

    def rollout(self, params: Tensor, *arguments: Any, **plan: Any) -> DreamOutput:
        if len(params) == RACERS:
            self.rounds.append([])
        final = plan["episodes"] == 5
        self._meet(len(self.rounds) - (not final), 0 if final else len(self.rounds[-1]))
        if not final:
            self.rounds[-1].append(len(params))
        return self._engine.rollout(params, *arguments, **plan)


def train_raced(folder: Path, optimizer: str, track: Racetrack, world: World) -> ControllerResult:
    fitness = DreamFitness(track, world.starts, episodes=8, max_steps=12, done="sample", race=2)
    chosen = settings(optimizer=optimizer, population=RACERS, dream_generations=4, dream_episodes=8, dream_race=2)
    assert chosen.checkpoint_seconds == 0.0, "every generation is kept"
    with Recorder(folder / "metrics") as recorder:
        return train_controller(
            chosen, world.spec, dream=fitness, checkpoints=Checkpoints(folder / "checkpoints"), recorder=recorder
        )


@pytest.mark.parametrize("optimizer", ["pycma", "batched"])
def test_killed_in_any_round_of_a_race_it_ends_the_same(tmp_path: Path, optimizer: str) -> None:
    world = World(starts=6)
    track = Racetrack(world)
    whole = train_raced(tmp_path / "whole", optimizer, track, world)
    assert all(len(counts) > 1 for counts in track.rounds), "there is a middle to be cut in"
    moments = [(generation, round_) for generation, counts in enumerate(track.rounds) for round_ in range(len(counts))]
    for moment in [*moments, (len(track.rounds), 0)]:

        def die(*here: int, moment: tuple[int, int] = moment) -> None:
            if here == moment:
                raise Killed

        folder = tmp_path / f"{moment}"
        with pytest.raises(Killed):
            train_raced(folder, optimizer, Racetrack(world, die), world)
        assert_equal(train_raced(folder, optimizer, Racetrack(world), world), whole)


def raced_process(folder: Path, moment: tuple[str, int, int] | None) -> None:
    """Train, and end this process by kill -9 at a moment: in a round of a race, or beside a checkpoint's rename."""
    torch.set_num_threads(1)
    world, replace, saves = World(starts=6), os.replace, 0

    def reach(*here: str | int) -> None:
        if here == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    def rename(source: Path, target: Path) -> None:
        nonlocal saves
        reach("before the rename", saves, 0)
        replace(source, target)
        reach("after the rename", saves, 0)
        saves += 1

    track = Racetrack(world, lambda generation, round_: reach("round", generation, round_))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", rename)  # files that are renamed during a training are its checkpoints
        result = train_raced(folder, "batched", track, world)
    result.save(folder / "result.safetensors")


@pytest.mark.slow
def test_raced_processes_that_are_killed_end_with_the_same_bytes(tmp_path: Path) -> None:
    """One training whose processes die one after the other, each later on, beside one that nobody killed."""

    def ended(folder: Path, moment: tuple[str, int, int] | None) -> int:
        code = f"import pathlib, {__name__}; {__name__}.raced_process(pathlib.Path({str(folder)!r}), {moment!r})"
        paths = os.pathsep.join(map(str, Path(__file__).parents[:2]))
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([paths, os.environ.get("PYTHONPATH", "")])}
        return subprocess.run([sys.executable, "-c", code], env=environment, timeout=300).returncode

    raced_process(tmp_path / "whole", None)
    broken = tmp_path / "broken"
    kept: list[int] = []
    # Generations and checkpoints count from each process's start.
    for moment in (
        ("round", 0, 1),  # in the first race, before there is any checkpoint
        ("after the rename", 1, 0),  # at the boundary behind generation 1
        ("before the rename", 0, 0),  # generation 2 is done, its checkpoint written but nameless
        ("round", 1, 1),  # in the middle of generation 3's race
    ):
        assert ended(broken, moment) == -signal.SIGKILL
        latest = Checkpoints(broken / "checkpoints").latest()
        kept.append(0 if latest is None else latest[0])
    assert kept == [0, 2, 2, 3]
    assert ended(broken, None) == 0
    results = [folder / "result.safetensors" for folder in (tmp_path / "whole", broken)]
    assert results[0].read_bytes() == results[1].read_bytes()
