"""A run on real CarRacing, cut again and again, ends with the same bytes as one that was left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from wm_engine.rollouts import RolloutStore
from wm_engine.runs import RunFolder, read_json

pytestmark = pytest.mark.slow

PATIENCE = 300.0
ROUNDS = 2


def start(root: Path, *arguments: str) -> subprocess.Popen[str]:
    """The smoke preset in a process of its own, in a group of its own so that its workers can be counted."""
    # Scored in EnvPool where there is one: gymnasium's workers would take most of the test's time to start.
    options = ["--preset", "smoke", "--run", str(root), "--set", "evaluate.backend=auto", *arguments]
    command = [sys.executable, "-m", "wm_engine.cli", "train", *options]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root.parent, start_new_session=True
    )


def cut(root: Path, moment: Callable[[], bool], how: signal.Signals, *arguments: str) -> tuple[int, str]:
    """Start the run, send it a signal as soon as ``moment`` has come; its exit status and the end of what it said."""
    process = start(root, *arguments)
    deadline = time.monotonic() + PATIENCE
    while not moment() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(how)
    _, said = process.communicate(timeout=PATIENCE)
    return process.returncode, said


def finish(root: Path, *arguments: str) -> str:
    process = start(root, *arguments)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    return out


def outcome(root: Path) -> dict[str, bytes]:
    """The bytes of everything that a run comes to."""
    run = RunFolder(root)
    files = [run.vision, run.memory, run.controller, run.rollouts / "index.jsonl"]
    for one in (run.iteration(index) for index in range(ROUNDS)):
        files += [one.root / name for name in ("scores.json", "fidelity.json")]
        files += [*one.models().values(), *one.latents.iterdir(), one.evolution / "result.safetensors"]
    files += [path for path in run.rollouts.rglob("*") if path.is_file()]
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def differing(expected: dict[str, bytes], found: dict[str, bytes]) -> list[str]:
    return [name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)]


def test_a_run_that_was_cut_in_every_stage_ends_with_the_same_bytes(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    rounds = ("--iterations", str(ROUNDS))
    out = finish(whole, *rounds)
    assert out.splitlines()[-3].startswith("controller:")
    assert out.splitlines()[-2].startswith("random policy:")
    assert out.splitlines()[-1] == f"report: {whole / 'report' / 'index.html'}"
    assert (whole / "report" / "index.html").exists()

    run = RunFolder(broken)
    first, second = run.iteration(0), run.iteration(1)
    moments = [
        lambda: any(run.rollouts.rglob("000000*.zst")),
        lambda: any(first.checkpoints("memory").glob("0*")),
        lambda: (first.evolution / "00000005.safetensors").exists(),
        lambda: any(run.rollouts.rglob("000005*.zst")),
        lambda: any(second.checkpoints("vision").glob("0*")),
        lambda: (second.root / "evaluation" / "controller.json").exists(),
    ]
    for number, moment in enumerate(moments):
        how = signal.SIGINT if number == 4 else signal.SIGKILL
        status, said = cut(broken, moment, how, *rounds)
        if how is signal.SIGKILL:
            assert status == -signal.SIGKILL
        else:
            assert status == 130
            assert "the same command goes on where this one stopped" in said.splitlines()[-1]
            assert "Traceback" not in said
    finish(broken, *rounds)

    expected = outcome(whole)
    assert differing(expected, outcome(broken)) == []
    entries = read_json(RunFolder(broken).manifest)["stages"]
    resumed = {stage for stage, entry in entries.items() if entry["resumed"]}
    assert resumed == {"0/collect", "0/memory", "0/controller", "1/collect", "1/vision", "1/evaluate"}

    # What is done about a damaged chunk: the episodes from it on are dropped, and collected again.
    RolloutStore.open(RunFolder(broken).rollouts, create=False).keep(5)
    finish(broken, "--stage", "collect", "--round", "1", *rounds)
    assert differing(expected, outcome(broken)) == []


def test_no_worker_outlives_a_killed_run(tmp_path):
    root = tmp_path / "run"
    process = start(root, "--set", "env.backend=gymnasium", "--set", "env.num_threads=2")
    deadline = time.monotonic() + PATIENCE
    while not any(RunFolder(root).rollouts.rglob("000000*.zst")) and time.monotonic() < deadline:
        time.sleep(0.01)
    group = process.pid
    assert process.poll() is None
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 10.0
    while _alive(group) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _alive(group)


def _alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
