"""Where the time of a dream step goes on a CPU: the C++ core's own timers, phase by phase."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from wm_engine.errors import MissingDependencyError

from .check import check
from .costs import phase_costs
from .rivals import Rival
from .workload import Setup

PHASES = {
    "controller": "controller",
    "gates": "gates and cell",
    "reward_and_end": "reward, end, logits",
    "mixture": "mixture head",
    "noise": "random numbers",
    "draw": "draw of z'",
    "ends": "ends, compaction",
}
# For `shared` the component is chosen with the random numbers; the names stay.
_REBUILD = "WM_ENGINE_CMAKE_ARGS=-DWM_PROFILE=ON pip install --force-reinstall --no-deps ."


@dataclass(frozen=True)
class PhaseTime:
    """One phase: its share of the threads' time, nanoseconds of one thread a rollout-step, and its rates.

    gflops : of all threads together, None for phases without matrix products; intensity : flops a byte
    """

    name: str
    share: float
    nanoseconds: float
    gflops: float | None
    intensity: float | None


@dataclass(frozen=True)
class CpuProfile:
    """phases in the order of a step; events : (thread, phase, rows, began, ended), nanoseconds, of the first steps."""

    phases: list[PhaseTime]
    events: list[tuple[int, str, int, int, int]]
    rows_a_tile: float
    row_steps: int


def profile_cpp(rival: Rival, setup: Setup, threads: int) -> CpuProfile:
    """Check the backend, dream the setup once to warm up and once for the record.

    Raises MissingDependencyError where the core was built without its timers, WrongResultError where it is wrong.
    """
    core = importlib.import_module("wm_engine._C")
    if not hasattr(core, "take_laps"):
        raise MissingDependencyError(
            f"the C++ core was built without its timers (they would cost other users time). Build it with: {_REBUILD}"
        )
    check(rival, setup)
    run = rival.build(setup)
    run()
    core.take_laps()
    run()
    return _evaluate(core.take_laps(), setup, rival.precision, threads)


def _evaluate(timings: dict[str, Any], setup: Setup, precision: str, threads: int) -> CpuProfile:
    nanoseconds, rows = timings["nanoseconds"], timings["rows"]
    row_steps = rows["gates"]
    gates = [event for event in timings["first"] if event[1] == "gates"]
    rows_a_tile = sum(event[2] for event in gates) / len(gates)
    total = sum(nanoseconds.values())
    costs = phase_costs(setup.workload, precision, rows_a_tile)
    phases = []
    for name, words in PHASES.items():
        each = nanoseconds[name] / row_steps
        cost = costs.get(name)
        phases.append(
            PhaseTime(
                name=words,
                share=nanoseconds[name] / total,
                nanoseconds=each,
                gflops=None if cost is None else threads * cost.flops / max(each, 1e-9),
                intensity=None if cost is None else cost.flops / cost.bytes,
            )
        )
    return CpuProfile(phases, list(timings["first"]), rows_a_tile, row_steps)


def chrome_trace(profile: CpuProfile) -> dict[str, Any]:
    """The first steps in the trace-event format that chrome://tracing and ui.perfetto.dev read."""
    origin = min((event[3] for event in profile.events), default=0)
    return {
        "displayTimeUnit": "ns",
        "traceEvents": [
            {
                "name": PHASES[phase],
                "cat": "dream",
                "ph": "X",
                "pid": 0,
                "tid": thread,
                "ts": (began - origin) / 1e3,
                "dur": (ended - began) / 1e3,
                "args": {"rollouts": rows},
            }
            for thread, phase, rows, began, ended in profile.events
        ],
    }
