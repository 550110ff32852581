"""Everything that can dream a workload: the engine's backends and the peers, behind one face."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

from torch import Tensor

from wm_engine import DreamEngine
from wm_engine.dream.engine import BACKENDS
from wm_engine.dream.types import DreamOutput

from .peers import cuda_graph, jax_scan, loop, loop_tuned, torch_compile, torch_eager
from .workload import Setup

PEERS = (loop, loop_tuned, torch_eager, torch_compile, cuda_graph, jax_scan)

# A loop takes a minute for what the others do in a second: it is timed on a share of the workload, by the step.
_SAMPLE_CANDIDATES = 1

_PEER_PRECISIONS = ("fp32", "bf16")

Build = Callable[[Setup], Callable[[], Tensor]]
Record = Callable[[Setup], DreamOutput]


@dataclass(frozen=True)
class Rival:
    """One way to dream a workload.

    name : unique in a table; ``kind``: "engine", "peer" or ``bench.dreams.ONE_THREAD``
    build : makes the function that dreams a setup and returns float32 [P, E] on the CPU, finished
    sample : how many candidates of the workload it is timed on; None for all
    own_numbers : whether it draws random numbers of its own
    record : dreams a setup with every step recorded; None for those that give returns alone
    """

    name: str
    kind: str
    device: str
    precision: str
    build: Build
    sample: int | None = None
    own_numbers: bool = False
    record: Record | None = None

    def setup(self, setup: Setup) -> Setup:
        """The part of a setup that this rival is timed on."""
        return setup if self.sample is None else setup.resized(candidates=self.sample)


def rivals(device: str, num_threads: int | None = None) -> tuple[list[Rival], dict[str, str]]:
    """Those that can run here on ``device``, and the reasons why the others cannot, by name."""
    here: list[Rival] = []
    reasons: dict[str, str] = {}
    for entry in BACKENDS:
        if device not in entry.devices:
            continue
        reason = entry.missing()
        for precision in entry.precisions:
            name = f"{entry.name} {precision}"
            if reason is not None:
                reasons[name] = reason
            elif precision != "fp64":
                build, record = _engine(entry.name, device, precision, num_threads)
                here.append(Rival(name, "engine", device, precision, build, record=record))
    for peer in PEERS:
        if device not in peer.DEVICES:
            continue
        reason = peer.missing(device)
        for precision in ("fp32",) if peer.ONE_BY_ONE else _PEER_PRECISIONS:
            name = f"{peer.NAME} {precision}"
            if reason is not None:
                reasons[name] = reason
            else:
                build = _peer(peer, device, precision)
                sample = _SAMPLE_CANDIDATES if peer.ONE_BY_ONE else None
                here.append(Rival(name, "peer", device, precision, build, sample, peer.OWN_NUMBERS))
    return here, reasons


def _engine(backend: str, device: str, precision: str, num_threads: int | None) -> tuple[Build, Record]:
    def prepared(setup: Setup, record: bool) -> Callable[[], DreamOutput]:
        engine = DreamEngine(setup.m, setup.spec, device, backend, precision, num_threads)
        plan, params = setup.plan, setup.params.to(device)
        return lambda: engine.rollout(
            params, setup.starts, plan.episodes, plan.max_steps, plan.temperature, plan.seed, plan.reward, plan.done,
            record=record,
        )  # fmt: skip

    def build(setup: Setup) -> Callable[[], Tensor]:
        dream = prepared(setup, record=False)
        return lambda: dream().returns.cpu()

    return build, lambda setup: prepared(setup, record=True)()


def _peer(peer: ModuleType, device: str, precision: str) -> Build:
    return lambda setup: peer.prepare(setup, device, precision)


def reference(setup: Setup, precision: str = "fp64", common_random_numbers: bool = True) -> Tensor:
    """Returns [P, E] of a setup in float64 by the torch backend, itself held to the oracle by the tests."""
    plan = setup.plan
    out = DreamEngine(setup.m, setup.spec, "cpu", "torch", precision).rollout(
        setup.params,
        setup.starts,
        plan.episodes,
        plan.max_steps,
        plan.temperature,
        plan.seed,
        plan.reward,
        plan.done,
        common_random_numbers,
    )
    return out.returns.double()
