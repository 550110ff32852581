"""What the trainings of V and M share: a loop of optimiser steps that can be killed at any moment.

A step depends on nothing but the weights, Adam's moments, the tensors that the training carries from step to step, and
the step's number: data order and noise are drawn from generators keyed by numbers, never from a generator's history.
So a checkpoint of these three, at any step, continues to the same result bit for bit (on the same machine, with the
same number of threads).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from wm_engine.errors import RunMismatchError, WMEngineError
from wm_engine.progress import track
from wm_engine.records import Recorder
from wm_engine.runs import Checkpoints, fingerprint
from wm_engine.settings import Section

Batch = TypeVar("Batch")
Loss = tuple[Tensor, dict[str, Tensor]]


class TrainingSettings(Section):
    """What every training by gradient descent is told."""

    free = frozenset({"log_every", "evaluate_every", "checkpoint_seconds"})

    steps: int = Field(2000, ge=1, description="optimiser steps")
    batch_size: int = Field(100, ge=1)
    learning_rate: float = Field(1e-3, gt=0.0, description="Adam's, at the first step")
    final_learning_rate: float | None = Field(
        None, ge=0.0, description="where the learning rate ends, along half a cosine; None: it stays"
    )
    clip: float = Field(1.0, ge=0.0, description="the largest norm of the gradient; 0: no bound")
    holdout: float = Field(0.1, gt=0.0, lt=1.0, description="share of the episodes kept for measuring")
    log_every: int = Field(50, ge=1, description="steps between the training's own numbers")
    evaluate_every: int = Field(500, ge=1, description="steps between numbers on held-out episodes")
    checkpoint_seconds: float = Field(60.0, ge=0.0, description="how much work a kill may cost; 0: every step is kept")


def keyed_generator(*key: int) -> torch.Generator:
    """A CPU generator that belongs to a tuple of non-negative integers: the same numbers whenever it is made."""
    words = np.random.SeedSequence(key).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(words[0] >> np.uint64(1)))


def learning_rate(settings: TrainingSettings, step: int) -> float:
    """The learning rate of a step (counted from 0): half a cosine from the first value to the final one."""
    first, final = settings.learning_rate, settings.final_learning_rate
    if final is None:
        return first
    return final + (first - final) * 0.5 * (1.0 + math.cos(math.pi * step / settings.steps))


def fit(
    stage: str,
    model: nn.Module,
    settings: TrainingSettings,
    *,
    identity: Mapping[str, Any],
    batches: Callable[[int], Iterator[Batch]],
    loss: Callable[[int, Batch], Loss],
    units: Callable[[Batch], int],
    unit: str,
    evaluate: Callable[[], Mapping[str, float]],
    checkpoints: Checkpoints,
    recorder: Recorder,
    iteration: int = 0,
    carried: dict[str, Tensor] | None = None,
) -> None:
    """Train ``model`` in place with Adam for ``settings.steps`` steps, from the newest checkpoint on.

    Parameters
    ----------
    stage : names the training in metrics, progress and messages
    identity : JSON-able; what the result follows from beside the settings (seed, data, first weights)
    batches : the batches from a given step on, at least ``settings.steps`` minus that many
    loss : (step, batch) to a scalar and named scalars for the record; may replace entries of ``carried``
    units, unit : how much of the data a batch holds, for the rate ``UNIT_per_second``
    evaluate : named numbers of the model on held-out data
    carried : tensors beside the model's that steps hand on to the next; kept in the checkpoints

    Raises RunMismatchError where the checkpoints belong to another training, WMEngineError where the loss is not
    finite.
    """
    carried = {} if carried is None else carried
    key = fingerprint({"stage": stage, "settings": settings.identity(), **identity})
    device = next(model.parameters()).device
    optimizer = torch.optim.Adam(
        model.parameters(), lr=settings.learning_rate, fused=True if device.type in ("cpu", "cuda") else None
    )
    first = _restore(stage, model, optimizer, carried, checkpoints, key)
    if first >= settings.steps:
        return

    saved_at = logged_at = time.monotonic()
    done_since = 0
    stream = batches(first)
    with repeatable(device), track(settings.steps, stage, "step", initial=first) as bar:
        for step in range(first, settings.steps):
            batch = next(stream)
            optimizer.param_groups[0]["lr"] = learning_rate(settings, step)
            value, scalars = loss(step, batch)
            if not bool(torch.isfinite(value)):
                raise WMEngineError(
                    f"{stage}: the loss became {value.item()} at step {step}. Lower {stage}.learning_rate "
                    f"(now {settings.learning_rate:g}) and run the stage again."
                )
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            if settings.clip > 0.0:
                scalars["gradient_norm"] = nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
            optimizer.step()
            bar.update(1)

            count = step + 1
            last = count == settings.steps
            done_since += units(batch)
            evaluating = count % settings.evaluate_every == 0 or last
            if evaluating or count % settings.log_every == 0:
                now = time.monotonic()
                rate = done_since / max(now - logged_at, 1e-9)
                numbers = {name: scalar.item() for name, scalar in {"loss": value, **scalars}.items()}
                numbers |= {"learning_rate": optimizer.param_groups[0]["lr"], f"{unit}_per_second": rate}
                if evaluating:
                    numbers |= _evaluate(model, evaluate)
                recorder.log(stage, count, iteration, **numbers)
                bar.set_postfix_str(f"loss {numbers['loss']:.4g}, {rate:.0f} {unit}/s")
                logged_at, done_since = time.monotonic(), 0
            if last or time.monotonic() - saved_at >= settings.checkpoint_seconds:
                _save(model, optimizer, carried, checkpoints, count, key)
                saved_at = time.monotonic()


@contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """cuDNN keeps to algorithms that repeat themselves, where ``device`` is a CUDA GPU; the flags are put back after.

    A resumed training ends with the same bits only if a step has the same bits whenever it is done: by default cuDNN
    may add gradients up by atomics, in any order, and with ``benchmark`` the clock chooses the algorithm.
    """
    flags = torch.backends.cudnn
    before = flags.deterministic, flags.benchmark
    if device.type == "cuda":
        flags.deterministic, flags.benchmark = True, False
    try:
        yield
    finally:
        flags.deterministic, flags.benchmark = before


def _evaluate(model: nn.Module, evaluate: Callable[[], Mapping[str, float]]) -> dict[str, float]:
    model.eval()
    with torch.inference_mode():
        numbers = {f"held_out_{name}": float(value) for name, value in evaluate().items()}
    model.train()
    return numbers


def _save(
    model: nn.Module,
    optimizer: torch.optim.Adam,
    carried: dict[str, Tensor],
    checkpoints: Checkpoints,
    step: int,
    key: str,
) -> None:
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"carried.{name}": value for name, value in carried.items()}
    for name, parameter in model.named_parameters():
        tensors |= {f"adam.{name}.{part}": value for part, value in optimizer.state[parameter].items()}
    checkpoints.save(step, tensors, {"training": key})


def _restore(
    stage: str,
    model: nn.Module,
    optimizer: torch.optim.Adam,
    carried: dict[str, Tensor],
    checkpoints: Checkpoints,
    key: str,
) -> int:
    """Put the newest checkpoint's state in place; the number of steps it has behind it, 0 where there is none."""
    latest = checkpoints.latest()
    if latest is None:
        return 0
    step, tensors, state = latest
    if state.get("training") != key:
        raise RunMismatchError(
            f"{checkpoints.folder}: its checkpoints belong to a {stage} training with other settings or other data, or "
            "with another version of the random numbers. Delete the folder to train anew."
        )
    model.load_state_dict({name: tensors[f"model.{name}"] for name in model.state_dict()})
    for name in carried:
        carried[name] = tensors[f"carried.{name}"].to(carried[name].device)
    for name, parameter in model.named_parameters():
        prefix = f"adam.{name}."
        # Copied into the parameter's own memory format: the checkpoint holds plain contiguous tensors.
        optimizer.state[parameter] = {
            part: torch.empty_like(parameter).copy_(tensors[prefix + part]) for part in ("exp_avg", "exp_avg_sq")
        } | {"step": tensors[prefix + "step"].to(parameter.device)}
    return step
