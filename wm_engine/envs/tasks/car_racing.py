"""CarRacing-v3: drive round a track seen from above, on three pedals, in as few frames as possible."""

from __future__ import annotations

import numpy as np

from wm_engine.envs.exploration import held_spans
from wm_engine.envs.task import Task
from wm_engine.spaces import Box, Pixels, Spaces

# gymnasium scales its drawing down with pygame's smoothscale, which takes 2 off every flat colour; EnvPool's are exact.
_DARKER = np.uint8(2)


def drive_at_random(rng: np.random.Generator, frames: int) -> np.ndarray:
    """Draw steering, gas and brake, float32 [frames, 3], that take a car along the road for a while, then off it.

    Measured over 24 tracks of 500 frames: 13 tiles an episode; on grass at frame 100 in 39 % of them, at frame 400 in
    96 %. So more and shorter episodes show V more road than few long ones.
    """
    # Every episode has a temper of its own: how sharply it steers, how much gas it gives, how often it brakes.
    sharpness, pedal, caution = rng.uniform(0.1, 0.4), rng.uniform(0.02, 0.25), rng.uniform(0.0, 0.3)
    spans = held_spans(rng, frames, mean_span=8.0)
    count = int(spans[-1]) + 1
    steer = np.clip(sharpness * rng.standard_normal(count), -1.0, 1.0)
    gas = np.clip(pedal + 0.1 * rng.standard_normal(count), 0.0, 1.0)
    braking = rng.random(count) < caution
    brake = np.where(braking, rng.uniform(0.05, 0.8, count), 0.0)
    targets = np.stack([steer, np.where(braking, 0.0, gas), brake], axis=1)[spans]
    actions = np.empty((frames, 3))
    state = np.zeros(3)
    for frame in range(frames):
        state = state + 0.3 * (targets[frame] - state)
        actions[frame] = state
    return actions.astype(np.float32)


def as_gymnasium_draws(frames: np.ndarray) -> np.ndarray:
    """Take 2 off EnvPool's colours, uint8 [n, height, width, 3], so that models learnt there serve in gymnasium."""
    return np.maximum(frames, _DARKER) - _DARKER


# What an episode's rewards are made of: 0.1 lost a frame, and 1000 / N for each of its N tiles; N is not visible. Over
# gymnasium's tracks 0 to 99 N was 242 to 350, and 1000 / N 2.86 to 4.13, 3.41 on average.
_LOST_A_FRAME = 0.1
_MEAN_PRICE = 3.41
_LEAST_GAIN, _TWO_TILES = 2.0, 5.5


def price_tiles(rewards: np.ndarray, action_repeat: int) -> np.ndarray:
    """Price an episode's tiles at their mean over tracks: rewards float32 [T] to float32 [T].

    The least gain of an episode's steps is the price of one tile, unless it could be that of two: then, and where
    nothing was gained, rewards stay as they are; so does what the last step off the field lost.
    """
    gained = rewards + _LOST_A_FRAME * action_repeat
    paid = gained > _LEAST_GAIN
    price = gained[paid].min(initial=_TWO_TILES)
    if price >= _TWO_TILES:
        return rewards
    tiles = np.round(gained / price)
    return np.where(paid, rewards + tiles * (_MEAN_PRICE - price), rewards).astype(np.float32)


task = Task(
    name="car_racing",
    env_id="CarRacing-v3",
    spaces=Spaces(Pixels(), Box(low=(-1.0, 0.0, 0.0), high=(1.0, 1.0, 1.0))),
    backends=("envpool", "gymnasium"),
    action_repeat=4,
    # The instruments over the lowest 12 of 96 rows show the score's digits, which differ between the backends, and
    # nothing that the road does not; Ha & Schmidhuber's published code leaves them out too.
    crop_rows=84,
    squash=("tanh", "sigmoid", "relu_tanh"),
    action_names=("steer", "gas", "brake"),
    solved=900.0,
    explore=drive_at_random,
    price=price_tiles,
    align=as_gymnasium_draws,
)
