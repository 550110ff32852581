"""Why do dreams of CartPole fail, and what cures them? ``python -m bench.worlds.cartpole --out FOLDER``.

Each row changes something of the preset ``cartpole`` and trains it with several seeds, in run folders like any other
(``FOLDER/ROW/SEED``), with as many real frames, about, and as many steps of M and generations of C in all. What was cut
goes on where it stopped when the same command is given again. In the dream a policy is scored on dreams of at most 500
steps from recorded states, for real on the episodes of ``evaluate``.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from wm_engine.errors import WMEngineError
from wm_engine.files import read_json, write_json
from wm_engine.policies.controller import Controllers
from wm_engine.run.config import Config, apply_change, load_preset, make_config
from wm_engine.run.folder import RunFolder
from wm_engine.run.loop import run_loop
from wm_engine.run.published import load_run

from ..tables import aligned

FRAMES = 500
"""The most frames of an episode, dreamt or real."""

_PLAIN = ("estimate=false", "evaluate.film=false")
# All of the preset's real frames (at most 18,800), optimiser steps and generations, in one round of random pushes.
_RANDOM = (
    "rounds=1", "drive.first_episodes=840", "memory.first_steps=720", "controller.dream_generations=40",
)  # fmt: skip
_LSTM = ("memory.kind=lstm", "memory.residual=false", "memory.members=1")
_MDN = ("memory.mixtures=5", "memory.residual=false", "memory.members=1")
_RESIDUAL = ("memory.residual=true",)
_ENSEMBLE = ("memory.members=5",)


@dataclass(frozen=True)
class Row:
    """A row of the table: its label, and what it changes of the preset."""

    label: str
    changes: tuple[str, ...]


ROWS = {
    "lstm": Row("LSTM, random data", (*_RANDOM, *_LSTM)),
    "mdn": Row("MDN-LSTM, random data", (*_RANDOM, *_MDN)),
    "lstm-residual": Row("LSTM, residual", (*_RANDOM, *_LSTM, *_RESIDUAL)),
    "mdn-residual": Row("MDN-LSTM, residual", (*_RANDOM, *_MDN, *_RESIDUAL)),
    "lstm-ensemble": Row("LSTM, ensemble", (*_RANDOM, *_LSTM, *_ENSEMBLE)),
    "mdn-ensemble": Row("MDN-LSTM, ensemble", (*_RANDOM, *_MDN, *_ENSEMBLE)),
    "lstm-rounds": Row("LSTM, rounds", _LSTM),
    "mdn-rounds": Row("MDN-LSTM, rounds", _MDN),
    "lstm-both": Row("LSTM, residual, ensemble", (*_RANDOM, *_LSTM, *_RESIDUAL, *_ENSEMBLE)),
    "both": Row("one component, residual, ensemble", _RANDOM),
    "preset": Row("the preset: these and rounds", ()),
}
"""By the name that ``--rows`` takes."""


def config_of(row: Row, changes: Sequence[str] = ()) -> Config:
    """Return the preset with a row's changes, and more of them."""
    tables = load_preset("cartpole")
    for change in (*row.changes, *changes):
        apply_change(tables, change)
    if tables["memory"]["kind"] == "lstm":  # it has no mixture
        del tables["memory"]["mixtures"]
    return make_config(tables, source="preset cartpole")


def measure(folder: Path, row: Row, seed: int, changes: Sequence[str] = ()) -> dict[str, Any]:
    """Train a row with a seed, unless that is done; returns its scores as plain values.

    ``changes``: of the preset, on top of the row's, for smaller runs.
    """
    run_loop(folder, config_of(row, [*_PLAIN, f"seed={seed}", *changes]))
    run = load_run(folder)
    if not isinstance(run.controller, Controllers):
        raise WMEngineError(f"{folder}: its policy is no controller")
    out = run.engine().rollout(
        run.controller.params, run.starts(100), episodes=100, max_steps=FRAMES, seed=seed, reward="survival"
    )
    scores: Mapping[str, Any] = read_json(RunFolder(folder).scores)
    return {
        "dream": float(out.returns.mean()),
        "real": scores["controller"]["mean"],
        "random": scores["random"]["mean"],
        "peers": {name: score["mean"] for name, score in scores["baselines"].items() if "mean" in score},
        "frames": scores["published"]["learning_frames"],
        "minutes": scores["published"]["minutes"],
    }


def table(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """Write the rows that there are, in the order of :data:`ROWS`: means and each seed's real score."""
    lines = [["", "dream", "real", "real, each seed", "real frames", "minutes", "random", "DQN"]]
    for name, row in ROWS.items():
        if not (runs := found.get(name)):
            continue

        def mean(key: str, runs: Sequence[Mapping[str, Any]] = runs) -> float:
            return float(np.mean([run[key] for run in runs]))

        each = ", ".join(f"{run['real']:.0f}" for run in runs)
        peers = [run["peers"]["DQN"] for run in runs if "DQN" in run["peers"]]
        lines.append([
            row.label, f"{mean('dream'):.0f}", f"{mean('real'):.0f}", each, f"{mean('frames'):,.0f}",
            f"{mean('minutes'):.1f}", f"{mean('random'):.0f}", f"{np.mean(peers):.0f}" if peers else "",
        ])  # fmt: skip
    return aligned(lines)


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="FOLDER", help="Holds the runs.")
@click.option("--rows", default=",".join(ROWS), show_default=True, help="Which, by name, with commas between.")
@click.option("--seeds", type=click.IntRange(1), default=5, show_default=True, help="Runs of each row: seeds 0, 1, ...")
@click.option("--set", "changes", multiple=True, metavar="SECTION.KEY=VALUE", help="Change a setting of every row.")
def cli(out: Path, rows: str, seeds: int, changes: tuple[str, ...]) -> None:
    """Train CartPole in dreams that fail, and in those that do not; print the table, and write FOLDER/table.json.

    DQN (extra `peers`) learns in the preset's row alone, from as many real frames.
    """
    chosen = rows.split(",")
    if unknown := [name for name in chosen if name not in ROWS]:
        raise click.BadParameter(f"{unknown[0]!r} is no row; there are {', '.join(ROWS)}", param_hint="--rows")
    found: dict[str, list[dict[str, Any]]] = {}
    for seed in range(seeds):
        for name in chosen:
            peers = f"evaluate.peers={str(name == 'preset').lower()}"
            found.setdefault(name, []).append(measure(out / name / str(seed), ROWS[name], seed, [peers, *changes]))
            write_json(out / "table.json", found)
    click.echo("\n".join(table(found)))


if __name__ == "__main__":
    try:
        cli()
    except WMEngineError as error:
        sys.exit(f"error: {error}")
