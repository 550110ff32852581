"""Keys and buttons for any space of actions."""

from __future__ import annotations

import pytest

from wm_engine.envs import find_task
from wm_engine.play.controls import controls_of
from wm_engine.spaces import Box, Discrete


def test_a_car_is_steered_with_the_arrows():
    task = find_task("car_racing")
    controls = controls_of(task.spaces.actions, task.action_names)
    assert [(button.label, button.keys, button.index, button.value) for button in controls.buttons] == [
        ("steer −", ("ArrowLeft",), 0, -1.0),
        ("steer +", ("ArrowRight",), 0, 1.0),
        ("gas", ("ArrowUp",), 1, 1.0),
        ("brake", ("ArrowDown",), 2, 1.0),
    ]
    assert controls.idle == (0.0, 0.0, 0.0)
    assert not controls.one_hot


@pytest.mark.parametrize(
    ("count", "idle", "stays", "keys"),
    [
        (2, 0, True, [("ArrowLeft", "Digit1"), ("ArrowRight", "Digit2")]),
        (3, 1, False, [("ArrowLeft", "Digit1"), ("ArrowDown", "Digit2"), ("ArrowRight", "Digit3")]),
        (4, 0, False, [("Digit1",), ("Digit2",), ("Digit3",), ("Digit4",)]),
    ],
)
def test_discrete_actions_have_digits_and_few_of_them_arrows(count, idle, stays, keys):
    controls = controls_of(Discrete(count))
    assert [button.keys for button in controls.buttons] == keys
    assert (controls.idle.index(1.0), sum(controls.idle), controls.stays) == (idle, 1.0, stays)


def test_the_idle_action_is_the_nearest_to_zero_within_the_bounds():
    controls = controls_of(Box((-2.0, 1.0, -3.0, -1.0), (0.0, 4.0, -2.0, 1.0)))
    assert controls.idle == (0.0, 1.0, -2.0, 0.0)
    assert [(button.index, button.value) for button in controls.buttons] == [
        *((0, -2.0), (1, 4.0), (2, -3.0), (3, -1.0), (3, 1.0))
    ]


@pytest.mark.parametrize("actions", [Box((-1.0,) * 20, (1.0,) * 20), Box((0.0,) * 20, (1.0,) * 20), Discrete(18)])
def test_no_key_does_two_things_and_every_action_has_a_button(actions):
    controls = controls_of(actions)
    keys = [key for button in controls.buttons for key in button.keys]
    assert len(keys) == len(set(keys))
    assert {button.index for button in controls.buttons} == set(range(actions.size))
    assert not {"KeyR", "KeyN", "KeyC", "Space"} & set(keys)  # the page's own
