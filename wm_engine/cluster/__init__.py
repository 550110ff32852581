"""Dreams and real episodes over a cluster, with the results of one machine to the bit."""

from wm_engine.cluster.fleet_engine import CrossoverRecipe, DreamRecipe, FleetEngine
from wm_engine.cluster.ray_fleet import ClusterSettings, RayFleet

__all__ = ["ClusterSettings", "CrossoverRecipe", "DreamRecipe", "FleetEngine", "RayFleet"]
