"""What neither the interpreter nor an emulated GPU can show: a device's clock, its memory, and a second device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from kernel_device import DEVICE
from world import World

from wm_engine import DreamEngine
from wm_engine.dream import crossover
from wm_engine.errors import DeviceMemoryError

pytest.importorskip("triton", minversion="3.2", reason="Triton is not installed")
pytestmark = pytest.mark.skipif(
    DEVICE.type != "cuda" or not torch.cuda.is_available(), reason="no GPU, or TRITON_INTERPRET is not 0"
)
PLAN: dict[str, Any] = {"episodes": 64, "max_steps": 40, "done": "sample", "seed": 3}


def test_auto_measures_the_forms_once_and_keeps_the_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WM_ENGINE_CACHE", str(tmp_path))
    monkeypatch.setattr(crossover, "_known", {})
    world = World()
    DreamEngine(world.m, world.spec, DEVICE, "triton").rollout(world.params, world.starts, **PLAN)
    kept = json.loads(crossover.cache_file().read_text())
    assert len(kept) == 1
    assert set(kept.values()) < {*crossover.SIZES, 2 * crossover.SIZES[-1]}


def test_out_of_memory_is_named_and_the_engine_works_afterwards() -> None:
    world = World(candidates=64)
    engine = DreamEngine(world.m, world.spec, DEVICE, "triton")
    want = engine.rollout(world.params, world.starts, **PLAN).returns
    torch.cuda.set_per_process_memory_fraction((1 << 30) / torch.cuda.get_device_properties(DEVICE).total_memory)
    try:
        with pytest.raises(DeviceMemoryError, match=r"64 x 64 rollouts on cuda.* take more memory than is free"):
            # The latents alone would be 8 GB.
            engine.rollout(world.params, world.starts, **PLAN | {"max_steps": 100_000, "record": True})
        assert torch.equal(engine.rollout(world.params, world.starts, **PLAN).returns, want)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_launches_are_on_the_engines_device_and_the_current_one_stays(backend: str) -> None:
    world = World()
    with torch.cuda.device(0):
        first, second = (
            DreamEngine(world.m, world.spec, f"cuda:{place}", backend).rollout(world.params, world.starts, **PLAN)
            for place in (0, 1)
        )
        assert torch.cuda.current_device() == 0
    assert second.returns.device == torch.device("cuda", 1)
    if torch.cuda.get_device_name(0) == torch.cuda.get_device_name(1):
        assert torch.equal(first.returns.cpu(), second.returns.cpu())
