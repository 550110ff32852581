"""Devices: populations split over several, ones that are not here, and ones that run out of memory."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any

import pytest
import torch
from kernel_device import needs_interpreter
from torch.utils._python_dispatch import TorchDispatchMode
from world import World

from wm_engine import DreamEngine, kernels
from wm_engine.dream import BACKENDS, engine, triton_backend
from wm_engine.dream.types import DreamOutput
from wm_engine.errors import DeviceMemoryError

PLAN: dict[str, Any] = {"episodes": 5, "max_steps": 6, "done": "sample", "seed": 3, "record": True}
FIELDS = ("returns", "lengths", "failed", "z", "actions", "rewards")


@pytest.fixture(params=["cpp", "torch"])
def backend(request: pytest.FixtureRequest) -> str:
    reason = next(entry for entry in BACKENDS if entry.name == request.param).missing()
    if reason is not None:
        pytest.skip(reason)
    return str(request.param)


@pytest.mark.parametrize("common", [True, False])
@pytest.mark.parametrize("count", [2, 3, 9])
def test_a_population_split_over_devices_has_the_bits_of_one(backend: str, common: bool, count: int) -> None:
    world = World(candidates=7)
    plan = PLAN | {"common_random_numbers": common, "first_candidate": 5}
    one = DreamEngine(world.m, world.spec, backend=backend)
    several = DreamEngine(world.m, world.spec, backend=backend, devices=["cpu"] * count)
    whole, joined = (e.rollout(world.params, world.starts, **plan) for e in (one, several))
    for name in FIELDS:
        assert torch.equal(getattr(joined, name), getattr(whole, name))
    assert several.rollout(world.params, world.starts, **plan | {"record": False}).z is None


def test_an_error_on_one_device_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(candidates=4)
    both = DreamEngine(world.m, world.spec, backend="torch", devices=["cpu", "cpu"])

    def fail(*arguments: Any) -> DreamOutput:
        raise RuntimeError("the second device is gone")

    monkeypatch.setattr(both._backends[1], "rollout", fail)
    with pytest.raises(RuntimeError, match="the second device is gone"):
        both.rollout(world.params, world.starts, **PLAN)


def test_devices_that_are_not_here_are_named() -> None:
    world = World()
    with pytest.raises(ValueError, match=r"device must be one that is here \(cpu.*\), but was 'toaster'"):
        DreamEngine(world.m, world.spec, device="toaster")
    with pytest.raises(ValueError, match=r"device must be one that is here \(cpu.*\), but was 'cuda:99'"):
        DreamEngine(world.m, world.spec, device="cuda:99", backend="torch")
    with pytest.raises(ValueError, match="devices must be a sequence of at least one device"):
        DreamEngine(world.m, world.spec, devices=[])
    with pytest.raises(ValueError, match="devices must be a sequence of at least one device, but was 'cpu'"):
        DreamEngine(world.m, world.spec, devices="cpu")
    with pytest.raises(ValueError, match="devices must be of one kind, but were cpu, cuda:0"):
        DreamEngine(world.m, world.spec, devices=["cpu", "cuda:0"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU")
@pytest.mark.parametrize("name", ["auto", "torch"])
def test_without_cuda_it_is_a_value_error(name: str) -> None:
    world = World()
    with pytest.raises(ValueError, match=r"device must be one that is here \(cpu.*\), but was 'cuda'"):
        DreamEngine(world.m, world.spec, device="cuda", backend=name)


def test_a_missing_or_old_triton_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    pytest.importorskip("triton")
    monkeypatch.setattr("triton.__version__", "3.1.0")
    with pytest.raises(
        RuntimeError, match=r"'triton' is not available here: Triton 3\.1\.0 is too old: it must be 3\.2"
    ):
        DreamEngine(world.m, world.spec, backend="triton")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="'triton' is not available here: Triton is not installed"):
        DreamEngine(world.m, world.spec, backend="triton")


def test_a_gpu_that_this_triton_cannot_compile_for_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: ((9, 0), (10, 0))[device])
    monkeypatch.setattr("triton.__version__", "3.2.0")
    assert kernels.missing() == "Triton 3.2.0 is too old for sm_100: it must be 3.3 or newer"
    monkeypatch.setattr("triton.__version__", "3.3.0+git1")
    assert kernels.missing() is None


@needs_interpreter
def test_the_interpreter_takes_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    world, gpu = World(), torch.device("cuda")
    assert kernels.interpreted()
    assert kernels.unfit(torch.device("cpu")) is None
    monkeypatch.setattr(engine, "check_device", lambda name, device: device)
    assert engine._choose("auto", gpu, "fp32", world.m, world.spec).name == "torch"
    with pytest.raises(RuntimeError, match=r"'triton' is not available on cuda: TRITON_INTERPRET is set"):
        engine._choose("triton", gpu, "fp32", world.m, world.spec)


def test_a_triton_that_cannot_start_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    triton = pytest.importorskip("triton")

    class Driver:
        @property
        def active(self) -> Any:
            raise RuntimeError("Failed to find C compiler")

    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(triton.runtime, "driver", Driver())
    kernels._driver_fault.cache_clear()
    assert kernels.unfit(torch.device("cuda")) == "Triton's driver does not start: Failed to find C compiler"
    kernels._driver_fault.cache_clear()


def test_cuda_without_a_number_is_the_gpu_that_is_current(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert engine._checked_devices(["cuda", "cuda:0"]) == (torch.device("cuda", 1), torch.device("cuda", 0))
    with pytest.raises(ValueError, match="devices must be different GPUs, but were cuda:1, cuda:1"):
        engine._checked_devices(["cuda", "cuda:1"])


def test_gpus_of_two_models_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "AB"[device.index])
    first, second = (torch.device("cuda", place) for place in (0, 1))
    engine._check_alike([first])
    with pytest.raises(ValueError, match=r"GPUs of one model, for equal results, but were cuda:0 \(A\), cuda:1 \(B\)"):
        engine._check_alike([first, second])


def test_no_memory_for_the_weights_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")

    world = World()
    monkeypatch.setattr("wm_engine.dream.torch_backend.TorchBackend.__init__", full)
    with pytest.raises(DeviceMemoryError, match=r"M's weights .* on cpu: CUDA out of memory\. Tried .* 2\.00 GiB\.$"):
        DreamEngine(world.m, world.spec, backend="torch")


@needs_interpreter
def test_no_memory_to_measure_with_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")

    def full(*arguments: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nmore")

    world = World()
    one = DreamEngine(world.m, world.spec, backend="triton")
    monkeypatch.setattr(one._backends[0], "crossovers", full)
    with pytest.raises(DeviceMemoryError, match=r"measuring which form .* free on cpu: CUDA out of memory\.$"):
        one.crossovers()


def test_auto_falls_back_and_says_so_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    monkeypatch.setattr(engine, "check_device", lambda name, device: device)
    monkeypatch.setattr(engine, "_logged", set())
    monkeypatch.setattr(triton_backend.kernels, "missing", lambda: "no Triton")
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            chosen = engine._choose("auto", torch.device("cuda"), "fp32", world.m, world.spec)
            assert chosen.name == "torch"
    assert [record.getMessage() for record in caplog.records] == [
        "backend triton is passed over: no Triton",
        "backend: torch (cuda, fp32)",
    ]
    monkeypatch.setattr(triton_backend, "missing", lambda: None)
    monkeypatch.setitem(kernels.MOST, "hidden", 8)
    assert triton_backend.beyond_limits(world.m, world.spec) == "the kernels take hidden up to 8, but it was 9"


def test_out_of_memory_frees_and_the_engine_works_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    one = DreamEngine(world.m, world.spec, backend="torch")
    whole = one.rollout(world.params, world.starts, **PLAN)
    released = []

    def full(*arguments: Any) -> DreamOutput:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")

    with monkeypatch.context() as patch:
        patch.setattr(one._backends[0], "rollout", full)
        patch.setattr(one._backends[0], "release", lambda: released.append(True))
        with pytest.raises(
            DeviceMemoryError, match=r"3 x 5 rollouts on cpu .*Tried to allocate 2\.00 GiB\. Dream fewer"
        ):
            one.rollout(world.params, world.starts, **PLAN)
    assert released == [True]
    assert torch.equal(one.rollout(world.params, world.starts, **PLAN).returns, whole.returns)


class Syncs(TorchDispatchMode):
    """Counts the operations that make the host wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal"):
            self.seen[func.overloadpacket.__name__] += 1
        return func(*args, **kwargs or {})


@pytest.mark.parametrize(("steps", "waits"), [(31, 0), (32, 1), (96, 3)])
def test_the_torch_backend_waits_for_the_device_once_in_32_steps(steps: int, waits: int) -> None:
    world = World()
    world.m.state_dict()["head.bias"][-1] = -1e3
    one = DreamEngine(world.m, world.spec, backend="torch")
    plan = {"episodes": 2, "max_steps": steps}

    def syncs(**more: Any) -> Counter[str]:
        with Syncs() as mode:
            one.rollout(world.params, world.starts, **plan | more)
        return mode.seen

    assert sum((syncs() - syncs(max_steps=1)).values()) == waits
