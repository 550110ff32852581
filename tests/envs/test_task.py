"""Tasks: how they are found, what they say of gymnasium's environments, and what they refuse."""

import contextlib
import subprocess
import sys
import textwrap

import gymnasium
import numpy as np
import pytest

from wm_engine.envs import EnvSettings, Task, backends, find_task, make_env, task_names
from wm_engine.envs.gymnasium_backend import GymnasiumEnv
from wm_engine.envs.worker_process import _WORKER
from wm_engine.errors import ConfigError, MissingDependencyError
from wm_engine.spaces import Box, Discrete, Pixels, Spaces, Vector

LINE = Spaces(Vector(2), Box((-1.0, 0.0), (1.0, 1.0)))


def opened(name, lanes=1, max_frames=None, **settings):
    return contextlib.closing(make_env(EnvSettings(task=name, **settings), lanes, max_frames))


# How a task is found


def test_every_task_of_the_package_is_found_by_its_name():
    assert "car_racing" in task_names()
    for name in task_names():
        task = find_task(name)
        assert task.name == name
        assert find_task(name) is task


def test_car_racing():
    task = find_task("car_racing")
    assert (task.env_id, task.backends) == ("CarRacing-v3", ("envpool", "gymnasium"))
    assert (task.action_repeat, task.max_frames, task.crop_rows) == (4, 1000, 84)
    assert (task.frames_per_second, task.solved) == (50, 900.0)
    assert task.squash == ("tanh", "sigmoid", "relu_tanh")


@pytest.mark.parametrize(
    ("name", "spaces", "frames", "squash"),
    [
        ("CartPole-v1", Spaces(Vector(4), Discrete(2)), 500, "argmax"),
        ("Pendulum-v1", Spaces(Vector(3), Box((-2.0,), (2.0,))), 200, ("tanh",)),
        (
            "CarRacing-v3",
            Spaces(Pixels(), Box((-1.0, 0.0, 0.0), (1.0, 1.0, 1.0))),
            1000,
            ("tanh", "sigmoid", "sigmoid"),
        ),
    ],
)
def test_a_registered_environment_is_described_by_itself(name, spaces, frames, squash):
    task = find_task(name)
    assert (task.name, task.env_id, task.spaces, task.backends) == (name, name, spaces, ("gymnasium",))
    assert (task.max_frames, task.action_repeat, task.squash) == (frames, 1, squash)


def test_a_vector_is_never_replaced_by_its_rendering():
    assert find_task("BipedalWalker-v3").spaces == Spaces(Vector(24), Box((-1.0,) * 4, (1.0,) * 4))


def test_a_task_of_ones_own():
    task = find_task("envs.counter_task")
    with opened("envs.counter_task", 2, num_threads=2) as env:
        assert env.reset([3, 4]).tolist() == [[3, 0, 0], [4, 0, 0]]
        step = env.step(np.array([[0, 1, 0], [0, 0, 1]], np.float32))
        assert env.task is task
        assert step.observations.tolist() == [[3, 3, 6], [4, 3, 7]]  # the environment counts its actions from 5
        assert step.rewards.tolist() == [18.0, 21.0]
        assert env.render(1).tolist() == np.full((4, 4, 3), 3).tolist()
        for frames in (3, 3, 1):  # over after 10, though the environment was registered with a limit of 8
            step = env.step(np.eye(3, dtype=np.float32)[:2])
            assert step.frames.tolist() == [frames] * 2
        assert step.terminated.all()
        assert not step.truncated.any()


def test_an_environment_that_its_module_registers():
    task = find_task("envs.counters:Counter-v0")
    assert (task.spaces, task.max_frames) == (Spaces(Vector(3), Discrete(3)), 8)
    with opened("envs.counters:Counter-v0") as env:
        env.reset([1])
        for frame in range(1, 9):
            step = env.step(np.eye(3, dtype=np.float32)[:1])
            assert step.truncated.tolist() == [frame == 8]


def test_vectors_are_gymnasiums_own():
    for name in ("CartPole-v1", "Pendulum-v1"):
        theirs = gymnasium.make(name)
        with opened(name, 3, 30) as env:
            ours, (shown, _) = env.reset([7, 8, 9]), theirs.reset(seed=8)
            assert (ours.shape, ours.dtype) == ((3, len(shown)), np.float32)
            assert (ours[1] == shown).all()
            rng = np.random.default_rng(0)
            for _ in range(30):
                actions = rng.standard_normal((3, env.spaces.actions.size)).astype(np.float32)
                given = int(actions[1].argmax()) if name == "CartPole-v1" else actions[1].clip(-2, 2)
                shown, reward, terminated, _, _ = theirs.step(given)
                step = env.step(actions[1:2], [1])
                assert (step.observations[0] == shown).all()
                assert step.rewards[0] == np.float32(reward)
                assert step.terminated[0] == terminated
                if step.ended[0]:
                    break
            assert step.ended[0]
        theirs.close()


@pytest.mark.skipif(backends()["envpool"] is not None, reason="EnvPool has no wheel for this machine")
def test_envpool_takes_vectors_and_discrete_actions(tmp_path, monkeypatch):
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / "cart.py").write_text(
        "from wm_engine.envs import Task\nfrom wm_engine.spaces import *\n"
        'task = Task("cart", "CartPole-v1", Spaces(Vector(4), Discrete(2)), ("envpool", "gymnasium"), 2, 500)\n'
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    lengths = []
    for backend in ("envpool", "gymnasium"):
        with opened("pool.cart", 16, backend=backend) as env:
            observations = env.reset(range(16))
            assert (env.backend, observations.shape, observations.dtype) == (backend, (16, 4), np.float32)
            lanes, frames, right = np.arange(16), np.zeros(16), np.eye(2, dtype=np.float32)[1]
            while len(lanes):
                step = env.step(np.tile(right, (len(lanes), 1)), lanes)
                frames[lanes] += step.frames
                lanes = lanes[~step.ended]
            lengths.append(frames.mean())
    assert lengths[0] == pytest.approx(lengths[1], abs=1.0)  # always right: over after 8 to 11 frames
    assert 8 < lengths[0] < 11


# Settings


def test_what_settings_leave_out_is_the_tasks_own():
    settings = EnvSettings()
    assert (settings.found(), settings.repeat, settings.frame_limit) == (find_task("car_racing"), 4, 1000)
    settings = EnvSettings(action_repeat=2, max_frames=300)
    assert (settings.repeat, settings.frame_limit) == (2, 300)
    assert "num_threads" not in settings.identity()
    with opened("envs.counter_task") as env:
        assert (env.action_repeat, env.max_frames) == (3, 20)
    with opened("envs.counter_task", max_frames=7, action_repeat=1) as env:
        assert (env.action_repeat, env.max_frames) == (1, 7)


@pytest.mark.parametrize("field", ["action_repeat", "max_frames", "num_envs"])
def test_impossible_settings_are_refused(field):
    with pytest.raises(ValueError, match=rf"{field}\n.*greater than or equal to 1"):
        EnvSettings(**{field: 0})


# Refusals


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("car_racng", r"env\.task must be .*'car_racng'.*Did you mean car_racing"),
        ("CartPol-v1", "Did you mean CartPole-v1"),
        ("CartPole-v77", "Did you mean CartPole-v1"),
        ("nowhere.task", "importable module with a task, but was 'nowhere.task'"),
        ("envs.nowhere", "but was 'envs.nowhere'"),
        ("", "but was ''"),
        (".car_racing", "but was '.car_racing'"),
        ("json.tool", "json.tool must have a wm_engine.envs.Task named task, but has None"),
    ],
)
def test_an_unknown_task_is_a_configuration_error(name, words):
    with pytest.raises(ConfigError, match=words):
        find_task(name)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Dict", r"observations must be pictures .* or one vector of floats, but are Dict\('x'"),
        ("Matrix", r"observations must be .* but are Box\(0.0, 1.0, \(2, 2\)"),
        ("Grey", r"observations must be pictures \(uint8 \[height, width, 3\]\).*\(8, 8, 1\)"),
        ("Integers", "observations must be .* uint8"),
        ("MultiDiscrete", r"actions must be one vector of bounded floats or .* but are MultiDiscrete\(\[2 3\]\)"),
        ("Unbounded", "actions must be one vector of bounded floats .*-inf"),
        ("Huge", "actions must be one vector of bounded floats .*1e"),
        ("Single", r"actions must be .* at least two discrete actions, but are Discrete\(1\)"),
        ("MatrixActions", r"actions must be one vector .*\(2, 2\)"),
    ],
)
def test_spaces_that_no_model_takes_are_refused_in_words(name, words):
    with pytest.raises(ConfigError, match=f"envs.counters:Odd{name}-v0: this environment cannot be used: its {words}"):
        find_task(f"envs.counters:Odd{name}-v0")


@pytest.mark.parametrize(
    ("env_id", "spaces"),
    [
        ("CartPole-v1", Spaces(Pixels(), Discrete(2))),
        ("CartPole-v1", Spaces(Vector(3), Discrete(2))),
        ("CartPole-v1", Spaces(Vector(4), Discrete(3))),
        ("CarRacing-v3", Spaces(Pixels(), Box((-1.0,) * 3, (1.0,) * 3))),
    ],
)
def test_a_task_that_says_other_than_its_environment_is_refused(env_id, spaces):
    with pytest.raises(ConfigError, match=rf"mine: the task says Spaces.*but {env_id} has Spaces"):
        GymnasiumEnv(Task("mine", env_id, spaces), 1, 10, 1)


def test_an_environment_that_is_not_registered_in_a_worker_is_named():
    with pytest.raises(ConfigError, match=r"mine: gymnasium knows no environment Nowhere-v0 .*register"):
        GymnasiumEnv(Task("mine", "Nowhere-v0", LINE), 1, 10, 1)


def test_a_backend_that_the_task_does_not_run_on_is_refused():
    with pytest.raises(ConfigError, match="CartPole-v1 runs on gymnasium only, not on EnvPool"):
        make_env(EnvSettings(task="CartPole-v1", backend="envpool"), 1)
    with pytest.raises(ValueError, match="backend must be one of 'auto', 'envpool', 'gymnasium', but was 'mujoco'"):
        make_env(EnvSettings(), 1, backend="mujoco")


def test_a_package_that_a_task_needs_is_named(tmp_path, monkeypatch):
    (tmp_path / "needy").mkdir()
    head = "from wm_engine.envs import Task\nfrom wm_engine.spaces import *\n"
    (tmp_path / "needy" / "registers.py").write_text(
        head + 'task = Task("registers", "X-v0", Spaces(Vector(1), Discrete(2)), extra="doom", register="no_doom.envs")'
    )
    (tmp_path / "needy" / "imports.py").write_text("import no_doom\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(MissingDependencyError, match=r"no module named no_doom.envs.*pip install 'wm-engine\[doom\]'"):
        find_task("needy.registers")
    with pytest.raises(MissingDependencyError, match=r"needy\.imports: this task needs a package .*no_doom"):
        find_task("needy.imports")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"backends": ()}, "backends must name at least one"),
        ({"backends": ("envpol",)}, "backends must be one of 'envpool', 'gymnasium'"),
        ({"reward": "points"}, "reward must be one of"),
        ({"squash": ("tanh",)}, "squash must be .* a word for each action"),
        ({"squash": "argmax"}, "squash must be"),
        ({"action_repeat": 0}, "action_repeat must be at least 1"),
        ({"max_frames": 0}, "max_frames must be at least 1"),
        ({"baselines": {"a": list, "b": list}, "peers": {"b": list}}, r"names of their own, but shared \['b'\]"),
        ({"baselines": {"random": list}}, r"names of their own, but shared \['random'\]"),
    ],
)
def test_fields_that_do_not_fit_are_named(fields, words):
    with pytest.raises(ValueError, match=words):
        Task("mine", "Mine-v0", LINE, **fields)


# Random actions


@pytest.mark.parametrize("name", ["car_racing", "CartPole-v1", "Pendulum-v1"])
def test_random_actions_fit_their_space_and_follow_from_the_generator(name):
    task = find_task(name)
    actions, again = (task.random_actions(np.random.default_rng(3), 50, 2) for _ in range(2))
    assert (actions.shape, actions.dtype) == ((50, task.spaces.actions.size), np.float32)
    assert (actions == again).all()
    assert (actions == task.spaces.actions.clip(actions)).all()
    assert len(np.unique(actions, axis=0)) > 1
    assert (actions != task.random_actions(np.random.default_rng(4), 50, 2)).any()
    with pytest.raises(ValueError, match="steps must be at least 1"):
        task.random_actions(np.random.default_rng(0), 0)


def test_a_plan_lasts_as_long_whatever_the_repeat():
    task = find_task("car_racing")
    plain = task.random_actions(np.random.default_rng(0), 400)
    assert (task.random_actions(np.random.default_rng(0), 100, 4) == plain[::4]).all()


def test_discrete_actions_are_held_for_a_while():
    draws = [
        Task("d", "D-v0", Spaces(Vector(1), Discrete(3))).random_actions(np.random.default_rng(i), 600)
        for i in range(60)
    ]
    changes = np.array([(plan[1:] != plan[:-1]).any(axis=1).mean() for plan in draws])
    assert np.mean(draws, axis=(0, 1)) == pytest.approx([1 / 3] * 3, abs=0.03)
    assert changes.min() < 0.06 < 0.4 < changes.max()


def test_a_random_car_gets_somewhere():
    task = find_task("car_racing")
    with opened("car_racing", 8, 200) as env:
        plans = [task.random_actions(np.random.default_rng(i), 50, 4) for i in range(8)]
        env.reset(range(8))
        lanes, paid = np.arange(8), np.zeros(8)
        for step in range(50):
            answer = env.step(np.stack([plans[lane][step] for lane in lanes]), lanes)
            paid[lanes] += answer.rewards
            lanes = lanes[~answer.ended]
            if not len(lanes):
                break
    assert paid.mean() > 5.0  # standing still pays -13


# What a worker is


def in_worker(code):
    """What ``code`` prints in a process that has the worker's module as ``worker``."""
    head = "import sys; sys.path.insert(0, sys.argv[1]); import gymnasium_worker as worker, numpy as np\n"
    command = [sys.executable, "-W", "ignore", "-c", head + textwrap.dedent(code), str(_WORKER.parent)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_a_worker_imports_neither_torch_nor_this_package():
    out = in_worker(
        """
        worker.describe("CarRacing-v3", "")
        lanes = worker.Lanes("CarRacing-v3", 9, None)
        lanes.reset({0: 1})
        lanes.close()
        print([name for name in ("torch", "wm_engine") if name in sys.modules])
        """
    )
    assert out == "[]\n"


@pytest.mark.parametrize("env_id", ["CarRacing-v3", "BipedalWalker-v3"])
def test_episodes_leave_no_bodies_behind(env_id):
    out = in_worker(
        f"""
        import gc
        lanes = worker.Lanes({env_id!r}, 100, None)
        size = worker.describe({env_id!r}, "")["actions"]["low"].size
        def bodies():
            gc.collect()
            return sum(type(one).__name__ == "b2Body" for one in gc.get_objects())
        for episode in range(30):
            lanes.reset({{0: episode, 1: episode}})
            lanes.step([0, 1], np.zeros((2, size), np.float32))
            if episode == 0:
                print(bodies())
        print(bodies())
        lanes.close()
        print(bodies())
        """
    )
    first, last, closed = map(int, out.split())
    assert 100 < first < 1000
    assert last == pytest.approx(first, rel=0.1)  # tracks differ a little
    assert closed == 0
