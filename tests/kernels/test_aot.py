"""Ahead-of-time compilation: one kernel is compiled for a GPU that is not here; what falls short is found."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

pytest.importorskip("triton", minversion="3.4", reason="Triton 3.4 or newer is not installed")
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


def test_a_kernel_compiles_for_a_gpu_that_is_not_here() -> None:
    command = [sys.executable, "-m", "wm_engine.kernels.aot", "--targets", "sm_90", "--only", "lstm step"]
    environment = os.environ | {"TRITON_INTERPRET": "0", "PYTHONSAFEPATH": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    row = next(line for line in done.stdout.splitlines() if line.startswith("sm_90"))
    assert row.split()[:3] == ["sm_90", "lstm", "step"]
    assert row.endswith("ok")


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
def test_shortfalls_are_found(change: dict[str, Any], message: str | None) -> None:
    found = aot.shortfalls(CASE, "sm_90", aot.Compiled(**SOUND | change))
    assert len(found) == (message is not None)
    assert message is None or message in found[0]


def test_the_interpreter_compiles_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert aot.main([]) == 1
    assert "TRITON_INTERPRET is set" in capsys.readouterr().err
