"""Environments simulated by gymnasium, in worker processes.

Why not ``gymnasium.vector.AsyncVectorEnv``: it starts one process a lane, each importing this package with torch when
spawned (forking beside torch's and EnvPool's threads is not safe); it steps every lane at every step, while our lanes
stop one by one; and its workers outlive a parent that was killed. Here are as many workers as CPUs, each with a share
of the lanes, and each looks after its parent.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import numpy as np

from wm_engine.envs.base import LaneEnv
from wm_engine.errors import ConfigError, MissingDependencyError, WorkerError

_WORKER = Path(__file__).with_name("gymnasium_worker.py")


class GymnasiumEnv(LaneEnv):
    """gymnasium's environments, lane i held by worker i mod W. Headless: nothing is drawn on a screen."""

    backend = "gymnasium"

    def __init__(self, env_id: str, num_lanes: int, max_steps: int, num_threads: int) -> None:
        super().__init__(env_id, num_lanes)
        self._id = env_id
        self.workers: list[_Worker] = []
        try:
            self.workers = [_Worker() for _ in range(min(num_threads, num_lanes))]
            for worker in self.workers:
                worker.send("start", env_id, max_steps)
            spaces = [self._answer(worker) for worker in self.workers]
        except BaseException:
            self.close()
            raise
        self.action_low, self.action_high = spaces[0]["low"], spaces[0]["high"]
        self.action_size = len(self.action_low)

    def render(self, lane: int) -> np.ndarray:
        """gymnasium's own picture for people: 600 by 400 pixels for CarRacing."""
        worker = self.workers[lane % len(self.workers)]
        worker.send("render", lane)
        return np.asarray(self._answer(worker))

    def close(self) -> None:
        for worker in self.workers:
            worker.close()
        self.workers = []

    def _reset(self, seeds: list[int]) -> np.ndarray:
        if not self.workers:
            raise ValueError("these environments are closed")
        shares = self._shares(np.arange(len(seeds)))
        for worker, positions in shares:
            worker.send("reset", {int(lane): seeds[lane] for lane in positions})
        return _gather([positions for _, positions in shares], self._answers(shares))

    def _step(self, actions: np.ndarray, lanes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        shares = self._shares(lanes)
        for worker, positions in shares:
            worker.send("step", lanes[positions].tolist(), actions[positions])
        places = [positions for _, positions in shares]
        frames, rewards, terminated, truncated = (
            _gather(places, column) for column in zip(*self._answers(shares), strict=True)
        )
        return frames, rewards, terminated, truncated

    def _shares(self, lanes: np.ndarray) -> list[tuple[_Worker, np.ndarray]]:
        # Each worker with the positions in ``lanes`` of those it holds.
        owners = lanes % len(self.workers)
        return [(self.workers[owner], np.flatnonzero(owners == owner)) for owner in np.unique(owners)]

    def _answers(self, shares: list[tuple[_Worker, np.ndarray]]) -> list[Any]:
        # All are received before the first error is raised, so that no answer is left to be taken for a later one.
        answers = [worker.receive() for worker, _ in shares]
        return [self._value(answer) for answer in answers]

    def _answer(self, worker: _Worker) -> Any:
        return self._value(worker.receive())

    def _value(self, answer: tuple[Any, ...]) -> Any:
        if answer[0] == "ok":
            return answer[1]
        _, kind, message = answer
        if kind == "missing":
            raise MissingDependencyError(
                f"{self._id}: gymnasium cannot make this environment here, something is not installed ({message}). "
                "CarRacing comes with: pip install 'gymnasium[box2d]'"
            )
        if kind == "unknown":
            raise ConfigError(f"{self._id}: gymnasium knows no such environment ({message}). Correct env.id.")
        if kind == "unfit":
            raise ConfigError(f"{self._id}: this environment cannot be used: {message}")
        raise RuntimeError(f"{self._id}: a worker failed with {kind}: {message}")


def _gather(places: list[np.ndarray], parts: Any) -> np.ndarray:
    whole = np.empty((sum(map(len, places)), *parts[0].shape[1:]), dtype=parts[0].dtype)
    for positions, part in zip(places, parts, strict=True):
        whole[positions] = part
    return whole


class _Worker:
    """One worker process and our end of its connection."""

    def __init__(self) -> None:
        self._connection, theirs = Pipe()
        environment = {"SDL_VIDEODRIVER": "dummy", "SDL_AUDIODRIVER": "dummy", "PYGAME_HIDE_SUPPORT_PROMPT": "1"}
        self._process = subprocess.Popen(
            [sys.executable, str(_WORKER), str(theirs.fileno()), str(os.getpid())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env=environment | dict(os.environ),
        )
        theirs.close()

    @property
    def pid(self) -> int:
        """The worker's process id."""
        return self._process.pid

    def send(self, *request: Any) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # receive() tells why
            self._connection.send(request)

    def receive(self) -> tuple[Any, ...]:
        try:
            return tuple(self._connection.recv())
        except (EOFError, ConnectionResetError):
            status = self._process.wait()
            raise WorkerError(
                f"a worker process of the environments ended with status {status}. If the machine ran out of memory, "
                "lower env.num_threads; the same command goes on where this one stopped."
            ) from None

    def close(self) -> None:
        self.send("close")
        self._connection.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
