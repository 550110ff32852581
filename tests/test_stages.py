"""The real stages: what they answer for of the configuration, and when their artifacts are whole."""

from __future__ import annotations

import pytest
import torch
from recordings import shades

from wm_engine import stages
from wm_engine.config import Config, flatten, make_config
from wm_engine.controller import ControllerSpec, save_controller
from wm_engine.errors import ConfigError, MissingStageError, RunMismatchError
from wm_engine.evolve import ControllerResult, Distribution
from wm_engine.memory.model import MDNRNN
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


def test_an_evolving_population_drives_in_waves_that_a_setting_cuts(tmp_path, monkeypatch):
    """Of which each of a cluster's actors takes one."""
    folder = RunFolder(tmp_path).iteration(0)
    m, spec = MDNRNN(2, 3, hidden=4, mixtures=2), ControllerSpec(2, 4, 3, squash="tanh")
    VAE(2).save(folder.vision)
    m.save(folder.memory)
    save_controller(folder.controller, spec, torch.zeros(spec.num_params))
    made = []

    def fitness(*arguments, **options):
        made.append(options)
        raise KeyboardInterrupt

    monkeypatch.setattr(stages, "RealFitness", fitness)
    config = config_of(collect={"policy": "evolve"}, controller={"real_lanes": 7})
    with Recorder(tmp_path / "metrics") as recorder, pytest.raises(KeyboardInterrupt):
        BY_NAME["collect"].work(Round(RunFolder(tmp_path), 1, config, recorder))
    assert made[0]["lanes"] == 7
    assert "controller.real_lanes" in dict(flatten(BY_NAME["collect"].settings(config, 1)))
    alone = config_of(collect={"policy": "agent"})
    assert "controller.real_lanes" not in dict(flatten(BY_NAME["collect"].settings(alone, 1)))


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


def evolved(path, spec: ControllerSpec, mean: float = 0.5) -> ControllerResult:
    """The result of a search that ended around ``mean``."""
    D = spec.num_params
    distribution = Distribution(torch.full((D,), mean, dtype=torch.float64), 0.25, torch.linspace(1.0, 2.0, D).double())
    result = ControllerResult(torch.zeros(D), "dream mean", {}, {}, {}, spec, distribution)
    result.save(path)
    return result


def first_round(root, recorder: Recorder, index: int = 0, **controller) -> Round:
    return Round(RunFolder(root), index, config_of(iterations=2, controller=controller), recorder)


def test_a_search_begins_where_another_runs_ended(tmp_path):
    spec = ControllerSpec(latent=2, hidden=3, action=1, squash="tanh")
    result = evolved(tmp_path / "old" / "evolution" / "result.safetensors", spec)
    with Recorder(tmp_path / "metrics") as recorder:
        for name in ("old", "old/evolution/result.safetensors"):
            current = first_round(tmp_path / name.replace("/", "-"), recorder, init_from=str(tmp_path / name))
            found = stages._beginning(current, spec)
            assert torch.equal(found.mean, result.distribution.mean)
            assert torch.equal(found.factor, result.distribution.factor)
            assert found.sigma == 0.25
        mean_only = first_round(tmp_path / "b", recorder, init_from=str(tmp_path / "old"), init_with="mean")
        assert torch.equal(stages._beginning(mean_only, spec), result.distribution.mean)
        assert stages._beginning(first_round(tmp_path / "c", recorder), spec) is None

        # The run goes on with what it began with, whatever becomes of the other one.
        current = first_round(tmp_path / "old-copy", recorder, init_from=str(tmp_path / "old"))
        stages._beginning(current, spec)
        evolved(tmp_path / "old" / "evolution" / "result.safetensors", spec, mean=0.75)
        assert torch.equal(stages._beginning(current, spec).mean, result.distribution.mean)


def test_a_later_round_begins_at_the_last_ones_controller(tmp_path):
    spec = ControllerSpec(latent=2, hidden=3, action=1, squash="tanh")
    evolved(tmp_path / "old" / "evolution" / "result.safetensors", spec)
    params = torch.linspace(-1.0, 1.0, spec.num_params)
    with Recorder(tmp_path / "metrics") as recorder:
        current = first_round(tmp_path / "run", recorder, 1, init_from=str(tmp_path / "old"))
        save_controller(current.previous.controller, spec, params)
        assert torch.equal(stages._beginning(current, spec), params)
        assert stages._beginning(current, ControllerSpec(latent=2, hidden=3, action=1, squash="sigmoid")) is None
        earlier = BY_NAME["controller"].inputs(current)["earlier controller"].digest()
        save_controller(current.previous.controller, spec, -params)
        assert BY_NAME["controller"].inputs(current)["earlier controller"].digest() != earlier


def test_a_search_that_cannot_be_gone_on_with_is_named(tmp_path):
    spec = ControllerSpec(latent=2, hidden=3, action=1, squash="tanh")
    evolved(tmp_path / "old" / "evolution" / "result.safetensors", spec)
    bare = ControllerResult(torch.zeros(3), "dream mean", {}, {}, {})
    bare.save(tmp_path / "bare.safetensors")
    with Recorder(tmp_path / "metrics") as recorder:
        other = ControllerSpec(latent=2, hidden=4, action=1, features="z", squash="tanh")
        current = first_round(tmp_path / "a", recorder, init_from=str(tmp_path / "old"))
        with pytest.raises(ConfigError, match=r"hidden 3 there, 4 here; .*features zh there, z here"):
            stages._beginning(current, other)
        current = first_round(tmp_path / "a", recorder, init_from=str(tmp_path / "nowhere"))
        with pytest.raises(ConfigError, match=r"controller\.init_from: .*no such file"):
            stages._beginning(current, spec)
        current = first_round(tmp_path / "a", recorder, init_from=str(tmp_path / "bare.safetensors"))
        with pytest.raises(ConfigError, match="before a search's distribution was kept"):
            stages._beginning(current, spec)


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_no_result_follows_from_the_cluster(stage):
    one, other = config_of(), config_of(cluster={"actors": 7, "cpus": 2, "timeout": 5.0, "start_timeout": 6.0})
    assert one.cluster != other.cluster
    assert all(stage.settings(one, index) == stage.settings(other, index) for index in (0, 1))
