"""The crossover of the Triton forms: measured with a fake clock, kept in memory and on disk."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from kernel_device import needs_interpreter
from world import World

from wm_engine import MDNRNN, ControllerSpec
from wm_engine.dream import crossover as module
from wm_engine.dream import triton_backend
from wm_engine.dream.crossover import SIZES, cache_file, crossover
from wm_engine.dream.triton_backend import TritonBackend
from wm_engine.dream.types import RolloutPlan


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WM_ENGINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "_known", {})
    return tmp_path / "cache"


def clock(equal_at: int, asked: list[tuple[str, int]]) -> Callable[[str, int], float]:
    """Persistent rollouts take as long as steps do at ``equal_at`` of them; steps' time grows with their number."""

    def seconds(form: str, rollouts: int) -> float:
        asked.append((form, rollouts))
        return float(equal_at if form == "persistent" else rollouts)

    return seconds


def never(form: str, rollouts: int) -> float:
    raise AssertionError("measured again")


@pytest.mark.parametrize(
    ("equal_at", "expected"), [(1, SIZES[0]), (5000, 1 << 13), (1 << 14, 1 << 14), (1 << 20, 1 << 16)]
)
def test_it_is_the_least_size_at_which_one_kernel_is_as_fast(equal_at: int, expected: int) -> None:
    asked: list[tuple[str, int]] = []
    assert crossover("a", clock(equal_at, asked)) == expected
    assert max(size for _, size in asked) == min(expected, SIZES[-1])


def test_it_is_measured_once_a_process_and_once_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert crossover("a", clock(3000, [])) == 4096
    assert crossover("a", never) == 4096
    monkeypatch.setattr(module, "_known", {})
    assert crossover("a", never) == 4096
    assert crossover("b", clock(9000, [])) == 16384
    assert json.loads(cache_file().read_text()) == {"a": 4096, "b": 16384}
    assert [path.name for path in cache_file().parent.iterdir()] == ["crossovers.json"]


@pytest.mark.parametrize("text", ["{half", "[1, 2]", '{"a": "4096"}', '{"a": true}'])
def test_a_corrupt_file_is_passed_over_and_mended(text: str, caplog: pytest.LogCaptureFixture) -> None:
    cache_file().parent.mkdir(parents=True)
    cache_file().write_text(text)
    with caplog.at_level(logging.WARNING):
        assert crossover("a", clock(3000, [])) == 4096
    assert f"{cache_file()} is passed over" in caplog.text
    assert json.loads(cache_file().read_text()) == {"a": 4096}


def test_a_cache_that_cannot_be_written_costs_no_answer(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder.write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        assert crossover("a", clock(3000, [])) == 4096
    assert "measured again next time" in caplog.text


def test_the_users_cache_folder_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WM_ENGINE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_file() == Path("/somewhere/wm_engine/crossovers.json")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/user")
    assert cache_file() == Path("/home/user/.cache/wm_engine/crossovers.json")


@needs_interpreter
def test_an_answer_is_kept_for_one_device_versions_and_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    triton = pytest.importorskip("triton", minversion="3.2", reason="Triton is not installed")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    cpu, cases = torch.device("cpu"), [(32, "fp32"), (32, "bf16"), (64, "bf16")]
    keys = {TritonBackend(MDNRNN(hidden=h), ControllerSpec(hidden=h), cpu, precision)._key() for h, precision in cases}
    assert len(keys) == len(cases)
    assert all(f"triton {triton.__version__}, torch {torch.__version__}" in key for key in keys)


def test_threads_that_ask_at_once_get_one_answer() -> None:
    measured = []

    def seconds(form: str, rollouts: int) -> float:
        measured.append(form)
        time.sleep(0.005)
        return float(len(measured) if form == "persistent" else 5.0)  # another answer for whoever measures later

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: crossover("a", seconds), range(2))
    assert first == second == SIZES[0]
    assert measured == ["persistent", "steps"]


@needs_interpreter
@pytest.mark.parametrize("mixture", ["shared", "per_dim"])
def test_dreams_that_are_measured_do_not_end_early(mixture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    world = World(mixture)
    world.m.state_dict()["head.bias"][-1] += 20.0  # every episode would end at once
    backend = TritonBackend(world.m, world.spec, torch.device("cpu"))
    monkeypatch.setattr(triton_backend, "_MEASURED_STEPS", 3)
    monkeypatch.setattr(triton_backend, "_best_seconds", lambda run, device: run() or 1.0)
    tasks, persistent = [], backend._launch.persistent
    monkeypatch.setattr(backend._launch, "persistent", lambda *given: tasks.append(given[-1]) or persistent(*given))
    backend._seconds("persistent", 16)
    assert tasks[0].lengths.tolist() == [3] * 16


@needs_interpreter
def test_dreams_run_outside_inference_mode() -> None:
    """Where a graph that is captured would spoil later ones, before torch 2.11."""
    pytest.importorskip("triton")
    world = World()
    output = TritonBackend(world.m, world.spec, torch.device("cpu")).rollout(
        world.params, world.starts, RolloutPlan(episodes=1, max_steps=1)
    )
    assert not output.returns.is_inference()


@needs_interpreter
def test_what_was_measured_elsewhere_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    world = World()
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    key = TritonBackend(world.m, world.spec, torch.device("cpu"))._key()
    backend = TritonBackend(world.m, world.spec, torch.device("cpu"), crossovers={key: 2000})
    assert backend.crossovers() == {}  # nothing is measured in the interpreter
    monkeypatch.setattr(backend, "_device", torch.device("cuda"))
    monkeypatch.setattr(backend, "_seconds", never)
    assert backend.crossovers() == {key: 2000}
    assert [backend._form_for(rollouts, False) for rollouts in (1999, 2000)] == ["steps", "persistent"]
