"""How OpenMP's threads wait for each other: V and M on an idle machine and on a busy one, by threads and wait policy.

    python -m bench.waiting [--json FILE]

Every row is a process of its own, since libgomp reads the policy when torch is loaded. "Busy" keeps all but one of the
CPUs busy with other processes. Rates are medians of several repetitions. `wm-engine` waits passively unless the
environment says otherwise (wm_engine/main.py).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_REPEATS = 5
_POLICIES = ("ACTIVE", "PASSIVE")


def measure(threads: int) -> dict[str, float]:
    """Measure this process: V's encoding of 16 frames, V's and M's training, in frames and steps a second."""
    import torch

    from wm_engine.data.sequences import EncodedEpisode, stack_windows
    from wm_engine.models.mdn_rnn import MDNRNN, MDNRNNSettings
    from wm_engine.models.trainer import Trainer
    from wm_engine.models.vae import VAE, VAESettings
    from wm_engine.rng import keyed_generator

    torch.set_num_threads(threads)
    vae, m = VAE(32), MDNRNN(32, 3, 256, 5)
    frames = torch.zeros(64, 64, 64, 3, dtype=torch.uint8)
    steps = 64
    latents = torch.zeros(steps + 1, 32)
    episode = EncodedEpisode(latents, latents, torch.zeros(steps, 3), torch.zeros(steps), False)
    batch = stack_windows([episode] * 16)
    v_trainer, m_trainer = Trainer("vision", vae), Trainer("memory", m)

    def encode() -> int:
        with torch.inference_mode():
            vae.encode(frames[:16])
        return 16

    def train_v() -> int:
        v_trainer.step(vae.loss(frames, keyed_generator(0), VAESettings())[0], 1e-3, 0.0)
        return len(frames)

    def train_m() -> int:
        m_trainer.step(m.loss(batch, keyed_generator(0), MDNRNNSettings())[0], 1e-3, 1.0)
        return 16 * steps

    cases = {"V encodes 16, frames/s": encode, "V learns, frames/s": train_v, "M learns, steps/s": train_m}
    return {name: _rate(work) for name, work in cases.items()}


def _rate(work: Any) -> float:
    work()
    rates = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        done = work()
        rates.append(done / (time.perf_counter() - began))
    return statistics.median(rates)


@contextmanager
def _others(count: int) -> Iterator[None]:
    """Keep ``count`` CPUs busy with processes of their own."""
    spin = "import os\nparent = os.getppid()\nwhile os.getppid() == parent:\n    sum(range(100000))"
    processes = [subprocess.Popen([sys.executable, "-c", spin]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def rows() -> Iterator[dict[str, Any]]:
    """Measure every case in a process of its own."""
    from wm_engine.machine import available_cpus

    cpus = available_cpus()
    for busy in (0, max(1, cpus - 1)):
        with _others(busy):
            for threads in dict.fromkeys((1, cpus)):
                for policy in _POLICIES if threads > 1 else _POLICIES[1:]:
                    command = [sys.executable, "-m", "wm_engine.bench.waiting", "--measure", str(threads)]
                    env = os.environ | {"OMP_WAIT_POLICY": policy}
                    out = subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout
                    yield {"CPUs busy elsewhere": busy, "threads": threads, "policy": policy.lower(), **json.loads(out)}


def main() -> None:
    """Print a table; write the rows as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the rows too")
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure is not None:
        print(json.dumps(measure(options.measure)))
        return
    found = []
    for row in rows():
        if not found:
            print("| " + " | ".join(row) + " |\n|" + " --- |" * len(row))
        found.append(row)
        print(
            "| "
            + " | ".join(f"{value:,.0f}" if isinstance(value, float) else str(value) for value in row.values())
            + " |"
        )
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
