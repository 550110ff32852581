"""Matrices that the threads of a warp, or of a warpgroup of four, hold and multiply together.

Within a 8x8 matrix, or such a tile of a larger one, lane 4 r + q holds the elements 2 q and 2 q + 1 of row r.

Source: the ISA, "ldmatrix", "stmatrix" and "mma" of "Warp Level Matrix Instructions", with the figures of their
fragments; "Asynchronous Warpgroup Level Matrix Instructions", with "Shared Memory Matrix Layout", "Strides" and
"Matrix Descriptor Format".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .basics import WARP, Array, FaultError, from_halves, from_words
from .block import Block
from .form import Form, Mask, Run, Source
from .memory import Memory, Moment

_GROUP = 128  # threads of a warpgroup
_ROW, _QUAD = np.arange(WARP) // 4, np.arange(WARP) % 4


def _small(form: Form) -> tuple[bool, tuple[Any, ...], Any]:
    """Of ldmatrix or stmatrix whether it transposes, the register of each matrix, and the address."""
    words = [word for word in form.words if word != "trans"]
    registers, address = form.operands if form.words[0] == "ldmatrix" else form.operands[::-1]
    if words[1:] != ["sync", "aligned", "m8n8", f"x{len(registers)}", "shared", "b16"]:
        raise form.refusal()
    return "trans" in form.words, registers, address


def _row_threads(form: Form, count: int) -> Array:
    """The threads [warps, count, 8] that give the rows of ``count`` 8x8 matrices: lane 8 m + r the row r of m."""
    return np.arange(form.threads).reshape(-1, WARP)[:, : 8 * count].reshape(-1, count, 8)


def _load_matrices(form: Form) -> Run:
    transposed, registers, at = _small(form)
    address, puts = form.address(at), [form.target(each) for each in registers]
    count, threads = len(puts), _row_threads(form, len(puts))

    def run(block: Block, mask: Mask) -> None:
        warps = form.whole_warps(mask)
        givers = threads[warps].reshape(-1)
        # Each row is read for the whole warp: who gives it stands for all of them.
        data = block.memory["shared"].load(address(block)[givers], 16, block.thread[givers], block.now)
        rows = data.view(np.uint16).reshape(-1, count, 8, 8)
        pairs = np.ascontiguousarray(rows.swapaxes(2, 3) if transposed else rows).view(np.uint32)
        for part, put in enumerate(puts):
            value = np.zeros((len(warps), WARP), np.uint32)
            value[warps] = pairs[:, part].reshape(-1, WARP)
            put(block, value.reshape(-1), mask)

    return run


def _store_matrices(form: Form) -> Run:
    transposed, registers, at = _small(form)
    address, values = form.address(at), [form.whole(each, "b32") for each in registers]
    count, threads = len(values), _row_threads(form, len(values))

    def run(block: Block, mask: Mask) -> None:
        warps = form.whole_warps(mask)
        givers = threads[warps].reshape(-1)
        parts = np.stack([value(block) for value in values]).reshape(count, -1, WARP)[:, warps]
        rows = np.ascontiguousarray(parts.swapaxes(0, 1)).view(np.uint16).reshape(-1, count, 8, 8)
        data = np.ascontiguousarray(rows.swapaxes(2, 3) if transposed else rows).reshape(-1, 8).view(np.uint8)
        block.memory["shared"].store(address(block)[givers], data, block.thread[givers], block.now)

    return run


def _gather(block: Block, parts: Sequence[Source]) -> Array:
    """Registers side by side, [warps, 32, parts]."""
    return np.stack([part(block) for part in parts], axis=-1).reshape(-1, WARP, len(parts))


def _left(words: Array, kind: str) -> Array:
    """A, float64 [warps, 16, depth], from its registers [warps, 32, 4]: rows r, r + 8, then the depth's other half."""
    parts = from_words(words, kind).reshape(len(words), WARP, 4, -1)
    width = parts.shape[-1]
    A = np.zeros((len(words), 16, 8 * width))
    column = _QUAD[:, None] * width + np.arange(width)
    for part in range(4):
        A[:, (_ROW + 8 * (part % 2))[:, None], column + 4 * width * (part // 2)] = parts[:, :, part]
    return A


def _right(words: Array, kind: str) -> Array:
    """B, float64 [warps, depth, 8], from its registers [warps, 32, 2]: the depth's halves, by columns."""
    parts = from_words(words, kind).reshape(len(words), WARP, 2, -1)
    width = parts.shape[-1]
    B = np.zeros((len(words), 8 * width, 8))
    row = _QUAD[:, None] * width + np.arange(width)
    for part in range(2):
        B[:, row + 4 * width * part, _ROW[:, None]] = parts[:, :, part]
    return B


def _spread(D: Array) -> Array:
    """The registers [columns / 2, 32 warps] that hold D [warps, 16, columns]: of each tile of 8 columns four."""
    warps, _, columns = D.shape
    tiles = D.reshape(warps, 2, 8, columns // 8, 4, 2)  # warp, half, row, tile, quad, of a pair
    return tiles.transpose(3, 1, 5, 0, 2, 4).reshape(columns // 2, warps * WARP)


def _warp_product(form: Form) -> Run:
    shape, kind = form.words[3], form.words[7]
    if form.words[1:3] != ("sync", "aligned") or form.words[4:7] != ("row", "col", "f32"):
        raise form.refusal()
    if (shape, kind) not in (("m16n8k16", "bf16"), ("m16n8k16", "f16"), ("m16n8k8", "tf32")):
        raise form.refusal()
    a, b = ([form.whole(each, "b32") for each in part] for part in form.operands[1:3])
    c, puts = [form.whole(each, "f32") for each in form.operands[3]], [form.target(each) for each in form.operands[0]]

    def run(block: Block, mask: Mask) -> None:
        form.whole_warps(mask)
        product = _spread(_left(_gather(block, a), kind) @ _right(_gather(block, b), kind))
        for put, sums, part in zip(puts, [each(block) for each in c], product, strict=True):
            put(block, (part + sums).astype(np.float32), mask)

    return run


def _warpgroup(form: Form) -> Run:
    word = form.words[1]
    if word == "fence":
        return lambda block, mask: None
    if word == "commit_group":
        return lambda block, mask: block.products.commit()
    if word == "wait_group":
        left = form.operands[0].value
        return lambda block, mask: block.products.wait(left)
    shape, kind = re.match(r"m64n(\d+)k16$", form.words[4]), form.words[6]
    if form.words[1:4] != ("mma_async", "sync", "aligned") or form.words[5] != "f32" or shape is None:
        raise form.refusal()
    if kind not in ("bf16", "f16"):
        raise form.refusal()
    return _warpgroup_product(form, int(shape.group(1)), kind)


def _warpgroup_product(form: Form, columns: int, kind: str) -> Run:
    into, left, right, scale, *flags = form.operands
    signs, count = [flag.value for flag in flags], form.threads
    if signs[:2] != [1, 1]:
        raise form.refusal()
    if count % _GROUP:
        raise FaultError("a block of warpgroups in part")
    in_registers = isinstance(left, tuple)
    A_words = [form.whole(each, "b32") for each in left] if in_registers else []
    places = [form.whole(each, "u64") for each in ([] if in_registers else [left]) + [right]]
    A_by_rows, B_by_columns = in_registers or signs[2] == 0, signs[-1] == 0
    scaled = form.whole(scale, "pred")
    sums, puts = [form.whole(each, "f32") for each in into], [form.target(each) for each in into]

    def run(block: Block, mask: Mask) -> None:
        teams = _teams(form.whole_warps(mask))
        A_held = _gather(block, A_words) if in_registers else None
        *A_at, B_at = (place(block) for place in places)
        adds = scaled(block) if mask is None else scaled(block) & mask
        shared = block.memory["shared"]

        def multiply() -> None:
            # Where nothing is added to them, the sums may be registers that were never written.
            old = np.stack([each(block) for each in sums]) if adds.any() else np.zeros((len(sums), 1), np.float32)
            base = np.where(adds, old.astype(np.float64), 0.0)
            new = np.zeros((len(sums), count), np.float32)
            for team in teams:
                readers = block.thread[WARP * team]
                lanes = slice(WARP * team[0], WARP * (team[-1] + 1))
                if A_held is not None:
                    A = _left(A_held[team], kind)
                else:
                    rows = (16 * (team % 4)[:, None] + np.arange(16)).reshape(-1)
                    own = np.repeat(readers, 16)[:, None]
                    A = fetched(shared, _one(A_at[0][lanes]), rows, A_by_rows, own, kind, block.now)
                    A = A.reshape(-1, 16, 16)
                B = fetched(shared, _one(B_at[lanes]), np.arange(columns), B_by_columns, readers[None], kind, block.now)
                new[:, lanes] = (base[:, lanes] + _spread(A @ B.T)).astype(np.float32)
            for part, put in enumerate(puts):
                put(block, new[part], mask)

        if block.order.late:
            block.products.current.append(multiply)
        else:
            multiply()

    return run


def _teams(warps: Array) -> list[Array]:
    """The warps of each warpgroup that takes a product, or each warp by itself where it has its turn alone."""
    groups = np.arange(len(warps)).reshape(-1, _GROUP // WARP)
    return [team for group in groups for team in ([group] if warps[group].all() else group[warps[group], None])]


def _one(descriptors: Array) -> Descriptor:
    """What all threads of a warpgroup give, uint64 [threads]."""
    if (descriptors != descriptors[0]).any():
        raise FaultError("the threads of a warpgroup give different descriptors")
    return Descriptor.hopper(int(descriptors[0]))


@dataclass(frozen=True)
class Descriptor:
    """Where a matrix lies in shared memory: its start, leading and stride, and its swizzle or 0, all in bytes."""

    start: int
    leading: int
    stride: int
    swizzle: int

    @classmethod
    def hopper(cls, word: int) -> Descriptor:
        """Of 64 bits as wgmma reads them."""
        return cls._of(word, word >> 62, (0, 128, 64, 32))

    @classmethod
    def blackwell(cls, word: int) -> Descriptor:
        """Of 64 bits as tcgen05 reads them."""
        if word >> 46 & 7 != 1 or word >> 52 & 1:
            raise FaultError(f"a descriptor that this machine does not know: {word:#x}")
        return cls._of(word, word >> 61, (0, None, 128, None, 64, None, 32, None))

    @classmethod
    def _of(cls, word: int, mode: int, swizzles: Sequence[int | None]) -> Descriptor:
        swizzle = swizzles[mode]
        if word >> 49 & 7 or swizzle is None:
            raise FaultError(f"a descriptor's base offset, or a swizzle that this machine does not know: {word:#x}")
        return cls(*((word >> at & 0x3FFF) << 4 for at in (0, 16, 32)), swizzle)


def fetched(
    shared: Memory, place: Descriptor, rows: Array, by_rows: bool, readers: Array, kind: str, now: Moment
) -> Array:
    """Rows of a matrix, float64 [rows, 16], as a descriptor has it in shared memory.

    by_rows : whether the elements of a row (the depth of the product) lie side by side
    readers : the first thread of each warp that reads a row, [rows or 1, W]
    """
    row, k = rows[:, None], np.arange(16)[None, :]
    swizzle, leading, stride = place.swizzle, place.leading, place.stride
    if by_rows:
        if swizzle:
            offset = row % 8 * swizzle + row // 8 * stride + 2 * k
        else:
            offset = row % 8 * 16 + row // 8 * stride + k % 8 * 2 + k // 8 * leading
    elif swizzle:
        wide = swizzle // 2
        offset = row % wide * 2 + row // wide * leading + k % 8 * swizzle + k // 8 * stride
    else:
        offset = row % 8 * 2 + row // 8 * stride + k % 8 * 16 + k // 8 * leading
    address = place.start + offset
    if swizzle:  # chunks of 16 bytes change places by the row of 128 bytes that they are in
        address = address ^ ((address >> 7 & (swizzle // 16 - 1)) << 4)
    return from_halves(shared.fetch(address, readers, now), kind)


MATRICES: dict[str, Callable[[Form], Run]] = {
    "ldmatrix": _load_matrices,
    "stmatrix": _store_matrices,
    "mma": _warp_product,
    "wgmma": _warpgroup,
}
