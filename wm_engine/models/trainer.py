"""Learning by gradient descent that outlives rounds and kills: a model, Adam, and nothing else.

A step depends on the weights, Adam's moments and the step's own keys alone, never on a generator's history, so a state
written at any step goes on to the same result bit for bit (on the same machine, with the same number of threads).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from wm_engine.errors import CorruptFileError, WMEngineError
from wm_engine.models.base import Scalars

Model = TypeVar("Model", bound=nn.Module)


class Trainer(Generic[Model]):
    """A model and its Adam.

    name : names the model in messages, the configuration's section
    """

    def __init__(self, name: str, model: Model) -> None:
        self.name, self.model = name, model
        self.device = next((part.device for part in model.parameters()), torch.device("cpu"))
        fused = True if self.device.type in ("cpu", "cuda") else None
        parameters = list(model.parameters())
        self._adam = torch.optim.Adam(parameters, fused=fused) if parameters else None

    def step(self, value: Tensor, learning_rate: float, clip: float) -> dict[str, Tensor]:
        """Descend the gradient of a loss once; returns its norm where it is bounded by ``clip`` (0: it is not).

        WMEngineError where the loss is not finite: the weights are then as they were.
        """
        if self._adam is None:
            raise ValueError(f"{self.name} has no parameters to learn")
        if not bool(torch.isfinite(value)):
            raise WMEngineError(
                f"{self.name}: the loss became {value.item()}. Lower {self.name}.learning_rate (now "
                f"{learning_rate:g}) and begin again, or go on from the last checkpoint with --on-change keep."
            )
        self._adam.param_groups[0]["lr"] = learning_rate
        self._adam.zero_grad(set_to_none=True)
        value.backward()
        scalars: Scalars = {}
        if clip > 0.0:
            scalars["gradient_norm"] = nn.utils.clip_grad_norm_(self.model.parameters(), clip)
        self._adam.step()
        return scalars

    def state(self) -> dict[str, Tensor]:
        """Return everything that a continued run needs, by name."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        if self._adam is not None:
            for name, parameter in self.model.named_parameters():
                tensors |= {f"adam.{name}.{part}": value for part, value in self._adam.state[parameter].items()}
        return tensors

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what :meth:`state` returned; CorruptFileError where something is missing."""
        try:
            self.model.load_state_dict({name: tensors[f"model.{name}"] for name in self.model.state_dict()})
            if self._adam is None:
                return
            for name, parameter in self.model.named_parameters():
                prefix = f"adam.{name}."
                if f"{prefix}step" not in tensors:
                    continue  # it has not learnt yet
                # Copied into the parameter's own memory format: a file holds plain contiguous tensors.
                self._adam.state[parameter] = {
                    part: torch.empty_like(parameter).copy_(tensors[prefix + part])
                    for part in ("exp_avg", "exp_avg_sq")
                } | {"step": tensors[f"{prefix}step"].clone()}
        except (KeyError, RuntimeError) as error:
            raise CorruptFileError(f"the state of {self.name} is not whole ({error})") from error


@contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """Keep cuDNN to algorithms that repeat themselves, where ``device`` is a CUDA GPU; put the flags back after.

    A resumed run ends with the same bits only if a step has the same bits whenever it is done: by default cuDNN may add
    gradients up by atomics, in any order, and with ``benchmark`` the clock chooses the algorithm.
    """
    flags = torch.backends.cudnn
    before = flags.deterministic, flags.benchmark
    if device.type == "cuda":
        flags.deterministic, flags.benchmark = True, False
    try:
        yield
    finally:
        flags.deterministic, flags.benchmark = before
