"""Episodes driven many at once: their ends, what is recorded of them, and the same results on a fleet."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fleets import PickledFleet
from toy_env import TOY, ToyEnv

from wm_engine.data.store import RolloutStore
from wm_engine.envs import EnvSettings, make_env
from wm_engine.models.mdn_rnn import MDNRNN
from wm_engine.models.vae import VAE
from wm_engine.policies.controller import Controllers, ControllerSpec
from wm_engine.real import driving
from wm_engine.real.agent import Agent
from wm_engine.real.driving import EpisodeBatch, PolicyDriver, Runners, VectorRunner, drive
from wm_engine.real.exploration import PlannedActions
from wm_engine.spaces import Discrete, Spaces


class Constant:
    """Gives every lane the same action, and remembers whom it was asked for."""

    def __init__(self, action):
        self.action, self.asked = np.array(action, dtype=np.float32), []

    def act(self, observations, lanes):
        self.asked.append((observations.copy(), lanes.copy()))
        return np.tile(self.action, (len(lanes), 1))


class InTurn:
    """Gives first actions in turn, the same to all lanes."""

    def __init__(self, *firsts):
        self._firsts = iter(firsts)

    def act(self, observations, lanes):
        actions = np.zeros((len(lanes), 3), np.float32)
        actions[:, 0] = next(self._firsts)
        return actions


# The loop


def test_lanes_drive_to_their_own_ends():
    env, policy, seen = ToyEnv(4), Constant([0.5, 0.25, 0.0]), []
    trajectories = drive(env, policy, [10, 13, 11], lambda *step: seen.append(step))
    assert [t.seed for t in trajectories] == [10, 13, 11]
    assert [t.steps for t in trajectories] == [t.frames for t in trajectories] == [4, 7, 5]
    for t in trajectories:
        assert t.terminated
        assert not t.truncated
        assert not t.failed
        assert t.rewards.tolist() == [0.5] * (t.steps - 1) + [-100.0]  # the fatal step, with its own reward
        assert t.total_reward == 0.5 * (t.steps - 1) - 100.0
        assert t.actions.shape == (t.steps, 3)
        assert (t.actions.dtype, t.rewards.dtype) == (np.float32, np.float32)
    assert [lanes.tolist() for _, lanes in policy.asked] == [[0, 1, 2]] * 4 + [[1, 2]] + [[1]] * 2
    # What a policy and an observer see of a step are the frames before it; the step holds those after.
    for (lanes, frames, _, step), (shown, asked) in zip(seen, policy.asked, strict=True):
        assert (lanes == asked).all()
        assert (frames == shown).all()
        assert (frames[:, 0, 0, 0] == np.array([10, 13, 11])[lanes]).all()
        assert (step.observations[:, 0, 0, 1] == frames[:, 0, 0, 1] + 7).all()


def test_a_limit_of_frames_truncates():
    (t,) = drive(ToyEnv(1, max_frames=2), Constant([0.0, 0.0, 0.0]), [3])
    assert (t.steps, t.frames, t.terminated, t.truncated) == (2, 2, False, True)


@pytest.mark.parametrize(("repeat", "steps"), [(1, 8), (2, 4), (3, 3), (4, 2), (100, 1)])
def test_a_repeated_action_counts_its_frames(repeat, steps):
    """Rewards are summed over them; the last decision lasts as long as its episode does."""
    (t,) = drive(ToyEnv(1, action_repeat=repeat), Constant([0.5, 0.0, 0.0]), [4])  # 8 frames
    assert (t.steps, t.frames, t.terminated) == (steps, 8, True)
    assert t.total_reward == 0.5 * 7 - 100.0
    first = min(repeat, 8)
    assert t.rewards[0] == 0.5 * first if first < 8 else -96.5
    (t,) = drive(ToyEnv(1, max_frames=5, action_repeat=repeat), Constant([0.5, 0.0, 0.0]), [4])
    assert (t.steps, t.frames, t.truncated) == (-(-5 // repeat), 5, True)
    assert t.total_reward == 2.5


def test_actions_are_recorded_as_the_environment_took_them():
    (t,) = drive(ToyEnv(1), Constant([-9.0, 9.0, 0.25]), [0])
    assert t.actions.tolist() == [[-1.0, 1.0, 0.25]] * 4


def test_lost_patience_truncates():
    firsts = [1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    (t,) = drive(ToyEnv(1), InTurn(*firsts), [4], patience=3)  # rewards 1 0 0 1 0 0 0 | 0
    assert (t.steps, t.terminated, t.truncated) == (7, False, True)
    (t,) = drive(ToyEnv(1), InTurn(*firsts), [4])
    assert (t.steps, t.terminated, t.truncated) == (8, True, False)


@pytest.mark.parametrize(("patience", "frames"), [(1, 4), (2, 4), (3, 6), (4, 6), (5, 8), (0, 8)])
def test_patience_is_counted_in_frames(patience, frames):
    """Each decision lasts two: after the first, which pays, lost patience is seen at the end of a decision."""
    (t,) = drive(ToyEnv(1, action_repeat=2), InTurn(1.0, 0.0, 0.0, 0.0), [4], patience=patience)
    assert (t.frames, t.steps) == (frames, frames // 2)
    assert t.terminated == (frames == 8)
    assert t.truncated == (frames < 8)


def test_lost_patience_ends_its_own_lane():
    class FirstLaneIdles:
        def act(self, observations, lanes):
            actions = np.zeros((len(lanes), 3), np.float32)
            actions[:, 0] = lanes > 0
            return actions

    idle, busy = drive(ToyEnv(2), FirstLaneIdles(), [4, 4], patience=3)
    assert (idle.frames, idle.truncated) == (3, True)
    assert (busy.frames, busy.terminated) == (8, True)


def test_a_patience_of_less_than_nothing_is_refused():
    with pytest.raises(ValueError, match="patience must be at least 0, but was -1"):
        drive(ToyEnv(1), Constant([0.0, 0.0, 0.0]), [4], patience=-1)


def test_a_non_finite_action_fails_its_lane_and_no_other():
    class Sick:
        def act(self, observations, lanes):
            actions = np.full((len(lanes), 3), 0.5, dtype=np.float32)
            actions[lanes == 1, 2] = np.nan
            return actions

    well, sick = drive(ToyEnv(2), Sick(), [3, 4])
    assert (well.failed, sick.failed) == (False, True)
    assert sick.steps == 8
    assert (sick.actions == 0).all()
    (alone,) = drive(ToyEnv(1), Constant([0.5, 0.5, 0.5]), [3])
    assert (well.actions == alone.actions).all()


class Chooser(ToyEnv):
    """The toy with three actions to choose from; the second one pays."""

    def __init__(self, num_lanes):
        super().__init__(num_lanes, task=replace(TOY, spaces=Spaces(TOY.spaces.observations, Discrete(3)), squash=()))
        self.taken = []

    def _step(self, actions, lanes):
        assert actions.dtype == np.int32
        self.taken.append(actions.tolist())
        return super()._step((actions == 1)[:, None].astype(np.float32), lanes)


def test_of_discrete_actions_the_largest_is_taken_and_recorded():
    env = Chooser(2)
    trajectories = drive(env, Constant([0.1, 0.7, 0.2]), [10, 11])
    assert env.taken == [[1, 1]] * 4 + [[1]]
    for t in trajectories:
        assert t.actions.tolist() == [[0.0, 1.0, 0.0]] * t.steps
        assert t.rewards.tolist() == [1.0] * (t.steps - 1) + [-100.0]


# Batches, their recordings, and fleets

ENV = EnvSettings(task="real.toy_task", num_envs=4)


@pytest.fixture(scope="module")
def agent() -> Agent:
    torch.manual_seed(0)
    return Agent(VAE(4), MDNRNN(latent=4, action=3, hidden=6, mixtures=3))


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> list[ToyEnv]:
    made: list[ToyEnv] = []

    def make(settings: EnvSettings, lanes: int, max_frames: int) -> ToyEnv:
        made.append(ToyEnv(lanes, max_frames, settings.repeat))
        return made[-1]

    monkeypatch.setattr(driving, "make_env", make)
    return made


class Planned:
    """Makes random plans the drivers of a batch."""

    def __init__(self, first: int, count: int) -> None:
        self._episodes = range(first, first + count)

    def __call__(self, env: Any, agent: Any) -> PlannedActions:
        return PlannedActions(env.task, env.action_repeat, 5, self._episodes, env.max_frames, 0)


def controllers(count: int, candidates: list[int]) -> Controllers:
    spec = ControllerSpec(latent=4, hidden=6, action=3, features="zh", squash=("tanh", "sigmoid", "sigmoid"))
    params = torch.randn(count, spec.num_params, generator=torch.Generator().manual_seed(1))
    return Controllers(spec, params, torch.tensor(candidates))


def batches(driven_by: str, frames: int = 7, patience: int = 5) -> list[EpisodeBatch]:
    """Ten episodes, all of them recorded but the fourth."""
    found = []
    for first in range(0, 10, 4):
        count = min(4, 10 - first)
        policy = controllers(10, list(range(first, first + count)))
        driver = PolicyDriver(policy, count) if driven_by == "policy" else Planned(first, count)
        recorded = tuple(lane for lane in range(count) if first + lane != 3)
        found.append(EpisodeBatch(list(range(20 + first, 20 + first + count)), driver, frames, patience, recorded))
    return found


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def stored(path: Path, agent: Agent, driven_by: str, fleet: PickledFleet | None, env: EnvSettings = ENV) -> Any:
    """Drive the batches into a store; gives back all trajectories."""
    store = RolloutStore.open(path, TOY.spaces, chunk_steps=3)

    def writers(batch: EpisodeBatch) -> Any:
        return {lane: store.writer(batch.seeds[lane], "test") for lane in batch.recorded}

    with contextlib.closing(Runners(env, agent, fleet)) as runners:
        return [one for driven in runners.drive(batches(driven_by), writers) for one in driven]


def test_every_recorded_episode_is_as_it_was_driven(tmp_path: Path, toys: list[ToyEnv], agent: Agent) -> None:
    env = ENV.model_copy(update={"action_repeat": 2})
    driven = stored(tmp_path, agent, "plans", None, env)
    store = RolloutStore.open(tmp_path)
    wanted = [trajectory for number, trajectory in enumerate(driven) if number != 3]
    assert len(store) == len(wanted) == 9
    for index, trajectory in enumerate(wanted):
        episode, info = store.read(index), store.info(index)
        assert info.seed == trajectory.seed
        assert (info.steps, info.frames) == (trajectory.steps, trajectory.frames)
        assert info.frames <= min(7, ToyEnv.length(info.seed))
        assert (info.terminated, info.truncated) == (trajectory.terminated, trajectory.truncated)
        assert np.array_equal(episode.actions, trajectory.actions)
        assert np.array_equal(episode.rewards, trajectory.rewards)
        # Frame t shows the sum of the actions before it: frames, actions and rewards stand at the right steps.
        shown = episode.observations[:, 0, 0].astype(int)
        at = np.minimum(2 * np.arange(info.steps + 1), info.frames)
        sums = np.concatenate([[0.0], np.cumsum(np.diff(at) * episode.actions.sum(axis=1), dtype=np.float64)])
        assert (shown[:, 0] == info.seed % 251).all()
        assert (shown[:, 1] == at * 7).all()
        assert (np.abs(shown[:, 2] - np.abs(sums * 50) % 256) <= 1).all()
    assert all(env.closed for env in toys)


@pytest.mark.parametrize("driven_by", ["plans", "policy"])
@pytest.mark.parametrize("workers", [1, 2, 5])
def test_a_fleet_leaves_the_same_store_and_trajectories(
    tmp_path: Path, toys: list[ToyEnv], agent: Agent, driven_by: str, workers: int
) -> None:
    env = ENV.model_copy(update={"action_repeat": 2})
    alone = stored(tmp_path / "alone", agent, driven_by, None, env)
    fleet = PickledFleet(workers)
    shared = stored(tmp_path / "shared", agent, driven_by, fleet, env)
    assert fleet.tasks == [3]
    assert contents(tmp_path / "shared") == contents(tmp_path / "alone")
    for ours, theirs in zip(shared, alone, strict=True):
        assert np.array_equal(ours.actions, theirs.actions)
        assert np.array_equal(ours.rewards, theirs.rewards)
        assert (ours.seed, ours.frames, ours.failed) == (theirs.seed, theirs.frames, theirs.failed)


def test_environments_are_kept_from_batch_to_batch(toys: list[ToyEnv], agent: Agent) -> None:
    runner = VectorRunner(ENV, agent)
    for count, frames in ((2, 7), (1, 7), (2, 9), (3, 7), (2, 7)):
        runner.drive(EpisodeBatch(list(range(count)), Planned(0, count), frames))
    # One for each limit; a wider one takes the place of a narrower one, which is ended.
    assert [(env.num_lanes, env.max_frames) for env in toys] == [(2, 7), (2, 9), (3, 7)]
    assert [env.closed for env in toys] == [True, False, False]
    runner.close()
    assert all(env.closed for env in toys)


@pytest.mark.parametrize("workers", [None, 2])
def test_another_agent_acts_in_the_same_environments(toys: list[ToyEnv], agent: Agent, workers: int | None) -> None:
    torch.manual_seed(1)
    other = Agent(VAE(4), MDNRNN(latent=4, action=3, hidden=6, mixtures=3))
    fleet = None if workers is None else PickledFleet(workers)
    with contextlib.closing(Runners(ENV, agent, fleet)) as runners, contextlib.closing(Runners(ENV, other)) as fresh:
        first = next(iter(runners.drive(batches("policy")[:1])))
        made = len(toys)
        assert runners.use(other) is runners
        second = next(iter(runners.drive(batches("policy")[:1])))
        if workers is None:
            assert len(toys) == made
        want = next(iter(fresh.drive(batches("policy")[:1])))
    assert all(np.array_equal(ours.actions, theirs.actions) for ours, theirs in zip(second, want, strict=True))
    assert not all(np.array_equal(ours.actions, theirs.actions) for ours, theirs in zip(second, first, strict=True))


def test_a_policy_needs_an_agent(toys: list[ToyEnv]) -> None:
    with pytest.raises(ValueError, match="the runner has no agent"):
        VectorRunner(ENV).drive(batches("policy")[0])


@pytest.mark.parametrize("backend", ["envpool", "gymnasium"])
def test_real_frames_come_back_bit_for_bit(tmp_path: Path, backend: str) -> None:
    if backend == "envpool":
        pytest.importorskip("envpool")
    settings = EnvSettings(num_envs=2, backend=backend)
    store = RolloutStore.open(tmp_path, settings.found().spaces, chunk_steps=2)
    batch = EpisodeBatch([3, 4], Planned(0, 2), 14, 0, (0, 1))

    def writers(batch: EpisodeBatch) -> Any:
        return {lane: store.writer(batch.seeds[lane], "test") for lane in batch.recorded}

    with contextlib.closing(Runners(settings)) as runners:
        (driven,) = runners.drive([batch], writers)
    with contextlib.closing(make_env(settings, 1, 14)) as again:
        for index in range(2):
            episode = store.read(index)
            assert (len(episode.rewards), episode.frames, driven[index].frames) == (4, 14, 14)
            frames = [again.reset([episode.seed])[0]]
            for action, reward in zip(episode.actions, episode.rewards, strict=True):
                step = again.step(action[None])
                frames.append(step.observations[0])
                assert step.rewards[0] == reward
            assert np.array_equal(np.stack(frames), episode.observations)
            assert (episode.truncated, episode.terminated) == (True, False)
