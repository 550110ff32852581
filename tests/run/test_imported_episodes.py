"""One's own episodes: read from .npz and video, refused in words, and learnt from with no environment at all."""

from __future__ import annotations

import numpy as np
import pytest

from wm_engine.cli import main
from wm_engine.data.store import RolloutStore
from wm_engine.errors import ConfigError, CorruptFileError
from wm_engine.files import read_json
from wm_engine.real.scoring import write_mp4
from wm_engine.run.folder import RunFolder
from wm_engine.run.imported_episodes import import_episodes
from wm_engine.spaces import Box, Discrete, Pixels, Spaces, Vector


def walk(ends=(0, 0, 1, 0, 2), **changes):
    """Two episodes of 3 and 2 steps on vectors; ``changes`` replace arrays, None leaves one out."""
    rng = np.random.default_rng(0)
    arrays = {
        "observations": rng.normal(size=(len(ends) + 2, 2)),
        "actions": np.array([0, 1, 2, 1, 0])[: len(ends)],
        "rewards": np.arange(float(len(ends))),
        "ends": np.array(ends),
    }
    return {name: array for name, array in (arrays | changes).items() if array is not None}


@pytest.fixture
def saved(tmp_path):
    def save(name="walk.npz", **arrays):
        np.savez(tmp_path / name, **arrays)
        return tmp_path / name

    return save


def test_episodes_stand_in_the_store_as_they_were(saved, tmp_path):
    arrays = walk()
    assert import_episodes([saved(**arrays)], tmp_path / "run") == 2
    store = RolloutStore.open(tmp_path / "run" / "rollouts", create=False)
    assert store.spaces == Spaces(Vector(2), Discrete(3))
    first, second = store.read(0), store.read(1)
    np.testing.assert_array_equal(first.observations, arrays["observations"][:4].astype(np.float32))
    np.testing.assert_array_equal(second.observations, arrays["observations"][4:].astype(np.float32))
    np.testing.assert_array_equal(np.concatenate([first.actions, second.actions]), arrays["actions"])
    np.testing.assert_array_equal(np.concatenate([first.rewards, second.rewards]), arrays["rewards"])
    assert [(one.terminated, one.truncated) for one in (first, second)] == [(True, False), (False, True)]


def test_real_actions_reach_as_far_as_those_that_occur(saved, tmp_path):
    actions = np.array([[0.0, -1.0], [0.5, 2.0], [0.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    import_episodes([saved(**walk(actions=actions))], tmp_path / "run")
    store = RolloutStore.open(tmp_path / "run" / "rollouts", create=False)
    assert store.spaces.actions == Box((0.0, -1.0), (1.0, 2.0))


def test_a_video_with_its_actions(saved, tmp_path):
    for name in ("a", "b"):
        with write_mp4(tmp_path / f"{name}.mp4", 10) as write:
            for shade in (0, 80, 160, 240):
                write(np.full((96, 96, 3), shade, np.uint8))
        saved(f"{name}.npz", actions=np.array([0, 1, 3]), rewards=np.zeros(3))
    assert import_episodes([tmp_path / "a.mp4", tmp_path / "b.mp4"], tmp_path / "run", actions=5) == 2
    store = RolloutStore.open(tmp_path / "run" / "rollouts", create=False)
    assert store.spaces == Spaces(Pixels(), Discrete(5))
    shades = store.read(1).observations.astype(float).mean((1, 2, 3))
    assert (np.diff(shades) > 50).all()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rewards": np.zeros(4)}, r"walk.npz: rewards is float64 \[4\], but should be of 5 rows, for 5 actions"),
        ({"rewards": None}, "walk.npz: lacks 'rewards'; it holds actions, ends, observations"),
        ({"actions": np.zeros((5, 2, 2))}, r"actions is float64 \[5, 2, 2\], but should be whole numbers \[T\]"),
        ({"actions": np.array([0, 1, -1, 0, 0])}, r"actions is int64 \[5\], but should be whole numbers from 0"),
        ({"ends": np.full(5, 3)}, r"ends is int64 \[5\], but should be \[T\] of 0, 1"),
        ({"observations": np.zeros((5, 2))}, "observations has 5 rows, but should have 7: for 5 actions in 2 episodes"),
        (
            {"observations": np.full((7, 2), np.nan)},
            "observations is .*should be finite, but 14 of its entries are not",
        ),
        ({"observations": None}, "lacks both 'frames' and 'observations'"),
        (
            {"frames": np.zeros((7, 8, 8))},
            r"frames is float64 \[7, 8, 8\], but should be uint8 \[N, height, width, 3\]",
        ),
    ],
)
def test_arrays_that_disagree_are_refused_by_name(saved, tmp_path, changes, said):
    with pytest.raises(CorruptFileError, match=said):
        import_episodes([saved(**walk(**changes))], tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_files_that_disagree_are_refused_by_name(saved, tmp_path):
    files = [saved(**walk()), saved("other.npz", **walk(observations=np.zeros((7, 3))))]
    with pytest.raises(
        CorruptFileError, match=r"other.npz: observations are float32 \[N, 3\], but should be .*walk.npz"
    ):
        import_episodes(files, tmp_path / "run")


def test_what_is_no_video_is_refused(saved, tmp_path):
    (tmp_path / "film.mp4").write_bytes(b"no film")
    saved("film.npz", actions=np.array([0, 1]), rewards=np.zeros(2))
    with pytest.raises(CorruptFileError, match=r"film.mp4: cannot be read as a video"):
        import_episodes([tmp_path / "film.mp4"], tmp_path / "run")


def test_a_video_without_actions_is_refused(tmp_path, capsys):
    (tmp_path / "film.mp4").write_bytes(b"")
    assert main(["import-data", str(tmp_path / "film.mp4"), "--run", str(tmp_path / "run")]) == 2
    assert "film.mp4: a video needs its actions: film.npz beside it" in capsys.readouterr().err


def test_what_is_no_file_of_arrays_is_refused(tmp_path):
    (tmp_path / "bad.npz").write_bytes(b"no zip")
    for name, said in (
        ("bad.npz", "not a .npz file of plain arrays"),
        ("none.npz", "no such file"),
        ("a.txt", "must be"),
    ):
        with pytest.raises(CorruptFileError, match=said):
            import_episodes([tmp_path / name], tmp_path / "run")


def test_one_episode_is_too_few_and_a_folder_in_use_is_left_alone(saved, tmp_path):
    with pytest.raises(ConfigError, match="hold 1 episode, but must hold at least 2"):
        import_episodes([saved(**walk(ends=(0, 0, 1), observations=np.zeros((4, 2))))], tmp_path / "run")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("dear")
    with pytest.raises(ConfigError, match="holds something already"):
        import_episodes([saved(**walk())], tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_the_loop_learns_from_them_with_no_environment(saved, tmp_path, capsys):
    file = saved(**walk())
    small = ["rounds=1", "memory.hidden=4", "memory.mixtures=1", "memory.first_steps=2", "memory.batch_size=2"]
    small += ["controller.dream_generations=1", "controller.population=4", "controller.dream_steps=2"]
    options = [part for change in small for part in ("--set", change)]
    root = tmp_path / "run"
    assert main(["import-data", str(file), "--run", str(root), *options]) == 0
    assert main(["train", "--run", str(root)]) == 0
    assert "there is no environment to score in" in capsys.readouterr().out
    folder = RunFolder(root)
    assert folder.vision.exists()
    assert folder.memory.exists()
    assert read_json(folder.scores).keys() == {"memory", "how", "published"}
    assert (folder.report / "index.html").exists()
