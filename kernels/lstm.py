"""The LSTM step (``wm_engine.ops.lstm``) with gates and cell update in one kernel, forward only.

Weights are packed once: units are taken UNITS at a time, and such a chunk's weights are one block [HP + XP, 4 UNITS]
whose column 4 u + j is gate j (i, f, g, o) of unit u, so that one matrix product makes all gates of its units and the
cell is updated on its result. HP and XP are H and the inputs' number rounded up to powers of two, filled with zeros.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import target_of
from .maths import product, sigmoid, tanh

LEAST_BLOCK = 16
"""The least size of a matrix product in Triton, in each direction."""


def padded(size: int) -> int:
    """The size of the block that holds ``size`` elements."""
    return max(LEAST_BLOCK, triton.next_power_of_2(size))


def pack_gates(weight_ih: Tensor, weight_hh: Tensor, bias: Tensor, units: int) -> tuple[Tensor, Tensor]:
    """Pack weight_ih [4H, X], weight_hh [4H, H], bias [4H] for chunks of ``units``.

    Returns weights [HP / units, HP + XP, 4 units] in weight_ih's dtype and biases [HP / units, 4 units] in float32.
    """
    hidden, inputs = weight_hh.shape[1], weight_ih.shape[1]
    hp, xp = padded(hidden), padded(inputs)
    weights = weight_hh.new_zeros(hp + xp, hp, 4)
    weights[:hidden, :hidden] = weight_hh.view(4, hidden, hidden).permute(2, 1, 0)
    weights[hp : hp + inputs, :hidden] = weight_ih.view(4, hidden, inputs).permute(2, 1, 0)
    biases = bias.new_zeros(hp, 4, dtype=torch.float32)
    biases[:hidden] = bias.view(4, hidden).T
    chunked = weights.view(hp + xp, hp // units, 4 * units).transpose(0, 1).contiguous()
    return chunked, biases.view(hp // units, 4 * units)


@triton.jit
def cell_chunk(
    h,
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

    h [ROWS, HP] and x [ROWS, XP] in the weights' dtype; c_in [ROWS, UNITS] points at the units' float32 cell state.
    """
    columns = tl.arange(0, 4 * UNITS)
    weights = gate_weights + chunk * ((HP + XP) * 4 * UNITS)
    from_h = tl.load(weights + (tl.arange(0, HP)[:, None] * (4 * UNITS) + columns[None, :]))
    from_x = tl.load(weights + HP * 4 * UNITS + (tl.arange(0, XP)[:, None] * (4 * UNITS) + columns[None, :]))
    c = tl.load(c_in)
    # Added as other shapes: the compiler would make one product the other's accumulator, and then has every group of
    # four warps make all of the first one.
    gates = tl.reshape(product(h, from_h, DOT), (ROWS, UNITS, 2, 2))
    gates += tl.reshape(product(x, from_x, DOT), (ROWS, UNITS, 2, 2))
    gates += tl.reshape(tl.load(gate_biases + chunk * (4 * UNITS) + columns), (UNITS, 2, 2))[None, :, :, :]
    i_and_g, f_and_o = tl.split(gates)
    i, g = tl.split(i_and_g)
    f, o = tl.split(f_and_o)
    c = sigmoid(f) * c + sigmoid(i) * tanh(g)
    return sigmoid(o) * tanh(c), c


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
    k = tl.arange(0, HP)[None, :]
    h = tl.load(h_in + row[:, None] * hidden + k, mask=there & (k < hidden), other=0.0).to(dtype)
    k = tl.arange(0, XP)[None, :]
    x = tl.load(inputs + row[:, None] * inputs_size + k, mask=there & (k < inputs_size), other=0.0).to(dtype)
    chunk = tl.program_id(1)
    unit = chunk * UNITS + tl.arange(0, UNITS)[None, :]
    place = row[:, None] * hidden + unit
    # Rows and units beyond the ends read the first cell's state: it is there, and nothing made of it is kept.
    mask = there & (unit < hidden)
    c_place = c_in + tl.where(mask, place, 0)
    h, c = cell_chunk(h, x, gate_weights, gate_biases, c_place, chunk, HP, XP, UNITS, ROWS, DOT)
    tl.store(h_out + place, h.to(h_out.dtype.element_ty), mask=mask)
    tl.store(c_out + place, c, mask=mask)


def tile_for(backend: str, arch: int | str, hp: int, dtype: torch.dtype) -> tuple[int, int]:
    """Rows and warps of a program for a target of Triton, HP and the products' dtype.

    Newer GPUs multiply 64 rows; sm_80, a larger HP and float32 would spill them, or fill shared memory.
    """
    newer = backend == "hip" or (backend == "cuda" and int(arch) >= 90)
    return (64, 8) if newer and hp <= 512 and dtype != torch.float32 else (16, 4)


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
    dot : how products are made, see :func:`wm_engine.kernels.maths.product`

    Returns
    -------
    h', c' : [B, H]
    """
    weights, biases = packed
    inputs, h, c = inputs.contiguous(), h.contiguous(), c.contiguous()
    (batch, size), hidden = inputs.shape, h.shape[1]
    hp, xp = padded(hidden), padded(size)
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
