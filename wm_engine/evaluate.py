"""Evaluation: real episodes, their score, and a video for people."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from wm_engine.agent import Agent
from wm_engine.collect import BrownianPolicy, UniformPolicy
from wm_engine.envs import BatchedEnv, EnvSettings, Step, check_seeds, make_env
from wm_engine.errors import StorageError
from wm_engine.fleet import Fleet
from wm_engine.machine import one_torch_thread
from wm_engine.progress import track
from wm_engine.runs import storage_errors
from wm_engine.settings import Section
from wm_engine.waves import Crews, Drivers, Policy, Trajectory, Wave, drive

FRAMES_PER_SECOND = 50  # CarRacing's own clock


class EvaluateSettings(Section):
    """How a controller is scored."""

    episodes: int = Field(100, ge=1, description="tracks; 100 for a score to report")
    max_steps: int = Field(1000, ge=1, description="an episode is cut after so many steps")
    seed: int = Field(1_000_000, ge=0, lt=2**30, description="of the first track; the others follow one by one")
    backend: Literal["auto", "envpool", "gymnasium"] = Field(
        "gymnasium", description="gymnasium's own CarRacing makes scores comparable with other people's"
    )

    def seeds(self) -> list[int]:
        """The environment's seed of every episode."""
        return check_seeds(range(self.seed, self.seed + self.episodes))


@dataclass(frozen=True)
class Scores:
    """Returns of real episodes, undiscounted.

    returns : float64 [N]; lengths : int64 [N], in steps; seeds : int64 [N], of the tracks
    failed : bool [N], the controller gave a non-finite action, which was replaced by zeros
    """

    returns: np.ndarray
    lengths: np.ndarray
    seeds: np.ndarray
    failed: np.ndarray

    @classmethod
    def of(cls, trajectories: list[Trajectory]) -> Scores:
        """The scores of trajectories, in their order."""
        return cls(
            returns=np.array([trajectory.total_reward for trajectory in trajectories], dtype=np.float64),
            lengths=np.array([trajectory.steps for trajectory in trajectories], dtype=np.int64),
            seeds=np.array([trajectory.seed for trajectory in trajectories], dtype=np.int64),
            failed=np.array([trajectory.failed for trajectory in trajectories], dtype=bool),
        )

    @property
    def mean(self) -> float:
        return float(self.returns.mean())

    @property
    def std(self) -> float:
        """Standard deviation of the episodes' returns (N - 1 in the denominator; 0 for a single episode)."""
        return float(self.returns.std(ddof=1)) if len(self.returns) > 1 else 0.0

    @property
    def standard_error(self) -> float:
        """Of the mean: std / sqrt(N)."""
        return self.std / float(np.sqrt(len(self.returns)))


@dataclass(frozen=True)
class _OneCandidate:
    """Drivers of a score: one candidate of the crew's agent in every lane."""

    candidate: int
    lanes: int

    def __call__(self, env: BatchedEnv, agent: Agent | None) -> Policy:
        if agent is None:
            raise ValueError("scoring a candidate needs a crew with an agent, but it had none")
        agent.begin(np.full(self.lanes, self.candidate, dtype=np.int64))
        return agent


@dataclass(frozen=True)
class _AtRandom:
    """Drivers of a score to compare with."""

    policy: Literal["uniform", "brownian"]
    env_id: str
    seed: int
    seeds: list[int]
    max_steps: int

    def __call__(self, env: BatchedEnv, agent: Agent | None) -> Policy:
        if self.policy == "uniform":
            return UniformPolicy(env, self.seeds)
        return BrownianPolicy(self.env_id, env, self.seed, self.seeds, self.max_steps)


def evaluate_agent(
    agent: Agent, env_settings: EnvSettings, settings: EvaluateSettings, candidate: int = 0, fleet: Fleet | None = None
) -> Scores:
    """Score one candidate of ``agent`` on the tracks of ``settings``, without exploration noise.

    ``fleet``: drives the waves of ``env_settings.num_envs`` tracks, with the same scores.
    """

    def drivers(seeds: list[int]) -> Drivers:
        return _OneCandidate(candidate, len(seeds))

    return _evaluate("controller", drivers, agent, env_settings, settings, fleet)


def evaluate_random(
    env_settings: EnvSettings,
    settings: EvaluateSettings,
    policy: Literal["uniform", "brownian"] = "uniform",
    fleet: Fleet | None = None,
) -> Scores:
    """Score a random policy on the same tracks.

    ``policy``: "uniform" draws every action anew from the action space, the field's usual random policy; "brownian" is
    the one that collects. ``fleet``: as for an agent.
    """

    def drivers(seeds: list[int]) -> Drivers:
        return _AtRandom(policy, env_settings.id, settings.seed, seeds, settings.max_steps)

    return _evaluate("random policy", drivers, None, env_settings, settings, fleet)


def _evaluate(
    name: str,
    drivers: Callable[[list[int]], Drivers],
    agent: Agent | None,
    env_settings: EnvSettings,
    settings: EvaluateSettings,
    fleet: Fleet | None,
) -> Scores:
    seeds = settings.seeds()
    lanes = min(env_settings.num_envs, len(seeds))
    chosen = env_settings.model_copy(update={"backend": settings.backend})
    shares = [seeds[first : first + lanes] for first in range(0, len(seeds), lanes)]
    waves = [Wave(share, drivers(share), settings.max_steps) for share in shares]
    trajectories: list[Trajectory] = []
    with (
        one_torch_thread(),
        contextlib.closing(Crews(chosen, agent, fleet, one_thread=True)) as crews,
        track(len(seeds) * settings.max_steps, f"evaluate the {name} ({settings.backend})", "frame") as bar,
    ):
        for driven in crews.drive(waves, lambda wave: {}, bar):
            trajectories += driven
            bar.total -= sum(settings.max_steps - trajectory.steps for trajectory in driven)
            returns = [trajectory.total_reward for trajectory in trajectories]
            bar.set_postfix_str(f"mean return {np.mean(returns):.0f}")
    return Scores.of(trajectories)


def record_video(
    agent: Agent,
    env_settings: EnvSettings,
    seed: int,
    path: str | os.PathLike[str],
    max_steps: int = 1000,
    candidate: int = 0,
) -> Trajectory:
    """Write an MP4 (H.264) of one candidate driving in gymnasium: its rendering for people, at its own speed.

    The file appears when it is whole. Returns the episode's trajectory. Raises StorageError where it cannot be written.
    """
    target = Path(path)
    chosen = env_settings.model_copy(update={"backend": "gymnasium"})
    with (
        one_torch_thread(),
        contextlib.closing(make_env(chosen, 1, max_steps)) as env,
        track(max_steps, "record a video", "frame") as bar,
        _mp4(target) as write,
    ):

        def picture(lanes: np.ndarray, frames: np.ndarray, actions: np.ndarray, step: Step) -> None:
            write(env.render(0))
            bar.update(1)

        agent.begin(np.array([candidate]))
        (trajectory,) = drive(env, agent, [seed], picture)
        bar.total = trajectory.steps
    return trajectory


@contextlib.contextmanager
def _mp4(target: Path) -> Iterator[Callable[[np.ndarray], None]]:
    """A function that adds a picture uint8 [height, width, 3]; the file takes its name when the last one is in."""
    # Here, not above: the import looks for a program, and only videos need it.
    from imageio_ffmpeg import count_frames_and_secs, write_frames

    temporary = target.with_name(f".{target.stem}.{os.getpid()}.tmp{target.suffix}")
    encoder: Generator[None, bytes | None, None] | None = None
    pictures = 0

    def write(picture: np.ndarray) -> None:
        nonlocal encoder, pictures
        if encoder is None:
            height, width = picture.shape[:2]
            # 4:2:0 colour is what browsers play; it wants even sizes, nothing wants multiples of 16.
            encoder = write_frames(str(temporary), (width, height), fps=FRAMES_PER_SECOND, macro_block_size=2)
            encoder.send(None)
        encoder.send(np.ascontiguousarray(picture).tobytes())
        pictures += 1

    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield write
            if encoder is not None:
                encoder.close()
            # The encoder's exit status is not told: a full disk shows in what it left behind.
            if count_frames_and_secs(str(temporary))[0] != pictures:
                raise StorageError(f"{target}: the video was not written whole. Is there space left on the disk?")
            os.replace(temporary, target)
        finally:
            if encoder is not None:
                encoder.close()
            temporary.unlink(missing_ok=True)
