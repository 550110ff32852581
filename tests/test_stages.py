"""The real stages: what they answer for of the configuration, and when their artifacts are whole."""

from __future__ import annotations

import pytest
import torch
from recordings import shades

from wm_engine import stages
from wm_engine.config import Config, flatten, make_config
from wm_engine.errors import MissingStageError, RunMismatchError
from wm_engine.pipeline import drop_episodes, run_pipeline
from wm_engine.records import Recorder
from wm_engine.rollouts import RolloutStore
from wm_engine.rounds import Round
from wm_engine.runs import Manifest, RunFolder
from wm_engine.stages import STAGES
from wm_engine.vision.latents import Latents, encode_store
from wm_engine.vision.model import VAE

BY_NAME = {stage.name: stage for stage in STAGES}


def config_of(**tables) -> Config:
    return make_config(tables, "test")


@pytest.fixture
def collected(tmp_path, monkeypatch):
    """A run folder whose round 0 has collected four episodes; gives back its path and what was collected since."""
    made = []

    def collect(store, env, settings, *arguments, **options):
        shades(store.path, episodes=settings.episodes - len(store))
        made.append(settings.episodes)

    monkeypatch.setattr(stages, "collect", collect)
    run_pipeline(tmp_path, config_of(collect={"episodes": 4}), only="collect", stages=[BY_NAME["collect"]])
    assert made == [4]
    made.clear()
    return tmp_path, made


def test_a_finished_collection_is_whole_by_its_own_settings(collected):
    root, made = collected
    more = config_of(collect={"episodes": 6})
    with pytest.raises(RunMismatchError, match=r"collect\.episodes: 4 -> 6"):
        run_pipeline(root, more, only="collect", stages=[BY_NAME["collect"]])
    run_pipeline(root, more, only="collect", stages=[BY_NAME["collect"]], on_change="keep")
    assert made == []
    assert len(RolloutStore.open(root / "rollouts")) == 4
    with Recorder(root / "metrics") as recorder:
        current = Round(RunFolder(root), 0, more, recorder)
        assert BY_NAME["vision"].inputs(current)["rollouts"].digest() is not None


def test_nothing_is_dropped_from_a_folder_without_rollouts(tmp_path):
    with pytest.raises(MissingStageError, match="rollouts: not there yet"):
        drop_episodes(tmp_path / "run", 3)
    assert list(tmp_path.iterdir()) == []


def test_a_collection_that_lost_episodes_is_made_whole(collected):
    root, made = collected
    drop_episodes(root, 2)
    run_pipeline(root, config_of(collect={"episodes": 4}), only="collect", stages=[BY_NAME["collect"]])
    assert made == [4]
    assert len(RolloutStore.open(root / "rollouts")) == 4


def test_an_evolving_population_collects_whole_generations(tmp_path):
    config = config_of(iterations=2, collect={"policy": "evolve", "episodes": 5})
    shades(tmp_path / "rollouts", episodes=3)
    with Recorder(tmp_path / "metrics") as recorder:
        wanted = [stages._episodes_wanted(Round(RunFolder(tmp_path), index, config, recorder)) for index in (0, 1)]
    assert wanted == [5, 16]
    assert not Manifest(tmp_path / "manifest.json").path.exists()


@pytest.mark.parametrize(
    ("stage", "index", "keys"),
    [
        ("collect", 0, {"env.id", "collect.episodes"}),
        ("collect", 1, {"env.id", "collect.episodes", "vision.precision"}),
        ("controller", 0, {"vision.precision", "dream.backend", "controller.population"}),
        (
            "evaluate",
            0,
            {"controller.temperature", "controller.starts", "controller.dream_steps", "controller.sigma"}
            | {"controller.final_dream_episodes", "controller.reward", "controller.done", "controller.mid_fraction"}
            | {"dream.backend", "dream.precision", "memory.holdout", "vision.precision"},
        ),
    ],
)
def test_a_stage_answers_for_everything_it_reads(stage, index, keys):
    assert keys <= dict(flatten(BY_NAME[stage].settings(Config(), index))).keys()


def test_a_stage_answers_for_nothing_else():
    assert "vision.precision" not in dict(flatten(BY_NAME["collect"].settings(Config(), 0)))
    evaluated = dict(flatten(BY_NAME["evaluate"].settings(Config(), 0)))
    assert not {"controller.population", "memory.hidden", "vision.steps"} & evaluated.keys()


def test_rollouts_are_encoded_in_float32(tmp_path):
    config = config_of(vision={"latent": 4, "precision": "bf16"}, device="cpu")
    store = shades(tmp_path / "rollouts", episodes=2)
    torch.manual_seed(0)
    vae = VAE(4)
    with Recorder(tmp_path / "metrics") as recorder:
        current = Round(RunFolder(tmp_path), 0, config, recorder)
        vae.save(current.folder.vision)
        BY_NAME["vision"].work(current)
    exact = encode_store(vae, store, tmp_path / "exact", "fp32")
    made = Latents.open(current.folder.latents)
    assert torch.equal(made.read(1).mu, exact.read(1).mu)
    rounded = encode_store(vae, store, tmp_path / "rounded", "bf16")
    assert not torch.equal(made.read(1).mu, rounded.read(1).mu)
