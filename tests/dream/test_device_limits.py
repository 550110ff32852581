"""Kernels that do not fit the device: an error where Triton was asked for, the next backend under ``auto``."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from kernel_device import needs_interpreter
from world import World

from wm_engine import DreamEngine
from wm_engine.dream import engine
from wm_engine.dream.triton_backend import TritonBackend
from wm_engine.errors import DeviceLimitError

pytest.importorskip("triton", minversion="3.2", reason="Triton is not installed")
import triton

from wm_engine.kernels import launch

pytestmark = needs_interpreter

PLAN: dict[str, Any] = {"episodes": 2, "max_steps": 3, "seed": 3, "record": True}
REFUSALS = {
    "shared memory": triton.OutOfResources(240_000, 232_448, "shared memory"),
    "registers": RuntimeError("Triton Error [CUDA]: too many resources requested for launch"),
}


class Refused:
    """A kernel that the device refuses to launch."""

    arg_names = ()

    def __init__(self, error: Exception) -> None:
        self._error = error
        self.launches = 0

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def run(**arguments: Any) -> None:
            self.launches += 1
            raise self._error

        return run


def refuse(monkeypatch: pytest.MonkeyPatch, error: Exception) -> Refused:
    kernel = Refused(error)
    monkeypatch.setattr(launch.dream, "rollout_kernel", kernel)
    monkeypatch.setattr(launch.dream, "act_kernel", kernel)
    return kernel


@pytest.fixture
def auto_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """``auto`` meets Triton first, as on a GPU, with the interpreter in the GPU's place."""
    by_name = {entry.name: entry for entry in engine.BACKENDS}
    here = (replace(by_name["triton"], devices=("cpu",)), by_name["torch"])
    monkeypatch.setattr(engine, "BACKENDS", here)
    monkeypatch.setattr(engine, "_logged", set())


@pytest.mark.parametrize("form", ["persistent", "steps"])
@pytest.mark.parametrize("cause", REFUSALS)
def test_an_explicit_request_says_what_was_wanted(cause: str, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    refuse(monkeypatch, REFUSALS[cause])
    one = DreamEngine(world.m, world.spec, backend="triton")
    one._backends = [TritonBackend(world.m, world.spec, torch.device("cpu"), "fp32", form)]
    said = "'triton' cannot dream latent 5, hidden 9, mixtures 3 in fp32 on cpu: its kernels do not fit the device"
    for _ in range(2):
        with pytest.raises(DeviceLimitError, match=said) as caught:
            one.rollout(world.params, world.starts, **PLAN)
    assert str(REFUSALS[cause]) in str(caught.value)
    if cause == "shared memory":
        assert "Required: 240000, Hardware limit: 232448" in str(caught.value)


def test_other_errors_of_a_launch_are_what_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    refuse(monkeypatch, RuntimeError("Triton Error [CUDA]: device-side assert triggered"))
    with pytest.raises(RuntimeError, match="device-side assert triggered"):
        DreamEngine(world.m, world.spec, backend="triton").rollout(world.params, world.starts, **PLAN)


@pytest.mark.usefixtures("auto_on_a_gpu")
@pytest.mark.parametrize("devices", [["cpu"], ["cpu", "cpu"]])
def test_auto_goes_over_to_the_next_backend_and_says_so_once(
    devices: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world = World()
    want = DreamEngine(world.m, world.spec, backend="torch").rollout(world.params, world.starts, **PLAN)
    kernel = refuse(monkeypatch, REFUSALS["shared memory"])
    with caplog.at_level(logging.INFO):
        one = DreamEngine(world.m, world.spec, devices=devices)
        assert one.backend == "triton"
        # The engine dreams with the weights that it was made with.
        world.m.state_dict()["head.bias"].zero_()
        for _ in range(2):
            got = one.rollout(world.params, world.starts, **PLAN)
            assert torch.equal(got.returns, want.returns)
            assert torch.equal(got.z, want.z)
            assert one.backend == "torch"
    assert 2 <= kernel.launches <= 2 * len(devices)  # both forms, where the first device's end did not come before
    said = [record.getMessage() for record in caplog.records]
    assert said[0] == "backend: triton (cpu, fp32)"
    for message in said[1:-2]:
        assert message.startswith("triton: step by step from now on: the persistent kernel does not fit cpu: out of")
    assert said[-2].startswith("backend triton is passed over: backend 'triton' cannot dream latent 5, hidden 9")
    assert said[-1] == "backend: torch (cpu, fp32)"
    assert 1 <= len(said) - 3 <= len(devices)


def test_where_one_kernel_for_all_steps_does_not_fit_those_of_a_step_may(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    steps = TritonBackend(world.m, world.spec, torch.device("cpu"), "fp32", "steps")
    one = DreamEngine(world.m, world.spec, backend="triton")
    kernel = Refused(REFUSALS["shared memory"])
    monkeypatch.setattr(launch.dream, "rollout_kernel", kernel)
    want = DreamEngine(world.m, world.spec, backend="triton")
    want._backends = [steps]
    for _ in range(2):
        got = one.rollout(world.params, world.starts, **PLAN)
        assert torch.equal(got.z, want.rollout(world.params, world.starts, **PLAN).z)
    assert kernel.launches == 1


@pytest.mark.usefixtures("auto_on_a_gpu")
def test_auto_keeps_kernels_that_fit() -> None:
    world = World()
    one = DreamEngine(world.m, world.spec)
    one.rollout(world.params, world.starts, **PLAN)
    assert one.backend == "triton"
