"""bench/gpu.py where no GPU is: it says so, and its table can be written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from wm_engine.bench import gpu
from wm_engine.bench.check import WrongResultError
from wm_engine.bench.kernel_costs import kernel_cost
from wm_engine.bench.rivals import Rival, rivals
from wm_engine.bench.workload import Setup, Workload, prepare
from wm_engine.dream.types import DreamOutput


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([]) == 2
    assert "torch finds none here" in capsys.readouterr().err


LIMITS = {"bf16_macs_per_second": 1e14, "copy_bytes_per_second": 4e12}


@pytest.fixture
def without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The measurement on the CPU: only what asks the device for its clock, its memory and its name is a stand-in."""
    monkeypatch.setattr(gpu, "DEVICE", "cpu")
    monkeypatch.setattr(gpu, "synchronize", lambda: None)
    monkeypatch.setattr(gpu, "device_quantiles", lambda run, **how: gpu.quantiles(run, 2))
    monkeypatch.setattr(gpu, "peak_bytes", lambda run: run() or 6400)
    monkeypatch.setattr(gpu, "ceilings", lambda: LIMITS)
    monkeypatch.setattr(gpu, "origin", lambda: {"device": "a CPU", "commit": None})
    monkeypatch.setattr(gpu, "missing", lambda: "no GPU")
    monkeypatch.setattr(gpu.optimizers, "contestants", lambda device: {})  # tests/evolve/test_bench_optimizers.py
    sound = next(rival for rival in rivals("cpu")[0] if rival.name == "torch fp32")

    def wrong(setup: Setup) -> Callable[[], Tensor]:
        return lambda: 1.5 * sound.build(setup)()

    def broken(setup: Setup) -> Callable[[], Tensor]:
        raise RuntimeError("no compiler\nmore")

    def large(setup: Setup) -> Callable[[], Tensor]:
        if setup.workload.rollouts == 64:
            raise torch.OutOfMemoryError("Tried to allocate 2 GiB\nmore")
        return sound.build(setup)

    def astray(setup: Setup) -> DreamOutput:
        assert sound.record is not None
        out = sound.record(setup)
        assert out.z is not None
        return replace(out, z=out.z + 1e-3)

    faulty = {"engine off": wrong, "peer broken": broken, "peer large": large}
    field = [sound, *(Rival(name, name.split()[0], "cpu", "fp32", build) for name, build in faulty.items())]
    field.append(replace(sound, name="engine astray", record=astray))
    monkeypatch.setattr(gpu, "contestants", lambda: (field, {"JAX": "not installed"}))


@pytest.mark.usefixtures("without_a_gpu")
def test_what_fails_is_a_row_and_the_others_are_measured() -> None:
    kept: list[str] = []
    result = gpu.measure([8], [32, 64], ["shared"], 4, lambda now: kept.append(gpu.markdown(now)), lambda: 1.0)
    verdicts = {row["rival"]: row for row in result["parity"]}
    assert verdicts["torch fp32"]["passed"]
    assert len(verdicts["torch fp32"]["errors"]) == 2
    steps = verdicts["torch fp32"]["steps"]
    assert all(0.0 < steps["errors"][name] <= steps["allowed"][name] for name in ("z", "actions", "rewards"))
    assert verdicts["peer large"]["passed"]
    assert verdicts["peer large"]["steps"] is None
    assert verdicts["engine astray"]["passed"] is False
    assert "one step from given states: z 0.001 off" in verdicts["engine astray"]["reason"]
    assert verdicts["torch fp32"]["standard_errors"] == 0.0
    assert verdicts["engine off"]["passed"] is False
    assert "no speed is given" in verdicts["engine off"]["reason"]
    assert verdicts["peer broken"]["reason"] == "RuntimeError: no compiler"
    speeds = {(row["rival"], row["rollouts"]): row for row in result["speeds"]}
    assert len(speeds) == 4
    assert speeds["torch fp32", 64]["steps_per_second"] > 0.0
    assert speeds["torch fp32", 64]["bytes_per_rollout"] == 100.0
    assert speeds["peer large", 32]["steps_per_second"] > 0.0
    assert speeds["peer large", 64]["error"] == "out of memory: Tried to allocate 2 GiB"
    # Written after every row.
    assert len(kept) == 9
    assert "| 8 | shared | 64 | peer large | out of memory: Tried to allocate 2 GiB | | | |" in kept[-1]
    assert "peer large | out of memory" not in kept[-2]


@pytest.mark.usefixtures("without_a_gpu")
def test_a_wrong_optimiser_is_a_row_and_fails_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def generation(kind: str, device: str, clock: object) -> dict[str, Any]:
        if device == "cuda":
            raise WrongResultError("gave other bits")
        return {"seconds": {"p50": 1.0}}

    monkeypatch.setattr(gpu.optimizers, "contestants", lambda device: {"b": ("batched", "cuda"), "p": ("pycma", "cpu")})
    monkeypatch.setattr(gpu.optimizers, "generation", generation)
    monkeypatch.setattr(gpu, "contestants", lambda: (rivals("cpu")[0], {}))
    result = gpu.measure([], [], [], 4, lambda now: None, lambda: 1.0)
    assert [row.get("error") for row in result["optimizers"]] == ["WrongResultError: gave other bits", None]
    assert gpu.wrong(result)
    assert not gpu.wrong(result | {"optimizers": result["optimizers"][1:]})
    hurried = gpu.measure([], [], [], 4, lambda now: None, lambda: 0.0)
    assert [row["error"] for row in hurried["optimizers"]] == ["no time was left"] * 2
    assert not gpu.wrong(hurried)


@pytest.mark.usefixtures("without_a_gpu")
def test_the_bandwidth_of_our_forms_is_that_of_their_kernels() -> None:
    setup, sound = prepare(Workload(2, 16, 20, hidden=8)), next(r for r in rivals("cpu")[0] if r.name == "torch fp32")
    assert gpu.speed(setup, sound, LIMITS)["of_copy"] is None
    lived = 2 * 16 * 20
    for name, launches, kernels in (
        ("triton persistent fp32", 1, ["rollout_kernel"]),
        ("triton steps fp32", 20, ["act_kernel", "advance_kernel", "settle_kernel"]),
    ):
        row = gpu.speed(setup, replace(sound, name=name), LIMITS)
        costs = [kernel_cost(kernel, setup, "fp32", launches, lived) for kernel in kernels]
        moved = sum(cost.bytes for cost in costs if cost is not None)
        assert row["of_copy"] == pytest.approx(moved / row["seconds"]["p50"] / 4e12)


@pytest.mark.usefixtures("without_a_gpu")
def test_what_there_is_no_time_for_is_named() -> None:
    result = gpu.measure([8], [32], ["shared"], 4, lambda now: None, lambda: 0.0)
    assert [row["passed"] for row in result["parity"]] == [None] * 5
    assert result["speeds"] == []
    assert "| torch fp32 | 8 | shared | - | | no time was left |" in gpu.markdown(result)


@pytest.mark.usefixtures("without_a_gpu")
def test_the_mixtures_bytes_are_those_that_must_move(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "device_quantiles", lambda run, **how: {"p50": 1e-9})
    shares = {(row["op"], row["mixture"]): row["of_copy"] for row in gpu.mixture_speeds(LIMITS, 100)}
    # Floats a row: K logits (per_dim: for each dimension), means and log standard deviations of 32 x 5, target of 32.
    forward = {"shared": 5 + 320 + 32, "per_dim": 160 + 320 + 32}
    # A draw: all logits, the chosen means and log standard deviations or all of them, counters of 3 x 2, z.
    draws = {"shared": 5 + 2 * 32 + 6 + 32, "per_dim": 160 + 320 + 6 + 32}
    for mixture in ("shared", "per_dim"):
        both = 3 * forward[mixture] + 2
        assert shares["nll forward and backward", mixture] == pytest.approx(100 * 4 * both / 1e-9 / 4e12)
        assert shares["sample", mixture] == pytest.approx(100 * 4 * draws[mixture] / 1e-9 / 4e12)


@pytest.mark.usefixtures("without_a_gpu")
def test_wrong_draws_get_no_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = gpu.registered.mdn_sample
    monkeypatch.setattr(gpu, "device_quantiles", lambda run, **how: {"p50": 1e-9})
    monkeypatch.setattr(gpu.registered, "mdn_sample", lambda *arguments: sound(*arguments) + 1e-3)
    with pytest.raises(WrongResultError, match="sample shared"):
        list(gpu.mixture_speeds(LIMITS, 100))


def test_the_table_holds_what_was_measured() -> None:
    where = {"rival": "triton persistent bf16", "rollouts": 4096, "hidden": 256, "mixture": "shared"}
    measured = {"steps_per_second": 2.5e6, "of_matrix_ceiling": 0.125, "of_copy": 0.0625, "bytes_per_rollout": 4000.0}
    steps = {"errors": {"z": 1e-3, "actions": 2e-7, "rewards": 2e-3}, "left_out": 0.1}
    steps["allowed"] = {"z": 1e-2, "actions": 2e-2, "rewards": 2e-2}
    op = {"op": "sample", "mixture": "shared", "of_copy": 0.5, "times_torch": 3.0}
    result = {
        "provenance": {"device": "a GPU", "commit": "abc"},
        "ceilings": LIMITS,
        "optimizers": [],
        "million": {"gigabytes": 5.75},
        "parity": [
            {"rival": "triton steps bf16", "hidden": 256, "mixture": "shared", "passed": False, "reason": "off"},
            {"rival": "torch bf16", "hidden": 256, "mixture": "shared", "passed": True, "reason": "", "steps": steps},
        ],
        "absent": {"JAX": "not installed"},
        "speeds": [where | measured, where | measured | {"of_copy": None}, where | {"error": "out of memory"}],
        "mixture": [op],
    }
    table = gpu.markdown(result)
    for row in (
        "device a GPU, commit abc",
        "200 TFLOP/s in bf16, 4.00 TB/s copied",
        "2^20 rollouts in bf16 take 5.8 GB",
        "| triton steps bf16 | 256 | shared | no | | off |",
        "| torch bf16 | 256 | shared | yes | 1.0e-03 (1.0e-02), 2.0e-07 (2.0e-02), 2.0e-03 (2.0e-02) | |",
        "| JAX | | | - | | not installed |",
        "| 256 | shared | 4096 | triton persistent bf16 | 2.5 | 12.5% | 6.2% | 4000 |",
        "| 256 | shared | 4096 | triton persistent bf16 | 2.5 | 12.5% | | 4000 |",
        "| 256 | shared | 4096 | triton persistent bf16 | out of memory | | | |",
        "| sample | shared | 50% | 3.0 |",
    ):
        assert row in table
