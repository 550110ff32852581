"""Real environments, many at once, behind one protocol: EnvPool where it is installed, gymnasium otherwise,
VizDoom for its scenarios."""

from __future__ import annotations

import logging

from wm_engine.checks import check_choice, check_int
from wm_engine.envs.base import BatchedEnv, EnvSettings, LaneEnv, Step, check_seeds
from wm_engine.envs.envpool_backend import EnvPoolEnv, envpool_problem
from wm_engine.envs.exploration import random_walk
from wm_engine.envs.frames import FRAME_SHAPE, FRAME_SIZE, preprocess
from wm_engine.envs.gymnasium_backend import GymnasiumEnv
from wm_engine.envs.task import BACKENDS, Baseline, Driver, Explore, Peer, Scenario, Task, find_task, task_names
from wm_engine.envs.vizdoom_backend import VizDoomEnv, vizdoom_problem
from wm_engine.errors import ConfigError
from wm_engine.machine import available_cpus

__all__ = [
    "FRAME_SHAPE",
    "FRAME_SIZE",
    "Baseline",
    "BatchedEnv",
    "Driver",
    "EnvSettings",
    "Explore",
    "LaneEnv",
    "Peer",
    "Scenario",
    "Step",
    "Task",
    "backends",
    "check_seeds",
    "choose_backend",
    "find_task",
    "make_env",
    "preprocess",
    "random_walk",
    "task_names",
]

_log = logging.getLogger(__name__)
_logged: set[str] = set()


def backends(task: str = "car_racing") -> dict[str, str | None]:
    """Name each backend with why it cannot run ``task`` here, or None where it can as far as is known."""
    found = find_task(task)
    gymnasium = None if "gymnasium" in found.backends else f"{task} does not run on gymnasium"
    return {"envpool": envpool_problem(found), "gymnasium": gymnasium, "vizdoom": vizdoom_problem(found)}


def choose_backend(settings: EnvSettings) -> str:
    """Choose the backend that ``settings`` come to on this machine; the choice made by "auto" is logged once.

    Raises what :func:`find_task` raises, and ConfigError where no backend of the task is there.
    """
    if settings.backend != "auto":
        return settings.backend
    problems = backends(settings.task)
    task = settings.found()
    choice = next((name for name in task.backends if problems.get(name, "unknown") is None), None)
    faster = [problem for name in task.backends if name != choice and (problem := problems.get(name)) is not None]
    if choice is None:
        raise ConfigError(f"{task.name} runs on none of its backends here: {'; '.join(faster)}")
    line = f"{task.env_id} runs on {choice}" + (f": {'; '.join(faster)}" if faster else "")
    if line not in _logged:
        _logged.add(line)
        _log.info(line)
    return choice


def make_env(
    settings: EnvSettings, num_lanes: int | None = None, max_frames: int | None = None, backend: str | None = None
) -> BatchedEnv:
    """Make environments as ``settings`` describe them.

    ``num_lanes``, ``max_frames`` and ``backend`` stand in for those of ``settings`` where given. Raises ConfigError for
    an environment that does not exist or cannot be used, MissingDependencyError where something it needs is not
    installed.
    """
    if backend is not None:
        check_choice("backend", backend, ("auto", *BACKENDS))
        settings = settings.model_copy(update={"backend": backend})
    lanes = settings.num_envs if num_lanes is None else check_int("num_lanes", num_lanes, least=1)
    limit = settings.frame_limit if max_frames is None else check_int("max_frames", max_frames, least=1)
    threads = settings.num_threads or available_cpus()
    task = settings.found()
    if not task.simulated:
        raise ConfigError("env.task: these episodes were imported, and there is no environment to drive in")
    if (choice := choose_backend(settings)) == "envpool":
        return EnvPoolEnv(task, lanes, limit, threads, settings.repeat)
    if choice not in task.backends:
        raise ConfigError(f"{task.name} runs on {', '.join(task.backends)} only, but env.backend was {choice!r}")
    kind = VizDoomEnv if choice == "vizdoom" else GymnasiumEnv
    return kind(task, lanes, limit, threads, settings.repeat)
