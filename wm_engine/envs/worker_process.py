"""A worker process that simulates environments, seen from the process that uses it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Mapping
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import numpy as np

from wm_engine.errors import WorkerError
from wm_engine.spaces import Actions, Box, Discrete, Observations, Pixels, Spaces, Vector


class WorkerProcess:
    """One worker process and this end of its connection.

    ``with_our_path``: it finds the modules that this process finds, as a task of one's own needs. ``script``: the file
    of this folder that it runs. ``patience``: seconds that it has to end itself before it is killed.
    """

    def __init__(self, with_our_path: bool = False, script: str = "gymnasium_worker.py", patience: float = 5.0) -> None:
        self._patience = patience
        self._connection, theirs = Pipe()
        environment = {"SDL_VIDEODRIVER": "dummy", "SDL_AUDIODRIVER": "dummy", "PYGAME_HIDE_SUPPORT_PROMPT": "1"}
        environment |= os.environ
        if with_our_path:
            theirs_first = [environment["PYTHONPATH"]] if environment.get("PYTHONPATH") else []
            environment["PYTHONPATH"] = os.pathsep.join([*theirs_first, *(entry or os.getcwd() for entry in sys.path)])
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name(script)), str(theirs.fileno()), str(os.getpid())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env=environment,
        )
        theirs.close()

    @property
    def pid(self) -> int:
        """The worker's process id."""
        return self._process.pid

    def send(self, *request: Any) -> None:
        """Send a request, a name and its arguments. A worker that is gone is found out by :meth:`receive`."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._connection.send(request)

    def receive(self) -> tuple[Any, ...]:
        """Wait for the answer to the oldest request: ("ok", value) or ("error", kind, message).

        Raises WorkerError where the worker has died.
        """
        try:
            return tuple(self._connection.recv())
        except (EOFError, ConnectionResetError):
            status = self._process.wait()
            raise WorkerError(
                f"a worker process of the environments ended with status {status}. If the machine ran out of memory, "
                "lower env.num_threads; the same command goes on where this one stopped."
            ) from None

    def ask(self, *request: Any) -> tuple[Any, ...]:
        """Send a request and wait for its answer; raises what :meth:`receive` raises."""
        self.send(*request)
        return self.receive()

    def close(self) -> None:
        """End the process, by force where it does not end itself in time."""
        self.send("close")
        self._connection.close()
        try:
            self._process.wait(timeout=self._patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def named_spaces(found: Mapping[str, Any]) -> Spaces:
    """Name the spaces that a worker's ``describe`` found; ValueError for those that no model takes."""
    return Spaces(_observations(found["observations"]), _actions(found["actions"]))


def _observations(found: Mapping[str, Any]) -> Observations:
    if found["kind"] == "picture":
        return Pixels()
    if found["kind"] == "vector":
        return Vector(found["size"])
    raise ValueError(
        "its observations must be pictures (uint8 [height, width, 3]) or one vector of floats, but are "
        f"{found['words']}. Wrap it (gymnasium.wrappers) and register the wrapped one"
    )


def _actions(found: Mapping[str, Any]) -> Actions:
    if found["kind"] == "discrete":
        return Discrete(found["count"])
    if found["kind"] == "box":
        with np.errstate(over="ignore"):  # a bound beyond float32's becomes infinite, and is refused
            low, high = (np.asarray(found[side], np.float32) for side in ("low", "high"))
        if (np.isfinite(low) & np.isfinite(high)).all():
            return Box(tuple(low.tolist()), tuple(high.tolist()))
    raise ValueError(
        "its actions must be one vector of bounded floats or one of at least two discrete actions, but are "
        f"{found['words']}. Wrap it (gymnasium.wrappers) and register the wrapped one"
    )
