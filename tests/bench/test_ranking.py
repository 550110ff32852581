"""Rank correlations of low precisions with float32, on a tiny M."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from recordings import little_run

from wm_engine.bench import ranking
from wm_engine.bench.recorded import RecordedDream
from wm_engine.core import core
from wm_engine.files import file_fingerprint, read_json, save_tensors, write_json
from wm_engine.run.config import make_config, read_config
from wm_engine.run.folder import RunFolder

CORE, REASON = core()
needs_core = pytest.mark.skipif(CORE is None, reason=REASON or "built")
SIZES = {"candidates": 12, "episodes": 4, "steps": 8}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose returns differ enough to rank."""
    return little_run(tmp_path_factory.mktemp("run"))


def ranked(run: Path, *more: str) -> dict:
    """What a measurement of the run wrote."""
    out = run / "ranking.json"
    sizes = [word for name, value in SIZES.items() for word in (f"--{name}", str(value))]
    said = CliRunner().invoke(ranking.main, ["--run", str(run), *sizes, "--json", str(out), *more])
    assert said.exit_code == 0, said.output
    return json.loads(out.read_text())


def test_populations_lie_about_their_centre() -> None:
    centre, zero = torch.linspace(-1.0, 1.0, 50), torch.zeros(50)
    normal = ranking.population(zero, 1.0, 400, seed=3)
    assert torch.equal(normal, torch.randn(400, 50, generator=torch.Generator().manual_seed(3)))
    for width in (0.1, 0.4):
        assert torch.equal(ranking.population(centre, width, 400, seed=3), centre + width * normal)


@needs_core
def test_every_population_is_ranked_and_repeats(run: Path) -> None:
    result = ranked(run, "--width", "0.5", "--width", "1.5")
    assert result | SIZES == result
    assert [(row["centre"], row["width"]) for row in result["populations"]] == [
        ("controller", 0.5),
        ("controller", 1.5),
        ("zero", 0.5),
        ("zero", 1.5),
    ]
    for row in result["populations"]:
        assert row["spread"] > 0
        assert all(-1.0 <= row[name] <= 1.0 for name in ("bf16", "int8", "nudged", "redrawn"))
        # An ulp parts nothing in 8 steps, other draws do.
        assert row["nudged"] > row["redrawn"]
    assert ranked(run, "--width", "0.5", "--width", "1.5") == result
    assert ranked(run, "--width", "0.5", "--width", "1.5", "--seed", "1") != result


@needs_core
def test_a_precision_that_reverses_the_order_is_seen(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dreams = ranking.Dreams(RecordedDream.of_run(run, seed=0), 4, 8, seed=0, threads=1)
    params = ranking.population(torch.zeros(dreams.run.spec.num_params), 1.0, 12, seed=0)
    exact = dreams.means(params, "fp32")
    monkeypatch.setattr(
        ranking.Dreams,
        "means",
        lambda self, params, precision, **how: {"fp32": exact, "bf16": -exact, "int8": np.exp(exact)}[precision],
    )
    row = ranking.rank(dreams, params, "zero", 1.0)
    assert (row.bf16, row.int8, row.nudged) == pytest.approx((-1.0, 1.0, 1.0))


@needs_core
def test_a_failed_dream_ranks_worst(run: Path) -> None:
    dreams = ranking.Dreams(RecordedDream.of_run(run, seed=0), 4, 8, seed=0, threads=1)
    params = ranking.population(torch.zeros(dreams.run.spec.num_params), 1.0, 3, seed=0)
    params[1, :] = 3e38  # beyond float32 once summed
    means = dreams.means(params, "fp32")
    assert np.isfinite(means[[0, 2]]).all()
    assert means[1] == -np.inf


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    said = CliRunner().invoke(ranking.main, ["--run", str(tmp_path)])
    assert said.exit_code == 1
    assert f"{tmp_path}: no run folder" in said.output


def test_a_run_without_controllers_is_refused(run: Path, tmp_path: Path) -> None:
    """Another learner's policy cannot be ranked by its parameters."""
    root = tmp_path / "run"
    shutil.copytree(run, root)
    folder = RunFolder(root)
    tables = read_config(folder.config).tables() | {"controller": {"kind": "toys.learner"}}
    make_config(tables).write(folder.config)
    save_tensors(folder.controller, {"tables": torch.zeros(1, 3, 3)})
    published = read_json(folder.published)
    published["digests"]["controller.safetensors"] = file_fingerprint(folder.controller)
    write_json(folder.published, published)
    said = CliRunner().invoke(ranking.main, ["--run", str(root)])
    assert said.exit_code == 1
    assert "controller.kind must be evolution, but was 'toys.learner'" in said.output


def test_without_the_core_it_says_so(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking.CppBackend, "available", staticmethod(lambda: (False, "not built, because")))
    said = CliRunner().invoke(ranking.main, ["--run", str(run)])
    assert said.exit_code == 1
    assert "compared on the C++ core: not built, because" in said.output
