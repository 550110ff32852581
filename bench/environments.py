"""EnvPool's CarRacing held against gymnasium's: ``python -m bench.environments [--tracks N]`` prints what
docs/environments.md says.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from wm_engine.envs import BatchedEnv, EnvSettings, Step, make_env
from wm_engine.real.driving import Driver, Trajectory, drive
from wm_engine.real.exploration import UniformActions

BACKENDS = ("gymnasium", "envpool")
LANES = 16


class RoadFollower:
    """A driver that needs no training: steers towards the road's middle a little ahead, and brakes where it is off."""

    def act(self, frames: np.ndarray, lanes: np.ndarray) -> np.ndarray:
        """See :class:`wm_engine.real.driving.Driver`."""
        offset = np.array([self._offset(frame[38:50]) for frame in frames])
        gentle = np.abs(offset) < 0.25
        return np.stack(
            [np.clip(2.0 * offset, -1, 1), np.where(gentle, 0.15, 0.03), np.where(gentle, 0.0, 0.1)], axis=1
        ).astype(np.float32)

    @staticmethod
    def _offset(rows: np.ndarray) -> float:
        red, green, blue = np.moveaxis(rows.astype(int), 2, 0)
        road = (np.abs(red - green) < 12) & (np.abs(green - blue) < 12) & (red > 60) & (red < 160)
        columns = np.nonzero(road)[1]
        return float(columns.mean() - 31.5) / 32 if len(columns) else 0.0


class Straight:
    """Takes the same action for ever: no steering, and ``gas``."""

    def __init__(self, gas: float) -> None:
        self._action = np.array([0.0, gas, 0.0], dtype=np.float32)

    def act(self, frames: np.ndarray, lanes: np.ndarray) -> np.ndarray:
        """See :class:`wm_engine.real.driving.Driver`."""
        return np.tile(self._action, (len(lanes), 1))


@dataclass
class Driven:
    """What a driver met on some tracks: trajectories, frames [T, N, ...], and the rate in frames a second."""

    trajectories: list[Trajectory]
    frames: np.ndarray
    rate: float

    @property
    def returns(self) -> np.ndarray:
        """Returns [N], undiscounted."""
        return np.array([trajectory.total_reward for trajectory in self.trajectories])

    @property
    def tiles(self) -> np.ndarray:
        """Tiles of every track: the first step of every episode visits two of them."""
        return np.array([2000.0 / (trajectory.rewards[0] + 0.1) for trajectory in self.trajectories])


Makes = Callable[[BatchedEnv, Sequence[int]], Driver]


def uniform(env: BatchedEnv, seeds: Sequence[int]) -> Driver:
    """Make a driver that draws its actions uniformly."""
    return UniformActions(env.spaces.actions, seeds)


def race(backend: str, makes: Makes, seeds: Sequence[int], frames: int, keep_frames: bool = False) -> Driven:
    """Drive an episode on each of ``seeds``, of at most so many frames; ``makes`` gives each batch its driver."""
    driven: list[Trajectory] = []
    kept: list[np.ndarray] = []
    with open_env(backend, frames) as env:
        began = time.perf_counter()
        for first in range(0, len(seeds), LANES):
            batch = seeds[first : first + LANES]
            seen: list[np.ndarray] = []

            def keep(lanes: np.ndarray, before: np.ndarray, actions: np.ndarray, step: Step) -> None:
                if keep_frames:
                    seen.append(before)  # noqa: B023 - called within this turn of the loop

            driven += drive(env, makes(env, batch), batch, keep)
            if keep_frames:
                kept.append(np.stack(seen))
        rate = sum(trajectory.frames for trajectory in driven) / (time.perf_counter() - began)
    return Driven(driven, np.concatenate(kept, axis=1) if kept else np.zeros(0), rate)


@contextlib.contextmanager
def open_env(backend: str, frames: int) -> Iterator[BatchedEnv]:
    """Open CarRacing on a backend, every action applied to a single frame."""
    env = make_env(EnvSettings(task="car_racing", action_repeat=1), LANES, frames, backend)
    try:
        yield env
    finally:
        env.close()


def compare(tracks: int) -> None:
    """Print the comparison."""
    seeds = range(tracks)

    def row(name: str, of: dict[str, object]) -> None:
        print(f"{name:<58}" + "".join(f"{of[backend]!s:>22}" for backend in BACKENDS), flush=True)

    def mean(values: np.ndarray, digits: int = 1) -> str:
        return f"{values.mean():.{digits}f} ± {values.std(ddof=1) / np.sqrt(len(values)):.{digits}f}"

    row("", {backend: backend for backend in BACKENDS})
    gentle = {backend: race(backend, lambda *_: Straight(0.1), seeds, 80, keep_frames=True) for backend in BACKENDS}
    row("tiles a track, mean ± standard error", {b: mean(gentle[b].tiles) for b in BACKENDS})
    same = np.mean(np.abs(gentle["gymnasium"].tiles - gentle["envpool"].tiles) < 0.5)
    print(f"seeds that have tracks of equal length in both: {same:.0%}")

    # What a step pays, in tiles: the rest of the reward is -0.1.
    paid = {
        b: np.stack([(t.rewards + 0.1) * tiles / 1000 for t, tiles in zip(d.trajectories, d.tiles, strict=True)])
        for b, d in gentle.items()
    }
    visits = {b: np.rint(p) > 0 for b, p in paid.items()}
    equal = (visits["gymnasium"] == visits["envpool"]).mean()
    print(f"steps of 80, gas 0.1, at which both visit a tile or neither does: {equal:.2%}")
    rest = {b: f"{np.abs(p - np.rint(p)).max():.1e}" for b, p in paid.items()}
    row("largest distance of a step's pay from whole tiles", rest)

    late = {b: d.frames[50:].astype(np.int16) for b, d in gentle.items()}
    difference = np.abs(late["gymnasium"] - late["envpool"])
    print(f"mean difference of pixels, steps 50-80: {difference.mean():.2f} of 255")
    print(f"pixels that differ by more than 32: {(difference.max(axis=-1) > 32).mean():.1%}")
    for name, at in (("grass", np.s_[:, :, 50:60, :16]), ("road under the car", np.s_[:, :, 56:62, 28:36])):
        row(f"median colour, {name}", {b: np.median(late[b][at], axis=(0, 1, 2, 3)).astype(int) for b in BACKENDS})

    fast = {b: race(b, lambda *_: Straight(0.5), seeds[:LANES], 1000) for b in BACKENDS}
    row(
        "straight on at gas 0.5: last reward",
        {b: sorted({float(t.rewards[-1]) for t in d.trajectories}) for b, d in fast.items()},
    )
    row(
        "  terminated / truncated",
        {
            b: f"{sum(t.terminated for t in d.trajectories)} / {sum(t.truncated for t in d.trajectories)}"
            for b, d in fast.items()
        },
    )
    row("  steps", {b: mean(np.array([t.steps for t in d.trajectories])) for b, d in fast.items()})

    random = {b: race(b, uniform, seeds, 1000) for b in BACKENDS}
    row("return of uniformly random actions, 1,000 steps", {b: mean(d.returns) for b, d in random.items()})
    follower = {b: race(b, lambda *_: RoadFollower(), seeds, 1000) for b in BACKENDS}
    row("return of a road follower, 1,000 steps", {b: mean(d.returns) for b, d in follower.items()})
    row("  standard deviation", {b: f"{d.returns.std(ddof=1):.1f}" for b, d in follower.items()})
    row("frames/s, 16 lanes, with this driver", {b: f"{d.rate:.0f}" for b, d in follower.items()})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tracks", type=int, default=32, help="tracks of every comparison (default 32)")
    compare(parser.parse_args().tracks)
