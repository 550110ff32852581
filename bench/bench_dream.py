"""Dream steps per second of every backend and peer on one workload: P=64, E=16, T=200 at the paper's size.

Each is checked against the float64 dream before it is timed (``bench.check``), and fails without a time where it is
wrong. Peers read the random numbers that the engine's backends draw themselves. The one-rollout loop is timed on the
rollouts of one candidate: it has a rate per step, not a time for the whole.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch

from wm_engine.machine import available_cpus
from wm_engine.ops.mdn import MIXTURES

from .check import check
from .rivals import Rival, rivals
from .workload import Setup, Workload, prepare

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
_HERE, _MISSING = rivals(DEVICE)
# CPUs have no float16 products worth the name: torch's are emulated.
_TIMED = [rival for rival in _HERE if DEVICE != "cpu" or rival.precision != "fp16"]


@cache
def _setup(mixture: str) -> Setup:
    torch.set_num_threads(available_cpus())
    return prepare(Workload(mixture=mixture))


@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("rival", _TIMED, ids=lambda rival: rival.name)
def test_dream(rival: Rival, mixture: str, time_rate) -> None:
    whole = _setup(mixture)
    check(rival, whole)
    setup = rival.setup(whole)
    steps = setup.workload.rollouts * setup.workload.steps
    time_rate(rival.build(setup), steps, "steps", f"dream, {mixture}, {DEVICE}", rival.name)


@pytest.mark.parametrize("name", sorted(_MISSING))
def test_missing(name: str) -> None:
    pytest.skip(f"{name}: {_MISSING[name]}")
