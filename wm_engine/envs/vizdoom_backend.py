"""Environments simulated by VizDoom, in worker processes: a scenario's own pictures at 160 by 120, and its own tics."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np

from wm_engine.envs.base import Step
from wm_engine.envs.gymnasium_backend import GymnasiumEnv
from wm_engine.envs.task import Task, not_installed
from wm_engine.errors import ConfigError, MissingDependencyError


def vizdoom_problem(task: Task) -> str | None:
    """Say why VizDoom cannot run ``task`` here; None where it can."""
    if "vizdoom" not in task.backends:
        return f"{task.name} runs on {', '.join(task.backends)} only, not on VizDoom"
    if importlib.util.find_spec("vizdoom") is None:
        return not_installed(task, "no module named vizdoom")
    return None


class VizDoomEnv(GymnasiumEnv):
    """VizDoom's games, lane i held by worker i mod W. Headless and silent; nothing restarts by itself.

    A frame is a tic of the game, 35 to its second. An action's buttons are held for ``action_repeat`` tics by the game
    itself, which draws the last of them only: the same as single tics, at four times the speed.
    """

    backend = "vizdoom"
    script = "vizdoom_worker.py"
    # A worker that is killed leaves its games behind, and on a busy machine it may take seconds to close sixteen.
    patience = 60.0

    def __init__(self, task: Task, num_lanes: int, max_frames: int, num_threads: int, action_repeat: int = 1) -> None:
        problem = vizdoom_problem(task)
        if problem is not None:
            raise (MissingDependencyError if "vizdoom" in task.backends else ConfigError)(problem)
        super().__init__(task, num_lanes, max_frames, num_threads, action_repeat)

    def _request(self) -> tuple[Any, ...]:
        scenario = self.task.scenario
        assert scenario is not None  # a task that names this backend has one
        return self.task.env_id, scenario.skill

    def _check_spaces(self, found: dict[str, Any]) -> None:
        scenario = self.task.scenario
        assert scenario is not None
        buttons = scenario.press(np.zeros((1, self.spaces.actions.size), np.float32)).shape[1]
        if buttons != found["buttons"]:
            raise ConfigError(
                f"{self.task.name}: the task presses {buttons} buttons, but {self.task.env_id} has {found['buttons']}"
            )

    def _repeat(self, actions: np.ndarray, lanes: np.ndarray) -> Step:
        scenario = self.task.scenario
        assert scenario is not None
        buttons = scenario.press(actions)
        tics = np.minimum(self.action_repeat, self.max_frames - self._frames[lanes])
        observations, rewards, terminated, held = self._asked(
            lanes, lambda places: (lanes[places].tolist(), buttons[places], tics[places].tolist())
        )
        self._frames[lanes] += held
        truncated = (self._frames[lanes] >= self.max_frames) & ~terminated
        return Step(self._observations(observations), rewards.astype(np.float32), terminated, truncated, held)
