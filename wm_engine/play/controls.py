"""Keys and buttons for any space of actions: what the page shows, worked out where it can be tested."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from wm_engine.spaces import Actions, Discrete

# As browsers name keys by their place (KeyboardEvent.code): for actions of two ways, and for those of one.
_PAIRS = (
    *(("ArrowLeft", "ArrowRight"), ("ArrowDown", "ArrowUp"), ("KeyA", "KeyD"), ("KeyS", "KeyW")),
    *(("KeyJ", "KeyL"), ("KeyK", "KeyI"), ("KeyF", "KeyH"), ("KeyG", "KeyT")),
)
_SINGLES = ("ArrowUp", "ArrowDown", "KeyW", "KeyS", "KeyD", "KeyA", "KeyI", "KeyK", "KeyL", "KeyJ")
_ARROWS = {2: ("ArrowLeft", "ArrowRight"), 3: ("ArrowLeft", "ArrowDown", "ArrowRight")}


@dataclass(frozen=True)
class Button:
    """A button, on the keyboard and on the page: while it is held, ``action[index]`` is ``value``.

    keys : KeyboardEvent codes; () where keys have run out
    """

    label: str
    keys: tuple[str, ...]
    index: int
    value: float


@dataclass(frozen=True)
class Controls:
    """What steers an action float [A].

    names, low, high : of its A entries
    buttons : what may be held
    idle : the action while nothing is held
    stays : the last action stays on instead, since there is none that does nothing
    one_hot : only one entry is 1, that of the button pressed last
    """

    names: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    buttons: tuple[Button, ...]
    idle: tuple[float, ...]
    stays: bool
    one_hot: bool

    def plain(self) -> dict[str, Any]:
        """Return everything as JSON-able values."""
        return asdict(self)


def controls_of(actions: Actions, names: tuple[str, ...] = ()) -> Controls:
    """Choose keys and buttons for a space of actions; ``names`` are the task's for its A entries, () where it has none.

    A box: the idle value of an entry is the one nearest to 0, and a key leads to each bound that differs from it. An
    entry of two ways takes a pair of keys, the arrows first. Discrete actions have the digits, and with two or three of
    them the arrows too. With three the middle one is idle, with more the first, as is the custom of gymnasium's
    environments; of two the last one chosen stays on.
    """
    low, high = (tuple(map(float, bound)) for bound in actions.bounds)
    named = names or tuple(f"action {index + 1}" for index in range(actions.size))
    if isinstance(actions, Discrete):
        resting = 1 if actions.count == 3 else 0
        idle = tuple(float(index == resting) for index in range(actions.count))
        buttons = tuple(
            Button(named[index], _discrete_keys(index, actions.count), index, 1.0) for index in range(actions.count)
        )
        return Controls(named, low, high, buttons, idle, stays=actions.count == 2, one_hot=True)
    idle = tuple(float(np.clip(0.0, *bounds)) for bounds in zip(low, high, strict=True))
    return Controls(named, low, high, _box_buttons(named, low, high, idle), idle, stays=False, one_hot=False)


def _discrete_keys(index: int, count: int) -> tuple[str, ...]:
    digit = (f"Digit{(index + 1) % 10}",) if index < 10 else ()
    return (*((_ARROWS[count][index],) if count in _ARROWS else ()), *digit)


def _box_buttons(
    names: tuple[str, ...], low: tuple[float, ...], high: tuple[float, ...], idle: tuple[float, ...]
) -> tuple[Button, ...]:
    buttons: list[Button] = []
    taken: set[str] = set()
    for index, name in enumerate(names):
        ways = [(sign, bound) for sign, bound in (("−", low[index]), ("+", high[index])) if bound != idle[index]]
        if len(ways) == 2:
            keys: tuple[str, ...] = next((pair for pair in _PAIRS if not taken & set(pair)), ())
        else:
            keys = next(((key,) for key in _SINGLES if key not in taken), ())
        taken.update(keys)
        for place, (sign, bound) in enumerate(ways):
            label = f"{name} {sign}" if len(ways) == 2 else name
            buttons.append(Button(label, keys[place : place + 1], index, bound))
    return tuple(buttons)
