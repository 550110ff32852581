"""Dreams and real episodes over a cluster, with the results of one machine to the bit."""

from wm_engine.distributed.cluster import ClusterSettings, RayFleet
from wm_engine.distributed.engine import DreamRecipe, FleetEngine

__all__ = ["ClusterSettings", "DreamRecipe", "FleetEngine", "RayFleet"]
