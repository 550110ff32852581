"""A small world for tests of the dream: a random M, controllers and starts, and the oracle that belongs to them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from kernel_device import device_of
from oracle import Oracle

from wm_engine import MDNRNN, ControllerSpec, DreamEngine, Starts


class World:
    """A small random world model, controllers and starts, with the oracle that belongs to them."""

    def __init__(
        self,
        mixture: str = "per_dim",
        features: str = "zh",
        squash: Any = ("tanh", "sigmoid", "relu_tanh"),
        hidden_units: int = 0,
        sizes: tuple[int, int, int, int] = (5, 3, 9, 3),
        candidates: int = 3,
        starts: int = 2,
        residual: bool = False,
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        Z, A, H, K = sizes
        self.m = MDNRNN(Z, A, H, K, mixture, residual)
        # Gates of much the same spread at every size: wide ones make the dream chaotic, and its error a lottery.
        scale = 0.5 * min(1.0, 3.0 / H**0.5)
        for name, value in self.m.state_dict().items():
            value.copy_(torch.randn(value.shape, generator=generator) * (0.4 if "head" in name else scale))
        self.m.state_dict()["head.bias"][-1] -= 1.0
        self.spec = ControllerSpec(Z, H, A, features, squash, hidden_units)
        self.params = torch.randn(candidates, self.spec.num_params, generator=generator) * 0.5
        self.starts = Starts(*(torch.randn(starts, n, generator=generator) * 0.5 for n in (Z, H, H)))
        weights = {name: value.numpy() for name, value in self.m.state_dict().items()}
        self.oracle = Oracle(weights, Z, A, H, K, mixture, features, squash, hidden_units, residual)

    def want(self, **plan: Any) -> dict[str, np.ndarray]:
        states = (self.starts.z, self.starts.h, self.starts.c)
        return self.oracle.rollout(self.params.numpy(), *(None if s is None else s.numpy() for s in states), **plan)

    def got(self, backend: str, precision: str = "fp32", **plan: Any) -> Any:
        engine = DreamEngine(self.m, self.spec, device_of(backend), backend, precision)
        return engine.rollout(self.params, self.starts, record=True, **plan)
