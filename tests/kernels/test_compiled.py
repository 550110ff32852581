"""What Triton's compiler makes of the dream's kernels, with the settings that a GPU would take: the numbers, and that
no order of its threads changes them. On a GPU, or on an emulated one (see tests/kernel_device.py)."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from checker import check
from kernel_device import DEVICE, EMULATED, needs_device
from world import World

from wm_engine import DreamEngine, kernels
from wm_engine.dream.triton_backend import TritonBackend
from wm_engine.dream.types import DreamOutput, RolloutPlan

pytest.importorskip("triton", minversion="3.2", reason="Triton is not installed")
from wm_engine.kernels.launch import FENCES_COPIES_SINCE

pytestmark = [needs_device, pytest.mark.skipif(kernels.interpreted(), reason="of compiled kernels: WM_ENGINE_EMULATE")]

SIZES = {"odd": (17, 2, 33, 3), "paper": (32, 3, 256, 5)}
FORMS = ("persistent", "steps")
FIELDS = ("returns", "lengths", "z", "actions", "rewards")


def dream(world: World, form: str, precision: str, **plan: Any) -> DreamOutput:
    backend = TritonBackend(world.m, world.spec, DEVICE, precision, form)
    return backend.rollout(world.params, world.starts, RolloutPlan(**{"record": True} | plan))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mixture", ["shared", "per_dim"])
@pytest.mark.parametrize(("precision", "sizes"), [("fp32", "odd"), ("bf16", "odd"), ("fp16", "odd"), ("bf16", "paper")])
def test_default_settings_are_the_oracles(form: str, mixture: str, precision: str, sizes: str) -> None:
    # At temperature 0, where no rounding tips a choice; at the paper's size one step and one precision, for time.
    world = World(mixture, sizes=SIZES[sizes], squash="tanh", candidates=4)
    plan = {"episodes": 5, "max_steps": 2 if sizes == "odd" else 1, "temperature": 0.0}
    want, peer = world.want(**plan), world.got("torch", precision, **plan)
    got = dream(world, form, precision, done="threshold", **plan)
    for name in ("returns", "z", "actions", "rewards"):
        check(name, getattr(got, name), want[name], getattr(peer, name), precision)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mixture", ["shared", "per_dim"])
def test_residual_dreams_of_given_actions_and_some_episodes_are_the_oracles(form: str, mixture: str) -> None:
    world = World(mixture, sizes=SIZES["odd"], squash="tanh", candidates=4, residual=True)
    actions = torch.tanh(torch.randn(4, 2, 2, generator=torch.Generator().manual_seed(1)))
    plan = {"max_steps": 2, "temperature": 0.0}
    states = (world.starts.z.numpy(), world.starts.h.numpy(), world.starts.c.numpy())
    want = world.oracle.rollout(world.params.numpy(), *states, episodes=8, actions=actions.numpy(), **plan)
    engine = DreamEngine(world.m, world.spec, backend="torch", precision="bf16")
    peer = engine.rollout(starts=world.starts, actions=actions, episodes=8, record=True, **plan)
    backend = TritonBackend(world.m, world.spec, DEVICE, "bf16", form)
    strided = {"episodes": 3, "first_episode": 1, "episode_stride": 3, "open_loop": True, "record": True}
    got = backend.rollout(actions, world.starts, RolloutPlan(**plan, **strided))
    for name in ("z", "actions", "rewards"):
        check(name, getattr(got, name), want[name][:, :, 1::3], getattr(peer, name)[:, :, 1::3], "bf16")


@pytest.mark.skipif(EMULATED is None, reason="a GPU's order cannot be chosen")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mixture", ["shared", "per_dim"])
def test_no_order_of_threads_changes_a_bit(form: str, mixture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import emulated
    from ptx import Order

    # Two tiles; a residual one too, which reads the latent that it then writes.
    world = World(mixture, sizes=SIZES["odd"], squash="tanh", candidates=14, residual=mixture == "shared")
    orders = [Order(), Order(late=True, blocks_backwards=True), Order(warps=True, late=True)]
    outputs = []
    for order in orders:
        monkeypatch.setattr(emulated, "ORDER", order)
        outputs.append(dream(world, form, "bf16", episodes=5, max_steps=2, done="sample", seed=3))
    for other in outputs[1:]:
        for name in FIELDS:
            assert torch.equal(getattr(other, name), getattr(outputs[0], name))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mixture", ["shared", "per_dim"])
def test_recording_changes_no_bit(form: str, mixture: str) -> None:
    # Long dreams are not recorded: those are other kernels.
    world = World(mixture, sizes=SIZES["odd"], squash="tanh", candidates=4)
    shown, plain = (
        dream(world, form, "bf16", episodes=5, max_steps=2, done="sample", seed=3, record=record)
        for record in (True, False)
    )
    assert plain.z is None
    for name in FIELDS[:2]:
        assert torch.equal(getattr(plain, name), getattr(shown, name))


FENCE, COPIES_AWAITED = r"^\s*fence\.proxy\.async.*$", r"^\s*cp\.async\.wait_group.*$"
FAULTS = [
    (r"^\s*bar\.sync.*$", "", {}, "a race"),
    (COPIES_AWAITED, "", {"late": True}, None),
    (FENCE, "", {}, "written without a fence"),
    (r"(st\.global\S* \[ %rd\d+ \+) 0 \]", r"\1 4096 ]", {}, "an access outside of"),
]


# sm_100's compiler copies nothing asynchronously at this size; sm_90's does where Triton fences it.
LACKING = {("sm_80", FENCE), ("sm_100", COPIES_AWAITED)}
if kernels.triton_release() < FENCES_COPIES_SINCE:
    LACKING.add(("sm_90", COPIES_AWAITED))


@pytest.mark.skipif(EMULATED is None, reason="plants faults that a GPU would not report")
@pytest.mark.parametrize(("pattern", "instead", "order", "message"), FAULTS)
def test_a_fault_in_a_compiled_kernel_is_found(
    pattern: str, instead: str, order: dict[str, bool], message: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import emulated
    import ptx

    world = World("shared", sizes=SIZES["odd"], squash="tanh", candidates=4)
    plan = {"episodes": 5, "max_steps": 1, "done": "threshold"}
    sound = dream(world, "persistent", "bf16", **plan)
    parse, changes = ptx.parse, []

    def faulty(text: str) -> Any:
        changed, count = re.subn(pattern, instead, text, flags=re.MULTILINE)
        changes.append(count)
        return parse(changed)

    monkeypatch.setattr(ptx, "parse", faulty)
    monkeypatch.setattr(emulated, "_programs", {})
    monkeypatch.setattr(emulated, "ORDER", ptx.Order(**order))
    if (EMULATED, pattern) in LACKING:
        assert torch.equal(dream(world, "persistent", "bf16", **plan).z, sound.z)
        assert changes == [0]
        return
    if message is None:
        assert not torch.equal(dream(world, "persistent", "bf16", **plan).z, sound.z)
    else:
        with pytest.raises(ptx.FaultError, match=message):
            dream(world, "persistent", "bf16", **plan)
    assert changes[0] > 0
