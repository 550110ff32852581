"""The random-number contract: known answers, the oracle's draws, and seeds that belong to their uses."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
import torch
from oracle import Oracle, philox_words, unit

from wm_engine.rng import (
    StepDraws,
    StepWords,
    derive_seed,
    episode_seeds,
    key_words,
    keyed_generator,
    numbers,
    philox,
    philox_torch,
    uniform,
)

# Known answers published with Random123 (kat_vectors, philox4x32 with 10 rounds): counter, key, words.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_known_answers(counter: tuple[int, ...], key: tuple[int, int], words: tuple[int, ...]) -> None:
    seed = key[0] | key[1] << 32
    assert key_words(seed) == key
    assert tuple(philox(np.array(counter, dtype=np.uint32), seed)) == words
    assert tuple(philox_torch(torch.tensor(counter), seed).tolist()) == words
    assert tuple(philox_words(counter, seed)) == words


def test_every_counter_word_and_seed_matters() -> None:
    base = philox(np.array([1, 2, 3, 4], dtype=np.uint32), 5)
    for word in range(4):
        other = np.array([1, 2, 3, 4], dtype=np.uint32)
        other[word] += 1
        assert (philox(other, 5) != base).all()
    assert (philox(np.array([1, 2, 3, 4], dtype=np.uint32), 5 + (1 << 32)) != base).all()


def test_uniforms_are_inside_the_open_interval_and_exact_in_float32() -> None:
    words = np.array([0, 511, 512, 0x80000000, 0xFFFFFFFF], dtype=np.uint32)
    u = uniform(words)
    assert u.min() == 2.0**-24
    assert u.max() == 1.0 - 2.0**-24
    assert (u.astype(np.float32).astype(np.float64) == u).all()
    assert [unit(int(word)) for word in words] == u.tolist()


@pytest.mark.parametrize("mixture", ["shared", "per_dim"])
@pytest.mark.parametrize("latent", [1, 3, 4, 5, 32])
def test_step_draws_are_those_of_the_oracle(mixture: str, latent: int) -> None:
    oracle = Oracle({}, latent, 1, 1, 2, mixture, "z", "tanh")
    candidates, episodes = torch.tensor([0, 7]), torch.tensor([0, 1, 9])
    draws = StepDraws(3, candidates, episodes, latent, mixture, torch.float64)
    for step in (0, 11):
        normals, choice, done = draws.at(step)
        for i, candidate in enumerate(candidates.tolist()):
            for j, episode in enumerate(episodes.tolist()):
                want = oracle.draws(3, step, episode, candidate)
                np.testing.assert_allclose(normals[i, j], want[0], rtol=1e-14, atol=1e-15)
                assert choice[i, j].tolist() == want[1].tolist()
                assert done[i, j].item() == want[2]


def test_normals_are_standard_normal() -> None:
    draws = StepDraws(0, torch.zeros(1, dtype=torch.int64), torch.arange(500), 8, "shared", torch.float64)
    sample = torch.cat([draws.at(step)[0].flatten() for step in range(5)])
    count = sample.numel()
    assert abs(sample.mean().item()) < 4 / math.sqrt(count)
    assert abs(sample.var().item() - 1.0) < 4 * math.sqrt(2.0 / count)
    assert abs((sample**4).mean().item() - 3.0) < 4 * math.sqrt(96.0 / count)


@pytest.mark.parametrize("seed", [-1, 1 << 64])
def test_a_seed_outside_64_bits_is_refused(seed: int) -> None:
    with pytest.raises(ValueError, match=r"seed must be in \[0, 2\*\*64\), but was"):
        key_words(seed)


@pytest.mark.parametrize("mixture", ["shared", "per_dim"])
def test_words_stand_for_the_draws(mixture: str) -> None:
    """Whatever a kind of world model draws, it draws from the words of its own place in the dream."""
    latent, candidates, episodes = 5, torch.tensor([0, 7]), torch.tensor([0, 1, 9])
    blocks = 2 * math.ceil(latent / 4) + 1
    words = StepWords(3, candidates, episodes, blocks).at(11)
    assert words.shape == (2, 3, blocks, 4)
    for i, candidate in enumerate(candidates.tolist()):
        for j, episode in enumerate(episodes.tolist()):
            for block in range(blocks):
                assert words[i, j, block].tolist() == list(philox_words((block, 11, episode, candidate), 3))
    for ours, theirs in zip(
        numbers(words, latent, mixture, torch.float64),
        StepDraws(3, candidates, episodes, latent, mixture, torch.float64).at(11),
        strict=True,
    ):
        assert torch.equal(ours, theirs)


def test_seeds_follow_the_documented_hash_and_differ() -> None:
    first_bytes = hashlib.sha256(b"1/dream/7").digest()[:8]
    assert derive_seed(1, "dream", 7) == int.from_bytes(first_bytes, "big") // 2
    seeds = {derive_seed(seed, kind, g) for seed in range(3) for kind in ("dream", "tracks") for g in range(100)}
    assert len(seeds) == 600
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(1, "a/b") == derive_seed(1, "a", "b"), "as documented: the joined text decides"


def test_keyed_generators_depend_on_every_part_of_the_key() -> None:
    def draw(*key: int) -> torch.Tensor:
        return torch.randn(4, generator=keyed_generator(*key))

    assert torch.equal(draw(1, 2), draw(1, 2))
    assert not any(torch.equal(draw(1, 2), draw(*key)) for key in ((2, 1), (1, 3), (0, 2), (1, 2, 1), (1,)))


def test_seeds_of_episodes_differ_and_follow_from_their_arguments() -> None:
    seeds = episode_seeds(7, 5000, 2)
    assert len(set(seeds)) == 5000
    assert seeds == episode_seeds(7, 6000, 2)[:5000]
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert not set(seeds) & set(episode_seeds(7, 5000, 3))
    assert not set(seeds) & set(episode_seeds(8, 5000, 2))
    assert len(set(episode_seeds(2**62 + 11, 10))) == 10  # of any size, as runs derive them
    with pytest.raises(ValueError, match="seed must be at least 0"):
        episode_seeds(-1, 3)
