"""The dream in the C++ core."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from wm_engine.controller import ControllerSpec
from wm_engine.dream.types import DreamOutput, RolloutPlan, Starts
from wm_engine.memory.model import MDNRNN


class CppBackend:
    PRECISIONS: ClassVar[tuple[str, ...]] = ("fp32",)

    def __init__(
        self, m: MDNRNN, c: ControllerSpec, device: torch.device, precision: str, num_threads: int | None = None
    ) -> None:
        raise RuntimeError("wm_engine._C is not built")

    @staticmethod
    def available() -> tuple[bool, str]:
        """Whether the core is here; the reason and the remedy where it is not."""
        return False, "wm_engine._C is not built"

    def rollout(self, params: Tensor, starts: Starts, plan: RolloutPlan) -> DreamOutput:
        raise NotImplementedError
