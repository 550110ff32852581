"""The paper's JSON files: a dream with the imported M and C is that of a float64 reading of the same files."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from checker import check
from oracle import Oracle, sigmoid

from wm_engine import DreamEngine, Starts
from wm_engine.errors import ConfigError, CorruptFileError
from wm_engine.foreign.base import find_format
from wm_engine.foreign.ha2018 import read, vision_of
from wm_engine.models.blind import Blind

# A folder with what the authors published for CarRacing; no part of this project.
PUBLISHED = os.environ.get("WM_ENGINE_HA2018", "")
STEPS = 12


@dataclass
class TensorFlowCell(Oracle):
    """The oracle, with what TensorFlow computes in place of torch's gates, and the head's rows as they stand there."""

    def __post_init__(self) -> None:
        self.kernel, self.bias, head, offset = (np.asarray(self.weights[name], float) / 1e4 for name in self.weights)
        ends = head.shape[1] % 3
        # What the oracle wants last: a reward of zero, and an end that never comes where none is predicted.
        zero = np.zeros((len(head), 1))
        weight = [head[:, ends:], zero, head[:, :1] if ends else zero]
        bias = [offset[ends:], [0.0], offset[:1] if ends else [-1.0]]
        self.w = {"head.weight": np.concatenate(weight, axis=1).T, "head.bias": np.concatenate(bias)}

    def lstm(self, x, h, c):
        restart = np.zeros(len(self.kernel) - len(x) - len(h))
        i, j, f, o = np.split(np.concatenate([x, restart, h]) @ self.kernel + self.bias, 4)
        c = c * sigmoid(f + 1.0) + sigmoid(i) * np.tanh(j)
        return np.tanh(c) * sigmoid(o), c

    def sample(self, head, normals, choice, tau):
        parts = head[:-2].reshape(self.latent, 3, self.mixtures).transpose(1, 0, 2)
        return super().sample(np.concatenate([parts.ravel(), head[-2:]]), normals, choice, tau)


def write(folder: Path, name: str, value) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(value))
    return folder


def whole(array) -> list:
    return np.round(np.asarray(array) * 10_000).astype(int).tolist()


def car(folder: Path, latent=5, hidden=6, mixtures=5, action=3) -> Path:
    """CarRacing's files, small: the head first, no end, a controller on [z, h]."""
    rng = np.random.default_rng(0)
    head = [rng.normal(size=(hidden, 3 * latent * mixtures)) * 0.4, rng.normal(size=3 * latent * mixtures) * 0.3]
    cell = [rng.normal(size=(latent + action + hidden, 4 * hidden)) * 0.4, rng.normal(size=4 * hidden) * 0.2]
    write(folder / "rnn", "rnn.json", [whole(part) for part in (*head, *cell)])
    write(folder, "initial_z.json", [whole(rng.normal(size=(2, latent))), whole(rng.normal(size=(2, latent)))])
    c = rng.normal(size=action + (latent + hidden) * action).round(4).tolist()
    write(folder / "log", "carracing.cma.16.64.best.json", [c, 906.1])
    return folder


def doom(folder: Path, latent=4, hidden=6, mixtures=5) -> Path:
    """Doom's files, small: the head last, its first column the end's; a controller on [z, c, h] without biases."""
    rng = np.random.default_rng(1)
    cell = [rng.normal(size=(latent + 2 + hidden, 4 * hidden)) * 0.4, rng.normal(size=4 * hidden) * 0.2]
    head = [
        rng.normal(size=(hidden, 3 * latent * mixtures + 1)) * 0.4,
        rng.normal(size=3 * latent * mixtures + 1) * 0.3,
    ]
    head[1][0] = -0.4
    write(folder, "rnn.json", [whole(part) for part in (*cell, *head)])
    write(folder, "doom.best.json", [rng.normal(size=latent + 2 * hidden).round(4).tolist(), 1000])
    return folder


def dreams_alike(folder: Path, head_first: bool, backend: str) -> None:
    """Compare a recorded dream with the oracle's, which reads the same files by itself."""
    found = read([folder])
    arrays = json.loads(next(folder.rglob("rnn.json")).read_text())
    order = arrays[2:] + arrays[:2] if head_first else arrays
    raw = np.asarray(json.loads(next(folder.rglob("*.best.json")).read_text())[0])
    spec, m = found.spec, found.world
    Z, H, A = m.latent, m.hidden, m.action
    if head_first:
        theirs = np.concatenate([raw[A:].reshape(-1, A).T.ravel(), raw[:A]])
    else:
        theirs = np.concatenate([raw[:Z], raw[Z + H :], raw[Z : Z + H], [0.0]])
    oracle = TensorFlowCell(
        dict(enumerate(order)), Z, A, H, m.mixtures, "per_dim", spec.features, spec.squash
    )  # fmt: skip
    z0 = np.random.default_rng(3).normal(size=(3, Z)).astype(np.float32)
    plan = {"episodes": 3, "max_steps": STEPS, "seed": 5, "reward": "survival"}
    want = oracle.rollout(theirs[None], z0, **plan)
    starts = Starts(torch.from_numpy(z0))
    got, peer = (
        DreamEngine(m, spec, "cpu", name).rollout(found.params[None], starts, record=True, **plan)
        for name in (backend, "torch")
    )
    assert np.array_equal(got.lengths.numpy(), want["lengths"])
    for part in ("z", "actions", "returns"):
        check(part, getattr(got, part), want[part], getattr(peer, part))


@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_a_dream_of_the_road_is_that_of_a_float64_reading(tmp_path, backend):
    dreams_alike(car(tmp_path), True, backend)


@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_a_dream_of_doom_is_that_of_a_float64_reading(tmp_path, backend):
    dreams_alike(doom(tmp_path), False, backend)


@pytest.mark.skipif(not PUBLISHED, reason="WM_ENGINE_HA2018 names no folder of the authors' own files")
def test_the_authors_own_files_dream_as_a_float64_reading_of_them():
    found = read([Path(PUBLISHED)])
    assert (found.world.latent, found.world.hidden, found.world.mixtures, found.spec.num_params) == (32, 256, 5, 867)
    assert found.spec.squash == ("tanh", "tanh01", "relu_tanh")
    dreams_alike(Path(PUBLISHED), True, "auto")


def test_what_is_not_there_is_said(tmp_path):
    found = read([car(tmp_path)])
    assert isinstance(found.vision, Blind)
    assert found.start_mean.shape == (2, 5)
    assert any("no V was there" in note for note in found.notes)
    assert any("no reward" in note for note in found.notes)
    assert not any("no C was there" in note for note in found.notes)
    next(tmp_path.rglob("*.best.json")).unlink()
    (tmp_path / "initial_z.json").unlink()
    found = read([tmp_path])
    assert not found.params.any()
    assert any("no C was there" in note for note in found.notes)
    assert any("N(0, 1)" in note for note in found.notes)


def test_a_hidden_layer_of_the_controller_is_read(tmp_path):
    folder, (Z, U, A) = car(tmp_path), (5, 4, 3)
    raw = np.random.default_rng(2).normal(size=(Z + 1) * U + (U + 1) * A)
    write(folder / "log", "carracing.cma.16.64.best.json", [raw.tolist()])
    found = read([folder])
    assert (found.spec.features, found.spec.hidden_units) == ("z", U)
    z = np.random.default_rng(4).normal(size=Z)
    hidden = np.tanh(z @ raw[U : U * (Z + 1)].reshape(Z, U) + raw[:U])
    out = raw[U * (Z + 1) :]
    want = np.tanh(hidden @ out[A:].reshape(U, A) + out[:A])
    want = np.array([want[0], (want[1] + 1) / 2, max(want[2], 0.0)])
    empty = np.zeros(found.world.hidden)
    spec = found.spec
    oracle = Oracle({}, Z, A, found.world.hidden, 5, "per_dim", spec.features, spec.squash, spec.hidden_units)
    check("action", oracle.act(found.params.numpy(), z, empty, empty), want, precision="fp32")


def test_a_v_sees_what_tensorflow_s_formulas_see():
    """One frame through the encoder in NumPy, as the arrays stand in the file: NHWC, kernels [h, w, in, out]."""
    rng, latent = np.random.default_rng(0), 3
    channels, grown = (3, 32, 64, 128, 256), (1024, 128, 64, 32, 3)
    arrays = []
    for before, after in pairwise(channels):
        arrays += [rng.normal(size=(4, 4, before, after)) / np.sqrt(8 * before), rng.normal(size=after) * 0.1]
    for _ in range(2):
        arrays += [rng.normal(size=(1024, latent)) / 32, rng.normal(size=latent)]
    arrays += [rng.normal(size=(latent, 1024)), rng.normal(size=1024)]
    for (before, after), size in zip(pairwise(grown), (5, 5, 6, 6), strict=True):
        arrays += [rng.normal(size=(size, size, after, before)) / np.sqrt(2 * before), rng.normal(size=after) * 0.1]
    vision = vision_of(Path("vae.json"), arrays, latent)
    frame = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    x = frame / 255.0
    for layer in range(4):
        kernel, bias = arrays[2 * layer : 2 * layer + 2]
        windows = np.lib.stride_tricks.sliding_window_view(x, (4, 4), axis=(0, 1))[::2, ::2]
        x = np.maximum(np.tensordot(windows, kernel, axes=[[3, 4, 2], [0, 1, 2]]) + bias, 0.0)
    want = [x.ravel() @ arrays[place] + arrays[place + 1] for place in (8, 10)]
    with torch.no_grad():
        got = vision.encode(torch.from_numpy(frame)[None])
        exact = vision.double().encode(torch.from_numpy(frame)[None])
    for name, ours, double, theirs in zip(("mean", "log variance"), got, exact, want, strict=True):
        check(name, ours[0], theirs, double[0], precision="fp32")
    z = rng.normal(size=latent)
    y = (z @ arrays[12] + arrays[13])[None, None]
    for layer in range(4):
        kernel, bias = arrays[14 + 2 * layer : 16 + 2 * layer]
        size, high = kernel.shape[0], y.shape[0]
        out = np.zeros((2 * (high - 1) + size, 2 * (high - 1) + size, kernel.shape[2])) + bias
        for row, column in np.ndindex(high, high):
            out[2 * row : 2 * row + size, 2 * column : 2 * column + size] += kernel @ y[row, column]
        y = np.maximum(out, 0.0) if layer < 3 else sigmoid(out)
    with torch.no_grad():
        check("picture", vision.decode(torch.from_numpy(z)[None])[0], y, precision="fp32")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("rnn.json", [[1]], "should hold an LSTM's kernel and bias and a head's weights and biases, but held 1 parts"),
        ("rnn.json", {"lstm": 1}, "but held a dict"),
        ("rnn.json", [[[1, 2]], [1], [[1]], ["a"]], "part 3 of .* is no array of numbers"),
        ("rnn.json", [[[1, 2], [3]], [1], [[1]], [1]], "part 0 of .* is no array of numbers"),
        ("rnn.json", [[[1]], [1], [[1]], [1]], r"should hold a kernel \[Z\+A\+H, 4H\]"),
        ("initial_z.json", [[[1, 2]], [[1]]], r"the log variances should have shape \[1, 2\], but had \[1, 1\]"),
        ("initial_z.json", [[[1] * 7], [[1] * 7]], "no mixture over 7 latent dimensions"),
        ("x.best.json", [[1.0, 2.0]], "should hold 18 parameters of a controller on z or 36 on"),
        ("x.best.json", {"no": 1}, "should begin with a flat list"),
    ],
)
def test_a_file_that_is_not_what_it_says_is_named(tmp_path, name, value, message):
    folder = car(tmp_path)
    for path in folder.rglob("*.best.json" if "best" in name else name):
        path.unlink()
    with pytest.raises(CorruptFileError, match=rf"json: .*{message}"):
        read([write(folder, name, value)])


def test_a_folder_without_m_or_with_two_of_it_and_an_unknown_format_are_refused(tmp_path):
    with pytest.raises(CorruptFileError, match=r"should hold rnn\.json"):
        read([write(tmp_path / "a", "vae.json", [])])
    folder = car(tmp_path / "b")
    with pytest.raises(CorruptFileError, match=r"should hold one rnn\.json, but holds"):
        read([write(folder, "rnn.json", [])])
    with pytest.raises(CorruptFileError, match="should be given one folder"):
        read([folder / "initial_z.json"])
    (folder / "rnn.json").write_text("{")
    with pytest.raises(ConfigError, match="nearest known one is 'ha2018'"):
        find_format("ha18")
