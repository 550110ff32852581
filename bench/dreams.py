"""Dream speeds: engine, peers and ceiling measured together, each after its check."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .ceiling import PEAK, PRODUCTS, peak_steps, products
from .check import WrongResultError, check
from .measure import Timing, interleave, ratio
from .rivals import Rival
from .workload import Workload, prepare

# A timed run is to last about this long: shorter ones drown in the clock, longer ones make an evening of it.
_RUN_SECONDS = 1.0
_LEAST_STEPS = 4

ONE_THREAD = "one thread"
"""The kind of a rival that is the engine itself on one thread, for engines of its precision to be compared with."""


@dataclass(frozen=True)
class Entry:
    """One rival on one workload, in dream steps and rollouts a second.

    kind : "engine", "peer", "ceiling" or ONE_THREAD
    wrong : why it has no speed, where its check failed; the numbers are then None
    versus : how many times the rate of each peer this is, by the peer's name, and of the engine on one thread
    of_ceiling : the share of the machine's ceiling at the same precision: the instruction peak where the C++ core can
        measure it, else the bare matrix products; None where there is neither
    """

    name: str
    kind: str
    precision: str
    workload: Workload
    steps_per_second: float | None = None
    p20: float | None = None
    p80: float | None = None
    spread: float | None = None
    rollouts_per_second: float | None = None
    wrong: str | None = None
    versus: dict[str, float] = dataclasses.field(default_factory=dict)
    of_ceiling: float | None = None

    def row(self) -> dict[str, Any]:
        """A flat JSON-able record."""
        values = dataclasses.asdict(self)
        return {"op": "dream"} | values.pop("workload") | values


@dataclass(frozen=True)
class _Ready:
    """A rival built and checked: ``run`` does ``amount`` steps."""

    name: str
    kind: str
    precision: str
    run: Callable[[], Tensor | None]
    amount: float


def measure(
    workload: Workload,
    field: Sequence[Rival],
    rounds: int,
    say: Callable[[str], None],
    clock: Callable[[], float] | None = None,
) -> list[Entry]:
    """Check every rival, then time those that are right, in turn, with the ceilings of their precisions.

    The steps of a timed run are cut so that one takes about a second; the rate of a step hardly depends on them.
    ``say`` is told what is going on; ``clock`` as in :func:`bench.measure.interleave`.
    """
    setup = prepare(workload)
    mean_length = setup.lived_steps() / workload.rollouts
    ready: list[_Ready] = []
    wrong: list[Entry] = []
    for rival in field:
        say(f"P={workload.candidates}: checking {rival.name}")
        try:
            check(rival, setup)
        except WrongResultError as error:
            wrong.append(Entry(rival.name, rival.kind, rival.precision, workload, wrong=str(error)))
            continue
        cut = _fitting(lambda steps, rival=rival: rival.build(rival.setup(setup).resized(steps=steps)), workload.steps)
        mine = rival.setup(setup).resized(steps=cut)
        ready.append(_Ready(rival.name, rival.kind, rival.precision, rival.build(mine), mine.lived_steps()))
    device = field[0].device if field else "cpu"
    for precision in dict.fromkeys(each.precision for each in ready):
        run = products(setup, device, precision)
        if run is not None:
            cut = _fitting(lambda steps, p=precision: products(setup.resized(steps=steps), device, p), workload.steps)
            run = products(setup.resized(steps=cut), device, precision)
            ready.append(_Ready(f"{PRODUCTS} {precision}", "ceiling", precision, run, workload.rollouts * cut))
        peak = peak_steps(setup, precision, torch.get_num_threads()) if device == "cpu" else None
        if peak is not None:
            ready.append(_Ready(f"{PEAK} {precision}", "ceiling", precision, *peak))
    if not ready:
        return wrong
    say(f"P={workload.candidates}: timing {len(ready)} rivals in turn, {rounds} rounds")
    timings = interleave({each.name: each.run for each in ready}, rounds, clock=clock)
    return [_entry(each, ready, timings, workload, mean_length) for each in ready] + wrong


def _fitting(build: Callable[[int], Callable[[], object] | None], most: int) -> int:
    """How many steps make a run of about a second."""
    steps = min(_LEAST_STEPS, most)
    while True:
        run = build(steps)
        assert run is not None
        run()
        began = time.perf_counter()
        run()
        seconds = time.perf_counter() - began
        if seconds >= 0.2 * _RUN_SECONDS or steps == most:
            return max(min(_LEAST_STEPS, most), min(most, round(steps * _RUN_SECONDS / max(seconds, 1e-6))))
        steps = min(most, 8 * steps)


def _entry(
    each: _Ready, ready: Sequence[_Ready], timings: dict[str, Timing], workload: Workload, mean_length: float
) -> Entry:
    timing = timings[each.name]
    versus = {
        peer.name: ratio(timing, each.amount, timings[peer.name], peer.amount)
        for peer in ready
        if each.kind != "ceiling"
        and (peer.kind == "peer" or (peer.kind, peer.precision) == (ONE_THREAD, each.precision))
    }
    ceilings = [c for c in ready if c.kind == "ceiling" and c.precision == each.precision]
    ceiling = max(ceilings, key=lambda c: c.name.startswith(PEAK), default=None)
    rate = each.amount / timing.median
    return Entry(
        name=each.name,
        kind=each.kind,
        precision=each.precision,
        workload=workload,
        steps_per_second=rate,
        p20=each.amount / timing.p80,
        p80=each.amount / timing.p20,
        spread=timing.spread,
        rollouts_per_second=rate / mean_length,
        versus=versus,
        of_ceiling=None if ceiling is None else ratio(timing, each.amount, timings[ceiling.name], ceiling.amount),
    )
