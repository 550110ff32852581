"""How a generation spreads over machines. ``python -m bench.cluster``.

Measures what a generation's time is made of, on a Ray cluster of this machine or on the one at ``--address``, times one
actor and two by turns, and says what the terms predict for more:

    T(N) = optimiser + S / (N r) + N c + B(N) / w

    S   dream steps of a generation, P·E·T; r: an actor's steps a second
    c   the driver's work for one task and its answer, without their bytes
    B   4·P·D of parameters out, N·4·E·(Z + 2H) of starts out, P·(8·E + 1) of returns, lengths and flags back
    w   bytes a second between the driver and the actors
"""

from __future__ import annotations

import contextlib
import logging
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import click
import torch
from torch import Tensor

from wm_engine.cluster import ClusterSettings, DreamRecipe, FleetEngine, RayFleet
from wm_engine.dream import DreamEngine
from wm_engine.errors import MissingDependencyError
from wm_engine.learn.evolve import BatchedCMAES

from .tables import aligned
from .workload import Setup, Workload, prepare

_ACTORS = (1, 2, 10, 100, 300)


@dataclass(frozen=True)
class Terms:
    """A generation's terms: seconds of ask and tell, steps S, steps a second r of an actor, seconds c a task, w."""

    optimizer: float
    steps: float
    rate: float
    per_task: float
    bandwidth: float

    def seconds(self, actors: int, work: Workload, dimension: int) -> float:
        """T(N)."""
        dream = self.steps / (actors * self.rate)
        return self.optimizer + dream + actors * self.per_task + sum(traffic(work, dimension, actors)) / self.bandwidth


def traffic(work: Workload, dimension: int, actors: int) -> tuple[int, int]:
    """Bytes of a generation from the driver to the actors, and back; M's weights travelled before."""
    starts = 4 * work.episodes * (work.latent + 2 * work.hidden)
    out = 4 * work.candidates * dimension + actors * starts
    return out, work.candidates * (8 * work.episodes + 1)


class Echo:
    """A recipe whose tasks come back as they are."""

    def build(self, cpus: int) -> Callable[[Tensor], Tensor]:
        """See :class:`wm_engine.fleet.Recipe`."""
        return _same


def _same(task: Tensor) -> Tensor:
    return task


@contextlib.contextmanager
def local_cluster(nodes: int) -> Iterator[str]:
    """The address of a cluster of ``nodes`` nodes with a CPU each, all on this machine."""
    try:
        from ray.cluster_utils import Cluster
    except ImportError as error:
        raise MissingDependencyError(f"this needs Ray ({error}): pip install 'wm-engine[ray]'") from error
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    node = {"num_cpus": 1, "object_store_memory": 256 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
    try:
        for _ in range(nodes - 1):
            cluster.add_node(**node)
        yield cluster.address
    finally:
        cluster.shutdown()


def timed(run: Callable[[], Any]) -> float:
    """Seconds that ``run`` took."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def measure(setup: Setup, address: str, rounds: int, say: Callable[[str], None]) -> tuple[Terms, float]:
    """The terms of the dream alone, and the measured efficiency of two actors, half one's time over theirs."""
    work, dimension = setup.workload, setup.spec.num_params
    engine = DreamEngine(setup.m, setup.spec)
    recipe = DreamRecipe(setup.m, setup.spec, "cpu", engine.backend, "fp32")
    plan = {"episodes": work.episodes, "max_steps": work.steps, "done": "sample"}
    fleets = {count: RayFleet(address, ClusterSettings(actors=count, cpus=1), "cpu") for count in (1, 2)}
    try:
        engines = {count: FleetEngine(recipe, fleet) for count, fleet in fleets.items()}
        outputs = {count: each.rollout(setup.params, setup.starts, **plan) for count, each in engines.items()}
        if not torch.equal(outputs[1].returns, outputs[2].returns):
            raise click.ClickException("one actor and two dreamt different returns")
        steps = float(outputs[1].lengths.sum())
        say(f"returns are equal to the bit; timing 1 and 2 actors in turn, {rounds} rounds of {steps:,.0f} steps")
        times: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(rounds):
            for count, each in engines.items():
                times[count].append(timed(lambda each=each: each.rollout(setup.params, setup.starts, **plan)))
        one = statistics.median(times[1])
        efficiency = statistics.median(first / (2 * second) for first, second in zip(times[1], times[2], strict=True))
        say(f"1 actor {one:.2f} s, 2 actors {statistics.median(times[2]):.2f} s")

        echo, tiny = Echo(), torch.zeros(1)
        list(fleets[1].map(echo, [tiny]))
        count = 100
        per_task = statistics.median(timed(lambda: list(fleets[1].map(echo, [tiny] * count))) for _ in range(5)) / count
        load = torch.zeros(2**22)
        passing = [timed(lambda: list(fleets[1].map(echo, [load]))) for _ in range(7)]
        bandwidth = 2 * load.nbytes / max(statistics.median(passing) - per_task, 1e-9)
    finally:
        for fleet in fleets.values():
            fleet.close()
    rest = per_task + sum(traffic(work, dimension, 1)) / bandwidth
    return Terms(0.0, steps, steps / (one - rest), per_task, bandwidth), efficiency


def optimizer_seconds(dimension: int, popsize: int, device: str) -> float:
    """Median seconds of a generation's ask and tell on the driver's device."""
    optimizer = BatchedCMAES(torch.zeros(dimension), 0.1, popsize, device=device)
    return statistics.median(timed(lambda: optimizer.tell(-(optimizer.ask() ** 2).sum(dim=1))) for _ in range(5))


@click.command()
@click.option("--address", help="Of a running cluster; without one, nodes are simulated on this machine.")
@click.option("--population", default=256, show_default=True, help="Candidates of the timed dreams.")
@click.option("--steps", default=100, show_default=True, help="Steps of the timed dreams.")
@click.option("--rounds", default=7, show_default=True)
@click.option("--for-population", default=4096, show_default=True, help="Candidates of the predicted generation.")
@click.option("--for-episodes", default=16, show_default=True, help="Dreams of each of these.")
@click.option("--for-steps", default=1000, show_default=True, help="Steps of the predicted generation.")
@click.option("--for-cpus", default=16, show_default=True, help="CPUs of a predicted actor, at one's rate each.")
@click.option("--optimizer-device", default="cpu", show_default=True, help="Where the driver's optimiser lives.")
@click.option("--gigabits", default=10.0, show_default=True, help="Of the driver's network, for the predictions.")
def main(
    address: str | None,
    population: int,
    steps: int,
    rounds: int,
    for_population: int,
    for_episodes: int,
    for_steps: int,
    for_cpus: int,
    optimizer_device: str,
    gigabits: float,
) -> None:
    """What a generation costs on a cluster, term by term, and what that predicts for many machines."""
    import ray

    setup = prepare(Workload(candidates=population, steps=steps))
    dimension = setup.spec.num_params
    with local_cluster(3) if address is None else contextlib.nullcontext(address) as where:
        ray.init(address=where, log_to_driver=False, logging_level=logging.ERROR)
        try:
            terms, efficiency = measure(setup, where, rounds, click.echo)
        finally:
            ray.shutdown()
    large = Workload(candidates=for_population, episodes=for_episodes, steps=for_steps)
    weights = 4 * sum(parameter.numel() for parameter in setup.m.parameters())
    asking = optimizer_seconds(dimension, for_population, optimizer_device)
    wire = min(terms.bandwidth, gigabits * 1e9 / 8)
    far = Terms(asking, float(large.rollouts * for_steps), for_cpus * terms.rate, terms.per_task, wire)
    click.echo(
        f"ask and tell {1e3 * asking:.0f} ms at P={for_population}; a CPU {terms.rate:,.0f} steps/s; a task "
        f"{1e3 * terms.per_task:.2f} ms; transport {terms.bandwidth / 1e9:.2f} GB/s; M's weights {weights / 1e6:.2f} MB"
    )
    rows = [["actors", "MB out", "MB back", "s a generation", "efficiency"]]
    for actors in _ACTORS:
        out, back = traffic(large, dimension, actors)
        seconds = far.seconds(actors, large, dimension)
        share = f"{far.seconds(1, large, dimension) / (actors * seconds):.0%}"
        rows.append([f"{actors:,}", f"{out / 1e6:.2f}", f"{back / 1e6:.2f}", f"{seconds:.3f}", share])
    title = (
        f"Predicted for P={for_population}, E={large.episodes}, T={for_steps}, D={dimension}, {for_cpus} CPUs an actor"
    )
    click.echo("\n".join([f"{title}, {gigabits:g} Gbit/s:", *aligned(rows)]))
    click.echo(f"Measured, 1 to 2 actors of a CPU, the dream alone: efficiency {efficiency:.0%}")


if __name__ == "__main__":
    main()
