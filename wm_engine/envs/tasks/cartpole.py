"""CartPole-v1: keep a pole upright on a cart by pushing it left or right, for 500 frames."""

from __future__ import annotations

import numpy as np

from wm_engine.envs.peers import DQN
from wm_engine.envs.task import Task
from wm_engine.spaces import Discrete, Spaces, Vector

_SPACES = Spaces(Vector(4), Discrete(2))


def push_at_random(rng: np.random.Generator, frames: int) -> np.ndarray:
    """Draw a push for every frame anew, one-hot float32 [frames, 2]: an episode of it lasts 22 frames on average."""
    return np.eye(2, dtype=np.float32)[rng.integers(2, size=frames)]


task = Task(
    name="cartpole",
    env_id="CartPole-v1",
    spaces=_SPACES,
    max_frames=500,
    # Every frame pays 1, so that a dream's reward is how long it lasts: the head of the end decides everything.
    reward="survival",
    solved=475.0,
    explore=push_at_random,
    # The numbers of stable-baselines3's own zoo for this environment, which were tuned for 50,000 frames.
    peers={
        "DQN": DQN(
            "CartPole-v1",
            {
                "learning_rate": 2.3e-3,
                "batch_size": 64,
                "buffer_size": 100_000,
                "learning_starts": 1000,
                "gamma": 0.99,
                "target_update_interval": 10,
                "train_freq": 256,
                "gradient_steps": 128,
                "exploration_fraction": 0.16,
                "exploration_final_eps": 0.04,
                "policy_kwargs": {"net_arch": [256, 256]},
            },
        )
    },
)
