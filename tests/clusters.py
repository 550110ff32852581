"""A Ray cluster of several nodes, simulated on this machine; for tests that are skipped where Ray is not installed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NODES = 3


@contextmanager
def simulated_cluster() -> Iterator[str]:
    """Start a cluster of three nodes with a CPU each; yields its address."""
    from ray.cluster_utils import Cluster

    # Its workers are processes of their own, which have to find the modules of the tests.
    paths = os.environ.get("PYTHONPATH", "")
    here = Path(__file__).parent
    os.environ["PYTHONPATH"] = os.pathsep.join([str(here), str(here / "cluster"), paths])
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    node = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    nodes = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
    for _ in range(NODES - 1):
        nodes.add_node(**node)
    yield nodes.address
    nodes.shutdown()
    os.environ["PYTHONPATH"] = paths
