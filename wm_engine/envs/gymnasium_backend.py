"""Environments simulated by gymnasium, in worker processes.

Why not ``gymnasium.vector.AsyncVectorEnv``: it starts one process a lane, each importing this package with torch when
spawned (forking beside torch's and EnvPool's threads is not safe); it steps every lane at every step, while our lanes
stop one by one; and its workers outlive a parent that was killed. Here are as many workers as CPUs, each with a share
of the lanes, and each looks after its parent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from wm_engine.envs.base import LaneEnv
from wm_engine.envs.task import Task, not_installed
from wm_engine.envs.worker_process import WorkerProcess, named_spaces
from wm_engine.errors import ConfigError, MissingDependencyError


class GymnasiumEnv(LaneEnv):
    """gymnasium's environments, lane i held by worker i mod W. Headless: nothing is drawn on a screen."""

    backend = "gymnasium"
    script = "gymnasium_worker.py"
    patience = 5.0

    def __init__(self, task: Task, num_lanes: int, max_frames: int, num_threads: int, action_repeat: int = 1) -> None:
        super().__init__(task, num_lanes, max_frames, action_repeat)
        self.workers: list[WorkerProcess] = []
        try:
            for _ in range(min(num_threads, num_lanes)):
                self.workers.append(
                    WorkerProcess(bool(task.register) or ":" in task.env_id, self.script, self.patience)
                )
            for worker in self.workers:
                worker.send("start", *self._request())
            found = [self._answer(worker) for worker in self.workers]
            self._check_spaces(found[0])
        except BaseException:
            self.close()
            raise

    def render(self, lane: int) -> np.ndarray:
        """Draw gymnasium's own picture for people: 600 by 400 pixels for CarRacing."""
        return np.asarray(self._value(self.workers[lane % len(self.workers)].ask("render", lane)))

    def close(self) -> None:
        for worker in self.workers:
            worker.close()
        self.workers = []

    def _request(self) -> tuple[Any, ...]:
        """What a worker needs to start its lanes."""
        return self.task.env_id, self.max_frames, self.task.register

    def _reset(self, seeds: list[int]) -> np.ndarray:
        if not self.workers:
            raise ValueError("these environments are closed")
        shares = self._shares(np.arange(len(seeds)))
        for worker, positions in shares:
            worker.send("reset", {int(lane): seeds[lane] for lane in positions})
        return _gather([positions for _, positions in shares], self._answers(shares))

    def _step(self, actions: np.ndarray, lanes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        return self._asked(lanes, lambda places: (lanes[places].tolist(), actions[places]))

    def _asked(self, lanes: np.ndarray, request: Callable[[np.ndarray], tuple[Any, ...]]) -> Any:
        """Step ``lanes`` in their workers: ``request`` makes the arguments for those at some places in ``lanes``.

        Returns a worker's answer, array by array, gathered in the order of ``lanes``.
        """
        shares = self._shares(lanes)
        for worker, positions in shares:
            worker.send("step", *request(positions))
        places = [positions for _, positions in shares]
        return tuple(_gather(places, column) for column in zip(*self._answers(shares), strict=True))

    def _shares(self, lanes: np.ndarray) -> list[tuple[WorkerProcess, np.ndarray]]:
        # Each worker with the positions in ``lanes`` of those it holds.
        owners = lanes % len(self.workers)
        return [(self.workers[owner], np.flatnonzero(owners == owner)) for owner in np.unique(owners)]

    def _answers(self, shares: list[tuple[WorkerProcess, np.ndarray]]) -> list[Any]:
        # All are received before the first error is raised, so that no answer is left to be taken for a later one.
        answers = [worker.receive() for worker, _ in shares]
        return [self._value(answer) for answer in answers]

    def _answer(self, worker: WorkerProcess) -> Any:
        return self._value(worker.receive())

    def _value(self, answer: tuple[Any, ...]) -> Any:
        if answer[0] == "ok":
            return answer[1]
        _, kind, message = answer
        if kind == "missing":
            raise MissingDependencyError(not_installed(self.task, message))
        if kind == "unknown":
            raise ConfigError(
                f"{self.task.name}: gymnasium knows no environment {self.task.env_id} ({message}). Correct the task's "
                "env_id, or name in its register the module that registers it."
            )
        if kind == "unfit":
            raise ConfigError(f"{self.task.name}: this environment cannot be used: {message}")
        raise RuntimeError(f"{self.task.name}: a worker failed with {kind}: {message}")

    def _check_spaces(self, found: dict[str, Any]) -> None:
        try:
            spaces = named_spaces(found)
        except ValueError as error:
            raise ConfigError(f"{self.task.name}: {self.task.env_id} cannot be used: {error}") from None
        # Every picture is resized to what the task names.
        pictures = (
            type(spaces.observations) is type(self.spaces.observations) and found["observations"]["kind"] == "picture"
        )
        if spaces.actions != self.spaces.actions or not (pictures or spaces.observations == self.spaces.observations):
            raise ConfigError(f"{self.task.name}: the task says {self.spaces}, but {self.task.env_id} has {spaces}")


def _gather(places: list[np.ndarray], parts: Any) -> np.ndarray:
    whole = np.empty((sum(map(len, places)), *parts[0].shape[1:]), dtype=parts[0].dtype)
    for positions, part in zip(places, parts, strict=True):
        whole[positions] = part
    return whole
