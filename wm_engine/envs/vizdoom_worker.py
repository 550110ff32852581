"""A worker process of the vizdoom backend: it holds some lanes, each a game of its own, until its parent is gone.

Run as a file, like gymnasium_worker.py beside it, whose loop it shares: it imports VizDoom and NumPy but not this
package and torch. A game is a process again, of 20 MB, which VizDoom starts in about half a second and which is kept
over resets: a seed gives the same episode whatever was played before.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

# The limit of frames is the caller's: a game that ends itself there shows nothing of the last tic.
_NO_TIMEOUT = 0


class Lanes:
    """The games of one worker, by lane.

    scenario : a configuration file of VizDoom's own, or a path; skill : 1 to 5
    """

    def __init__(self, scenario: str, skill: int) -> None:
        import vizdoom

        self._vizdoom, self._skill = vizdoom, skill
        self._path = os.path.join(vizdoom.scenarios_path, scenario)
        self._games: dict[int, Any] = {}
        self._pictures: dict[int, np.ndarray] = {}

    def reset(self, seeds: dict[int, int]) -> np.ndarray:
        """Start these lanes on these seeds; their first pictures uint8 [n, 120, 160, 3], in order."""
        for lane, seed in seeds.items():
            if lane not in self._games:
                self._games[lane] = self._make()
            game = self._games[lane]
            game.set_seed(seed)
            game.new_episode()
            self._look(lane)
        return np.stack([self._pictures[lane] for lane in seeds])

    def step(
        self, lanes: list[int], buttons: np.ndarray, tics: list[int]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Hold buttons int [m, count] for so many tics each, or until the episode ends.

        Returns pictures [m, 120, 160, 3], rewards, terminated, and for how many tics the buttons were held. VizDoom
        shows nothing of the tic that ends an episode: the picture before it is given again.
        """
        rows = []
        for lane, pressed, count in zip(lanes, buttons.tolist(), tics, strict=True):
            game = self._games[lane]
            before = game.get_episode_time()
            reward = game.make_action(pressed, count)
            ended = game.is_episode_finished()
            if not ended:
                self._look(lane)
            rows.append((self._pictures[lane], float(reward), bool(ended), game.get_episode_time() - before))
        pictures, rewards, terminated, held = zip(*rows, strict=True)
        return np.stack(pictures), np.array(rewards), np.array(terminated), np.array(held, dtype=np.int32)

    def render(self, lane: int) -> np.ndarray:
        """Return the newest picture of a lane, as it was seen."""
        return self._pictures[lane]

    def close(self) -> None:
        """End all games."""
        while self._games:
            self._games.popitem()[1].close()

    def _look(self, lane: int) -> None:
        self._pictures[lane] = self._games[lane].get_state().screen_buffer.copy()

    def _make(self) -> Any:
        v = self._vizdoom
        game = v.DoomGame()
        game.load_config(self._path)
        # It writes its settings beside the caller otherwise.
        game.set_doom_config_path(os.path.join(os.getcwd(), "_vizdoom.ini"))
        game.set_screen_resolution(v.ScreenResolution.RES_160X120)
        game.set_screen_format(v.ScreenFormat.RGB24)  # VizDoom's own default is planes of blue, green and red
        game.set_window_visible(False)
        game.set_sound_enabled(False)
        game.set_mode(v.Mode.PLAYER)  # the game waits for each action
        game.set_doom_skill(self._skill)
        game.set_episode_timeout(_NO_TIMEOUT)
        game.init()
        return game


def start(scenario: str, skill: int) -> tuple[dict[str, Any], Lanes]:
    """Open a scenario; tells how many buttons it takes, and makes its lanes."""
    import vizdoom

    path = os.path.join(vizdoom.scenarios_path, scenario)
    if not os.path.isfile(path):
        raise ValueError(f"VizDoom has no scenario {scenario!r}, neither its own nor at that path")
    game = vizdoom.DoomGame()
    game.load_config(path)
    return {"buttons": len(game.get_available_buttons())}, Lanes(scenario, skill)


if __name__ == "__main__":
    from gymnasium_worker import serve  # type: ignore[import-not-found]  # beside this file, which runs by its path

    with tempfile.TemporaryDirectory(prefix="wm-engine-doom-") as folder:
        os.chdir(folder)
        with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
            serve(Connection(int(sys.argv[1])), int(sys.argv[2]), start)
