"""The report of whole, half-finished and damaged run folders, and what its figures show."""

import re
import shutil

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from report.drifting import Drifting

from wm_engine import MDNRNN, ControllerSpec
from wm_engine.data.store import Episode, RolloutStore
from wm_engine.errors import CorruptFileError, MissingRunError, RunMismatchError, StorageError
from wm_engine.files import file_fingerprint, read_json, write_json, write_text
from wm_engine.judge.dream_real_correlation import controller_mix, dream_real_correlation
from wm_engine.judge.model_errors import model_errors
from wm_engine.models.identity import Identity
from wm_engine.models.latents import LatentCache
from wm_engine.models.vae import VAE
from wm_engine.policies.controller import save_controller
from wm_engine.recorder import Recorder, read_metrics
from wm_engine.report import figures, page, pictures, write_report
from wm_engine.run.config import resolve
from wm_engine.run.folder import RunFolder
from wm_engine.run.loop import run_loop
from wm_engine.spaces import Box, Codes, Discrete, Pixels, Spaces, Vector

ROUNDS, HORIZON, EPISODES = 3, 4, 6
PICTURES = Spaces(Pixels(), Box((-1.0, 0.0, 0.0), (1.0, 1.0, 1.0)))
VECTORS = Spaces(Vector(3), Discrete(3))


def picture_episode(index, steps=24):
    generator = np.random.default_rng(index)
    frames = np.full((steps + 1, 64, 64, 3), 40, np.uint8)
    for step in range(steps + 1):
        left = (2 * step + 5 * index) % 48
        frames[step, 24:40, left : left + 16] = (200, 60, 20 * (index % 10))
    actions = generator.uniform(0, 1, (steps, 3)).astype(np.float32)
    rewards = generator.normal(size=steps).astype(np.float32)
    return Episode(frames, actions, rewards, False, True, index, "random")


def vector_episode(index, steps=12):
    """The first dimension never changes, the last one most."""
    seen = np.arange(steps + 1, dtype=np.float32)[:, None] * np.array([0.0, 1.0, 5.0], np.float32) + index
    actions, rewards = np.arange(steps, dtype=np.int32) % 3, np.ones(steps, np.float32)
    return Episode(seen, actions, rewards, False, True, index, "random")


def store_of(path, spaces, episode, count=6):
    store = RolloutStore.open(path, spaces)
    for index in range(count):
        store.append(episode(index))
    return store


def record(path):
    """What three rounds of the loop leave in metrics.jsonl: round 0 drives random plans, and every other is judged."""
    with Recorder(path) as recorder:
        for index in range(ROUNDS):
            frames = 1000 * (index + 1)
            if index:
                recorder.log(
                    "drive", index, index, return_mean=10.0 * index, return_best=20.0 * index, learning_frames=frames
                )
                for step in (1, 2, HORIZON):
                    recorder.log_point("calibration", step, index, promised=2.0 * step, paid=1.0 * step)
                recorder.log(
                    "forecast",
                    index,
                    index,
                    promised=8.0,
                    paid=4.0,
                    rank=0.5,
                    new_error=30.0,
                    new_nll_per_dimension=0.75,
                )
            recorder.log("vision", 40 * (index + 1), index, kl=2.0, held_out_error=25.0 - index)
            recorder.log("memory", 40 * (index + 1), index, nll_per_dimension=0.5, held_out_nll_per_dimension=0.625)
            for unit in (1, 2):
                recorder.log(
                    "controller", 2 * index + unit, index, mean=1.0 * unit, std=1.0, best=3.0, sigma=0.1, steps=600.0,
                    fitness_seconds=0.5,
                )  # fmt: skip
            if index % 2 == 0:
                recorder.log(
                    "judge", index, index, mean=100.0 + index, std=8.0, standard_error=4.0, episodes=4.0,
                    learning_frames=frames,
                )  # fmt: skip
            recorder.log(
                "round", index, index, minutes=1.5 * (index + 1), learning_frames=frames, judged_frames=500 * index,
                overhead_share=0.02, drive_seconds=30.0, bookkeeping_seconds=1.0, dream_seconds=19.0,
            )  # fmt: skip


def scores_of(mean):
    returns = [mean + offset for offset in range(EPISODES)]
    std = float(np.std(returns, ddof=1))
    return {
        "mean": float(np.mean(returns)), "std": std, "standard_error": std / EPISODES**0.5, "episodes": EPISODES,
        "returns": returns, "frames": [10] * EPISODES, "seeds": list(range(EPISODES)), "failed": 0,
    }  # fmt: skip


def publish(folder, chosen="last"):
    digests = {path.name: file_fingerprint(path) for path in (folder.vision, folder.memory, folder.controller)}
    judged = {"round": 2, "mean": 102.0, "standard_error": 4.0, "episodes": 4, "frames": 3000}
    write_json(folder.published, {
        "round": 2, "task": "toy", "trained_in": "dream", "chosen": chosen, "judged_rounds": 2, "judged": judged,
        "learning_frames": 3000, "judged_frames": 1500, "minutes": 4.5, "digests": digests,
    })  # fmt: skip
    return digests


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """A run folder as three rounds of the loop leave it, the last one published and scored."""
    folder = RunFolder(tmp_path_factory.mktemp("runs") / "some <run>")
    resolve("smoke", [f"rounds={ROUNDS}", f"judge.horizon={HORIZON}", "drive.holdout=0.5"]).write(folder.config)
    store = store_of(folder.rollouts, PICTURES, picture_episode)
    torch.manual_seed(0)
    vision, world, spec = VAE(4), MDNRNN(4, 3, 8, 2), ControllerSpec(4, 8, 3)
    vision.save(folder.vision)
    world.save(folder.memory)
    save_controller(folder.controller, spec, torch.zeros(spec.num_params))
    record(folder.metrics)
    digests = publish(folder)
    folder.film.write_bytes(b"not a real film")
    write_json(folder.film.with_suffix(".json"), digests)
    latents = LatentCache(vision, store, torch.device("cpu"))
    held, rest = [latents.read(1), latents.read(3)], [latents.read(0)]
    mix = controller_mix(torch.ones(4), torch.zeros(3, 4), count=24)

    def real(params, generation):
        return params.sum(1, keepdim=True).expand(-1, 2)

    write_json(folder.scores, {
        "how": {part: {"models": digests} for part in ("controller", "memory", "correlation")}
        | {"random": {}, "baselines": {}},
        "controller": scores_of(600.0),
        "random": scores_of(-50.0),
        "baselines": {"a peer": scores_of(40.0) | {"learnt_from": 3000}, "another": {"missing": "install it"}},
        "memory": model_errors(world.finished(), held, rest),
        "correlation": dream_real_correlation(lambda p, g: real(p, g) + p[:, :1], real, mix, resamples=100),
    })  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def whole_page(whole_run):
    return write_report(whole_run).read_text(encoding="utf-8")


def draw_only(draw, folder, name):
    draw(figures.LIGHT)
    return name


@pytest.fixture
def copied(whole_run, tmp_path, monkeypatch):
    """A run folder of its own to damage, without a report; its figures are drawn but, for speed, not written."""
    monkeypatch.setattr(figures, "save", draw_only)
    root = tmp_path / "run"
    shutil.copytree(whole_run.root, root, ignore=shutil.ignore_patterns("report"))
    return RunFolder(root)


def text_of(html):
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


def test_the_page_of_a_whole_run_misses_nothing(whole_page):
    assert "Not here yet" not in whole_page


def test_every_file_the_page_names_lies_beside_it(whole_run, whole_page):
    names = set(re.findall(r'(?:src|srcset)="([^"]+)"', whole_page))
    assert {
        "controller.mp4",
        "returns.png",
        "road-and-promise.png",
        "road-and-promise-dark.png",
        "originals.png",
    } <= names
    for name in names:
        assert (whole_run.report / name).stat().st_size > 0, name


def test_the_page_needs_no_network(whole_page):
    assert not re.search(r"https?://|//\w", whole_page)


def test_the_page_heads_with_how_the_score_came_about(whole_page):
    text = text_of(whole_page)
    for words in (
        "602.5 real score, ± 1.9 over 6 real episodes",
        "−47.5 random policy",
        "42.5 a peer, ± 1.9 over the same episodes, learnt from 3,000 real frames",
        "3,000 real frames learnt from",
        "4.5 minutes",
        "Trained in dreams alone; the last round is published, whatever it scored; scored on 6 real episodes that no "
        "choice saw. Learnt from 3,000 real frames in 4.5 minutes; 1,500 more were driven for scores alone.",
    ):
        assert words in text, words
    assert text.index("602.5 real score") < text.index("Does what is learnt in the dream hold for real?")
    assert "some &lt;run&gt;" in whole_page


def test_the_table_of_rounds_holds_the_record(whole_page):
    text = text_of(whole_page)
    assert "0 1,000 1.5 100.0 ± 4.0 – – – – – – – –" in text
    assert "1 2,000 3.0 – 10.0 8.0 4.0 2.00 0.50 0.750 – 30.0" in text
    assert "2 · published 3,000 4.5 102.0 ± 4.0 20.0 8.0 4.0 2.00 0.50 0.750 – 30.0" in text


def test_the_page_says_where_the_time_went(whole_page):
    text = text_of(whole_page)
    assert "drive 1 min 30 s (60.0 %), dream 57.0 s (38.0 %), bookkeeping 3.0 s (2.0 %): 2 min 30 s in all" in text
    assert "Bookkeeping takes 2.0 % of the median round; a generation dreams 1,200 steps/s" in text


def test_a_choice_by_score_is_said():
    published = {
        "trained_in": "real", "chosen": "best", "judged_rounds": 5, "judged": {"episodes": 8}, "judged_frames": 0,
        "learning_frames": 12_000, "minutes": 90.0,
    }  # fmt: skip
    said = page.how_scored(published, 100)
    assert said.startswith(
        "Trained in the real environment; the best of 5 rounds judged on 8 real episodes each is pub"
    )
    assert "12,000 real frames in 90.0 minutes" in said
    assert "not scored on its own episodes yet" in page.how_scored(published, None)


@pytest.mark.parametrize("stem", ["road-and-promise", "calibration", "learning-vision", "learning-controller", "times"])
def test_plots_come_in_both_themes(whole_run, whole_page, stem):
    light, dark = (imread(whole_run.report / f"{stem}{suffix}.png") for suffix in ("", "-dark"))
    assert light.shape == dark.shape
    for picture, theme in ((light, figures.LIGHT), (dark, figures.DARK)):
        surface = [round(255 * float(value)) for value in picture[0, 0, :3]]
        assert "#" + "".join(f"{value:02x}" for value in surface) == theme.surface
        assert (picture != picture[0, 0]).any(), "something is drawn"


def lines_of(axes):
    """What an axes' lines show, by their names."""
    shown = {line.get_label(): (line.get_xdata(), line.get_ydata()) for line in axes.lines}
    bars = {group.get_label(): group.lines[0] for group in axes.containers if hasattr(group, "lines")}
    return shown | {name: (line.get_xdata(), line.get_ydata()) for name, line in bars.items()}


def drawn(draw):
    return draw(figures.LIGHT).axes


def test_road_and_promise_stand_over_the_same_real_frames(whole_run):
    rows = read_metrics(whole_run.metrics / "metrics.jsonl")
    final = figures.FinalScore(3000, 602.5, 0.5, 6)
    above, below = drawn(figures.road_and_promise(rows, horizon=HORIZON, random=-47.5, baselines={"a peer": 42.5}, final=final))
    assert above.get_shared_x_axes().joined(above, below)
    shown, promise = lines_of(above), lines_of(below)
    for name, x, y in (
        ("judged score ± standard error", [1000, 3000], [100, 102]),
        ("mean of the candidates, exploring", [2000, 3000], [10, 20]),
        ("best candidate driven", [2000, 3000], [20, 40]),
        ("published: 602 over 6 episodes", [3000], [602.5]),
    ):
        assert np.array_equal(shown[name], [x, y]), name
    assert set(shown["random policy"][1]) == {-47.5}
    assert set(shown["a peer"][1]) == {42.5}
    assert np.array_equal(promise["the dream promised"], [[2000, 3000], [8, 8]])
    assert np.array_equal(promise["it was paid"], [[2000, 3000], [4, 4]])
    assert f"the next {HORIZON} decisions" in below.get_title(loc="left")


def test_judged_scores_carry_their_standard_errors(whole_run):
    rows = read_metrics(whole_run.metrics / "metrics.jsonl")
    above, _ = drawn(figures.road_and_promise(rows))
    (group,) = (group for group in above.containers if group.get_label().startswith("judged"))
    segments = group.lines[2][0].get_segments()
    assert [(low[1], high[1]) for low, high in segments] == [(96, 104), (98, 106)]


def test_without_a_forecast_the_score_stands_alone(whole_run):
    rows = [row for row in read_metrics(whole_run.metrics / "metrics.jsonl") if row["stage"] in ("judge", "round")]
    (above,) = drawn(figures.road_and_promise(rows))
    assert "it was paid" not in lines_of(above)


def test_nothing_driven_and_nothing_judged_is_refused():
    with pytest.raises(ValueError, match="no candidate has been driven"):
        figures.road_and_promise([{"stage": "round", "round": 0, "step": 0, "learning_frames": 100}])


def test_calibration_has_a_line_for_every_late_round(whole_run):
    rows = read_metrics(whole_run.metrics / "metrics.jsonl")
    newest, paths = drawn(figures.calibration_by_horizon(rows, rounds=2))
    assert np.array_equal(lines_of(newest)["promised"], [[1, 2, HORIZON], [2, 4, 2 * HORIZON]])
    assert np.array_equal(lines_of(newest)["paid"], [[1, 2, HORIZON], [1, 2, HORIZON]])
    assert list(lines_of(paths)) == ["promise kept", "round 1", "round 2"]
    assert np.array_equal(lines_of(paths)["round 2"], [[1, 2, HORIZON], [2, 4, 2 * HORIZON]])
    assert list(lines_of(drawn(figures.calibration_by_horizon(rows, rounds=1))[1])) == ["promise kept", "round 2"]


def test_learning_sets_training_held_out_and_new_side_by_side(whole_run):
    rows = read_metrics(whole_run.metrics / "metrics.jsonl")
    panels = figures.learning_panels(rows, "memory")
    assert panels == {
        "nll per dimension": {
            "training": ([0, 1, 2], [0.5] * 3),
            "held out": ([0, 1, 2], [0.625] * 3),
            "new": ([1, 2], [0.75] * 2),
        }
    }
    assert list(figures.learning_panels(rows, "vision")) == ["error", "kl"], "what is measured most often comes first"


def test_shares_of_time_fill_a_round(whole_run):
    shares = figures.time_shares(read_metrics(whole_run.metrics / "metrics.jsonl"))
    assert list(shares) == ["drive", "dream", "bookkeeping"]
    assert {name: share.tolist() for name, share in shares.items()} == {
        "drive": [30 / 50] * 3, "dream": [19 / 50] * 3, "bookkeeping": [1 / 50] * 3,
    }  # fmt: skip


def test_what_was_not_finite_leaves_gaps():
    values = figures.column([{"x": 1.0}, {"x": None}, {}], "x")
    assert values[0] == 1.0
    assert np.isnan(values[1:]).all()
    rows = [{"stage": "controller", "round": 0, "step": 1, "mean": None, "std": None, "best": 1.0}]
    left, right = drawn(figures.evolution(rows))
    assert np.isnan(lines_of(left)["mean ± spread of the candidates"][1]).all()
    assert np.isnan(right.lines[0].get_ydata()).all()


def test_dimensions_that_vary_most_are_drawn():
    real = np.arange(5.0)[:, None] * np.array([1.0, 0.0, 3.0])
    first, second = drawn(figures.dimensions(np.arange(5), {"real": real, "dream": real + 1.0}, most=2))
    assert [axes.get_title(loc="left") for axes in (first, second)] == ["dimension 2", "dimension 0"]
    assert np.array_equal(lines_of(first)["dream"][1], 3.0 * np.arange(5) + 1.0)


def test_pictures_show_the_recorded_frames(whole_run, whole_page):
    store = RolloutStore.open(whole_run.rollouts, create=False)
    row = imread(whole_run.report / "originals.png")
    assert row.shape == (64, 10 * 64 + 9 * 3, 4)
    first = np.round(row[:, :64, :3] * 255)
    frames = np.concatenate([store.read(index).observations for index in (1, 3, 5)])
    assert (frames == first).all(axis=(1, 2, 3)).any()
    assert (row[:, 64:67, 3] == 0).all(), "the gap between pictures is transparent"


def test_a_film_strip_begins_with_the_recorded_frame(tmp_path):
    torch.manual_seed(1)
    store = store_of(tmp_path, PICTURES, picture_episode, 1)
    vision = VAE(4).eval()
    strip = pictures.film_strip(vision, MDNRNN(4, 3, 8, 2).finished(), store, 0, start=5)
    recorded = store.read(0)
    assert strip.ahead == [0, 1, 2, 4, 7, 10, 15]
    assert np.array_equal(strip.rows["real"], recorded.observations[5:])
    assert strip.rewards["real"] == recorded.rewards[5:].astype(np.float64).sum()
    with torch.inference_mode():
        mu, _ = vision.encode(torch.from_numpy(recorded.observations[5:6]))
        (begin,) = pictures.as_seen(vision.decode(mu), True)
    for name in ("dream, most likely", "dream, drawn"):
        assert strip.rows[name].shape == strip.rows["real"].shape
        one_rounding_step = np.abs(strip.rows[name][0].astype(int) - begin) <= 1
        assert one_rounding_step.all(), name


def test_a_film_strip_follows_any_kind_of_world_model(tmp_path):
    store = store_of(tmp_path, VECTORS, vector_episode, 1)
    strip = pictures.film_strip(Identity(3), Drifting(3, 3), store, 0, start=2, steps=4)
    wanted = vector_episode(0).observations[2] + np.arange(5.0)[:, None]
    assert np.array_equal(strip.rows["dream, drawn"], wanted)
    assert strip.rewards["dream, drawn"] == 8.0
    assert np.array_equal(strip.rows["V's view of it"], vector_episode(0).observations[2:7])


def test_a_film_strip_s_dream_stops_where_it_ends(tmp_path):
    store = store_of(tmp_path / "store", PICTURES, picture_episode, 1)
    vision, world = VAE(4).eval(), Drifting(4, 3)
    world.ends_at = float(LatentCache(vision, store, torch.device("cpu")).read(0).mu[0, 0]) + 2.5
    strip = pictures.film_strip(vision, world, store, 0, start=0)
    assert strip.lengths == {"real": 24, "V's view of it": 24, "dream, most likely": 3, "dream, drawn": 3}
    assert strip.rewards["dream, drawn"] == 6.0
    pictures.save_row(strip.rows["dream, drawn"][:6], tmp_path / "row.png", shown=4)
    shown = imread(tmp_path / "row.png")[0, ::67, 3]
    assert shown.tolist() == [1, 1, 1, 1, 0, 0]


def test_a_run_that_has_only_begun_gets_a_page(tmp_path):
    resolve("smoke").write(tmp_path / "config.toml")
    text = text_of(write_report(RunFolder(tmp_path)).read_text())
    assert "score, correlation, memory: the published policy is not scored yet" in text
    assert "nothing is published yet" in text
    assert "road and promise: no candidate has been driven yet, and no round judged" in text
    assert "progress, times: no round has ended yet" in text


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(MissingRunError, match=r"no config\.toml"):
        write_report(RunFolder(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_a_run_that_goes_on_shows_what_it_has(copied):
    shutil.rmtree(copied.models)
    copied.scores.unlink()
    copied.film.unlink()
    html = write_report(copied).read_text()
    text = text_of(html)
    assert "102.0 real score of round 2, ± 8.0 over 4 real episodes" in text
    assert "3,000 real frames learnt from so far" in text
    assert f"round 3 of {ROUNDS}" in text
    assert "nothing is published yet" in text
    assert "film: no film has been recorded yet" in text
    assert {"road-and-promise.png", "calibration.png", "learning-memory.png"} <= set(re.findall(r'src="([^"]+)"', html))


def test_scores_and_film_of_other_models_are_not_shown(copied):
    save_controller(copied.controller, ControllerSpec(4, 8, 3), torch.ones(ControllerSpec(4, 8, 3).num_params))
    publish(copied)
    text = text_of(write_report(copied).read_text())
    assert "602.5" not in text
    assert "score, film, correlation, memory: those there are of models that are no longer published" in text


def test_scores_half_taken_name_what_is_to_come(copied):
    scores = read_json(copied.scores)
    write_json(copied.scores, {"how": scores["how"], "controller": scores["controller"]})
    text = text_of(write_report(copied).read_text())
    assert "score: the random policy is not scored yet" in text
    assert "memory: M has not been measured on held-out episodes" in text


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("scores.json", "score, correlation, memory"),
        ("models/published.json", "score, "),
        ("models/vision.safetensors", "strips, reconstructions"),
        ("rollouts/index.jsonl", "strips, reconstructions"),
    ],
)
def test_a_damaged_file_is_named_and_costs_its_part_alone(copied, name, part):
    (copied.root / name).write_text("{ cut")
    html = write_report(copied).read_text()
    (line,) = re.findall(rf"<li>({part}[^:]*: [^<]*)</li>", html)
    assert str(copied.root / name) in line
    assert "road-and-promise.png" in html
    assert "Rounds" in html


def test_a_damaged_record_leaves_the_rows_that_are_whole(copied):
    path = copied.metrics / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-40] + b"\xff\xfe")
    text = text_of(write_report(copied).read_text())
    assert "1 2,000 3.0 – 10.0 8.0" in text
    assert "2 · published 3,000 – 102.0 ± 4.0" in text


def test_a_damaged_configuration_is_refused_by_name(tmp_path):
    write_text(tmp_path / "config.toml", "[env\ntask =")
    with pytest.raises(CorruptFileError, match=r"config\.toml: not valid TOML"):
        write_report(RunFolder(tmp_path))


def test_a_folder_of_the_first_edition_is_refused(tmp_path):
    write_text(tmp_path / "manifest.json", "{}")
    with pytest.raises(RunMismatchError, match="first edition"):
        write_report(RunFolder(tmp_path))


def test_a_place_that_cannot_be_written_is_a_storage_error(copied, monkeypatch):
    def full(*_arguments):
        raise StorageError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(figures, "save", full)
        with pytest.raises(StorageError, match="no space"):
            write_report(copied)
    shutil.rmtree(copied.report)
    write_text(copied.report, "a file in its place")
    with pytest.raises(StorageError, match="report"):
        write_report(copied)


def test_unknown_kinds_of_models_cost_their_pictures_alone(copied):
    text = copied.config.read_text().replace('kind = "evolution"', 'kind = "nobody.knows_it"')
    write_text(copied.config, text)
    html = write_report(copied).read_text()
    assert re.search(r"<li>strips, reconstructions: [^<]*nobody\.knows_it", html)
    assert "602.5" in html


def test_a_kind_of_model_that_fails_costs_its_pictures_alone(copied, monkeypatch):
    def fails(self, z):
        raise NotImplementedError("it decodes nothing")

    monkeypatch.setattr(VAE, "decode", fails)
    html = write_report(copied).read_text()
    assert "<li>strips, reconstructions: NotImplementedError: it decodes nothing</li>" in html


def test_observations_without_pictures_are_said_to_have_none(copied):
    shutil.rmtree(copied.rollouts)
    spaces = Spaces(Codes((2, 2), 3), PICTURES.actions)
    store = RolloutStore.open(copied.rollouts, spaces)
    for index in range(3):
        episode = picture_episode(index)
        store.append(Episode(np.zeros((25, 2, 2), np.int32), episode.actions, episode.rewards, False, True, index, "x"))
    html = write_report(copied).read_text()
    assert "<li>strips, reconstructions: there is no picture of Codes(shape=(2, 2), count=3)</li>" in html


def test_a_learner_without_generations_gets_curves(copied):
    path = copied.metrics / "metrics.jsonl"
    rows = [line for line in path.read_text().splitlines() if '"controller"' not in line]
    write_text(path, "\n".join(rows) + "\n")
    with Recorder(copied.metrics) as recorder:
        for step in (1, 2):
            recorder.log("controller", step, 0, actor_loss=1.0 / step)
    assert "learning-controller.png" in write_report(copied).read_text()


@pytest.mark.slow
def test_a_run_of_vectors_and_discrete_actions_gets_a_page(tmp_path):
    """The loop itself, on an environment of the tests' own: what it records is what the report reads."""
    changes = [
        "env.task=envs.counter_task", 'vision={kind="identity"}', "env.max_frames=20", "drive.first_frames=20",
        "drive.episodes=4", "judge.horizon=2", "judge.real_frames=20",
    ]  # fmt: skip
    run_loop(tmp_path / "run", resolve("smoke", changes))
    html = write_report(RunFolder(tmp_path / "run")).read_text()
    assert set(re.findall(r"<li>([^:]*):", html)) == {"reconstructions", "learning of V"}
    assert "strip-0.png" in html
    assert "road-and-promise.png" in html
