"""The LSTM step (``wm_engine.ops.lstm``) with gates and cell update in one kernel, forward only.

Weights are packed once: units are taken UNITS at a time, and such a chunk's weights are one block [HP + XP, 4 UNITS]
with all gates of its units, so that the cell is updated on the result of its products. HP and XP are H and the inputs'
number rounded up to powers of two, filled with zeros. h is multiplied in two halves: no more of it fits in a GPU's
registers on its way to the shared memory.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import target_of
from .maths import LOG2_E, add_product, reciprocal

LEAST_BLOCK = 16
"""The least size of a matrix product in Triton, in each direction."""


def padded(size: int) -> int:
    """The size of the block that holds ``size`` elements."""
    return max(LEAST_BLOCK, triton.next_power_of_2(size))


def padded_hidden(hidden: int) -> int:
    """HP, twice LEAST_BLOCK or more, since h is multiplied in two halves."""
    return max(2 * LEAST_BLOCK, padded(hidden))


def pack_gates(weight_ih: Tensor, weight_hh: Tensor, bias: Tensor, units: int) -> tuple[Tensor, Tensor]:
    """Pack weight_ih [4H, X], weight_hh [4H, H], bias [4H] for chunks of ``units``.

    Returns weights [HP / units, HP + XP, 4 units] in weight_ih's dtype and biases [HP / units, 4 units] in float32.
    """
    hidden, inputs = weight_hh.shape[1], weight_ih.shape[1]
    hp, xp = padded_hidden(hidden), padded(inputs)
    weights = weight_hh.new_zeros(hp + xp, hp, 4)
    weights[:hidden, :hidden] = weight_hh.view(4, hidden, hidden).permute(2, 1, 0)
    weights[hp : hp + inputs, :hidden] = weight_ih.view(4, hidden, inputs).permute(2, 1, 0)
    biases = bias.new_zeros(hp, 4, dtype=torch.float32)
    biases[:hidden] = bias.view(4, hidden).T
    return _by_chunk(weights, units), _by_chunk(biases.unsqueeze(0), units)[:, 0]


def _by_chunk(columns: Tensor, units: int) -> Tensor:
    """[N, HP, 4] of every unit's gates to [HP / units, N, 4 units], in the order of a chunk's columns."""
    size, hp, _ = columns.shape
    # Unit q (units / 4) + s of a chunk has its gates, (i, f) and (g, o) for p = 0 and 1, at columns (s, p, q, gate).
    parts = columns.view(size, hp // units, 4, units // 4, 2, 2)
    return parts.permute(1, 0, 3, 4, 2, 5).reshape(hp // units, size, 4 * units).contiguous()


@triton.jit
def power(x, by):
    """2^(x by), at most 2**40, so that products of three stay finite; NaN stays NaN."""
    return tl.exp2(tl.minimum(x * by, 40.0, propagate_nan=tl.PropagateNan.ALL))


@triton.jit
def cell(i, f, g, o, c, EXACT: tl.constexpr):
    """h' and c' of the gates' sums and c, all of one shape, float32.

    c' = sigmoid(f) c + sigmoid(i) tanh(g) and h' = sigmoid(o) tanh(c') over one denominator each: five exponentials and
    two divisions, where gate by gate it would be five of both, and a GPU makes few of them at a time. A c beyond
    2**46, to which a step adds one at most, may overflow.
    """
    one_and_i, one_and_f = 1.0 + power(i, -LOG2_E), 1.0 + power(f, -LOG2_E)
    from_g = power(g, -2.0 * LOG2_E)
    i_and_g = one_and_i * (1.0 + from_g)
    c = (c * i_and_g + (1.0 - from_g) * one_and_f) * reciprocal(i_and_g * one_and_f, EXACT)
    from_c = power(c, -2.0 * LOG2_E)
    return (1.0 - from_c) * reciprocal((1.0 + power(o, -LOG2_E)) * (1.0 + from_c), EXACT), c


@triton.jit
def load_halves(h, HP: tl.constexpr):
    """Load the halves [ROWS, HP / 2] of the rows that h [ROWS, 1] points at."""
    column = tl.arange(0, HP // 2)[None, :]
    return tl.load(h + column), tl.load(h + HP // 2 + column)


@triton.jit
def cell_chunk(
    h_low,
    h_high,
    x,
    gate_weights,
    gate_biases,
    c_in,
    chunk,
    HP: tl.constexpr,
    XP: tl.constexpr,
    UNITS: tl.constexpr,
    ROWS: tl.constexpr,
    DOT: tl.constexpr,
):
    """h' and c' [ROWS, UNITS] of a chunk's units.

    h_low, h_high [ROWS, HP / 2], the halves of h, and x [ROWS, XP] in the weights' dtype; c_in [ROWS, UNITS] points at
    the units' float32 cell state.
    """
    columns = tl.arange(0, 4 * UNITS)[None, :]
    half = tl.arange(0, HP // 2)[:, None]
    weights = gate_weights + chunk * ((HP + XP) * 4 * UNITS)
    from_low = tl.load(weights + (half * (4 * UNITS) + columns))
    from_high = tl.load(weights + ((HP // 2 + half) * (4 * UNITS) + columns))
    from_x = tl.load(weights + HP * 4 * UNITS + (tl.arange(0, XP)[:, None] * (4 * UNITS) + columns))
    c = tl.load(c_in)
    gates = tl.zeros((ROWS, 4 * UNITS), dtype=tl.float32)
    gates = add_product(gates, h_low, from_low, DOT)
    gates = add_product(gates, h_high, from_high, DOT)
    gates = add_product(gates, x, from_x, DOT)
    gates += tl.load(gate_biases + chunk * (4 * UNITS) + columns)
    # A thread of NVIDIA's matrix units holds columns 8 t + 2 q and the next one, for one q and all t: four of a unit.
    by_unit = tl.permute(tl.reshape(gates, (ROWS, UNITS // 4, 2, 4, 2)), (0, 3, 1, 2, 4))
    i_and_g, f_and_o = tl.split(by_unit)
    i, g = tl.split(i_and_g)
    f, o = tl.split(f_and_o)
    h, c = cell(
        tl.reshape(i, (ROWS, UNITS)), tl.reshape(f, (ROWS, UNITS)), tl.reshape(g, (ROWS, UNITS)),
        tl.reshape(o, (ROWS, UNITS)), c, gate_weights.dtype.element_ty == tl.float32,
    )  # fmt: skip
    return h, c


@triton.jit(do_not_specialize=["rows"])
def lstm_step_kernel(
    inputs,
    h_in,
    c_in,
    gate_weights,
    gate_biases,
    h_out,
    c_out,
    rows,
    inputs_size,
    hidden,
    HP: tl.constexpr,
    XP: tl.constexpr,
    UNITS: tl.constexpr,
    ROWS: tl.constexpr,
    DOT: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    there = (row < rows)[:, None]
    dtype = gate_weights.dtype.element_ty
    k = tl.arange(0, HP // 2)[None, :]
    h_row = h_in + row[:, None] * hidden
    h_low = tl.load(h_row + k, mask=there & (k < hidden), other=0.0).to(dtype)
    h_high = tl.load(h_row + HP // 2 + k, mask=there & (HP // 2 + k < hidden), other=0.0).to(dtype)
    k = tl.arange(0, XP)[None, :]
    x = tl.load(inputs + row[:, None] * inputs_size + k, mask=there & (k < inputs_size), other=0.0).to(dtype)
    chunk = tl.program_id(1)
    unit = chunk * UNITS + tl.arange(0, UNITS)[None, :]
    place = row[:, None] * hidden + unit
    # Rows and units beyond the ends read the first cell's state: it is there, and nothing made of it is kept.
    mask = there & (unit < hidden)
    c_place = c_in + tl.where(mask, place, 0)
    h, c = cell_chunk(h_low, h_high, x, gate_weights, gate_biases, c_place, chunk, HP, XP, UNITS, ROWS, DOT)
    tl.store(h_out + place, h.to(h_out.dtype.element_ty), mask=mask)
    tl.store(c_out + place, c, mask=mask)


def tile_for(backend: str, arch: int | str, hp: int, dtype: torch.dtype) -> tuple[int, int]:
    """Rows and warps of a program for a target of Triton, HP and the products' dtype.

    Newer GPUs multiply 64 rows; sm_80, a larger HP and float32 would spill them, or fill shared memory.
    """
    newer = backend == "hip" or (backend == "cuda" and int(arch) >= 90)
    return (64, 4) if newer and hp <= 256 and dtype != torch.float32 else (16, 4)


def lstm_step(
    inputs: Tensor,
    h: Tensor,
    c: Tensor,
    packed: tuple[Tensor, Tensor],
    out: tuple[Tensor, Tensor] | None = None,
    *,
    dot: str = "ieee",
) -> tuple[Tensor, Tensor]:
    """One step of B rollouts, as :func:`wm_engine.ops.lstm.lstm_step`.

    Parameters
    ----------
    inputs : [B, X]
    h, c : [B, H], hidden and cell state; c in float32
    packed : of :func:`pack_gates`; products are made in its weights' dtype, and their largest H are those whose chunk
        of weights fits in the GPU's shared memory: Triton raises OutOfResources for others, which want fewer units
    out : (h', c') [B, H] to write to, of h's and c's dtype; new ones where None
    dot : how products are made, see :func:`wm_engine.kernels.maths.add_product`

    Returns
    -------
    h', c' : [B, H]
    """
    weights, biases = packed
    inputs, h, c = inputs.contiguous(), h.contiguous(), c.contiguous()
    (batch, size), hidden = inputs.shape, h.shape[1]
    hp, xp = padded_hidden(hidden), padded(size)
    if weights.shape[1] != hp + xp or c.dtype != torch.float32:
        raise ValueError(f"packed weights, inputs {list(inputs.shape)}, h {list(h.shape)} and a float32 c must agree")
    h_out, c_out = (torch.empty_like(h), torch.empty_like(c)) if out is None else out
    with torch.cuda.device_of(inputs):
        rows, num_warps = tile_for(*target_of(inputs.device), hp, weights.dtype)
        grid = (triton.cdiv(batch, rows), weights.shape[0])
        lstm_step_kernel[grid](
            inputs, h, c, weights, biases, h_out, c_out, batch, size, hidden,
            HP=hp, XP=xp, UNITS=weights.shape[2] // 4, ROWS=rows, DOT=dot, num_warps=num_warps, enable_fp_fusion=True,
        )  # fmt: skip
    return h_out, c_out
