"""bench/targets.py: each target met and missed, and nothing said of what was not measured."""

from __future__ import annotations

from typing import Any

import pytest

from wm_engine.bench.targets import lines, targets

EAGER, GRAPH = "torch eager, batched bf16", "torch, CUDA graph bf16"


def speed(rival: str, rate: float, rollouts: int = 1 << 14, **more: Any) -> dict[str, Any]:
    where = {"rival": rival, "hidden": 256, "mixture": "per_dim", "rollouts": rollouts}
    return where | {"steps_per_second": rate, "of_matrix_ceiling": rate / 893e6, "bytes_per_rollout": 5600.0} | more


def result(*speeds: dict[str, Any], **more: Any) -> dict[str, Any]:
    parity = [{"rival": name, "kind": "peer"} for name in (EAGER, GRAPH)]
    parity += [{"rival": "triton persistent bf16", "kind": "engine"}, {"rival": "torch bf16", "kind": "engine"}]
    return {"parity": parity, "speeds": list(speeds), "mixture": [], "million": {}, "optimizers": []} | more


def verdicts(measured: dict[str, Any]) -> dict[str, bool | None]:
    return {target.name: target.reached for target in targets(measured)}


def test_nothing_is_said_of_what_was_not_measured() -> None:
    assert targets(result()) == []
    failed = {"rival": "triton steps bf16", "hidden": 256, "mixture": "shared", "rollouts": 16384, "error": "no"}
    broken = {"op": "all", "mixture": "all", "error": "no"}
    lost = {"optimizer": "batched, cuda", "device": "cuda", "error": "no"}
    without = {"mixture": [broken], "million": {"error": "no"}, "optimizers": [lost]}
    assert targets(result(failed, speed(EAGER, 1e8), **without)) == []


@pytest.mark.parametrize(
    ("rate", "reached"),
    [
        (480e6, {"300 M steps/s": True, "the aim: 480 M steps/s": True, "the aim: half the matrix ceiling": True}),
        (300e6, {"300 M steps/s": True, "the aim: 480 M steps/s": False, "the aim: half the matrix ceiling": False}),
        (299e6, {"300 M steps/s": False, "3 times torch eager, batched bf16": False, "no slower than any peer": True}),
        (119e6, {"3 times torch eager, batched bf16": False, "no slower than any peer": False}),
    ],
)
def test_the_fastest_form_is_judged(rate: float, reached: dict[str, bool]) -> None:
    slow = speed("triton steps bf16", 1e6)
    measured = result(slow, speed("triton persistent bf16", rate), speed(EAGER, 100e6), speed(GRAPH, 120e6))
    found = verdicts(measured)
    assert {name: found[name] for name in reached} == reached
    assert found["3 times torch eager, batched bf16"] == (rate >= 300e6)
    assert found["8192 bytes a rollout"]


def test_an_engine_of_ours_is_no_peer_and_other_sizes_are_held_to_peers_alone() -> None:
    small = [speed("triton steps bf16", 5e6, 1024), speed("torch bf16", 6e6, 1024), speed(GRAPH, 5.5e6, 1024)]
    found = targets(result(*small))
    assert [(target.name, target.reached, target.figure) for target in found] == [
        ("no slower than any peer", False, f"0.91 times {GRAPH}, the fastest of 1 timed"),
        ("8192 bytes a rollout", True, "5600"),
    ]
    assert found[0].where == "H 256, per_dim, 1024 rollouts"


def test_memory_is_judged_where_the_weights_share_is_least() -> None:
    rows = [speed("triton steps bf16", 1e6, 1024, bytes_per_rollout=9000.0), speed("triton steps bf16", 1e6, 65536)]
    assert verdicts(result(*rows, million={"gigabytes": 16.5})) == {
        "8192 bytes a rollout": True,
        "2^20 rollouts in 16 GB": False,
    }


def test_memory_is_judged_at_the_papers_size_in_bf16_and_shown_elsewhere() -> None:
    here = [
        speed("triton persistent bf16", 1e8, bytes_per_rollout=5000.0),
        speed("triton steps bf16", 1e8, bytes_per_rollout=9000.0),
        speed("triton persistent fp32", 1e8, bytes_per_rollout=9500.0),
        speed("triton persistent bf16", 1e8, hidden=512, bytes_per_rollout=9600.0),
        speed("triton persistent bf16", 1e8, mixture="shared", bytes_per_rollout=8192.0),
        speed("torch bf16", 1e8, bytes_per_rollout=1e6),
    ]
    found = [line for line in lines(result(*here)) if "bytes a rollout" in line]
    assert found == [
        "| 8192 bytes a rollout | triton steps bf16, H 256, per_dim, 16384 rollouts | 9000 | no |",
        "| 8192 bytes a rollout | triton persistent bf16, H 256, per_dim, 16384 rollouts | 5000 | yes |",
        "| 8192 bytes a rollout | triton persistent bf16, H 256, shared, 16384 rollouts | 8192 | yes |",
        "| bytes a rollout | triton persistent fp32, H 256, per_dim, 16384 rollouts | 9500 | not judged: "
        "8192 are asked of bf16 at H 256 |",
        "| bytes a rollout | triton persistent bf16, H 512, per_dim, 16384 rollouts | 9600 | not judged: "
        "8192 are asked of bf16 at H 256 |",
    ]


def test_the_mixture_is_judged_by_bytes_and_by_torch() -> None:
    op = {"op": "sample", "mixture": "shared", "of_copy": 0.86, "times_torch": 2.9}
    table = lines(result(mixture=[op]))
    assert table[3:] == [
        "| 3 times torch eager | sample, shared | 2.9 | no |",
        "| 85% of the copy | sample, shared | 86% | yes |",
    ]


@pytest.mark.parametrize(("seconds", "reached"), [(0.0099, "yes"), (0.0101, "no")])
def test_the_optimiser_is_judged_on_the_device_alone(seconds: float, reached: str) -> None:
    row = {"dimension": 867, "population": 4096, "seconds": {"p50": seconds}}
    rows = [row | {"optimizer": f"batched, {device}", "device": device} for device in ("cuda", "cpu")]
    where, figure = "batched, cuda, D 867, P 4096", f"{1e3 * seconds:.1f} ms"
    assert lines(result(optimizers=rows))[3:] == [f"| ask and tell in 10 ms | {where} | {figure} | {reached} |"]
