"""Small runs to be played: one of pictures and a box of actions, one of vectors and discrete actions."""

from __future__ import annotations

import contextlib
import json
import struct
from pathlib import Path
from typing import Any

import torch
from recordings import little_run

from wm_engine import ControllerSpec, load_run
from wm_engine.data.store import RolloutStore
from wm_engine.envs import make_env
from wm_engine.files import file_fingerprint, write_json
from wm_engine.models.identity import Identity
from wm_engine.models.mdn_rnn import MDNRNN
from wm_engine.play.played_run import PlayedRun
from wm_engine.policies.controller import save_controller
from wm_engine.real.driving import drive, write_steps
from wm_engine.real.exploration import UniformActions
from wm_engine.run.config import make_config, resolve
from wm_engine.run.folder import RunFolder

TOY = str(Path(__file__).parents[1] / "toys" / "toy.toml")


def pictures_run(root: Path) -> PlayedRun:
    """CarRacing's spaces; the recorded episodes are made up, so that no environment repeats them."""
    return PlayedRun(load_run(little_run(root)))


def vectors_run(root: Path, end: float = -1e9) -> PlayedRun:
    """The toy task's recorded episodes, with a random M and C. ``end``: the logit of every dreamt step's end."""
    tables = resolve(TOY, []).tables()
    tables["memory"] = {"kind": "mdn_rnn", "hidden": 5, "mixtures": 2}
    tables["controller"] = {"kind": "evolution"}
    config = make_config(tables)
    folder = RunFolder(root)
    config.write(folder.config)
    store = RolloutStore.open(folder.rollouts, config.env.found().spaces)
    with contextlib.closing(make_env(config.env, 4)) as env:
        writers = {lane: store.writer(lane, "random") for lane in range(4)}
        drive(env, UniformActions(env.spaces.actions, range(4)), range(4), write_steps(writers))
    generator = torch.Generator().manual_seed(0)
    Identity(2).save(folder.vision)
    m = MDNRNN(2, 3, hidden=5, mixtures=2)
    for value in m.state_dict().values():
        value.copy_(torch.randn(value.shape, generator=generator) * 0.3)
    m.state_dict()["head.weight"][-1] = 0.0
    m.state_dict()["head.bias"][-1] = end
    m.save(folder.memory)
    spec = ControllerSpec(2, 5, 3, squash="argmax")
    save_controller(folder.controller, spec, torch.randn(spec.num_params, generator=generator))
    models = (folder.vision, folder.memory, folder.controller)
    write_json(folder.published, {"round": 0, "digests": {path.name: file_fingerprint(path) for path in models}})
    return PlayedRun(load_run(root))


def unpacked(message: bytes) -> tuple[dict[str, Any], list[bytes]]:
    """Read a message as the page does: its header, and its parts."""
    (length,) = struct.unpack("<I", message[:4])
    header = json.loads(message[4 : 4 + length])
    parts, offset = [], 4 + length
    for part in header["parts"]:
        parts.append(message[offset : offset + part["bytes"]])
        offset += part["bytes"]
    assert offset == len(message)
    return header, parts
