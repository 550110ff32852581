"""Whole rollouts of a population in M: as one persistent kernel, and as two kernels a step for small populations.

    persistent   a program takes ROWS rollouts through all their steps:  act ─► cells ─► head, sample, settle ─┐
                                                                          ▲                                    │
                                                                          └────────────────────────────────────┘
    per step     advance_kernel [tiles, chunks of units]: cells;   settle_kernel [tiles]: head, sample, settle, act

Both are made of the same blocks, over the same tiles and chunks. A tile's state (h, c, z) lives in scratch memory, of
which a tile has its own rows: a program stores h' and z' and reads them back as operands of the next products, with a
barrier between, since another thread of the program may have stored what a thread reads. Two buffers of h take turns.
The weights of M stream through, in chunks that are read by every tile.

Letters: R rollouts, P candidates, E episodes, Z latent, H hidden, K mixtures, A actions, U hidden units of the
controller. HP, XP, ... are sizes rounded up to powers of two; everything beyond the true sizes is
zero in weights and scratch, and stays so.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .lstm import cell_chunk
from .maths import LOG2_E, add_product, exp, finite, inverse_cdf, sigmoid, tanh
from .philox import as_word, first_uniform, normals, uniforms

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
def layer(
    y, z, h, c, local, weights, first, outputs,
    HP: tl.constexpr, XP: tl.constexpr, FEATURES: tl.constexpr, COLUMNS: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """Add a layer's products with the features z, h, c to y [ROWS, COLUMNS]; see :func:`add_products`.

    weights [ROWS, 1] point at the rows' matrices [outputs, XP + (FEATURES - 1) HP], whose rows begin with z's weights.
    """
    width: tl.constexpr = XP + (FEATURES - 1) * HP
    span = tl.arange(0, SPAN)[None, :]
    for start in range(0, XP, SPAN):
        x = tl.load(z + start + (local[:, None] * XP + span))
        y = add_products(y, x, weights + start + span, width, first, outputs, COLUMNS)
    if FEATURES > 1:
        for start in range(0, HP, SPAN):
            x = tl.load(h + start + (local[:, None] * HP + span)).to(tl.float32)
            y = add_products(y, x, weights + XP + start + span, width, first, outputs, COLUMNS)
    if FEATURES > 2:
        for start in range(0, HP, SPAN):
            x = tl.load(c + start + (local[:, None] * HP + span))
            y = add_products(y, x, weights + XP + HP + start + span, width, first, outputs, COLUMNS)
    return y


@triton.jit
def act(
    z, h, c, local, index, layer_weights, layer_biases, last_weights, last_biases, squash,
    latent, actions, units, HP: tl.constexpr, XP: tl.constexpr, FEATURES: tl.constexpr, UP: tl.constexpr,
    ARGMAX: tl.constexpr, SPAN: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """What M is given next, [ROWS, XP] = [z, a], and whether the controller's outputs are finite [ROWS].

    z, h, c point at the tile's state, of which ``local [ROWS]`` are the rows; index int64 [ROWS, 1] names their
    controllers, packed by :meth:`wm_engine.kernels.launch.Controllers.pack`; squash int32 [XP] names each column's.
    """
    features: tl.constexpr = XP + (FEATURES - 1) * HP
    column = tl.arange(0, XP)[None, :]
    a = tl.load(last_biases + index * XP + column)
    if UP == 0:
        weights = layer_weights + index * (actions * features)
        a = layer(a, z, h, c, local, weights, latent, actions, HP, XP, FEATURES, XP, SPAN)
    else:
        unit = tl.arange(0, UP)[None, :]
        y = tl.load(layer_biases + index * UP + unit)
        weights = layer_weights + index * (units * features)
        y = layer(y, z, h, c, local, weights, 0, units, HP, XP, FEATURES, UP, SPAN)
        a = add_products(a, tanh(y), last_weights + index * (actions * UP) + unit, UP, latent, actions, XP)
    is_action = (column >= latent) & (column < latent + actions)
    sound = tl.min(tl.where(is_action, finite(a).to(tl.int32), 1), axis=1)
    if ARGMAX:
        largest = tl.max(tl.where(is_action, a, float("-inf")), axis=1)[:, None]
        chosen = tl.min(tl.where(is_action & (a == largest), column, XP), axis=1)[:, None]
        a = tl.where(column == chosen, 1.0, 0.0)
    else:
        kind = tl.load(squash + tl.arange(0, XP))[None, :]
        t = tanh(a)
        a = tl.where(kind == 2, sigmoid(a), tl.where(kind == 0, a, t))
        a = tl.where(kind == 3, 0.5 * (t + 1.0), a)
        a = tl.where((kind == 4) & (t < 0.0), 0.0, a)
    return tl.where(is_action, a, tl.load(z + (local[:, None] * XP + column))), sound


@triton.jit
def load_halves(h, HP: tl.constexpr):
    """The halves [ROWS, HP / 2] of the rows that h [ROWS, 1] points at."""
    column = tl.arange(0, HP // 2)[None, :]
    return tl.load(h + column), tl.load(h + HP // 2 + column)


@triton.jit
def outputs_of(
    h, high, weights, biases, block, HP: tl.constexpr, N: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr,
    DOT: tl.constexpr,
):  # fmt: skip
    """The head's outputs [ROWS, N] of one block of its packed weights [blocks, HP, N].

    h and high are the halves of h' [ROWS, HP / 2] where DEPTH is HP; otherwise h points at its rows [ROWS, 1], of which
    DEPTH columns are loaded at a time, and high is not used.
    """
    column = tl.arange(0, N)
    weights += block * (HP * N)
    y = tl.zeros((ROWS, N), dtype=tl.float32)
    if DEPTH == HP:
        k = tl.arange(0, HP // 2)
        y = add_product(y, h, tl.load(weights + (k[:, None] * N + column[None, :])), DOT)
        y = add_product(y, high, tl.load(weights + ((HP // 2 + k)[:, None] * N + column[None, :])), DOT)
    else:
        k = tl.arange(0, DEPTH)
        for first in range(0, HP, DEPTH):
            w = tl.load(weights + ((first + k)[:, None] * N + column[None, :]))
            y = add_product(y, tl.load(h + (first + k)[None, :]), w, DOT)
    return y + tl.load(biases + block * N + column)[None, :]


@triton.jit
def sharpness(temperature):
    """What differences of logits are multiplied with, of which 2^x is to be taken: 1 / (temperature log 2), finite."""
    return tl.minimum(LOG2_E / temperature, 3.0e38)


@triton.jit
def choose_shared(logits, u, temperature, mixtures, GREEDY: tl.constexpr, N: tl.constexpr):
    """The component [ROWS] of logits [ROWS, N], of which the first K count, by inverse CDF of u [ROWS]."""
    column = tl.arange(0, N)[None, :]
    logits = tl.where(column < mixtures, logits, float("-inf"))
    largest = tl.max(logits, axis=1)[:, None]
    if GREEDY:
        chosen = tl.min(tl.where(logits == largest, column, N), axis=1)
    else:
        p = tl.where(column < mixtures, tl.exp2((logits - largest) * sharpness(temperature)), 0.0)
        chosen = inverse_cdf(p / tl.sum(p, axis=1)[:, None], u, column, mixtures, 1)
    return tl.minimum(chosen, mixtures - 1)


@triton.jit
def sample_shared(
    h, high, value_weights, value_biases, chosen, group, mixtures,
    HP: tl.constexpr, ROWS: tl.constexpr, DIMS: tl.constexpr, DEPTH: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Mean and log standard deviation [ROWS, DIMS] of a group of latent dimensions, of the chosen component [ROWS]."""
    kept = tl.zeros((ROWS, 2 * DIMS), dtype=tl.float32)
    for k in range(0, mixtures):
        values = outputs_of(h, high, value_weights, value_biases, group * mixtures + k, HP, 2 * DIMS, ROWS, DEPTH, DOT)
        kept = tl.where((chosen == k)[:, None], values, kept)
    return tl.split(tl.reshape(kept, (ROWS, DIMS, 2)))


@triton.jit
def softmax_per_dim(
    h, high, choice_weights, choice_biases, temperature, group, mixtures,
    HP: tl.constexpr, GREEDY: tl.constexpr,
    ROWS: tl.constexpr, DIMS: tl.constexpr, DEPTH: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """The largest logit of each of a group's dimensions, and the sum of all beside it, [ROWS, DIMS]."""
    largest = tl.full((ROWS, DIMS), float("-inf"), dtype=tl.float32)
    total = tl.zeros((ROWS, DIMS), dtype=tl.float32)
    # Not loaded ahead, nor the logits before the values below: the addresses would not fit in the registers.
    for k in tl.range(0, mixtures, num_stages=1):
        logits = outputs_of(h, high, choice_weights, choice_biases, group * mixtures + k, HP, DIMS, ROWS, DEPTH, DOT)
        higher = tl.maximum(largest, logits)
        if not GREEDY:
            sharp = sharpness(temperature)
            total *= tl.exp2((largest - higher) * sharp)
            total += tl.exp2((logits - higher) * sharp)
        largest = higher
    return largest, total


@triton.jit
def sample_per_dim(
    h, high, choice_weights, choice_biases, value_weights, value_biases, largest, wanted, temperature, group, mixtures,
    HP: tl.constexpr, GREEDY: tl.constexpr,
    ROWS: tl.constexpr, DIMS: tl.constexpr, DEPTH: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """As :func:`sample_shared`, with a choice for every dimension, by inverse CDF.

    largest, wanted [ROWS, DIMS] : the largest logit, and what the sum beside it has to reach: u of all of it. The
    logits are made once more for that, since K blocks of them do not fit beside the rest.
    """
    mean = tl.zeros((ROWS, DIMS), dtype=tl.float32)
    log_std = tl.zeros((ROWS, DIMS), dtype=tl.float32)
    for k in range(0, mixtures):
        values = outputs_of(h, high, value_weights, value_biases, group * mixtures + k, HP, 2 * DIMS, ROWS, DEPTH, DOT)
        logits = outputs_of(h, high, choice_weights, choice_biases, group * mixtures + k, HP, DIMS, ROWS, DEPTH, DOT)
        k_mean, k_log_std = tl.split(tl.reshape(values, (ROWS, DIMS, 2)))
        if GREEDY:
            hit = logits == largest
        else:
            wanted -= tl.exp2((logits - largest) * sharpness(temperature))
            hit = wanted <= 0.0
        # A hit, or the last component; what is still wanted is infinite, and so out of reach, once one was found.
        take = (tl.where(hit, mixtures, k) >= mixtures - 1) & (wanted != float("inf"))
        wanted = tl.where(take, float("inf"), wanted)
        mean, log_std = tl.where(take, k_mean, mean), tl.where(take, k_log_std, log_std)
    return mean, log_std


@triton.jit
def imagine(
    h, z_out, local, record_z, alive, step, episode, candidate, key_low, key_high, temperature,
    control_weights, control_biases, choice_weights, choice_biases, value_weights, value_biases,
    latent, mixtures,
    HP: tl.constexpr, XP: tl.constexpr, CONTROL: tl.constexpr, SHARED: tl.constexpr, GREEDY: tl.constexpr,
    SAMPLE_DONE: tl.constexpr, SURVIVAL: tl.constexpr, RECORD: tl.constexpr,
    ROWS: tl.constexpr, DIMS: tl.constexpr, DEPTH: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """What M says of a state: gain, whether the episode ends, whether all is finite [ROWS].

    h [ROWS, 1] points at the rows of h'. The next latent goes to the tile's scratch z_out and, for the living where
    RECORD, to record_z [ROWS, 1].
    """
    high = h
    if DEPTH == HP:
        h, high = load_halves(h, HP)
    control = outputs_of(h, high, control_weights, control_biases, 0, HP, CONTROL, ROWS, DEPTH, DOT)
    column = tl.arange(0, CONTROL)[None, :]
    # The control block's columns: the logits of a shared mixture, reward, done logit.
    at_reward = mixtures if SHARED else 0
    reward = tl.sum(tl.where(column == at_reward, control, 0.0), axis=1)
    done_logit = tl.sum(tl.where(column == at_reward + 1, control, 0.0), axis=1)
    sound = (finite(reward) & finite(done_logit)).to(tl.int32)
    quads = (latent + 3) // 4
    if SAMPLE_DONE:
        ended = sigmoid(done_logit) > first_uniform(2 * quads, step, episode, candidate, key_low, key_high)
    else:
        ended = done_logit > 0.0

    rows_episode, rows_candidate = episode[:, None], candidate[:, None]
    if SHARED:
        u = first_uniform(quads, step, episode, candidate, key_low, key_high)
        chosen = choose_shared(control, u, temperature, mixtures, GREEDY, CONTROL)
    for group in range(0, tl.cdiv(latent, DIMS)):
        first = group * (DIMS // 4)
        if SHARED:
            mean, log_std = sample_shared(
                h, high, value_weights, value_biases, chosen, group, mixtures, HP, ROWS, DIMS, DEPTH, DOT
            )  # fmt: skip
        else:
            largest, wanted = softmax_per_dim(
                h, high, choice_weights, choice_biases, temperature, group, mixtures,
                HP, GREEDY, ROWS, DIMS, DEPTH, DOT,
            )  # fmt: skip
            if not GREEDY:
                wanted *= uniforms(
                    quads + first, step, rows_episode, rows_candidate, key_low, key_high, ROWS, DIMS // 4
                )
            mean, log_std = sample_per_dim(
                h, high, choice_weights, choice_biases, value_weights, value_biases, largest, wanted, temperature,
                group, mixtures, HP, GREEDY, ROWS, DIMS, DEPTH, DOT,
            )  # fmt: skip
        if GREEDY:
            z = mean
        else:
            log_std = tl.minimum(tl.maximum(log_std, -7.0), 7.0)
            noise = normals(first, step, rows_episode, rows_candidate, key_low, key_high, ROWS, DIMS // 4)
            z = mean + exp(log_std) * tl.sqrt(temperature) * noise
        dim = group * DIMS + tl.arange(0, DIMS)[None, :]
        there = dim < latent
        sound = sound & tl.min(tl.where(there, finite(z).to(tl.int32), 1), axis=1)
        tl.store(z_out + (local[:, None] * XP + dim), z, mask=there)
        if RECORD:
            tl.store(record_z + dim, z, mask=there & (alive != 0)[:, None])
    if SURVIVAL:
        reward = tl.full((ROWS,), 1.0, dtype=tl.float32)
    return reward, ended, sound


@triton.jit
def settle(total, length, alive, failed, gain, ended, sound):
    """Count a step: return, length, alive and failed [ROWS] after it."""
    living = alive != 0
    total = tl.where(living, total + gain, total)
    length += alive
    failed = tl.where(living & ((sound & finite(total).to(tl.int32)) == 0), 1, failed)
    alive = tl.where(ended | (failed != 0), 0, alive)
    return total, length, alive, failed


@triton.jit
def place(row, rows, episodes, first_candidate, COMMON: tl.constexpr):
    """Of rollouts ``row`` int32 [ROWS]: their controller's index, and the counter words of episode and candidate."""
    # Rows beyond the last stand in for it: they have scratch of their own, and nothing of theirs is kept.
    within = tl.minimum(row, rows - 1)
    index = within // episodes
    episode = as_word(within - index * episodes)
    candidate = episode * 0 if COMMON else as_word(index + first_candidate)
    return index.to(tl.int64), episode, candidate


# K is among them since loops over a constant are unrolled, and need more registers then than there are.
VARYING = [
    "rows",
    "record_rows",
    "episodes",
    "max_steps",
    "first_candidate",
    "key_low",
    "key_high",
    "step_offset",
    "mixtures",
]


@triton.jit(do_not_specialize=VARYING)
def rollout_kernel(
    layer_weights, layer_biases, last_weights, last_biases, squash, gate_weights, gate_biases,
    control_weights, control_biases, choice_weights, choice_biases, value_weights, value_biases,
    h, c, z, returns, lengths, failures, record_z, record_actions, record_rewards,
    rows, record_rows, episodes, max_steps, first_candidate, key_low, key_high, temperature,
    mixtures,
    latent: tl.constexpr, actions: tl.constexpr, units: tl.constexpr,
    HP: tl.constexpr, XP: tl.constexpr, UNITS: tl.constexpr, UP: tl.constexpr, FEATURES: tl.constexpr,
    ARGMAX: tl.constexpr, CONTROL: tl.constexpr, SHARED: tl.constexpr, GREEDY: tl.constexpr,
    SAMPLE_DONE: tl.constexpr, SURVIVAL: tl.constexpr, COMMON: tl.constexpr, RECORD: tl.constexpr,
    ROWS: tl.constexpr, DIMS: tl.constexpr, DEPTH: tl.constexpr, SPAN: tl.constexpr,
    DOT: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    # A tile's state is addressed by 32-bit offsets from a 64-bit base: pointers to every row would fill the registers.
    base = tl.program_id(0).to(tl.int64) * ROWS
    dtype = gate_weights.dtype.element_ty
    scratch_rows = tl.num_programs(0).to(tl.int64) * ROWS
    total = tl.zeros((ROWS,), dtype=tl.float32)
    length = tl.zeros((ROWS,), dtype=tl.int32)
    failed = tl.zeros((ROWS,), dtype=tl.int32)
    alive = (base + tl.arange(0, ROWS) < rows).to(tl.int32)
    step = 0
    while tl.where(step < max_steps, tl.max(alive, axis=0), 0) > 0:
        # Zero, which the compilers cannot know: addresses made with it are made anew in each step, where they would
        # otherwise be kept in registers, hundreds of them, through all steps.
        zero = tl.max(alive, axis=0) >> 1
        local = tl.arange(0, ROWS) + zero
        row = (base + local).to(tl.int32)
        index, episode, candidate = place(row, rows, episodes, first_candidate, COMMON)
        unit = tl.arange(0, UNITS)[None, :]
        shift = zero * 16
        first_row = base + zero
        h_now = h + ((step % 2) * scratch_rows + first_row) * HP
        h_next = h + ((1 - step % 2) * scratch_rows + first_row) * HP
        tile_z, tile_c = z + first_row * XP, c + first_row * HP
        x, acted = act(
            tile_z, h_now, tile_c, local, index[:, None],
            layer_weights, layer_biases, last_weights, last_biases, squash,
            latent, actions, units, HP, XP, FEATURES, UP, ARGMAX, SPAN, ROWS,
        )  # fmt: skip
        at = row + step * record_rows.to(tl.int64)
        if RECORD:
            keep_actions(record_actions, x, row, step, alive, record_rows, latent, actions, XP)
        # c is read whole by the controller before a chunk of it is overwritten.
        tl.debug_barrier()
        h_low, h_high = load_halves(h_now + local[:, None] * HP, HP)
        x_tile = x.to(dtype)
        for chunk in tl.range(0, HP // UNITS, num_stages=STAGES):
            of_chunk = local[:, None] * HP + unit
            c_place = tile_c + chunk * UNITS + of_chunk
            h_new, c_new = cell_chunk(
                h_low, h_high, x_tile, gate_weights + shift, gate_biases + shift, c_place, chunk,
                HP, XP, UNITS, ROWS, DOT,
            )  # fmt: skip
            tl.store(h_next + chunk * UNITS + of_chunk, h_new.to(dtype))
            tl.store(c_place, c_new)
        tl.debug_barrier()
        gain, ended, sound = imagine(
            h_next + local[:, None] * HP, tile_z, local, record_z + at[:, None] * latent, alive,
            as_word(tl.full((), step, tl.int32)), episode, candidate, as_word(key_low + zero), as_word(key_high + zero),
            temperature,
            control_weights + shift, control_biases + shift, choice_weights + shift, choice_biases + shift,
            value_weights + shift, value_biases + shift,
            latent, mixtures, HP, XP, CONTROL, SHARED, GREEDY, SAMPLE_DONE, SURVIVAL, RECORD, ROWS, DIMS, DEPTH, DOT,
        )  # fmt: skip
        if RECORD:
            tl.store(record_rewards + at, gain, mask=alive != 0)
        total, length, alive, failed = settle(total, length, alive, failed, gain, ended, sound & acted)
        tl.debug_barrier()
        step += 1
    row = base + tl.arange(0, ROWS)
    there = row < rows
    tl.store(returns + row, tl.where(failed != 0, float("nan"), total), mask=there)
    tl.store(lengths + row, length, mask=there)
    tl.store(failures + row, failed, mask=there)


# What changes from rollout to rollout stands in memory, int32 [5], since a captured graph keeps its kernels' arguments.
CLOCK_STEP = tl.constexpr(0)
CLOCK_MAX_STEPS = tl.constexpr(1)
CLOCK_FIRST_CANDIDATE = tl.constexpr(2)
CLOCK_KEY_LOW = tl.constexpr(3)
CLOCK_KEY_HIGH = tl.constexpr(4)


@triton.jit
def keep_actions(record_actions, x, row, step, living, record_rows, latent, actions, XP: tl.constexpr):
    """Record the actions in x [ROWS, XP] = [z, a] of step ``step``, of the living."""
    column = tl.arange(0, XP)[None, :]
    at = row + step * record_rows.to(tl.int64)
    is_action = (column >= latent) & (column < latent + actions) & (living != 0)[:, None]
    tl.store(record_actions + at[:, None] * actions + (column - latent), x, mask=is_action)


@triton.jit
def act_ahead(
    h, c, z, local, row, living, step, x, acted, record_actions,
    layer_weights, layer_biases, last_weights, last_biases, squash, rows, record_rows, episodes,
    latent, actions, units, HP: tl.constexpr, XP: tl.constexpr, FEATURES: tl.constexpr, UP: tl.constexpr,
    ARGMAX: tl.constexpr, RECORD: tl.constexpr, SPAN: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Put [z, a] of step ``step`` into the tile's scratch x, and into ``acted`` whether the controller is sound."""
    index = (tl.minimum(row, rows - 1) // episodes).to(tl.int64)
    values, sound = act(
        z, h, c, local, index[:, None], layer_weights, layer_biases, last_weights, last_biases, squash,
        latent, actions, units, HP, XP, FEATURES, UP, ARGMAX, SPAN, ROWS,
    )  # fmt: skip
    column = tl.arange(0, XP)[None, :]
    tl.store(x + (local[:, None] * XP + column), values.to(x.dtype.element_ty))
    tl.store(acted + row, sound)
    if RECORD:
        keep_actions(record_actions, values, row, step, living, record_rows, latent, actions, XP)


@triton.jit(do_not_specialize=VARYING)
def act_kernel(
    layer_weights, layer_biases, last_weights, last_biases, squash,
    h, c, z, x, acted, alive, record_actions,
    rows, record_rows, episodes,
    latent: tl.constexpr, actions: tl.constexpr, units: tl.constexpr,
    HP: tl.constexpr, XP: tl.constexpr, UP: tl.constexpr, FEATURES: tl.constexpr,
    ARGMAX: tl.constexpr, RECORD: tl.constexpr, ROWS: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """The first step's actions; those that follow are :func:`settle_kernel`'s."""
    base = tl.program_id(0).to(tl.int64) * ROWS
    local = tl.arange(0, ROWS)
    row = (base + local).to(tl.int32)
    act_ahead(
        h + base * HP, c + base * HP, z + base * XP, local, row, tl.load(alive + row), 0, x + base * XP, acted,
        record_actions, layer_weights, layer_biases, last_weights, last_biases, squash, rows, record_rows, episodes,
        latent, actions, units, HP, XP, FEATURES, UP, ARGMAX, RECORD, SPAN, ROWS,
    )  # fmt: skip


@triton.jit(do_not_specialize=VARYING)
def advance_kernel(
    gate_weights, gate_biases, h, c, x, clock, step_offset,
    HP: tl.constexpr, XP: tl.constexpr, UNITS: tl.constexpr, ROWS: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Half a step: a chunk of h' and c'."""
    chunk = tl.program_id(1)
    base = tl.program_id(0).to(tl.int64) * ROWS
    local = tl.arange(0, ROWS)
    scratch_rows = tl.num_programs(0).to(tl.int64) * ROWS
    step = tl.load(clock + CLOCK_STEP) + step_offset
    of_chunk = local[:, None] * HP + chunk * UNITS + tl.arange(0, UNITS)[None, :]
    h_now = h + (step % 2) * (scratch_rows * HP) + base * HP
    h_next = h + (1 - step % 2) * (scratch_rows * HP) + base * HP
    c_place = c + base * HP + of_chunk
    h_low, h_high = load_halves(h_now + local[:, None] * HP, HP)
    x_tile = tl.load(x + base * XP + (local[:, None] * XP + tl.arange(0, XP)[None, :]))
    h_new, c_new = cell_chunk(
        h_low, h_high, x_tile, gate_weights, gate_biases, c_place, chunk, HP, XP, UNITS, ROWS, DOT
    )  # fmt: skip
    tl.store(h_next + of_chunk, h_new.to(gate_weights.dtype.element_ty))
    tl.store(c_place, c_new)


@triton.jit(do_not_specialize=VARYING)
def settle_kernel(
    control_weights, control_biases, choice_weights, choice_biases, value_weights, value_biases,
    layer_weights, layer_biases, last_weights, last_biases, squash,
    h, c, z, x, acted, alive, clock, returns, lengths, failures, record_z, record_actions, record_rewards,
    rows, record_rows, episodes, step_offset, temperature,
    mixtures,
    latent: tl.constexpr, actions: tl.constexpr, units: tl.constexpr,
    HP: tl.constexpr, XP: tl.constexpr, UP: tl.constexpr, FEATURES: tl.constexpr, ARGMAX: tl.constexpr,
    CONTROL: tl.constexpr, SHARED: tl.constexpr, GREEDY: tl.constexpr,
    SAMPLE_DONE: tl.constexpr, SURVIVAL: tl.constexpr, COMMON: tl.constexpr, RECORD: tl.constexpr,
    ROWS: tl.constexpr, DIMS: tl.constexpr, DEPTH: tl.constexpr, SPAN: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """The other half: head, next latent, the books, and the next step's actions, once for all chunks of its units.

    Failures are counted; returns become NaN outside.
    """
    base = tl.program_id(0).to(tl.int64) * ROWS
    local = tl.arange(0, ROWS)
    row = (base + local).to(tl.int32)
    there = row < rows
    first_candidate = tl.load(clock + CLOCK_FIRST_CANDIDATE)
    _, episode, candidate = place(row, rows, episodes, first_candidate, COMMON)
    key_low, key_high = as_word(tl.load(clock + CLOCK_KEY_LOW)), as_word(tl.load(clock + CLOCK_KEY_HIGH))
    scratch_rows = tl.num_programs(0).to(tl.int64) * ROWS
    step = tl.load(clock + CLOCK_STEP) + step_offset
    max_steps = tl.load(clock + CLOCK_MAX_STEPS)
    was_alive = tl.load(alive + row)
    # A graph holds a fixed number of steps: those beyond the last one find nobody alive.
    living = tl.where(there & (step < max_steps), was_alive, 0)
    h_next = h + (1 - step % 2) * (scratch_rows * HP) + base * HP
    at = row + step * record_rows.to(tl.int64)
    gain, ended, sound = imagine(
        h_next + local[:, None] * HP, z + base * XP, local, record_z + at[:, None] * latent, living,
        as_word(step), episode, candidate, key_low, key_high, temperature,
        control_weights, control_biases, choice_weights, choice_biases, value_weights, value_biases,
        latent, mixtures, HP, XP, CONTROL, SHARED, GREEDY, SAMPLE_DONE, SURVIVAL, RECORD, ROWS, DIMS, DEPTH, DOT,
    )  # fmt: skip
    if RECORD:
        tl.store(record_rewards + at, gain, mask=living != 0)
    total = tl.load(returns + row, mask=there, other=0.0)
    length = tl.load(lengths + row, mask=there, other=0)
    failed = tl.load(failures + row, mask=there, other=0)
    total, length, now_alive, failed = settle(
        total, length, living, failed, gain, ended, sound & tl.load(acted + row)
    )  # fmt: skip
    # A row's books are read by several threads, and written by one of them; its latent is read by others than wrote it.
    tl.debug_barrier()
    tl.store(returns + row, total, mask=there)
    tl.store(lengths + row, length, mask=there)
    tl.store(failures + row, failed, mask=there)
    tl.store(alive + row, now_alive)
    act_ahead(
        h_next, c + base * HP, z + base * XP, local, row, tl.where(step + 1 < max_steps, now_alive, 0), step + 1,
        x + base * XP, acted, record_actions,
        layer_weights, layer_biases, last_weights, last_biases, squash, rows, record_rows, episodes,
        latent, actions, units, HP, XP, FEATURES, UP, ARGMAX, RECORD, SPAN, ROWS,
    )  # fmt: skip
