"""The dream of a run: its M, what its C sees and did, and states that its episodes went through."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from wm_engine.config import read_config
from wm_engine.controller import ControllerSpec, load_controller
from wm_engine.dream.starts import recorded_starts
from wm_engine.dream.types import Starts
from wm_engine.evolve import ControllerSettings, derive_seed
from wm_engine.memory.model import MDNRNN
from wm_engine.runs import RunFolder
from wm_engine.vision.latents import Latents


@dataclass(frozen=True)
class RecordedDream:
    """M, C's shape and its parameters f32 [D], where dreams begin, and by which rules C was trained in them."""

    m: MDNRNN
    spec: ControllerSpec
    params: Tensor
    starts: Starts
    settings: ControllerSettings

    @property
    def rules(self) -> dict[str, Any]:
        """``temperature``, ``reward`` and ``done``, as :class:`wm_engine.evolve.DreamFitness` takes them."""
        return {name: getattr(self.settings, name) for name in ("temperature", "reward", "done")}

    @classmethod
    def of_run(cls, root: Path, index: int, seed: int) -> RecordedDream:
        """Of the round ``index`` of the run in ``root``; ``seed`` draws the starts.

        Raises WMEngineError or FileNotFoundError, naming the file, where the folder holds no such round.
        """
        folder, settings = RunFolder(root).iteration(index), read_config(RunFolder(root).config).controller
        m, (spec, params) = MDNRNN.load(folder.memory), load_controller(folder.controller)
        latents = Latents.open(folder.latents)
        starts = recorded_starts(m, latents, settings.starts, settings.mid_fraction, derive_seed(seed, "starts"))
        return cls(m, spec, params, starts, settings)
