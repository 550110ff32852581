"""``wm-engine bench`` and ``wm-engine profile``, as click commands for the command line to add."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import torch

from wm_engine.files import write_json
from wm_engine.machine import available_cpus
from wm_engine.ops.mdn import MIXTURES

from . import history, plots
from .check import WrongResultError
from .dreams import Entry, measure
from .peers import torch_compile
from .profile_cpu import CpuProfile, chrome_trace, profile_cpp
from .profile_torch import OperatorTime, profile_torch
from .provenance import provenance
from .rivals import Rival, rivals
from .roofs import Roofs, measure_roofs
from .tables import aligned, dream_table, history_table, machine_lines, workload_line
from .workload import Workload, prepare

_MOST_OPERATORS = 15
_NAME_WIDTH, _POINT_WIDTH = 60, 32

_SIZES = {
    "-E": ("episodes", 16, "Episodes a candidate."),
    "-T": ("steps", 200, "Most steps of an episode; a timed run takes fewer if these last over a second."),
    "-Z": ("latent", 32, "Latent dimensions."),
    "-H": ("hidden", 256, "Hidden units of M."),
    "-K": ("mixtures", 5, "Mixture components."),
}


def _workload_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that both commands describe a workload with."""
    share = click.FloatRange(0.0, 1.0, max_open=True)
    options = [
        *(
            click.option(letter, name, type=click.IntRange(1), default=default, show_default=True, help=text)
            for letter, (name, default, text) in _SIZES.items()
        ),
        click.option("--mixture", type=click.Choice(MIXTURES), default="per_dim", show_default=True),
        click.option(
            "--early-end", type=share, default=0.0, show_default=True, help="Share of rollouts that end before step T."
        ),
        click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto", show_default=True),
        click.option("--threads", type=click.IntRange(1), help="CPU threads.  [default: all this process may use]"),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _say(text: str) -> None:
    click.echo(text, err=True)


def _device(name: str) -> str:
    return name if name != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")


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
@_workload_options
@click.option("--backend", "backends", multiple=True, help="Engine backends to time.  [default: all here]")
@click.option("--precision", "precisions", multiple=True, help="Precisions to time.  [default: fp32, bf16, int8]")
@click.option(
    "--peers",
    type=click.Choice(["none", "quick", "all"]),
    default="quick",
    show_default=True,
    help="Whom to compare with; all adds torch.compile, which takes a minute to compile.",
)
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
    populations: tuple[int, ...],
    device: str,
    threads: int | None,
    backends: tuple[str, ...],
    precisions: tuple[str, ...],
    peers: str,
    rounds: int,
    json_path: Path | None,
    plot_path: Path | None,
    history_file: Path | None,
    show_history: bool,
    **sizes: Any,
) -> None:
    """Time dreams, beside the peers and the machine's ceiling.

    Every rival is first checked against a float64 dream; a wrong one gets no speed, and the exit status is 1. Rivals
    are then timed in turn, round after round: the table has medians with their 20 and 80 % quantiles, and ratios taken
    within rounds. The ceiling is the processor's instruction peak for the multiply-adds of a step, or, where that
    cannot be measured, the dream's bare matrix products by torch. Rows marked * are the engine's.

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
    device = _device(device)
    torch.set_num_threads(threads or available_cpus())
    field, reasons = _field(device, threads, backends, precisions or ("fp32", "bf16", "int8"), peers)
    if not field:
        raise click.UsageError(f"nothing to time: no such backend or precision here ({_joined(reasons)})")
    origin = provenance(device, threads)
    for line in machine_lines(origin):
        click.echo(line)
    for name, reason in reasons.items():
        click.echo(f"not here: {name}: {reason}")
    entries: list[Entry] = []
    for index, candidates in enumerate(populations):
        here = field if index == 0 else [rival for rival in field if rival.sample is None]
        measured = measure(Workload(candidates, **sizes), here, rounds, _say)
        click.echo("\n" + workload_line(measured[0].workload))
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


@click.command()
@click.option("-P", "candidates", type=click.IntRange(1), default=64, show_default=True, help="Candidates.")
@_workload_options
@click.option("--backend", default="auto", show_default=True, help="The engine's backend.")
@click.option("--precision", default="fp32", show_default=True)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("profile"),
    show_default=True,
    metavar="DIR",
    help="Where trace.json, profile.json and roofline.png go.",
)
@click.option(
    "--json", "json_path", type=click.Path(path_type=Path), metavar="FILE", help="Write profile.json here too."
)
def profile(
    candidates: int,
    device: str,
    threads: int | None,
    backend: str,
    precision: str,
    out: Path,
    json_path: Path | None,
    **sizes: Any,
) -> None:
    """Show where the time of a dream step goes.

    The C++ core times its own phases in builds made for it (it says how to make one); other backends are watched by
    torch.profiler, operator by operator on a CPU and kernel by kernel on a GPU. The backend is checked first: a wrong
    one is not profiled. trace.json opens in ui.perfetto.dev or chrome://tracing.

    \b
    Examples:
      wm-engine profile
      wm-engine profile --precision bf16 --mixture shared --out profile-shared
      wm-engine profile --backend torch -T 20
    """
    device = _device(device)
    threads = threads or available_cpus()
    torch.set_num_threads(threads)
    engines = [rival for rival in rivals(device, threads)[0] if rival.kind == "engine" and rival.precision == precision]
    chosen = next((rival for rival in engines if backend in ("auto", rival.name.split()[0])), None)
    if chosen is None:
        there = ", ".join(rival.name.split()[0] for rival in engines) or "none"
        raise click.UsageError(f"no backend {backend!r} in {precision} on {device}; there is {there}")
    setup = prepare(Workload(candidates, **sizes))
    origin = provenance(device, threads)
    for line in (*machine_lines(origin), f"{chosen.name}, {workload_line(setup.workload)}"):
        click.echo(line)
    roofs = measure_roofs(device, precision, threads)
    out.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {"machine": origin, "backend": chosen.name, "workload": dataclasses.asdict(setup.workload)}
    record["roofs"] = dataclasses.asdict(roofs)
    try:
        if chosen.name.startswith("cpp"):
            phases = profile_cpp(chosen, setup, threads)
            write_json(out / "trace.json", chrome_trace(phases))
            _show_phases(phases, roofs, out / "roofline.png", chosen.name)
            record["phases"] = [dataclasses.asdict(phase) for phase in phases.phases]
        else:
            operators = profile_torch(chosen, setup, out / "trace.json", roofs)
            _show_operators(operators, roofs, out / "roofline.png", chosen.name)
            total = sum(operator.seconds for operator in operators)
            # Dense, as the rows count them: it is what kernels multiply, though of components one is chosen.
            flops = 2.0 * sum(setup.workload.macs_per_step().values()) * setup.lived_steps() / total
            said = f"{flops / 1e9:,.0f} GFLOP/s of dense products{_of_peak(flops, roofs)}"
            click.echo(f"all together {total:.3f} s, {said}")
            record["operators"] = [operator.row() for operator in operators]
    except WrongResultError as error:
        click.echo(f"WRONG, not profiled: {error}")
        sys.exit(1)
    for path in (out / "profile.json", *((json_path,) if json_path else ())):
        write_json(path, record)
    click.echo(f"trace.json, profile.json and roofline.png are in {out}")


def _show_phases(profile: CpuProfile, roofs: Roofs, path: Path, title: str) -> None:
    rows = [
        [
            phase.name,
            f"{100 * phase.share:.1f} %",
            f"{phase.nanoseconds:,.0f}",
            "" if phase.gflops is None else f"{phase.gflops:,.0f}",
            "" if phase.gflops is None or not roofs.flops else f"{100e9 * phase.gflops / roofs.flops:.0f} %",
            "" if phase.intensity is None else f"{phase.intensity:.1f}",
        ]
        for phase in profile.phases
    ]
    total = sum(phase.nanoseconds for phase in profile.phases)
    rows.append(["all", "100.0 %", f"{total:,.0f}", "", "", ""])
    click.echo("\n".join(aligned([["phase", "time", "ns a step", "GFLOP/s", "of peak", "flops/byte"], *rows])))
    peak = f"{roofs.flops / 1e9:,.0f} GFLOP/s" if roofs.flops else "no products at this precision"
    click.echo(
        f"{profile.row_steps:,} rollout steps in tiles of {profile.rows_a_tile:.0f}; ns of one thread; rates of all "
        f"threads; measured roofs: {peak}, {roofs.memory / 1e9:,.0f} GB/s memory"
    )
    points = {
        phase.name: (phase.intensity, phase.gflops, phase.share)
        for phase in profile.phases
        if phase.gflops is not None and phase.intensity is not None
    }
    plots.write(plots.roofline_plot(points, roofs, title), path)


def _show_operators(operators: Sequence[OperatorTime], roofs: Roofs, path: Path, title: str) -> None:
    """The longest as a table, and those of them whose flops and bytes are known as a roofline."""

    def number(value: float | None, form: str = ",.1f", unit: str = "") -> str:
        return "" if value is None else f"{value:{form}}{unit}"

    def percent(value: float | None) -> str:
        return number(None if value is None else 100 * value, ".0f", " %")

    # Numbered, because long names are cut short.
    longest = {f"{place} {operator.label}": operator for place, operator in enumerate(operators[:_MOST_OPERATORS], 1)}
    rows = [
        [
            name[:_NAME_WIDTH],
            f"{100 * operator.share:.1f} %",
            f"{operator.calls:,}",
            f"{1e6 * operator.seconds / max(1, operator.calls):,.1f}",
            number(None if operator.bytes is None else operator.bytes / operator.seconds / 1e9),
            percent(operator.of_bandwidth),
            number(operator.gflops),
            percent(operator.of_peak),
            number(operator.intensity),
        ]
        for name, operator in longest.items()
    ]
    head = ["operator or kernel", "time", "calls", "us a call", "GB/s", "of copy", "GFLOP/s", "of peak", "flops/byte"]
    click.echo("\n".join(aligned([head, *rows])))
    peak = f"{roofs.flops / 1e9:,.0f} GFLOP/s" if roofs.flops else "no products at this precision"
    click.echo(f"bytes are the least that must move; measured roofs: {peak}, copy {roofs.memory / 1e9:,.0f} GB/s")
    points = {
        name[:_POINT_WIDTH]: (operator.intensity, operator.gflops, operator.share)
        for name, operator in longest.items()
        if operator.intensity is not None and operator.gflops is not None
    }
    plots.write(plots.roofline_plot(points, roofs, title, numbered=True), path)


def _of_peak(flops: float, roofs: Roofs) -> str:
    return f", {100 * flops / roofs.flops:.0f} % of the machine's peak" if roofs.flops else ""


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
    found = history.dreams(history.read(path))
    if not found:
        raise click.UsageError(f"{path}: no history yet; `wm-engine bench` begins one")
    for work, lines in found.items():
        click.echo(work)
        for line in history_table(lines):
            click.echo(line)
        click.echo()
    plots.write(plots.history_plot(found), plot_path)
    count = sum(len(line.rates) for lines in found.values() for line in lines.values())
    click.echo(f"{count} rates of {path} plotted to {plot_path}")
