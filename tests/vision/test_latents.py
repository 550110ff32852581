"""Encoded rollouts: what is encoded, what is kept, what is refused."""

from __future__ import annotations

import pytest
import torch
from checker import check
from recordings import AFTER_THE_END, PixelVision, known_world, shades

from wm_engine.errors import CorruptFileError, WMEngineError
from wm_engine.rollouts import RolloutStore
from wm_engine.vision import latents as module
from wm_engine.vision.latents import Latents, encode_store
from wm_engine.vision.model import VAE


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(module, "_SHARD_EPISODES", 4)


@pytest.fixture
def store(tmp_path):
    return known_world(tmp_path / "rollouts", episodes=10)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def episodes_read(store, monkeypatch):
    """Have ``store`` note which episodes are read."""
    seen, read = [], store.read
    monkeypatch.setattr(store, "read", lambda index: (seen.append(index), read(index))[1])
    return seen


def test_latents_are_what_the_vae_makes_of_the_frames(tmp_path):
    store = shades(tmp_path / "rollouts", episodes=2)
    vae = VAE(5)
    latents = encode_store(vae, store, tmp_path / "latents")
    for index in range(len(store)):
        with torch.inference_mode():
            mu, logvar = vae.encode(torch.from_numpy(store.read(index).frames))
        episode = latents.read(index)
        assert episode.mu.dtype == episode.logvar.dtype == torch.float32
        check("mu", episode.mu, mu, precision="fp16")
        check("logvar", episode.logvar, logvar, precision="fp16")


def test_episodes_are_kept_whole(store, tmp_path):
    latents = encode_store(PixelVision(), store, tmp_path / "latents")
    assert len(latents) == len(store)
    assert (latents.latent, latents.action) == (2, 3)
    assert sorted(contents(tmp_path / "latents")) == [f"{first:06d}.safetensors" for first in (0, 4, 8)]
    for index in range(len(store)):
        record, episode = store.read(index), latents.read(index)
        assert latents.steps[index] == store.info(index).steps
        assert torch.equal(episode.mu[:, 0] * 32.0 + 128.0, torch.from_numpy(record.frames[:, 0, 0, 0]).float())
        assert torch.equal(episode.actions, torch.from_numpy(record.actions))
        assert torch.equal(episode.rewards, torch.from_numpy(record.rewards))
        assert torch.equal(latents.rewards(index), episode.rewards)
        assert episode.terminated == record.terminated
        assert (record.frames[-1, 0, 1, 0] == AFTER_THE_END) == record.terminated
    assert {store.info(index).terminated for index in range(len(store))} == {True, False}


def test_windows_are_parts_of_their_episode(store, tmp_path):
    latents = encode_store(PixelVision(), store, tmp_path / "latents")
    index = next(index for index in range(len(store)) if store.info(index).terminated)
    steps = latents.steps[index]
    whole = latents.read(index)
    for start, stop in ((0, 1), (2, 5), (steps - 1, steps)):
        window = latents.window(index, start, stop)
        assert torch.equal(window.mu, whole.mu[start : stop + 1])
        assert torch.equal(window.logvar, whole.logvar[start : stop + 1])
        assert torch.equal(window.actions, whole.actions[start:stop])
        assert torch.equal(window.rewards, whole.rewards[start:stop])
        assert window.terminated == (stop == steps)
    for episode, start, stop in ((len(store), 0, 1), (-1, 0, 1), (0, 3, 3), (0, -1, 2), (index, 0, steps + 1)):
        with pytest.raises(IndexError, match=r"must be (in|within) \[0, "):
            latents.window(episode, start, stop)


def test_samples_follow_the_posterior(store, tmp_path):
    episode = encode_store(PixelVision(logvar=-2.0), store, tmp_path / "latents").read(0)
    draws = torch.stack([episode.sample(torch.Generator().manual_seed(seed)) for seed in range(400)])
    deviations = (draws - episode.mu) / torch.exp(torch.tensor(-1.0))
    # 400 draws of at least 10 normals: the standard errors are under 0.016 and 0.023.
    assert abs(float(deviations.mean())) < 0.07
    assert abs(float(deviations.var()) - 1.0) < 0.1


def test_only_missing_episodes_are_encoded(store, tmp_path, monkeypatch):
    folder = tmp_path / "latents"
    encode_store(PixelVision(), store, folder)
    before = contents(folder)
    for episode in range(3):
        store.append(store.read(episode))
    seen = episodes_read(store, monkeypatch)
    assert len(encode_store(PixelVision(), store, folder)) == 13
    assert seen == [10, 11, 12]
    assert {name: data for name, data in contents(folder).items() if name in before} == before
    seen.clear()
    encode_store(PixelVision(), store, folder)
    assert seen == []


def test_another_v_or_other_episodes_are_encoded_anew(store, tmp_path, monkeypatch):
    folder = tmp_path / "latents"
    key = encode_store(PixelVision(), store, folder).fingerprint()
    seen = episodes_read(store, monkeypatch)
    other = encode_store(PixelVision(logvar=-3.0), store, folder)
    assert seen == list(range(10))
    assert other.fingerprint() != key
    assert torch.equal(other.read(0).logvar, torch.full_like(other.read(0).logvar, -3.0))

    another = known_world(tmp_path / "others", episodes=10, seed=5)
    seen = episodes_read(another, monkeypatch)
    latents = encode_store(PixelVision(logvar=-3.0), another, folder)
    assert seen == list(range(10))
    assert latents.steps == [another.info(index).steps for index in range(10)]


def test_an_interrupted_encoding_goes_on_to_the_same_files(store, tmp_path, monkeypatch):
    encode_store(PixelVision(), store, tmp_path / "whole")
    read = store.read

    def fail_at_six(index):
        if index == 6:
            raise KeyboardInterrupt
        return read(index)

    monkeypatch.setattr(store, "read", fail_at_six)
    with pytest.raises(KeyboardInterrupt):
        encode_store(PixelVision(), store, tmp_path / "cut")
    assert len(Latents.open(tmp_path / "cut")) == 4
    monkeypatch.setattr(store, "read", read)
    encode_store(PixelVision(), store, tmp_path / "cut")
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_a_truncated_shard_is_an_error_and_is_made_again(store, tmp_path):
    folder = tmp_path / "latents"
    encode_store(PixelVision(), store, folder)
    before = contents(folder)
    shard = folder / "000004.safetensors"
    shard.write_bytes(before[shard.name][:-10])
    with pytest.raises(CorruptFileError, match=r"000004\.safetensors.*Delete it"):
        Latents.open(folder)
    encode_store(PixelVision(), store, folder)
    assert contents(folder) == before


def test_a_flipped_bit_is_an_error(store, tmp_path):
    folder = tmp_path / "latents"
    encode_store(PixelVision(), store, folder)
    shard = folder / "000004.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    latents = Latents.open(folder)
    latents.read(3)
    with pytest.raises(CorruptFileError, match=r"000004\.safetensors: its contents do not match"):
        latents.read(4)


def test_missing_shards_are_an_error(store, tmp_path):
    with pytest.raises(FileNotFoundError, match="no encoded rollouts"):
        Latents.open(tmp_path / "nowhere")
    folder = tmp_path / "latents"
    encode_store(PixelVision(), store, folder)
    (folder / "000004.safetensors").unlink()
    with pytest.raises(CorruptFileError, match=r"000008\.safetensors: begins at episode 8, but 4"):
        Latents.open(folder)


def test_latents_that_are_not_finite_are_refused(store, tmp_path):
    with pytest.raises(WMEngineError, match="episode 0 to latents that are not finite"):
        encode_store(PixelVision(logvar=1e9), store, tmp_path / "latents")
    with pytest.raises(ValueError, match="at least one episode"):
        encode_store(PixelVision(), RolloutStore.open(tmp_path / "empty"), tmp_path / "latents")


def test_the_split_is_the_store_s(store, tmp_path):
    latents = encode_store(PixelVision(), store, tmp_path / "latents")
    assert latents.split(0.3) == store.split(0.3)
