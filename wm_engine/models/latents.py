"""Encoded episodes: what V makes of the store, made when it is asked for and kept while there is room."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor

from wm_engine.data.sequences import EncodedEpisode
from wm_engine.data.store import RolloutStore
from wm_engine.errors import WMEngineError
from wm_engine.models.base import Vision

_ENCODED_AT_ONCE = 256
_MOST_BYTES = 512 * 2**20
# A log variance whose standard deviation is 0 in float32.
_NO_WIDTH = -300.0


class LatentCache:
    """Reads episodes through V; the least recently read ones make room where memory is short.

    An episode's latents depend on V and the episode alone, never on what else is read, so a run that was cut and
    encodes again meets the same bits.

    Parameters
    ----------
    vision : V as it is now; call :meth:`clear` when it has learnt
    most_bytes : of latents that are kept; at Z = 32 and with actions repeated four times, 512 MiB are 7 million frames
    drawn : False takes V's mean for certain: the posteriors have no width, and whatever is drawn from them is the mean
    """

    def __init__(
        self,
        vision: Vision,
        store: RolloutStore,
        device: torch.device,
        most_bytes: int = _MOST_BYTES,
        drawn: bool = True,
    ) -> None:
        self._vision, self._store, self._device, self._drawn = vision, store, device, drawn
        self._most_bytes, self._bytes = most_bytes, 0
        self._kept: OrderedDict[int, EncodedEpisode] = OrderedDict()
        self.encoded = 0
        """How many observations have been encoded so far."""

    def clear(self) -> None:
        """Forget all latents: V is another one now."""
        self._kept.clear()
        self._bytes = 0

    def read(self, index: int) -> EncodedEpisode:
        """Return episode ``index`` encoded, on the CPU. WMEngineError where V makes non-finite latents."""
        if index in self._kept:
            self._kept.move_to_end(index)
            return self._kept[index]
        episode = self._encode(index)
        self._kept[index] = episode
        self._bytes += _size(episode)
        while self._bytes > self._most_bytes and len(self._kept) > 1:
            _, dropped = self._kept.popitem(last=False)
            self._bytes -= _size(dropped)
        return episode

    def _encode(self, index: int) -> EncodedEpisode:
        record = self._store.read(index)
        observations = torch.from_numpy(record.observations)
        mu, logvar = encode(self._vision, observations, self._device)
        if not bool(torch.isfinite(mu).all() and torch.isfinite(logvar).all()):
            raise WMEngineError(
                f"vision: V encodes episode {index} to latents that are not finite. Begin again with a lower "
                "vision.learning_rate."
            )
        self.encoded += len(observations)
        if not self._drawn:
            logvar = torch.full_like(logvar, _NO_WIDTH)
        actions, rewards = self._store.actions_and_rewards(index)
        return EncodedEpisode(
            mu, logvar, torch.from_numpy(actions), torch.from_numpy(rewards), self._store.info(index).terminated
        )


@torch.inference_mode()
def encode(vision: Vision, observations: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Encode an episode's observations [T+1, ...] to means and log variances, float32 [T+1, Z] on the CPU."""
    vision.eval()
    parts = [vision.encode(part.to(device)) for part in observations.split(_ENCODED_AT_ONCE)]
    mu, logvar = (torch.cat(column).float().cpu() for column in zip(*parts, strict=True))
    return mu, logvar


def _size(episode: EncodedEpisode) -> int:
    parts = (episode.mu, episode.logvar, episode.actions, episode.rewards)
    return sum(part.numel() * part.element_size() for part in parts)
