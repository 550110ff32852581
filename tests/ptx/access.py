"""Loads, stores, asynchronous copies, and the fence between ordinary and asynchronous accesses.

Source: the ISA, "ld", "st" and "cp.async" of "Data Movement and Conversion Instructions"; "fence.proxy" of "Parallel
Synchronization and Communication Instructions".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .basics import TYPES, FaultError
from .block import Block
from .form import Form, Mask, Run, as_bits
from .program import Bits

_CACHE_HINTS = {"L1::evict_last", "L1::evict_first", "L1::no_allocate"}


def _space(form: Form, registers: Any) -> tuple[str, str, tuple[Any, ...]]:
    """The memory, the type and the registers of a load or a store."""
    space, kind = form.words[1], form.words[-1]
    if space not in ("global", "shared") or set(form.words[2:-1]) - {"v2", "v4"} - _CACHE_HINTS:
        raise form.refusal()
    return space, kind, registers if isinstance(registers, tuple) else (registers,)


def _parameter(form: Form) -> Run:
    name, put, dtype = form.operands[1].base, form.target(form.operands[0]), np.dtype(TYPES[form.words[-1]])
    return lambda block, mask: put(block, as_bits(block.parameters[name], dtype), mask)


def _load(form: Form) -> Run:
    if form.words[1] == "param":
        return _parameter(form)
    space, kind, registers = _space(form, form.operands[0])
    address, puts = form.address(form.operands[1]), [form.target(each) for each in registers]
    dtype, count = np.dtype(TYPES[kind]), form.threads
    size = dtype.itemsize * len(puts)

    def run(block: Block, mask: Mask) -> None:
        there = slice(None) if mask is None else np.flatnonzero(mask)
        data = block.memory[space].load(address(block)[there], size, block.thread[there], block.now).view(dtype)
        for part, put in enumerate(puts):
            value = np.zeros(count, dtype)
            value[there] = data[:, part]
            put(block, value, mask)

    return run


def _store(form: Form) -> Run:
    space, kind, registers = _space(form, form.operands[1])
    address, values = form.address(form.operands[0]), [form.whole(each, kind) for each in registers]

    def run(block: Block, mask: Mask) -> None:
        there = slice(None) if mask is None else np.flatnonzero(mask)
        parts = [value(block)[there] for value in values]
        data = np.ascontiguousarray(np.stack(parts, axis=1)).view(np.uint8)
        block.memory[space].store(address(block)[there], data, block.thread[there], block.now)

    return run


def _asynchronous(form: Form) -> Run:
    if form.words[:2] != ("cp", "async"):
        raise form.refusal()
    if form.words[2] in ("commit_group", "wait_group", "wait_all"):
        return _settle(form)
    if form.words[2] not in ("ca", "cg") or form.words[3:] != ("shared", "global"):
        raise form.refusal()
    return _copy(form)


def _settle(form: Form) -> Run:
    word = form.words[2]
    left = form.operands[0].value if word == "wait_group" else 0

    def run(block: Block, mask: Mask) -> None:
        if mask is not None and not block.order.warps and not mask.all():
            raise FaultError("a part of the threads commits or awaits copies")
        # wait_all also takes what was not committed.
        if word != "wait_group":
            block.copies.commit()
        if word != "commit_group":
            block.copies.wait(left)

    return run


def _copy(form: Form) -> Run:
    """Bytes from global memory to shared memory; zeros in their place where a thread gives 0 as their number."""
    into, source, size = form.address(form.operands[0]), form.address(form.operands[1]), form.operands[2].value
    given = form.whole(form.operands[3] if len(form.operands) > 3 else Bits(size), "u32")
    count = form.threads

    def run(block: Block, mask: Mask) -> None:
        active = np.ones(count, np.bool_) if mask is None else mask
        to, start, length = into(block), source(block), given(block)
        if not np.isin(length[active], (0, size)).all():
            raise FaultError("a copy of a part of its bytes")
        there, read = np.flatnonzero(active), np.flatnonzero(active & (length == size))

        def copy() -> None:
            data = np.zeros((count, size), np.uint8)
            if len(read):
                data[read] = block.memory["global"].load(start[read], size, block.thread[read], block.now)
            block.memory["shared"].store(to[there], data[there], block.thread[there], block.now)

        if block.order.late:
            block.copies.current.append(copy)
        else:
            copy()

    return run


def _fence(form: Form) -> Run:
    if form.words[1:] != ("proxy", "async", "shared"):
        raise form.refusal()

    def run(block: Block, mask: Mask) -> None:
        block.memory["shared"].fence(block.thread if mask is None else block.thread[mask], block.now)

    return run


ACCESS: dict[str, Callable[[Form], Run]] = {"ld": _load, "st": _store, "cp": _asynchronous, "fence": _fence}
