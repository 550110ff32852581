"""The models that Ha & Schmidhuber published with the paper, as JSON.

Weights of V and M, and the starts, are integers: numbers times 10,000. They stand in the order in which TensorFlow made
the variables:

- ``rnn.json``: LSTM kernel ``[Z+A+H, 4H]`` and bias ``[4H]``, gates i, j (the candidate g), f, o, with 1 added to f's
  bias at every step; head ``[H, N]`` and ``[N]``. CarRacing's file has the head first, Doom's last. The head is
  dimension-major, ``[Z, (log mixtures, means, log deviations), K]``: a mixture of its own for every dimension. Doom's
  has one column more, the first: the logit of the end; and one row more in the kernel, behind the actions: whether an
  episode has just begun.
- ``vae.json``: four convolutions ``[h, w, in, out]``, two dense layers to mean and log variance ``[1024, Z]`` over (h,
  w, channel), a dense layer ``[Z, 1024]`` and four transposed convolutions ``[h, w, out, in]``, each with a bias.
- ``initial_z.json``: means and log variances ``[N, Z]`` of first frames.
- ``*.best.json``: C as a flat vector, its biases ``[A]`` before its weights ``[F, A]``; tanh of all, and then (a + 1) /
  2 of the gas and max(a, 0) of the brake. Doom's has no biases, and sees [z, c, h].
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wm_engine.errors import CorruptFileError
from wm_engine.files import read_json
from wm_engine.foreign.base import NEVER, Foreign, blind, checked, no_controller, standard_starts
from wm_engine.models.mdn_rnn import MDNRNN
from wm_engine.models.vae import VAE
from wm_engine.policies.controller import ControllerSpec

_SCALE = 10_000.0
_MIXTURES = 5
_REMEDY = "Take it from its source again."
_CAR = ("tanh", "tanh01", "relu_tanh")


def read(paths: Sequence[Path]) -> Foreign:
    """Read a folder of these files. FileNotFoundError where there is no ``rnn.json``, CorruptFileError where a file is
    not what its name says."""
    if len(paths) != 1 or not Path(paths[0]).is_dir():
        given = ", ".join(map(str, paths)) or "nothing"
        raise CorruptFileError(f"ha2018: should be given one folder that holds rnn.json, but was given {given}.")
    folder = Path(paths[0])
    memory = _only(folder, "rnn.json")
    if memory is None:
        raise CorruptFileError(f"{folder}: should hold rnn.json, the weights of M, but does not.")
    eyes, starts, controller = (_only(folder, name) for name in ("vae.json", "initial_z.json", "*.best.json"))
    notes: list[str] = []
    start_mean, start_log_variance = _starts(starts) if starts else (None, None)
    world, told = _world(memory, None if start_mean is None else start_mean.shape[1])
    notes += told
    if start_mean is None or start_log_variance is None:
        start_mean, start_log_variance, note = standard_starts(world.latent)
        notes.append(note)
    vision, note = (_vision(eyes, world.latent), "") if eyes else blind(world.latent)
    notes += [note] if note else []
    doom = world.action == 1
    if controller:
        spec, params = _controller(controller, world, doom)
    else:
        spec, params, note = no_controller(world, ("tanh",) if doom else _CAR)
        notes.append(note)
    files = tuple(path for path in (memory, eyes, starts, controller) if path)
    return Foreign(vision, world, spec, params, start_mean, start_log_variance, files, tuple(notes))


def _only(folder: Path, pattern: str) -> Path | None:
    """Find the one file of this name in a folder and those below it; None where there is none."""
    found = sorted(folder.rglob(pattern))
    if len(found) > 1:
        names = ", ".join(str(path.relative_to(folder)) for path in found[:4])
        raise CorruptFileError(f"{folder}: should hold one {pattern}, but holds {names}. Keep the one that is meant.")
    return found[0] if found else None


def _arrays(path: Path, wanted: str, count: int) -> list[np.ndarray]:
    """Read a JSON file of ``count`` arrays of numbers; CorruptFileError where it holds something else."""
    value: Any = read_json(path, _REMEDY)
    if not isinstance(value, list) or len(value) != count:
        held = f"{len(value)} parts" if isinstance(value, list) else f"a {type(value).__name__}"
        raise CorruptFileError(f"{path}: should hold {wanted}, but held {held}. {_REMEDY}")
    arrays = []
    for place, part in enumerate(value):
        try:
            arrays.append(np.asarray(part, dtype=np.float64))
        except (TypeError, ValueError) as error:
            raise CorruptFileError(f"{path}: part {place} of {wanted} is no array of numbers ({error}).") from error
    return arrays


def _starts(path: Path) -> tuple[Tensor, Tensor]:
    mean, log_variance = (array / _SCALE for array in _arrays(path, "means and log variances", 2))
    if mean.ndim != 2 or not len(mean):
        raise CorruptFileError(f"{path}: the means should have shape [N, Z], but had {list(mean.shape)}.")
    return (
        checked(path, "the means", mean, mean.shape),
        checked(path, "the log variances", log_variance, mean.shape),
    )


def _world(path: Path, latent: int | None) -> tuple[MDNRNN, list[str]]:
    """M, and what is not as it was. ``latent``: Z where the starts say it; K is the paper's 5 otherwise."""
    arrays = [array / _SCALE for array in _arrays(path, "an LSTM's kernel and bias and a head's weights and biases", 4)]
    whole = next((order for order in (arrays, arrays[2:] + arrays[:2]) if _fits(*order)), None)
    if whole is None:
        raise CorruptFileError(
            f"{path}: should hold a kernel [Z+A+H, 4H], a bias [4H], a head [H, N] and its bias [N], but held "
            f"{', '.join(str(list(array.shape)) for array in arrays)}."
        )
    kernel, bias, weight, offset = whole
    hidden = len(weight)
    ends = len(offset) % 3 == 1
    numbers = (len(offset) - ends) // 3
    latent = latent or numbers // _MIXTURES
    mixtures, left = divmod(numbers, latent or 1)
    action = len(kernel) - hidden - latent - ends
    if left or min(mixtures, action, latent) < 1 or len(offset) % 3 == 2:
        raise CorruptFileError(
            f"{path}: a head of {len(offset)} numbers and a kernel of {len(kernel)} rows are no mixture over "
            f"{latent} latent dimensions with H = {hidden}."
        )
    m = MDNRNN(latent, action, hidden, mixtures, "per_dim")
    head = np.concatenate([weight, offset[None]])
    by_dimension = head[:, int(ends) :].reshape(hidden + 1, latent, 3, mixtures)
    mixture = [by_dimension[:, :, part].reshape(hidden + 1, -1) for part in range(3)]
    reward, end = np.zeros((hidden + 1, 1)), np.zeros((hidden + 1, 1))
    end[-1] = NEVER
    rows = np.concatenate([*mixture, reward, head[:, :1] if ends else end], axis=1).T
    inputs = np.concatenate([kernel[: latent + action], kernel[len(kernel) - hidden :]])
    i, j, f, o = np.split(np.concatenate([inputs, bias[None]]), 4, axis=1)
    f[-1] += 1.0
    gates = np.concatenate([i, f, j, o], axis=1).T
    m.load_state_dict({
        "lstm.weight_ih_l0": checked(path, "the kernel", gates[:, : latent + action], [4 * hidden, latent + action]),
        "lstm.weight_hh_l0": checked(path, "the kernel", gates[:, latent + action : -1], [4 * hidden, hidden]),
        "lstm.bias_ih_l0": checked(path, "the bias", gates[:, -1], [4 * hidden]),
        "lstm.bias_hh_l0": torch.zeros(4 * hidden),
        "head.weight": checked(path, "the head", rows[:, :-1], [m.layout.size, hidden]),
        "head.bias": checked(path, "the head's bias", rows[:, -1], [m.layout.size]),
    })  # fmt: skip
    notes = ["M predicts no reward: dreamt steps are worth 0, or 1 each with survival"]
    if ends:
        notes.append("M's input that says that an episode has just begun is always 0 here, and was 1 in its first step")
    else:
        notes.append("M predicts no end: its dreams never end")
    return m.eval(), notes


def _fits(kernel: np.ndarray, bias: np.ndarray, weight: np.ndarray, offset: np.ndarray) -> bool:
    """Say whether these are an LSTM's kernel and bias and a head's weights and biases."""
    if [array.ndim for array in (kernel, bias, weight, offset)] != [2, 1, 2, 1]:
        return False
    hidden = len(weight)
    return kernel.shape[1] == len(bias) == 4 * hidden and weight.shape[1] == len(offset)


def _controller(path: Path, world: MDNRNN, doom: bool) -> tuple[ControllerSpec, Tensor]:
    value: Any = read_json(path, _REMEDY)
    try:
        flat = np.asarray(value[0], dtype=np.float64)
        assert flat.ndim == 1
    except (TypeError, ValueError, IndexError, KeyError, AssertionError) as error:
        raise CorruptFileError(f"{path}: should begin with a flat list of C's parameters, but does not.") from error
    Z, H, A = world.latent, world.hidden, world.action
    flat = checked(path, "C", flat, flat.shape).numpy()
    if doom and len(flat) == Z + 2 * H:
        z, c, h = np.split(flat, [Z, Z + H])
        spec = ControllerSpec(Z, H, A, "zhc", ("tanh",))
        return spec, torch.from_numpy(np.concatenate([z, h, c, np.zeros(1, np.float32)]))
    squash = _CAR if A == 3 else ("tanh",) * A
    for features, width in (("z", Z), ("zh", Z + H)):
        if len(flat) == A * (width + 1):
            parts = _layer(flat, width, A)
            return ControllerSpec(Z, H, A, features, squash), torch.from_numpy(np.concatenate(parts))
    units, left = divmod(len(flat) - A, Z + 1 + A)
    if left or units < 1:
        raise CorruptFileError(
            f"{path}: should hold {A * (Z + 1)} parameters of a controller on z or {A * (Z + H + 1)} on [z, h], for "
            f"{A} actions, but held {len(flat)}."
        )
    cut = units * (Z + 1)
    parts = [*_layer(flat[:cut], Z, units), *_layer(flat[cut:], units, A)]
    return ControllerSpec(Z, H, A, "z", squash, units), torch.from_numpy(np.concatenate(parts))


def _layer(flat: np.ndarray, width: int, out: int) -> list[np.ndarray]:
    """A layer's biases [out] and weights [width, out], as weights row by row [out, width] and biases."""
    return [flat[out:].reshape(width, out).T.ravel(), flat[:out]]


def _vision(path: Path, latent: int) -> VAE:
    """V: see :func:`vision_of`; CorruptFileError where the file holds something else."""
    return vision_of(path, [array / _SCALE for array in _arrays(path, "V's 22 weights and biases", 22)], latent)


def vision_of(path: Path, arrays: Sequence[np.ndarray], latent: int) -> VAE:
    """Make V of the weights and biases of ``vae.json``, in its order."""
    vision = VAE(latent)
    state = vision.state_dict()
    convolutions, transposed = ([f"{part}.{layer}" for layer in range(4)] for part in ("encoder", "decoder"))
    names = [*convolutions, "mu", "logvar", "expand", *transposed]
    for place, name in enumerate(names):
        weight, bias = arrays[2 * place : 2 * place + 2]
        if weight.ndim == 4:
            weight = weight.transpose(3, 2, 0, 1)
        elif name != "expand" and weight.shape == (1024, latent):
            # The encoder's picture is flattened (h, w, channel) there, and (channel, h, w) here.
            weight = weight.reshape(2, 2, 256, latent).transpose(3, 2, 0, 1).reshape(latent, 1024)
        elif weight.ndim == 2:
            weight = weight.T
        for part, value in (("weight", weight), ("bias", bias)):
            key = f"{name}.{part}"
            state[key] = checked(path, key, np.ascontiguousarray(value), state[key].shape)
    vision.load_state_dict(state)
    return vision.eval()
