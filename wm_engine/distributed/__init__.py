"""Dreams and real episodes over a cluster, with the results of one machine to the bit."""

from wm_engine.distributed.cluster import ClusterSettings, RayFleet
from wm_engine.distributed.engine import CrossoverRecipe, DreamRecipe, FleetEngine

__all__ = ["ClusterSettings", "CrossoverRecipe", "DreamRecipe", "FleetEngine", "RayFleet"]
