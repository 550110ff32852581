"""World models whose controllers are evolved inside their own dreams.

``MDNRNN`` dreams, ``ControllerSpec`` gives a controller its shape, ``DreamEngine`` rolls populations of them out from
``Starts``, and ``evolve`` trains them.
"""

from wm_engine import evolve
from wm_engine.controller import ControllerSpec
from wm_engine.dream import DreamEngine, DreamOutput, Starts
from wm_engine.memory.model import MDNRNN
from wm_engine.rng import RNG_VERSION

__version__ = "0.1.0"

__all__ = ["MDNRNN", "RNG_VERSION", "ControllerSpec", "DreamEngine", "DreamOutput", "Starts", "__version__", "evolve"]
