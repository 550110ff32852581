"""Teacher-forced steps: from states that the float64 dream goes through, is every single step right to rounding?

    float64 dream ──record──► z, a ──M in float64──► states (z, h, c) ──► one step of a rival, beside one in float64

Over many steps rounding grows, and where it tips the choice of a component, dreams part. A step from a given state has
neither: it is held, entry by entry, to the checker's rule: an error of at most twice that of plain torch at the same
precision, plus a floor.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from wm_engine import DreamEngine, Starts
from wm_engine.dream.torch_backend import DTYPES
from wm_engine.dream.types import DreamOutput
from wm_engine.ops.lstm import lstm_step
from wm_engine.rng import StepDraws

from .check import FACTOR, WrongResultError
from .rivals import Rival
from .workload import Setup

FLOORS = {"fp32": 2.0**-21, "bf16": 2.0**-6, "fp16": 2.0**-9}
"""What an error may be where torch makes none, of 1 + the value's size: those of the tests' checker."""

# The steps before which states are taken, of as many candidates with all their episodes.
_AT = (0, 1, 2, 5, 15)
_VISITORS = 3
# Candidates that take a step from every state: with 16 episodes these are 1,680 rollouts, no whole number of tiles.
_STEPPERS = 7
# Beyond this share of latents whose component rounding may decide, what is left would show too little.
_MOST_LEFT_OUT = 0.5


@dataclass(frozen=True)
class StepErrors:
    """Of z, actions and rewards: the largest error over 1 + the value's size, and what it may be.

    left_out : the share of latents that were not compared, because their component is chosen within rounding of an edge
    """

    errors: dict[str, float]
    allowed: dict[str, float]
    left_out: float


def check_steps(rival: Rival, setup: Setup) -> StepErrors:
    """Hold single steps of a rival that can record to float64, from the states of :func:`forced`.

    Raises WrongResultError where an error is too large.
    """
    assert rival.record is not None
    one = forced(setup)
    exact, plain, got = _record(one, "fp64"), _record(one, rival.precision), rival.record(one)
    sure = ~_at_an_edge(one, exact, rival.precision)
    left_out = 1.0 - float(sure.double().mean())
    if left_out > _MOST_LEFT_OUT:
        raise WrongResultError(
            f"{rival.name}: rounding may decide {left_out:.0%} of the components of a step, which shows too little"
        )
    all_of_it = torch.ones((), dtype=torch.bool)
    compared = {"z": sure, "actions": all_of_it, "rewards": all_of_it}
    errors, allowed = {}, {}
    for name, mask in compared.items():
        truth = _field(exact, name)
        errors[name], peers = (_error(_field(out, name), truth, mask) for out in (got, plain))
        allowed[name] = FACTOR * peers + FLOORS[rival.precision]
    wrong = [name for name in compared if not errors[name] <= allowed[name]]
    if wrong:
        said = ", ".join(f"{name} {errors[name]:.2g} off, should be at most {allowed[name]:.2g}" for name in wrong)
        raise WrongResultError(f"{rival.name}: one step from given states: {said}; no speed is given")
    return StepErrors(errors, allowed, left_out)


def forced(setup: Setup) -> Setup:
    """A few candidates of a setup, for one step from every state that its float64 dream has before the steps _AT.

    The states are float32, so that every precision begins from the same ones. Those after a rollout's end are left out.
    """
    visit = setup.resized(candidates=min(_VISITORS, setup.workload.candidates), steps=max(_AT) + 1)
    out = _record(visit, "fp64")
    assert out.z is not None
    assert out.actions is not None
    first = visit.starts.to(torch.device("cpu"), torch.float64, visit.workload.hidden)
    episodes = torch.arange(visit.workload.episodes) % len(visit.starts)
    z, h, c = (state[episodes].expand(visit.workload.candidates, -1, -1).flatten(0, 1) for state in first)
    states: list[tuple[Tensor, ...]] = []
    for step in range(max(_AT) + 1):
        if step in _AT:
            living = out.lengths.flatten() > step
            states.append(tuple(state[living] for state in (z, h, c)))
        h, c = _cell(visit, "fp64", z, out.actions[step].flatten(0, 1), h, c)
        z = out.z[step].flatten(0, 1).double()
    starts = Starts(*(torch.cat(parts).float() for parts in zip(*states, strict=True)))
    few = setup.resized(candidates=min(_STEPPERS, setup.workload.candidates), episodes=len(starts), steps=1)
    return dataclasses.replace(few, starts=starts)


def _record(setup: Setup, precision: str) -> DreamOutput:
    """The setup by plain torch on the CPU, recorded."""
    plan = setup.plan
    return DreamEngine(setup.m, setup.spec, "cpu", "torch", precision).rollout(
        setup.params, setup.starts, plan.episodes, plan.max_steps, plan.temperature, plan.seed, plan.reward, plan.done,
        record=True,
    )  # fmt: skip


def _weights(setup: Setup, precision: str) -> dict[str, Tensor]:
    return {name: value.to(DTYPES[precision]) for name, value in setup.m.state_dict().items()}


def _cell(setup: Setup, precision: str, z: Tensor, a: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """h', c' [B, H] of states and actions [B, A], in c's dtype with the products in a precision."""
    w = _weights(setup, precision)
    bias = setup.m.state_dict()["lstm.bias_ih_l0"].double() + setup.m.state_dict()["lstm.bias_hh_l0"].double()
    inputs = torch.cat([z, a.to(z.dtype)], dim=-1)
    return lstm_step(inputs, h, c, w["lstm.weight_ih_l0"], w["lstm.weight_hh_l0"], bias.to(DTYPES[precision]))


def _at_an_edge(one: Setup, exact: DreamOutput, precision: str) -> Tensor:
    """Of each latent [1, P, E, Z] of a step: whether u lies so near an edge that rounding decides the component.

    Near is within the checker's rule for the components' cumulative probabilities, the edges.
    """
    assert exact.actions is not None
    work, plan = one.workload, one.plan

    def edges(products: str, dtype: torch.dtype) -> Tensor:
        states = one.starts.to(torch.device("cpu"), dtype, work.hidden)
        z, h, c = (state.repeat(work.candidates, 1) for state in states)
        h, _ = _cell(one, products, z, exact.actions[0].flatten(0, 1), h, c)  # type: ignore[index]
        w = _weights(one, products)
        outputs = F.linear(h.to(DTYPES[products]), w["head.weight"], w["head.bias"]).to(dtype)
        logits = one.m.layout.split(outputs).logits
        # Beyond the last edge, which is 1, the last component is chosen all the same.
        return torch.softmax(logits / plan.temperature, dim=-1).cumsum(dim=-1)[..., :-1]

    right, rounded = edges("fp64", torch.float64), edges(precision, torch.float32)
    off = float((rounded - right).abs().max()) if work.mixtures > 1 else 0.0
    near = FLOORS[precision] + FACTOR * off
    episodes = torch.arange(plan.episodes)
    source = StepDraws(plan.seed, torch.zeros(1, dtype=torch.int64), episodes, work.latent, work.mixture, torch.float64)
    u = source.at(0)[1].expand(work.candidates, -1, -1).flatten(0, 1)
    close = ((u.unsqueeze(-1) - right).abs() <= near).any(dim=-1)
    return close.expand(-1, work.latent).view(1, work.candidates, plan.episodes, work.latent)


def _field(out: DreamOutput, name: str) -> Tensor:
    value = getattr(out, name)
    assert isinstance(value, Tensor)
    return value.detach().double().cpu()


def _error(value: Tensor, truth: Tensor, mask: Tensor) -> float:
    """The largest error over 1 + the value's size; infinite for another shape or where anything is not finite."""
    if value.shape != truth.shape or not bool(torch.isfinite(value).all()):
        return float("inf")
    error = (value - truth).abs() / (1.0 + truth.abs())
    return float(error.where(mask, 0.0).max())
