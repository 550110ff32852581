"""Checkpoints of ctallec/world-models: a dream with them is that of a float64 reading, and nothing in them executes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from checker import check
from oracle import Oracle
from torch import nn

from wm_engine import DreamEngine, Starts
from wm_engine.errors import CorruptFileError
from wm_engine.foreign.ctallec import read
from wm_engine.models.blind import Blind

Z, A, H, K = 4, 3, 6, 5


def memory(cell: bool = False) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    lstm, head = nn.LSTM(A + Z, H), nn.Linear(H, (2 * Z + 1) * K + 2)
    named = {f"rnn.{name.removesuffix('_l0') if cell else name}": value for name, value in lstm.state_dict().items()}
    return named | {f"gmm_linear.{name}": value for name, value in head.state_dict().items()}


def controller() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {f"fc.{name}": value for name, value in nn.Linear(Z + H, A).state_dict().items()}


def eyes() -> nn.Module:
    """V's modules under their names there."""
    torch.manual_seed(2)
    channels, grown = (3, 32, 64, 128, 256), (1024, 128, 64, 32, 3)
    parts = {f"conv{n + 1}": nn.Conv2d(channels[n], channels[n + 1], 4, stride=2) for n in range(4)}
    encoder = nn.ModuleDict(parts | {"fc_mu": nn.Linear(1024, Z), "fc_logsigma": nn.Linear(1024, Z)})
    sizes = (5, 5, 6, 6)
    back = {f"deconv{n + 1}": nn.ConvTranspose2d(grown[n], grown[n + 1], sizes[n], stride=2) for n in range(4)}
    return nn.ModuleDict({"encoder": encoder, "decoder": nn.ModuleDict(back | {"fc1": nn.Linear(Z, 1024)})})


def save(path: Path, state: dict, **more) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": state, "epoch": 3, **more}, path)
    return path


class Theirs(Oracle):
    """The oracle with their cell's input [a, z] and their head's rows: means, deviations, logits, reward, end."""

    def lstm(self, x, h, c):
        return super().lstm(np.concatenate([x[Z:], x[:Z]]), h, c)

    def sample(self, head, normals, choice, tau):
        means, log_stds, logits = np.split(head[:-2], [K * Z, 2 * K * Z])
        return super().sample(np.concatenate([logits, means, log_stds, head[-2:]]), normals, choice, tau)


@pytest.mark.parametrize("backend", ["torch", "auto"])
@pytest.mark.parametrize("cell", [False, True], ids=["LSTM", "LSTMCell"])
def test_a_dream_is_that_of_a_float64_reading(tmp_path, backend, cell):
    m, c = memory(cell), controller()
    # A reward beside C's weights is a NumPy number where their evaluation took its mean.
    files = [save(tmp_path / "m.tar", m, precision=0.5), save(tmp_path / "c.tar", c, reward=np.float64(800.0))]
    found = read(files)
    plain = {name.replace("rnn.", "lstm.").replace("gmm_linear", "head"): value.numpy() for name, value in m.items()}
    plain = {f"{name}_l0" if cell and name.startswith("lstm") else name: value for name, value in plain.items()}
    oracle = Theirs(plain, Z, A, H, K, "shared", "zh", "identity")
    params = np.concatenate([c["fc.weight"].numpy().ravel(), c["fc.bias"].numpy()])
    z0 = np.random.default_rng(0).normal(size=(2, Z)).astype(np.float32)
    plan = {"episodes": 3, "max_steps": 10, "seed": 7, "done": "sample"}
    want = oracle.rollout(params[None], z0, **plan)
    got, peer = (
        DreamEngine(found.world, found.spec, "cpu", name).rollout(
            found.params[None], Starts(torch.from_numpy(z0)), record=True, **plan
        )
        for name in (backend, "torch")
    )
    assert np.array_equal(got.lengths.numpy(), want["lengths"])
    for part in ("z", "actions", "rewards", "returns"):
        check(part, getattr(got, part), want[part], getattr(peer, part))


def test_their_v_sees_and_shows_what_it_saw_and_showed(tmp_path):
    v = eyes()
    files = [
        save(tmp_path / name / "best.tar", state) for name, state in (("vae", v.state_dict()), ("mdrnn", memory()))
    ]
    found = read([tmp_path])
    assert set(found.files) == set(files)
    frames = torch.randint(0, 256, (2, 64, 64, 3), generator=torch.Generator().manual_seed(0)).byte()
    z = torch.randn(2, Z, generator=torch.Generator().manual_seed(1))

    def theirs(dtype):
        v.to(dtype)
        x = frames.permute(0, 3, 1, 2).to(dtype) / 255.0
        for n in range(4):
            x = v["encoder"][f"conv{n + 1}"](x).relu()
        log_sigma = v["encoder"]["fc_logsigma"](x.flatten(1))
        y = v["decoder"]["fc1"](z.to(dtype)).relu()[..., None, None]
        for n in range(4):
            y = v["decoder"][f"deconv{n + 1}"](y)
            y = y.relu() if n < 3 else y.sigmoid()
        return v["encoder"]["fc_mu"](x.flatten(1)), 2.0 * log_sigma, y.permute(0, 2, 3, 1)

    with torch.no_grad():
        want, peer = theirs(torch.float64), theirs(torch.float32)
        got = (*found.vision.encode(frames), found.vision.decode(z))
    for name, *three in zip(("mean", "log variance", "picture"), got, want, peer, strict=True):
        check(name, *three)


def test_m_alone_is_enough_and_what_is_missing_is_said(tmp_path):
    found = read([save(tmp_path / "m.tar", memory())])
    assert isinstance(found.vision, Blind)
    assert not found.params.any()
    assert sum("was there" in note for note in found.notes) == 3


class Bomb:
    """What a pickle may do when it is loaded as pickles are: make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_would_execute_is_refused_and_does_not(tmp_path):
    path = save(tmp_path / "m.tar", memory(), bomb=Bomb(tmp_path / "executed"))
    with pytest.raises(CorruptFileError, match=r"m\.tar: holds something else than weights and numbers"):
        read([path])
    assert not (tmp_path / "executed").exists()


def test_files_that_are_not_what_they_say_are_named(tmp_path):
    def refused(path, message):
        with pytest.raises(CorruptFileError, match=message):
            read([path])

    m = memory()
    refused(save(tmp_path / "a.tar", {"x": torch.zeros(1)}), r"a\.tar: should hold one of gmm_linear\.weight")
    lacking = {name: value for name, value in m.items() if name != "rnn.bias_hh_l0"}
    refused(save(tmp_path / "b.tar", lacking), r"b\.tar: should hold 'rnn\.bias_hh_l0'")
    m["rnn.weight_ih_l0"] = torch.zeros(4 * H, A + Z + 1)
    refused(save(tmp_path / "c.tar", m | {"gmm_linear.bias": torch.zeros(9)}), r"c\.tar: .*no mixture over")
    bad = memory()
    bad["rnn.bias_hh_l0"] = bad["rnn.bias_hh_l0"][1:]
    refused(save(tmp_path / "d.tar", bad), r"d\.tar: rnn\.bias_hh_l0 should have shape \[24\], but had \[23\]")
    bad = memory()
    bad["gmm_linear.bias"][0] = torch.nan
    refused(save(tmp_path / "e.tar", bad), r"e\.tar: gmm_linear\.bias should be finite")
    (tmp_path / "f.tar").write_bytes(b"no checkpoint at all")
    refused(tmp_path / "f.tar", r"f\.tar: ")
    torch.save([1, 2], tmp_path / "g.tar")
    refused(tmp_path / "g.tar", r"g\.tar: should hold 'state_dict'.* but held a list")
    refused(save(tmp_path / "h.tar", controller()), "should be given M's checkpoint")
    with pytest.raises(CorruptFileError, match=r"holds M, as .* does"):
        read([save(tmp_path / "i.tar", memory()), save(tmp_path / "j.tar", memory())])
