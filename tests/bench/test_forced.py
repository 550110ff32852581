"""bench/forced.py: single steps from given states; sound rivals pass, and a fault in one entry is caught."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import checker
import pytest
import torch
from kernel_device import needs_interpreter
from oracle import Oracle
from torch import Tensor

from wm_engine import Starts
from wm_engine.bench import gpu
from wm_engine.bench.check import WrongResultError
from wm_engine.bench.forced import FLOORS, check_steps, forced
from wm_engine.bench.rivals import rivals
from wm_engine.bench.workload import Setup, Workload, prepare
from wm_engine.dream.types import DreamOutput
from wm_engine.ops.mdn import MIXTURES

SMALL = {"candidates": 4, "episodes": 5, "steps": 20, "latent": 6, "hidden": 16, "mixtures": 3}


def small(mixture: str = "shared", **sizes: Any) -> Setup:
    return prepare(Workload(**SMALL | sizes, mixture=mixture))


def test_the_floors_are_the_checkers() -> None:
    assert {name: checker.FLOORS[name] for name in FLOORS} == FLOORS


@pytest.mark.parametrize("mixture", MIXTURES)
def test_states_are_those_of_the_oracles_dream(mixture: str) -> None:
    setup = small(mixture)
    work = setup.workload
    weights = {name: value.numpy() for name, value in setup.m.state_dict().items()}
    oracle = Oracle(weights, work.latent, work.action, work.hidden, work.mixtures, mixture, "zh", setup.spec.squash)
    one = forced(setup)
    assert (one.workload.steps, one.workload.episodes) == (1, 3 * 5 * 5)
    found = {name: getattr(one.starts, name).view(5, 3, 5, -1) for name in ("z", "h", "c")}
    for candidate in range(3):
        for episode in range(5):
            z, h, c = setup.starts.z[episode].double().numpy(), *(torch.zeros(2, 16).double().numpy())
            states = []
            for step in range(16):
                states.append({"z": z, "h": h, "c": c})
                _, z, h, c, _, _ = oracle.step(
                    setup.params[candidate].numpy(), z, h, c, seed=0, step=step, episode=episode, candidate=0,
                    temperature=1.0, reward="predicted", done="sample",
                )  # fmt: skip
            for place, step in enumerate((0, 1, 2, 5, 15)):
                for name, value in states[step].items():
                    checker.check(name, found[name][place, candidate, episode], value)


def test_states_after_an_end_are_left_out() -> None:
    ending = forced(small(early_end=0.9, steps=8))
    assert 3 * 5 < len(ending.starts) < 3 * 5 * 5
    assert bool((ending.starts.z != 0.0).any(dim=1).all())


@pytest.mark.parametrize("mixture", MIXTURES)
def test_every_backend_here_is_right_to_rounding(mixture: str) -> None:
    setup = small(mixture, hidden=33, latent=7)
    names = []
    for rival in rivals("cpu")[0]:
        if rival.record is not None and rival.precision in FLOORS:
            result = check_steps(rival, setup)
            assert all(result.errors[name] <= result.allowed[name] for name in ("z", "actions", "rewards"))
            assert result.left_out < 0.5
            names.append(rival.name)
    assert {"torch fp32", "torch bf16", "torch fp16"} <= set(names)


@needs_interpreter
@pytest.mark.parametrize("place", [0, 1], ids=["persistent", "steps"])
def test_both_forms_of_the_kernels_are_right_to_rounding(place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", minversion="3.2", reason="Triton is not installed")
    monkeypatch.setattr(gpu, "DEVICE", "cpu")
    check_steps(gpu.forms("fp32")[place], small("per_dim"))


def changed(field: str, change: Callable[[Tensor], Tensor]) -> Callable[[DreamOutput], DreamOutput]:
    return lambda out: dataclasses.replace(out, **{field: change(getattr(out, field).clone())})


def with_last(value: Tensor, last: float) -> Tensor:
    value.view(-1)[-1] += last
    return value


FAULTS: dict[str, tuple[str, Callable[[DreamOutput], DreamOutput]]] = {
    "one reward": ("rewards", changed("rewards", lambda x: with_last(x, 1e-4))),
    "one action": ("actions", changed("actions", lambda x: with_last(x, 1e-4))),
    "one latent of a candidate": ("z", changed("z", lambda x: torch.cat([x[..., :-1], x[..., -1:] + 1e-4], -1))),
    "candidates swapped": ("z", changed("z", lambda x: x.flip(1))),
    "actions of the state before": ("actions", changed("actions", lambda x: x.roll(1, dims=2))),
    "a reward that is no number": ("rewards", changed("rewards", lambda x: with_last(x, float("nan")))),
    "one latent that is no number": ("z", changed("z", lambda x: with_last(x, float("nan")))),
    "a state short": ("rewards", changed("rewards", lambda x: x[:, :, :-1])),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_caught_and_named(fault: str) -> None:
    sound = next(rival for rival in rivals("cpu")[0] if rival.name == "torch fp32")
    field, spoil = FAULTS[fault]
    wrong = dataclasses.replace(sound, name="faulty", record=lambda setup: spoil(sound.record(setup)))  # type: ignore[misc]
    with pytest.raises(WrongResultError, match=rf"faulty: one step .*{field} .* off, should be at most"):
        check_steps(wrong, small())


@pytest.mark.parametrize("forgotten", ["h", "c"])
def test_a_rival_that_forgets_a_state_is_caught(forgotten: str) -> None:
    # Its own dreams begin at zero, where it is right.
    sound = next(rival for rival in rivals("cpu")[0] if rival.name == "torch bf16")

    def forget(setup: Setup) -> DreamOutput:
        kept = {name: getattr(setup.starts, name) for name in "zhc"} | {forgotten: None}
        assert sound.record is not None
        return sound.record(dataclasses.replace(setup, starts=Starts(**kept)))

    with pytest.raises(WrongResultError, match=r"z .* off"):
        check_steps(dataclasses.replace(sound, record=forget), small())


def test_a_precision_that_rounds_too_much_to_compare_is_no_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = next(rival for rival in rivals("cpu")[0] if rival.name == "torch fp32")
    monkeypatch.setitem(FLOORS, "fp32", 0.5)
    with pytest.raises(WrongResultError, match="which shows too little"):
        check_steps(sound, small())
