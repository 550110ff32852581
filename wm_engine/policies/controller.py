"""C: a controller of about a thousand parameters, acting on [z, h] (Ha & Schmidhuber 2018, section 2.3)."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from wm_engine.checks import check_choice, check_int, check_tensor
from wm_engine.errors import CorruptFileError
from wm_engine.files import load_tensors, save_tensors

FEATURES = ("z", "zh", "zhc")
SQUASH_RANGES = {
    "tanh": (-1.0, 1.0),
    "sigmoid": (0.0, 1.0),
    "tanh01": (0.0, 1.0),
    "relu_tanh": (0.0, 1.0),
    "identity": (-math.inf, math.inf),
    "argmax": (0.0, 1.0),
}
"""Every squash, with the range of the actions it puts out."""

SQUASHES = tuple(word for word in SQUASH_RANGES if word != "argmax")
"""Those that act on each dimension by itself."""


@dataclass(frozen=True)
class ControllerSpec:
    """The shape of a controller; its parameters travel apart, as flat vectors.

    Parameters
    ----------
    latent : Z; hidden : H of M; action : A
    features : "z" | "zh" | "zhc", what it sees, in this order
    squash : one word per action dimension ("tanh", "sigmoid", "tanh01" = (tanh+1)/2, "relu_tanh" = max(tanh, 0),
        "identity"), one such word for all of them, or "argmax" for the whole vector (one-hot of the largest, the
        first of equals)
    hidden_units : 0 for a linear controller, else the width U of one tanh layer

    Layout of a flat vector [D]: the weight matrix row by row [A, F], then the biases [A]; with hidden units the first
    layer's weight [U, F] and bias [U], then the second's [A, U] and [A].
    """

    latent: int = 32
    hidden: int = 256
    action: int = 3
    features: str = "zh"
    squash: tuple[str, ...] | str = ("tanh", "sigmoid", "sigmoid")
    hidden_units: int = 0

    def __post_init__(self) -> None:
        for name, least in (("latent", 1), ("hidden", 1), ("action", 1), ("hidden_units", 0)):
            check_int(name, getattr(self, name), least=least)
        check_choice("features", self.features, FEATURES)
        if isinstance(self.squash, str):
            check_choice("squash", self.squash, (*SQUASHES, "argmax"))
            if self.squash != "argmax":
                object.__setattr__(self, "squash", (self.squash,) * self.action)
        else:
            if not isinstance(self.squash, Sequence):
                raise TypeError(f"squash must be a word or one word for each action, but was {self.squash!r}")
            object.__setattr__(self, "squash", tuple(self.squash))
            if len(self.squash) != self.action:
                raise ValueError(
                    f"squash must be one word for each of the {self.action} action dimensions, but was {self.squash!r}"
                )
            for word in self.squash:
                check_choice("squash", word, SQUASHES)

    @property
    def num_features(self) -> int:
        """F, the length of what the controller sees."""
        return self.latent + self.hidden * (len(self.features) - 1)

    @property
    def num_params(self) -> int:
        """D, the length of a flat parameter vector."""
        if self.hidden_units == 0:
            return self.action * (self.num_features + 1)
        return self.hidden_units * (self.num_features + 1) + self.action * (self.hidden_units + 1)

    def layers(self, params: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Flat parameters [P, D] as (weight [P, out, in], bias [P, out]) of each layer; views."""
        layers, offset, width = [], 0, self.num_features
        for out in [self.hidden_units, self.action] if self.hidden_units else [self.action]:
            weight = params[:, offset : offset + out * width].unflatten(1, (out, width))
            offset += out * width
            layers.append((weight, params[:, offset : offset + out]))
            offset, width = offset + out, out
        return layers

    def observe(self, z: Tensor, h: Tensor, c: Tensor) -> Tensor:
        """Return what the controller sees [..., F] of z [..., Z], h and c [..., H]."""
        return torch.cat([z, h, c][: len(self.features)], dim=-1)


def act(spec: ControllerSpec, params: Tensor, features: Tensor) -> Tensor:
    """The actions of P controllers, each on E observations: :func:`raw_actions`, squashed; [P, E, A]."""
    return squash_actions(spec, raw_actions(spec, params, features))


def raw_actions(spec: ControllerSpec, params: Tensor, features: Tensor) -> Tensor:
    """Compute what P controllers put out before the squash, each on E observations.

    Parameters
    ----------
    spec : the controllers' shape
    params : [P, D]
    features : [P, E, F]

    Returns
    -------
    [P, E, A] = W·x + b, or W2·tanh(W1·x + b1) + b2
    """
    x = features
    layers = spec.layers(params)
    for depth, (weight, bias) in enumerate(layers):
        x = torch.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2))
        if depth + 1 < len(layers):
            x = torch.tanh(x)
    return x


def squash_actions(spec: ControllerSpec, raw: Tensor) -> Tensor:
    """Squash raw outputs [..., A] to actions [..., A]."""
    if spec.squash == "argmax":
        return torch.nn.functional.one_hot(raw.argmax(dim=-1), spec.action).to(raw.dtype)
    columns = [_squash(word, raw[..., index]) for index, word in enumerate(spec.squash)]
    return torch.stack(columns, dim=-1)


def _squash(word: str, x: Tensor) -> Tensor:
    if word == "identity":
        return x
    if word == "sigmoid":
        return torch.sigmoid(x)
    y = torch.tanh(x)
    if word == "tanh01":
        return 0.5 * (y + 1.0)
    return y.clamp(min=0.0) if word == "relu_tanh" else y


def spec_metadata(spec: ControllerSpec) -> dict[str, str]:
    """A controller's shape as the metadata of a file; :func:`spec_of` reads it back."""
    plain = {name: str(value) for name, value in asdict(spec).items() if name != "squash"}
    return plain | {"squash": "argmax" if spec.squash == "argmax" else ",".join(spec.squash)}


def spec_of(metadata: Mapping[str, str]) -> ControllerSpec:
    """The shape in a file's metadata; KeyError, TypeError or ValueError where there is none."""
    words = metadata["squash"]
    squash = words if words == "argmax" else tuple(words.split(","))
    sizes = {name: int(metadata[name]) for name in ("latent", "hidden", "action", "hidden_units")}
    return ControllerSpec(features=metadata["features"], squash=squash, **sizes)


def save_controller(path: str | os.PathLike[str], spec: ControllerSpec, params: Tensor) -> None:
    """Write a controller's parameters [D] and shape as safetensors, atomically. ValueError for another length."""
    check_tensor("params", params, [spec.num_params])
    save_tensors(path, {"params": params}, {"kind": "controller"} | spec_metadata(spec))


def load_controller(path: str | os.PathLike[str]) -> tuple[ControllerSpec, Tensor]:
    """Read back what :func:`save_controller` wrote: shape and parameters [D]."""
    tensors, metadata = load_tensors(path)
    try:
        spec = spec_of(metadata)
        params = check_tensor("params", tensors["params"], [spec.num_params])
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptFileError(f"{path}: not a controller of this project ({error}).") from error
    return spec, params


class Controllers:
    """A population's candidates at the wheels of n lanes: a policy on a world model's features.

    Parameters
    ----------
    spec : the controllers' shape
    params : float32 [P, D], the candidates
    candidate : int64 [n], which of them drives each lane
    """

    def __init__(self, spec: ControllerSpec, params: Tensor, candidate: Tensor) -> None:
        check_tensor("params", params, ["P", spec.num_params], finite=False)
        if candidate.dim() != 1 or candidate.is_floating_point() or not len(candidate):
            raise ValueError(f"candidate must be one index a lane, but was {candidate!r}")
        if int(candidate.min()) < 0 or int(candidate.max()) >= len(params):
            raise ValueError(f"candidate must be in [0, {len(params)}), but was {candidate.tolist()}")
        self.spec, self.features = spec, spec.features
        self.params, self.candidate = params.detach().float(), candidate.long()

    def act(self, features: Tensor, lanes: Tensor) -> Tensor:
        """See :class:`wm_engine.policies.base.Policy`."""
        params = self.params.to(features.device)[self.candidate.to(features.device)[lanes]]
        return act(self.spec, params, features.unsqueeze(1)).squeeze(1)
