"""The configuration: presets, changes, and errors that name the key and the nearest known one."""

from __future__ import annotations

import pytest

from wm_engine.errors import ConfigError
from wm_engine.run.config import (
    Config,
    apply_change,
    differences,
    make_config,
    nearest_key,
    presets,
    read_config,
    resolve,
)

NAMES = [
    *("carracing", "carracing-paper", "cartpole", "gridworld", "quick", "smoke", "takecover", "takecover-paper"),
]


def test_the_presets_are_there_and_described():
    assert sorted(presets()) == NAMES
    assert all(len(text) > 20 for text in presets().values())


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_survives_its_own_toml(name, tmp_path):
    config = resolve(name)
    config.write(tmp_path / "config.toml")
    assert read_config(tmp_path / "config.toml") == config


def test_the_paper_is_the_papers():
    config = resolve("carracing-paper")
    assert (config.rounds, config.drive.first_episodes, config.env.action_repeat) == (1, 10_000, 1)
    assert (config.vision.latent, config.vision.learning_rate) == (32, 1e-4)
    assert (config.memory.hidden, config.memory.mixtures) == (256, 5)
    controller = config.controller
    assert controller.population == 64
    assert {"dream": controller.dream_generations, "real": controller.real_generations}[controller.train_in] == 300
    assert {"dream": controller.dream_episodes, "real": controller.real_episodes}[controller.train_in] == 16


def test_the_papers_takecover_is_the_papers():
    config = resolve("takecover-paper")
    assert (config.rounds, config.drive.first_episodes, config.env.action_repeat) == (1, 10_000, 1)
    assert (config.vision.latent, config.memory.hidden, config.memory.mixtures) == (64, 512, 5)
    controller = config.controller
    assert (controller.features, controller.temperature, controller.done) == ("zhc", 1.15, "threshold")
    assert (controller.dream_steps, controller.reward, config.memory.end_weight) == (2100, "survival", 10.0)


def test_c_learns_in_the_dream_alone_unless_it_is_told_otherwise():
    assert {name: resolve(name).controller.wants_real() for name in NAMES} == {
        "carracing": False, "carracing-paper": True, "cartpole": False, "gridworld": False, "quick": False,
        "smoke": False, "takecover": False, "takecover-paper": False,
    }  # fmt: skip


def test_a_preset_may_be_a_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("# mine\nseed = 7\n[vision]\nlatent = 8\n")
    config = resolve(str(path), ["seed=9"])
    assert (config.seed, config.vision.latent) == (9, 8)


def test_an_unknown_preset_names_the_known_ones():
    with pytest.raises(ConfigError, match=r"preset 'quik': unknown; the nearest known one is 'quick'.*carracing"):
        resolve("quik")


@pytest.mark.parametrize(
    ("text", "content"),
    [("a = ", "not valid TOML"), (None, "cannot be read"), ("vision = 3", "vision: must be an object")],
)
def test_a_bad_preset_file_is_named(tmp_path, text, content):
    path = tmp_path / "mine.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=rf"mine\.toml.*{content}"):
        resolve(str(path))


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ("a.b=3", 3),
        ("a.b = 3.5", 3.5),
        ("a.b=1e-4", 1e-4),
        ("a.b=true", True),
        ("a.b=gymnasium", "gymnasium"),
        ('a.b="quoted words"', "quoted words"),
        ("a.b=CarRacing-v3", "CarRacing-v3"),
        ("a.b=[1, 2]", [1, 2]),
        ("a.b=x=y", "x=y"),
        ("a.b=", ""),
        ("a.b=1\nc=2", "1\nc=2"),
    ],
)
def test_values_are_toml_and_bare_words_are_strings(change, value):
    tables = {"a": {"b": 0, "kept": 1}}
    apply_change(tables, change)
    assert tables == {"a": {"b": value, "kept": 1}}


@pytest.mark.parametrize("change", ["vision.steps", "=3", ".steps=3", "vision..steps=3", ""])
def test_a_change_without_key_or_value_is_an_error(change):
    with pytest.raises(ConfigError, match=r"section\.key=value"):
        apply_change({}, change)


def test_a_value_is_no_section():
    with pytest.raises(ConfigError, match="'seed' is a value"):
        apply_change({"seed": 3}, "seed.deep=1")


def test_later_changes_win():
    assert resolve("quick", ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    ("change", "key", "nearest"),
    [
        ("vision.step=3", "vision.step", "vision.steps"),
        ("vison.steps=3", "vison", "vision"),
        ("controler.population=3", "controler", "controller"),
        ("controller.popultion=3", "controller.popultion", "controller.population"),
        ("population=3", "population", "controller.population"),
        ("sed=3", "sed", "seed"),
        ("memory.population=3", "memory.population", "controller.population"),
    ],
)
def test_an_unknown_key_names_the_nearest_known_one(change, key, nearest):
    with pytest.raises(ConfigError) as error:
        resolve("quick", [change])
    assert f"{key}: unknown key; the nearest known one is {nearest}" in str(error.value)


def test_a_key_like_no_other_has_no_nearest():
    assert nearest_key("zzzzzz", type(resolve("quick"))) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("vision.steps=many", "vision.steps: must be a valid integer, but was 'many'"),
        ("vision.steps=2.5", "vision.steps: must be a valid integer, but was 2.5"),
        ("vision.steps=-1", "vision.steps: must be greater than or equal to 0, but was -1"),
        ("seed=true", "seed: must be a valid integer, but was True"),
        ("vision.learning_rate='fast'", "vision.learning_rate: must be a valid number, but was 'fast'"),
        ("controller.train_in=bed", "controller.train_in: must be 'dream' or 'real', but was 'bed'"),
    ],
)
def test_an_ill_typed_value_names_its_key(change, message):
    with pytest.raises(ConfigError) as error:
        resolve("quick", [change])
    assert message in str(error.value)


def test_every_problem_is_named_at_once():
    with pytest.raises(ConfigError) as error:
        resolve("quick", ["vision.steps=many", "memory.stps=3"])
    assert "vision.steps" in str(error.value)
    assert "memory.stps" in str(error.value)


def test_an_integer_may_stand_for_a_float():
    assert resolve("quick", ["controller.sigma_max=1"]).controller.sigma_max == 1.0


def test_differences_name_old_and_new():
    old = make_config({"seed": 1}, "test").tables()
    new = make_config({"seed": 2, "vision": {"latent": 8}}, "test").tables()
    assert differences(old, new) == ["seed: 1 -> 2", "vision.latent: 32 -> 8"]
    assert differences({"a": {"b": 1}}, {"a": {"c": 1}}) == ["a.b: 1 -> (not set)", "a.c: (not set) -> 1"]
    assert differences(old, old) == []


def test_a_configuration_cannot_be_changed_in_place():
    with pytest.raises(ValueError, match="frozen"):
        Config().seed = 3


def test_the_explained_configuration_is_the_same_toml(tmp_path):
    config = resolve("carracing-paper")
    text = config.explained()
    (tmp_path / "shown.toml").write_text(text)
    assert read_config(tmp_path / "shown.toml") == config
    assert "# root of every random number of the run\nseed = 0\n" in text


def test_a_kind_brings_its_own_settings():
    tables = {"vision": {"kind": "identity"}, "memory": {"kind": "toys.world_model"}}
    config = make_config(tables | {"controller": {"kind": "toys.learner", "tries": 3}})
    assert (config.vision.kind, config.memory.kind, config.controller.tries) == ("identity", "toys.world_model", 3)


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"vision": {"kind": "identity", "latent": 3}}, r"vision\.latent: unknown key"),
        ({"memory": {"kind": "toys.world_model", "hidden": 3}}, r"memory\.hidden: unknown key"),
        ({"controller": {"kind": "toys.learner", "population": 9}}, r"controller\.population: unknown key"),
        ({"memory": {"kind": "mdn_rn"}}, r"memory\.kind: 'mdn_rn' is unknown; the nearest known one is 'mdn_rnn'"),
        ({"controller": {"kind": "evolutoin"}}, r"controller\.kind: 'evolutoin' is unknown; .* 'evolution'"),
        ({"vision": {"kind": "nowhere.at_all"}}, r"vision\.kind: 'nowhere\.at_all' is unknown"),
        ({"vision": {"kind": 3}}, r"vision\.kind: '3' is unknown"),
        ({"env": {"action_repeat": 0}}, r"env\.action_repeat: must be greater than or equal to 1, but was 0"),
    ],
)
def test_another_kinds_settings_and_unknown_kinds_are_named(tables, message):
    with pytest.raises(ConfigError, match=message):
        make_config(tables, "here")


def test_what_no_result_follows_from_is_no_part_of_the_identity():
    one = resolve("quick", ["rounds=3", "threads=1", "checkpoint_seconds=1.0", "env.num_threads=5"])
    assert one.identity() == resolve("quick").identity()
    assert resolve("quick", ["controller.sigma=0.2"]).identity() != resolve("quick").identity()


def test_a_race_of_one_dream_is_refused():
    with pytest.raises(ConfigError, match=r"controller\.dream_race: must be 0 or at least 2.*but was 1"):
        make_config({"controller": {"dream_race": 1}}, "here")


@pytest.mark.parametrize(("race", "episodes"), [(16, 16), (17, 16), (2, 1)])
def test_a_race_that_races_nothing_is_refused(race, episodes):
    with pytest.raises(ConfigError, match=rf"dream_race: must be less than dream_episodes \({episodes}\).*was {race}"):
        make_config({"controller": {"dream_race": race, "dream_episodes": episodes}}, "here")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("controller.sigma=inf", "controller.sigma: must be a finite number, but was inf"),
        ("controller.sigma=1e39", "controller.sigma: must be less than or equal to 1000000000000, but was 1e+39"),
        ("controller.sigma=1e-310", "controller.sigma: must be greater than or equal to 0.000000000001, but was"),
        ("controller.sigma=0.0", "controller.sigma: must be greater than or equal to 0.000000000001, but was 0.0"),
        ("controller.sigma_max=nan", "controller.sigma_max: must be a finite number, but was nan"),
        ("controller.sigma_max=0.0", "controller.sigma_max: must be greater than 0, but was 0.0"),
        ("controller.temperature=inf", "controller.temperature: must be a finite number, but was inf"),
        ("controller.temperature=1e300", "controller.temperature: must be less than or equal to 1000000"),
        ("checkpoint_seconds=inf", "checkpoint_seconds: must be a finite number, but was inf"),
        ("vision.learning_rate=inf", "vision.learning_rate: must be a finite number, but was inf"),
        ("memory.end_weight=nan", "memory.end_weight: must be a finite number, but was nan"),
    ],
)
def test_a_number_that_no_step_could_work_with_is_refused(change, message):
    with pytest.raises(ConfigError) as error:
        resolve("quick", [change])
    assert message in str(error.value)
