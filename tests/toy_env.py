"""A tiny environment behind the protocol of wm_engine.envs, for tests that need none of the real one's time."""

import numpy as np

from wm_engine.envs import LaneEnv, Task
from wm_engine.spaces import Box, Pixels, Spaces

TOY = Task("toy", "Toy-v0", Spaces(Pixels(), Box((-1.0, 0.0, 0.0), (1.0, 1.0, 1.0))))


class ToyEnv(LaneEnv):
    """Lane i ends by itself after ``4 + seed % 5`` frames; its pictures show seed, frame and the sum of its actions.

    The reward of a frame is the first action, and -100 in the last one. ``bomb``: raise ``error`` after so many calls
    that simulate a frame.
    """

    backend = "toy"

    def __init__(self, num_lanes, max_frames=1000, action_repeat=1, bomb=None, error=KeyboardInterrupt, task=TOY):
        super().__init__(task, num_lanes, max_frames, action_repeat)
        self.bomb, self.error = bomb, error
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
        return self._pictures(lanes), rewards, terminated, np.zeros(len(lanes), dtype=bool)

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
