"""What both backends promise, held against each of them."""

import logging
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import wm_engine.envs as envs
from wm_engine.envs import EnvSettings, find_task, make_env
from wm_engine.errors import MissingDependencyError, WorkerError
from wm_engine.spaces import Box, Pixels, Spaces

HAS_ENVPOOL = envs.backends()["envpool"] is None
BACKENDS = [
    pytest.param("envpool", marks=pytest.mark.skipif(not HAS_ENVPOOL, reason="EnvPool has no wheel for this machine")),
    "gymnasium",
]


@pytest.fixture
def make():
    opened = []

    def factory(backend, lanes, max_frames=None, action_repeat=1, **settings):
        opened.append(
            make_env(EnvSettings(backend=backend, action_repeat=action_repeat, **settings), lanes, max_frames)
        )
        return opened[-1]

    yield factory
    for env in opened:
        env.close()


def actions_for(lanes, steer=0.0, gas=0.2, brake=0.0):
    return np.tile(np.array([[steer, gas, brake]], dtype=np.float32), (lanes, 1))


def drive(env, seeds, steps, gas=0.2):
    """Observations [steps+1, n, ...] and rewards [steps, n] of all lanes under one action."""
    observations, rewards = [env.reset(seeds)], []
    for _ in range(steps):
        step = env.step(actions_for(len(seeds), gas=gas))
        observations.append(step.observations)
        rewards.append(step.rewards)
    return np.stack(observations), np.stack(rewards)


@pytest.mark.parametrize("backend", BACKENDS)
def test_shapes_types_and_bounds(make, backend):
    env = make(backend, 3)
    assert env.backend == backend
    assert (env.num_lanes, env.max_frames, env.action_repeat) == (3, 1000, 1)
    assert env.task is find_task("car_racing")
    assert env.spaces == Spaces(Pixels(), Box((-1.0, 0.0, 0.0), (1.0, 1.0, 1.0)))
    first = env.reset([4, 5])
    assert (first.shape, first.dtype) == ((2, 64, 64, 3), np.uint8)
    step = env.step(actions_for(2))
    assert (step.observations.shape, step.observations.dtype) == ((2, 64, 64, 3), np.uint8)
    assert (step.frames.tolist(), step.frames.dtype) == ([1, 1], np.int32)
    assert (step.rewards.shape, step.rewards.dtype) == ((2,), np.float32)
    assert (step.terminated.dtype, step.truncated.dtype) == (np.bool_, np.bool_)
    assert not step.ended.any()
    picture = env.render(1)
    assert picture.dtype == np.uint8
    assert picture.shape[2] == 3


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_episode_depends_on_its_seed_alone(make, backend):
    together = drive(make(backend, 3, num_threads=2), [11, 12, 13], 8)
    env = make(backend, 2, num_threads=1)
    drive(env, [99, 98], 5)  # what ran before leaves no trace
    apart = drive(env, [13, 11], 8)
    for one, two in zip(together, apart, strict=True):
        assert (one[:, 2] == two[:, 0]).all()
        assert (one[:, 0] == two[:, 1]).all()
    assert not (together[0][:, 0] == together[0][:, 1]).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_lanes_left_out_stand_still(make, backend):
    env, alone = make(backend, 3), make(backend, 1)
    env.reset([1, 2, 3])
    for _ in range(4):
        env.step(actions_for(2), [2, 0])
    late = [env.step(actions_for(1, gas=gas), [1]) for gas in (0.0, 0.5, 1.0)]
    alone.reset([2])
    fresh = [alone.step(actions_for(1, gas=gas)) for gas in (0.0, 0.5, 1.0)]
    assert all(
        (one.observations == two.observations).all() and one.rewards == two.rewards
        for one, two in zip(late, fresh, strict=True)
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_answers_come_in_the_order_of_the_lanes(make, backend):
    env, ordered = make(backend, 4), make(backend, 4)
    env.reset([21, 22, 23, 24])
    ordered.reset([21, 22, 23, 24])
    gas = np.array([0.0, 0.3, 0.6, 1.0], dtype=np.float32)
    actions = actions_for(4)
    actions[:, 1] = gas
    for _ in range(12):
        plain = ordered.step(actions)
        lanes = np.array([3, 0, 2, 1])
        mixed = env.step(actions[lanes], lanes)
        assert (mixed.observations == plain.observations[lanes]).all()
        assert (mixed.rewards == plain.rewards[lanes]).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_limit_of_frames_truncates_and_nothing_restarts_by_itself(make, backend):
    env = make(backend, 2, max_frames=5)
    env.reset([1, 2])
    for step in range(1, 6):
        answer = env.step(actions_for(2))
        assert answer.truncated.tolist() == [step == 5] * 2
        assert not answer.terminated.any()
    with pytest.raises(ValueError, match=r"lanes \[0, 1\] have ended"):
        env.step(actions_for(2))
    env.reset([3])
    assert not env.step(actions_for(1)).ended.any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_repeated_action_is_the_same_action_given_again(make, backend):
    seeds, rng = [31, 32, 33], np.random.default_rng(0)
    repeated, plain = make(backend, 3, 30, action_repeat=4), make(backend, 3, 30)
    assert (repeated.reset(seeds) == plain.reset(seeds)).all()
    for decision in range(8):
        lanes = np.array([2, 0, 1])
        actions = (rng.random((3, 3)) * [2, 0.5, 0.1] - [1, 0, 0]).astype(np.float32)
        step = repeated.step(actions, lanes)
        singles = [plain.step(actions, lanes) for _ in range(4 if decision < 7 else 2)]
        assert step.frames.tolist() == [len(singles)] * 3
        assert (step.observations == singles[-1].observations).all()
        assert np.allclose(step.rewards, np.sum([one.rewards for one in singles], axis=0), atol=1e-5)
        assert step.truncated.tolist() == [decision == 7] * 3  # after 30 frames, in the middle of a repeat
        assert not step.terminated.any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_driving_off_the_field_terminates_with_minus_100(make, backend):
    # Straight on at half gas: the playfield ends after about 270 frames on every track.
    driven = []
    for repeat in (1, 4):
        env = make(backend, 1, action_repeat=repeat)
        env.reset([0])
        steps = [env.step(actions_for(1, gas=0.5))]
        while not steps[-1].ended[0]:
            steps.append(env.step(actions_for(1, gas=0.5)))
        assert steps[-1].terminated[0]
        assert not steps[-1].truncated[0]
        driven.append((sum(int(step.frames[0]) for step in steps), sum(float(step.rewards[0]) for step in steps)))
        assert len(steps) == -(-driven[-1][0] // repeat)
        if repeat == 1:
            assert steps[-1].rewards[0] == -100.0
    assert 200 < driven[0][0] < 350
    assert driven[0] == pytest.approx(driven[1], abs=1e-3)


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="counts threads in /proc")
@pytest.mark.parametrize("backend", BACKENDS)
def test_resets_leave_no_threads_and_files_behind(make, backend):
    env, counts = make(backend, 3, num_threads=2), []
    for seed in range(6):
        env.reset([seed, seed + 1, seed + 2])
        env.step(actions_for(3))
        counts.append((len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))))
    assert counts[1:] == counts[:1] * 5


@pytest.mark.parametrize("backend", BACKENDS)
def test_actions_are_clipped_to_their_bounds(make, backend):
    env = make(backend, 2)
    env.reset([5, 5])
    wild = np.array([[-3.0, 7.0, -2.0], [-1.0, 1.0, 0.0]], dtype=np.float32)
    for _ in range(30):
        step = env.step(wild)
    assert (step.observations[0] == step.observations[1]).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_bad_arguments_are_named_before_any_work(make, backend):
    env = make(backend, 2)
    for seeds, words in (([], "1 to 2"), ([1, 2, 3], "1 to 2"), ([-1], "at least 0"), ([2**31], "below 2\\^31")):
        with pytest.raises(ValueError, match=words):
            env.reset(seeds)
    with pytest.raises(TypeError, match=r"seeds\[0\]"):
        env.reset([0.5])
    with pytest.raises(ValueError, match="lanes"):
        env.step(actions_for(1), [0])  # no episode yet
    env.reset([1, 2])
    for actions, words in ((actions_for(1), r"\[2, 3\]"), (actions_for(2, gas=np.nan), "finite")):
        with pytest.raises(ValueError, match=words):
            env.step(actions)
    with pytest.raises(TypeError, match="floating numpy array, but was int64"):
        env.step(np.zeros((2, 3), dtype=np.int64))
    for lanes in ([0, 0], [2], [-1], [], [0.5]):
        with pytest.raises(ValueError, match="lanes"):
            env.step(actions_for(len(lanes)), lanes)
    assert not env.step(actions_for(2)).ended.any()


def test_close_twice(make):
    env = make("gymnasium", 1)
    env.close()
    env.close()
    with pytest.raises(ValueError, match="closed"):
        env.reset([1])


def test_without_envpool(monkeypatch, caplog):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(envs, "_logged", set())
    with pytest.raises(MissingDependencyError, match="pip install envpool"):
        make_env(EnvSettings(backend="envpool"), 1)
    with caplog.at_level(logging.INFO):
        assert [envs.choose_backend(EnvSettings()) for _ in range(2)] == ["gymnasium"] * 2
    assert [
        record.message.startswith("CarRacing-v3 runs on gymnasium: EnvPool is not") for record in caplog.records
    ] == [True]


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    # A worker that finds a Box2D which cannot be imported, as on a machine without gymnasium's extra.
    (tmp_path / "Box2D").mkdir()
    (tmp_path / "Box2D" / "__init__.py").write_text("raise ImportError('no Box2D here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(MissingDependencyError, match=r"gymnasium\[box2d\]"):
        make_env(EnvSettings(backend="gymnasium"), 1)


def test_workers_die_with_a_killed_parent():
    script = (
        "import sys; from wm_engine.envs import *; from wm_engine.envs.gymnasium_backend import GymnasiumEnv\n"
        "env = GymnasiumEnv(find_task('car_racing'), 2, 1000, 2); env.reset([1, 2])\n"
        "print(*[worker.pid for worker in env.workers], flush=True); sys.stdin.read()"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        parent.send_signal(signal.SIGKILL)
    assert len(pids) == 2
    deadline = time.monotonic() + 30
    while any(_alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_alive(pid) for pid in pids)


def _alive(pid):
    try:
        os.kill(pid, 0)
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"  # an orphan that nobody reaps is dead all the same
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_a_dead_worker_is_an_error_not_a_hang(make):
    env = make("gymnasium", 2, num_threads=2)
    env.reset([1, 2])
    os.kill(env.workers[1].pid, signal.SIGKILL)
    with pytest.raises(WorkerError, match="ended with status -9"):
        env.step(actions_for(2))
