"""What the suites share: rates beside pytest-benchmark's times, and a table of them at the end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

_RATES = pytest.StashKey[list[tuple[str, str, str, float]]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_RATES] = []


@pytest.fixture
def time_rate(benchmark: Any, request: pytest.FixtureRequest) -> Callable[..., None]:
    """``time_rate(run, amount, unit, group, name)``: time ``run``, which does ``amount`` units of work a call."""

    def measure(run: Callable[[], object], amount: float, unit: str, group: str, name: str, rounds: int = 5) -> None:
        benchmark.group = group
        benchmark.pedantic(run, rounds=rounds, warmup_rounds=1, iterations=1)
        if benchmark.stats is None:
            return
        rate = amount / benchmark.stats.stats.median
        benchmark.extra_info.update({"name": name, "unit": unit, "amount": amount, f"{unit}_per_second": rate})
        request.config.stash[_RATES].append((group, name, unit, rate))

    return measure


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Rates by group, fastest first, with how many times the slowest each is."""
    rates = config.stash[_RATES]
    for group in dict.fromkeys(row[0] for row in rates):
        rows = sorted((row for row in rates if row[0] == group), key=lambda row: -row[3])
        terminalreporter.write_sep("-", f"{group} (medians)")
        for _, name, unit, rate in rows:
            terminalreporter.write_line(f"{name:40} {rate:14,.0f} {unit}/s   {rate / rows[-1][3]:8.1f} x")
