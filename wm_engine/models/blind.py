"""The V of models that came without one: it knows how long a latent is, and nothing else."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from torch import Tensor

from wm_engine.checks import check_int
from wm_engine.errors import ConfigError, WMEngineError
from wm_engine.models.base import Vision, VisionSettings
from wm_engine.spaces import Observations


class BlindSettings(VisionSettings):
    """Settings of no V: none of its own."""

    kind: Literal["blind"] = "blind"


class Blind(Vision):
    """Stands in V's place where models were published without V: dreams need none, everything else is refused.

    Parameters
    ----------
    latent : Z
    """

    Settings = BlindSettings
    SIZES: ClassVar[dict[str, type]] = {"latent": int}
    learns = False

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.latent = check_int("latent", latent, least=1)

    @classmethod
    def build(cls, observations: Observations, settings: Any) -> Blind:
        raise ConfigError("vision.kind: blind is the V of models that were imported without one, and sees nothing")

    def encode(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """Raise WMEngineError."""
        raise self._missing("see the real environment")

    def decode(self, z: Tensor) -> Tensor:
        """Raise WMEngineError."""
        raise self._missing("show pictures")

    def measure(self, observations: Tensor) -> dict[str, float]:
        """Raise WMEngineError."""
        raise self._missing("be measured on pictures")

    @staticmethod
    def _missing(what: str) -> WMEngineError:
        return WMEngineError(
            f"these models were imported without V: they dream, but cannot {what}. Import them with V."
        )


vision = Blind
