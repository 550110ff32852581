"""Progress: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from wm_engine import progress

PROGRAM = """
from wm_engine.progress import track
with track(4, "vision", "steps") as bar:
    bar.update(3)
    bar.update(1)
"""


def test_plain_lines_where_the_output_is_no_terminal():
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert result.stdout == ""
    assert "\r" not in result.stderr
    assert "\x1b" not in result.stderr
    lines = result.stderr.splitlines()
    assert len(set(lines)) == len(lines)
    last = lines[-1]
    assert last.startswith("vision: 100%")
    assert "4.00/4.00" in last or "4/4" in last
    assert "steps/s" in last


def test_a_bar_with_rate_and_time_left_on_a_terminal():
    pty = pytest.importorskip("pty")
    master, slave = pty.openpty()
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stderr=slave) as process:
        os.close(slave)
        shown = b""
        while block := _read(master):
            shown += block
    os.close(master)
    assert process.returncode == 0
    assert b"vision: 100%" in shown
    assert b"\r" in shown


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 4096)
    except OSError:  # Linux reports the other end's closing as an error
        return b""


def test_a_resumed_bar_starts_where_the_work_stood(capsys):
    with progress.track(10, "memory", "steps", initial=6) as bar:
        bar.update(4)
    assert "memory: 100%" in capsys.readouterr().err.splitlines()[-1]


def test_an_unknown_total_is_counted(capsys):
    with progress.track(None, "collect", "frames") as bar:
        bar.update(5)
    assert "collect: 5" in capsys.readouterr().err.splitlines()[-1]
