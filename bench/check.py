"""Does a rival compute the dream? Asked before it is timed, in the same run: a wrong one gets no speed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from .rivals import Rival, reference
from .workload import Setup

STEPS = 16
"""Steps that are compared: long enough for every state to matter, short enough for rounding not to grow."""

FACTOR = 2.0
"""How much larger than plain torch's at the same precision an error may be."""

_SAMPLES = 256
_QUANTILES = (0.5, 0.9)
_FLOOR = 1e-6
# Where torch has no such precision: the nearest it has, and how much coarser the other is. Eight bits a weight with a
# scale per row carry about as much as bfloat16's eight-bit significand; the activations lose the same once more.
_STAND_INS = {"int8": ("bf16", 4.0)}


class WrongResultError(Exception):
    """A rival's dream is not the workload's: its speed would mean nothing."""


@dataclass(frozen=True)
class Comparison:
    """Quantiles of |return - float64 return| of a rival, and what they may be."""

    errors: tuple[float, ...]
    allowed: tuple[float, ...]


def compare(returns: Tensor, exact: Tensor, yardstick: Tensor, factor: float = FACTOR) -> Comparison:
    """Errors of returns [P, E] against the float64 ones beside those of plain torch at the same precision.

    Quantiles, not the largest: where u falls within rounding of a component's edge, one rollout takes another branch
    than the reference, rightly.
    """
    if returns.shape != exact.shape:
        raise WrongResultError(f"returns had shape {list(returns.shape)}, should have {list(exact.shape)}")
    if not bool(torch.isfinite(returns).all()):
        raise WrongResultError(f"{int((~torch.isfinite(returns)).sum())} of {returns.numel()} returns were not finite")
    at = torch.tensor(_QUANTILES, dtype=torch.float64)
    errors = torch.quantile((returns.double() - exact).abs().flatten(), at)
    limits = factor * torch.quantile((yardstick.double() - exact).abs().flatten(), at) + _FLOOR * exact.abs().max()
    return Comparison(tuple(errors.tolist()), tuple(limits.tolist()))


def check(rival: Rival, setup: Setup) -> Comparison | None:
    """Dream the first steps of ``setup`` with a rival; WrongResultError where its returns are not the right ones.

    Gives the errors that were judged, None for a rival that draws its own numbers.

    The rule: median and 90 % quantile of its error against float64 are at most twice those of the torch backend at the
    same precision, plus 1e-6 of the largest return. For a rival that draws its own numbers: the mean over rollouts of
    the difference to float64 is within four of its standard errors, and the spread of returns within a third.
    """
    if rival.own_numbers:
        _check_distribution(rival, setup)
        return None
    short = rival.setup(setup).resized(steps=STEPS)
    precision, coarser = _STAND_INS.get(rival.precision, (rival.precision, 1.0))
    exact, yardstick = reference(short), reference(short, precision)
    result = compare(rival.build(short)(), exact, yardstick, FACTOR * coarser)
    if any(error > limit for error, limit in zip(result.errors, result.allowed, strict=True)):
        raise WrongResultError(
            f"{rival.name}: errors of its returns after {STEPS} steps were {_list(result.errors)} (median, 90 % "
            f"quantile), should be at most {_list(result.allowed)}; no speed is given for a wrong result"
        )
    return result


def _check_distribution(rival: Rival, setup: Setup) -> None:
    candidates = min(setup.workload.candidates, 16)
    short = setup.resized(candidates=candidates, episodes=math.ceil(_SAMPLES / candidates), steps=STEPS)
    # Each rollout with draws of its own, or the reference's common ones would not average out.
    exact = reference(short, common_random_numbers=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        returns = rival.build(short)().double()
    difference = (returns - exact).flatten()
    errors = abs(float(difference.mean())) / float(difference.std() / math.sqrt(difference.numel()))
    spread = float((returns - returns.mean(1, keepdim=True)).std() / (exact - exact.mean(1, keepdim=True)).std())
    if not errors <= 4.0 or not 0.75 <= spread <= 1.33:
        raise WrongResultError(
            f"{rival.name}: after {STEPS} steps its mean return was {errors:.1f} standard errors from the dream's and "
            f"its spread {spread:.2f} times the dream's; no speed is given for a wrong result"
        )


def _list(numbers: tuple[float, ...]) -> str:
    return ", ".join(f"{number:.2g}" for number in numbers)


def check_values(name: str, values: Iterable[Tensor], exact: Iterable[Tensor], yardstick: Iterable[Tensor]) -> None:
    """Hold an op's outputs to float64 ones: the largest error at most twice plain torch's, plus 1e-6 of the largest."""
    for place, (value, truth, plain) in enumerate(zip(values, exact, yardstick, strict=True)):
        truth = truth.detach().double().cpu()
        error, allowed = (float((each.detach().double().cpu() - truth).abs().max()) for each in (value, plain))
        limit = FACTOR * allowed + _FLOOR * float(truth.abs().max())
        if not error <= limit:
            raise WrongResultError(
                f"{name}: output {place} is {error:.2g} off, should be at most {limit:.2g}; no speed is given"
            )


def check_draws(name: str, draws: Tensor, reference: Callable[[torch.dtype], Tensor]) -> None:
    """Hold a mixture's draws [B, Z] to ``reference(dtype)``, which draws with the contract's same numbers.

    Where u lies within rounding of a component's edge, float64 may choose another one than float32, rightly: those rows
    are left out. WrongResultError where they are more than one in a thousand, or as :func:`check_values`.
    """
    exact, plain = reference(torch.float64), reference(torch.float32)
    same = ((exact - plain).abs() < 1e-3).all(dim=1)
    if same.float().mean() <= 0.999:
        raise WrongResultError(f"{name}: float32 and float64 chose apart in {int((~same).sum())} of {len(same)} rows")
    check_values(name, [draws[same]], [exact[same]], [plain[same]])
