"""Functions of float32 blocks that stay clear of slow paths and of NaN.

Errors are absolute where the results are of the order of one; tests/kernels/test_philox.py holds them to these bounds.
"""

from __future__ import annotations

import triton
import triton.language as tl

from . import triton_release

LOG2_E = tl.constexpr(1.4426950408889634)


SCANS = tl.constexpr(triton_release() >= (3, 3))
"""Whether tl.cumsum may be used. Triton 3.2 goes on summing in threads that hold copies of a small block, of which any
may be asked next: the tests of compiled kernels see it, those in its interpreter do not."""


@triton.jit
def inverse_cdf(p, u, k, count, AXIS: tl.constexpr):
    """How many of the first ``count`` partial sums of p along its last axis, AXIS, with indices k, are less than u."""
    if SCANS:
        below = (tl.cumsum(p, axis=AXIS) < tl.expand_dims(u, AXIS)) & (k < count)
        chosen = tl.sum(below.to(tl.int32), axis=AXIS)
    else:
        partial = tl.sum(tl.where(k == 0, p, 0.0), axis=AXIS)
        chosen = (partial < u).to(tl.int32)
        for place in range(1, count):
            partial += tl.sum(tl.where(k == place, p, 0.0), axis=AXIS)
            chosen += (partial < u).to(tl.int32)
    return chosen


@triton.jit
def exp(x):
    """e^x, 0 where that is below 2**-126: two instructions of a GPU, where tl.exp takes five."""
    return tl.exp2(x * LOG2_E)


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)); error at most 2**-22 anywhere, infinities included."""
    return 1.0 / (1.0 + exp(-x))


@triton.jit
def tanh(x):
    """1 - 2 / (1 + exp(2x)), whose limits are right where exp overflows; error at most 2**-21 anywhere."""
    return 1.0 - 2.0 / (1.0 + exp(2.0 * x))


@triton.jit
def reciprocal(x, EXACT: tl.constexpr):
    """1 / x of x > 0; if not EXACT by two instructions in place of eight, with a relative error of at most 2**-21."""
    if EXACT:
        y = 1.0 / x
    else:
        root = tl.rsqrt(x)
        y = root * root
    return y


@triton.jit
def finite(x):
    """Whether x is neither NaN nor infinite."""
    return tl.abs(x) < float("inf")


@triton.jit
def cos_sin_turns(u):
    """Cosine and sine of 2 pi u for u in [0, 1]; error at most 2**-22.

    The angle is brought to an eighth of a turn, exactly, and two polynomials fitted there (least maximal error, degrees
    8 and 9) do the rest: no reduction of large arguments, for which the GPU's own functions take a slow path.
    """
    quarter = tl.floor(4.0 * u + 0.5)
    r = u - 0.25 * quarter
    s = r * r
    cos = (((59.22039963 * s - 85.44285191) * s + 64.93931621) * s - 19.73920865) * s + 1.0
    sin = r * ((((41.47294434 * s - 76.69786984) * s + 81.60520475) * s - 41.34170215) * s + 6.28318531)
    quadrant = quarter.to(tl.int32) & 3
    swapped = (quadrant & 1) == 1
    cos_size, sin_size = tl.where(swapped, sin, cos), tl.where(swapped, cos, sin)
    cos_negative = (quadrant == 1) | (quadrant == 2)
    return tl.where(cos_negative, -cos_size, cos_size), tl.where(quadrant >= 2, -sin_size, sin_size)


@triton.jit
def add_product(y, a, b, DOT: tl.constexpr):
    """y [M, N], float32, plus the matrix product of a [M, K] and b [K, N], of one dtype.

    DOT : "ieee" | "tf32x3" | "tf32", how float32 products are made; or "sums", for Triton's interpreter, whose matrix
        products are NumPy's: they know no bfloat16 and round the same row otherwise in another place
    """
    if DOT == "sums":
        y += tl.sum(a.to(tl.float32)[:, :, None] * b.to(tl.float32)[None, :, :], axis=1)
    else:
        y = tl.dot(a, b, y, input_precision=DOT)
    return y
