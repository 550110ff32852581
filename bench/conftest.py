"""What the suites share: rates beside pytest-benchmark's times, and a table of them at the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest


@dataclass(frozen=True)
class _Rate:
    group: str
    name: str
    unit: str
    rate: float
    whole: float | None


_RATES = pytest.StashKey[list[_Rate]]()


def pytest_xdist_auto_num_workers() -> int:
    """What is timed runs in this process, alone."""
    return 0


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_RATES] = []
    # The suite's own warnings stay errors; those of peers (torch.compile has some) are theirs.
    config.addinivalue_line("filterwarnings", "default:::torch")
    config.addinivalue_line("filterwarnings", "default:::jax")
    # A benchmark whose check fails ends before it is timed.
    config.addinivalue_line("filterwarnings", "ignore:Benchmark fixture was not used")


@pytest.fixture
def time_rate(benchmark: Any, request: pytest.FixtureRequest) -> Callable[..., None]:
    """``time_rate(run, amount, unit, group, name, rounds=5, whole=None)``: time ``run``, ``amount`` units a call.

    ``whole``: how many units a whole run has; the group's table then says each member's share of its time.
    """

    def measure(
        run: Callable[[], object],
        amount: float,
        unit: str,
        group: str,
        name: str,
        rounds: int = 5,
        whole: float | None = None,
    ) -> None:
        benchmark.group = group
        benchmark.pedantic(run, rounds=rounds, warmup_rounds=1, iterations=1)
        if benchmark.stats is None:
            return
        rate = amount / benchmark.stats.stats.median
        benchmark.extra_info.update({"name": name, "unit": unit, "amount": amount, f"{unit}_per_second": rate})
        request.config.stash[_RATES].append(_Rate(group, name, unit, rate, whole))

    return measure


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print rates by group: fastest first, as multiples of the slowest, or part by part of a run, with their shares."""
    rates = config.stash[_RATES]
    for group in dict.fromkeys(rate.group for rate in rates):
        members = [rate for rate in rates if rate.group == group]
        terminalreporter.write_sep("-", f"{group} (medians)")
        seconds = [None if member.whole is None else member.whole / member.rate for member in members]
        if None in seconds:
            members.sort(key=lambda member: -member.rate)
            notes = [f"{member.rate / members[-1].rate:8.1f} x" for member in members]
        else:
            total = sum(seconds)
            notes = [f"{each:8.1f} s of the quick preset, {100 * each / total:4.1f} %" for each in seconds]
        for member, note in zip(members, notes, strict=True):
            terminalreporter.write_line(f"{member.name:40} {member.rate:14,.0f} {member.unit}/s   {note}")
