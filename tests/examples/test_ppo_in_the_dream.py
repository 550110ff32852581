"""The example of PPO: both kinds learn what a plain dream pays for, and a policy goes from there to the road."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from toys.learner import Tables
from toys.world_model import LinearWorld

import wm_engine as wm
from wm_engine.models.identity import Identity
from wm_engine.run.config import resolve
from wm_engine.run.folder import RunFolder
from wm_engine.run.loop import run_loop
from wm_engine.run.published import LoadedRun

TOY = str(Path(__file__).parents[1] / "toys" / "toy.toml")
PPOS = ["ppo", pytest.param("sb3_ppo", marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def example():
    path = Path(__file__).parents[2] / "examples" / "ppo_in_the_dream.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def paying_for(action: int) -> wm.DreamVectorEnv:
    """Dreams of ten steps, of which one action pays 1."""
    m = LinearWorld(2, 3)
    m.outcome.weight.data[0, 2 + action] = 1.0
    m.outcome.bias.data[1] = -100.0
    policy = Tables(torch.zeros(1, 3, 3))
    run = LoadedRun(RunFolder(Path("nowhere")), resolve(TOY), {"round": 0}, Identity(2), m, policy)
    starts = wm.Starts(torch.linspace(-1.0, 1.0, 10).reshape(5, 2))
    return wm.DreamVectorEnv(run, 16, starts=starts, horizon=10, autoreset_mode="SAME_STEP")


@pytest.mark.parametrize("name", PPOS)
def test_it_learns_what_a_dream_pays_for(example, name, monkeypatch):
    if name == "sb3_ppo":
        pytest.importorskip("stable_baselines3")
    monkeypatch.setattr(example, "LEARNING_RATE", 3e-3)
    said: list[str] = []
    env = paying_for(2)
    best = getattr(example, name)(env, 16 * example.STEPS * 8, 0, said.append)
    policy = example.Greedy(best, env.run)
    chosen = policy.act(env.starts.z, torch.arange(5))
    assert chosen.tolist() == [[0.0, 0.0, 1.0]] * 5
    assert 8 <= len(said) <= 10


def test_the_same_seed_trains_the_same_policy(example):
    seen = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    logits = []
    for seed in (0, 0, 1):
        best = example.ppo(paying_for(1), 16 * example.STEPS * 2, seed, lambda text: None)
        logits.append(best.__self__.actor(seen))
    assert torch.equal(logits[0], logits[1])
    assert not torch.equal(logits[0], logits[2])


def test_stable_baselines3_that_is_missing_is_named_with_its_extra(example, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "stable_baselines3", None)
    with pytest.raises(example.WMEngineError, match=r"pip install 'wm-engine\[sb3\]'"):
        example.sb3_ppo(paying_for(0), 1, 0, print)


@pytest.mark.slow
def test_from_a_runs_folder_to_the_road(example, tmp_path, capsys):
    run_loop(tmp_path, resolve(TOY, ["rounds=1", "drive.first_episodes=6", "evaluate.film=false"]))
    capsys.readouterr()
    options = "--steps 2048 --lanes 8 --starts 32 --horizon 8 --episodes 2"
    example.main(["--run", str(tmp_path), *options.split()])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[-2:]] == ["PPO", "C"]
    assert all("over 8 steps, real" in line and "over 2 episodes" in line for line in lines[-2:])
