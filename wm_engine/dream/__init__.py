"""The dream: populations of controllers rolled out in M."""

from wm_engine.dream.engine import BACKENDS, DreamEngine
from wm_engine.dream.types import DreamOutput, Starts

__all__ = ["BACKENDS", "DreamEngine", "DreamOutput", "Starts"]
