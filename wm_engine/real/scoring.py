"""Scores: real episodes without exploration noise, and a film for people."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from wm_engine.envs import Baseline, BatchedEnv, Driver, EnvSettings, Step, check_seeds, make_env
from wm_engine.errors import MissingDependencyError, StorageError
from wm_engine.files import storage_errors
from wm_engine.fleet import Fleet
from wm_engine.machine import one_torch_thread
from wm_engine.policies.base import OnLanes, Policy
from wm_engine.progress import track
from wm_engine.real.agent import Agent
from wm_engine.real.driving import DriverFactory, EpisodeBatch, PolicyDriver, Runners, Trajectory, drive
from wm_engine.real.exploration import UniformActions
from wm_engine.settings import Section

_log = logging.getLogger(__name__)


class EvaluateSettings(Section):
    """Settings of the published policy's score, at the end of a run and by ``wm-engine evaluate``."""

    free: ClassVar[frozenset[str]] = frozenset({"peers"})

    episodes: int = Field(100, ge=1, description="real episodes; 100 for a score to report")
    seed: int = Field(1_000_000, ge=0, lt=2**30, description="of the first episode; the others follow one by one")
    backend: Literal["auto", "envpool", "gymnasium"] = Field(
        "gymnasium", description="gymnasium's own environments make scores comparable with other people's"
    )
    film: bool = Field(True, description="film the first episode")
    peers: bool = Field(
        True, description="let the algorithms that the task is compared with learn too, from as many real frames"
    )

    def seeds(self) -> list[int]:
        """Return the environment's seed of every episode."""
        return check_seeds(range(self.seed, self.seed + self.episodes))


@dataclass(frozen=True)
class Scores:
    """Returns of real episodes, undiscounted.

    returns : float64 [N]; frames : int64 [N]; seeds : int64 [N]
    failed : bool [N], the policy gave a non-finite action, which was replaced by zeros
    """

    returns: np.ndarray
    frames: np.ndarray
    seeds: np.ndarray
    failed: np.ndarray

    @classmethod
    def of(cls, trajectories: list[Trajectory]) -> Scores:
        """Take the scores of trajectories, in their order."""
        return cls(
            returns=np.array([trajectory.total_reward for trajectory in trajectories], dtype=np.float64),
            frames=np.array([trajectory.frames for trajectory in trajectories], dtype=np.int64),
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

    def plain(self) -> dict[str, Any]:
        """Return everything as JSON-able values."""
        return {
            "mean": self.mean,
            "std": self.std,
            "standard_error": self.standard_error,
            "episodes": len(self.returns),
            "returns": self.returns.tolist(),
            "frames": self.frames.tolist(),
            "seeds": self.seeds.tolist(),
            "failed": int(self.failed.sum()),
        }


@dataclass(frozen=True)
class _AtRandom:
    """Makes the random policy to compare scores with."""

    seeds: list[int]

    def __call__(self, env: BatchedEnv, agent: Agent | None) -> Driver:
        return UniformActions(env.spaces.actions, self.seeds)


@dataclass(frozen=True)
class _BaselineDriver:
    """Makes the driver of a task's baseline, which needs no agent."""

    baseline: Baseline
    seeds: list[int]

    def __call__(self, env: BatchedEnv, agent: Agent | None) -> Driver:
        return self.baseline(self.seeds)


def score_policy(
    agent: Agent,
    policy: Policy,
    env: EnvSettings,
    settings: EvaluateSettings,
    fleet: Fleet | None = None,
    runners: Runners | None = None,
) -> Scores:
    """Score one policy (its lane 0) on the episodes of ``settings``, on the agent's V and M, without exploration noise.

    ``fleet``: drives batches of ``env.num_envs`` episodes, with the same scores. ``runners``: drive in place of new
    ones, on their own backend.
    """

    def driver(seeds: list[int]) -> DriverFactory:
        return PolicyDriver(OnLanes.everywhere(policy, len(seeds)), len(seeds))

    return _score("controller", driver, agent, env, settings, fleet, runners)


def score_random(env: EnvSettings, settings: EvaluateSettings, fleet: Fleet | None = None) -> Scores:
    """Score the field's usual random policy, every action drawn anew from the action space, on the same episodes."""
    return _score("random policy", _AtRandom, None, env, settings, fleet)


def score_baseline(
    name: str, baseline: Baseline, env: EnvSettings, settings: EvaluateSettings, fleet: Fleet | None = None
) -> Scores:
    """Score a baseline of the task on the same episodes; ``name`` stands on the progress bar."""
    return _score(name, functools.partial(_BaselineDriver, baseline), None, env, settings, fleet)


def score_baselines(
    env: EnvSettings, settings: EvaluateSettings, fleet: Fleet | None = None, frames: int = 0, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Score what the task names beside its random policy, as JSON-able values by name (:meth:`Scores.plain`).

    frames : real frames that each of the task's peers may learn from; 0 leaves the peers out, as ``settings.peers``
        does. ``learnt_from`` names them in a peer's scores; where its code is not installed it has ``missing`` in
        their place, which says what to install.
    seed : of what the peers draw
    """
    task = env.found()
    found: dict[str, dict[str, Any]] = {
        name: score_baseline(name, baseline, env, settings, fleet).plain() for name, baseline in task.baselines.items()
    }
    for name, peer in task.peers.items() if settings.peers and frames else ():
        try:
            learnt = peer(frames, seed)
        except MissingDependencyError as error:
            _log.warning("%s is left out: %s", name, error)
            found[name] = {"missing": str(error)}
        else:
            found[name] = score_baseline(name, learnt, env, settings, fleet).plain() | {"learnt_from": frames}
    return found


def _score(
    name: str,
    driver: Callable[[list[int]], DriverFactory],
    agent: Agent | None,
    env: EnvSettings,
    settings: EvaluateSettings,
    fleet: Fleet | None,
    kept: Runners | None = None,
) -> Scores:
    seeds, limit = settings.seeds(), env.frame_limit
    lanes = min(env.num_envs, len(seeds))
    chosen = env.model_copy(update={"backend": settings.backend})
    shares = [seeds[first : first + lanes] for first in range(0, len(seeds), lanes)]
    batches = [EpisodeBatch(share, driver(share), limit) for share in shares]
    trajectories: list[Trajectory] = []
    with (
        one_torch_thread(),
        _ready(kept, agent) if kept else contextlib.closing(Runners(chosen, agent, fleet, one_thread=True)) as runners,
        track(len(seeds) * limit, f"score the {name} ({settings.backend})", "frame") as bar,
    ):
        for driven in runners.drive(batches, bar=bar):
            trajectories += driven
            bar.total -= sum(limit - trajectory.frames for trajectory in driven)
            returns = [trajectory.total_reward for trajectory in trajectories]
            bar.set_postfix_str(f"mean return {np.mean(returns):.0f}")
    return Scores.of(trajectories)


@contextlib.contextmanager
def _ready(runners: Runners, agent: Agent | None) -> Iterator[Runners]:
    yield runners.use(agent)


def record_film(
    agent: Agent, policy: Policy, env_settings: EnvSettings, seed: int, path: str | os.PathLike[str]
) -> Trajectory:
    """Write an MP4 (H.264) of a policy driving in gymnasium: its rendering for people, at the environment's own speed.

    With an action repeated k times, every k-th frame is shown. The file appears when it is whole. Returns the episode's
    trajectory. Raises StorageError where it cannot be written.
    """
    target = Path(path)
    chosen = env_settings.model_copy(update={"backend": "gymnasium"})
    rate = max(1, round(env_settings.found().frames_per_second / env_settings.repeat))
    with (
        one_torch_thread(),
        contextlib.closing(make_env(chosen, 1, env_settings.frame_limit)) as env,
        track(env_settings.frame_limit, "film an episode", "frame") as bar,
        write_mp4(target, rate) as write,
    ):

        def picture(lanes: np.ndarray, observations: np.ndarray, actions: np.ndarray, step: Step) -> None:
            write(env.render(0))
            bar.update(int(step.frames.sum()))

        driver = PolicyDriver(policy, 1)(env, agent)
        (trajectory,) = drive(env, driver, [seed], picture)
        bar.total = trajectory.frames
    return trajectory


@contextlib.contextmanager
def write_mp4(target: Path, rate: int) -> Iterator[Callable[[np.ndarray], None]]:
    """Give a function that adds a picture uint8 [height, width, 3]; the file takes its name when the last one is in.

    ``rate``: pictures a second.
    """
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
            encoder = write_frames(str(temporary), (width, height), fps=rate, macro_block_size=2)
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
