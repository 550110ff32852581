"""A run on real CarRacing that is killed again and again ends with the same bytes as one that was left alone."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from wm_engine.run.folder import RunFolder

pytestmark = pytest.mark.slow

PATIENCE = 300.0


def start(root: Path, *arguments: str) -> subprocess.Popen[str]:
    """The smoke preset in a process of its own, in a group of its own so that its workers can be counted."""
    # Scored in EnvPool where there is one: gymnasium's workers would take most of the test's time to start.
    options = ["--preset", "smoke", "--run", str(root), "--set", "evaluate.backend=auto", *arguments]
    options += ["--set", "evaluate.film=false"]
    command = [sys.executable, "-m", "wm_engine.main", "train", *options]
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
    folder = RunFolder(root)
    files = [folder.vision, folder.memory, folder.controller]
    files += [path for path in folder.rollouts.rglob("*") if path.is_file()]
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def test_a_run_that_was_killed_in_every_step_ends_with_the_same_bytes(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    out = finish(whole)
    assert out.splitlines()[-4].startswith("controller:")
    assert out.splitlines()[-1] == f"report: {whole / 'report' / 'index.html'}"
    assert (whole / "report" / "index.html").exists()

    folder = RunFolder(broken)

    def checkpoint(number: int) -> bool:
        return any(int(path.stem) >= number for path in folder.checkpoints.glob("[0-9]*.safetensors"))

    # With a checkpoint after every unit these lie in: see, remember, dream, the second round's drive, its dream.
    moments = [lambda: any(folder.rollouts.rglob("000000*.zst"))]
    moments += [lambda number=number: checkpoint(number) for number in (5, 10, 14, 19, 27)]
    for number, moment in enumerate(moments):
        how = signal.SIGINT if number == 4 else signal.SIGKILL
        status, said = cut(broken, moment, how)
        if how is signal.SIGKILL:
            assert status == -signal.SIGKILL
        else:
            assert status == 130
            assert "the same command goes on where this one stopped" in said.splitlines()[-1]
            assert "Traceback" not in said
    finish(broken)
    expected, found = outcome(whole), outcome(broken)
    assert [name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)] == []


@pytest.mark.skipif(
    importlib.util.find_spec("vizdoom") is None, reason="VizDoom is not installed: pip install 'wm-engine[doom]'"
)
def test_a_killed_run_of_takecover_ends_with_the_same_bytes(tmp_path):
    whole, broken, doom = tmp_path / "whole", tmp_path / "broken", ("--set", "env.task=takecover")
    finish(whole, *doom)
    checkpoints = RunFolder(broken).checkpoints
    # In V's learning, and in the second round's episodes.
    for number in (5, 19):
        status, _ = cut(
            broken,
            lambda number=number: any(int(path.stem) >= number for path in checkpoints.glob("[0-9]*.safetensors")),
            signal.SIGKILL,
            *doom,
        )
        assert status == -signal.SIGKILL
    finish(broken, *doom)
    expected, found = outcome(whole), outcome(broken)
    assert [name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)] == []


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
