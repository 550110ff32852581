"""PycmaES: the ask/tell contract, resume to the bit, and silence."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from wm_engine.errors import RunMismatchError
from wm_engine.files import load_tensors, save_tensors
from wm_engine.learn.evolve.pycma import PycmaES


def evolve(optimizer: PycmaES, generations: int) -> PycmaES:
    """Climb towards 1, 2, 3, ...: greater is better."""
    target = torch.arange(1, optimizer.dimension + 1, dtype=torch.float64)
    for _ in range(generations):
        optimizer.tell(-((optimizer.ask() - target) ** 2).sum(dim=1))
    return optimizer


def test_it_climbs() -> None:
    optimizer = evolve(PycmaES(torch.zeros(5), 0.5, popsize=12, seed=1), 120)
    assert torch.allclose(optimizer.mean, torch.arange(1.0, 6.0, dtype=torch.float64), atol=1e-4)
    assert optimizer.generation == 120
    assert optimizer.sigma < 0.1


def test_shapes_and_types() -> None:
    optimizer = PycmaES([0.0, 1.0, 2.0], 0.5, popsize=6)
    assert (optimizer.dimension, optimizer.popsize) == (3, 6)
    assert optimizer.ask().shape == (6, 3)
    assert optimizer.ask().dtype == optimizer.mean.dtype == torch.float64


def test_asking_twice_gives_the_same_candidates() -> None:
    optimizer = PycmaES(torch.zeros(4), 0.5, popsize=6)
    assert torch.equal(optimizer.ask(), optimizer.ask())


@pytest.mark.parametrize("dimension", [4, 305])  # the package changes its step-size rule at 300 dimensions
@pytest.mark.parametrize("generations", [0, 7])
def test_a_restored_state_goes_on_to_the_bit(dimension: int, generations: int, tmp_path: Path) -> None:
    whole = evolve(PycmaES(torch.zeros(dimension), 0.5, popsize=8, seed=5), generations)
    tensors, values = whole.state()
    save_tensors(tmp_path / "state.safetensors", tensors)
    resumed = PycmaES.from_state(load_tensors(tmp_path / "state.safetensors")[0], values)
    assert torch.equal(resumed.ask(), whole.ask())
    for optimizer in (whole, resumed):
        evolve(optimizer, 5)
    assert torch.equal(resumed.mean, whole.mean)
    assert resumed.sigma == whole.sigma
    assert torch.equal(resumed.ask(), whole.ask())


def test_a_replay_that_ends_elsewhere_is_refused() -> None:
    """Rankings mean nothing to other candidates: another BLAS or ``cma`` would go on from a destroyed search."""
    tensors, values = evolve(PycmaES(torch.zeros(4), 0.5, popsize=8, seed=5), 7).state()
    moved = tensors | {"mean": tensors["mean"].clone()}
    moved["mean"][1] = moved["mean"][1].nextafter(torch.tensor(9.0, dtype=torch.float64))
    with pytest.raises(RunMismatchError, match=r"replayed here: after 7 generations.*its versions and threads"):
        PycmaES.from_state(moved, values)
    wider = tensors | {"stds": 2.0 * tensors["stds"]}
    older = values | {"made_with": values["made_with"] | {"cma": "3.9.0"}}
    with pytest.raises(RunMismatchError, match=r"cma was 3\.9\.0 and is now 4"):
        PycmaES.from_state(wider, older)


def test_a_replay_to_the_same_bits_by_another_version_is_taken_and_said(caplog: pytest.LogCaptureFixture) -> None:
    whole = evolve(PycmaES(torch.zeros(4), 0.5, popsize=8, seed=5), 7)
    tensors, values = whole.state()
    with caplog.at_level(logging.WARNING):
        resumed = PycmaES.from_state(tensors, values)
        assert caplog.text == ""
        PycmaES.from_state(tensors, values | {"made_with": values["made_with"] | {"numpy": "1.0"}})
    assert "numpy was 1.0 and is now" in caplog.text
    assert torch.equal(resumed.ask(), whole.ask())


def test_a_state_of_an_earlier_version_is_refused() -> None:
    tensors, values = evolve(PycmaES(torch.zeros(4), 0.5, popsize=8, seed=5), 2).state()
    with pytest.raises(RunMismatchError, match="pycma's state is of an earlier version"):
        PycmaES.from_state({name: tensors[name] for name in ("x0", "orders")}, values)


REPLAYED = """
import json, sys, torch
from wm_engine.learn.evolve.pycma import PycmaES
from wm_engine.machine import use_threads
from wm_engine.files import load_tensors, save_tensors
path, generations = sys.argv[1], int(sys.argv[2])
use_threads(int(sys.argv[3]))
weights = torch.linspace(1.0, 100.0, 305, dtype=torch.float64)
if generations:
    search = PycmaES(torch.zeros(305), 0.3, 16, 3)
    for _ in range(generations):
        search.tell(-(weights * (search.ask() - 1.0) ** 2).sum(dim=1))
    tensors, values = search.state()
    save_tensors(path, tensors, {"values": json.dumps(values)})
else:
    tensors, metadata = load_tensors(path)
    search = PycmaES.from_state(tensors, json.loads(metadata["values"]))
print(search.mean.sum().item().hex(), search.sigma.hex())
"""


@pytest.mark.slow
def test_in_another_process_the_replay_ends_the_same_or_is_refused(tmp_path: Path) -> None:
    """With as many threads to the bit, whatever the shell says; with more, where BLAS adds up otherwise, never."""

    def ended(generations: int, threads: int, shell: int = 1) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if not name.endswith("NUM_THREADS")}
        environment |= {"OPENBLAS_NUM_THREADS": str(shell), "MKL_NUM_THREADS": str(shell)}
        command = [sys.executable, "-c", REPLAYED, str(tmp_path / "state.safetensors"), str(generations), str(threads)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)

    made = ended(40, threads=1)
    assert made.returncode == 0, made.stderr
    assert ended(0, threads=1, shell=2).stdout == made.stdout
    again = ended(0, threads=2)
    if again.returncode:
        assert "RunMismatchError" in again.stderr
        assert "(BLAS threads was 1 and is now 2)" in again.stderr
    else:
        assert again.stdout == made.stdout


def test_what_it_gives_away_is_balanced_and_says_the_same() -> None:
    factor = torch.linspace(1.0, 2.0, 4, dtype=torch.float64).diag()
    plain, found = (PycmaES(torch.zeros(4), 1 / s, 8, factor=s * factor).distribution for s in (1.0, 2.0**60))
    assert plain.factor is not None
    assert found.factor is not None
    assert 2.0**-8 <= float(torch.linalg.vector_norm(found.factor, dim=1).max()) < 2.0**9
    assert torch.allclose(found.sigma * found.factor, plain.sigma * plain.factor, rtol=1e-12)


def test_other_seeds_draw_other_candidates() -> None:
    first, second, third = (PycmaES(torch.zeros(4), 0.5, 6, seed).ask() for seed in (0, 1, 0))
    assert not torch.equal(first, second)
    assert torch.equal(first, third)


def test_nonfinite_candidates_are_survived_and_counted() -> None:
    optimizer = PycmaES(torch.zeros(4), 0.5, popsize=8)
    for _ in range(40):
        candidates = optimizer.ask()
        returns = -((candidates - 1.0) ** 2).sum(dim=1)
        returns[candidates[:, 0] < 0] = torch.nan
        optimizer.tell(returns)
    assert optimizer.last_ranking is not None
    assert torch.allclose(optimizer.mean, torch.ones(4, dtype=torch.float64), atol=0.1)
    optimizer.ask()
    optimizer.tell(torch.full((8,), torch.nan))
    assert optimizer.last_ranking.nonfinite == 8
    assert torch.isfinite(optimizer.ask()).all()


def test_equal_returns_do_not_drive_the_distribution_away() -> None:
    optimizer = PycmaES(torch.zeros(4), 0.5, popsize=16, seed=2)
    for _ in range(100):
        optimizer.ask()
        optimizer.tell(torch.ones(16))
    assert 1e-3 < optimizer.sigma < 1e3
    assert torch.isfinite(optimizer.ask()).all()


def test_a_stretched_search_reports_the_mean_and_distribution_of_its_candidates() -> None:
    """Above a condition of 10^12 the package changes its own coordinates, and its mean is one of theirs."""
    rotation = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).Q
    scales = 10.0 ** torch.linspace(0, 14, 6, dtype=torch.float64)
    optimizer = PycmaES(torch.ones(6), 0.5, popsize=12, seed=1)
    for _ in range(500):
        optimizer.tell(-(scales * (optimizer.ask() @ rotation) ** 2).sum(dim=1))
    assert not optimizer._es.gp.isidentity, "the condition did not get that high"
    found = optimizer.distribution
    assert found.factor is not None
    assert torch.equal(found.mean, optimizer.mean)
    for candidates in (optimizer.ask(), PycmaES(found.mean, found.sigma, 12, 2, factor=found.factor).ask()):
        white = torch.linalg.solve_triangular(found.factor, (candidates - optimizer.mean).T / found.sigma, upper=False)
        assert 0.5 < float(white.square().mean()) < 2.0


@pytest.mark.parametrize("bound", [1e15, 1e-15])
def test_a_step_size_out_of_bounds_is_held_and_logged(bound: float, caplog: pytest.LogCaptureFixture) -> None:
    optimizer = PycmaES(torch.zeros(4), 0.5, popsize=12)
    optimizer._es.sigma = 0.5 * bound * (1e3 if bound > 1 else 1e-3)
    optimizer.ask()
    with caplog.at_level(logging.WARNING):
        optimizer.tell(torch.zeros(12))
    assert "is held within" in caplog.text
    spread = (optimizer.ask() - optimizer.mean).std(dim=0).max()
    assert 0.3 < float(spread) / (0.5 * bound) < 3


def test_an_endless_slope_does_not_end_in_a_point(caplog: pytest.LogCaptureFixture) -> None:
    """The package's own bounds hold the deviations for some 700 generations; then its step size overflows."""
    optimizer = PycmaES(torch.zeros(4), 0.5, popsize=12, seed=1)
    for _ in range(1200):
        optimizer.tell(optimizer.ask()[:, 0])
    assert 1e13 < float((optimizer.ask() - optimizer.mean).std(dim=0).max()) < 5e15
    assert caplog.text.count("is held within") > 500


def test_a_wrong_shape_and_a_tell_without_ask_are_errors() -> None:
    optimizer = PycmaES(torch.zeros(4), 0.5, popsize=6)
    with pytest.raises(RuntimeError, match="ask"):
        optimizer.tell(torch.zeros(6))
    optimizer.ask()
    with pytest.raises(ValueError, match=r"shape \[6\]"):
        optimizer.tell(torch.zeros(7))
    optimizer.tell(torch.zeros(6))
    assert optimizer.generation == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x0": torch.zeros(2, 2)}, "x0 must have shape"),
        ({"x0": [0.0, np.nan]}, "x0 must be finite"),
        ({"sigma": 0.0}, "sigma must be greater than 0"),
        ({"sigma": float("nan")}, "sigma must be finite"),
        ({"popsize": 3}, "popsize must be at least 4"),
        ({"seed": -1}, "seed must be at least 0"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PycmaES(**({"x0": torch.zeros(4), "sigma": 0.5, "popsize": 6} | arguments))  # type: ignore[arg-type]


def test_it_prints_nothing_writes_nothing_and_leaves_global_randomness_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    np.random.seed(1)  # noqa: NPY002
    expected = np.random.rand(4)  # noqa: NPY002
    np.random.seed(1)  # noqa: NPY002
    evolve(PycmaES(torch.zeros(305), 0.5, popsize=8), 6)
    assert np.array_equal(np.random.rand(4), expected)  # noqa: NPY002
    assert os.listdir(tmp_path) == []
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")
