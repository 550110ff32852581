"""bench/gpu.py where no GPU is: it says so, and its table can be written."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
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
    monkeypatch.setattr(gpu.optimizers, "contestants", lambda device: {})  # tests/bench/test_bench_optimizers.py
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
    # Written at once, and after every row.
    assert len(kept) == 1 + 9
    assert kept[0].splitlines()[0] == "device a CPU"
    assert "| 8 | shared | 64 | peer large | out of memory: Tried to allocate 2 GiB | | | |" in kept[-2]
    assert "peer large | out of memory" not in kept[-3]


def ranked(field: list[Rival], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the contestants, where ``rivals`` finds these and Triton is here."""
    monkeypatch.setattr(gpu, "rivals", lambda device: (field, {}))
    monkeypatch.setattr(gpu, "missing", lambda: None)
    return [rival.name for rival in gpu.contestants()[0]]


def test_those_that_targets_rest_on_come_first_then_ours_then_the_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = next(rival for rival in rivals("cpu")[0] if rival.name == "torch fp32")
    kinds = {"engine": ("triton", "torch"), "peer": ("torch eager, batched", "torch, CUDA graph")}
    names = [(f"{name} {precision}", kind) for kind in kinds for name in kinds[kind] for precision in ("fp32", "bf16")]
    field = [replace(sound, name=name, kind=kind, precision=name.split()[-1]) for name, kind in names]
    field.append(replace(sound, name="one by one", kind="peer", sample=1))
    assert ranked(field, monkeypatch) == [
        "triton persistent bf16", "triton steps bf16", "torch eager, batched bf16",
        "triton bf16", "triton persistent fp32", "triton steps fp32", "triton fp32",
        "torch, CUDA graph bf16", "torch eager, batched fp32", "torch, CUDA graph fp32",
        "torch bf16", "torch fp32",
    ]  # fmt: skip


FORMS = ("triton persistent bf16", "triton steps bf16")
EAGER, GRAPH = "torch eager, batched bf16", "torch, CUDA graph bf16"


@pytest.fixture
def sound_field(without_a_gpu: None, monkeypatch: pytest.MonkeyPatch) -> list[Rival]:
    """Rivals that are right, in the order of the contestants."""
    sound = {rival.precision: rival for rival in rivals("cpu")[0] if rival.name in ("torch fp32", "torch bf16")}
    field = [replace(sound["bf16"], name=name) for name in FORMS]
    field += [replace(sound["bf16"], name=name, kind="peer", record=None) for name in (EAGER, GRAPH)]
    field.append(sound["fp32"])
    monkeypatch.setattr(gpu, "contestants", lambda: (field, {}))
    return field


@pytest.mark.usefixtures("sound_field")
def test_what_targets_rest_on_is_checked_and_timed_at_every_size_before_the_rest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "parity", lambda *arguments: {"passed": True, "reason": ""})
    gpu.measure([8, 9], [32, 64], ["shared", "per_dim"], 4, lambda now: None, lambda: 1.0)
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    order = [(row["rival"], row["hidden"], row["mixture"], row["of"], row.get("rollouts")) for row in rows]
    assert order == [
        (name, hidden, mixture, *what)
        for names in ((*FORMS, EAGER), (GRAPH, "torch fp32"))
        for hidden in (8, 9)
        for mixture in ("shared", "per_dim")
        for name in names
        for what in (("parity", None), ("speeds", 32), ("speeds", 64))
    ]
    assert not any("error" in row for row in rows)


@pytest.mark.usefixtures("sound_field")
def test_when_time_runs_out_ours_have_been_timed() -> None:
    # As many things are begun as stand in the list: three of them checked and timed, in two sizes.
    seconds = iter([1.0] * 12)
    result = gpu.measure([8, 9], [32], ["shared"], 4, lambda now: None, lambda: next(seconds, 0.0))
    timed = [(row["rival"], row["hidden"]) for row in result["speeds"] if "error" not in row]
    assert timed == [(name, hidden) for hidden in (8, 9) for name in (*FORMS, EAGER)]
    late = [row for row in result["parity"] if row["passed"] is None]
    assert {(row["rival"], row["reason"]) for row in late} == {(GRAPH, gpu._NO_TIME), ("torch fp32", gpu._NO_TIME)}
    assert not gpu.wrong(result)
    # The table stands by size all the same.
    table = gpu.markdown(result)
    places = [table.index(f"| {name} | {hidden} | shared |") for hidden in (8, 9) for name in (*FORMS, EAGER, GRAPH)]
    assert places == sorted(places)


@pytest.mark.usefixtures("sound_field")
def test_a_yardstick_that_fails_is_a_row_of_everyone(monkeypatch: pytest.MonkeyPatch) -> None:
    field, absent = gpu.contestants()

    def broken(setup: Setup) -> Callable[[], Tensor]:
        raise RuntimeError("no driver")

    monkeypatch.setattr(gpu, "contestants", lambda: ([*field[:-1], replace(field[-1], build=broken)], absent))
    result = gpu.measure([8], [32], ["shared"], 4, lambda now: None, lambda: 1.0)
    assert [row["reason"] for row in result["parity"]] == ["RuntimeError: no driver"] * 5
    assert gpu.wrong(result)


class Killed(BaseException):
    """The end of the process, which nobody catches."""


def test_what_was_measured_is_on_disk_when_the_process_dies(
    sound_field: list[Rival],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fatal(setup: Setup) -> Callable[[], Tensor]:
        raise Killed

    field = [*sound_field[:3], replace(sound_field[3], build=fatal), sound_field[4]]
    monkeypatch.setattr(gpu, "contestants", lambda: (field, {}))
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu.kernels, "interpreted", lambda: False)
    chosen = ["--hidden", "8", "--rollouts", "32", "64", "--mixtures", "shared", "--steps", "4"]
    with pytest.raises(Killed):
        gpu.main(["--out", str(tmp_path), *chosen])
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert len(printed) == 9
    assert [{"of": "speeds"} | row for row in written["speeds"]] == [row for row in printed if row["of"] == "speeds"]
    assert len(written["parity"]) == 3
    assert "| 8 | shared | 64 | torch eager, batched bf16 |" in (tmp_path / "gpu.md").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gpu.json", "gpu.md"]


NOTHING: dict[str, Any] = {"parity": [], "speeds": [], "mixture": [], "million": {}, "optimizers": []}
RIVALS = [
    {"rival": "triton steps bf16", "kind": "engine", "passed": True},
    {"rival": GRAPH, "kind": "peer", "passed": False},
]


@pytest.mark.parametrize(
    ("what", "fails"),
    [
        ({}, False),
        ({"mixture": [{"op": "sample", "mixture": "shared", "error": "WrongResultError: off"}]}, True),
        ({"mixture": [{"op": "sample", "mixture": "shared", "error": gpu._NO_TIME}]}, False),
        ({"million": {"error": "out of memory: Tried to allocate 2 GiB"}}, True),
        ({"million": {"error": gpu._NO_TIME}}, False),
        ({"million": {"gigabytes": 4.0}}, False),
        ({"speeds": [{"rival": "triton steps bf16", "error": "RuntimeError: no"}]}, True),
        ({"speeds": [{"rival": "triton steps bf16", "error": gpu._NO_TIME}]}, False),
        ({"speeds": [{"rival": GRAPH, "error": "RuntimeError: no"}]}, False),
    ],
)
def test_whatever_of_ours_is_wrong_or_raises_fails_the_run(what: dict[str, Any], fails: bool) -> None:
    assert gpu.wrong(NOTHING | {"parity": RIVALS} | what) == fails


@pytest.mark.usefixtures("sound_field")
def test_every_operator_and_mixture_is_measured_on_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = gpu.registered.mdn_nll

    def wrong_where_shared(logits: Tensor, *parts: Tensor) -> Tensor:
        return sound(logits, *parts) + (1.0 if logits.shape[1] == 1 else 0.0)

    def no_kernel(*arguments: Any) -> Tensor:
        raise RuntimeError("no kernel\nmore")

    monkeypatch.setattr(gpu, "missing", lambda: None)
    monkeypatch.setattr(gpu, "million", lambda: {"gigabytes": 4.0})
    monkeypatch.setattr(gpu, "_BATCHES", dict.fromkeys(gpu.OPERATORS, 100))
    monkeypatch.setattr(gpu.registered, "mdn_nll", wrong_where_shared)
    result = gpu.measure([], [], [], 4, lambda now: None, lambda: 1.0)
    nll, sample = gpu.OPERATORS
    rows = {(row["op"], row["mixture"]): row for row in result["mixture"]}
    assert list(rows) == [(nll, "shared"), (sample, "shared"), (nll, "per_dim"), (sample, "per_dim")]
    assert rows[nll, "shared"]["error"].startswith("WrongResultError: nll shared: output 0 is 1 off")
    assert all("error" not in rows[key] and rows[key]["of_copy"] > 0.0 for key in rows if key != (nll, "shared"))
    assert gpu.wrong(result)
    table = gpu.markdown(result)
    assert f"| {nll} | shared | WrongResultError: nll shared: output 0 is 1 off" in table
    monkeypatch.setattr(gpu.registered, "mdn_sample", no_kernel)
    result = gpu.measure([], [], [], 4, lambda now: None, lambda: 1.0)
    assert [row.get("error", "") for row in result["mixture"]][1::2] == ["RuntimeError: no kernel"] * 2
    hurried = gpu.measure([], [], [], 4, lambda now: None, lambda: 0.0)
    assert [row["error"] for row in hurried["mixture"]] == [gpu._NO_TIME] * 4
    assert not gpu.wrong(hurried)


@pytest.mark.usefixtures("sound_field")
def test_a_million_rollouts_that_fail_are_written_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def large() -> dict[str, Any]:
        raise torch.OutOfMemoryError("Tried to allocate 20 GiB\nmore")

    kept: list[str] = []
    monkeypatch.setattr(gpu, "missing", lambda: None)
    monkeypatch.setattr(gpu, "million", large)
    monkeypatch.setattr(gpu, "OPERATORS", {})
    result = gpu.measure([], [], [], 4, lambda now: kept.append(gpu.markdown(now)), lambda: 1.0)
    assert "2^20 rollouts in bf16: out of memory: Tried to allocate 20 GiB" in kept[-1]
    assert len(kept) == 2
    assert gpu.wrong(result)


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
    cases = [(op, mixture) for mixture in ("shared", "per_dim") for op in gpu.OPERATORS]
    shares = {case: gpu.mixture_speed(*case, LIMITS, 100)["of_copy"] for case in cases}
    # Floats a row: K logits (per_dim: for each dimension), means and log standard deviations of 32 x 5, target of 32.
    forward = {"shared": 5 + 320 + 32, "per_dim": 160 + 320 + 32}
    # A draw: all logits, the chosen means and log standard deviations or all of them, counters of 3 x 2, z. Where a
    # sector of 8 floats is hit, all of it moves: 5 logits lie in 1.5 of them on average, 32 in a row in 4.875. Shared
    # with a neighbour: the first component's first with the logits', 7 of 8 times if it is chosen; the last one's last
    # with the next row's logits', 6 of 8 times.
    draws = {"shared": 8 * (1.5 + 2 * 4.875 - 0.2 * (7 + 6) / 8) + 6 + 32, "per_dim": 160 + 320 + 6 + 32}
    for mixture in ("shared", "per_dim"):
        both = 3 * forward[mixture] + 2
        assert shares["nll forward and backward", mixture] == pytest.approx(100 * 4 * both / 1e-9 / 4e12)
        assert shares["sample", mixture] == pytest.approx(100 * 4 * draws[mixture] / 1e-9 / 4e12, rel=0.005)


@pytest.mark.usefixtures("without_a_gpu")
def test_wrong_draws_get_no_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = gpu.registered.mdn_sample
    monkeypatch.setattr(gpu, "device_quantiles", lambda run, **how: {"p50": 1e-9})
    monkeypatch.setattr(gpu.registered, "mdn_sample", lambda *arguments: sound(*arguments) + 1e-3)
    with pytest.raises(WrongResultError, match="sample shared"):
        gpu.mixture_speed("sample", "shared", LIMITS, 100)


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
