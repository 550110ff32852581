"""The loop: many small rounds of drive, see, remember, dream, judge, on one state that is never begun anew.

    ┌─► drive ───► store ───► see ───► remember ───► dream ───► judge ─┐
    │   real env   episodes   V, z     M             C by a learner    │
    └──────────────────────────────────────────────────────────────────┘

The paper's pipeline (Ha & Schmidhuber 2018) is this loop with one round and large budgets; evolution in the real
environment is this loop with ``controller.train_in = "real"``.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import torch

from wm_engine.cluster import RayFleet
from wm_engine.errors import RunMismatchError
from wm_engine.files import lock_folder, read_json, sweep_temporaries
from wm_engine.fleet import Fleet
from wm_engine.machine import choose_precision, use_threads
from wm_engine.models.trainer import repeatable
from wm_engine.progress import track
from wm_engine.recorder import Recorder
from wm_engine.run.config import Config, device_of, read_config
from wm_engine.run.estimate import Estimate, estimate
from wm_engine.run.final import finish
from wm_engine.run.folder import RunFolder
from wm_engine.run.state import LoopState
from wm_engine.run.steps import STEPS, Step

_log = logging.getLogger(__name__)

OnChange = Literal["refuse", "keep"]


def run_loop(
    root: Path,
    config: Config,
    *,
    on_change: OnChange = "refuse",
    ray: str | None = None,
    steps: Sequence[tuple[str, Step]] = STEPS,
) -> None:
    """Bring the run folder ``root`` to the end of ``config.rounds`` rounds, and score what it published.

    Killed at any moment and called again, it goes on from its last checkpoint and ends with the same bits.

    Parameters
    ----------
    root : the run folder; made where it is not there
    config : the resolved configuration, written to ``config.toml`` before any work
    on_change : what happens to a run that was begun with other settings: "refuse" raises, "keep" goes on with the new
        ones from where it is
    ray : a Ray cluster that drives and dreams, "auto" or HOST:PORT; results are those without it

    Raises RunMismatchError where the folder holds other work, RunBusyError where another process is at it, ConfigError
    or MissingDependencyError where this machine cannot do what the configuration asks for, WMEngineError where the
    cluster is not there or is lost.
    """
    folder = RunFolder(Path(root))
    folder.check()
    _check_own(folder)
    use_threads(config.threads)
    device_of(config)
    config.env.found()
    with lock_folder(folder.root):
        sweep_temporaries(folder.root)
        with Recorder(folder.metrics) as recorder, workers([config], ray) as fleet:
            state = LoopState(config, folder, recorder, fleet)
            resumed = state.restore(keep_settings=on_change == "keep")
            if not resumed and len(state.store) and folder.config.exists():
                # Cut before its first checkpoint: its episodes were driven by the settings that were written first.
                state.check_settings(read_config(folder.config).identity(), on_change == "keep")
            config.write(folder.config)
            if resumed:
                _log.info("goes on in round %d, %s", state.place.round, state.place.step)
            with contextlib.closing(state), repeatable(state.device):
                wanted = config.estimate and state.task.simulated and not resumed
                expected = estimate(state) if wanted else None
                _rounds(state, steps, expected)
                finish(state)


def _check_own(folder: RunFolder) -> None:
    """Refuse a folder of imported models, which a run would publish its own over: RunMismatchError."""
    if folder.published.exists() and "imported" in read_json(folder.published):
        raise RunMismatchError(
            f"{folder.root}: holds models that were imported, and nothing to go on from. Choose another --run folder."
        )


@contextlib.contextmanager
def workers(configs: Sequence[Config], ray: str | None) -> Iterator[Fleet | None]:
    """Keep a cluster's workers ready for work of these configurations, all on one device; None without a cluster."""
    if ray is None:
        yield None
        return
    config = configs[0]
    device = device_of(config)
    precisions = {"fp32", choose_precision("vision.precision", config.vision.encoding_precision(), device)}
    precisions |= {choose_precision("dream.precision", one.dream.precision, device) for one in configs}
    with contextlib.closing(RayFleet(ray, config.cluster, config.device, torch.get_num_threads(), precisions)) as fleet:
        yield fleet


def _rounds(state: LoopState, steps: Sequence[tuple[str, Step]], expected: Estimate | None) -> None:
    names = [name for name, _ in steps]
    place, rounds = state.place, state.config.rounds
    saved = time.monotonic()
    with track(rounds, "rounds", "round", initial=place.round) as bar:
        while place.round < rounds:
            for name, step in steps[names.index(place.step) :]:
                if place.step != name:
                    place.step, place.done = name, 0
                bar.set_postfix_str(name)
                began = time.monotonic()
                for _ in step(state):
                    place.done += 1
                    _count(place.seconds, name, began)
                    began = time.monotonic()
                    if began - saved >= state.config.checkpoint_seconds:
                        state.save()
                        saved = time.monotonic()
                        _count(place.seconds, "bookkeeping", began)
                        began = saved
                _count(place.seconds, name, began)
            began = time.monotonic()
            _log_round(state)
            if expected is not None:
                expected.check(place.round, place.total_seconds + sum(place.seconds.values()))
            place.total_seconds += sum(place.seconds.values())
            place.round, place.step, place.done, place.seconds = place.round + 1, names[0], 0, {}
            state.save()
            saved = time.monotonic()
            _count(place.seconds, "bookkeeping", began)
            bar.update(1)


def _count(seconds: dict[str, float], name: str, began: float) -> None:
    seconds[name] = seconds.get(name, 0.0) + time.monotonic() - began


def _log_round(state: LoopState) -> None:
    place = state.place
    whole = sum(place.seconds.values())
    overhead = place.seconds.get("bookkeeping", 0.0)
    minutes = (place.total_seconds + whole) / 60.0
    numbers = {f"{name}_seconds": value for name, value in place.seconds.items()}
    state.recorder.log(
        "round", place.round, place.round, minutes=minutes, learning_frames=place.learning_frames,
        judged_frames=place.judged_frames, overhead_share=overhead / whole if whole else 0.0, **numbers,
    )  # fmt: skip
    spent = ", ".join(f"{name} {value:.1f}" for name, value in place.seconds.items())
    _log.info(
        "round %d: %.1f minutes, %d k real frames (%s s; bookkeeping %.1f %%)",
        place.round, minutes, place.learning_frames // 1000, spent, 100.0 * overhead / whole if whole else 0.0,
    )  # fmt: skip
