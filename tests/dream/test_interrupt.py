"""Ctrl-C within a second, wherever a dream of the core is."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from wm_engine.core import core

CORE, REASON = core()

# In a process of its own: an interrupt that came too late would end the tests. Another thread sends it once the dream
# is under way, and what is timed lies between its sending and the exception's being caught, all on one clock.
CHILD = """
import json, os, signal, sys, threading, time, torch, wm_engine as wm

def interrupt():
    global sent
    time.sleep(0.2)
    sent = time.monotonic()
    os.kill(os.getpid(), signal.SIGINT)

def attempt(engine, params, starts):
    other = threading.Thread(target=interrupt)
    other.start()
    try:
        engine.rollout(params, starts, episodes=16, max_steps=2**31 - 1)
    except KeyboardInterrupt:
        return time.monotonic() - sent
    finally:
        other.join()
    raise SystemExit("an endless dream has ended")

for isa, precision, mixture, hidden, candidates, threads in json.loads(sys.argv[1]):
    os.environ["WM_ENGINE_ISA"] = isa
    m = wm.MDNRNN(32, 3, hidden, 5, mixture)
    m.state_dict()["head.bias"][-1] = -1e9  # no end
    c = wm.ControllerSpec(32, hidden, 3, squash="tanh")
    engine = wm.DreamEngine(m, c, backend="cpp", precision=precision, num_threads=threads)
    params, starts = torch.zeros(candidates, c.num_params), wm.Starts(torch.zeros(1, 32))
    waits = []
    while len(waits) < 3 and min(waits, default=9.0) >= 1.0:
        waits.append(attempt(engine, params, starts))
    # What was interrupted leaves nothing behind that hinders the next dream.
    after = engine.rollout(params[:1], starts, episodes=1, max_steps=2).lengths
    print(json.dumps([waits, after.tolist()]), flush=True)
"""


def cases() -> list[tuple[Any, ...]]:
    """The level, precision, mixture, H, candidates and threads of each dream."""
    assert CORE is not None
    best = CORE.isa_levels()[-1]
    return [
        (best, "fp32", "shared", 32, 1, 1),
        (best, "fp32", "per_dim", 256, 64, 3),
        (best, "int8", "per_dim", 256, 64, 2),
        ("scalar", "fp32", "per_dim", 1024, 16, 1),  # the slowest steps
        ("scalar", "bf16", "per_dim", 1024, 16, 2),
    ]


@pytest.mark.skipif(CORE is None, reason=REASON or "built")
def test_an_interrupt_ends_an_endless_dream_within_a_second() -> None:
    # The house asserts no times, but here the second is the contract itself. The best of three attempts counts: on a
    # busy machine any one may find that the process was not given the CPU, which says nothing about the core; a core
    # that asked too seldom for the interrupt would miss all three.
    wanted = cases()
    ran = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(wanted)], capture_output=True, text=True, timeout=240, check=False
    )
    assert ran.returncode == 0, ran.stderr
    results = [json.loads(line) for line in ran.stdout.splitlines()]
    for dream, (waits, lengths) in zip(wanted, results, strict=True):
        assert min(waits) < 1.0, f"{dream}: {waits} seconds"
        assert lengths == [[2]], dream
