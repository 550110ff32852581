"""The random-number contract: which numbers a dream draws, equal on every backend.

Philox4x32-10 (Salmon, Moraes, Dror & Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3"), keyed by the seed and
counted by (block, step, episode, candidate): a number belongs to its place in the dream, not to the order in which
numbers are drawn. Here stand a NumPy version, the golden one, and a torch version for any device; ``csrc/`` and
``kernels/`` hold the others.

Per rollout and step, with Q = ceil(Z/4):

====================  =============================================================
blocks 0 .. Q-1       normals: block d // 4 makes the latent dimensions of its four
block Q               ``shared``: word 0 chooses the component
blocks Q .. 2Q-1      ``per_dim``: word d mod 4 of block Q + d // 4 chooses for d
block 2Q              word 0 decides the end where ``done="sample"``
====================  =============================================================
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import torch
from torch import Tensor

from wm_engine.checks import check_int

RNG_VERSION = 1
"""Version of the contract; kept in every checkpoint. Another version draws other numbers."""

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF
_ROUNDS = 10


def key_words(seed: int) -> tuple[int, int]:
    """The Philox key of a seed: its low and its high 32 bits. ValueError outside [0, 2**64)."""
    if not 0 <= seed < 1 << 64:
        raise ValueError(f"seed must be in [0, 2**64), but was {seed}")
    return seed & _MASK, seed >> 32


def philox(counter: np.ndarray, seed: int) -> np.ndarray:
    """Philox4x32-10 of counters ``uint32 [..., 4]`` under ``seed``: words ``uint32 [..., 4]``."""
    c0, c1, c2, c3 = (counter[..., i].astype(np.uint64) for i in range(4))
    k0, k1 = key_words(seed)
    mask, shift = np.uint64(_MASK), np.uint64(32)
    for _ in range(_ROUNDS):
        p0, p1 = np.uint64(_MULTIPLIERS[0]) * c0, np.uint64(_MULTIPLIERS[1]) * c2
        c0, c1, c2, c3 = (
            (p1 >> shift) ^ c1 ^ np.uint64(k0),
            p1 & mask,
            (p0 >> shift) ^ c3 ^ np.uint64(k1),
            p0 & mask,
        )
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


def philox_torch(counter: Tensor, seed: int) -> Tensor:
    """As :func:`philox` on any device: counters ``int64 [..., 4]`` in [0, 2**32) to words ``int64 [..., 4]``."""
    c0, c1, c2, c3 = counter.unbind(-1)
    k0, k1 = key_words(seed)
    for _ in range(_ROUNDS):
        # int64 products wrap modulo 2**64, so both halves come out right although the sign bit may be set.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = ((p1 >> 32) & _MASK) ^ c1 ^ k0, p1 & _MASK, ((p0 >> 32) & _MASK) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return torch.stack([c0, c1, c2, c3], dim=-1)


def uniform(words: np.ndarray) -> np.ndarray:
    """``u = ((x >> 9) + 0.5) * 2**-23`` of 32-bit words: float64 in (0, 1), exact in float32 too."""
    return ((words >> np.uint32(9)).astype(np.float64) + 0.5) * 2.0**-23


def step_counters(blocks: Tensor, step: int, episodes: Tensor, candidates: Tensor) -> Tensor:
    """Counters ``int64 [C, E, blocks, 4]`` of one step, for candidates ``int64 [C]`` and episodes ``int64 [E]``."""
    shape = (candidates.numel(), episodes.numel(), blocks.numel())
    words = (
        blocks.view(1, 1, -1),
        torch.full((1, 1, 1), step, dtype=torch.int64, device=blocks.device),
        episodes.view(1, -1, 1),
        candidates.view(-1, 1, 1),
    )
    return torch.stack([word.expand(shape) for word in words], dim=-1)


def lane_words(seed: int, steps: Tensor, episodes: Tensor, blocks: int) -> Tensor:
    """Return the words of one step of B lanes, each at a step and of an episode of its own, int64 [B]; the candidate's
    word is 0: int64 [B, blocks, 4]."""
    shape = (len(steps), blocks)
    block = torch.arange(blocks, device=steps.device).expand(shape)
    words = (block, steps.unsqueeze(1).expand(shape), episodes.unsqueeze(1).expand(shape), torch.zeros_like(block))
    return philox_torch(torch.stack(words, dim=-1), seed)


class StepWords:
    """The random words that the steps of a dream draw, for a block of rollouts on one device.

    Parameters
    ----------
    seed : the dream's seed
    candidates : int64 [C], candidate words; a single zero under common random numbers
    episodes : int64 [E], episode indices of the whole population
    blocks : how many blocks a step draws
    """

    def __init__(self, seed: int, candidates: Tensor, episodes: Tensor, blocks: int) -> None:
        self._seed, self._candidates, self._episodes = seed, candidates, episodes
        self._blocks = torch.arange(blocks, device=episodes.device)

    def at(self, step: int) -> Tensor:
        """Return the words of one step: int64 [C, E, blocks, 4], 32 bits each."""
        return philox_torch(step_counters(self._blocks, step, self._episodes, self._candidates), self._seed)


class StepDraws:
    """The numbers that the steps of an MDN-RNN's dream draw: :class:`StepWords`, as what they stand for.

    Parameters
    ----------
    seed, candidates, episodes : as there
    latent : Z
    mixture : "shared" | "per_dim"
    dtype : of the numbers returned
    """

    def __init__(
        self, seed: int, candidates: Tensor, episodes: Tensor, latent: int, mixture: str, dtype: torch.dtype
    ) -> None:
        self._words = StepWords(seed, candidates, episodes, 2 * math.ceil(latent / 4) + 1)
        self._latent, self._mixture, self._dtype = latent, mixture, dtype

    def at(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the numbers of one step: normals [C, E, Z], component uniforms [C, E, 1 or Z], end uniforms [C, E]."""
        return numbers(self._words.at(step), self._latent, self._mixture, self._dtype)


def numbers(words: Tensor, latent: int, mixture: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Turn a step's words, int64 [..., 2Q+1, 4], into normals [..., Z], component uniforms [..., 1 or Z], end
    uniforms [...]."""
    quads = math.ceil(latent / 4)
    u = ((words >> 9).to(dtype) + 0.5) * 2.0**-23
    flat = u[..., :quads, :].flatten(-2).unflatten(-1, (-1, 2))
    radius = torch.sqrt(-2.0 * torch.log(flat[..., 0]))
    angle = (2.0 * math.pi) * flat[..., 1]
    normals = torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], dim=-1).flatten(-2)[..., :latent]
    choice = u[..., quads, :1] if mixture == "shared" else u[..., quads : 2 * quads, :].flatten(-2)[..., :latent]
    return normals, choice, u[..., 2 * quads, 0]


def derive_seed(seed: int, *words: str | int) -> int:
    """Derive a seed of 63 bits for one use of a run's ``seed``; ``words`` that read differently give another one.

    The first 8 bytes, big-endian, of the SHA-256 of the arguments' decimal or plain text joined by "/", less the
    lowest bit: ``derive_seed(1, "dream", 7)`` hashes ``b"1/dream/7"``, as do ``(1, "dream/7")`` and ``(1, "dream",
    "7")``: a word should hold no "/". It depends on nothing else, so a resumed run meets the seeds of the one that was
    cut.
    """
    digest = hashlib.sha256("/".join(map(str, (seed, *words))).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def keyed_generator(*key: int) -> torch.Generator:
    """Make a CPU generator that belongs to a tuple of non-negative integers: the same numbers whenever it is made."""
    words = np.random.SeedSequence(key).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(words[0] >> np.uint64(1)))


def episode_seeds(seed: int, count: int, stream: int = 0) -> list[int]:
    """Give ``count`` environment seeds in [0, 2^31), all different: consecutive numbers from a hashed place.

    ``seed``: any non-negative integer; ``stream`` tells apart uses of one seed, such as the rounds of a run.
    """
    words = np.random.SeedSequence([check_int("seed", seed, least=0), check_int("stream", stream, least=0)])
    first = int(words.generate_state(1, np.uint64)[0])
    return [(first + index) % 2**31 for index in range(count)]
