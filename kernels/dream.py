"""Whole rollouts of a population in M: as one persistent kernel, and as two kernels a step for small populations.

    persistent   a program takes ROWS rollouts through all their steps:  act ─► advance ─► imagine ─► settle ─┐
                                                                          ▲                                   │
                                                                          └───────────────────────────────────┘
    per step     advance_kernel [tiles, chunks of units]: advance;   settle_kernel [tiles]: imagine, settle, act

A step's phases:
    act      the controllers: [z, a], M's next input (``controller.py``)
    advance  gates and cells: h', c' (below and ``lstm.py``)
    imagine  M's head and the draw of the next latent: z', reward, end (``head.py``)
    settle   the books: return, length, who lives on, what failed (below)

Both forms are made of the same phases, over the same tiles and chunks. A tile's state (h, c, z) lives in scratch
memory, of which a tile has its own rows: a program stores h' and z' and reads them back as operands of the next
products, with a barrier between, since another thread of the program may have stored what a thread reads. Two buffers
of h take turns. The weights of M stream through, in chunks that are read by every tile.

Letters: R rollouts, P candidates, E episodes, Z latent, H hidden, K mixtures, A actions, U hidden units of the
controller. HP, XP, ... are sizes rounded up to powers of two; everything beyond the true sizes is
zero in weights and scratch, and stays so.

Arguments have one order in all kernels here, and in :func:`wm_engine.kernels.launch.values_of`, which makes them by
name; a kernel takes what it needs of each group:
    controllers   controllers float32 [P, n] (``controller.py``), or actions in their place; squash int32 [XP]
    M             weights and biases of gates (``lstm.py``), control, choice, value (``head.py``), packed
    state         h [2, R', HP], c [R', HP], z [R', XP], of R' = R rounded up to whole tiles; per step also
                  x [R', XP] = [z, a], acted [R'] whether the controllers were sound, alive [R'], clock [7]
    results       returns, lengths, failures [R]
    record        record_z [T, R'', Z], record_actions [T, R'', A], record_rewards [T, R''], of which the first R of the
                  R'' = record_rows are meant
    numbers       rows = R, record_rows, episodes = E, mixtures = K, temperature; those of the persistent kernel alone,
                  max_steps, first_candidate, first_episode, episode_stride, key_low, key_high, stand in ``clock`` per
                  step
    constants     sizes, switches (``constants.py``)
"""

from __future__ import annotations

import triton
import triton.language as tl

from .controller import act
from .head import imagine
from .lstm import cell_chunk, load_halves
from .maths import finite
from .philox import as_word

# K is among them since loops over a constant are unrolled, and need more registers then than there are.
VARYING = [
    "rows",
    "record_rows",
    "episodes",
    "mixtures",
    "max_steps",
    "first_candidate",
    "first_episode",
    "episode_stride",
    "key_low",
    "key_high",
    "step_offset",
]

# What changes from rollout to rollout stands in memory, int32 [7], since a captured graph keeps its kernels' arguments.
CLOCK_STEP = tl.constexpr(0)
CLOCK_MAX_STEPS = tl.constexpr(1)
CLOCK_FIRST_CANDIDATE = tl.constexpr(2)
CLOCK_FIRST_EPISODE = tl.constexpr(3)
CLOCK_EPISODE_STRIDE = tl.constexpr(4)
CLOCK_KEY_LOW = tl.constexpr(5)
CLOCK_KEY_HIGH = tl.constexpr(6)


@triton.jit
def place(
    row, rows, episodes, first_candidate, first_episode, episode_stride, COMMON: tl.constexpr, STRIDED: tl.constexpr
):  # fmt: skip
    """Find the controllers' index, and the counter words of episode and candidate, of rollouts ``row`` int32 [ROWS]."""
    # Rows beyond the last stand in for it: they have scratch of their own, and nothing of theirs is kept.
    within = tl.minimum(row, rows - 1)
    index = within // episodes
    episode = within - index * episodes
    if STRIDED:
        episode = first_episode + episode * episode_stride
    episode = as_word(episode)
    candidate = episode * 0 if COMMON else as_word(index + first_candidate)
    return index, episode, candidate


@triton.jit
def buffers_of_h(h, step, first_row, scratch_rows, HP: tl.constexpr):
    """Point at a tile's rows, from first_row on, of h and of h' in step ``step``: the two buffers take turns."""
    # One product each: of two, added one by one, sm_90's persistent kernel spills registers.
    h_now = h + ((step % 2) * scratch_rows + first_row) * HP
    h_next = h + ((1 - step % 2) * scratch_rows + first_row) * HP
    return h_now, h_next


@triton.jit
def advance_chunk(h_low, h_high, x, h_next, c, local, gate_weights, gate_biases, chunk, sizes: tl.constexpr):
    """Store h' and c' of a chunk of UNITS units, c' in the place of c.

    h_low, h_high [ROWS, HP / 2] and x [ROWS, XP] in the weights' dtype; h_next, c point at the tile's rows, ``local``.
    """
    HP: tl.constexpr = sizes.value.HP
    UNITS: tl.constexpr = sizes.value.UNITS
    of_chunk = local[:, None] * HP + tl.arange(0, UNITS)[None, :]
    c_place = c + chunk * UNITS + of_chunk
    h_new, c_new = cell_chunk(
        h_low, h_high, x, gate_weights, gate_biases, c_place, chunk,
        HP, sizes.value.XP, UNITS, sizes.value.ROWS, sizes.value.DOT,
    )  # fmt: skip
    tl.store(h_next + chunk * UNITS + of_chunk, h_new.to(gate_weights.dtype.element_ty))
    tl.store(c_place, c_new)


@triton.jit
def advance(h, x, h_next, c, local, gate_weights, gate_biases, sizes: tl.constexpr):
    """Store h' and c' of all units, chunk by chunk; see :func:`advance_chunk`. h points at the tile's rows too."""
    h_low, h_high = load_halves(h + local[:, None] * sizes.value.HP, sizes.value.HP)
    x = x.to(gate_weights.dtype.element_ty)
    for chunk in tl.range(0, sizes.value.HP // sizes.value.UNITS, num_stages=sizes.value.STAGES):
        advance_chunk(h_low, h_high, x, h_next, c, local, gate_weights, gate_biases, chunk, sizes)


@triton.jit
def settle(total, length, alive, failed, gain, ended, sound):
    """Count a step: make return, length, alive and failed [ROWS] after it of those before."""
    living = alive != 0
    total = tl.where(living, total + gain, total)
    length += alive
    failed = tl.where(living & ((sound & finite(total).to(tl.int32)) == 0), 1, failed)
    alive = tl.where(ended | (failed != 0), 0, alive)
    return total, length, alive, failed


@triton.jit
def keep_actions(record_actions, x, row, step, living, record_rows, sizes: tl.constexpr):
    """Record the actions in x [ROWS, XP] = [z, a] of step ``step``, of the living."""
    latent: tl.constexpr = sizes.value.latent
    actions: tl.constexpr = sizes.value.actions
    column = tl.arange(0, sizes.value.XP)[None, :]
    at = row + step * record_rows.to(tl.int64)
    is_action = (column >= latent) & (column < latent + actions) & (living != 0)[:, None]
    tl.store(record_actions + at[:, None] * actions + (column - latent), x, mask=is_action)


@triton.jit(do_not_specialize=VARYING)
def rollout_kernel(
    controllers, squash,
    gate_weights, gate_biases, control_weights, control_biases, choice_weights, choice_biases, value_weights,
    value_biases,
    h, c, z,
    returns, lengths, failures,
    record_z, record_actions, record_rewards,
    rows, record_rows, episodes, mixtures, temperature, max_steps, first_candidate, first_episode, episode_stride,
    key_low, key_high,
    sizes: tl.constexpr, switches: tl.constexpr,
):  # fmt: skip
    """Take a tile of rollouts through all their steps, until the last of them has ended."""
    ROWS: tl.constexpr = sizes.value.ROWS
    HP: tl.constexpr = sizes.value.HP
    # A tile's state is addressed by 32-bit offsets from a 64-bit base: pointers to every row would fill the registers.
    base = tl.program_id(0).to(tl.int64) * ROWS
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
        shift = zero * 16
        local = tl.arange(0, ROWS) + zero
        row = (base + local).to(tl.int32)
        index, episode, candidate = place(
            row, rows, episodes, first_candidate, first_episode, episode_stride, switches.value.COMMON,
            switches.value.STRIDED,
        )  # fmt: skip
        first_row = base + zero
        h_now, h_next = buffers_of_h(h, step, first_row, scratch_rows, HP)
        tile_z, tile_c = z + first_row * sizes.value.XP, c + first_row * HP

        x, acted = act(tile_z, h_now, tile_c, local, index, controllers, squash, step, max_steps, sizes)
        if switches.value.RECORD:
            keep_actions(record_actions, x, row, step, alive, record_rows, sizes)
        # c is read whole by the controller before a chunk of it is overwritten.
        tl.debug_barrier()
        advance(h_now, x, h_next, tile_c, local, gate_weights + shift, gate_biases + shift, sizes)
        tl.debug_barrier()
        at = row + step * record_rows.to(tl.int64)
        gain, ended, sound = imagine(
            h_next + local[:, None] * HP, tile_z, local, record_z + at[:, None] * sizes.value.latent, alive,
            as_word(tl.full((), step, tl.int32)), episode, candidate, as_word(key_low + zero), as_word(key_high + zero),
            temperature, mixtures,
            control_weights + shift, control_biases + shift, choice_weights + shift, choice_biases + shift,
            value_weights + shift, value_biases + shift, sizes, switches,
        )  # fmt: skip
        if switches.value.RECORD:
            tl.store(record_rewards + at, gain, mask=alive != 0)
        total, length, alive, failed = settle(total, length, alive, failed, gain, ended, sound & acted)
        tl.debug_barrier()
        step += 1
    row = base + tl.arange(0, ROWS)
    there = row < rows
    tl.store(returns + row, tl.where(failed != 0, float("nan"), total), mask=there)
    tl.store(lengths + row, length, mask=there)
    tl.store(failures + row, failed, mask=there)


@triton.jit
def act_ahead(
    z, h, c, local, index, controllers, squash, x, acted, row, step, max_steps, living, record_actions, record_rows,
    sizes: tl.constexpr, RECORD: tl.constexpr,
):  # fmt: skip
    """Store [z, a] of step ``step`` in the tile's scratch x, and in ``acted`` whether the controllers are sound.

    z, h, c, local, index, controllers, squash, max_steps : as :func:`wm_engine.kernels.controller.act` takes them
    """
    XP: tl.constexpr = sizes.value.XP
    values, sound = act(z, h, c, local, index, controllers, squash, step, max_steps, sizes)
    tl.store(x + (local[:, None] * XP + tl.arange(0, XP)[None, :]), values.to(x.dtype.element_ty))
    tl.store(acted + row, sound)
    if RECORD:
        keep_actions(record_actions, values, row, step, living, record_rows, sizes)


@triton.jit(do_not_specialize=VARYING)
def act_kernel(
    controllers, squash,
    h, c, z, x, acted, alive, clock,
    record_actions,
    rows, record_rows, episodes,
    sizes: tl.constexpr, switches: tl.constexpr,
):  # fmt: skip
    """Make the first step's actions; those that follow are :func:`settle_kernel`'s."""
    HP: tl.constexpr = sizes.value.HP
    XP: tl.constexpr = sizes.value.XP
    base = tl.program_id(0).to(tl.int64) * sizes.value.ROWS
    local = tl.arange(0, sizes.value.ROWS)
    row = (base + local).to(tl.int32)
    index, _, _ = place(row, rows, episodes, 0, 0, 1, True, False)
    max_steps = tl.load(clock + CLOCK_MAX_STEPS) if sizes.value.FEATURES == 0 else 1
    act_ahead(
        z + base * XP, h + base * HP, c + base * HP, local, index, controllers, squash,
        x + base * XP, acted, row, 0, max_steps, tl.load(alive + row), record_actions, record_rows, sizes,
        switches.value.RECORD,
    )  # fmt: skip


@triton.jit(do_not_specialize=VARYING)
def advance_kernel(
    gate_weights, gate_biases,
    h, c, x, clock,
    step_offset,
    sizes: tl.constexpr,
):  # fmt: skip
    """Make half a step: a chunk of h' and c'."""
    HP: tl.constexpr = sizes.value.HP
    XP: tl.constexpr = sizes.value.XP
    base = tl.program_id(0).to(tl.int64) * sizes.value.ROWS
    local = tl.arange(0, sizes.value.ROWS)
    scratch_rows = tl.num_programs(0).to(tl.int64) * sizes.value.ROWS
    step = tl.load(clock + CLOCK_STEP) + step_offset
    h_now, h_next = buffers_of_h(h, step, base, scratch_rows, HP)
    h_low, h_high = load_halves(h_now + local[:, None] * HP, HP)
    x_tile = tl.load(x + base * XP + (local[:, None] * XP + tl.arange(0, XP)[None, :]))
    advance_chunk(
        h_low, h_high, x_tile, h_next, c + base * HP, local, gate_weights, gate_biases, tl.program_id(1), sizes
    )


@triton.jit(do_not_specialize=VARYING)
def settle_kernel(
    controllers, squash,
    control_weights, control_biases, choice_weights, choice_biases, value_weights, value_biases,
    h, c, z, x, acted, alive, clock,
    returns, lengths, failures,
    record_z, record_actions, record_rewards,
    rows, record_rows, episodes, mixtures, temperature, step_offset,
    sizes: tl.constexpr, switches: tl.constexpr,
):  # fmt: skip
    """Make the other half: head, next latent, the books, and the next step's actions, once for all chunks of units.

    Failures are counted; returns become NaN outside.
    """
    HP: tl.constexpr = sizes.value.HP
    XP: tl.constexpr = sizes.value.XP
    RECORD: tl.constexpr = switches.value.RECORD
    base = tl.program_id(0).to(tl.int64) * sizes.value.ROWS
    local = tl.arange(0, sizes.value.ROWS)
    row = (base + local).to(tl.int32)
    there = row < rows
    first_candidate = tl.load(clock + CLOCK_FIRST_CANDIDATE)
    first_episode, episode_stride = 0, 1
    if switches.value.STRIDED:
        first_episode, episode_stride = tl.load(clock + CLOCK_FIRST_EPISODE), tl.load(clock + CLOCK_EPISODE_STRIDE)
    index, episode, candidate = place(
        row, rows, episodes, first_candidate, first_episode, episode_stride, switches.value.COMMON,
        switches.value.STRIDED,
    )  # fmt: skip
    key_low, key_high = as_word(tl.load(clock + CLOCK_KEY_LOW)), as_word(tl.load(clock + CLOCK_KEY_HIGH))
    scratch_rows = tl.num_programs(0).to(tl.int64) * sizes.value.ROWS
    step = tl.load(clock + CLOCK_STEP) + step_offset
    max_steps = tl.load(clock + CLOCK_MAX_STEPS)
    # A graph holds a fixed number of steps: those beyond the last one find nobody alive.
    living = tl.where(there & (step < max_steps), tl.load(alive + row), 0)
    _, h_next = buffers_of_h(h, step, base, scratch_rows, HP)
    tile_z = z + base * XP

    at = row + step * record_rows.to(tl.int64)
    gain, ended, sound = imagine(
        h_next + local[:, None] * HP, tile_z, local, record_z + at[:, None] * sizes.value.latent, living,
        as_word(step), episode, candidate, key_low, key_high, temperature, mixtures,
        control_weights, control_biases, choice_weights, choice_biases, value_weights, value_biases, sizes, switches,
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
        tile_z, h_next, c + base * HP, local, index, controllers, squash,
        x + base * XP, acted, row, step + 1, max_steps, tl.where(step + 1 < max_steps, now_alive, 0), record_actions,
        record_rows, sizes, RECORD,
    )  # fmt: skip
