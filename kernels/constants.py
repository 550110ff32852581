"""What the dream's kernels know when they are compiled, in two groups: :class:`Sizes` and :class:`Switches`.

A kernel takes such a group as one ``tl.constexpr`` and hands it on to its device functions, which read
``sizes.value.HP``. That is the form that every supported Triton takes, compiled and interpreted. Values of a launch
cannot be grouped so: a tuple of tensors as an argument, of kernels or of device functions, came with Triton 3.3, and
3.2 is the oldest (``docs/gpu.md``). They stay arguments of their own, in one order, see ``wm_engine.kernels.dream``.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from types import SimpleNamespace
from typing import Any

import triton.language as tl


@dataclass(frozen=True, eq=False, repr=False)
class Constants:
    """Holds a subclass's fields so that ``constants.value.NAME`` is what Triton wants of a constant named NAME.

    A compiler wraps what it is given and unwraps it by ``.value``, which leaves this itself. Its fields are each a
    ``tl.constexpr``, which Triton 3.2 and 3.3 do not make of attributes. The interpreter wraps nothing, and comes by
    the property below: it wants plain numbers.
    """

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, tl.constexpr(getattr(self, field.name)))

    @property
    def value(self) -> SimpleNamespace:
        """The fields as plain numbers and words."""
        return SimpleNamespace(**{field.name: getattr(self, field.name).value for field in fields(self)})

    # Triton tells compiled kernels apart by the text of their constants, and up to 3.8 makes names of it.
    def __repr__(self) -> str:
        return "_".join(f"{name}_{value}" for name, value in vars(self.value).items())

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and repr(self) == repr(other)

    def __hash__(self) -> int:
        return hash(repr(self))


@dataclass(frozen=True, eq=False, repr=False)
class Sizes(Constants):
    """Sizes of M, of the controllers and of the kernels' blocks: the same in all launches of an engine.

    latent, actions, hidden_units : Z, A, U
    HP, XP, UP : columns of h, of [z, a] and of the controllers' hidden layer, rounded up; UP is 0 of linear ones
    FEATURES : what the controllers see: 1 (z), 2 (z, h) or 3 (z, h, c); 0 where actions are given in their place
    ARGMAX : whether actions are one-hot, in place of squashed
    SHARED : whether all latent dimensions have one mixture
    RESIDUAL : whether the mixture is of z' - z, in place of z'
    CONTROL : columns of the head's control block
    ROWS : rollouts a tile
    UNITS : of M's hidden units, how many a chunk takes
    DIMS : of the latent dimensions, how many the head makes at a time
    DEPTH : how many of h's columns the head's products load at a time; HP: all, kept
    SPAN : how many features a controller's product loads at a time
    STAGES : of the gates' weights, how many chunks are on their way
    DOT : how products are made, see :func:`wm_engine.kernels.maths.add_product`
    """

    latent: Any
    actions: Any
    hidden_units: Any
    HP: Any
    XP: Any
    UP: Any
    FEATURES: Any
    ARGMAX: Any
    SHARED: Any
    RESIDUAL: Any
    CONTROL: Any
    ROWS: Any
    UNITS: Any
    DIMS: Any
    DEPTH: Any
    SPAN: Any
    STAGES: Any
    DOT: Any


@dataclass(frozen=True, eq=False, repr=False)
class Switches(Constants):
    """What kind of dream a launch makes.

    GREEDY : temperature 0: the likeliest component's mean
    SAMPLE_DONE : whether an episode's end is drawn, in place of found by its logit's sign
    SURVIVAL : whether a step is worth 1, in place of M's reward
    COMMON : whether all candidates have the same random numbers
    RECORD : whether latents, actions and rewards are kept
    STRIDED : whether the episodes are some of the whole's: first, first + stride, ...
    """

    GREEDY: Any
    SAMPLE_DONE: Any
    SURVIVAL: Any
    COMMON: Any
    RECORD: Any
    STRIDED: Any
