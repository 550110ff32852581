"""The command line: what ``wm-engine --help`` lists, each command a function."""

from __future__ import annotations

import importlib
import json
import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from wm_engine.errors import WMEngineError
from wm_engine.files import read_json, write_json
from wm_engine.foreign.base import find_format
from wm_engine.info import collect_info, format_info
from wm_engine.machine import use_threads
from wm_engine.real.scoring import record_film, score_baselines, score_policy, score_random
from wm_engine.report import write_report
from wm_engine.run.card import how_scored
from wm_engine.run.config import Config, presets, read_config, resolve
from wm_engine.run.diagnose import diagnose_run
from wm_engine.run.export import FORMATS, describe_export, export_run
from wm_engine.run.folder import RunFolder
from wm_engine.run.imported import import_models
from wm_engine.run.imported_episodes import import_episodes
from wm_engine.run.loop import OnChange, run_loop
from wm_engine.run.published import load_run, read_published
from wm_engine.run.sweep import describe, plan_sweep, run_sweep

_BENCHES = ("bench", "profile")
_USAGE = 2
_INTERRUPTED = 128 + signal.SIGINT


class _LogHandler(logging.Handler):
    """Writes each record as a line of its own above any progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


class _LogFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        message = super().format(record)
        return message if record.levelno < logging.WARNING else f"{record.levelname.lower()}: {message}"


class _Commands(click.Group):
    """Adds the commands of ``wm_engine.bench``, imported when they are asked for: nothing else needs the peers."""

    def list_commands(self, context: click.Context) -> list[str]:
        return sorted([*super().list_commands(context), *_BENCHES])

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name in _BENCHES:
            command: click.Command = getattr(importlib.import_module("wm_engine.bench.commands"), name)
            return command
        return super().get_command(context, name)


@click.group(
    cls=_Commands,
    no_args_is_help=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Start with: wm-engine train --preset quick",
)
@click.version_option(package_name="wm-engine", prog_name="wm-engine")
@click.option("-q", "--quiet", is_flag=True, help="Log warnings only.")
def cli(quiet: bool) -> None:
    """World models whose controllers are evolved inside their own dreams.

    A run lives in a folder. Every command can be killed at any moment and given again: it goes on where it stopped.
    """
    logger = logging.getLogger("wm_engine")
    logger.setLevel(logging.WARNING if quiet else logging.INFO)
    if not any(isinstance(handler, _LogHandler) for handler in logger.handlers):
        handler = _LogHandler()
        handler.setFormatter(_LogFormatter())
        logger.addHandler(handler)


@cli.command(epilog="Presets:\n\n\b\n" + "\n".join(f"{name:<16} {text}" for name, text in presets().items()))
@click.option("--preset", metavar="NAME", help=f"One of {', '.join(presets())}; or the path of a .toml file.")
@click.option(
    "--run", "root", type=click.Path(path_type=Path), metavar="DIR", help="The run folder.  [default: runs/PRESET]"
)
@click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="SECTION.KEY=VALUE",
    help="Change one setting; may be given many times.",
)
@click.option("--rounds", type=click.IntRange(min=1), help="Rounds in all; the same as --set rounds=N.")
@click.option(
    "--on-change",
    type=click.Choice(["refuse", "keep"]),
    default="refuse",
    show_default=True,
    help="What to do where a run was begun with other settings: refuse, or go on with the new ones.",
)
@click.option(
    "--ray",
    metavar="auto|HOST:PORT",
    help="Drive and dream on a Ray cluster: the one that this machine belongs to, or that at an address.",
)
@click.option("--show", is_flag=True, help="Print the whole configuration, explained, and stop.")
def train(
    preset: str | None,
    root: Path | None,
    changes: tuple[str, ...],
    rounds: int | None,
    on_change: OnChange,
    ray: str | None,
    show: bool,
) -> None:
    """Learn a world model and a policy in its dreams, round by round, and score it.

    A round drives some real episodes, lets V and M learn, dreams, and judges. Killed and given again, a run goes on
    from its last checkpoint. Without --preset, a run folder goes on with the configuration that it holds.

    \b
    Examples:
      wm-engine train --preset quick
      wm-engine train --preset carracing --run runs/a --set controller.population=128
      wm-engine train --run runs/a --rounds 40
      wm-engine train --run runs/a --ray auto
      wm-engine train --preset quick --show
    """
    extra = [f"rounds={rounds}"] if rounds is not None else []
    folder, config = _resolve(preset, root, [*changes, *extra])
    if show:
        click.echo(config.explained(), nl=False)
        return
    run_loop(folder, config, on_change=on_change, ray=ray)
    page = write_report(RunFolder(folder))
    click.echo(_summary_text(RunFolder(folder)))
    click.echo(f"report: {page}")


@cli.command()
@click.option("--run", "root", type=click.Path(path_type=Path), required=True, metavar="DIR", help="The run folder.")
@click.option(
    "--set", "changes", multiple=True, metavar="SECTION.KEY=VALUE", help="Change a setting of the evaluation."
)
@click.option("--episodes", type=click.IntRange(min=1), help="Real episodes; the same as --set evaluate.episodes=N.")
@click.option("--video", type=click.Path(path_type=Path), metavar="FILE.mp4", help="Film the first episode too.")
@click.option("--output", type=click.Path(path_type=Path), metavar="FILE.json", help="Write every episode's score too.")
def evaluate(
    root: Path, changes: tuple[str, ...], episodes: int | None, video: Path | None, output: Path | None
) -> None:
    """Score a run's policy on real episodes, beside a random policy and the task's own baselines.

    All meet the same episodes. The run folder is only read; its own scores stay as the run left them.

    \b
    Example:
      wm-engine evaluate --run runs/quick --episodes 100 --video drive.mp4
    """
    extra = [f"evaluate.episodes={episodes}"] if episodes is not None else []
    run = load_run(root)
    config = read_config(run.folder.config, [*changes, *extra])
    use_threads(config.threads)
    scores: dict[str, Any] = {
        "controller": score_policy(run.agent(), run.controller, config.env, config.evaluate).plain(),
        "random": score_random(config.env, config.evaluate).plain(),
        "baselines": score_baselines(config.env, config.evaluate),
        "published": dict(run.published),
    }
    if video is not None:
        record_film(run.agent(), run.controller, config.env, config.evaluate.seed, video)
    if output is not None:
        write_json(output, scores)
    click.echo(_score_line("controller", scores["controller"]))
    click.echo("\n".join(_baseline_lines(scores)))
    click.echo(how_scored(run.published, config.evaluate.episodes))


@cli.command("import-data")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILES...")
@click.option("--run", "root", type=click.Path(path_type=Path), required=True, metavar="DIR", help="A new run folder.")
@click.option("--preset", metavar="NAME", help="Settings to begin with; or the path of a .toml file.")
@click.option("--set", "changes", multiple=True, metavar="SECTION.KEY=VALUE", help="Change one setting.")
@click.option("--actions", type=click.IntRange(min=2), help="How many discrete actions there are, if not all occur.")
def import_data(
    files: tuple[Path, ...], root: Path, preset: str | None, changes: tuple[str, ...], actions: int | None
) -> None:
    """Make a run of your own episodes, from which V and M learn with no environment at all.

    A file NAME.npz holds one episode or many, one after the other: actions [T] (whole numbers) or [T, A], rewards [T],
    ends [T] (0; 1 where the environment ended an episode, 2 where it was cut), and frames uint8 [N, height, width, 3]
    or observations [N, size], one before each step and one after the last of each episode. Pictures may stand in a
    video beside it in their place: NAME.mp4 with NAME.npz.

    \b
    Example:
      wm-engine import-data walks.npz drive.mp4 --run runs/mine
      wm-engine train --run runs/mine
    """
    count = import_episodes(files, root, preset, changes, actions)
    click.echo(f"{root}: {count} episodes; go on with wm-engine train --run {root}")


@cli.command()
@click.option("--run", "root", type=click.Path(path_type=Path), required=True, metavar="DIR", help="The run folder.")
@click.option("--episodes", type=click.IntRange(min=1), default=8, show_default=True, help="Real episodes to drive.")
@click.option(
    "--planner", type=click.IntRange(min=0), default=0, show_default=True,
    help="Of these, how many a planner in M drives too, as a judge of M.",
)  # fmt: skip
def diagnose(root: Path, episodes: int, planner: int) -> None:
    """Say why a run's dream does not teach, and which settings to try.

    The published policy drives real episodes that nothing learns from, and M is held to them. What is found goes into
    the run folder (diagnosis.json) and its report.

    \b
    Example:
      wm-engine diagnose --run runs/quick
    """
    found = diagnose_run(root, episodes=episodes, planner_episodes=planner)
    click.echo(found.words)
    click.echo(f"report: {write_report(RunFolder(root))}")


@cli.command()
@click.option("--run", "root", type=click.Path(path_type=Path), required=True, metavar="DIR", help="The run folder.")
@click.option(
    "--over",
    required=True,
    metavar="SECTION.KEY=VALUE,VALUE,...",
    help="The setting, of the learner (controller) or of the dream (dream), and its values.",
)
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="Trainings of each value.")
@click.option(
    "--rounds", type=click.IntRange(min=1), help="Rounds of each training.  [default: those of the published policy]"
)
@click.option("--episodes", type=click.IntRange(min=1), help="Real episodes; the same as --set evaluate.episodes=N.")
@click.option(
    "--set", "changes", multiple=True, metavar="SECTION.KEY=VALUE", help="Change another setting, for all values."
)
@click.option("--name", metavar="NAME", help="Of the sweep's folder in DIR/sweeps.  [default: SECTION.KEY]")
@click.option("--ray", metavar="auto|HOST:PORT", help="Dream and drive on a Ray cluster.")
def sweep(
    root: Path,
    over: str,
    seeds: int,
    rounds: int | None,
    episodes: int | None,
    changes: tuple[str, ...],
    name: str | None,
    ray: str | None,
) -> None:
    """Learn C anew for every value of a setting, on a run's V and M, and score it for real.

    Killed and given again, it goes on where it stopped; more values and seeds may be added later. The table, and the
    plot of real and dreamt return over the value, are in the run's report.

    \b
    Examples:
      wm-engine sweep --run runs/quick --over controller.temperature=0.1,0.5,1,1.15,1.3 --seeds 3
      wm-engine sweep --run runs/quick --over controller.features=z,zh --episodes 20
    """
    extra = [f"evaluate.episodes={episodes}"] if episodes is not None else []
    plan = plan_sweep(load_run(root), over, seeds=seeds, rounds=rounds, changes=[*changes, *extra], name=name)
    found = run_sweep(root, plan, ray=ray)
    page = write_report(RunFolder(root))
    click.echo(_sweep_table(plan.key, describe(found), found["horizon"]))
    click.echo(f"report: {page}")


@cli.command(name="import")
@click.argument("name", metavar="FORMAT")
@click.argument("paths", metavar="FILES...", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--run", "root", type=click.Path(path_type=Path), required=True, metavar="DIR", help="A new run folder.")
@click.option("--task", default="car_racing", show_default=True, help="The environment that they were trained in.")
def import_(name: str, paths: tuple[Path, ...], root: Path, task: str) -> None:
    """Bring in V, M and C that others trained, as a run folder to dream in, play and score.

    FORMAT ha2018: a folder of the JSON files of the paper's authors (rnn.json; vae.json, initial_z.json and *.best.json
    where they are). FORMAT ctallec: checkpoints of ctallec/world-models (mdrnn/best.tar, vae/best.tar, ctrl/best.tar),
    or a folder of them; nothing in them is executed.

    \b
    Examples:
      wm-engine import ha2018 downloads/carracing --run runs/ha2018
      wm-engine import ctallec exp_dir --run runs/ctallec
    """
    found = find_format(name)(paths)
    folder = import_models(root, found, name, task)
    world, spec = found.world, found.spec
    click.echo(
        f"M: Z={world.latent}, A={world.action}, H={world.hidden}, K={world.mixtures}, {world.mixture}; "
        f"C: {spec.num_params} parameters on {spec.features}"
    )
    for note in found.notes:
        click.echo(f"note: {note}")
    click.echo(f"models: {folder.models}")


@cli.command()
@click.option("--run", "root", type=click.Path(path_type=Path), required=True, metavar="DIR", help="The run folder.")
@click.option("--format", "name", type=click.Choice(sorted(FORMATS)), required=True, help="What others can load.")
@click.option("--output", "target", type=click.Path(path_type=Path), metavar="DIR", help="[default: RUN/export/FORMAT]")
def export(root: Path, name: str, target: Path | None) -> None:
    """Write a run's V, M and C as ONNX or TorchScript, to use them in other programs.

    Every file is loaded again and compared with the model before it takes its name.

    \b
    Example:
      wm-engine export --run runs/quick --format onnx
    """
    click.echo(describe_export(export_run(load_run(root), name, target)))


@cli.command()
@click.option("--run", "root", type=click.Path(path_type=Path), required=True, metavar="DIR", help="The run folder.")
def report(root: Path) -> None:
    """Write the report of a run again, finished or not.

    \b
    Example:
      wm-engine report --run runs/quick
    """
    click.echo(f"report: {write_report(RunFolder(root).existing())}")


@cli.command()
@click.option("--run", "root", type=click.Path(path_type=Path), required=True, metavar="DIR", help="The run folder.")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to serve on: this machine alone.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: any that is free.")
@click.option("--open", "open_page", is_flag=True, help="Open the page in a browser.")
def play(root: Path, host: str, port: int, open_page: bool) -> None:
    """Play a run's dreams in a browser: you or its controller at the wheel, the road beside them.

    Ctrl-C ends it. Whoever reaches another --host than this machine's own can play too.

    \b
    Example:
      wm-engine play --run runs/quick --open
    """
    server = importlib.import_module("wm_engine.play.server")  # here: its packages are an extra
    from wm_engine.play.played_run import PlayedRun

    shared = PlayedRun(load_run(root))
    if shared.no_road is not None:
        click.echo(f"no road beside the dream: {shared.no_road}")
    bound = server.listen_on(host, port)
    server.serve(shared, bound, host, open_page, lambda address: click.echo(f"play: {address}  (Ctrl-C ends it)"))


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def info(as_json: bool) -> None:
    """Say what is installed here, and what is missing and why.

    \b
    Example:
      wm-engine info
    """
    found = collect_info()
    click.echo(json.dumps(found, indent=1) if as_json else format_info(found))


def _resolve(preset: str | None, root: Path | None, changes: Sequence[str]) -> tuple[Path, Config]:
    """The run folder and its configuration: of the preset, or without one, of the folder itself."""
    if preset is not None:
        config = resolve(preset, changes)
        folder = root or Path("runs") / Path(preset).stem
        if root is None:
            logging.getLogger(__name__).info("run folder: %s", folder)
        return folder, config
    if root is None:
        raise click.UsageError(f"Give --preset ({', '.join(presets())}), or --run with a folder to go on in.")
    if not RunFolder(root).config.exists():
        RunFolder(root).check()
        raise click.UsageError(
            f"{root} is no run folder yet, so --preset must say how to begin: {', '.join(presets())}."
        )
    return root, read_config(RunFolder(root).config, changes)


def _summary_text(folder: RunFolder) -> str:
    """Put a run's score, and how it came about, into words."""
    scores = read_json(folder.scores)
    if "controller" not in scores:
        return "learnt from imported episodes: V, M and a policy are published; there is no environment to score in"
    lines = [
        _score_line("controller", scores["controller"]),
        *_baseline_lines(scores),
        how_scored(read_published(folder), scores["controller"]["episodes"]),
    ]
    return "\n".join(lines)


def _baseline_lines(scores: dict[str, Any]) -> list[str]:
    """Put what was scored beside the policy into words, the random policy first."""
    lines = [_score_line("random policy", scores["random"]) + ", on the same episodes"]
    for name, score in scores.get("baselines", {}).items():
        if "missing" in score:
            lines.append(f"{name + ':':<15} not scored: {score['missing']}")
            continue
        frames = score.get("learnt_from")
        learnt = f", learnt from {frames:,} real frames" if frames else ""
        lines.append(_score_line(name, score) + ", on the same episodes" + learnt)
    return lines


def _sweep_table(key: str, rows: Sequence[Mapping[str, Any]], horizon: int) -> str:
    """Put a sweep into words, a line a value."""

    def shown(part: Mapping[str, float | None]) -> str:
        low, high = part["low"], part["high"]
        interval = "" if low is None or high is None else f" [{_shown(low)}, {_shown(high)}]"
        return _shown(part["mean"]) + interval

    lines = [f"{row['value']:<12} {shown(row['real']):<28} {shown(row['dreamt'])}" for row in rows]
    counts = "; ".join(dict.fromkeys(f"{row['seeds']} seeds x {row['episodes']} real episodes" for row in rows))
    return "\n".join([
        f"{key}: {counts}; means with 95 % intervals over the seeds",
        f"{'value':<12} {'real return':<28} dreamt return, {horizon} decisions",
        *lines,
    ])  # fmt: skip


def _score_line(name: str, score: dict[str, Any]) -> str:
    return f"{name + ':':<15} {_shown(score['mean'])} ± {_shown(score['std'])} over {score['episodes']} episodes"


def _shown(value: float | None) -> str:
    """A number to one place; JSON has null where it was not finite."""
    return "not finite" if value is None else f"{value:.1f}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Exit status: 0; 1 for a closed pipe; 2 for what a person can mend; 130 on Ctrl-C."""
    try:
        cli.main(args=None if arguments is None else list(arguments), prog_name="wm-engine", standalone_mode=False)
    except WMEngineError as error:
        return _fail(str(error))
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f"\nTry '{context.command_path} --help'." if context is not None else ""
        return _fail(error.format_message() + hint)
    except (click.Abort, KeyboardInterrupt):
        click.echo("\nwm-engine: interrupted; the same command goes on where this one stopped.", err=True)
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader has gone (`wm-engine info | head -1`): keep Python from complaining once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def _fail(message: str) -> int:
    click.echo(f"wm-engine: error: {message}", err=True)
    return _USAGE


if __name__ == "__main__":
    sys.exit(main())
