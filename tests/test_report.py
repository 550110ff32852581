"""The report of whole, half-done and empty run folders, made from stand-ins for what the stages leave behind."""

import re

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from wm_engine import MDNRNN
from wm_engine.errors import CorruptFileError, StorageError
from wm_engine.fidelity import controller_mix, dream_real_correlation
from wm_engine.memory.fidelity import memory_fidelity
from wm_engine.records import Recorder
from wm_engine.report import figures, pictures, write_report
from wm_engine.rollouts import Episode, RolloutStore
from wm_engine.runs import Manifest, RunFolder, StageEntry, read_json, write_json, write_text
from wm_engine.vision.latents import encode_store
from wm_engine.vision.model import VAE


def _episode(index, steps=24):
    generator = np.random.default_rng(index)
    frames = np.full((steps + 1, 64, 64, 3), 40, np.uint8)
    for step in range(steps + 1):
        left = (2 * step + 5 * index) % 48
        frames[step, 24:40, left : left + 16] = (200, 60, 20 * (index % 10))
    return Episode(
        frames=frames,
        actions=generator.uniform(-1, 1, (steps, 3)).astype(np.float32),
        rewards=generator.normal(size=steps).astype(np.float32),
        terminated=False,
        truncated=True,
        seed=index,
        policy="random",
    )


def _scores(mean, episodes=6):
    returns = [mean + offset for offset in range(episodes)]
    std = float(np.std(returns))
    return {
        "mean": float(np.mean(returns)),
        "std": std,
        "standard_error": std / episodes**0.5,
        "episodes": episodes,
        "returns": returns,
        "lengths": [10] * episodes,
        "seeds": list(range(episodes)),
    }


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """A run folder as the stages of two rounds leave it, the second one chosen."""
    run = RunFolder(tmp_path_factory.mktemp("runs") / "some <run>")
    write_text(run.config, 'seed = 3\n\n[env]\nid = "CarRacing-v3"\n\n[vision]\nholdout = 0.25\n')
    store = RolloutStore.open(run.rollouts)
    for index in range(8):
        store.append(_episode(index))
    torch.manual_seed(0)
    vae, m = VAE(8), MDNRNN(8, 3, 16, 2)
    folder = run.iteration(1)
    vae.save(folder.vision)
    m.save(folder.memory)
    latents = encode_store(vae, store, folder.latents)
    with Recorder(run.metrics) as recorder:
        recorder.log("collect", 8, 0, frames_per_second=2000.0)
        for step in (10, 20, 30):
            recorder.log("vision", step, 1, reconstruction=90.0 / step, kl=2.0, frames_per_second=500.0)
            recorder.log("memory", step, 1, nll_per_dimension=1.0 / step, steps_per_second=9000.0)
            recorder.log("controller_dream", step, 1, mean=step, std=2.0, best=step + 3, steps_per_second=300000.0)
        recorder.log("vision", 40, 1, held_out_reconstruction=3.0, held_out_kl=2.0, held_out_pixel_rmse=8.25)
        recorder.log("memory", 40, 1, held_out_nll_per_dimension=0.5, held_out_reward_r2=0.25)
    manifest = Manifest(run.manifest)
    for index in (0, 1):
        for stage, seconds in (("collect", 10.0), ("vision", 75.0), ("evaluate", 3700.0)):
            manifest.put(index, stage, StageEntry(settings={}, inputs={}, done=True, seconds=seconds))
        dream = {"mean": 400.0, "std": 10.0, "episodes": 64}
        scores = {"controller": _scores(600.0 + index), "random": _scores(-50.0), "dream_winner": None, "dream": dream}
        write_json(run.iteration(index).root / "scores.json", scores | {"gap": -200.0})
    models = {"vision": "a", "memory": "b", "controller": "c"}
    manifest.publish(1, models)
    fresh = {"controller": _scores(555.0), "random": _scores(-66.0), "round": 1, "how": {"models": models}}
    write_json(run.root / "scores.json", fresh)
    (folder.root / "controller.mp4").write_bytes(b"not a real video")
    mix = controller_mix(torch.ones(4), torch.zeros(3, 4), count=48)

    def real(params, generation):
        return params.sum(1, keepdim=True).expand(-1, 2)

    correlation = dream_real_correlation(lambda p, g: real(p, g) + p[:, :1], real, mix, resamples=50)
    numbers = memory_fidelity(m, latents, latents.split(0.25)[1])
    write_json(folder.root / "fidelity.json", {"memory": numbers, "correlation": correlation})
    return run


@pytest.fixture(scope="module")
def page(whole_run):
    return write_report(whole_run).read_text(encoding="utf-8")


def test_a_whole_run_misses_nothing(page):
    assert "Not here yet" not in page


def test_every_file_the_page_names_lies_beside_it(whole_run, page):
    names = set(re.findall(r'(?:src|srcset)="([^"]+)"', page))
    assert {"controller.mp4", "returns.png", "returns-dark.png", "originals.png", "rounds.png"} <= names
    for name in names:
        assert (whole_run.report / name).stat().st_size > 0, name
    assert "http" not in re.sub(r"<!doctype[^>]*>", "", page), "the page must need no network"


def test_the_page_shows_the_run_s_own_numbers(page):
    text = re.sub(r"<[^>]+>", " ", page)
    assert "some &lt;run&gt;" in page
    for number in ("603.5", "−47.5", "400.0", "−200.0", "8.2 of 255", "2,000", "300,000", "1 min 15 s", "1 h 01 min"):
        assert number in text, number
    assert "seed = 3" in text
    assert "1 · chosen" in text
    assert "The run's score is 557.5 (random policy −63.5), on seeds that no round was scored on" in " ".join(
        text.split()
    )


def test_fresh_scores_of_other_models_are_not_shown(whole_run, tmp_path):
    run = RunFolder(tmp_path)
    for name in ("manifest.json", "scores.json", "iterations/01/scores.json"):
        write_text(tmp_path / name, (whole_run.root / name).read_text())
    assert "The run's score is" in write_report(run).read_text()
    Manifest(run.manifest).publish(1, {"vision": "redone"})
    assert "The run's score is" not in write_report(run).read_text()


def test_pictures_show_the_frames(whole_run):
    store = RolloutStore.open(whole_run.rollouts, create=False)
    row = imread(whole_run.report / "originals.png")
    assert row.shape == (64, 10 * 64 + 9 * 3, 4)
    _, held_out = store.split(0.25)
    first = np.round(row[:, :64, :3] * 255)
    frames = np.concatenate([store.read(index).frames for index in held_out])
    assert (frames == first).all(axis=(1, 2, 3)).any()
    assert (row[:, 64:67, 3] == 0).all(), "the gap between frames is transparent"


@pytest.mark.parametrize("stem", ["returns", "curve-vision", "curve-controller", "likelihood", "horizon", "rounds"])
def test_plots_come_in_both_themes(whole_run, page, stem):
    light, dark = (imread(whole_run.report / f"{stem}{suffix}.png") for suffix in ("", "-dark"))
    assert light.shape == dark.shape
    assert np.median(light[..., :3]) > 0.9
    assert np.median(dark[..., :3]) < 0.3
    assert light[..., :3].std() > 0.02, "something is drawn"


def test_a_film_strip_begins_with_the_frame_itself():
    torch.manual_seed(1)
    vae, m, record = VAE(8), MDNRNN(8, 3, 16, 2), _episode(0)
    strip = pictures.film_strip(vae, m, record, 0, start=5)
    assert strip.ahead == (0, 1, 2, 4, 7, 10, 15)
    assert np.array_equal(strip.rows["real"], record.frames[[5 + step for step in strip.ahead]])
    view = strip.rows["V's view of it"]
    for name in ("dream, most likely", "dream, drawn"):
        assert np.abs(strip.rows[name][0].astype(int) - view[0]).max() <= 1, "a dream begins where it was started"
        assert strip.rows[name].shape == view.shape


def test_a_film_strip_follows_m():
    """With M's most likely mean held constant, every dreamt frame is the decoding of that constant."""
    torch.manual_seed(2)
    vae, m, record = VAE(4), MDNRNN(4, 3, 8, 2), _episode(0)
    target = torch.tensor([0.5, -1.0, 2.0, 0.0])
    with torch.no_grad():
        m.head.weight.zero_()
        m.head.bias.zero_()
        m.split(m.head.bias).means.copy_(target[:, None].expand(4, 2))
    strip = pictures.film_strip(vae, m, record, 0, start=3)
    wanted = pictures.to_pixels(vae.decode(target[None]))[0]
    dreamt = strip.rows["dream, most likely"][1:]
    assert np.abs(dreamt.astype(int) - wanted).max() <= 1


def test_an_empty_folder_still_gets_a_page(tmp_path):
    page = write_report(RunFolder(tmp_path / "new")).read_text()
    assert "Not here yet" in page
    assert "the controller has not been evaluated yet" in page
    assert "V has not been trained yet" in page


def test_a_half_done_run_shows_what_it_has(tmp_path):
    run = RunFolder(tmp_path)
    with Recorder(run.metrics) as recorder:
        for step in range(5):
            recorder.log("vision", step, 0, reconstruction=50.0 - step, kl=1.0)
    store = RolloutStore.open(run.rollouts)
    for index in range(3):
        store.append(_episode(index))
    VAE(4).save(run.iteration(0).vision)
    page = write_report(run).read_text()
    assert "curve-vision.png" in page
    assert "views.png" in page
    assert "M has not been trained yet" in page
    assert "no controller has been evolved yet" in page


def test_a_damaged_part_costs_that_part_alone(tmp_path):
    run = RunFolder(tmp_path)
    write_json(run.iteration(0).root / "scores.json", {"controller": _scores(1.0), "random": _scores(0.0)})
    (run.iteration(0).root / "fidelity.json").write_text("{ cut")
    page = write_report(run).read_text()
    assert "returns.png" in page
    assert "fidelity.json: not valid JSON" in page


def test_a_damaged_configuration_is_named(tmp_path):
    write_text(tmp_path / "config.toml", "[env\nid =")
    with pytest.raises(CorruptFileError, match=r"config\.toml: not valid TOML"):
        write_report(RunFolder(tmp_path))


def test_a_place_that_cannot_be_written_is_a_storage_error(tmp_path, monkeypatch):
    run = RunFolder(tmp_path)
    write_json(run.iteration(0).root / "scores.json", {"controller": _scores(1.0), "random": _scores(0.0)})

    def full(*_arguments):
        raise StorageError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(figures, "save", full)
        with pytest.raises(StorageError, match="no space"):
            write_report(run)
    blocked = RunFolder(tmp_path / "blocked")
    write_text(blocked.report, "a file in its place")
    with pytest.raises(StorageError, match="report"):
        write_report(blocked)


def test_what_was_not_finite_is_shown_as_missing(whole_run, tmp_path):
    fidelity = read_json(whole_run.iteration(1).root / "fidelity.json")
    fidelity["correlation"]["rho"] = None
    fidelity["memory"]["end_precision"] = None
    fidelity["memory"]["open_loop_sampled"][-1] = None
    run = RunFolder(tmp_path)
    write_json(run.iteration(0).root / "fidelity.json", fidelity)
    with Recorder(run.metrics) as recorder:
        recorder.log("controller_dream", 1, mean=float("nan"), std=0.0, best=1.0, steps_per_second=float("inf"))
        recorder.log("vision", 1, reconstruction=float("nan"), kl=1.0)
    page = write_report(run).read_text()
    for name in ("dream-against-real.png", "horizon.png", "curve-controller.png", "curve-vision.png"):
        assert name in page


def test_a_diverged_training_can_be_plotted(tmp_path):
    draw = figures.curves([("loss", {"training": ([], [])})], "step")
    assert figures.save(draw, tmp_path, "empty") == "empty"
    draw = figures.evolution({"in the dream": [{"step": 1, "mean": float("nan"), "std": 0.0, "best": 1.0}]})
    figures.save(draw, tmp_path, "nan")
    assert (tmp_path / "nan-dark.png").exists()
