"""World models whose controllers are evolved inside their own dreams.

``MDNRNN`` dreams, ``ControllerSpec`` gives a controller its shape, ``DreamEngine`` rolls populations of them out from
``Starts``, and ``evolve`` trains them. ``load_run`` reads what a run has published.

Names are imported when they are first asked for: the command line has something to say to OpenMP before torch, which
reads it once, is loaded (:mod:`wm_engine.main`). ``gymnasium.make("wm_engine/Dream-v0", run=...)`` makes an environment
of a run's dream; ``wm_engine/GridWorld-v0`` and ``wm_engine/SimpleCarRacing-v0`` are registered too.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import gymnasium

if TYPE_CHECKING:
    from wm_engine.dream import DreamEngine, DreamOutput, Starts
    from wm_engine.learn import evolve
    from wm_engine.models.base import WorldModel
    from wm_engine.models.mdn_rnn import MDNRNN
    from wm_engine.policies.controller import ControllerSpec
    from wm_engine.rng import RNG_VERSION
    from wm_engine.run.dream_env import DreamEnv, DreamVectorEnv
    from wm_engine.run.published import load_run

__version__ = "0.2.0"

__all__ = [
    "MDNRNN",
    "RNG_VERSION",
    "ControllerSpec",
    "DreamEngine",
    "DreamEnv",
    "DreamOutput",
    "DreamVectorEnv",
    "Starts",
    "WorldModel",
    "__version__",
    "evolve",
    "load_run",
]

_HOMES = {
    "DreamEngine": "wm_engine.dream",
    "DreamOutput": "wm_engine.dream",
    "Starts": "wm_engine.dream",
    "evolve": "wm_engine.learn",
    "WorldModel": "wm_engine.models.base",
    "MDNRNN": "wm_engine.models.mdn_rnn",
    "ControllerSpec": "wm_engine.policies.controller",
    "RNG_VERSION": "wm_engine.rng",
    "DreamEnv": "wm_engine.run.dream_env",
    "DreamVectorEnv": "wm_engine.run.dream_env",
    "load_run": "wm_engine.run.published",
}

if "wm_engine/Dream-v0" not in gymnasium.registry:  # it is there already where this module is loaded anew
    gymnasium.register(
        "wm_engine/Dream-v0",
        entry_point="wm_engine.run.dream_env:DreamEnv",
        vector_entry_point="wm_engine.run.dream_env:DreamVectorEnv",
    )
_WORLDS = {
    "wm_engine/GridWorld-v0": ("wm_engine.worlds.grid_world:GridWorld", 100),
    "wm_engine/SimpleCarRacing-v0": ("wm_engine.worlds.simple_car_racing:SimpleCarRacing", 200),
}

for _id, (_entry_point, _limit) in _WORLDS.items():
    if _id not in gymnasium.registry:  # they are there already where this module is loaded anew
        gymnasium.register(_id, entry_point=_entry_point, max_episode_steps=_limit)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'wm_engine' has no attribute {name!r}")
    home = importlib.import_module(_HOMES[name])
    return importlib.import_module(f"{home.__name__}.{name}") if name == "evolve" else getattr(home, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
