"""A run folder of imported models: it dreams like one's own, says what it lacks, and is not trained over."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from foreign.test_ctallec import eyes, memory, save
from foreign.test_ha2018 import car

import wm_engine as wm
from wm_engine.errors import ConfigError, RunMismatchError, WMEngineError
from wm_engine.files import read_json
from wm_engine.foreign.ha2018 import read
from wm_engine.run.config import resolve
from wm_engine.run.folder import RunFolder
from wm_engine.run.imported import import_models
from wm_engine.run.loop import run_loop


@pytest.fixture
def imported(tmp_path) -> RunFolder:
    return import_models(tmp_path / "run", read([car(tmp_path / "files")]), "ha2018", "car_racing")


def test_imported_models_are_loaded_and_dream_like_a_run_s_own(imported):
    run = wm.load_run(imported.root)
    starts = run.starts(7, seed=3)
    assert starts.z.shape == (7, 5)
    assert torch.equal(starts.z, run.starts(7, seed=3).z)
    assert not torch.equal(starts.z, run.starts(7, seed=4).z)
    out = run.engine().rollout(run.controller.params, starts, episodes=7, max_steps=5, reward="survival", seed=0)
    assert np.array_equal(out.returns.numpy(), np.full((1, 7), 5.0))


def test_dreams_begin_from_the_posteriors_that_came_with_the_models(imported):
    found, z = read([imported.root.parent / "files"]), wm.load_run(imported.root).starts(4000, seed=0).z.double()
    mean = found.start_mean.double().mean(0)
    spread = (found.start_log_variance.double().exp() + found.start_mean.double().square()).mean(0) - mean.square()
    # Six standard errors: one of a million seeds lies beyond.
    assert bool(((z.mean(0) - mean).abs() <= 6.0 * (spread / len(z)).sqrt()).all())


def test_the_card_says_where_the_models_come_from_and_what_they_lack(imported):
    text = imported.card.read_text(encoding="utf-8")
    for words in ("imported from ha2018", "car_racing", "no V was there", "not scored yet", "licence", "wm_engine 0."):
        assert words in text, words


def test_models_without_v_say_so_where_it_is_needed(imported):
    run = wm.load_run(imported.root)
    with pytest.raises(WMEngineError, match="imported without V: they dream, but cannot see"):
        run.agent().vision.encode(torch.zeros(1, 64, 64, 3))
    with pytest.raises(WMEngineError, match="cannot show pictures"):
        run.vision.decode(torch.zeros(1, 5))
    with pytest.raises(ConfigError, match=r"vision\.kind: blind is the V of models that were imported"):
        run_loop(imported.root.parent / "new", resolve("smoke", []).model_copy(update={"vision": run.config.vision}))


def test_imported_models_are_not_trained_over(imported):
    before = imported.memory.read_bytes()
    with pytest.raises(RunMismatchError, match="holds models that were imported"):
        run_loop(imported.root, wm.load_run(imported.root).config)
    with pytest.raises(RunMismatchError, match="already, which an import would mix with"):
        import_models(imported.root, read([imported.root.parent / "files"]), "ha2018", "car_racing")
    assert imported.memory.read_bytes() == before


def test_an_import_that_was_cut_short_can_be_given_again(imported):
    files = imported.root.parent / "files"
    before = imported.published.read_bytes()
    imported.published.unlink()
    import_models(imported.root, read([files]), "ha2018", "car_racing")
    assert imported.published.read_bytes() == before
    (imported.root / "thesis.txt").write_text("all of it")
    with pytest.raises(RunMismatchError, match=r"thesis\.txt already"):
        import_models(imported.root, read([files]), "ha2018", "car_racing")


def test_the_command_imports_and_refuses_in_words(call, tmp_path):
    files = car(tmp_path / "files")
    status, out, _ = call("import", "ha2018", str(files), "--run", str(tmp_path / "a"))
    assert status == 0
    assert "M: Z=5, A=3, H=6, K=5, per_dim" in out
    assert "note: no V was there" in out
    (files / "rnn" / "rnn.json").write_text("[1]")
    for arguments, message in (
        (("ha2018", str(files)), "rnn.json: should hold an LSTM's kernel"),
        (("ha18", str(files)), "the nearest known one is 'ha2018'"),
        (("ctallec", str(files / "rnn" / "rnn.json")), "rnn.json: "),
        (("ha2018", str(tmp_path / "nowhere")), "does not exist"),
    ):
        status, out, err = call("import", *arguments, "--run", str(tmp_path / "b"))
        assert (status, out) == (2, "")
        assert message in err
        assert not (tmp_path / "b").exists()


def test_checkpoints_with_v_become_a_run_that_sees(tmp_path, call):
    files = [save(tmp_path / "vae" / "best.tar", eyes().state_dict()), save(tmp_path / "m.tar", memory())]
    assert call("import", "ctallec", *map(str, files), "--run", str(tmp_path / "run"))[0] == 0
    run = wm.load_run(tmp_path / "run")
    mean, _ = run.vision.encode(torch.zeros(2, 64, 64, 3, dtype=torch.uint8))
    assert mean.shape == (2, run.world.latent)
    assert run.config.vision.kind == "vae_relu"
    assert read_json(RunFolder(tmp_path / "run").published)["imported"]["format"] == "ctallec"
