"""The GPU table's rows of the optimisers, measured on the CPU: right ones get a speed, wrong ones none."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from pretend import pretend_device

from wm_engine.bench import gpu, optimizers
from wm_engine.bench.check import WrongResultError
from wm_engine.bench.optimizers import generation, table
from wm_engine.learn.evolve import BatchedCMAES

SMALL: dict[str, int] = {"dimension": 305, "popsize": 24}


def once(run: Any) -> dict[str, float]:
    run()
    return {"p50": 1.0}


@pytest.mark.parametrize("kind", ["batched", "pycma"])
def test_what_is_right_is_timed(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "synchronize", lambda: None)
    row = generation(kind, "cpu", lambda run: gpu.quantiles(run, 2), **SMALL)
    assert (row["dimension"], row["population"]) == (305, 24)
    assert row["seconds"]["p20"] > 0.0


def test_it_is_held_to_float64_on_its_own_device() -> None:
    with pretend_device() as device:
        assert generation("batched", str(device), once, **SMALL)["seconds"] == {"p50": 1.0}


def test_a_wrong_mean_gets_no_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    ask = BatchedCMAES.ask
    monkeypatch.setattr(BatchedCMAES, "ask", lambda self: ask(self) + 1e-3)
    with pytest.raises(WrongResultError, match="generation 0 of batched on cpu"):
        generation("batched", "cpu", once, **SMALL)


def test_other_bits_the_second_time_get_no_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = itertools.count()
    adapt = BatchedCMAES._adapt_sigma

    def wavering(self: BatchedCMAES, *arguments: Any) -> None:
        adapt(self, *arguments)
        self._sigma *= 1.0 + 1e-15 * next(counter)

    monkeypatch.setattr(BatchedCMAES, "_adapt_sigma", wavering)
    with pytest.raises(WrongResultError, match="gave other bits"):
        generation("batched", "cpu", once, **SMALL)


def test_the_table_says_how_much_faster_or_why_not() -> None:
    names = list(optimizers.contestants("cuda"))
    assert names == ["batched, cuda", f"batched, {torch.get_num_threads()} CPU threads", "pycma"]
    seconds = [{"seconds": {"p50": 0.005}}, {"error": "no time was left"}, {"seconds": {"p50": 0.9}}]
    lines = table([{"optimizer": name} | row for name, row in zip(names, seconds, strict=True)])
    assert lines[1] == "| ask and tell, D = 867, P = 4,096 | ms | pycma's over these |"
    assert lines[3] == "| batched, cuda | 5.0 | 180.0 |"
    assert lines[4].endswith("| no time was left | |")
    assert lines[5] == "| pycma | 900.0 | 1.0 |"
    assert table([{"optimizer": names[0], "seconds": {"p50": 0.005}}])[3] == "| batched, cuda | 5.0 |  |"
