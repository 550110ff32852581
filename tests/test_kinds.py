"""Kinds found by name: bare and dotted ones, and the nearest of an unknown name."""

from __future__ import annotations

import sys
import types

import pytest
from models.drift import Drift

from wm_engine.errors import ConfigError
from wm_engine.kinds import find_kind, kind_name, known_kinds
from wm_engine.models.identity import Identity
from wm_engine.models.mdn_rnn import MDNRNN
from wm_engine.models.vae import VAE

MODELS = "wm_engine.models"
WORLD_MODELS = ["categorical", "ensemble", "lstm", "mdn_rnn"]
THERE_ARE = f"There are {', '.join(WORLD_MODELS)};"


def test_the_kinds_of_a_role_are_the_modules_that_hold_one():
    assert known_kinds(MODELS, "vision") == ["blind", "identity", "vae", "vae_relu", "vqvae"]
    assert known_kinds(MODELS, "world_model") == WORLD_MODELS
    assert known_kinds("wm_engine.learn", "learner") == ["evolution", "plan", "policy_gradient"]


@pytest.mark.parametrize(
    ("name", "role", "kind"),
    [
        ("vae", "vision", VAE),
        ("identity", "vision", Identity),
        ("mdn_rnn", "world_model", MDNRNN),
        ("models.drift", "world_model", Drift),
        ("wm_engine.models.mdn_rnn", "world_model", MDNRNN),
    ],
)
def test_a_kind_is_found_by_its_bare_or_dotted_name(name, role, kind):
    assert find_kind("memory.kind", name, MODELS, role) is kind


@pytest.mark.parametrize(("kind", "role"), [(VAE, "vision"), (MDNRNN, "world_model"), (Drift, "world_model")])
def test_the_name_of_a_kind_finds_it_again(kind, role):
    assert find_kind("memory.kind", kind_name(kind, MODELS), MODELS, role) is kind


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mdnrnn", f"'mdnrnn' is unknown; the nearest known one is 'mdn_rnn'. {THERE_ARE}"),
        ("zzz", f"'zzz' is unknown. {THERE_ARE}"),
        ("vae", f"'vae' is unknown. {THERE_ARE}"),  # another role's
        ("models.nowhere", "'models.nowhere' is unknown"),
        ("nowhere.at.all", "'nowhere.at.all' is unknown"),
        ("models.drift.deeper", "'models.drift.deeper' is unknown"),
        ("a..b", "'a..b' is unknown"),
        (".drift", "'.drift' is unknown"),
        ("", "'' is unknown"),
        (7, "'7' is unknown"),
    ],
)
def test_an_unknown_name_is_a_configuration_error_with_the_nearest(name, words):
    with pytest.raises(ConfigError) as error:
        find_kind("memory.kind", name, MODELS, "world_model")
    assert str(error.value).startswith(f"memory.kind: {words}")


def test_a_module_that_lacks_something_else_says_what(tmp_path, monkeypatch):
    """It is there, so its name is not what is wrong."""
    folder = tmp_path / "lacking_kinds"
    folder.mkdir()
    (folder / "broken.py").write_text("import not_installed_anywhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="not_installed_anywhere"):
        find_kind("memory.kind", "lacking_kinds.broken", MODELS, "world_model")
    sys.modules.pop("lacking_kinds", None)


def test_a_class_that_another_module_defines_is_refused_since_files_would_name_that_module(monkeypatch):
    borrowed = types.ModuleType("borrowed.kinds")
    borrowed.vision = VAE
    monkeypatch.setitem(sys.modules, "borrowed", types.ModuleType("borrowed"))
    monkeypatch.setitem(sys.modules, "borrowed.kinds", borrowed)
    with pytest.raises(ConfigError) as error:
        find_kind("vision.kind", "borrowed.kinds", MODELS, "vision")
    assert "takes its 'vision' from wm_engine.models.vae" in str(error.value)
