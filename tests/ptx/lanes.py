"""What the threads of a warp do together: shuffles, reductions and their own barrier.

Source: the ISA, "shfl.sync" of "Data Movement and Conversion Instructions"; "redux.sync" and "bar.warp.sync" of
"Parallel Synchronization and Communication Instructions".
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .basics import TYPES, WARP, Array
from .block import Block
from .form import Form, Mask, Run
from .program import Bits


def _other_lane(mode: str, lane: Array, step: Array, limits: Array) -> Array:
    """The lane whose value each ``lane`` takes, its own where the other is out of its segment."""
    segment, clamp = (limits >> 8) & 31, limits & 31
    last = (lane & segment) | (clamp & ~segment)
    other = {
        "up": lane - step,
        "down": lane + step,
        "bfly": lane ^ step,
        "idx": (lane & segment) | (step & 31 & ~segment),
    }[mode]
    return np.where(other >= last if mode == "up" else other <= last, other, lane)


def _shuffle(form: Form) -> Run:
    if form.words[1:] not in [("sync", mode, "b32") for mode in ("bfly", "up", "down", "idx")]:
        raise form.refusal()
    source, put, mode = form.whole(form.operands[1], "b32"), form.target(form.operands[0]), form.words[2]
    by, limits = (form.source(each, "b32") for each in form.operands[2:4])
    thread = np.arange(form.threads)
    lane = thread % WARP

    def run(block: Block, mask: Mask) -> None:
        form.whole_warps(mask)
        other = _other_lane(mode, lane, by(block).astype(np.int64), limits(block).astype(np.int64))
        put(block, source(block)[thread - lane + other], mask)

    return run


_REDUCE = {"add": np.add, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and, "or": np.bitwise_or}
_REDUCE_FLOAT = {("min", "f32"): np.fmin, ("max", "f32"): np.fmax, ("min", "NaN", "f32"): np.minimum,
                 ("max", "NaN", "f32"): np.maximum}  # fmt: skip


def _reduce(form: Form) -> Run:
    word, kind = form.words[2], form.words[-1]
    function = _REDUCE_FLOAT.get(form.words[2:]) if kind == "f32" else _REDUCE.get(word)
    if function is None or form.words[1] != "sync":
        raise form.refusal()
    source, put = form.whole(form.operands[1], kind), form.target(form.operands[0])

    def run(block: Block, mask: Mask) -> None:
        form.whole_warps(mask)
        values = function.reduce(source(block).reshape(-1, WARP), axis=1)
        put(block, np.repeat(values.astype(TYPES[kind]), WARP), mask)

    return run


def _barrier(form: Form) -> Run:
    if form.words[1:] != ("warp", "sync") or form.operands != (Bits(-1),):
        raise form.refusal()

    def run(block: Block, mask: Mask) -> None:
        block.now.clocks[form.whole_warps(mask)] += 1

    return run


LANES: dict[str, Callable[[Form], Run]] = {"shfl": _shuffle, "redux": _reduce, "bar": _barrier}
