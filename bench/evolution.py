"""CMA-ES beside CMA-ES: quality and speed of BatchedCMAES and pycma. ``python -m bench.evolution``.

Quality is the expected number of evaluations to a target (all evaluations of all runs over the number of runs that
reached it) on the field's standard functions, and the return reached in a dream. Speed is one generation's ask and tell
in both optimisers by turns, in wall time and in CPU time; CPU time tells them apart on a busy machine too.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

import wm_engine as wm
from wm_engine.evolve import BatchedCMAES, DreamFitness, Optimizer, PycmaES
from wm_engine.runs import atomic_write

from .tables import aligned

OPTIMIZERS: dict[str, type[PycmaES] | type[BatchedCMAES]] = {"pycma": PycmaES, "batched": BatchedCMAES}
_DIMENSION = 867  # of the paper's controller


def sphere(x: Tensor) -> Tensor:
    """The squared distance [P] of x [P, D] from 0."""
    return (x**2).sum(dim=1)


def ellipsoid(x: Tensor) -> Tensor:
    """The sphere with axes stretched up to a condition of 10^6."""
    scales = 10.0 ** (6 * torch.arange(x.shape[1], dtype=x.dtype) / (x.shape[1] - 1))
    return (scales * x**2).sum(dim=1)


def rotated_ellipsoid(x: Tensor) -> Tensor:
    """The ellipsoid in coordinates turned at random, the same way each time."""
    size = x.shape[1]
    noise = torch.randn(size, size, dtype=x.dtype, generator=torch.Generator().manual_seed(size))
    return ellipsoid(x @ torch.linalg.qr(noise).Q)


def rosenbrock(x: Tensor) -> Tensor:
    """A bent valley with its end at 1."""
    return (100 * (x[:, 1:] - x[:, :-1] ** 2) ** 2 + (1 - x[:, :-1]) ** 2).sum(dim=1)


def rastrigin(x: Tensor) -> Tensor:
    """A bowl full of holes, 10^D of them, the deepest at 0."""
    return (x**2 - 10 * torch.cos(2 * math.pi * x) + 10).sum(dim=1)


@dataclass(frozen=True)
class Problem:
    """A cost to fall below ``target`` from ``start`` in every coordinate, in at most ``limit`` evaluations."""

    cost: Callable[[Tensor], Tensor]
    dimension: int
    popsize: int
    start: float
    sigma: float
    target: float
    limit: int

    @property
    def name(self) -> str:
        """For tables."""
        return f"{self.cost.__name__.replace('_', ' ')}, D={self.dimension}, P={self.popsize}"

    def evaluations(self, kind: type[PycmaES] | type[BatchedCMAES], seed: int) -> tuple[int, bool]:
        """How many evaluations a run took, and whether it reached the target."""
        optimizer: Optimizer = kind(torch.full((self.dimension,), self.start), self.sigma, self.popsize, seed)
        for count in range(self.popsize, self.limit + 1, self.popsize):
            costs = self.cost(optimizer.ask())
            if float(costs.min()) < self.target:
                return count, True
            optimizer.tell(-costs)
        return self.limit, False


PROBLEMS = (
    Problem(sphere, 10, 10, 1.0, 0.5, 1e-8, 20_000),
    Problem(ellipsoid, 10, 10, 1.0, 0.5, 1e-8, 40_000),
    Problem(rotated_ellipsoid, 10, 10, 1.0, 0.5, 1e-8, 40_000),
    Problem(rosenbrock, 10, 10, 0.0, 0.2, 1e-8, 40_000),
    Problem(rastrigin, 10, 300, 3.0, 2.0, 1e-8, 60_000),
    Problem(ellipsoid, 10, 256, 1.0, 0.5, 1e-8, 80_000),
    Problem(sphere, 100, 17, 1.0, 0.5, 1e-6, 60_000),
    Problem(rosenbrock, 100, 64, 0.0, 0.1, 90.0, 200_000),
    Problem(rastrigin, 100, 256, 3.0, 2.0, 800.0, 200_000),
    Problem(ellipsoid, 100, 64, 1.0, 0.5, 1.0, 300_000),
    Problem(sphere, _DIMENSION, 64, 1.0, 0.5, 0.01 * _DIMENSION, 40_000),
    Problem(ellipsoid, _DIMENSION, 64, 1.0, 0.5, 5e5, 60_000),
    Problem(rosenbrock, _DIMENSION, 64, 0.0, 0.1, 860.0, 40_000),
    Problem(rastrigin, _DIMENSION, 64, 3.0, 2.0, 9.0 * _DIMENSION, 60_000),
)


@dataclass(frozen=True)
class Quality:
    """Expected evaluations to the target, and how many runs of ``seeds`` reached it, by optimiser."""

    problem: Problem
    expected: dict[str, float]
    reached: dict[str, int]
    seeds: int

    @property
    def ratio(self) -> float:
        """Evaluations of the batched optimiser over those of pycma."""
        return self.expected["batched"] / self.expected["pycma"]


def quality(problem: Problem, seeds: int) -> Quality:
    """Run both optimisers on a problem with seeds 0, 1, ..."""
    expected, reached = {}, {}
    for name, kind in OPTIMIZERS.items():
        runs = [problem.evaluations(kind, seed) for seed in range(seeds)]
        reached[name] = sum(ok for _, ok in runs)
        expected[name] = sum(count for count, _ in runs) / reached[name] if reached[name] else math.inf
    return Quality(problem, expected, reached, seeds)


def dream_returns(seeds: int, generations: int = 25) -> dict[str, list[float]]:
    """Returns of controllers evolved in an untrained M's dream, by optimiser and seed: the final mean on fresh luck."""
    torch.manual_seed(0)
    m = wm.MDNRNN(latent=32, action=3, hidden=256, mixtures=5, mixture="shared")
    fitness = DreamFitness(
        wm.DreamEngine(m, wm.ControllerSpec()), wm.Starts(torch.randn(32, 32)), episodes=4, max_steps=50
    )
    results: dict[str, list[float]] = {name: [] for name in OPTIMIZERS}
    for seed in range(seeds):
        for name, kind in OPTIMIZERS.items():
            optimizer: Optimizer = kind(torch.zeros(_DIMENSION), 0.1, 64, seed)
            for generation in range(generations):
                optimizer.tell(fitness(optimizer.ask().float(), generation).mean(dim=1))
            results[name].append(float(fitness.fresh(optimizer.mean.float()[None], 64, "bench").mean()))
    return results


def generation_times(popsize: int, generations: int = 9) -> dict[str, tuple[float, float]]:
    """Mean wall and CPU seconds of ask and tell at D = 867, by optimiser, the two in turns; the first is left out.

    The mean, since both put off part of their work to every n-th generation of a small population.
    """
    optimizers: dict[str, Optimizer] = {
        n: kind(torch.zeros(_DIMENSION), 0.1, popsize) for n, kind in OPTIMIZERS.items()
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in optimizers}
    for _ in range(generations + 1):
        for name, optimizer in optimizers.items():
            wall, cpu = time.perf_counter(), time.process_time()
            candidates = optimizer.ask()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            returns = -sphere(candidates)
            wall, cpu = wall - time.perf_counter(), cpu - time.process_time()
            optimizer.tell(returns)
            times[name].append((wall + time.perf_counter(), cpu + time.process_time()))
    return {
        name: (float(wall), float(cpu)) for name, (wall, cpu) in ((n, np.mean(t[1:], axis=0)) for n, t in times.items())
    }


def quality_plot(rows: list[Quality]) -> Figure:
    """The ratio of evaluations, a bar a problem; 1.1 is the bound."""
    figure = Figure(figsize=(8, 0.35 * len(rows) + 1.2), layout="constrained")
    axes = figure.subplots()
    axes.barh([row.problem.name for row in rows], [row.ratio for row in rows], color="#4a7ebb")
    axes.axvline(1.0, color="0.4", linewidth=1)
    axes.axvline(1.1, color="#c0504d", linewidth=1, linestyle="--")
    axes.invert_yaxis()
    axes.set_xlabel("evaluations to the target, BatchedCMAES over pycma (dashed: the bound)")
    return figure


@click.command()
@click.option("--seeds", default=15, show_default=True, help="Runs of each optimiser on each problem.")
@click.option("--dimensions", default="10,100,867", show_default=True, help="Which of the problems.")
@click.option("--out", type=click.Path(path_type=Path), default=None, help="Where to write the plot, a PNG.")
def main(seeds: int, dimensions: str, out: Path | None) -> None:
    """Quality and speed of BatchedCMAES beside pycma, as tables."""
    chosen = {int(word) for word in dimensions.split(",")}
    rows = [["problem", "pycma", "batched", "ratio", "reached"]]
    measured = []
    for problem in PROBLEMS:
        if problem.dimension in chosen:
            row = quality(problem, seeds)
            measured.append(row)
            counts = [f"{row.expected[name]:,.0f}" for name in OPTIMIZERS]
            reached = "/".join(str(row.reached[name]) for name in OPTIMIZERS) + f" of {seeds}"
            rows.append([problem.name, *counts, f"{row.ratio:.2f}", reached])
    click.echo("\n".join(["Expected evaluations to the target:", *aligned(rows), ""]))

    if _DIMENSION in chosen:
        returns = dream_returns(seeds)
        summary = [
            f"{name} {np.mean(values):.2f} ± {np.std(values, ddof=1) / math.sqrt(seeds):.2f}"
            for name, values in returns.items()
        ]
        click.echo(
            f"Return in a random M's dream after 25 generations of 64 (± standard error): {', '.join(summary)}\n"
        )

    rows = [["P", "pycma ms", "batched ms", "ratio", "pycma CPU ms", "batched CPU ms", "ratio"]]
    for popsize in (64, 128, 256, 1024, 4096):
        (wall, cpu), (our_wall, our_cpu) = generation_times(popsize).values()
        walls = [f"{1e3 * wall:.1f}", f"{1e3 * our_wall:.1f}", f"{wall / our_wall:.1f}"]
        rows.append([str(popsize), *walls, f"{1e3 * cpu:.1f}", f"{1e3 * our_cpu:.1f}", f"{cpu / our_cpu:.1f}"])
    threads = torch.get_num_threads()
    click.echo("\n".join([f"Ask and tell at D = {_DIMENSION}, {threads} thread(s):", *aligned(rows)]))
    if out is not None:
        with atomic_write(out) as file:
            quality_plot(measured).savefig(file, format="png", dpi=120)
        click.echo(f"plot: {out}")


if __name__ == "__main__":
    main()
