"""`wm-engine train --ray`: the files of a run on a cluster of several nodes, and an address without one.

Needs Ray: ``pip install -e '.[test,ray]'``, then ``pytest tests/distributed``; three minutes.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from clusters import simulated_cluster

from wm_engine.distributed import ClusterSettings, RayFleet
from wm_engine.errors import WMEngineError
from wm_engine.runs import RunFolder

pytest.importorskip("ray", reason="needs pip install 'wm-engine[ray]'")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    with simulated_cluster() as address:
        yield address


def test_a_run_on_a_cluster_leaves_the_files_of_a_run_without(
    cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The smoke preset on real CarRacing, every stage; the third run is begun on the cluster and finished without."""

    def train(name: str, *options: str) -> dict[str, bytes]:
        root = tmp_path / name
        command = [sys.executable, "-m", "wm_engine.cli", "train", "--preset", "smoke", "--run", str(root)]
        command += ["--set", "evaluate.backend=auto", "--set", "env.num_envs=2"]
        command += ["--set", "controller.dream_episodes=4", "--set", "controller.dream_race=2", *options]
        process = subprocess.run(command, capture_output=True, text=True, timeout=400, cwd=tmp_path)
        assert process.returncode == 0, process.stderr
        run = RunFolder(root)
        files = [run.vision, run.memory, run.controller, run.iteration(0).root / "scores.json"]
        files += [run.iteration(0).root / "fidelity.json", run.iteration(0).evolution / "result.safetensors"]
        files += [path for path in run.rollouts.rglob("*") if path.is_file()]
        return {str(path.relative_to(root)): path.read_bytes() for path in files if path.exists()}

    on_cluster = train("cluster", "--ray", cluster, "--set", "cluster.actors=2")
    assert on_cluster == train("alone")
    monkeypatch.setenv("RAY_ADDRESS", cluster)
    train("mixed", "--ray", "auto", "--stage", "collect")
    assert train("mixed") == on_cluster


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere", "127.0.0.1:gcs"])
def test_an_address_where_nothing_answers(address: str) -> None:
    with pytest.raises(WMEngineError, match=f"--ray {address}: no cluster answers there"):
        RayFleet(address, ClusterSettings())


def test_a_port_where_no_ray_listens_ends_the_command(tmp_path: Path) -> None:
    """Something that never says a word: Ray gives up on it in less than a minute."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        command = [sys.executable, "-m", "wm_engine.cli", "train", "--preset", "smoke", "--run", str(tmp_path / "run")]
        process = subprocess.run([*command, "--ray", address], capture_output=True, text=True, timeout=300)
    assert process.returncode == 2
    assert f"--ray {address}: no cluster answers there" in process.stderr
    assert "Traceback" not in process.stderr
