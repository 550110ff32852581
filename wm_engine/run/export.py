"""Published models for other programs, as ONNX or TorchScript; a file takes its name when it has been compared.

RUN/export/FORMAT/
  see        observations [B, ...] ─► mean, log variance [B, Z] of V's posterior
  show       z [B, Z] ─► what V decodes it to
  remember   z [B, Z], action [B, A], h, c [B, H] ─► the next h, c; of an MDN-RNN its mixture, reward and end too
  act        features [B, F] (z, h, c in this order, those that C sees) ─► action [B, A]
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from wm_engine.errors import ConfigError, MissingDependencyError, WMEngineError
from wm_engine.files import atomic_write, write_json
from wm_engine.models.base import Vision, WorldModel
from wm_engine.models.blind import Blind
from wm_engine.models.mdn_rnn import MDNRNN
from wm_engine.policies.controller import Controllers, ControllerSpec, act
from wm_engine.run.published import LoadedRun
from wm_engine.spaces import Pixels

_log = logging.getLogger(__name__)

FORMATS = {"onnx": ".onnx", "torchscript": ".pt"}
_ONNX_NEEDS = ("onnx", "onnxruntime")
_OPSET = 17
# A file may be as far from float64 as twice torch's own float32, and so many units in the last place more.
_FLOOR = 2.0**-18
_CHECKED = (1, 5)


class See(nn.Module):
    """V's encoder."""

    def __init__(self, vision: Vision) -> None:
        super().__init__()
        self.vision = vision

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        return self.vision.encode(observations)


class Show(nn.Module):
    """V's decoder."""

    def __init__(self, vision: Vision) -> None:
        super().__init__()
        self.vision = vision

    def forward(self, z: Tensor) -> Tensor:
        return self.vision.decode(z)


class Remember(nn.Module):
    """A step of M under a real latent and action; of an MDN-RNN with what it then expects."""

    def __init__(self, world: WorldModel) -> None:
        super().__init__()
        self.world = world

    def forward(self, z: Tensor, action: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        h, c = self.world.observe(z, action, (h, c))
        if not isinstance(self.world, MDNRNN):
            return h, c
        head = self.world.split(self.world.head(h))
        return h, c, head.logits, head.means, head.log_stds, head.reward, head.done


class Act(nn.Module):
    """C."""

    params: Tensor

    def __init__(self, spec: ControllerSpec, params: Tensor) -> None:
        super().__init__()
        self.spec = spec
        self.register_buffer("params", params)

    def forward(self, features: Tensor) -> Tensor:
        return act(self.spec, self.params.to(features.dtype), features.unsqueeze(0)).squeeze(0)


@dataclass(frozen=True)
class Part:
    """A model to be exported: its ``module``, the ``names`` of inputs and outputs, and ``inputs`` for a batch size."""

    module: nn.Module
    inputs: Callable[[int], tuple[Tensor, ...]]
    input_names: Sequence[str]
    output_names: Sequence[str]


def export_run(run: LoadedRun, name: str, target: Path | None = None) -> dict[str, Path]:
    """Write a run's published V, M and C in another format; returns the files by what they do.

    Every file is loaded and compared with the model, at two batch sizes, before it takes its name: by onnxruntime for
    ONNX, by torch for TorchScript.

    Parameters
    ----------
    run : read from its folder, which is not changed but for ``export/``
    name : "onnx" | "torchscript"
    target : a folder; None: ``RUN/export/NAME``

    Raises ConfigError for another format and a policy that is no controller, MissingDependencyError where a package is
    not installed, WMEngineError where a file does not compute what the model does.
    """
    if name not in FORMATS:
        raise ConfigError(f"--format {name}: must be one of {', '.join(FORMATS)}")
    if name == "onnx":
        _need(_ONNX_NEEDS)
    folder = target or run.folder.root / "export" / name
    written: dict[str, Path] = {}
    index: dict[str, Any] = {}
    for part_name, part in _parts(run).items():
        data = _onnx(part) if name == "onnx" else _torchscript(part)
        _check(part_name, part, _onnx_session(data, part) if name == "onnx" else _torchscript_call(data))
        path = folder / (part_name + FORMATS[name])
        with atomic_write(path) as file:
            file.write(data)
        written[part_name] = path
        index[path.name] = {"inputs": list(part.input_names), "outputs": list(part.output_names)}
    digests = dict(run.published["digests"])
    write_json(folder / "export.json", {"files": index, "models": digests, "features": run.controller.features})
    return written


def _need(packages: Sequence[str]) -> None:
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise MissingDependencyError(
                f"--format onnx: {package} is not installed ({error}). pip install 'wm-engine[export]', or take "
                "--format torchscript."
            ) from error


def _parts(run: LoadedRun) -> dict[str, Part]:
    policy = run.controller
    if not isinstance(policy, Controllers):
        raise ConfigError(f"{run.folder.root}: its policy is a {type(policy).__name__}, but only controllers go out")
    vision, world = run.vision.cpu().eval(), run.world.cpu().eval()
    Z, A, H = world.latent, world.action, world.hidden
    parts: dict[str, Part] = {}

    def normal(count: int, *widths: int) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(count)
        return tuple(torch.randn(count, width, generator=generator) for width in widths)

    if isinstance(vision, Blind):
        _log.warning("export: these models were imported without V, so there is no file of it")
    else:
        observations = run.config.env.found().spaces.observations

        def observed(count: int) -> tuple[Tensor, ...]:
            generator = torch.Generator().manual_seed(count)
            if isinstance(observations, Pixels):
                return (torch.randint(0, 256, (count, *observations.shape), generator=generator).byte(),)
            return (torch.randn(count, vision.latent, generator=generator),)

        parts["see"] = Part(See(vision), observed, ["observations"], ["mean", "log_variance"])
        parts["show"] = Part(Show(vision), lambda count: normal(count, Z), ["z"], ["observations"])
    if H:
        outputs = ["next_h", "next_c"]
        if isinstance(world, MDNRNN):
            outputs += ["logits", "means", "log_stds", "reward", "done"]
        parts["remember"] = Part(
            Remember(world), lambda count: normal(count, Z, A, H, H), ["z", "action", "h", "c"], outputs
        )
    spec = policy.spec
    parts["act"] = Part(
        Act(spec, policy.params[:1]), lambda count: normal(count, spec.num_features), ["features"], ["action"]
    )
    return parts


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's advice to take another exporter, and the tracer's on checks that every batch passes."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        yield


def _onnx(part: Part) -> bytes:
    buffer: Any = io.BytesIO()  # which the exporter takes, though its signature does not say so
    names = [*part.input_names, *part.output_names]
    with _quiet():
        # The exporter by tracing: the newer one wants two packages more, and gives the same graph of these models.
        torch.onnx.export(
            part.module, part.inputs(2), buffer, dynamo=False, opset_version=_OPSET,
            input_names=list(part.input_names), output_names=list(part.output_names),
            dynamic_axes={name: {0: "batch"} for name in names},
        )  # fmt: skip
    return bytes(buffer.getvalue())


def _torchscript(part: Part) -> bytes:
    buffer = io.BytesIO()
    with _quiet():
        torch.jit.save(torch.jit.trace(part.module, part.inputs(2), check_trace=False), buffer)
    return buffer.getvalue()


def _onnx_session(data: bytes, part: Part) -> Callable[[tuple[Tensor, ...]], list[np.ndarray]]:
    runtime = importlib.import_module("onnxruntime")
    session = runtime.InferenceSession(data, providers=["CPUExecutionProvider"])

    def call(inputs: tuple[Tensor, ...]) -> list[np.ndarray]:
        named = {name: value.numpy() for name, value in zip(part.input_names, inputs, strict=True)}
        return [np.asarray(value) for value in session.run(list(part.output_names), named)]

    return call


def _torchscript_call(data: bytes) -> Callable[[tuple[Tensor, ...]], list[np.ndarray]]:
    with _quiet():
        module = torch.jit.load(io.BytesIO(data))

    def call(inputs: tuple[Tensor, ...]) -> list[np.ndarray]:
        with torch.no_grad():
            return [value.numpy() for value in _listed(module(*inputs))]

    return call


def _listed(outputs: Any) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def _check(name: str, part: Part, call: Callable[[tuple[Tensor, ...]], list[np.ndarray]]) -> None:
    """Compare a written model with the one it was made of, each against float64; WMEngineError where it is another."""
    for count in _CHECKED:
        inputs = part.inputs(count)
        with torch.no_grad():
            single = _listed(part.module(*inputs))
            exact = [value.double() if value.is_floating_point() else value for value in inputs]
            double = _listed(copy.deepcopy(part.module).double()(*exact))
        for output, got, peer, wanted in zip(part.output_names, call(inputs), single, double, strict=True):
            reference = wanted.numpy()
            allowed = 2.0 * _error(peer.numpy(), reference) + _FLOOR
            found = _error(got, reference) if got.shape == reference.shape else np.inf
            if not found <= allowed:
                raise WMEngineError(
                    f"export: {output} of {name!r} came out {found:.3g} off the model's, where rounding explains "
                    f"{allowed:.3g}; nothing was written of it"
                )


def _error(value: np.ndarray, reference: np.ndarray) -> float:
    difference = np.abs(value.astype(np.float64) - reference) / (1.0 + np.abs(reference))
    return float(difference.max(initial=0.0))


def describe_export(written: dict[str, Path]) -> str:
    """Put the files into words, a line each."""
    index = json.loads((next(iter(written.values())).parent / "export.json").read_text(encoding="utf-8"))["files"]
    return "\n".join(
        f"{path}: {', '.join(index[path.name]['inputs'])} -> {', '.join(index[path.name]['outputs'])}"
        for path in written.values()
    )
