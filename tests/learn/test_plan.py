"""Planning in a world whose rule is known: the best is found, a plan is kept for its steps, and lanes are their own."""

from __future__ import annotations

import pickle

import pytest
import torch
from models.drift import Drift

from wm_engine.errors import CorruptFileError
from wm_engine.files import save_tensors
from wm_engine.learn.base import learner_kind
from wm_engine.learn.plan import Plan, PlanningPolicy, PlanSettings
from wm_engine.policies.base import OnLanes
from wm_engine.run.config import ConfigError, make_config
from wm_engine.spaces import Box, Discrete, Spaces, Vector

BOX = Spaces(Vector(2), Box((-2.0, 0.0), (0.0, 1.0)))
CHOICES = Spaces(Vector(2), Discrete(3))


def planner(spaces=BOX, seed=0, **settings) -> PlanningPolicy:
    quick = {"horizon": 5, "candidates": 32, "elites": 4, "iterations": 6, "dreams": 1}
    return PlanningPolicy(PlanSettings(**(quick | settings)), spaces, "predicted", seed)


def world(action=2, **rule) -> Drift:
    return Drift(action=action, **rule).eval()


def act(policy, states, lanes=None):
    lanes = torch.arange(len(states)) if lanes is None else lanes
    return policy.act(torch.tensor(states, dtype=torch.float32), lanes)


@pytest.mark.parametrize(("price", "best"), [(1.0, 0.0), (-1.0, -2.0)])
def test_the_best_action_of_a_box_is_found_up_to_the_width_of_the_search(price, best):
    policy = planner()
    policy.begin(1, world(price=price))
    assert abs(float(act(policy, [[0.0, 0.0]])[0, 0]) - best) < 0.2


def test_an_end_is_planned_around():
    """Moving on pays, but the wall ends the dream with its last move, and staying pays too: the wall is not touched."""
    far, near = planner(CHOICES, horizon=6), planner(CHOICES, horizon=6)
    far.begin(1, world(3, price=1.0, bonus=1.0))
    near.begin(1, world(3, price=1.0, bonus=1.0, wall=0.5))
    state = [[0.0, 0.0]]
    assert act(far, state).tolist() == [[1.0, 0.0, 0.0]]
    # One hot action: the first moves by one, beyond the wall; the others stay.
    assert act(near, state)[0, 0] == 0.0


def test_a_plan_lasts_for_its_steps_and_the_next_begins_with_the_rest(monkeypatch):
    policy, begun = planner(every=3), []
    policy.begin(2, world())
    search = policy._plan
    monkeypatch.setattr(policy, "_plan", lambda lane, state: (begun.append(lane), search(lane, state)))
    for _ in range(4):
        act(policy, [[0.0, 0.0], [1.0, 1.0]])
    assert begun == [0, 1, 0, 1]
    kept = policy._plans[0].clone()
    act(policy, [[0.0, 0.0]], torch.tensor([0]))
    assert torch.equal(policy._plans[0, :-1], kept[1:])


def test_a_lane_plans_alike_alone_and_in_company():
    states = [[0.5, 0.5], [1.0, -1.0], [0.0, 2.0]]
    alone, together = planner(), planner()
    for policy in (alone, together):
        policy.begin(3, world())
    wanted = act(together, states)
    assert torch.equal(act(alone, states[1:2], torch.tensor([1])), wanted[1:2])


def test_new_episodes_forget_old_plans_and_other_lanes_stay_apart():
    policy = planner()
    everywhere = OnLanes.everywhere(policy, 2)
    everywhere.begin(2, world())
    first = act(everywhere, [[0.0, 0.0], [0.0, 0.0]])
    assert not torch.equal(first[0], first[1])  # lanes draw for themselves, though they are one policy
    everywhere.begin(2, world())
    assert torch.equal(act(everywhere, [[0.0, 0.0], [0.0, 0.0]]), first)


def test_a_hidden_state_is_planned_from():
    with_memory = world(hidden=3)
    policy = planner()
    policy.begin(1, with_memory)
    assert act(policy, [[0.0] * (2 + 3 + 3)]).shape == (1, 2)


def test_a_state_that_is_not_finite_spoils_its_own_row_alone():
    policy = planner()
    policy.begin(2, world())
    acted = act(policy, [[float("nan"), 0.0], [0.0, 0.0]])
    assert torch.isnan(acted[0]).all()
    assert torch.isfinite(acted[1]).all()


def test_a_planner_travels_without_its_engine_and_a_file_brings_it_back(tmp_path):
    policy = planner(seed=7)
    policy.begin(1, world())
    Plan(policy.settings, BOX, "predicted", 7).save_policy(tmp_path / "plan.safetensors", policy)
    again = (pickle.loads(pickle.dumps(policy)), Plan.load_policy(tmp_path / "plan.safetensors"))
    wanted = act(policy, [[0.0, 0.0]])
    for other in again:
        other.begin(1, world())
        assert torch.equal(act(other, [[0.0, 0.0]]), wanted)
    save_tensors(tmp_path / "other.safetensors", {"seed": torch.tensor(1)}, {"kind": "other"})
    with pytest.raises(CorruptFileError, match=r"other\.safetensors: not a planner"):
        Plan.load_policy(tmp_path / "other.safetensors")


def test_it_is_a_learner_that_is_found_by_name_and_its_settings_are_held_to():
    assert learner_kind("plan") is Plan
    with pytest.raises(ConfigError, match=r"controller.*elites: must be less than candidates \(8\), but was 8"):
        make_config({"controller": {"kind": "plan", "candidates": 8, "elites": 8}})
    with pytest.raises(ConfigError, match=r"every: must be at most horizon \(4\), but was 5"):
        make_config({"controller": {"kind": "plan", "horizon": 4, "every": 5}})
