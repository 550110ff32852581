"""What must be the same on all machines of a cluster for equal bits."""

from __future__ import annotations

import functools
import hashlib
import importlib
from collections.abc import Collection, Iterable
from importlib import metadata, util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wm_engine.core import core_sources
from wm_engine.dream.cpp_backend import CppBackend
from wm_engine.envs.frames import FRAME_SHAPE
from wm_engine.errors import WMEngineError
from wm_engine.machine import one_torch_thread
from wm_engine.models.mdn_rnn import MDNRNN
from wm_engine.models.vae import VAE
from wm_engine.rng import RNG_VERSION

# What simulates and draws the real environments, by the names they are installed under.
_PACKAGES = ("numpy", "gymnasium", "envpool", "vizdoom", "Box2D", "box2d-py", "pygame", "pygame-ce")
# In this order: the weights of M, rounded, do not come back.
_PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Frames at once: torch's kernels differ between one and many.
_BATCHES = (1, 16)


def machine_signature() -> dict[str, Any]:
    """Describe what this machine's bits follow from, as JSON-able values by name.

    Versions, sources, the C++ core's instruction set, and hashes of what a fixed V and M come to here.
    """
    there, _ = CppBackend.available()
    return {
        "wm_engine": importlib.import_module("wm_engine").__version__,
        "wm_engine's sources": _sources(),
        "rng": RNG_VERSION,
        "torch": torch.__version__,
        **{name: version for name in _PACKAGES if (version := _version(name))},
        "instruction set": CppBackend.describe().partition(" of ")[0] if there else None,
        "the C++ core's sources": core_sources() if there else None,
        **{_bits_of(precision): bits for precision, bits in _bits().items()},
    }


def check_compatibility(theirs: dict[str, Any], ours: dict[str, Any], precisions: Collection[str]) -> None:
    """Raise WMEngineError where another machine would give other bits, naming each difference.

    theirs, ours : the two machines' signatures
    precisions : those that V or M computes in; bits in others do not matter
    """
    unused = {_bits_of(precision) for precision in _PRECISIONS if precision not in precisions}
    names = [name for name in {**ours, **theirs} if name not in unused]
    differing = [
        f"{name} {theirs.get(name, 'missing')} there, {ours.get(name, 'missing')} here"
        for name in names
        if theirs.get(name) != ours.get(name)
    ]
    if differing:
        raise WMEngineError(
            f"ray: an actor's machine would give other bits: {'; '.join(differing)}. Install the same versions on all. "
            "Environment variables name one instruction set for all: WM_ENGINE_ISA for the C++ core, and for torch's "
            "V and M ONEDNN_MAX_CPU_ISA, MKL_CBWR and ATEN_CPU_CAPABILITY (docs/cluster.md)."
        )


def _bits_of(precision: str) -> str:
    return f"bits of V and M in {precision}"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@functools.cache
def _sources() -> str:
    spec = util.find_spec("wm_engine.kernels")  # an editable install has them elsewhere
    return hash_sources(Path(__file__).parents[1], (spec and spec.submodule_search_locations) or ())


def hash_sources(package: Path, kernels: Iterable[str | Path]) -> str:
    """Hash the package's Python files, which tells two commits apart: 12 hexadecimal digits.

    Without the benchmarks, from which no result follows. The files count by their names within the package, wherever
    it is installed.
    """
    files = {path.relative_to(package).as_posix(): path for path in package.rglob("*.py")}
    files = {name: path for name, path in files.items() if name.partition("/")[0] not in ("kernels", "bench")}
    for folder in map(Path, kernels):
        files |= {f"kernels/{path.relative_to(folder).as_posix()}": path for path in folder.rglob("*.py")}
    digest = hashlib.sha256()
    for name, path in sorted(files.items()):
        digest.update(f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()[:12]


@functools.cache
def _bits() -> dict[str, str]:
    """Hash, by precision, what a fixed V and M make of fixed frames; takes a quarter of a second.

    They pass through oneDNN's convolutions, MKL's products and torch's own loops. One thread for all: the last bits
    follow from the number of threads too, and a fleet sees to that by itself.
    """
    with torch.random.fork_rng(devices=[]):
        vae, m = VAE(), MDNRNN()
    for module in (vae.encoder, vae.mu, vae.logvar, m):
        _fill(module)
    hashes = {}
    with torch.inference_mode(), one_torch_thread():
        for precision, dtype in _PRECISIONS.items():
            digest = hashlib.sha256()
            m.to(dtype)
            for batch in _BATCHES:
                frames = _numbers(batch, *FRAME_SHAPE).remainder(256).to(torch.uint8)
                with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                    z, logvar = vae.encode(frames)
                state = z.new_zeros(batch, m.hidden), z.new_zeros(batch, m.hidden)
                for _ in range(2):  # the second step's hidden state is not zero
                    state = m.observe(z, z[:, : m.action], state)
                for part in (z, logvar, *state):
                    digest.update(part.float().contiguous().numpy().tobytes())
            hashes[precision] = digest.hexdigest()[:12]
    return hashes


def _fill(module: nn.Module) -> None:
    """Set weights of about the usual size, from integers: torch's generators draw by the instruction set too."""
    for parameter in module.parameters():
        fan_in = parameter[0].numel()
        parameter.data.copy_((_numbers(*parameter.shape) - 32760) / (16380 * fan_in**0.5))


def _numbers(*shape: int) -> Tensor:
    """Make integers in [0, 65521) that look random."""
    count = torch.Size(shape).numel()
    return (torch.arange(1, count + 1) * 2654435761 % 65521 * 40503 % 65521).reshape(shape)
