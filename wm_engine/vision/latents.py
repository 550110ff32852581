"""Encoded rollouts: what V makes of the rollout store, for M to learn from.

A folder of safetensors shards, each a run of consecutive episodes, named by the first one's index. Means and log
variances are kept in float16: at the 99.9th percentile the rounding is 0.8 % of the posterior's standard deviation
(docs/training.md), and 10,000 rollouts of 1,000 steps take 1.4 GB instead of 2.7 GB. Shards are read in slices, so
memory stays bounded whatever the size.
"""

from __future__ import annotations

import bisect
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from wm_engine.errors import CorruptFileError, WMEngineError
from wm_engine.progress import track
from wm_engine.rollouts import RolloutStore, split_episodes
from wm_engine.runs import fingerprint, load_tensors, save_tensors, tensors_fingerprint
from wm_engine.vision.model import VAE

_SHARD_EPISODES = 64
_ENCODE_BATCH = 256
_REMEDY = "Delete it, and the encoding will make it again."


@dataclass(frozen=True)
class LatentEpisode:
    """An encoded episode, or a run of its steps.

    mu, logvar : float32 [T+1, Z], of the frames before each step and after the last
    actions : float32 [T, A]
    rewards : float32 [T]
    terminated : whether the last of these steps ended the episode for good (a step limit does not)
    """

    mu: Tensor
    logvar: Tensor
    actions: Tensor
    rewards: Tensor
    terminated: bool

    def sample(self, generator: torch.Generator) -> Tensor:
        """A latent of every frame, drawn from its posterior: float32 [T+1, Z]."""
        return self.mu + torch.exp(0.5 * self.logvar) * torch.randn(self.mu.shape, generator=generator)


@dataclass(frozen=True)
class _Shard:
    path: Path
    first: int
    steps: list[int]
    terminated: list[bool]
    metadata: dict[str, str]


class Latents:
    """Read access to the encoded episodes of a folder."""

    def __init__(self, folder: Path, shards: Sequence[_Shard]) -> None:
        self.folder = folder
        self._shards = shards
        self._firsts = [shard.first for shard in shards]
        self._files: dict[int, Any] = {}
        self.steps = [steps for shard in shards for steps in shard.steps]
        self.latent = int(shards[0].metadata["latent"])
        self.action = int(shards[0].metadata["action"])

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Latents:
        """The encoded episodes of ``folder``.

        Raises FileNotFoundError where there are none, CorruptFileError where a shard is damaged or missing between
        others.
        """
        path = Path(folder)
        shards = [_read_header(file) for file in _shard_paths(path)]
        if not shards:
            raise FileNotFoundError(f"{path}: no encoded rollouts there; run the vision stage first")
        expected = 0
        for shard in shards:
            if shard.first != expected:
                raise CorruptFileError(
                    f"{shard.path}: begins at episode {shard.first}, but {expected} should come next. "
                    f"Delete {path}, and the encoding will make it again."
                )
            expected += len(shard.steps)
        return cls(path, shards)

    def __len__(self) -> int:
        return len(self.steps)

    def read(self, index: int) -> LatentEpisode:
        """Episode ``index`` whole."""
        return self.window(index, 0, self.steps[index])

    def window(self, index: int, start: int, stop: int) -> LatentEpisode:
        """Steps ``start`` to ``stop`` (not included) of an episode, with the latent after the last of them.

        Raises IndexError for an episode or step that is not there, CorruptFileError for a damaged shard.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"episode must be in [0, {len(self)}), but was {index}")
        if not 0 <= start < stop <= self.steps[index]:
            raise IndexError(
                f"steps of episode {index} must be within [0, {self.steps[index]}], but were [{start}, {stop})"
            )
        file, shard, place, step = self._find(index)
        frame = step + place
        frames, steps = slice(frame + start, frame + stop + 1), slice(step + start, step + stop)
        return LatentEpisode(
            mu=file.get_slice("mu")[frames].float(),
            logvar=file.get_slice("logvar")[frames].float(),
            actions=file.get_slice("actions")[steps],
            rewards=file.get_slice("rewards")[steps],
            terminated=shard.terminated[place] and stop == self.steps[index],
        )

    def rewards(self, index: int) -> Tensor:
        """The rewards of an episode, float32 [T], without its latents."""
        file, shard, place, step = self._find(index)
        return file.get_slice("rewards")[step : step + shard.steps[place]]

    def split(self, holdout: float) -> tuple[list[int], list[int]]:
        """Training and held-out episodes: the rollout store's own split, so that M is measured where V is."""
        return split_episodes(len(self), holdout)

    def fingerprint(self) -> str:
        """What these latents were made from: V's weights and the episodes."""
        return fingerprint([[shard.metadata["vision"], shard.metadata["episodes"]] for shard in self._shards])

    def _find(self, index: int) -> tuple[Any, _Shard, int, int]:
        """An episode's open file, its shard, its place there, and the shard's steps before it."""
        number = bisect.bisect_right(self._firsts, index) - 1
        shard = self._shards[number]
        place = index - shard.first
        return self._file(number), shard, place, sum(shard.steps[:place])

    def _file(self, number: int) -> Any:
        if number not in self._files:
            path = self._shards[number].path
            load_tensors(path)  # the checksum, once; slices are read unchecked
            self._files[number] = safe_open(str(path), framework="pt")
        return self._files[number]


def encode_store(
    vae: VAE,
    store: RolloutStore,
    folder: str | os.PathLike[str],
    precision: Literal["fp32", "bf16"] = "fp32",
    device: str | torch.device = "cpu",
) -> Latents:
    """Encode every episode of ``store`` that ``folder`` does not hold yet.

    Shards made by another V, at another precision or from other episodes are deleted and made anew. An episode's
    latents do not depend on which episodes are encoded with it. A kill costs the shard being made.

    Raises WMEngineError where V makes non-finite latents, ValueError where the store is empty.
    """
    if len(store) == 0:
        raise ValueError("store must hold at least one episode, but was empty")
    path = Path(folder)
    vision = fingerprint([tensors_fingerprint(vae.state_dict()), precision])
    done = _keep_valid(path, vision, store)
    if done == len(store):
        return Latents.open(path)
    device = torch.device(device)
    vae = vae.to(device).eval()
    frames = sum(store.info(index).steps + 1 for index in range(done, len(store)))
    with track(frames, "encoding", "frame") as bar:
        for first in range(done, len(store), _SHARD_EPISODES):
            episodes = range(first, min(first + _SHARD_EPISODES, len(store)))
            mus, logvars, actions, rewards = [], [], [], []
            for index in episodes:
                episode = store.read(index)
                mu, logvar = _encode(vae, torch.from_numpy(episode.frames), precision, device)
                if not bool(torch.isfinite(mu).all() and torch.isfinite(logvar).all()):
                    raise WMEngineError(
                        f"vision: V encodes episode {index} to latents that are not finite in float16. Train it again "
                        "with a lower vision.learning_rate."
                    )
                mus.append(mu)
                logvars.append(logvar)
                actions.append(torch.from_numpy(episode.actions))
                rewards.append(torch.from_numpy(episode.rewards))
                bar.update(len(episode.frames))
            infos = [store.info(index) for index in episodes]
            save_tensors(
                path / f"{first:06d}.safetensors",
                {
                    "mu": torch.cat(mus),
                    "logvar": torch.cat(logvars),
                    "actions": torch.cat(actions),
                    "rewards": torch.cat(rewards),
                    "steps": torch.tensor([info.steps for info in infos]),
                    "terminated": torch.tensor([info.terminated for info in infos]),
                },
                {
                    "kind": "latents",
                    "first": str(first),
                    "latent": str(vae.latent),
                    "action": str(actions[0].shape[1]),
                    "vision": vision,
                    "episodes": _episodes_fingerprint(store, episodes),
                },
            )
    return Latents.open(path)


def _encode(vae: VAE, frames: Tensor, precision: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """mu and logvar float16 [T+1, Z] of an episode's frames, on the CPU."""
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        parts = [vae.encode(batch.to(device)) for batch in frames.split(_ENCODE_BATCH)]
    return torch.cat([mu for mu, _ in parts]).half().cpu(), torch.cat([logvar for _, logvar in parts]).half().cpu()


def _keep_valid(folder: Path, vision: str, store: RolloutStore) -> int:
    """Delete the shards that do not belong to ``vision`` and ``store``; how many episodes the kept ones hold."""
    done = 0
    for path in _shard_paths(folder):
        try:
            shard = _read_header(path)
        except CorruptFileError:
            path.unlink()
            continue
        after = done + len(shard.steps)
        valid = (
            shard.first == done
            and after <= len(store)
            and shard.metadata["vision"] == vision
            and shard.metadata["episodes"] == _episodes_fingerprint(store, range(done, after))
        )
        if valid:
            done = after
        else:
            path.unlink()
    return done


def _episodes_fingerprint(store: RolloutStore, episodes: range) -> str:
    return fingerprint([asdict(store.info(index)) for index in episodes])


def _shard_paths(folder: Path) -> list[Path]:
    return sorted(folder.glob("[0-9]*.safetensors"))


def _read_header(path: Path) -> _Shard:
    """A shard's metadata and the lengths of its episodes, without its latents."""
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = dict(file.metadata() or {})
            steps, terminated = file.get_tensor("steps").tolist(), file.get_tensor("terminated").tolist()
        if metadata.get("kind") != "latents":
            raise ValueError(f"its kind is {metadata.get('kind')!r}")
        return _Shard(path, int(metadata["first"]), steps, terminated, metadata)
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise CorruptFileError(f"{path}: not a readable shard of encoded rollouts ({error}). {_REMEDY}") from error
