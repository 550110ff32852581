"""`wm-engine train --ray`: the files of a run on a cluster of several nodes, and an address without one.

Needs Ray: ``pip install -e '.[test,ray]'``, then ``pytest tests/distributed``; two minutes. ``.ci/run`` has it, and
runs this file without its two slowest tests: less than a minute.
"""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
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


def train(root: Path, *options: str) -> dict[str, bytes]:
    """The smoke preset on real CarRacing, every stage unless told otherwise; the files of the run."""
    command = [sys.executable, "-m", "wm_engine.cli", "train", "--preset", "smoke", "--run", str(root)]
    command += ["--set", "evaluate.backend=auto", "--set", "env.num_envs=2"]
    command += ["--set", "controller.dream_episodes=4", "--set", "controller.dream_race=2", *options]
    process = subprocess.run(command, capture_output=True, text=True, timeout=400, cwd=root.parent)
    assert process.returncode == 0, process.stderr
    run = RunFolder(root)
    files = [run.vision, run.memory, run.controller, run.iteration(0).root / "scores.json"]
    files += [run.iteration(0).root / "fidelity.json", run.iteration(0).evolution / "result.safetensors"]
    files += [path for path in run.rollouts.rglob("*") if path.is_file()]
    return {str(path.relative_to(root)): path.read_bytes() for path in files if path.exists()}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a run without a cluster."""
    return train(tmp_path_factory.mktemp("alone") / "run")


def test_a_run_on_a_cluster_leaves_the_files_of_a_run_without(
    cluster: str, tmp_path: Path, alone: dict[str, bytes]
) -> None:
    assert train(tmp_path / "run", "--ray", cluster, "--set", "cluster.actors=2") == alone


def test_a_run_that_leaves_the_cluster_ends_with_the_same_files(
    cluster: str, tmp_path: Path, alone: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Begun on the cluster, and finished without."""
    monkeypatch.setenv("RAY_ADDRESS", cluster)
    train(tmp_path / "run", "--ray", "auto", "--stage", "collect")
    assert train(tmp_path / "run") == alone


@pytest.mark.parametrize("address", ["127.0.0.1:1", "[::1]:1", "nowhere.invalid:6379"])
def test_an_address_where_nothing_answers(address: str) -> None:
    with pytest.raises(WMEngineError, match=rf"--ray {re.escape(address)}: no cluster answers there"):
        RayFleet(address, ClusterSettings())


def test_an_address_in_the_environment_where_nothing_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    begun = time.monotonic()
    with pytest.raises(WMEngineError, match=r"--ray auto \(RAY_ADDRESS=127\.0\.0\.1:1\): no cluster answers there"):
        RayFleet("auto", ClusterSettings())
    assert time.monotonic() - begun < 5.0


@pytest.mark.parametrize(
    "address", ["", "foo", "local", "127.0.0.1", "127.0.0.1:gcs", "h:70000", "ray://127.0.0.1:10001"]
)
def test_what_is_no_address(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WMEngineError, match=f"--ray {address}: the address was '{address}', but should be HOST:PORT"):
        RayFleet(address, ClusterSettings())
    if address:
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(WMEngineError, match=rf"\(RAY_ADDRESS={address}\): the address was '{address}'"):
            RayFleet("auto", ClusterSettings())


def test_a_port_where_no_ray_listens_ends_the_command(tmp_path: Path) -> None:
    """Something that never says a word: Ray gives up on it in less than a minute."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        command = [sys.executable, "-m", "wm_engine.cli", "train", "--preset", "smoke", "--run", str(tmp_path / "run")]
        process = subprocess.run([*command, "--ray", address], capture_output=True, text=True, timeout=300)
    assert process.returncode == 2
    assert f"--ray {address}: no cluster answers there" in process.stderr
    assert "Traceback" not in process.stderr
