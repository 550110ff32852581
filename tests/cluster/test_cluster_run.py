"""A whole run on a cluster of several nodes publishes what it publishes without; and an address without a cluster.

Needs Ray: ``pip install -e '.[test,ray]'``, then ``pytest tests/cluster``; minutes on two busy cores.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from clusters import simulated_cluster

from wm_engine.cluster import ClusterSettings, RayFleet
from wm_engine.errors import WMEngineError
from wm_engine.files import read_json
from wm_engine.run.config import resolve
from wm_engine.run.folder import RunFolder
from wm_engine.run.loop import run_loop
from wm_engine.run.steps import STEPS, Step

ray = pytest.importorskip("ray", reason="needs pip install 'wm-engine[ray]'")
pytestmark = pytest.mark.slow

# Two batches of real episodes in the first round, and dreams of two lengths: some work for each of two actors.
CHANGES = (
    "env.num_envs=2",
    "evaluate.backend=auto",
    "evaluate.film=false",
    "controller.dream_episodes=4",
    "controller.dream_race=2",
    "cluster.actors=2",
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    with simulated_cluster() as address:
        yield address


def killed_at(place: str) -> tuple[tuple[str, Step], ...]:
    """The steps of a round, which end the process by kill -9 at ``place``: "1 dream 2" is in round 1's step dream, two
    of whose units are in the checkpoints, and another is done. "": nowhere."""
    if not place:
        return STEPS
    round_index, name, unit = place.split()

    def dying(step: Step) -> Step:
        def run(state):
            for _ in step(state):
                if (state.place.round, state.place.done) == (int(round_index), int(unit)):
                    os.kill(os.getpid(), signal.SIGKILL)
                yield

        return run

    return tuple((other, dying(step) if other == name else step) for other, step in STEPS)


def work(root: str, address: str, place: str) -> None:
    """The smoke preset on real CarRacing in a process of its own, on the cluster at ``address``, if any."""
    run_loop(Path(root), resolve("smoke", CHANGES), ray=address or None, steps=killed_at(place))


def train(root: Path, address: str = "", place: str = "") -> None:
    """Bring a run to its end, or to the place where it is killed."""
    here = Path(__file__)
    paths = [str(here.parent), str(here.parents[1]), os.environ.get("PYTHONPATH", "")]
    code = f"import {here.stem} as t; t.work({str(root)!r}, {address!r}, {place!r})"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    process = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=500, cwd=root.parent
    )
    assert process.returncode == (-signal.SIGKILL if place else 0), process.stderr


def results(root: Path) -> dict[str, bytes]:
    """The published models and the store of a finished run, byte for byte, and its scores but for the minutes."""
    run = RunFolder(root)
    files = [*run.models.glob("*.safetensors"), *(path for path in run.rollouts.rglob("*") if path.is_file())]
    left = {str(path.relative_to(root)): path.read_bytes() for path in files}
    scores = read_json(run.scores)
    assert scores["published"].pop("minutes") > 0.0
    return left | {"scores": json.dumps(scores, sort_keys=True).encode()}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a run without a cluster leaves."""
    root = tmp_path_factory.mktemp("alone") / "run"
    train(root)
    left = results(root)
    assert {"models/vision.safetensors", "models/memory.safetensors", "models/controller.safetensors"} < left.keys()
    return left


def test_a_run_on_a_cluster_leaves_what_a_run_without_leaves(
    cluster: str, tmp_path: Path, alone: dict[str, bytes]
) -> None:
    train(tmp_path / "run", cluster)
    assert results(tmp_path / "run") == alone


@pytest.mark.parametrize("begun_on", ["cluster", "alone"])
def test_a_killed_run_goes_on_with_and_without_the_cluster(
    cluster: str, tmp_path: Path, alone: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, begun_on: str
) -> None:
    """It changes its machines at every kill: while it drives its first episodes, and in the middle of a search."""
    monkeypatch.setenv("RAY_ADDRESS", cluster)
    addresses = ["auto", "", "auto"] if begun_on == "cluster" else ["", "auto", ""]
    for address, place in zip(addresses, ("0 drive 1", "1 dream 2", ""), strict=True):
        train(tmp_path / "run", address, place)
    assert results(tmp_path / "run") == alone


@pytest.mark.parametrize("address", ["127.0.0.1:1", "[::1]:1", "nowhere.invalid:6379"])
def test_an_address_where_nothing_answers(address: str) -> None:
    with pytest.raises(WMEngineError, match=rf"--ray {re.escape(address)}: no cluster answers there"):
        RayFleet(address, ClusterSettings())


def test_an_address_in_the_environment_where_nothing_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setattr(ray, "init", lambda **options: pytest.fail("Ray itself would try for long"))
    with pytest.raises(WMEngineError, match=r"--ray auto \(RAY_ADDRESS=127\.0\.0\.1:1\): no cluster answers there"):
        RayFleet("auto", ClusterSettings())


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
