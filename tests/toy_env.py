"""A tiny environment behind the protocol of wm_engine.envs, for tests that need none of the real one's time."""

import numpy as np

from wm_engine.envs import LaneEnv


class ToyEnv(LaneEnv):
    """Lane i ends by itself after ``4 + seed % 5`` steps; its frames show seed, step and the sum of its actions.

    The reward of a step is the first action, and -100 in the last one. ``bomb``: raise ``error`` at so many steps.
    """

    backend = "toy"

    def __init__(self, num_lanes, max_steps=1000, bomb=None, error=KeyboardInterrupt):
        super().__init__("Toy-v0", num_lanes)
        self.action_size = 3
        self.action_low = np.array([-1.0, 0.0, 0.0], dtype=np.float32)
        self.action_high = np.ones(3, dtype=np.float32)
        self.max_steps, self.bomb, self.error = max_steps, bomb, error
        self.calls, self.closed = 0, False

    def _reset(self, seeds):
        self.seeds = np.array(seeds)
        self.times = np.zeros(len(seeds), dtype=np.int64)
        self.sums = np.zeros(len(seeds))
        return self._pictures(np.arange(len(seeds)))

    def _step(self, actions, lanes):
        self.calls += 1
        if self.bomb is not None and self.calls > self.bomb:
            raise self.error
        self.times[lanes] += 1
        self.sums[lanes] += actions.sum(axis=1)
        terminated = self.times[lanes] >= self.length(self.seeds[lanes])
        rewards = np.where(terminated, -100.0, actions[:, 0])
        return self._pictures(lanes), rewards, terminated, (self.times[lanes] >= self.max_steps) & ~terminated

    def _pictures(self, lanes):
        values = np.stack(
            [self.seeds[lanes] % 251, self.times[lanes] * 7 % 256, np.abs(self.sums[lanes] * 50) % 256], 1
        )
        return np.ascontiguousarray(np.broadcast_to(values[:, None, None, :], (len(lanes), 64, 64, 3)).astype(np.uint8))

    def render(self, lane):
        return np.full((48, 64, 3), self.times[lane], dtype=np.uint8)

    def close(self):
        self.closed = True

    @staticmethod
    def length(seed):
        return 4 + seed % 5
