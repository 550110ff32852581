"""How many actors fit, from what Ray says of its nodes."""

from __future__ import annotations

from typing import Any

import pytest

from wm_engine.cluster.ray_fleet import ClusterSettings, _room
from wm_engine.errors import WMEngineError

CPUS = [{"CPU": 16.0}, {"CPU": 8.0}, {"memory": 1e9}]
GPUS = [{"CPU": 16.0, "GPU": 4.0}, {"CPU": 8.0, "GPU": 1.0}, {"CPU": 64.0}]


@pytest.mark.parametrize(
    ("nodes", "settings", "device", "room"),
    [
        (CPUS, {}, "cpu", (3, 8)),
        (CPUS, {"cpus": 1}, "cpu", (24, 1)),
        (CPUS, {"cpus": 5}, "cpu", (4, 5)),
        (CPUS, {"cpus": 12, "actors": 1}, "cpu", (1, 12)),
        (GPUS, {}, "cuda", (5, 4)),
        (GPUS, {"cpus": 8}, "cuda", (3, 8)),
        (GPUS, {}, "cpu", (11, 8)),
    ],
)
def test_room(nodes: Any, settings: dict[str, int], device: str, room: tuple[int, int]) -> None:
    assert _room(nodes, ClusterSettings(**settings), device) == room


@pytest.mark.parametrize(
    ("nodes", "settings", "device", "message"),
    [
        (CPUS, {"actors": 4}, "cpu", "4 with 8 CPUs wanted, but the cluster has room for 3"),
        (CPUS, {"cpus": 17}, "cpu", "one with 17 CPUs wanted, but the cluster has room for 0"),
        (CPUS, {}, "cuda", "one with a GPU and 1 CPUs wanted, but the cluster has room for 0"),
        ([], {}, "cpu", "room for 0"),
    ],
)
def test_no_room(nodes: Any, settings: dict[str, int], device: str, message: str) -> None:
    with pytest.raises(WMEngineError, match=message):
        _room(nodes, ClusterSettings(**settings), device)
