"""The C++ core as a backend: every instruction set and precision, threads, and its absence."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from checker import check
from oracle import Oracle

from wm_engine import MDNRNN, ControllerSpec, DreamEngine, Starts
from wm_engine.core import core
from wm_engine.dream import cpp_backend

CORE, REASON = core()
needs_core = pytest.mark.skipif(CORE is None, reason=REASON or "built")
LEVELS = CORE.isa_levels() if CORE is not None else []
PRECISIONS = cpp_backend.CppBackend.PRECISIONS


class World:
    """A random world model with trained-like spreads, a population, and starts."""

    def __init__(
        self,
        mixture: str,
        sizes: tuple[int, int, int, int] = (6, 2, 37, 3),
        candidates: int = 16,
        residual: bool = False,
    ) -> None:
        generator = torch.Generator().manual_seed(1)
        Z, A, H, K = sizes
        self.m = MDNRNN(Z, A, H, K, mixture, residual)
        for value in self.m.state_dict().values():
            value.copy_(torch.randn(value.shape, generator=generator) * H**-0.5)
        self.m.state_dict()["head.bias"][-1] -= 2.0
        self.spec = ControllerSpec(Z, H, A, "zhc", ("tanh", "sigmoid"))
        self.params = torch.randn(candidates, self.spec.num_params, generator=generator) * 0.3
        self.starts = Starts(*(torch.randn(3, n, generator=generator) * 0.5 for n in (Z, H, H)))

    def dream(self, precision: str = "fp32", backend: str = "cpp", threads: int | None = None, **plan: Any) -> Any:
        engine = DreamEngine(self.m, self.spec, backend=backend, precision=precision, num_threads=threads)
        return engine.rollout(self.params, self.starts, **plan)

    def oracle(self) -> Oracle:
        weights = {name: value.numpy() for name, value in self.m.state_dict().items()}
        m, c = self.m, self.spec
        shape = (m.latent, m.action, m.hidden, m.mixtures, m.mixture, c.features, c.squash, c.hidden_units, m.residual)
        return Oracle(weights, *shape)


@needs_core
@pytest.mark.parametrize("isa", LEVELS)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("mixture", ["shared", "per_dim"])
@pytest.mark.parametrize(
    ("sizes", "temperature"),
    [((6, 2, 37, 3), 0.0), ((6, 2, 37, 3), 0.9), ((32, 2, 256, 5), 0.9), ((70, 2, 129, 7), 0.9)],
)
def test_every_level_and_precision_is_the_oracles(
    isa: str,
    precision: str,
    mixture: str,
    sizes: tuple[int, int, int, int],
    temperature: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WM_ENGINE_ISA", isa)
    world = World(mixture, sizes)
    # Components far from equal: a choice that rounding tips over leads to another dream, rightly.
    choices = world.m.mixtures * world.m.layout.choices
    world.m.state_dict()["head.bias"][:choices] *= 100.0
    plan = {"episodes": 4, "max_steps": 4, "temperature": temperature, "seed": 5}
    states = (world.starts.z.numpy(), world.starts.h.numpy(), world.starts.c.numpy())
    want = world.oracle().rollout(world.params.numpy(), *states, **plan)
    # torch has no int8 dream; bf16 is the nearest peer, and the floor of int8 does the rest.
    peer = world.dream("fp32" if precision == "fp32" else "bf16", backend="torch", record=True, **plan)
    got = world.dream(precision, record=True, **plan)
    for name in ("z", "actions", "rewards"):
        check(name, getattr(got, name), want[name], getattr(peer, name), precision)


@needs_core
@pytest.mark.parametrize("isa", LEVELS)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("mixture", ["shared", "per_dim"])
@pytest.mark.parametrize("sizes", [(6, 2, 37, 3), (17, 2, 33, 2)])
def test_residual_dreams_of_given_actions_are_the_oracles(
    isa: str, precision: str, mixture: str, sizes: tuple[int, int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WM_ENGINE_ISA", isa)
    world = World(mixture, sizes, candidates=5, residual=True)
    actions = torch.tanh(torch.randn(5, 3, 2, generator=torch.Generator().manual_seed(3)))
    choices = world.m.mixtures * world.m.layout.choices
    world.m.state_dict()["head.bias"][:choices] *= 100.0
    plan = {"episodes": 4, "max_steps": 3, "temperature": 0.9, "seed": 5}
    states = (world.starts.z.numpy(), world.starts.h.numpy(), world.starts.c.numpy())
    want = world.oracle().rollout(world.params.numpy(), *states, actions=actions.numpy(), **plan)
    world.params = None
    peer = world.dream("fp32" if precision == "fp32" else "bf16", "torch", record=True, actions=actions, **plan)
    got = world.dream(precision, record=True, actions=actions, **plan)
    for name in ("z", "actions", "rewards"):
        check(name, getattr(got, name), want[name], getattr(peer, name), precision)


@needs_core
@pytest.mark.parametrize("isa", LEVELS)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("mixture", ["shared", "per_dim"])
def test_threads_and_company_do_not_change_a_bit(
    isa: str, precision: str, mixture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WM_ENGINE_ISA", isa)
    world = World(mixture, candidates=61)
    plan = {"episodes": 1, "max_steps": 30, "done": "sample", "seed": 2, "common_random_numbers": False}
    one = world.dream(precision, threads=1, **plan)
    assert 1 < one.lengths.float().mean() < 30
    for threads in (2, 5):
        many = world.dream(precision, threads=threads, **plan)
        assert torch.equal(one.returns, many.returns)
        assert torch.equal(one.lengths, many.lengths)
    params = world.params
    # Tiles of a register (3 or 6 rows), of AMX (16) and of a thread (48): one row, one less than full, full, one more.
    for size in (1, 2, 3, 4, 5, 6, 7, 15, 16, 17, 47, 48, 49):
        world.params = params[:size]
        part = world.dream(precision, threads=1, **plan)
        assert torch.equal(part.returns, one.returns[:size])


@needs_core
def test_unknown_levels_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WM_ENGINE_ISA", "avx1024")
    with pytest.raises(ValueError, match=r"WM_ENGINE_ISA must be a level that this processor runs .*'scalar'.*avx1024"):
        World("shared").dream(episodes=1, max_steps=1)


def test_levels_that_are_missing_or_unused_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    module = SimpleNamespace(
        chosen_isa=lambda: "avx512",
        isa_levels=lambda: ["scalar", "avx2", "avx512"],
        compiler=lambda: "gcc 9",
        isa_levels_not_compiled=lambda: ["avx512_bf16"],
        has_amx=lambda: True,
    )
    monkeypatch.setattr(cpp_backend, "core", lambda: (module, ""))
    words = cpp_backend.CppBackend.describe()
    assert words.startswith("avx512 of scalar, avx2, avx512; built by gcc 9")
    assert "without avx512_bf16, which that compiler does not know" in words
    assert "AMX cannot be used" in words


@needs_core
def test_other_python_threads_run_while_a_dream_does() -> None:
    world = World("per_dim")
    running = threading.Event()
    turns = 0

    def count() -> None:
        nonlocal turns
        running.wait()
        while running.is_set():
            turns += 1

    other = threading.Thread(target=count)
    other.start()
    before = turns
    running.set()
    world.dream(episodes=16, max_steps=500)
    after = turns
    running.clear()
    other.join()
    assert after > before


@needs_core
def test_two_engines_at_once() -> None:
    worlds = [World("shared"), World("per_dim")]
    plan = {"episodes": 8, "max_steps": 100}
    alone = [world.dream(**plan).returns for world in worlds]
    together: list[Any] = [None, None]

    def dream(index: int) -> None:
        together[index] = worlds[index].dream(**plan).returns

    threads = [threading.Thread(target=dream, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for want, got in zip(alone, together, strict=True):
        assert torch.equal(want, got)


FORKED = """
import os, torch, wm_engine as wm
c = wm.ControllerSpec(8, 32, 2, squash="tanh")
engine = wm.DreamEngine(wm.MDNRNN(8, 2, 32, 3), c, backend="cpp", num_threads=3)
def dream():
    return engine.rollout(torch.ones(8, c.num_params), wm.Starts(torch.zeros(1, 8)), max_steps=20).returns
before = dream()
child = os.fork()
if child == 0:
    os._exit(0 if torch.equal(dream(), before) else 1)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@needs_core
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_dreams_on() -> None:
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", FORKED], timeout=120, check=False).returncode == 0
