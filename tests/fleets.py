"""A fleet in this process, for tests of what is shared out without a cluster: everything that travels is pickled."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from typing import Any

from wm_engine.fleet import Recipe


class PickledFleet:
    """Workers that take turns, each with what it has built for the newest recipe."""

    device = "cpu"

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.tasks: list[int] = []  # how many of each call
        self.built = 0
        self._recipe: Recipe | None = None
        self._equipment: list[Any] = []

    def map(self, recipe: Recipe, tasks: Sequence[Any]) -> Iterator[Any]:
        self.tasks.append(len(tasks))
        if recipe is not self._recipe:
            self.close()
            self._recipe = recipe
            self._equipment = [pickle.loads(pickle.dumps(recipe)).build(1) for _ in range(self.workers)]
            self.built += self.workers
        for number, task in enumerate(tasks):
            answer = self._equipment[number % self.workers](pickle.loads(pickle.dumps(task)))
            yield pickle.loads(pickle.dumps(answer))

    def close(self) -> None:
        """End what the workers keep open."""
        for one in self._equipment:
            getattr(one, "close", lambda: None)()
        self._equipment, self._recipe = [], None
