"""Ahead-of-time compilation: one kernel is compiled for a GPU that is not here; what falls short is found."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from typing import Any

import pytest

pytest.importorskip("triton", minversion="3.2", reason="Triton 3.2 or newer is not installed")
from wm_engine.kernels import aot, launch, lstm

CASE = aot.Case("lstm step", lstm.lstm_step_kernel, {}, launch.Settings(), multiplies=True)
LAYOUT = "#ttg.nvidia_mma<{versionMajor = 3, versionMinor = 0, warpsPerCTA = [%s], instrShape = [16, 8, 16]}>"
SOUND = {
    "registers": 100,
    "spilled": 0,
    "shared": 1000,
    "assembly": "wgmma.mma_async ex2.approx.f32",
    "layouts": LAYOUT % "4, 2",
}


@pytest.mark.parametrize(
    ("only", "options"), [("lstm step", []), ("advance", ["--hidden", "1024"]), ("advance", ["--precision", "fp32"])]
)
def test_a_kernel_compiles_for_a_gpu_that_is_not_here(only: str, options: list[str]) -> None:
    command = [sys.executable, "-m", "wm_engine.kernels.aot", "--targets", "sm_90", "--only", only, *options]
    environment = os.environ | {"TRITON_INTERPRET": "0", "PYTHONSAFEPATH": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    row = next(line for line in done.stdout.splitlines() if line.startswith("sm_90"))
    assert row.split(maxsplit=1)[1].startswith(only)
    assert "  ok" in row


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, None),
        ({"spilled": 8}, "8 bytes a thread spilled, should be none"),
        ({"shared": 300_000}, "300000 bytes of shared memory, the device has 232448"),
        ({"layouts": LAYOUT % "8, 1"}, "groups of warps that make the same 64 rows"),
        ({"assembly": "mma.sync"}, "no wgmma.mma_async"),
        ({"assembly": "wgmma.mma_async call __internal_trig_reduction_slowpathf"}, "trigonometry with a slow path"),
        ({"assembly": "wgmma.mma_async __nv_cosf"}, "trigonometry with a slow path"),
    ],
)
def test_shortfalls_are_found(change: dict[str, Any], message: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("triton.__version__", "3.9.0")
    found = aot.shortfalls(CASE, "sm_90", aot.Compiled(**SOUND | change))
    assert len(found) == (message is not None)
    assert message is None or message in found[0]


def test_other_sizes_have_to_fit_and_no_more() -> None:
    large = dataclasses.replace(CASE, tuned=False)
    compiled = aot.Compiled(**SOUND | {"spilled": 8, "shared": 300_000, "assembly": "mma.sync"})
    assert aot.shortfalls(large, "sm_90", compiled) == ["300000 bytes of shared memory, the device has 232448"]


def test_the_interpreter_compiles_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert aot.main([]) == 1
    assert "TRITON_INTERPRET is set" in capsys.readouterr().err


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], version: str, *arguments: str) -> tuple:
    """Exit status of the command, and the rows that it prints, with a Triton that says to be of a version."""
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr("triton.__version__", version)
    status = aot.main(list(arguments))
    return status, capsys.readouterr().out.splitlines()[2:]


@pytest.mark.parametrize(("version", "status", "verdict"), [("3.9.0", 1, "8 bytes a thread"), ("3.6.0", 0, "ok, but")])
def test_spills_fail_only_where_the_settings_were_chosen(
    version: str,
    status: int,
    verdict: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(aot, "compile_case", lambda case, target: aot.Compiled(**SOUND | {"spilled": 8}))
    got, rows = run(monkeypatch, capsys, version, "--targets", "sm_90", "--only", "lstm")
    assert got == status
    assert verdict in rows[0]


def test_a_triton_that_would_end_the_process_is_not_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(aot, "compile_case", lambda case, target: aot.Compiled(**SOUND))
    status, rows = run(monkeypatch, capsys, "3.2.0", "--targets", "sm_100", "sm_90", "--only", "lstm")
    assert status == 1
    assert rows[0] == "sm_100  Triton 3.2.0 is too old for sm_100: it must be 3.3 or newer"
    assert rows[1].endswith("  ok")


def test_a_kernel_that_does_not_compile_is_a_row(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(case: aot.Case, target: str) -> aot.Compiled:
        raise RuntimeError("no linker\nmore")

    monkeypatch.setattr(aot, "compile_case", broken)
    status, rows = run(monkeypatch, capsys, "3.9.0", "--targets", "gfx942", "--only", "mdn sample")
    assert status == 1
    assert [row.split()[1:4] for row in rows] == [["mdn", "sample", "shared"], ["mdn", "sample", "per_dim"]]
    assert all(row.endswith("  does not compile: no linker") for row in rows)
