"""Evolution of controllers: CMA-ES, the fitnesses, and the training that joins them."""

from wm_engine.evolve.cmaes import BatchedCMAES
from wm_engine.evolve.fitness import DreamFitness, Fitness, RealFitness
from wm_engine.evolve.optimizers import make_optimizer, restore_optimizer
from wm_engine.evolve.protocol import Distribution, Optimizer, derive_seed
from wm_engine.evolve.pycma import PycmaES
from wm_engine.evolve.training import ControllerResult, ControllerSettings, train_controller

__all__ = [
    "BatchedCMAES",
    "ControllerResult",
    "ControllerSettings",
    "Distribution",
    "DreamFitness",
    "Fitness",
    "Optimizer",
    "PycmaES",
    "RealFitness",
    "derive_seed",
    "make_optimizer",
    "restore_optimizer",
    "train_controller",
]
