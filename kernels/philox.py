"""The random-number contract (``wm_engine.rng``) in Triton.

Counter words (block, step, episode, candidate) and key words are uint32, as blocks or scalars that broadcast.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .maths import cos_sin_turns


@triton.jit
def as_word(x):
    """An int32 or int64 as uint32, modulo 2**32."""
    return x.to(tl.uint32)


@triton.jit
def words(block, step, episode, candidate, key_low, key_high):
    """Philox4x32-10: four uint32 blocks."""
    return tl.philox_impl(block, step, episode, candidate, key_low, key_high)


@triton.jit
def uniform(word):
    """``u = ((word >> 9) + 0.5) * 2**-23``, float32 in (0, 1), exact."""
    return ((word >> 9).to(tl.float32) + 0.5) * 1.1920928955078125e-07


@triton.jit
def interleave(x0, x1, x2, x3, ROWS: tl.constexpr, QUADS: tl.constexpr):
    """[ROWS, QUADS] each to [ROWS, 4 QUADS], whose column 4q + i is x_i's q."""
    return tl.reshape(tl.join(tl.join(x0, x2), tl.join(x1, x3)), (ROWS, 4 * QUADS))


@triton.jit
def normals(first_quad, step, episode, candidate, key_low, key_high, ROWS: tl.constexpr, QUADS: tl.constexpr):
    """Standard normals [ROWS, 4 QUADS] of the latent dimensions from 4 first_quad on, by Box and Muller's transform."""
    block = as_word(first_quad + tl.arange(0, QUADS))[None, :]
    w0, w1, w2, w3 = words(block, step, episode, candidate, key_low, key_high)
    near = tl.sqrt(-2.0 * tl.log(uniform(w0)))
    far = tl.sqrt(-2.0 * tl.log(uniform(w2)))
    near_cos, near_sin = cos_sin_turns(uniform(w1))
    far_cos, far_sin = cos_sin_turns(uniform(w3))
    return interleave(near * near_cos, near * near_sin, far * far_cos, far * far_sin, ROWS, QUADS)


@triton.jit
def uniforms(first_block, step, episode, candidate, key_low, key_high, ROWS: tl.constexpr, QUADS: tl.constexpr):
    """Uniforms [ROWS, 4 QUADS]: the words, in order, of the blocks from first_block on."""
    block = as_word(first_block + tl.arange(0, QUADS))[None, :]
    w0, w1, w2, w3 = words(block, step, episode, candidate, key_low, key_high)
    return interleave(uniform(w0), uniform(w1), uniform(w2), uniform(w3), ROWS, QUADS)


@triton.jit
def first_uniform(block, step, episode, candidate, key_low, key_high):
    """The uniform of a block's word 0."""
    w0, _, _, _ = words(candidate * 0 + block, step, episode, candidate, key_low, key_high)
    return uniform(w0)
