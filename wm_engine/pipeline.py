"""The stages in order: skipped where they are done, resumed where they were cut, and round again."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from wm_engine.assess import round_score, score_chosen, scores_file
from wm_engine.config import Config, differences
from wm_engine.distributed import RayFleet
from wm_engine.errors import CorruptFileError, MissingStageError, RunMismatchError
from wm_engine.fleet import Fleet
from wm_engine.machine import use_threads
from wm_engine.records import Recorder
from wm_engine.report import write_report
from wm_engine.rollouts import RolloutStore
from wm_engine.rounds import Round, check_environment, check_machine
from wm_engine.runs import (
    Manifest,
    RunFolder,
    StageEntry,
    atomic_write,
    chosen_scores,
    file_fingerprint,
    lock_folder,
    read_json,
    sweep_temporaries,
)
from wm_engine.stages import STAGES, Stage

_log = logging.getLogger(__name__)

OnChange = Literal["refuse", "keep", "redo"]


def run_pipeline(
    root: Path,
    config: Config,
    *,
    only: str | None = None,
    round_index: int | None = None,
    on_change: OnChange = "refuse",
    ray: str | None = None,
    stages: Sequence[Stage] = STAGES,
) -> None:
    """Bring the run folder ``root`` to the end of what ``config`` asks for.

    A stage is skipped where its artifacts are there and neither its settings nor its inputs have changed, and goes on
    from its last checkpoint where an earlier process was cut short. The models of the round with the best real score
    are copied to the top of the folder after every round; where there were several, they are scored once more at the
    end, on tracks that the choice did not see.

    Parameters
    ----------
    root : the run folder; made where it is not there
    config : the resolved configuration, written to ``config.toml`` before any work
    only : the name of one stage to run alone, in ``round_index``
    round_index : the round of ``only``; None takes the first one in which it is not finished, or else the last
    on_change : what happens to stages that were done with other settings or from other inputs: "refuse" raises, "keep"
        leaves finished ones as they are, "redo" does them again (and, through their outputs, all that follow)
    ray : a Ray cluster that collects, dreams and drives, "auto" or HOST:PORT; results are those without it

    Raises RunMismatchError where the folder holds other work, RunBusyError where another process is at it,
    MissingStageError where ``only`` lacks an input, CorruptFileError where an artifact is not as its stage left it,
    ConfigError or MissingDependencyError where this machine cannot do what the configuration asks for, WMEngineError
    where the cluster is not there or is lost.
    """
    run = RunFolder(Path(root))
    check_machine(config)
    _check_folder(run)
    if any("env" in stage.sections for stage in stages if only in (None, stage.name)):
        check_environment(config)
    with lock_folder(run.root):
        sweep_temporaries(run.root)
        manifest = Manifest(run.manifest)
        use_threads(config.threads)
        with Recorder(run.metrics) as recorder, _workers(config, ray) as fleet:
            rounds = [Round(run, index, config, recorder, fleet) for index in range(config.iterations)]
            _settle_changes(run, manifest, config, on_change, stages, recorder)
            config.write(run.config)
            _warn_of_threads(rounds, manifest, [stage for stage in stages if only in (None, stage.name)])
            if only is not None:
                stage = next(stage for stage in stages if stage.name == only)
                chosen = _round_of(stage, rounds, manifest, round_index)
                _check_earlier(chosen, stage, manifest, stages)
                _advance(chosen, stage, manifest, on_change)
                _publish(run, rounds, manifest)
                if only == "evaluate":
                    _score_choice(rounds, manifest)
                    write_report(run)
                return
            for current in rounds:
                worked = [_advance(current, stage, manifest, on_change) for stage in stages]
                _publish(run, rounds[: current.index + 1], manifest)
                if current is rounds[-1]:
                    worked.append(_score_choice(rounds, manifest))
                if any(worked) or not (run.report / "index.html").exists():
                    write_report(run)


@contextlib.contextmanager
def _workers(config: Config, ray: str | None) -> Iterator[Fleet | None]:
    if ray is None:
        yield None
        return
    precisions = {"fp32", config.vision.precision, config.dream.precision}
    fleet = RayFleet(ray, config.cluster, config.device, torch.get_num_threads(), precisions)
    with contextlib.closing(fleet):
        yield fleet


def _check_folder(run: RunFolder) -> None:
    """A folder that holds something else than a run, or work that nothing is known of, is left alone."""
    begun = [path for path in (run.rollouts, run.root / "iterations") if path.exists()]
    if begun and run.config.exists() and not run.manifest.exists():
        raise CorruptFileError(
            f"{run.manifest}: missing, so nothing says how {', '.join(path.name for path in begun)} came about. "
            "Restore it from a copy; or choose another --run folder; or delete these to begin anew in this one."
        )
    if run.root.is_dir() and not run.config.exists() and any(not p.name.startswith(".") for p in run.root.iterdir()):
        raise RunMismatchError(
            f"{run.root}: holds files but no config.toml, so it is no run folder. Choose another --run folder."
        )


def _settle_changes(
    run: RunFolder,
    manifest: Manifest,
    config: Config,
    on_change: OnChange,
    stages: Sequence[Stage],
    recorder: Recorder,
) -> None:
    """Compare the settings of everything done or begun with those of ``config``, and refuse, keep or clear."""
    by_name = {stage.name: stage for stage in stages}
    refused: dict[str, list[str]] = {}
    for index, name, entry in list(manifest.entries()):
        if name not in by_name:
            continue
        stage = by_name[name]
        changes = differences(entry.settings, stage.settings(config, index))
        if not changes:
            continue
        if on_change == "refuse":
            for change in changes:
                refused.setdefault(change, []).append(f"{name} of round {index}{'' if entry.done else ', unfinished'}")
        elif on_change == "redo" or not entry.done:
            _begin_anew(Round(run, index, config, recorder), stage, manifest)
    if refused:
        lines = [f"  {change}   ({', '.join(users)})" for change, users in refused.items()]
        raise RunMismatchError(
            f"{run.root}: belongs to another configuration. What differs, and what was made with it:\n"
            + "\n".join(lines)
            + "\nChoose another --run folder; or go on in this one with --on-change keep (finished stages stay as they "
            "are, only unfinished ones take the new settings) or --on-change redo (they are done again)."
        )


def _warn_of_threads(rounds: Sequence[Round], manifest: Manifest, stages: Sequence[Stage]) -> None:
    """Say what was made with another number of torch threads, where there is work left.

    Not refused: a run may have to go on elsewhere, and no number of threads is more right than another.
    """
    entries = [manifest.get(current.index, stage.name) for current in rounds for stage in stages]
    if all(entry is not None and entry.done for entry in entries):
        return
    now = torch.get_num_threads()
    others = [
        f"{entry.threads} in {name} of round {index}{'' if entry.done else ', unfinished'}"
        for index, name, entry in manifest.entries()
        if entry.threads not in (0, now)
    ]
    if others:
        _log.warning(
            "threads: were %s, and are now %d. Results depend on their number in the last bits, so the run will not "
            "end with those of an uninterrupted one.",
            "; ".join(others),
            now,
        )


def _round_of(stage: Stage, rounds: Sequence[Round], manifest: Manifest, index: int | None) -> Round:
    if index is not None:
        if index >= len(rounds):
            raise MissingStageError(f"round {index}: this run has {len(rounds)} (--iterations), counted from 0")
        return rounds[index]
    entries = [(current, manifest.get(current.index, stage.name)) for current in rounds]
    return next((current for current, entry in entries if entry is None or not entry.done), rounds[-1])


def _check_earlier(current: Round, stage: Stage, manifest: Manifest, stages: Sequence[Stage]) -> None:
    """What stands before ``stage``, in this round and in the one before, must be done."""
    names = [each.name for each in stages]
    wanted = [(current.index, name) for name in names[: names.index(stage.name)]]
    if current.index:
        wanted = [(current.index - 1, name) for name in names] + wanted
    entries = [(index, name, manifest.get(index, name)) for index, name in wanted]
    lacking = [f"{name} of round {index}" for index, name, entry in entries if entry is None or not entry.done]
    if lacking:
        raise MissingStageError(
            f"{current.run.root}: {stage.name} of round {current.index} needs {', '.join(lacking)}, not done yet. "
            "Run what is missing first: the same command without --stage does."
        )


def _advance(current: Round, stage: Stage, manifest: Manifest, on_change: OnChange) -> bool:
    """Bring one stage of one round to its end; whether there was anything to do."""
    label = f"{stage.name} of round {current.index}"
    inputs = _input_digests(current, stage, label)
    settings = stage.settings(current.config, current.index)
    entry = manifest.get(current.index, stage.name)
    known = entry is not None
    if entry is not None and entry.inputs != inputs:
        changed = sorted(name for name in entry.inputs.keys() | inputs if entry.inputs.get(name) != inputs.get(name))
        what = f"{current.folder.root}: {label} was made from other inputs ({', '.join(changed)}) than there are now"
        if on_change == "refuse":
            raise RunMismatchError(
                f"{what}. Go on with --on-change redo (it is done again) or --on-change keep (it stays as it is)."
            )
        if on_change == "redo" or not entry.done:
            _begin_anew(current, stage, manifest)
            entry = None
        else:
            _log.warning("%s; kept", what)
    if entry is not None and entry.done:
        if _is_whole(current, stage, entry, label):
            current.checkpoints(stage.name).clear()
            _log.info("%s: done, skipped", label)
            return False
        _log.info("%s: its artifacts are gone, made again", label)
        if entry.settings != settings:
            _begin_anew(current, stage, manifest)
        entry = None

    resumed = entry is not None
    if not known:
        # What lies where its artifacts will be is not its own: nothing says which settings and inputs made it.
        _begin_anew(current, stage, manifest)
    if resumed:
        _log.info("%s: goes on where it was cut", label)
    else:
        _log.info("%s: begins", label)
    entry = StageEntry(settings=settings, inputs=inputs, resumed=resumed, threads=torch.get_num_threads())
    manifest.put(current.index, stage.name, entry)
    began = time.monotonic()
    stage.work(current)
    seconds = time.monotonic() - began
    outputs = _output_digests(current, stage, label)
    manifest.put(current.index, stage.name, replace(entry, done=True, outputs=outputs, seconds=seconds))
    # Not before: without its checkpoints, a stage that is not known to be done would begin anew.
    current.checkpoints(stage.name).clear()
    current.recorder.log(f"timing.{stage.name}", 0, current.index, seconds=seconds)
    _log.info("%s: done in %.1f s", label, seconds)
    return True


def _begin_anew(current: Round, stage: Stage, manifest: Manifest) -> None:
    stage.clear(current)
    current.checkpoints(stage.name).clear()
    manifest.drop(current.index, stage.name)


def _input_digests(current: Round, stage: Stage, label: str) -> dict[str, str]:
    digests = {}
    for name, artifact in stage.inputs(current).items():
        digest = artifact.digest()
        if digest is None:
            raise MissingStageError(
                f"{label} needs {name} ({artifact.path}), which is not there. Run the stage that makes it again: "
                "the same command without --stage does."
            )
        digests[name] = digest
    return digests


def _output_digests(current: Round, stage: Stage, label: str) -> dict[str, str]:
    digests = {name: artifact.digest() for name, artifact in stage.outputs(current).items()}
    missing = [name for name, digest in digests.items() if digest is None]
    if missing:
        raise MissingStageError(f"{label} ended without leaving {', '.join(missing)} behind")
    return {name: str(digest) for name, digest in digests.items()}


def _is_whole(current: Round, stage: Stage, entry: StageEntry, label: str) -> bool:
    """Whether every artifact is there; CorruptFileError where one is there, but not as the stage left it."""
    whole = True
    for name, artifact in stage.outputs(current).items():
        digest = artifact.digest()
        if digest is None:
            whole = False
        elif digest != entry.outputs.get(name):
            raise CorruptFileError(
                f"{artifact.path}: is not as {label} left it: changed or damaged. Delete it to have it made again."
            )
    return whole


def _publish(run: RunFolder, rounds: Sequence[Round], manifest: Manifest) -> None:
    """Copy the models of the round with the best real score to the top of the run folder; the earliest of equals.

    Three files do not change at once: between the first copy and the last, the manifest says that none is published.
    """
    scores = {current.index: round_score(current.folder) for current in rounds}
    known = {index: score for index, score in scores.items() if score is not None}
    if not known:
        return
    best = max(known, key=lambda index: known[index])
    sources = run.iteration(best).models()
    if not all(source.exists() for source in sources.values()):
        return
    digests = {name: file_fingerprint(source) for name, source in sources.items()}
    targets = run.models()
    stale = [name for name in digests if _digest(targets[name]) != digests[name]]
    if not stale and (manifest.published, manifest.published_models) == (best, digests):
        return
    manifest.unpublish()
    for name in stale:
        with atomic_write(targets[name]) as file:
            file.write(sources[name].read_bytes())
    manifest.publish(best, digests)


def _digest(path: Path) -> str | None:
    return file_fingerprint(path) if path.exists() else None


def drop_episodes(root: Path, keep: int) -> None:
    """Keep the first ``keep`` episodes of a run's rollout store: what helps where a later one is damaged.

    Raises MissingStageError where nothing has been collected yet, RunBusyError where another process is at the folder.
    """
    run = RunFolder(Path(root))
    if not run.rollouts.exists():
        raise MissingStageError(f"{run.rollouts}: not there yet, so there are no episodes to drop")
    with lock_folder(run.root):
        RolloutStore.open(run.rollouts, create=False).keep(keep)


def check_published(root: Path) -> None:
    """Raise CorruptFileError where the models at the top of a run folder are not those of one round."""
    run = RunFolder(Path(root))
    if not run.manifest.exists():
        return  # models that were copied out of their run
    found = {name: _digest(path) for name, path in run.models().items()}
    if found != Manifest(run.manifest).published_models:
        raise CorruptFileError(
            f"{run.root}: {', '.join(path.name for path in run.models().values())} are not those of one round, as when "
            f"copying them was cut short. `wm-engine train --run {run.root}` copies them again; --round K scores a "
            "round's own."
        )


def _score_choice(rounds: Sequence[Round], manifest: Manifest) -> bool:
    """Once all of several rounds have been scored, score the chosen one afresh; whether there was anything to do."""
    chosen = next((current for current in rounds if current.index == manifest.published), None)
    if chosen is None or len(rounds) < 2 or any(round_score(current.folder) is None for current in rounds):
        return False
    return score_chosen(chosen)


@dataclass(frozen=True)
class Summary:
    """What a run has come to.

    rounds : for each evaluated round its ``scores.json``; chosen : the round whose models stand at the top; None where
    nothing was evaluated. seconds : (round, stage, seconds of work) of everything done. fresh : scores of the chosen
    round's models on tracks that the choice among rounds did not see; None where there was no choice, or not yet.
    """

    rounds: dict[int, dict[str, Any]]
    chosen: int | None
    seconds: list[tuple[int, str, float]]
    fresh: dict[str, Any] | None = None


def summarize(root: Path) -> Summary:
    """The scores and times of a run folder, as far as it got."""
    run = RunFolder(Path(root))
    manifest = Manifest(run.manifest)
    done = [(index, stage, entry.seconds) for index, stage, entry in manifest.entries() if entry.done]
    files = {index: scores_file(run.iteration(index)) for index, _, _ in done}
    rounds = {index: read_json(path) for index, path in files.items() if path.exists()}
    return Summary(rounds, manifest.published, done, chosen_scores(run, manifest))
