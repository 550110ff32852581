"""The dream's third phase: what M's head says of h', and the draw of the next latent.

The head's weights are packed in blocks (:func:`wm_engine.kernels.launch.pack_model`): one of control [HP, CONTROL],
whose columns are the logits of a shared mixture, reward, done logit; and, of each group of latent dimensions and each
component, one of values [HP, 2 DIMS], means beside log standard deviations, and without a shared mixture one of choices
[HP, DIMS].

``h, high`` are h' as the products take it, see :func:`operands_of`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .lstm import load_halves
from .maths import LOG2_E, add_product, exp, finite, inverse_cdf, sigmoid
from .philox import first_uniform, normals, uniforms


@triton.jit
def operands_of(h, sizes: tl.constexpr):
    """Load the halves [ROWS, HP / 2] of h', at whose rows h [ROWS, 1] points, where DEPTH is HP; else leave h alone."""
    high = h
    if sizes.value.DEPTH == sizes.value.HP:
        h, high = load_halves(h, sizes.value.HP)
    return h, high


@triton.jit
def outputs_of(h, high, weights, biases, block, N: tl.constexpr, sizes: tl.constexpr):
    """Make the head's outputs [ROWS, N] of one block of its packed weights [blocks, HP, N].

    Where h' is not kept whole, DEPTH of its columns are loaded at a time, and high is not used.
    """
    HP: tl.constexpr = sizes.value.HP
    DEPTH: tl.constexpr = sizes.value.DEPTH
    DOT: tl.constexpr = sizes.value.DOT
    column = tl.arange(0, N)
    weights += block * (HP * N)
    y = tl.zeros((sizes.value.ROWS, N), dtype=tl.float32)
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
def reward_and_done(control, mixtures, sizes: tl.constexpr):
    """Take reward and done logit [ROWS] out of the control block's outputs [ROWS, CONTROL]."""
    column = tl.arange(0, sizes.value.CONTROL)[None, :]
    at_reward = mixtures if sizes.value.SHARED else 0
    reward = tl.sum(tl.where(column == at_reward, control, 0.0), axis=1)
    return reward, tl.sum(tl.where(column == at_reward + 1, control, 0.0), axis=1)


@triton.jit
def sharpness(temperature):
    """Make the factor of differences of logits, of which 2^x is to be taken: 1 / (temperature log 2), finite."""
    return tl.minimum(LOG2_E / temperature, 3.0e38)


@triton.jit
def choose_shared(logits, u, temperature, mixtures, GREEDY: tl.constexpr, N: tl.constexpr):
    """Choose a component [ROWS] by logits [ROWS, N], of which the first K count, by inverse CDF of u [ROWS]."""
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
def values_shared(h, high, value_weights, value_biases, chosen, group, mixtures, sizes: tl.constexpr):
    """Make mean and log standard deviation [ROWS, DIMS] of a group of dimensions, of the chosen component [ROWS]."""
    ROWS: tl.constexpr = sizes.value.ROWS
    DIMS: tl.constexpr = sizes.value.DIMS
    kept = tl.zeros((ROWS, 2 * DIMS), dtype=tl.float32)
    for k in range(0, mixtures):
        values = outputs_of(h, high, value_weights, value_biases, group * mixtures + k, 2 * DIMS, sizes)
        kept = tl.where((chosen == k)[:, None], values, kept)
    return tl.split(tl.reshape(kept, (ROWS, DIMS, 2)))


@triton.jit
def softmax_per_dim(
    h, high, choice_weights, choice_biases, temperature, group, mixtures, GREEDY: tl.constexpr, sizes: tl.constexpr
):  # fmt: skip
    """Find the largest logit of each of a group's dimensions, and the sum of all beside it, [ROWS, DIMS]."""
    ROWS: tl.constexpr = sizes.value.ROWS
    DIMS: tl.constexpr = sizes.value.DIMS
    largest = tl.full((ROWS, DIMS), float("-inf"), dtype=tl.float32)
    total = tl.zeros((ROWS, DIMS), dtype=tl.float32)
    # Not loaded ahead, nor the logits before the values below: the addresses would not fit in the registers.
    for k in tl.range(0, mixtures, num_stages=1):
        logits = outputs_of(h, high, choice_weights, choice_biases, group * mixtures + k, DIMS, sizes)
        higher = tl.maximum(largest, logits)
        if not GREEDY:
            sharp = sharpness(temperature)
            total *= tl.exp2((largest - higher) * sharp)
            total += tl.exp2((logits - higher) * sharp)
        largest = higher
    return largest, total


@triton.jit
def values_per_dim(
    h, high, choice_weights, choice_biases, value_weights, value_biases, largest, wanted, temperature, group, mixtures,
    GREEDY: tl.constexpr, sizes: tl.constexpr,
):  # fmt: skip
    """Make what :func:`values_shared` does with a choice for every dimension, by inverse CDF.

    largest, wanted [ROWS, DIMS] : the largest logit, and what the sum beside it has to reach: u of all of it. The
    logits are made once more for that, since K blocks of them do not fit beside the rest.
    """
    ROWS: tl.constexpr = sizes.value.ROWS
    DIMS: tl.constexpr = sizes.value.DIMS
    mean = tl.zeros((ROWS, DIMS), dtype=tl.float32)
    log_std = tl.zeros((ROWS, DIMS), dtype=tl.float32)
    for k in range(0, mixtures):
        values = outputs_of(h, high, value_weights, value_biases, group * mixtures + k, 2 * DIMS, sizes)
        logits = outputs_of(h, high, choice_weights, choice_biases, group * mixtures + k, DIMS, sizes)
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
def draw_latent(
    h, high, control, z_out, local, record_z, alive, step, episode, candidate, key_low, key_high, temperature, mixtures,
    choice_weights, choice_biases, value_weights, value_biases, sound, sizes: tl.constexpr, switches: tl.constexpr,
):  # fmt: skip
    """Draw and store the next latent, DIMS dimensions at a time; return sound [ROWS], 0 where it is not finite.

    control [ROWS, CONTROL] has the logits of a shared mixture. z goes to the tile's scratch z_out, of which ``local``
    [ROWS] are the rows, and, where RECORD, of the living to record_z [ROWS, 1]. Where RESIDUAL it is added to what
    z_out held.
    """
    latent: tl.constexpr = sizes.value.latent
    ROWS: tl.constexpr = sizes.value.ROWS
    DIMS: tl.constexpr = sizes.value.DIMS
    GREEDY: tl.constexpr = switches.value.GREEDY
    # Of a step's random blocks, the first quads make normals; those that follow choose components.
    quads: tl.constexpr = (latent + 3) // 4
    rows_episode, rows_candidate = episode[:, None], candidate[:, None]
    if sizes.value.SHARED:
        u = first_uniform(quads, step, episode, candidate, key_low, key_high)
        chosen = choose_shared(control, u, temperature, mixtures, GREEDY, sizes.value.CONTROL)
    for group in range(0, tl.cdiv(latent, DIMS)):
        first = group * (DIMS // 4)
        if sizes.value.SHARED:
            mean, log_std = values_shared(h, high, value_weights, value_biases, chosen, group, mixtures, sizes)
        else:
            largest, wanted = softmax_per_dim(
                h, high, choice_weights, choice_biases, temperature, group, mixtures, GREEDY, sizes
            )
            if not GREEDY:
                wanted *= uniforms(
                    quads + first, step, rows_episode, rows_candidate, key_low, key_high, ROWS, DIMS // 4
                )
            mean, log_std = values_per_dim(
                h, high, choice_weights, choice_biases, value_weights, value_biases, largest, wanted, temperature,
                group, mixtures, GREEDY, sizes,
            )  # fmt: skip
        if GREEDY:
            z = mean
        else:
            log_std = tl.minimum(tl.maximum(log_std, -7.0), 7.0)
            noise = normals(first, step, rows_episode, rows_candidate, key_low, key_high, ROWS, DIMS // 4)
            z = mean + exp(log_std) * tl.sqrt(temperature) * noise
        dim = group * DIMS + tl.arange(0, DIMS)[None, :]
        there = dim < latent
        if sizes.value.RESIDUAL:
            z += tl.load(z_out + (local[:, None] * sizes.value.XP + dim), mask=there, other=0.0)
            # Several threads may have read a number that one of them is about to overwrite.
            tl.debug_barrier()
        sound = sound & tl.min(tl.where(there, finite(z).to(tl.int32), 1), axis=1)
        tl.store(z_out + (local[:, None] * sizes.value.XP + dim), z, mask=there)
        if switches.value.RECORD:
            tl.store(record_z + dim, z, mask=there & (alive != 0)[:, None])
    return sound


@triton.jit
def imagine(
    h, z_out, local, record_z, alive, step, episode, candidate, key_low, key_high, temperature, mixtures,
    control_weights, control_biases, choice_weights, choice_biases, value_weights, value_biases,
    sizes: tl.constexpr, switches: tl.constexpr,
):  # fmt: skip
    """Ask M's head about a state: what the step gains, whether the episode ends, whether all is finite, each [ROWS].

    h [ROWS, 1] points at the rows of h'. The next latent is stored, see :func:`draw_latent`.
    """
    h, high = operands_of(h, sizes)
    control = outputs_of(h, high, control_weights, control_biases, 0, sizes.value.CONTROL, sizes)
    reward, done_logit = reward_and_done(control, mixtures, sizes)
    sound = (finite(reward) & finite(done_logit)).to(tl.int32)
    if switches.value.SAMPLE_DONE:
        # The block of random words behind those that the latent dimensions may take.
        last = 2 * ((sizes.value.latent + 3) // 4)
        ended = sigmoid(done_logit) > first_uniform(last, step, episode, candidate, key_low, key_high)
    else:
        ended = done_logit > 0.0
    sound = draw_latent(
        h, high, control, z_out, local, record_z, alive, step, episode, candidate, key_low, key_high, temperature,
        mixtures, choice_weights, choice_biases, value_weights, value_biases, sound, sizes, switches,
    )  # fmt: skip
    if switches.value.SURVIVAL:
        reward = tl.full((sizes.value.ROWS,), 1.0, dtype=tl.float32)
    return reward, ended, sound
