"""Work that may be done elsewhere: what a worker is given, and what it promises.

A *recipe* says how to make something expensive (an engine with M's weights, environments with V and M), and a *task* is
one small piece of work for it. A fleet's workers each make the recipe once, and keep it for all the tasks that follow.
``wm_engine.cluster`` has a fleet of Ray actors.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from wm_engine.checks import check_int


class Recipe(Protocol):
    """Instructions that make a worker's equipment; pickled whole, and never changed once a fleet has seen it."""

    def build(self, cpus: int) -> Callable[[Any], Any]:
        """Make what answers tasks, with ``cpus`` CPUs to keep busy. Its ``close``, where it has one, ends it."""
        ...


class Fleet(Protocol):
    """Workers. ``workers`` is how many there should be, ``device`` the kind of device that each of them has."""

    workers: int
    device: str

    def map(self, recipe: Recipe, tasks: Sequence[Any]) -> Iterator[Any]:
        """Do the tasks; yields their answers in the order of the tasks, as they become known.

        A task may be done twice, by a second worker where the first was lost, so it must have no effect but its answer.
        What a task raises is raised here.
        """
        ...


def shards(count: int, workers: int) -> list[range]:
    """Cut ``range(count)`` into at most ``workers`` pieces, in order, none empty, of sizes that differ by one at most.

    ValueError where either is below 1.
    """
    check_int("count", count, least=1)
    pieces = min(check_int("workers", workers, least=1), count)
    edges = [count * piece // pieces for piece in range(pieces + 1)]
    return [range(first, last) for first, last in itertools.pairwise(edges)]
