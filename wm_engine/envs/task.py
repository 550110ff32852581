"""A task: an environment with all that is particular to it, found by its name."""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.util
import pkgutil
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from wm_engine.checks import check_choice, check_int
from wm_engine.envs import tasks
from wm_engine.envs.exploration import box_actions, discrete_actions
from wm_engine.envs.worker_process import WorkerProcess, named_spaces
from wm_engine.errors import ConfigError, MissingDependencyError
from wm_engine.spaces import Box, Discrete, Spaces

Explore = Callable[[np.random.Generator, int], np.ndarray]


class Driver(Protocol):
    """Whoever chooses actions on what real environments show."""

    def act(self, observations: np.ndarray, lanes: np.ndarray) -> np.ndarray:
        """Return actions float32 [m, A] on the observations [m, ...] of the given lanes int64 [m].

        Called once a step, with the lanes that are still driving.
        """
        ...


Baseline = Callable[[Sequence[int]], Driver]
"""Makes the driver of a batch of episodes, lane i driving the environment's seed ``seeds[i]``; it needs neither V nor
M. It is pickled where a fleet drives: a function or a class of a module, or a dataclass of plain values."""

Peer = Callable[[int, int], Baseline]
"""Learns in the real environment by other people's code, (frames, seed) -> a baseline, taking at most so many frames.
MissingDependencyError, naming the extra, where that code is not installed."""


# "CartPole-v1", "ALE/Pong-v5", and "mine.envs:Name-v0" of the module that registers it.
_GYMNASIUM_ID = re.compile(r"[\w.]+:\S+|\S+-v\d+")
_MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
BACKENDS = ("envpool", "gymnasium", "vizdoom")


@dataclass(frozen=True)
class Scenario:
    """What VizDoom is told beside the scenario's file, which is the task's ``env_id``.

    skill : 1 (easiest) to 5
    press : which buttons actions [m, A] hold down, to 0 and 1, int [m, buttons], in the scenario's order
    """

    skill: int
    press: Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Task:
    """An environment and what a world model needs to know of it. A file of ``envs/tasks/`` makes one, as ``task``.

    name : the file's name, "car_racing"
    env_id : the registered gymnasium environment, "CarRacing-v3", or the scenario's file of VizDoom; "": there is none,
        episodes were imported
    spaces : what it shows and takes; pictures are resized to ``spaces.observations.shape``
    backends : those it runs on, the fastest first
    action_repeat : for how many frames an action is applied, where the configuration does not say
    max_frames : after how many frames an episode is truncated, where the configuration does not say
    crop_rows : how many rows of the environment's picture V sees, from the top, or from which to which; None: all
    reward : what a dreamt step is worth, "predicted" | "survival"
    squash : how C's outputs become actions, a word for each action or "argmax"; (): what fits the space, "argmax" for
        discrete actions, "sigmoid" for those that are never negative, "tanh" for others
    action_names : what people call the A entries of an action; (): nobody has named them
    frames_per_second : of the environment's clock, for films
    solved : the score that counts as solved; None: nobody has named one
    extra : the extra of this package that installs the environment; "": none is needed
    register : a module that registers ``env_id`` when it is imported, in the gymnasium backend's workers; "": gymnasium
        knows it already. "wm_engine" registers our own. It must not import torch, which a worker has no use for.
    explore : draws a random plan, (rng, frames) -> float32 [frames, A]; None: a smooth walk over a box, held choices of
        discrete actions
    baselines : policies that a run's score is printed beside, by name, on the same episodes and beside the random one:
        the shortest path
    plans : such policies that are blind: open-loop plans as ``explore`` draws them, of an episode's seed alone
    peers : algorithms that learn from as many real frames as the run did, by name, whose score stands there too
    price : rewards of a whole episode, (float32 [T], action repeat) -> float32 [T], as they would be if what they
        depend on and nobody can see had its mean; None: nothing is hidden
    align : makes EnvPool's pictures gymnasium's, uint8 [n, height, width, 3] to the same; None: they are alike
    scenario : what the backend "vizdoom" needs; None elsewhere

    Raises ValueError for fields that do not fit each other.
    """

    name: str
    env_id: str
    spaces: Spaces
    backends: tuple[str, ...] = ("gymnasium",)
    action_repeat: int = 1
    max_frames: int = 1000
    crop_rows: int | tuple[int, int] | None = None
    reward: str = "predicted"
    squash: tuple[str, ...] | str = ()
    action_names: tuple[str, ...] = ()
    frames_per_second: int = 50
    solved: float | None = None
    extra: str = ""
    register: str = ""
    explore: Explore | None = None
    baselines: Mapping[str, Baseline] = field(default_factory=dict)
    plans: Mapping[str, Explore] = field(default_factory=dict)
    peers: Mapping[str, Peer] = field(default_factory=dict)
    price: Callable[[np.ndarray, int], np.ndarray] | None = None
    align: Callable[[np.ndarray], np.ndarray] | None = None
    scenario: Scenario | None = None

    def __post_init__(self) -> None:
        if not self.backends:
            raise ValueError("backends must name at least one, but was ()")
        for backend in self.backends:
            check_choice("backends", backend, BACKENDS)
        if ("vizdoom" in self.backends) != (self.scenario is not None):
            raise ValueError(
                f"scenario must be given where backends name vizdoom, and only there, but was {self.scenario!r} with "
                f"backends {self.backends}"
            )
        names = ["controller", "random", *self.baselines, *self.plans, *self.peers]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"baselines, plans and peers must have names of their own, but shared {twice}")
        check_choice("reward", self.reward, ("predicted", "survival"))
        check_int("action_repeat", self.action_repeat, least=1)
        check_int("max_frames", self.max_frames, least=1)
        actions = self.spaces.actions
        if not self.squash:
            words = "argmax" if isinstance(actions, Discrete) else _fitting(actions)
            object.__setattr__(self, "squash", words)
        if (self.squash == "argmax") != isinstance(actions, Discrete) or (
            self.squash != "argmax" and len(self.squash) != actions.size
        ):
            raise ValueError(f'squash must be "argmax" or a word for each action of {actions}, but was {self.squash!r}')
        if len(self.action_names) not in (0, actions.size):
            raise ValueError(f"action_names must be {actions.size} names, or none, but were {self.action_names}")

    @property
    def simulated(self) -> bool:
        """Whether there is an environment to drive in; imported episodes have none."""
        return bool(self.env_id)

    def random_actions(self, rng: np.random.Generator, steps: int, action_repeat: int = 1) -> np.ndarray:
        """Draw the actions of a random policy that gets somewhere: float32 [steps, A], within the bounds.

        ``action_repeat``: for how many frames each action will be applied. Plans are made for frames, and every
        ``action_repeat``-th action of one is taken, so that a plan lasts as long whatever the repeat.
        """
        frames = check_int("steps", steps, least=1) * check_int("action_repeat", action_repeat, least=1)
        actions = self.spaces.actions
        if self.explore is not None:
            plan = self.explore(rng, frames)
        elif isinstance(actions, Box):
            plan = box_actions(rng, frames, actions)
        else:
            plan = discrete_actions(rng, frames, actions)
        return actions.clip(plan[::action_repeat])


def find_task(name: str) -> Task:
    """Find a task by its name.

    ``name``: "car_racing", a module of ``wm_engine.envs.tasks``; "CartPole-v1", any registered gymnasium environment,
    whose spaces it is asked for; or "mine.my_task", any importable module with a Task named ``task``. Raises
    ConfigError for a name that is none of these and for an environment whose spaces do not fit,
    MissingDependencyError where something that the task needs is not installed.
    """
    if _GYMNASIUM_ID.fullmatch(name):
        return _registered(name)
    if not _MODULE.fullmatch(name):
        raise ConfigError(_unknown(name))
    module = name if "." in name else f"{tasks.__name__}.{name}"
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        # A parent of "mine.my_task" may be what is missing; anything else is something that the module itself needs.
        if error.name is not None and (module == error.name or module.startswith(error.name + ".")):
            raise ConfigError(_unknown(name)) from None
        raise MissingDependencyError(f"{name}: this task needs a package that is not installed ({error})") from error
    task = getattr(found, "task", None)
    if not isinstance(task, Task):
        raise ConfigError(f"{name}: {module} must have a wm_engine.envs.Task named task, but has {task!r}")
    if task.register and not _is_installed(task.register):
        raise MissingDependencyError(not_installed(task, f"no module named {task.register}"))
    return task


def recorded_task(spaces: Spaces) -> Task:
    """Describe imported episodes of these spaces as a task that has no environment."""
    return Task("recorded", "", spaces)


def task_names() -> list[str]:
    """List the tasks that come with this package, in the order of their names."""
    return sorted(module.name for module in pkgutil.iter_modules(tasks.__path__))


def not_installed(task: Task, reason: str) -> str:
    """Say what to install where ``task`` cannot be made for ``reason``."""
    remedy = f"wm-engine[{task.extra}]" if task.extra else "gymnasium[box2d]" if task.name == "car_racing" else ""
    how = f": pip install '{remedy}'" if remedy else ""
    return f"{task.name}: {task.env_id} cannot be made here, something is not installed ({reason}){how}"


@functools.lru_cache
def _registered(env_id: str) -> Task:
    """Describe a registered gymnasium environment as a task, its spaces as a worker finds them."""
    worker = WorkerProcess(with_our_path=":" in env_id)
    try:
        answer = worker.ask("describe", env_id, "")
    finally:
        worker.close()
    if answer[0] == "ok":
        try:
            spaces, limit = named_spaces(answer[1]), answer[1]["max_frames"]
        except ValueError as error:
            raise ConfigError(f"{env_id}: this environment cannot be used: {error}") from None
        return Task(env_id, env_id, spaces, max_frames=limit or Task.max_frames)
    _, kind, message = answer
    if kind == "missing":
        raise MissingDependencyError(
            f"{env_id}: gymnasium cannot make this environment here, something is not installed ({message})"
        )
    if kind == "unknown":
        raise ConfigError(_unknown(env_id))
    raise ConfigError(f"{env_id}: this environment cannot be used: {message}")


def _fitting(space: Box) -> tuple[str, ...]:
    return tuple("sigmoid" if low >= 0.0 else "tanh" for low in space.low)


def _unknown(name: str) -> str:
    import gymnasium

    known = [*task_names(), *gymnasium.registry]
    plain = {other.lower(): other for other in known}
    near = [plain[other] for other in difflib.get_close_matches(name.lower(), plain, n=3, cutoff=0.5)]
    meant = f" Did you mean {' or '.join(near)}?" if near else ""
    return (
        f"env.task must be a task of this package ({', '.join(task_names())}), a registered gymnasium environment or "
        f"an importable module with a task, but was {name!r}.{meant}"
    )


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # a parent package is missing
        return False
