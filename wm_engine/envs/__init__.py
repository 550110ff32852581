"""Real environments, many at once, behind one protocol: EnvPool where it is installed, gymnasium otherwise."""

from __future__ import annotations

import logging

from wm_engine.checks import check_int
from wm_engine.envs.base import CAR_RACING, BatchedEnv, EnvSettings, LaneEnv, Step, check_seeds
from wm_engine.envs.envpool_backend import EnvPoolEnv, envpool_problem
from wm_engine.envs.frames import FRAME_SHAPE, FRAME_SIZE, preprocess
from wm_engine.envs.gymnasium_backend import GymnasiumEnv
from wm_engine.machine import available_cpus

__all__ = [
    "CAR_RACING",
    "FRAME_SHAPE",
    "FRAME_SIZE",
    "BatchedEnv",
    "EnvSettings",
    "LaneEnv",
    "Step",
    "backends",
    "check_seeds",
    "choose_backend",
    "make_env",
    "preprocess",
]

_log = logging.getLogger(__name__)
_logged: set[str] = set()


def backends(env_id: str = CAR_RACING) -> dict[str, str | None]:
    """Each backend's name, with why it cannot run ``env_id`` here, or None where it can as far as is known."""
    return {"envpool": envpool_problem(env_id), "gymnasium": None}


def choose_backend(settings: EnvSettings) -> str:
    """The backend that ``settings`` come to on this machine; the choice made by "auto" is logged once."""
    if settings.backend != "auto":
        return settings.backend
    problem = envpool_problem(settings.id)
    choice = "envpool" if problem is None else "gymnasium"
    line = f"{settings.id} runs on {choice}" + ("" if problem is None else f": {problem}")
    if line not in _logged:
        _logged.add(line)
        _log.info(line)
    return choice


def make_env(settings: EnvSettings, num_lanes: int | None = None, max_steps: int | None = None) -> BatchedEnv:
    """Environments as ``settings`` describe them.

    ``num_lanes`` and ``max_steps`` stand in for ``settings.num_envs`` and ``settings.max_steps`` where given. Raises
    ConfigError for an environment that does not exist or cannot be used, MissingDependencyError where something it
    needs is not installed.
    """
    lanes = settings.num_envs if num_lanes is None else check_int("num_lanes", num_lanes, least=1)
    limit = settings.max_steps if max_steps is None else check_int("max_steps", max_steps, least=1)
    threads = settings.num_threads or available_cpus()
    if choose_backend(settings) == "envpool":
        return EnvPoolEnv(settings.id, lanes, limit, threads)
    return GymnasiumEnv(settings.id, lanes, limit, threads)
