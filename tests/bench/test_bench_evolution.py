"""The bench of the optimisers: its counts, and the dream task that they are compared in."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from recordings import little_run

from wm_engine.bench import dream_task, evolution
from wm_engine.bench.dream_task import DreamTask, drawn_world
from wm_engine.bench.evolution import Hits, dream_hits
from wm_engine.bench.evosax_peer import EvosaxCMAES
from wm_engine.learn.evolve import BatchedCMAES
from wm_engine.machine import describe_blas
from wm_engine.run.config import read_config
from wm_engine.run.folder import RunFolder

pytestmark = pytest.mark.usefixtures("threads_kept")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose dream can be climbed."""
    return little_run(tmp_path_factory.mktemp("run"))


def test_expected_counts_what_failed_searches_spent_too() -> None:
    assert Hits([(10, True), (30, False), (20, True)]).expected == 30.0
    assert Hits([(10, True), (30, False), (20, True)]).reached == 2
    assert Hits([(10, False)]).expected == math.inf


def test_the_dream_task_is_the_same_each_time_and_can_be_climbed() -> None:
    def values() -> list[tuple[int, int, float]]:
        task = DreamTask(replace(drawn_world(), most_steps=60_000), episodes=4)
        optimizer = BatchedCMAES(torch.zeros(task.world.dimension), 0.1, 64, 3)
        return [(point.evaluations, point.steps, point.value) for point in task.search(optimizer, 3)]

    first = values()
    assert first == values()
    assert [count for count, _, _ in first] == [64 * (number + 1) for number in range(len(first))]
    assert first[-2][1] < 60_000 <= first[-1][1]
    assert first[-1][2] > first[0][2] + 1.0


def test_hits_are_of_the_first_point_at_the_target() -> None:
    class Steady(DreamTask):
        def search(self, optimizer, seed):
            for generation, value in enumerate([18.0, 19.1, 18.0, 19.8]):
                yield evolution.Point(64 * (generation + 1), 0, value)

    low, middle, high = dream_hits("batched", 2, lambda point: point.evaluations, Steady(drawn_world()))
    assert low.searches == [(128, True)] * 2
    assert middle.searches == [(256, True)] * 2
    assert high.searches == [(256, False)] * 2


def test_a_runs_dream_is_searched_by_the_runs_rules(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dream_task, "_PILOT_GENERATIONS", 5)
    settings = read_config(RunFolder(run).config).controller
    world = dream_task.recorded_world(run)
    assert world.rules == {
        "max_steps": settings.dream_steps,
        "temperature": settings.temperature,
        "reward": "predicted",  # which is what the task says
        "done": settings.done,
    }
    assert (world.dimension, world.sigma, len(world.starts)) == (3 * (2 + 7 + 1), settings.sigma, settings.starts)
    assert world.most_steps == 2 * 5 * 64 * 16 * settings.dream_steps
    task = DreamTask(world)
    begin = task.value(torch.zeros(world.dimension))
    ways = [(target - begin) / share for target, share in zip(world.targets, (0.5, 0.75, 0.9), strict=True)]
    assert ways == pytest.approx([ways[0]] * 3)
    assert ways[0] > 0
    # Its way is a search's: another one gets at least half as far, and is given up when its steps are spent.
    other = list(task.search(BatchedCMAES(torch.zeros(world.dimension), world.sigma, 64, 1), 1))
    assert max(point.value for point in other) >= world.targets[0]
    assert other[-2].steps < world.most_steps <= other[-1].steps
    assert dream_task.recorded_world(run, features="z").dimension == 3 * (2 + 1)


def test_a_run_is_named_in_the_tables_and_a_folder_that_is_none_in_the_error(
    run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(dream_task, "_PILOT_GENERATIONS", 3)
    words = ["--seeds", "1", "--part", "dream", "--part", "racing"]
    said = CliRunner().invoke(evolution.main, [*words, "--run", str(run), "--features", "z"])
    assert said.exit_code == 0, said.output
    assert f"in the dream of round 0 of {run.name}, D=9, P=64" in said.output
    assert "16, racing from 2" in said.output
    said = CliRunner().invoke(evolution.main, [*words, "--run", str(tmp_path)])
    assert said.exit_code == 1
    assert f"{tmp_path}: no run folder" in said.output


def test_a_dream_in_which_nothing_can_be_learnt_is_no_task(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dream_task, "_PILOT_GENERATIONS", 2)
    monkeypatch.setattr(DreamTask, "value", lambda self, mean: 5.0)
    said = CliRunner().invoke(evolution.main, ["--part", "dream", "--run", str(run)])
    assert said.exit_code == 1
    assert "must find better than its first mean's return, 5, but did not" in said.output


def test_a_third_rival_has_its_columns(monkeypatch, capsys) -> None:
    monkeypatch.setattr(evolution, "rivals", lambda: evolution.OPTIMIZERS | {"evosax": BatchedCMAES})
    monkeypatch.setattr(evolution, "_DIMENSION", 6)
    monkeypatch.setattr(evolution, "dream_seconds", lambda popsize: 1.0)
    row = evolution.show_quality([evolution.Problem(evolution.sphere, 6, 9, 1.0, 0.5, 1e-2, 4000)], 2)[0]
    assert row.expected["evosax"] == row.expected["batched"]
    head, line = capsys.readouterr().out.splitlines()[-2:]
    assert head.split() == ["problem", "pycma", "batched", "evosax", "ratio", "reached"]
    assert line.endswith("2/2/2 of 2")
    evolution.show_speed([8])
    head, line = capsys.readouterr().out.splitlines()[-2:]
    assert head.endswith("evosax ms   evosax CPU ms")
    assert len(line.split()) == 1 + 7 + 2 + 2


def test_evosax_climbs_and_follows_its_seed() -> None:
    pytest.importorskip("evosax")
    problem = evolution.Problem(evolution.sphere, 6, 9, 1.0, 0.5, 1e-2, 4000)
    first = problem.evaluations(EvosaxCMAES, 1)
    assert first[1]
    assert first == problem.evaluations(EvosaxCMAES, 1)
    assert not torch.equal(EvosaxCMAES(torch.zeros(6), 0.5, 9, 0).ask(), EvosaxCMAES(torch.zeros(6), 0.5, 9, 1).ask())


def test_a_diagonal_problem_has_diagonal_rivals(capsys) -> None:
    problem = evolution.Problem(evolution.ellipsoid, 8, 9, 1.0, 0.5, 1e-2, 8000, power=4, diagonal=True)
    assert problem.name == "diagonal: ellipsoid 1e4, D=8, P=9"
    row = evolution.show_quality([problem], 2)[0]
    assert row.reached == {"pycma": 2, "batched": 2}
    assert "diagonal: ellipsoid 1e4" in capsys.readouterr().out


def test_what_a_covariance_is_worth_is_seen(capsys) -> None:
    needy = evolution.Problem(evolution.ellipsoid, 8, 12, 1.0, 0.5, 1e-2, 4000)
    other = evolution.Problem(evolution.sphere, 8, 12, 1.0, 0.5, 1e-2, 4000)
    evolution.show_covariance([needy, other])
    first, second = (line.split() for line in capsys.readouterr().out.splitlines()[-2:])
    assert first[-2:] == [">", "4,000"]
    assert ">" not in second


def test_the_shells_settings_of_blas_do_not_reach_what_runs_alone(monkeypatch) -> None:
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    before = dict(os.environ)
    assert evolution.alone(2, os.getenv, "OPENBLAS_CORETYPE") is None
    assert evolution.alone(2, os.getenv, "OMP_NUM_THREADS") != "7"
    assert evolution.alone(2, torch.get_num_threads) == 2
    assert evolution.alone(2, describe_blas)[1] == 2
    assert os.environ == before


def test_parts_are_printed_as_they_are_measured(monkeypatch) -> None:
    said: list[str] = []
    for name in ("dream", "racing", "memory", "speed"):
        monkeypatch.setattr(
            evolution, f"show_{name}", lambda argument, *more, name=name: said.append(f"{name} {argument}")
        )
    result = CliRunner().invoke(evolution.main, ["--part", "racing", "--part", "memory", "--quick"])
    assert result.exit_code == 0, result.output
    assert said == ["racing 3", "memory [64, 256]"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--features", "z"], "--features is of a run: name it with --run"),
        (["--threads", "1,0"], "--threads: must be at least 1, but were 1,0"),
    ],
)
def test_words_that_say_nothing_are_refused(words: list[str], message: str) -> None:
    said = CliRunner().invoke(evolution.main, ["--part", "memory", *words])
    assert said.exit_code == 2
    assert message in " ".join(said.output.split())


def test_where_the_batched_one_becomes_the_faster_is_seen(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    taken = {"pycma": 2.0, "batched": 0.5}

    def timed(dimension, popsize, kinds):
        return {name: (taken[name] * (dimension if name == "pycma" else popsize), 0.0) for name in kinds}

    monkeypatch.setattr(evolution, "generation_times", timed)
    monkeypatch.setattr(evolution, "_SMALLER", (4, 8))
    evolution.show_crossover([4, 64])
    table = [line.split() for line in capsys.readouterr().out.splitlines()[-3:]]
    assert table == [["P", "D", "=", "4", "D", "=", "8"], ["4", "4.00", "8.00"], ["64", "0.25", "0.50"]]


def test_speed_counts_whole_cycles_of_what_is_put_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """With 4 candidates the factor is refreshed each 40th generation, which costs as much as twenty others."""
    refreshed = []

    class Watched(BatchedCMAES):
        def tell(self, returns) -> None:
            before = self._shape.factor()
            super().tell(returns)
            refreshed.append(self._shape.factor() is not before)

    assert list(evolution.generation_times(867, 4, {"batched": Watched})) == ["batched"]
    warm, measured = refreshed[:40], refreshed[40:]
    assert sum(warm) == 1
    assert len(measured) == 40 * sum(measured) >= 120
