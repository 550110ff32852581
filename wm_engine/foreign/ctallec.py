"""Checkpoints of the repository ctallec/world-models: ``torch.save`` of ``{"state_dict": ..., ...}`` for V, M and C.

They are pickles, and are read with ``weights_only=True``: what would execute anything is refused.

- M: ``rnn.*`` is an LSTM on [a, z], gates i, f, g, o; ``gmm_linear.*`` its head with K·Z means, component by component,
  K·Z log deviations, K logits, reward and the end's logit: one component for the whole latent.
- V: ``encoder.*`` and ``decoder.*``; it gives the log of the standard deviation, where this one has that of the
  variance, and has a ReLU after the decoder's dense layer.
- C: ``fc.*``, linear on [z, h], without a squash: the environment clips its actions.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wm_engine.errors import CorruptFileError
from wm_engine.foreign.base import Foreign, blind, checked, no_controller, standard_starts
from wm_engine.models.mdn_rnn import MDNRNN
from wm_engine.models.vae import VAE
from wm_engine.models.vae_relu import ReluVAE
from wm_engine.policies.controller import ControllerSpec

_MIXTURES = 5
_NAMES = {"gmm_linear.weight": "M", "encoder.conv1.weight": "V", "fc.weight": "C"}
# The reward beside C's weights may be a NumPy number, which is a number and no more.
_SCALAR = np.float64(0.0).__reduce__()[0]
_NUMBERS: list[Any] = [_SCALAR, (_SCALAR, "numpy.core.multiarray.scalar"), np.dtype, np.dtypes.Float64DType]


def read(paths: Sequence[Path]) -> Foreign:
    """Read checkpoints of M, of C and of V where they are there, or a folder of them. CorruptFileError where a file is
    not what it says, or holds more than weights."""
    files = [
        file for path in map(Path, paths) for file in (sorted(path.rglob("best.tar")) if path.is_dir() else [path])
    ]
    found: dict[str, tuple[Path, Mapping[str, Tensor]]] = {}
    for path in files:
        state = _state(path)
        name = next((name for key, name in _NAMES.items() if key in state), None)
        if name is None:
            raise CorruptFileError(
                f"{path}: should hold one of {', '.join(_NAMES)}, the weights of M, V or C, but held "
                f"{', '.join(list(state)[:4]) or 'nothing'}."
            )
        if name in found:
            raise CorruptFileError(f"{path}: holds {name}, as {found[name][0]} does. Name one of them.")
        found[name] = path, state
    if "M" not in found:
        given = ", ".join(map(str, paths)) or "nothing"
        raise CorruptFileError(f"ctallec: should be given M's checkpoint (mdrnn/best.tar), but was given {given}.")
    notes: list[str] = []
    latent = _latent(found)
    world = _world(*found["M"], latent)
    vision, note = (_vision(*found["V"], latent), "") if "V" in found else blind(latent)
    notes += [note] if note else []
    if "C" in found:
        spec, params = _controller(*found["C"], world)
    else:
        spec, params, note = no_controller(world, "identity")
        notes.append(note)
    mean, log_variance, note = standard_starts(latent)
    return Foreign(vision, world, spec, params, mean, log_variance, tuple(files), (*notes, note))


def _state(path: Path) -> Mapping[str, Tensor]:
    """The weights in a checkpoint, by name; nothing in it is executed."""
    try:
        with torch.serialization.safe_globals(_NUMBERS):
            value: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CorruptFileError(
            f"{path}: holds something else than weights and numbers, which loading would execute; nothing of it was "
            f"({_first_sentence(error)})."
        ) from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise CorruptFileError(f"{path}: no checkpoint of torch ({_first_sentence(error)}).") from error
    state = value.get("state_dict") if isinstance(value, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(part, Tensor) for part in state.values()):
        keys = ", ".join(map(str, value)) if isinstance(value, Mapping) else f"a {type(value).__name__}"
        raise CorruptFileError(f"{path}: should hold 'state_dict', a dict of tensors, but held {keys or 'nothing'}.")
    return state


def _first_sentence(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0].partition(". ")[0]


def _part(path: Path, state: Mapping[str, Tensor], name: str, shape: Sequence[int] | None = None) -> Tensor:
    """A weight by name; CorruptFileError where it is missing or has another shape."""
    key = name if name in state else name.removesuffix("_l0")  # an LSTMCell's
    if key not in state:
        raise CorruptFileError(f"{path}: should hold {name!r}, but held {', '.join(state)}.")
    return checked(path, name, state[key].detach(), state[key].shape if shape is None else shape)


def _latent(found: Mapping[str, tuple[Path, Mapping[str, Tensor]]]) -> int:
    """Z, as V or else C says; the paper's K of 5 otherwise."""
    if "V" in found:
        return len(_part(*found["V"], "encoder.fc_mu.bias"))
    hidden = _part(*found["M"], "rnn.weight_hh_l0").shape[-1]
    if "C" in found:
        return _part(*found["C"], "fc.weight").shape[-1] - hidden
    return ((len(_part(*found["M"], "gmm_linear.bias")) - 2) // _MIXTURES - 1) // 2


def _world(path: Path, state: Mapping[str, Tensor], latent: int) -> MDNRNN:
    hidden = _part(path, state, "rnn.weight_hh_l0").shape[-1]
    action = _part(path, state, "rnn.weight_ih_l0").shape[-1] - latent
    numbers = len(_part(path, state, "gmm_linear.bias")) - 2
    mixtures, left = divmod(numbers, 2 * latent + 1)
    if left or min(mixtures, action, latent) < 1:
        raise CorruptFileError(
            f"{path}: a head of {numbers + 2} numbers and an input of {latent + action} are no mixture over {latent} "
            "latent dimensions with a reward and an end."
        )
    m = MDNRNN(latent, action, hidden, mixtures, "shared")
    inputs = _part(path, state, "rnn.weight_ih_l0", [4 * hidden, action + latent])
    weight = _part(path, state, "gmm_linear.weight", [m.layout.size, hidden])
    sizes = [mixtures * latent, mixtures * latent, mixtures, 2]

    def rows(head: Tensor) -> Tensor:
        means, log_stds, logits, reward_and_end = head.split(sizes)
        return torch.cat([logits, means, log_stds, reward_and_end])

    m.load_state_dict({
        "lstm.weight_ih_l0": torch.cat([inputs[:, action:], inputs[:, :action]], dim=1),
        "lstm.weight_hh_l0": _part(path, state, "rnn.weight_hh_l0", [4 * hidden, hidden]),
        "lstm.bias_ih_l0": _part(path, state, "rnn.bias_ih_l0", [4 * hidden]),
        "lstm.bias_hh_l0": _part(path, state, "rnn.bias_hh_l0", [4 * hidden]),
        "head.weight": rows(weight),
        "head.bias": rows(_part(path, state, "gmm_linear.bias")),
    })  # fmt: skip
    return m.eval()


def _controller(path: Path, state: Mapping[str, Tensor], world: MDNRNN) -> tuple[ControllerSpec, Tensor]:
    spec = ControllerSpec(world.latent, world.hidden, world.action, "zh", "identity")
    weight = _part(path, state, "fc.weight", [spec.action, spec.num_features])
    return spec, torch.cat([weight.flatten(), _part(path, state, "fc.bias", [spec.action])])


def _vision(path: Path, state: Mapping[str, Tensor], latent: int) -> VAE:
    vision = ReluVAE(latent)
    wanted = vision.state_dict()
    names = {
        "mu": "encoder.fc_mu", "logvar": "encoder.fc_logsigma", "expand": "decoder.fc1",
        **{f"encoder.{layer}": f"encoder.conv{layer + 1}" for layer in range(4)},
        **{f"decoder.{layer}": f"decoder.deconv{layer + 1}" for layer in range(4)},
    }  # fmt: skip
    for ours, theirs in names.items():
        for part in ("weight", "bias"):
            value = _part(path, state, f"{theirs}.{part}", list(wanted[f"{ours}.{part}"].shape))
            # log variance = 2 log deviation
            wanted[f"{ours}.{part}"] = 2.0 * value if ours == "logvar" else value
    vision.load_state_dict(wanted)
    return vision.eval()
