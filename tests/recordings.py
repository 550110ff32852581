"""Small recordings with known contents, and a little run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from wm_engine import MDNRNN, ControllerSpec
from wm_engine.data.sequences import EncodedEpisode
from wm_engine.data.store import Episode, RolloutStore
from wm_engine.files import file_fingerprint, write_json
from wm_engine.models.latents import LatentCache
from wm_engine.models.vae import VAE
from wm_engine.policies.controller import save_controller
from wm_engine.run.config import resolve
from wm_engine.run.folder import RunFolder
from wm_engine.spaces import Box, Pixels, Spaces

CAR = Spaces(Pixels(), Box((-1.0, 0.0, 0.0), (1.0, 1.0, 1.0)))
ACTIONS = 3
LATENT = 2
AFTER_THE_END = 255


class PixelVision(nn.Module):
    """Stands in for V: the first two pixels of a frame are its latent, (value - 128) / 32, exact in float16."""

    latent = LATENT

    def __init__(self, logvar: float = -6.0) -> None:
        super().__init__()
        self.register_buffer("log_variance", torch.tensor(logvar))

    def encode(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        mu = (frames[:, 0, :LATENT, 0].float() - 128.0) / 32.0
        return mu, self.log_variance.expand_as(mu)


def known_world(folder: Path, episodes: int = 12, seed: int = 0, number: int = 0) -> RolloutStore:
    """Episodes whose next latent, reward and end follow from the present latent and the action.

    A position moves by 16 times the first action, 32 pixels making one unit of the latent; its speed is the reward;
    beyond pixel 190 the episode ends. The second latent is -1 throughout, and, after the end, AFTER_THE_END.
    """
    store = RolloutStore.open(folder, CAR, chunk_steps=16)
    rng = np.random.default_rng(seed)
    for index in range(episodes):
        position, positions, actions = 128, [], []
        while len(actions) < 60 and position <= 190:
            positions.append(position)
            action = rng.uniform(*CAR.actions.bounds).astype(np.float32)
            actions.append(action)
            position = max(position + round(16.0 * float(action[0]) + 2.0), 64)
        positions.append(min(position, 255))
        terminated = position > 190
        frames = np.zeros((len(positions), 64, 64, 3), dtype=np.uint8)
        frames[:, 0, 0, 0] = positions
        frames[:, 0, 1, 0] = 96
        if terminated:
            frames[-1, 0, 1, 0] = AFTER_THE_END
        rewards = np.diff(np.array(positions, dtype=np.float32)) / 16.0
        store.append(Episode(frames, np.stack(actions), rewards, terminated, not terminated, index, "test", number))
    return store


def shades(folder: Path, episodes: int = 5, steps: int = 12, seed: int = 0, number: int = 0) -> RolloutStore:
    """Frames whose upper and lower halves have a random shade each: something for V to learn."""
    store = RolloutStore.open(folder, CAR, chunk_steps=16)
    rng = np.random.default_rng(seed)
    for index in range(episodes):
        frames = np.empty((steps + 1, 64, 64, 3), dtype=np.uint8)
        for frame in frames:
            frame[:32], frame[32:] = rng.integers(0, 256, 2)
        zeros = np.zeros((steps, ACTIONS), dtype=np.float32)
        store.append(Episode(frames, zeros, zeros[:, 0], False, True, index, "test", number))
    return store


def encoded(vision: nn.Module, store: RolloutStore) -> list[EncodedEpisode]:
    """Read all episodes of a store through V."""
    cache = LatentCache(vision, store, torch.device("cpu"))  # type: ignore[arg-type]
    return [cache.read(index) for index in store.episodes()]


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    """Whether two models are equal to the bit."""
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def little_run(root: Path) -> Path:
    """A run that has published round 0: random V, M and C, with spreads that leave something to rank."""
    folder = RunFolder(root)
    known_world(folder.rollouts)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        VAE(LATENT).save(folder.vision)
    m, generator = MDNRNN(LATENT, ACTIONS, hidden=7, mixtures=2, mixture="shared"), torch.Generator().manual_seed(1)
    for value in m.state_dict().values():
        value.copy_(torch.randn(value.shape, generator=generator) * 0.5)
    m.state_dict()["head.bias"][-1] = -1e9  # no end
    m.save(folder.memory)
    spec = ControllerSpec(LATENT, 7, ACTIONS, squash=("tanh", "sigmoid", "relu_tanh"))
    save_controller(folder.controller, spec, torch.randn(spec.num_params, generator=generator))
    sizes = [f"vision.latent={LATENT}", "memory.hidden=7", "memory.mixtures=2", 'memory.mixture="shared"']
    resolve("smoke", sizes).write(folder.config)
    published = {
        "round": 0,
        "task": "car_racing",
        "trained_in": "dream",
        "chosen": "last",
        "judged_rounds": 0,
        "judged": None,
        "learning_frames": RolloutStore.open(folder.rollouts).total_frames(),
        "judged_frames": 0,
        "minutes": 1.0,
        "digests": {path.name: file_fingerprint(path) for path in (folder.vision, folder.memory, folder.controller)},
    }
    write_json(folder.published, published)
    return root
