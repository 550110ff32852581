"""``wm-engine bench`` and ``wm-engine profile``, as click commands for the command line to add."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import torch

from wm_engine.machine import available_cpus
from wm_engine.ops.mdn import MIXTURES
from wm_engine.runs import write_json

from . import history, plots
from .dreams import Entry, measure
from .peers import torch_compile
from .provenance import provenance
from .rivals import Rival, rivals
from .tables import dream_table, machine_lines, workload_line
from .workload import Workload


def _say(text: str) -> None:
    click.echo(text, err=True)


@click.command()
@click.option(
    "-P",
    "populations",
    multiple=True,
    type=click.IntRange(1),
    default=(64,),
    show_default=True,
    help="Candidates; give it several times for a sweep (peers that dream one by one run in the first).",
)
@click.option("-E", "episodes", type=click.IntRange(1), default=16, show_default=True, help="Episodes a candidate.")
@click.option(
    "-T",
    "steps",
    type=click.IntRange(1),
    default=200,
    show_default=True,
    help="Most steps of an episode; a timed run takes fewer if these last over a second.",
)
@click.option("-Z", "latent", type=click.IntRange(1), default=32, show_default=True, help="Latent dimensions.")
@click.option("-H", "hidden", type=click.IntRange(1), default=256, show_default=True, help="Hidden units of M.")
@click.option("-K", "mixtures", type=click.IntRange(1), default=5, show_default=True, help="Mixture components.")
@click.option("--mixture", type=click.Choice(MIXTURES), default="per_dim", show_default=True)
@click.option(
    "--early-end",
    type=click.FloatRange(0.0, 1.0, max_open=True),
    default=0.0,
    show_default=True,
    help="Share of the rollouts that end before step T.",
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto", show_default=True)
@click.option("--backend", "backends", multiple=True, help="Engine backends to time.  [default: all here]")
@click.option("--precision", "precisions", multiple=True, help="Precisions to time.  [default: fp32, bf16, int8]")
@click.option(
    "--peers",
    type=click.Choice(["none", "quick", "all"]),
    default="quick",
    show_default=True,
    help="Whom to compare with; all adds torch.compile, which takes a minute to compile.",
)
@click.option("--threads", type=click.IntRange(1), help="CPU threads.  [default: all this process may use]")
@click.option("--rounds", type=click.IntRange(1), default=7, show_default=True, help="Timed runs of each rival.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), metavar="FILE", help="Write the rows here too.")
@click.option(
    "--plot",
    "plot_path",
    type=click.Path(path_type=Path),
    metavar="PNG",
    help="Plot steps/s against population (or, with --history, against time).",
)
@click.option(
    "--history-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Where rows are appended.  [default: wm_engine/bench.jsonl in the user's data folder]",
)
@click.option("--history", "show_history", is_flag=True, help="Measure nothing; plot what was measured so far.")
def bench(
    populations: tuple[int, ...], episodes: int, steps: int, latent: int, hidden: int, mixtures: int, mixture: str,
    early_end: float, device: str, backends: tuple[str, ...], precisions: tuple[str, ...], peers: str,
    threads: int | None, rounds: int, json_path: Path | None, plot_path: Path | None, history_file: Path | None,
    show_history: bool,
) -> None:  # fmt: skip
    """Time dreams, beside the peers and the machine's ceiling.

    Every rival is first checked against a float64 dream; a wrong one gets no speed, and the exit status is 1. Rivals
    are then timed in turn, round after round: the table has medians with their 20 and 80 % quantiles, and ratios taken
    within rounds. The ceiling is the dream's bare matrix products by torch at the same precision. Rows marked * are
    the engine's.

    \b
    Examples:
      wm-engine bench
      wm-engine bench -P 16 -P 64 -P 256 -P 1024 --plot speed.png
      wm-engine bench --mixture shared --early-end 0.5 --peers none
      wm-engine bench --history --plot history.png
    """
    path = history_file or history.default_path()
    if show_history:
        _show_history(path, plot_path or Path("history.png"))
        return
    chosen = device if device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(threads or available_cpus())
    field, reasons = _field(chosen, threads, backends, precisions or ("fp32", "bf16", "int8"), peers)
    if not field:
        raise click.UsageError(f"nothing to time: no such backend or precision here ({_joined(reasons)})")
    origin = provenance(chosen, threads)
    for line in machine_lines(origin):
        click.echo(line)
    for name, reason in reasons.items():
        click.echo(f"not here: {name}: {reason}")
    entries: list[Entry] = []
    for index, candidates in enumerate(populations):
        work = Workload(candidates, episodes, steps, latent, hidden, mixtures, 3, mixture, early_end)
        here = field if index == 0 else [rival for rival in field if rival.sample is None]
        measured = measure(work, here, rounds, _say)
        click.echo("\n" + workload_line(measured[0]))
        for line in dream_table(measured):
            click.echo(line)
        history.append(path, [entry.row() | origin for entry in measured])
        entries += measured
    click.echo(f"\nappended to {path}")
    if json_path is not None:
        write_json(json_path, {"machine": origin, "rows": [entry.row() for entry in entries]})
        click.echo(f"written to {json_path}")
    if plot_path is not None:
        plots.write(plots.population_plot(entries), plot_path)
        click.echo(f"plotted to {plot_path}")
    if any(entry.wrong for entry in entries):
        sys.exit(1)


def _field(
    device: str, threads: int | None, backends: Sequence[str], precisions: Sequence[str], peers: str
) -> tuple[list[Rival], dict[str, str]]:
    """Those of the rivals here that were asked for."""
    here, reasons = rivals(device, threads)
    field = []
    for rival in here:
        if rival.kind == "peer":
            slow_to_build = rival.name.startswith(torch_compile.NAME)
            wanted = peers == "all" or (peers == "quick" and not slow_to_build)
            wanted = wanted and (rival.precision in precisions or rival.sample is not None)
        else:
            wanted = rival.precision in precisions and (not backends or rival.name.split()[0] in backends)
        if wanted:
            field.append(rival)
    return field, reasons if peers != "none" else {}


def _joined(reasons: dict[str, str]) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in reasons.items()) or "see `wm-engine info`"


def _show_history(path: Path, plot_path: Path) -> None:
    rows = [row for row in history.read(path) if row.get("op") == "dream" and row.get("steps_per_second")]
    if not rows:
        raise click.UsageError(f"{path}: no history yet; `wm-engine bench` begins one")
    series: dict[str, list[tuple[str, float]]] = {}
    for row in rows:
        series.setdefault(_series(row), []).append((_when(row), row["steps_per_second"]))
    for name, points in series.items():
        click.echo(f"{name}: " + ", ".join(f"{when}: {rate:,.0f}" for when, rate in points[-5:]))
    plots.write(plots.history_plot(series), plot_path)
    click.echo(f"{len(rows)} rows of {path} plotted to {plot_path}")


def _series(row: dict[str, Any]) -> str:
    device = row["cpu"] if row["device"] == "cpu" else row["device"]
    ends = f" early {row['early_end']:g}" if row["early_end"] else ""
    work = f"P={row['candidates']} E={row['episodes']} {row['mixture']}{ends}"
    return f"{row['name']} {work}, {device}, {row['threads']} threads"


def _when(row: dict[str, Any]) -> str:
    return f"{row['date'][:16].replace('T', ' ')} {row['commit'] or row['wm_engine']}"
