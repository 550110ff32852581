"""The command line: ``wm-engine train | collect | evaluate | report | info | bench | profile``."""

from __future__ import annotations

import importlib
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
from tqdm import tqdm

from wm_engine.assess import assess_folder
from wm_engine.config import Config, presets, read_config, resolve
from wm_engine.errors import ConfigError, MissingStageError, WMEngineError
from wm_engine.info import collect_info, format_info
from wm_engine.machine import use_threads
from wm_engine.pipeline import OnChange, Summary, check_published, drop_episodes, run_pipeline, summarize
from wm_engine.report import write_report
from wm_engine.runs import RunFolder, write_json
from wm_engine.stages import STAGES

Command = TypeVar("Command", bound=Callable[..., Any])

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


def _run_options(command: Command) -> Command:
    """The options of every command that works in a run folder."""
    options = [
        click.option("--preset", metavar="NAME", help=f"One of {', '.join(presets())}; or the path of a .toml file."),
        click.option(
            "--run",
            "root",
            type=click.Path(path_type=Path),
            metavar="DIR",
            help="The run folder.  [default: runs/PRESET]",
        ),
        click.option(
            "--set",
            "changes",
            multiple=True,
            metavar="SECTION.KEY=VALUE",
            help="Change one setting; may be given many times.",
        ),
        click.option(
            "--on-change",
            type=click.Choice(["refuse", "keep", "redo"]),
            default="refuse",
            show_default=True,
            help="What to do about stages that were done with other settings.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@cli.command(epilog="Presets:\n\n\b\n" + "\n".join(f"{name:<16} {text}" for name, text in presets().items()))
@_run_options
@click.option("--iterations", type=click.IntRange(min=1), help="Rounds; the same as --set iterations=N.")
@click.option("--stage", type=click.Choice([stage.name for stage in STAGES]), help="Run this stage alone.")
@click.option("--round", "round_index", type=click.IntRange(min=0), help="The round of --stage, counted from 0.")
@click.option(
    "--ray",
    metavar="auto|HOST:PORT",
    help="Collect, dream and drive on a Ray cluster: the one that this machine belongs to, or that at an address.",
)
@click.option("--show", is_flag=True, help="Print the whole configuration, explained, and stop.")
def train(
    preset: str | None,
    root: Path | None,
    changes: tuple[str, ...],
    on_change: OnChange,
    iterations: int | None,
    stage: str | None,
    round_index: int | None,
    ray: str | None,
    show: bool,
) -> None:
    """Learn a world model, evolve a controller in it, and score it.

    Stages: collect, vision, memory, controller, evaluate. A stage that is done is skipped; one that was cut short goes
    on from its last checkpoint. Without --preset, a run folder goes on with the configuration that it holds.

    \b
    Examples:
      wm-engine train --preset quick
      wm-engine train --preset carracing --run runs/a --set controller.population=128
      wm-engine train --run runs/a --iterations 3
      wm-engine train --run runs/a --stage vision
      wm-engine train --run runs/a --ray auto
      wm-engine train --preset quick --show
    """
    if round_index is not None and stage is None:
        raise click.UsageError("--round says which round --stage runs in, and needs it.")
    extra = [f"iterations={iterations}"] if iterations is not None else []
    folder, config = _resolve(preset, root, [*changes, *extra])
    if show:
        click.echo(config.explained(), nl=False)
        return
    run_pipeline(folder, config, only=stage, round_index=round_index, on_change=on_change, ray=ray)
    click.echo(_summary_text(folder, summarize(folder)))


@cli.command()
@_run_options
@click.option("--round", "round_index", type=click.IntRange(min=0), help="The round to collect for, counted from 0.")
@click.option("--keep", type=click.IntRange(min=0), metavar="N", help="First delete all episodes from the Nth on.")
def collect(
    preset: str | None,
    root: Path | None,
    changes: tuple[str, ...],
    on_change: OnChange,
    round_index: int | None,
    keep: int | None,
) -> None:
    """Fill a run's rollout store: the first stage alone.

    Where a chunk of the store is damaged, --keep N drops the episode that it belongs to (counted from 0) and those
    after it, and they are collected again.

    \b
    Examples:
      wm-engine collect --preset quick --run runs/a --set collect.episodes=200
      wm-engine collect --run runs/a --keep 120
    """
    folder, config = _resolve(preset, root, changes)
    if keep is not None:
        drop_episodes(folder, keep)
    run_pipeline(folder, config, only="collect", round_index=round_index, on_change=on_change)
    click.echo(f"rollouts: {RunFolder(folder).rollouts}")


@cli.command()
@click.option("--run", "root", type=click.Path(path_type=Path), required=True, metavar="DIR", help="The run folder.")
@click.option(
    "--set", "changes", multiple=True, metavar="SECTION.KEY=VALUE", help="Change a setting of the evaluation."
)
@click.option("--episodes", type=click.IntRange(min=1), help="Tracks; the same as --set evaluate.episodes=N.")
@click.option(
    "--round", "round_index", type=click.IntRange(min=0), help="Score this round's models, not the chosen ones."
)
@click.option("--video", type=click.Path(path_type=Path), metavar="FILE.mp4", help="Film the first track too.")
@click.option("--output", type=click.Path(path_type=Path), metavar="FILE.json", help="Write every episode's score too.")
def evaluate(
    root: Path,
    changes: tuple[str, ...],
    episodes: int | None,
    round_index: int | None,
    video: Path | None,
    output: Path | None,
) -> None:
    """Score a run's controller on real tracks, beside a random policy.

    Both drive the same tracks. The run folder is only read; its own scores stay as the evaluate stage left them.

    \b
    Example:
      wm-engine evaluate --run runs/quick --episodes 100 --video drive.mp4
    """
    extra = [f"evaluate.episodes={episodes}"] if episodes is not None else []
    run = RunFolder(root)
    config = read_config(_existing_config(run), [*changes, *extra])
    folder = run if round_index is None else run.iteration(round_index)
    if not folder.controller.exists():
        raise MissingStageError(
            f"{folder.controller}: not there yet. Finish the run first: wm-engine train --run {root}"
        )
    if round_index is None:
        check_published(root)
    use_threads(config.threads)
    scores = assess_folder(folder, config, video)
    if output is not None:
        write_json(output, scores)
    click.echo(_score_line("controller", scores["controller"]))
    click.echo(_score_line("random policy", scores["random"]) + ", on the same tracks")


@cli.command()
@click.option("--run", "root", type=click.Path(path_type=Path), required=True, metavar="DIR", help="The run folder.")
def report(root: Path) -> None:
    """Write the report of a run again, finished or not.

    \b
    Example:
      wm-engine report --run runs/quick
    """
    run = RunFolder(root)
    _existing_config(run)
    click.echo(f"report: {write_report(run)}")


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
        raise click.UsageError(
            f"{root} is no run folder yet, so --preset must say how to begin: {', '.join(presets())}."
        )
    return root, read_config(RunFolder(root).config, changes)


def _existing_config(run: RunFolder) -> Path:
    if not run.config.exists():
        raise ConfigError(f"{run.root}: no run folder (there is no config.toml in it)")
    return run.config


def _summary_text(root: Path, summary: Summary) -> str:
    lines = [f"  {'round ' + str(index):<9} {stage:<11} {seconds:8.1f} s" for index, stage, seconds in summary.seconds]
    total = sum(seconds for _, _, seconds in summary.seconds)
    lines = ["time by stage:", *lines, f"  {'total':<21} {total:8.1f} s"]
    for index, scores in summary.rounds.items():
        chosen = "  <- chosen by real score" if index == summary.chosen and len(summary.rounds) > 1 else ""
        dream, controller = scores["dream"]["mean"], scores["controller"]["mean"]
        gap = "" if None in (dream, controller) else f", gap {dream - controller:+.1f}"
        lines.append(f"round {index}: real {_shown(controller)}, dreamt {_shown(dream)}{gap}{chosen}")
    if summary.chosen is not None:
        if summary.fresh is not None:
            lines.append("on fresh tracks, since the choice among rounds flatters the scores that it went by:")
        scores = summary.fresh or summary.rounds[summary.chosen]
        lines.append(_score_line("controller", scores["controller"]))
        lines.append(_score_line("random policy", scores["random"]) + ", on the same tracks")
        lines.append(f"report: {RunFolder(root).report / 'index.html'}")
    return "\n".join(lines)


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
