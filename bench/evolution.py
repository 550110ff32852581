"""CMA-ES beside CMA-ES: BatchedCMAES, pycma, and evosax's where it is installed. ``python -m bench.evolution``.

Quality is the expected number of evaluations to a target (all evaluations of all runs over the number of runs that
reached it) on the field's standard functions and in a dream. Racing is the same count in dream steps, with all
candidates dreaming all episodes and with those whose place is clear stopping early. Speed is one generation's ask and
tell in the optimisers by turns, in wall time and in CPU time (which tells them apart on a busy machine too), and
beside the dream's own time, in a process that the shell's settings of BLAS libraries do not reach; memory is what a
process grows by. Each line is printed as soon as it is measured.
"""

from __future__ import annotations

import functools
import math
import multiprocessing
import os
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, TypeAlias, TypeVar

import click
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

import wm_engine as wm
from wm_engine.errors import WMEngineError
from wm_engine.files import atomic_write
from wm_engine.learn.evolve import BatchedCMAES, PycmaES
from wm_engine.learn.evolve.cmaes import Parameters
from wm_engine.machine import describe_blas, one_torch_thread, use_threads
from wm_engine.policies.controller import FEATURES

from .dream_task import EPISODES, POPULATION, DreamTask, Point, World, drawn_world, recorded_world
from .evosax_peer import EvosaxCMAES, installed
from .provenance import provenance
from .workload import Workload, prepare

OPTIMIZERS: dict[str, type[PycmaES] | type[BatchedCMAES]] = {"pycma": PycmaES, "batched": BatchedCMAES}
Kind: TypeAlias = "type[PycmaES] | type[BatchedCMAES] | type[EvosaxCMAES]"
T = TypeVar("T")
_DIMENSION = 867  # of the paper's controller
_SMALLER = (3, 10, 51, 100, 300)  # down from there


class DiagonalPycma(PycmaES):
    """The package's own CMA-ES with a diagonal covariance matrix: the reference of the separable variant."""

    _MORE_OPTIONS: ClassVar[dict[str, Any]] = {"CMA_diagonal": True}


class DiagonalBatched(BatchedCMAES):
    """BatchedCMAES' separable variant."""

    def __init__(self, x0: Tensor, sigma: float, popsize: int, seed: int = 0) -> None:
        super().__init__(x0, sigma, popsize, seed, variant="separable")


class RoundBatched(BatchedCMAES):
    """BatchedCMAES that learns no covariance: what it does as well, a problem says nothing of."""

    def __init__(self, x0: Tensor, sigma: float, popsize: int, seed: int = 0) -> None:
        super().__init__(x0, sigma, popsize, seed, variant="full")
        self._parameters = replace(self._parameters, c1=0.0, cmu=0.0)


def rivals(diagonal: bool = False) -> dict[str, Kind]:
    """What quality and speed are measured of, by name: evosax's too where it is installed, but with a full matrix."""
    if diagonal:
        return {"pycma": DiagonalPycma, "batched": DiagonalBatched}
    return OPTIMIZERS | ({"evosax": EvosaxCMAES} if installed() else {})


def sphere(x: Tensor) -> Tensor:
    """The squared distance [P] of x [P, D] from 0."""
    return (x**2).sum(dim=1)


def ellipsoid(x: Tensor, power: int = 6) -> Tensor:
    """The sphere with axes stretched up to a condition of 10^power."""
    scales = 10.0 ** (power * torch.arange(x.shape[1], dtype=x.dtype) / (x.shape[1] - 1))
    return (scales * x**2).sum(dim=1)


def rotated_ellipsoid(x: Tensor, power: int = 6) -> Tensor:
    """The ellipsoid in coordinates turned at random, the same way each time."""
    size = x.shape[1]
    noise = torch.randn(size, size, dtype=x.dtype, generator=torch.Generator().manual_seed(size))
    return ellipsoid(x @ torch.linalg.qr(noise).Q, power)


def rosenbrock(x: Tensor) -> Tensor:
    """A bent valley with its end at 1."""
    return (100 * (x[:, 1:] - x[:, :-1] ** 2) ** 2 + (1 - x[:, :-1]) ** 2).sum(dim=1)


def rastrigin(x: Tensor) -> Tensor:
    """A bowl full of holes, 10^D of them, the deepest at 0."""
    return (x**2 - 10 * torch.cos(2 * math.pi * x) + 10).sum(dim=1)


@dataclass(frozen=True)
class Problem:
    """A cost to fall below ``target`` from ``start`` in every coordinate, in at most ``limit`` evaluations.

    power : of ten, an ellipsoid's condition; diagonal : whether the optimisers learn a diagonal only
    """

    cost: Callable[[Tensor], Tensor]
    dimension: int
    popsize: int
    start: float
    sigma: float
    target: float
    limit: int
    power: int = 6
    diagonal: bool = False

    @property
    def name(self) -> str:
        """For tables."""
        words = ("diagonal: " if self.diagonal else "") + self.cost.__name__.replace("_", " ")
        words += "" if self.power == 6 else f" 1e{self.power}"
        return f"{words}, D={self.dimension}, P={self.popsize}"

    def evaluations(self, kind: Kind, seed: int) -> tuple[int, bool]:
        """How many evaluations a run took, and whether it reached the target."""
        optimizer = kind(torch.full((self.dimension,), self.start), self.sigma, self.popsize, seed)
        cost = self.cost if self.power == 6 else functools.partial(self.cost, power=self.power)
        for count in range(self.popsize, self.limit + 1, self.popsize):
            costs = cost(optimizer.ask())
            if float(costs.min()) < self.target:
                return count, True
            optimizer.tell(-costs)
        return self.limit, False


PROBLEMS = (
    # The smallest populations: one of the candidates is mirrored.
    Problem(sphere, 10, 4, 1.0, 0.5, 1e-8, 20_000),
    Problem(ellipsoid, 10, 4, 1.0, 0.5, 1e-8, 40_000),
    Problem(sphere, 10, 5, 1.0, 0.5, 1e-8, 20_000),
    Problem(sphere, 10, 10, 1.0, 0.5, 1e-8, 20_000),
    Problem(ellipsoid, 10, 10, 1.0, 0.5, 1e-8, 40_000),
    Problem(rotated_ellipsoid, 10, 10, 1.0, 0.5, 1e-8, 40_000),
    Problem(rosenbrock, 10, 10, 0.0, 0.2, 1e-8, 40_000),
    Problem(rastrigin, 10, 300, 3.0, 2.0, 1e-8, 60_000),
    Problem(rastrigin, 10, 1000, 3.0, 2.0, 1e-8, 200_000),  # large enough to miss most of the holes
    Problem(ellipsoid, 10, 256, 1.0, 0.5, 1e-8, 80_000),
    Problem(ellipsoid, 10, 10, 1.0, 0.5, 1e-8, 40_000, power=14),
    Problem(rotated_ellipsoid, 10, 10, 1.0, 0.5, 1e-8, 40_000, power=14),
    Problem(ellipsoid, 10, 10, 1.0, 0.5, 1e-8, 40_000, power=16),
    Problem(rotated_ellipsoid, 10, 10, 1.0, 0.5, 1e-8, 40_000, power=16),
    Problem(sphere, 10, 10, 1.0, 0.5, 1e-8, 20_000, diagonal=True),
    Problem(ellipsoid, 10, 10, 1.0, 0.5, 1e-8, 40_000, diagonal=True),
    Problem(ellipsoid, 10, 100, 1.0, 0.5, 1e-8, 80_000, diagonal=True),
    Problem(sphere, 100, 17, 1.0, 0.5, 1e-6, 60_000),
    Problem(rosenbrock, 100, 20, 0.0, 0.1, 60.0, 300_000),
    Problem(rastrigin, 100, 256, 3.0, 2.0, 300.0, 500_000),
    Problem(ellipsoid, 100, 64, 1.0, 0.5, 1.0, 300_000),
    Problem(ellipsoid, 100, 17, 1.0, 0.5, 1e-6, 100_000, diagonal=True),
    Problem(ellipsoid, 100, 256, 1.0, 0.5, 1e-6, 300_000, diagonal=True),
    # Where the step size follows test steps, and a search without a covariance takes eight times the evaluations.
    Problem(ellipsoid, 300, 128, 1.0, 0.5, 1000.0, 800_000),
    Problem(sphere, _DIMENSION, 64, 1.0, 0.5, 0.01 * _DIMENSION, 40_000),
    Problem(ellipsoid, _DIMENSION, 64, 1.0, 0.5, 5e5, 60_000),
    Problem(rosenbrock, _DIMENSION, 64, 0.0, 0.1, 860.0, 40_000),
    Problem(rastrigin, _DIMENSION, 64, 3.0, 2.0, 8.0 * _DIMENSION, 60_000),
    # Four times as large a population.
    Problem(sphere, _DIMENSION, 256, 1.0, 0.5, 0.01 * _DIMENSION, 100_000),
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
    """Run the optimisers on a problem with seeds 0, 1, ..."""
    expected, reached = {}, {}
    for name, kind in (rivals(diagonal=True) if problem.diagonal else rivals()).items():
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "elements of z2")  # the diagonal package's, of long steps
            runs = [problem.evaluations(kind, seed) for seed in range(seeds)]
        reached[name] = sum(ok for _, ok in runs)
        expected[name] = sum(count for count, _ in runs) / reached[name] if reached[name] else math.inf
    return Quality(problem, expected, reached, seeds)


@dataclass(frozen=True)
class Hits:
    """What each seed's search spent, and whether its mean reached a return with that."""

    searches: list[tuple[int, bool]]

    @property
    def reached(self) -> int:
        """How many did."""
        return sum(ok for _, ok in self.searches)

    @property
    def expected(self) -> float:
        """All that was spent over the searches that reached it."""
        return sum(count for count, _ in self.searches) / self.reached if self.reached else math.inf

    @property
    def error(self) -> float:
        """The relative standard error of what a search spent."""
        spent = np.array([count for count, _ in self.searches])
        return float(spent.std(ddof=1) / math.sqrt(len(spent)) / spent.mean()) if len(spent) > 1 else math.inf


def dream_hits(kind: str, seeds: int, count: Callable[[Point], int], task: DreamTask) -> list[Hits]:
    """``count`` of the searches with seeds 0, 1, ... at each of the world's targets."""
    world = task.world
    hits: list[Hits] = [Hits([]) for _ in world.targets]
    for seed in range(seeds):
        optimizer = OPTIMIZERS[kind](torch.zeros(world.dimension), world.sigma, POPULATION, seed)
        first: dict[float, int] = {}
        spent = 0
        for point in task.search(optimizer, seed):
            spent = count(point)
            for target in world.targets:
                if point.value >= target:
                    first.setdefault(target, spent)
            if len(first) == len(world.targets):
                break
        for target, found in zip(world.targets, hits, strict=True):
            found.searches.append((first.get(target, spent), target in first))
    return hits


def generation_times(dimension: int, popsize: int, kinds: Mapping[str, Kind]) -> dict[str, tuple[float, float]]:
    """Mean wall and CPU seconds of ask and tell, by optimiser, in turns.

    The mean of whole cycles, after one to warm up, since ours and pycma put off part of their work to every n-th
    generation (with 4 candidates, the 40th). JAX takes all cores, whatever torch's number of threads.
    """
    cycle = Parameters.of(dimension, popsize, separable=False).gap
    generations = cycle * max(3, math.ceil((9 if popsize >= 256 else 32) / cycle))
    optimizers = {name: kind(torch.zeros(dimension), 0.1, popsize) for name, kind in kinds.items()}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in optimizers}
    for _ in range(cycle + generations):
        for name, optimizer in optimizers.items():
            wall, cpu = time.perf_counter(), time.process_time()
            candidates = optimizer.ask()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            with one_torch_thread():  # a dream would leave none of torch's threads spinning
                returns = -sphere(candidates)
            wall, cpu = wall - time.perf_counter(), cpu - time.process_time()
            optimizer.tell(returns)
            times[name].append((wall + time.perf_counter(), cpu + time.process_time()))
    means = {name: np.mean(each[cycle:], axis=0) for name, each in times.items()}
    return {name: (float(wall), float(cpu)) for name, (wall, cpu) in means.items()}


_LIBRARIES = ("OPENBLAS_", "GOTO_", "MKL_", "BLIS_", "OMP_", "KMP_", "GOMP_")


def alone(threads: int, task: Callable[..., T], *arguments: Any) -> T:
    """``task(*arguments)`` in a process of its own, whose products of matrices have ``threads`` threads.

    What the shell says to the BLAS libraries of threads, cores and caches does not reach it: OPENBLAS_CORETYPE=Haswell
    makes NumPy's products half as fast on Zen 5.
    """
    before = dict(os.environ)
    for name in before:
        if name.startswith(_LIBRARIES):
            del os.environ[name]
    try:
        with multiprocessing.get_context("spawn").Pool(1, use_threads, (threads,)) as pool:
            return pool.apply(task, arguments)
    finally:
        os.environ.update(before)


def quality_plot(rows: list[Quality]) -> Figure:
    """The ratio of evaluations, a bar a problem; 1.1 is the bound."""
    figure = Figure(figsize=(8, 0.35 * len(rows) + 1.2), layout="constrained")
    axes = figure.subplots()
    axes.barh([row.problem.name for row in rows], [row.ratio for row in rows], color="#4a7ebb")
    axes.axvline(1.0, color="0.4", linewidth=1)
    axes.axvline(1.1, color="#c0504d", linewidth=1, linestyle="--")
    axes.set_xlim(0.0, max([1.2, *(1.05 * row.ratio for row in rows if math.isfinite(row.ratio))]))
    axes.margins(y=0.01)
    axes.invert_yaxis()
    axes.set_xlabel("evaluations to the target, BatchedCMAES over pycma (dashed: the bound)")
    return figure


def dream_seconds(popsize: int, steps: int = 1000) -> float:
    """Seconds that a generation of the paper's size dreams: 16 episodes, ``steps`` steps, scaled up from 10."""
    setup = prepare(Workload(candidates=min(popsize, 256), steps=10))
    engine = wm.DreamEngine(setup.m, setup.spec, num_threads=torch.get_num_threads())
    seconds = []
    for _ in range(4):
        began = time.perf_counter()
        engine.rollout(setup.params, setup.starts, episodes=16, max_steps=10, done="sample")
        seconds.append(time.perf_counter() - began)
    return float(np.median(seconds[1:])) * popsize / setup.workload.candidates * steps / 10


def peak_megabytes(dimension: int, popsize: int) -> float:
    """By how much a process grows at most that runs BatchedCMAES until its factor has been refreshed twice."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_growth, (dimension, popsize))


def _growth(dimension: int, popsize: int) -> float:
    use_threads(1)
    warm = BatchedCMAES(torch.zeros(4), 0.1, 8)
    warm.tell(-sphere(warm.ask()))
    before = _peak_kilobytes()
    optimizer = BatchedCMAES(torch.zeros(dimension), 0.1, popsize, variant="full")
    for _ in range(max(3, 2 * Parameters.of(dimension, popsize, separable=False).gap)):
        optimizer.ask()
        optimizer.tell(torch.arange(popsize))
    return (_peak_kilobytes() - before) / 1024


def _peak_kilobytes() -> int:
    """This process's largest resident size; getrusage would count that of the process that started it (Linux)."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def show_quality(problems: list[Problem], seeds: int) -> list[Quality]:
    """The table of the standard functions."""
    click.echo("Expected evaluations to the target; ratio: batched over pycma:")
    names = list(rivals())
    line = _columns(46, *[10] * len(names), 7, 15)
    click.echo(line("problem", *names, "ratio", "reached"))
    measured = []
    for problem in problems:
        row = quality(problem, seeds)
        measured.append(row)
        counts = [f"{row.expected[name]:,.0f}" if name in row.expected else "-" for name in names]
        reached = "/".join(str(row.reached.get(name, "-")) for name in names) + f" of {seeds}"
        click.echo(line(problem.name, *counts, f"{row.ratio:.2f}", reached))
    return measured


def show_covariance(problems: list[Problem]) -> None:
    """The table of what learning a covariance is worth, seed 0."""
    click.echo("\nEvaluations of BatchedCMAES, seed 0, as it is and learning no covariance:")
    line = _columns(46, 10, 13)
    click.echo(line("problem", "batched", "no covariance"))
    for problem in problems:
        runs = [problem.evaluations(kind, 0) for kind in (BatchedCMAES, RoundBatched)]
        click.echo(line(problem.name, *(f"{count:,}" if ok else f"> {count:,}" for count, ok in runs)))


def show_dream(seeds: int, world: World) -> None:
    """The table of both optimisers in a dream."""
    task = DreamTask(world)
    sizes = f"D={world.dimension}, P={POPULATION}, {EPISODES} episodes each"
    click.echo(f"\nExpected evaluations to a return in the dream of {world.name}, {sizes}:")
    line = _columns(10, 10, 10, 12, 14)
    click.echo(line("return", "pycma", "batched", "ratio", "reached"))
    hits = {kind: dream_hits(kind, seeds, lambda point: point.evaluations, task) for kind in OPTIMIZERS}
    for number, target in enumerate(world.targets):
        ours, theirs = hits["batched"][number], hits["pycma"][number]
        reached = f"{theirs.reached}/{ours.reached} of {seeds}"
        value = ours.expected / theirs.expected
        ratio = f"{value:.2f} ± {value * math.hypot(ours.error, theirs.error):.2f}"
        click.echo(line(f"{target:.4g}", f"{theirs.expected:,.0f}", f"{ours.expected:,.0f}", ratio, reached))


def show_racing(seeds: int, world: World) -> None:
    """The table of dream steps, raced and not."""
    sizes = f"D={world.dimension}, P={POPULATION}, BatchedCMAES"
    click.echo(f"\nExpected dream steps to a return in the dream of {world.name}, {sizes},")
    click.echo("in thousands (searches there):")
    line = _columns(24, *[16] * len(world.targets))
    click.echo(line("episodes", *(f"{target:.4g}" for target in world.targets)))
    for episodes, race in ((EPISODES, 0), (8, 0), (4, 0), (2, 0), (EPISODES, 2), (EPISODES, 4)):
        hits = dream_hits("batched", seeds, lambda point: point.steps, DreamTask(world, episodes, race))
        name = f"{episodes}, racing from {race}" if race else f"{episodes} for all"
        click.echo(line(name, *(f"{each.expected / 1e3:,.0f} ({each.reached})" for each in hits)))


def show_speed(popsizes: list[int]) -> None:
    """The tables of ask and tell, by themselves and beside the dream."""
    threads = torch.get_num_threads()
    where = provenance("cpu", threads)
    blas = f"torch {where['torch']}, NumPy {np.__version__}, {describe_blas()[0]}"
    click.echo(f"\n{where['date']}, commit {where['commit']}, {where['cpu']}, load {where['load']:.1f}, {blas}")
    click.echo(
        f"Ask and tell at D = {_DIMENSION}, {threads} thread(s); share: of a dream of 16 episodes of 1,000 steps:"
    )
    others = [name for name in rivals() if name not in OPTIMIZERS]
    line = _columns(6, 9, 11, 6, 13, 15, 6, 9, 12, 14, *[10, 14] * len(others))
    columns = ("P", "pycma ms", "batched ms", "ratio", "pycma CPU ms", "batched CPU ms", "ratio", "dream s")
    extra = [f"{name} {unit}" for name in others for unit in ("ms", "CPU ms")]
    click.echo(line(*columns, "pycma share", "batched share", *extra))
    for popsize in popsizes:
        times = generation_times(_DIMENSION, popsize, rivals())
        (wall, cpu), (our_wall, our_cpu) = times["pycma"], times["batched"]
        walls = [f"{1e3 * wall:.1f}", f"{1e3 * our_wall:.1f}", f"{wall / our_wall:.1f}"]
        cpus = [f"{1e3 * cpu:.1f}", f"{1e3 * our_cpu:.1f}", f"{cpu / our_cpu:.1f}"]
        dream = dream_seconds(popsize)
        shares = [f"{wall / dream:.2%}", f"{our_wall / dream:.2%}"]
        theirs = [f"{1e3 * seconds:.1f}" for name in others for seconds in times[name]]
        click.echo(line(str(popsize), *walls, *cpus, f"{dream:.1f}", *shares, *theirs))


def show_crossover(popsizes: list[int]) -> None:
    """The table of where the batched optimiser becomes the faster one: nowhere, where all ratios are above 1."""
    threads = torch.get_num_threads()
    click.echo(f"\nAsk and tell, pycma's time over the batched one's, {threads} thread(s):")
    line = _columns(6, *[8] * len(_SMALLER))
    click.echo(line("P", *(f"D = {dimension}" for dimension in _SMALLER)))
    for popsize in popsizes:
        times = [generation_times(dimension, popsize, OPTIMIZERS) for dimension in _SMALLER]
        click.echo(line(str(popsize), *(f"{each['pycma'][0] / each['batched'][0]:.2f}" for each in times)))


def show_memory(popsizes: list[int]) -> None:
    """The table of BatchedCMAES' memory."""
    click.echo("\nWhat a process grows by at most, BatchedCMAES, and as a multiple of 8·(D² + P·D) bytes:")
    line = _columns(6, 7, 9, 9)
    click.echo(line("D", "P", "MB", "multiple"))
    smallest = [(_DIMENSION, 4), (2 * _DIMENSION, 4), (2 * _DIMENSION, popsizes[0])]
    for dimension, popsize in [(_DIMENSION, popsize) for popsize in popsizes] + smallest:
        megabytes = peak_megabytes(dimension, popsize)
        multiple = megabytes * 2**20 / (8 * (dimension**2 + popsize * dimension))
        click.echo(line(str(dimension), f"{popsize:,}", f"{megabytes:.0f}", f"{multiple:.1f}"))


def _columns(*widths: int) -> Callable[..., str]:
    def line(*words: str) -> str:
        first, *rest = zip(words, widths, strict=True)
        return "  ".join([first[0].ljust(first[1]), *(word.rjust(width) for word, width in rest)])

    return line


PARTS = ("quality", "covariance", "dream", "racing", "speed", "memory")


@click.command()
@click.option("--seeds", default=15, show_default=True, help="Runs of each optimiser on each problem.")
@click.option("--dimensions", default="10,100,300,867", show_default=True, help="Which of the problems.")
@click.option("--part", "parts", multiple=True, type=click.Choice(PARTS), help="These parts alone; may be repeated.")
@click.option("--threads", default="1,2", show_default=True, help="Numbers of threads that the speed is measured with.")
@click.option("--quick", is_flag=True, help="Three seeds, ten dimensions, small populations: minutes.")
@click.option("--out", type=click.Path(path_type=Path), default=None, help="Where to write the plot, a PNG.")
@click.option(
    "--run",
    "root",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A run whose dream is searched in the parts dream and racing.  [default: the dream of an M drawn from a seed]",
)
@click.option("--features", type=click.Choice(FEATURES), help="What C sees there.  [default: as in that run]")
def main(
    seeds: int,
    dimensions: str,
    parts: tuple[str, ...],
    threads: str,
    quick: bool,
    out: Path | None,
    root: Path | None,
    features: str | None,
) -> None:
    """Quality, racing, speed and memory of BatchedCMAES beside pycma, as tables, and beside evosax where installed.

    On one thread of a Zen 4 core: quality takes minutes for 10 dimensions and 15 seeds, hours for 867; covariance one
    minute; dream 4; racing 2; speed 2; memory one.
    """
    if root is None and features:
        raise click.UsageError("--features is of a run: name it with --run")
    chosen = {10} if quick else {int(word) for word in dimensions.split(",")}
    seeds = min(seeds, 3) if quick else seeds
    popsizes = [64, 256] if quick else [64, 128, 256, 1024, 4096]
    wanted, counts = parts or PARTS, [int(word) for word in threads.split(",")]
    if min(counts) < 1:
        raise click.BadParameter(f"must be at least 1, but were {threads}", param_hint="--threads")
    use_threads(1)  # of what counts: their last bits follow from it, and searches from those; dreams take all cores
    world = None  # made first of all: a folder that is no run is named before hours of quality
    if {"dream", "racing"} & set(wanted):
        try:
            world = drawn_world() if root is None else recorded_world(root, features)
        except (WMEngineError, FileNotFoundError, ValueError) as error:
            raise click.ClickException(str(error)) from error
    measured: list[Quality] = []
    problems = [problem for problem in PROBLEMS if problem.dimension in chosen]
    if "quality" in wanted:
        measured = show_quality(problems, seeds)
    if "covariance" in wanted:
        show_covariance([problem for problem in problems if not problem.diagonal])
    if world is not None and "dream" in wanted:
        show_dream(seeds, world)
    if world is not None and "racing" in wanted:
        show_racing(seeds, world)
    if "speed" in wanted:
        for count in counts:
            alone(count, show_speed, [4, 16, 32, *popsizes])
            alone(count, show_crossover, [4, 8, 16, 32, *popsizes])
    if "memory" in wanted:
        show_memory(popsizes)
    if out is not None and measured:
        with atomic_write(out) as file:
            quality_plot(measured).savefig(file, format="png", dpi=120)
        click.echo(f"plot: {out}")


if __name__ == "__main__":
    main()
