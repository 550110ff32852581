"""What the GPU's dream is to reach on an H200-class device, beside what ``bench.gpu`` measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_ROLLOUTS = 1 << 14
_HIDDEN = 256
_STEPS_PER_SECOND, _AIM = 300e6, 480e6
_TIMES_EAGER, _OF_CEILING = 3.0, 0.5
_OF_COPY, _TIMES_TORCH = 0.85, 3.0
_BYTES_A_ROLLOUT, _GIGABYTES = 8192, 16.0
_ASK_AND_TELL = 10e-3
EAGER = "torch eager, batched bf16"
OURS = "triton "


@dataclass(frozen=True)
class Target:
    """One target: what is asked, where, the figure, and whether it is reached; None where nothing is asked."""

    name: str
    where: str
    figure: str
    reached: bool | None


def targets(result: dict[str, Any]) -> list[Target]:
    """Those of the targets of which the result, or what there is of it, has the figures."""
    found = [*_speeds(result), *_mixture(result["mixture"]), *_memory(result), *_optimizers(result["optimizers"])]
    return sorted(found, key=lambda target: (False, True, None).index(target.reached))


def lines(result: dict[str, Any]) -> list[str]:
    """The targets as a Markdown table, those that are missed first, and last the figures that are not judged."""
    said = {True: "yes", False: "no", None: f"not judged: {_BYTES_A_ROLLOUT} are asked of bf16 at H {_HIDDEN}"}
    rows = [
        f"| {target.name} | {target.where} | {target.figure} | {said[target.reached]} |" for target in targets(result)
    ]
    return ["", "| target, H200-class | where | measured | reached |", "| --- | --- | --- | --- |", *rows]


def _speeds(result: dict[str, Any]) -> Iterator[Target]:
    peers = {row["rival"] for row in result["parity"] if row.get("kind") == "peer"}
    cases: dict[tuple[int, str, int], dict[str, dict[str, Any]]] = {}
    for row in result["speeds"]:
        if "error" not in row:
            cases.setdefault((row["hidden"], row["mixture"], row["rollouts"]), {})[row["rival"]] = row
    for (hidden, mixture, rollouts), rows in cases.items():
        where = f"H {hidden}, {mixture}, {rollouts} rollouts"
        ours = [row for name, row in rows.items() if name.startswith(OURS)]
        if not ours:
            continue
        best = max(ours, key=lambda row: row["steps_per_second"])
        rate = best["steps_per_second"]
        if rollouts == _ROLLOUTS and hidden == _HIDDEN:
            said = f"{1e-6 * rate:.1f} M"
            yield Target(f"{1e-6 * _STEPS_PER_SECOND:.0f} M steps/s", where, said, rate >= _STEPS_PER_SECOND)
            yield Target(f"the aim: {1e-6 * _AIM:.0f} M steps/s", where, said, rate >= _AIM)
            share = best["of_matrix_ceiling"]
            yield Target("the aim: half the matrix ceiling", where, f"{share:.0%}", share >= _OF_CEILING)
        if rollouts == _ROLLOUTS and EAGER in rows:
            times = rate / rows[EAGER]["steps_per_second"]
            yield Target(f"{_TIMES_EAGER:.0f} times {EAGER}", where, f"{times:.2f}", times >= _TIMES_EAGER)
        rates = {name: row["steps_per_second"] for name, row in rows.items() if name in peers}
        if rates:
            fastest = max(rates, key=lambda name: rates[name])
            times = rate / rates[fastest]
            # Of peers that failed, or had no time, nothing is known.
            said = f"{times:.2f} times {fastest}, the fastest of {len(rates)} timed"
            yield Target("no slower than any peer", where, said, times >= 1.0)


def _mixture(rows: list[dict[str, Any]]) -> Iterator[Target]:
    for row in rows:
        if "error" not in row:
            where = f"{row['op']}, {row['mixture']}"
            yield Target(f"{_OF_COPY:.0%} of the copy", where, f"{row['of_copy']:.0%}", row["of_copy"] >= _OF_COPY)
            times = row["times_torch"]
            yield Target(f"{_TIMES_TORCH:.0f} times torch eager", where, f"{times:.1f}", times >= _TIMES_TORCH)


def _optimizers(rows: list[dict[str, Any]]) -> Iterator[Target]:
    for row in rows:
        if "error" not in row and row["device"] != "cpu":
            where = f"{row['optimizer']}, D {row['dimension']}, P {row['population']}"
            seconds = row["seconds"]["p50"]
            name = f"ask and tell in {1e3 * _ASK_AND_TELL:.0f} ms"
            yield Target(name, where, f"{1e3 * seconds:.1f} ms", seconds <= _ASK_AND_TELL)


def _memory(result: dict[str, Any]) -> Iterator[Target]:
    ours: dict[tuple[str, int, str], dict[str, Any]] = {}
    for row in result["speeds"]:
        if "error" not in row and row["rival"].startswith(OURS):
            # Weights are among these bytes: their share is the least where the rollouts are the most.
            same = ours.setdefault((row["rival"], row["hidden"], row["mixture"]), row)
            if row["rollouts"] > same["rollouts"]:
                ours[row["rival"], row["hidden"], row["mixture"]] = row
    for (rival, hidden, mixture), row in ours.items():
        size, where = row["bytes_per_rollout"], f"{rival}, H {hidden}, {mixture}, {row['rollouts']} rollouts"
        if hidden == _HIDDEN and rival.endswith(" bf16"):
            yield Target(f"{_BYTES_A_ROLLOUT} bytes a rollout", where, f"{size:.0f}", size <= _BYTES_A_ROLLOUT)
        else:
            yield Target("bytes a rollout", where, f"{size:.0f}", None)
    if "gigabytes" in result["million"]:
        size = result["million"]["gigabytes"]
        yield Target(f"2^20 rollouts in {_GIGABYTES:.0f} GB", "bf16", f"{size:.1f} GB", size <= _GIGABYTES)
