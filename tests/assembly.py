"""Small kernels in assembly for the tests of the machine that runs them, and matrices as shared memory has them."""

from __future__ import annotations

from typing import Any

import numpy as np
import ptx
from ptx import SIDE_BY_SIDE, Order, Pointer
from ptx.memory import SHARED_AT

ORDERS = [Order(), Order(warps=True), Order(late=True)]

REGISTERS = ".reg .pred %p<20>; .reg .b16 %rs<20>; .reg .b32 %r<40>; .reg .b64 %rd<20>;"
# %r0: the thread; %rd1: where its 4 bytes of the first tensor are, %r1 those of shared memory; %r2: the thread's number
# among all.
START = """
    mov.u32 %r0, %tid.x; mov.u32 %r3, %ctaid.x; mov.u32 %r4, %ntid.x; mad.lo.s32 %r2, %r3, %r4, %r0;
    ld.param.b64 %rd0, [k_param_0]; mad.wide.u32 %rd1, %r2, 4, %rd0;
    shl.b32 %r1, %r0, 2; mov.b32 %r5, global_smem; add.s32 %r1, %r1, %r5;
"""


def run(
    body: str,
    out: Any,
    threads: int = 64,
    blocks: int = 1,
    order: Order = SIDE_BY_SIDE,
    others: Any = (),
    shared: int = 1024,
) -> Any:
    """``out`` after a kernel of ``body``, which finds it as its first argument and ``others`` behind it."""
    parameters = ", ".join(f".param .u64 .ptr .global .align 1 k_param_{n}" for n in range(1 + len(others)))
    text = f".visible .entry k(\n{parameters}\n)\n.reqntid {threads}\n{{\n{REGISTERS}\n{START}\n{body}\nret;\n}}\n"
    arrays = [np.ascontiguousarray(each).view(np.uint8).reshape(-1) for each in (out, *others)]
    ptx.launch(ptx.parse(text), (blocks,), [Pointer(each) for each in arrays], shared, order)
    return arrays[0].view(out.dtype)


def word(value: float | int) -> int:
    """A float's or an int's bits as an unsigned word."""
    if isinstance(value, float):
        return int(np.float32(value).view(np.uint32))
    return value % (1 << 32)


def digits(index: np.ndarray, shape: tuple[int, ...], strides: tuple[int, ...]) -> np.ndarray:
    """CuTe's shape:strides of an index, the first digit the fastest."""
    out = np.zeros_like(index)
    for size, stride in zip(shape, strides, strict=True):
        out, index = out + index % size * stride, index // size
    return out


def canonical(rows: int, swizzle: int, by_depth: bool, start: int) -> tuple[np.ndarray, int]:
    """Where a matrix [rows, 16] of 16-bit elements lies in shared memory, bytes, and its descriptor.

    The ISA's table of canonical layouts, T = 8, and its matrix descriptor format.
    by_depth : K-major, in place of M- or N-major
    """
    T, chunks, m = 8, max(1, swizzle // 16), rows // 8
    row, k = np.arange(rows)[:, None], np.arange(16)[None]
    if by_depth:
        SBO, LBO = 8 * chunks * T, rows * T
        place = digits(row, (8, m), (chunks * T, SBO)) + digits(k, (T, 2), (1, T if swizzle else LBO))
    elif swizzle:
        SBO, LBO = 8 * chunks * T, 2 * 8 * chunks * T
        place = digits(row, (T, chunks, m // chunks), (1, T, LBO)) + digits(k, (8, 2), (chunks * T, SBO))
    else:
        SBO, LBO = 8 * T, rows * T
        place = digits(row, (T, 1, m), (1, T, SBO)) + digits(k, (8, 2), (T, LBO))
    mode = {0: 0, 128: 1, 64: 2, 32: 3}[swizzle]
    place = start + 2 * place
    # Swizzle<B, 4, 3>: B bits from the seventh on are added, without a carry, to those from the fourth on.
    for bit in range({0: 0, 32: 1, 64: 2, 128: 3}[swizzle]):
        place = place ^ (((place >> (7 + bit)) & 1) << (4 + bit))
    return place, start >> 4 | 2 * LBO >> 4 << 16 | 2 * SBO >> 4 << 32 | mode << 62


def halves(values: np.ndarray, kind: str) -> np.ndarray:
    """Small whole numbers as the bits of "bf16" or "f16", uint16."""
    if kind == "f16":
        return values.astype(np.float16).view(np.uint16)
    return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


HALF = 16384
"""Bytes of shared memory for A, and for B behind it."""

COPIES = "".join(
    f"ld.global.v4.b32 {{%r20,%r21,%r22,%r23}}, [%rd2+{at}]; st.shared.v4.b32 [%r10+{at}], {{%r20,%r21,%r22,%r23}};"
    for at in range(0, 2 * HALF, 128 * 16)
)
"""By 128 threads, from 16 bytes a thread from %rd2 on, to as many from %r10 on."""


def operands(swizzle: int, kind: str, *matrices: tuple[np.ndarray, str]) -> tuple[np.ndarray, list[int]]:
    """What shared memory is to hold of A and B, uint16 [HALF], and their descriptors.

    matrices : of each its values [rows, 16], and how they lie: "by depth", "transposed", or elsewhere by any other word
    """
    image = np.full(HALF, 0x7FFF, np.uint16)  # NaN wherever neither lies
    words = []
    for number, (values, how) in enumerate(matrices):
        place, word = canonical(len(values), swizzle, how == "by depth", SHARED_AT + number * HALF)
        words.append(word)
        if how in ("by depth", "transposed"):
            image[(place - SHARED_AT) // 2] = halves(values, kind)
    return image, words
