"""The dream's first phase: what the controllers do, and with it what M is given next, [z, a].

Every rollout of a tile has a controller of its own, so that a layer's products are sums over a row. A controller is one
row of float32, packed by :meth:`wm_engine.kernels.launch.Controllers.pack`: the last layer's biases [XP], its
only layer's weights [A, N] or, with a hidden layer, that one's weights [U, N] and biases [UP] and the last layer's
weights [A, UP]. N counts the features: z in XP columns, h and c in HP each. Where actions are given in the controllers'
place, a row is a candidate's actions, of all steps one after another.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .maths import finite, sigmoid, tanh

SQUASHES = ("identity", "tanh", "sigmoid", "tanh01", "relu_tanh")
"""The number of a squash in the kernels is its place here."""


@triton.jit
def add_products(y, x, weights, width, first, outputs, COLUMNS: tl.constexpr):
    """Add W x to y: one weight matrix for each row.

    y [ROWS, COLUMNS], of which columns first, first + 1, ... take outputs 0, 1, ...; x [ROWS, N]; weights [ROWS, N]
    point at what x meets for output 0, ``width`` before output 1.
    """
    column = tl.arange(0, COLUMNS)[None, :]
    for output in range(0, outputs):
        w = tl.load(weights + output * width)
        y = tl.where(column == first + output, y + tl.sum(x * w, axis=1)[:, None], y)
    return y


@triton.jit
def add_layer(y, z, h, c, local, weights, first, outputs, COLUMNS: tl.constexpr, sizes: tl.constexpr):
    """Add a layer's products with the features z, h, c to y [ROWS, COLUMNS]; see :func:`add_products`.

    weights [ROWS, 1] point at the rows' matrices [outputs, N], whose rows begin with z's weights.
    """
    HP: tl.constexpr = sizes.value.HP
    XP: tl.constexpr = sizes.value.XP
    SPAN: tl.constexpr = sizes.value.SPAN
    width: tl.constexpr = XP + (sizes.value.FEATURES - 1) * HP
    span = tl.arange(0, SPAN)[None, :]
    for start in range(0, XP, SPAN):
        x = tl.load(z + start + (local[:, None] * XP + span))
        y = add_products(y, x, weights + start + span, width, first, outputs, COLUMNS)
    if sizes.value.FEATURES > 1:
        for start in range(0, HP, SPAN):
            x = tl.load(h + start + (local[:, None] * HP + span)).to(tl.float32)
            y = add_products(y, x, weights + XP + start + span, width, first, outputs, COLUMNS)
    if sizes.value.FEATURES > 2:
        for start in range(0, HP, SPAN):
            x = tl.load(c + start + (local[:, None] * HP + span))
            y = add_products(y, x, weights + XP + HP + start + span, width, first, outputs, COLUMNS)
    return y


@triton.jit
def outputs_of_controllers(z, h, c, local, index, controllers, sizes: tl.constexpr):
    """Make the controllers' outputs, before any squash, at the columns of [ROWS, XP] that actions have in [z, a]."""
    UP: tl.constexpr = sizes.value.UP
    XP: tl.constexpr = sizes.value.XP
    latent: tl.constexpr = sizes.value.latent
    actions: tl.constexpr = sizes.value.actions
    hidden_units: tl.constexpr = sizes.value.hidden_units
    features: tl.constexpr = XP + (sizes.value.FEATURES - 1) * sizes.value.HP
    if UP == 0:
        own = controllers + index * (XP + actions * features)
        a = tl.load(own + tl.arange(0, XP)[None, :])
        a = add_layer(a, z, h, c, local, own + XP, latent, actions, XP, sizes)
    else:
        own = controllers + index * (XP + hidden_units * features + UP + actions * UP)
        biases = own + XP + hidden_units * features
        unit = tl.arange(0, UP)[None, :]
        a = tl.load(own + tl.arange(0, XP)[None, :])
        y = tl.load(biases + unit)
        y = add_layer(y, z, h, c, local, own + XP, 0, hidden_units, UP, sizes)
        a = add_products(a, tanh(y), biases + UP + unit, UP, latent, actions, XP)
    return a


@triton.jit
def one_hot(a, is_action, XP: tl.constexpr):
    """Put 1 in place of each row's largest action (the first of equals) of a [ROWS, XP], and 0 elsewhere."""
    column = tl.arange(0, XP)[None, :]
    largest = tl.max(tl.where(is_action, a, float("-inf")), axis=1)[:, None]
    chosen = tl.min(tl.where(is_action & (a == largest), column, XP), axis=1)[:, None]
    return tl.where(column == chosen, 1.0, 0.0)


@triton.jit
def squashed(a, squash, XP: tl.constexpr):
    """Squash the columns of a [ROWS, XP], each as ``squash`` int32 [XP] numbers it."""
    kind = tl.load(squash + tl.arange(0, XP))[None, :]
    t = tanh(a)
    a = tl.where(kind == 2, sigmoid(a), tl.where(kind == 0, a, t))
    a = tl.where(kind == 3, 0.5 * (t + 1.0), a)
    return tl.where((kind == 4) & (t < 0.0), 0.0, a)


@triton.jit
def given_actions(controllers, index, step, max_steps, column, is_action, sizes: tl.constexpr):
    """Load the actions of step ``step``, at their columns of [ROWS, XP], from ``controllers`` [P, max_steps · A]."""
    of_candidate = controllers + index * (max_steps * sizes.value.actions)
    # A graph's steps go on beyond the last one, for nobody.
    at = tl.minimum(step, max_steps - 1) * sizes.value.actions + (column - sizes.value.latent)
    return tl.load(of_candidate + at, mask=is_action, other=0.0)


@triton.jit
def act(z, h, c, local, index, controllers, squash, step, max_steps, sizes: tl.constexpr):
    """Make what M is given next, [ROWS, XP] = [z, a], and whether the controllers' outputs are finite [ROWS].

    z, h, c point at the tile's state, of which ``local`` [ROWS] are the rows; index int32 [ROWS] names their
    controllers, or given actions (FEATURES is 0), of which step and max_steps say where they stand; squash int32 [XP]
    has each column's number in SQUASHES.
    """
    XP: tl.constexpr = sizes.value.XP
    latent: tl.constexpr = sizes.value.latent
    column = tl.arange(0, XP)[None, :]
    is_action = (column >= latent) & (column < latent + sizes.value.actions)
    index = index.to(tl.int64)[:, None]
    if sizes.value.FEATURES == 0:
        a = given_actions(controllers, index, step, max_steps, column, is_action, sizes)
        sound = tl.full((sizes.value.ROWS,), 1, dtype=tl.int32)
    else:
        a = outputs_of_controllers(z, h, c, local, index, controllers, sizes)
        sound = tl.min(tl.where(is_action, finite(a).to(tl.int32), 1), axis=1)
        a = one_hot(a, is_action, XP) if sizes.value.ARGMAX else squashed(a, squash, XP)
    return tl.where(is_action, a, tl.load(z + (local[:, None] * XP + column))), sound
