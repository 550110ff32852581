"""VizDoom's TakeCover: dodge fireballs, left and right, for as long as possible (Ha & Schmidhuber 2018, section 4)."""

from __future__ import annotations

import numpy as np

from wm_engine.envs.exploration import held_spans
from wm_engine.envs.task import Scenario, Task
from wm_engine.spaces import Box, Pixels, Spaces

_THIRD = 1.0 / 3.0
_TICS_A_TURN = 100


def press_by_thirds(actions: np.ndarray) -> np.ndarray:
    """Say which of MOVE_LEFT and MOVE_RIGHT actions [m, 1] in [-1, 1] hold down: int64 [m, 2].

    The lowest third is left, the highest right, between them the player stays.
    """
    return np.concatenate([actions < -_THIRD, actions > _THIRD], axis=1).astype(np.int64)


def run_about(rng: np.random.Generator, frames: int) -> np.ndarray:
    """Draw left, stay or right, float32 [frames, 1], each held for a while.

    How long is drawn for every plan anew, 4 to 64 tics on average: those that hardly move are soon dead, those that
    run far see the walls and the fireballs that miss.
    """
    spans = held_spans(rng, frames, mean_span=float(2.0 ** rng.uniform(2.0, 6.0)))
    return rng.uniform(-1.0, 1.0, (int(spans[-1]) + 1, 1))[spans].astype(np.float32)


def run_to_and_fro(rng: np.random.Generator, frames: int) -> np.ndarray:
    """Run left and right by turns, float32 [frames, 1], without a look at anything: what a policy has to beat.

    100 tics a turn: the best of the lengths that were tried (docs/worlds/takecover.md).
    """
    turns = np.arange(frames) // _TICS_A_TURN
    return np.where(turns % 2 == 0, -1.0, 1.0).astype(np.float32)[:, None]


task = Task(
    name="takecover",
    env_id="take_cover.cfg",
    spaces=Spaces(Pixels(), Box(low=(-1.0,), high=(1.0,))),
    backends=("vizdoom",),
    max_frames=2100,
    # Of 120 rows: the far wall with the monsters and every fireball on its way; the rest is bare floor and ceiling.
    crop_rows=(30, 90),
    reward="survival",
    squash=("tanh",),
    frames_per_second=35,
    solved=750.0,
    extra="doom",
    explore=run_about,
    plans={"left and right": run_to_and_fro},
    scenario=Scenario(skill=4, press=press_by_thirds),
)
