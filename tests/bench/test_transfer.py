"""The study of transfer: rows of equal budgets, resumable, and a table of nothing but the runs' own records."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from click.testing import CliRunner

from wm_engine.bench import transfer
from wm_engine.bench.transfer import ROWS, Study, Variant, interval
from wm_engine.recorder import Recorder

LADDER = str(Path(__file__).parents[1] / "toys" / "ladder.toml")
ROUGH = ["memory.first_steps=4", "memory.steps=2", "controller.dream_generations=1", "rounds=2", "judge.every=1"]


def study(tmp_path: Path, *rows: str, preset: str = "quick", seeds: tuple[int, ...] = (0,)) -> Study:
    return Study(tmp_path, preset, (), rows, seeds)


@pytest.mark.parametrize("row", ROWS)
def test_every_row_has_variants_that_carracing_takes(tmp_path, row):
    of = study(tmp_path, row)
    variants = of.variants(row)
    assert len({variant.label for variant in variants}) == len(variants) > 1
    for variant in variants:
        of.config(variant, 0)


def test_rounds_are_compared_at_equal_frames_and_steps(tmp_path):
    of = study(tmp_path, "rounds")
    budgets = []
    for variant in of.variants("rounds"):
        c = of.config(variant, 0)
        frames = c.drive.first_episodes * c.drive.first_frames + (c.rounds - 1) * c.drive.episodes * 500
        steps = [sum(part.steps_in(index) for index in range(c.rounds)) for part in (c.vision, c.memory)]
        budgets.append((frames, *steps, c.rounds * c.controller.dream_generations))
    # Each to whole numbers of episodes, steps and generations.
    for budget in zip(*budgets, strict=True):
        assert max(budget) <= 1.1 * min(budget)


def test_dreams_of_all_lengths_have_the_same_steps(tmp_path):
    of = study(tmp_path, "horizon")
    *fixed, growing = (of.config(variant, 0).controller for variant in of.variants("horizon"))
    steps = [s.dream_steps * s.dream_episodes for s in fixed]
    assert max(steps) <= 1.1 * min(steps)
    assert (growing.steps_in(0), growing.steps_in(29)) == (20, 160)


def test_a_row_that_does_not_fit_says_why(tmp_path):
    refused = CliRunner().invoke(
        transfer.main,
        ["--out", str(tmp_path), "--preset", LADDER, "--only", "rewards", "--seeds", "1", "--budget", "0"],
    )
    assert refused.exit_code == 0
    unknown = CliRunner().invoke(transfer.main, ["--out", str(tmp_path), "--only", "row"])
    assert unknown.exit_code == 2
    assert "there is no such row; there are rounds, repeat" in unknown.output


def test_seeds_are_put_together_by_students_t_and_one_by_its_episodes():
    assert interval([], []).text() == "–"
    assert interval([10.0], [2.0]).text() == "10 ± 3.9"
    found = interval([1.0, 2.0, 3.0], [9.0, 9.0, 9.0])
    assert found.mean == 2.0
    assert math.isclose(found.half, 4.30 / math.sqrt(3.0))


def test_a_part_is_trained_cut_and_gone_on_with(tmp_path):
    asked = ["--out", str(tmp_path), "--preset", LADDER, "--only", "search", "--seeds", "1"]
    asked += [part for change in ROUGH for part in ("--set", change)]
    cut = CliRunner().invoke(transfer.main, [*asked, "--budget", "0.001"])
    assert "The budget is spent" in cut.output
    whole = CliRunner().invoke(transfer.main, asked)
    assert whole.exit_code == 0, whole.output
    assert "1 of 1" in whole.output
    assert "begun anew each round" in whole.output
    found = json.loads((tmp_path / "table.json").read_text())["search"]
    # Every number is the record's.
    for one, folder in zip(found, sorted((tmp_path / "runs").iterdir()), strict=True):
        rows = [json.loads(line) for line in (folder / "metrics" / "metrics.jsonl").read_text().splitlines()]
        judged = [row for row in rows if row["stage"] == "judge"]
        final = [row for row in rows if row["stage"] == "final"]
        assert one["last"]["mean"] == judged[-1]["mean"]
        assert one["final"]["mean"] == final[-1]["controller"]
        assert [point[0] for point in one["curve"]] == [row["learning_frames"] for row in judged]
    assert (tmp_path / "transfer.png").exists()


def test_a_table_of_nothing_is_a_table(tmp_path):
    of = study(tmp_path, "search")
    one = transfer.outcome(of, Variant("as it is"), {})
    assert one.cells() == ["as it is", "0 of 0", "–", "–", "–", "–", "–", "–", "–"]
    with Recorder(of.root(Variant("as it is"), 0) / "metrics") as recorder:
        recorder.log("judge", 3, 3, mean=12.0, std=2.0, standard_error=1.0, episodes=4, learning_frames=900)
        recorder.log("forecast", 3, 3, promised=6.0, paid=3.0)
        recorder.log("round", 3, 3, minutes=2.0, learning_frames=900)
    assert transfer.outcome(of, Variant("as it is"), {}).cells() == [
        "as it is", "0 of 1", "900", "2.0", "12 ± 2", "12 ± 2", "–", "–", "2.00",
    ]  # fmt: skip
