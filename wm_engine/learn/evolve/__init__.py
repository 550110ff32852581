"""Evolution strategies in ask/tell form, and what candidates are worth to them."""

from wm_engine.learn.evolve.cmaes import BatchedCMAES
from wm_engine.learn.evolve.fitness import DreamFitness, Fitness, RealFitness
from wm_engine.learn.evolve.optimizers import make_optimizer, restore_optimizer
from wm_engine.learn.evolve.protocol import Distribution, Optimizer
from wm_engine.learn.evolve.pycma import PycmaES
from wm_engine.rng import derive_seed

__all__ = [
    "BatchedCMAES",
    "Distribution",
    "DreamFitness",
    "Fitness",
    "Optimizer",
    "PycmaES",
    "RealFitness",
    "derive_seed",
    "make_optimizer",
    "restore_optimizer",
]
