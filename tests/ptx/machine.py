"""A launch: its blocks one after the other, and in each the threads, up to a barrier and on.

Source: the ISA, "Programming Model", and "bar" of "Parallel Synchronization and Communication Instructions".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from .access import ACCESS
from .basics import WARP, Array, FaultError, NotYetError
from .block import SIDE_BY_SIDE, Block, Launch, Order
from .form import Form, Run, Source
from .lanes import LANES
from .matrices import MATRICES
from .memory import GLOBAL_AT, Memory, Pointer
from .operations import OPERATIONS
from .program import Instruction, Program, Register
from .tensor import TENSOR

_INSTRUCTIONS = OPERATIONS | LANES | ACCESS | MATRICES | TENSOR
_SHADOW_STEP = 2  # bytes of global memory that are watched as one; two bytes are the least that the kernels store

Threads = dict[int, Array]
"""Which threads, bool [threads], stand at which instructions."""


@dataclass(frozen=True)
class _Step:
    """An instruction as functions: what it does, None where it moves; for whom, None for all."""

    instruction: Instruction
    run: Run | None
    condition: Source | None


@lru_cache(maxsize=64)
def _compiled(program: Program) -> tuple[list[_Step], int]:
    """The instructions as functions, and how many registers they use."""
    slots: dict[Register, int] = {}
    steps = []
    for each in program.code:
        form = Form(each, program.threads, slots)
        if each.moves:
            steps.append(_Step(each, None, form.condition() if each.guard else None))
        elif each.words[0] not in _INSTRUCTIONS:
            raise FaultError(f"an instruction that this machine does not know: {each.text}")
        else:
            steps.append(_Step(each, form.guarded(_INSTRUCTIONS[each.words[0]](form)), None))
    return steps, len(slots)


def launch(
    program: Program,
    grid: Sequence[int],
    arguments: Sequence[Any],
    shared: int,
    order: Order = SIDE_BY_SIDE,
    tally: Array | None = None,
) -> None:
    """Run a kernel on ``arguments``, pointers or numbers, with ``shared`` bytes of shared memory.

    tally : int64 [instructions], to which the warps that take each are added
    """
    memory, numbers, places = _placed(arguments)
    grid = (*grid, *(1,) * (3 - len(grid)))
    # Behind the caller's arguments, scratch that no kernel uses.
    parameters = {name: 0 for name, _ in program.parameters}
    parameters.update(zip(parameters, numbers, strict=False))
    shares = Launch(grid, parameters, memory, shared, order)
    steps, slots = _compiled(program)
    blocks = [(x, y, z) for z in range(grid[2]) for y in range(grid[1]) for x in range(grid[0])]
    if order.blocks_backwards:
        blocks.reverse()
    with np.errstate(all="ignore"):
        for index, place in enumerate(blocks):
            _run(program, steps, Block(shares, place, index, program.threads, slots), tally)
    for offset, raw in places.values():
        raw[:] = memory.bytes[offset : offset + raw.size]


def _room(size: int) -> int:
    """What an array takes, with a gap behind it that nobody may touch."""
    return -(-size // 256) * 256 + 256


def _placed(arguments: Sequence[Any]) -> tuple[Memory, list[int], dict[int, tuple[int, Array]]]:
    """Global memory with what the pointers point into, the arguments as numbers, and each array with its offset."""
    places: dict[int, tuple[int, Array]] = {}
    end = 0
    tensors = {}
    for number, each in enumerate(arguments):
        if isinstance(each, Pointer) and each.memory.size and each.memory.ctypes.data not in places:
            places[each.memory.ctypes.data] = end, each.memory
            tensors[end] = number
            end += _room(each.memory.size)
    memory = Memory("global", GLOBAL_AT, end + 256, _SHADOW_STEP)
    memory.there[:] = False
    memory.tensors = tensors
    for offset, raw in places.values():
        memory.bytes[offset : offset + raw.size] = raw
        memory.there[offset // _SHADOW_STEP : -(-(offset + raw.size) // _SHADOW_STEP)] = True
    numbers = []
    for each in arguments:
        if isinstance(each, Pointer):
            offset, _ = places.get(each.memory.ctypes.data, (0, None))
            numbers.append(GLOBAL_AT + offset + each.offset)
        elif isinstance(each, float):
            numbers.append(int(np.float32(each).view(np.uint32)))
        else:
            numbers.append(int(each))
    return memory, numbers, places


def _run(program: Program, steps: Sequence[_Step], block: Block, tally: Array | None) -> None:
    """Run a block to its end, its squads in turn between two barriers."""
    count = program.threads
    size = WARP if block.order.warps else count
    at: list[Threads] = [{0: np.arange(count) // size == squad} for squad in range(count // size)]
    while any(at):
        waiting: list[Threads] = [{} for _ in at]
        while any(at):
            moved = False
            for squad in reversed(range(len(at))):
                block.squad = squad
                at[squad], taken = _to_the_barrier(program, steps, block, at[squad], waiting[squad], tally)
                moved |= taken
            if any(at) and not moved:
                raise FaultError("threads wait for products that nobody has begun")
        places = {place for each in waiting for place in each}
        if len(places) > 1:
            raise FaultError(f"threads wait at different barriers: {sorted(places)}")
        at = [{place + 1: mask for place, mask in each.items()} for each in waiting]
        block.now.epoch += 1
    block.end()


def _to_the_barrier(
    program: Program, steps: Sequence[_Step], block: Block, at: Threads, waiting: Threads, tally: Array | None
) -> tuple[Threads, bool]:
    """Run the threads that stand ``at`` instructions until all wait at a barrier, which is added to ``waiting``, have
    ended, or need others to go first: these are given back, and whether an instruction was taken."""
    asleep: Threads = {}
    taken = False
    while at:
        place = min(at)
        mask = at.pop(place)
        limit = min(at, default=len(steps))
        lanes = None if mask.all() else mask
        while place < limit:
            step = steps[place]
            if tally is not None:
                tally[place] += mask.reshape(-1, WARP).any(1).sum()
            if step.run is None:
                going = mask if step.condition is None else mask & step.condition(block)
                staying = mask & ~going
                if going.any():
                    _move(program, place, going, at, waiting, bool(staying.any()))
                    if staying.any():
                        _meet(at, place + 1, staying)
                    break
            else:
                try:
                    step.run(block, lanes)
                except NotYetError:
                    _meet(asleep, place, mask)
                    break
                except Exception as error:
                    line = step.instruction
                    raise FaultError(f"{error}\n  {line.source}: {line.text}, block {block.index}") from error
            place, taken = place + 1, True
        else:
            if place < len(steps):
                _meet(at, place, mask)
    return asleep, taken


def _move(program: Program, place: int, going: Array, at: Threads, waiting: Threads, parted: bool) -> None:
    """Send the threads that take a branch, a barrier or a return on their way."""
    instruction = program.code[place]
    word = instruction.words[0]
    if word == "bar":
        if instruction.words[:2] != ("bar", "sync") or parted:
            raise FaultError(f"a barrier that not all reach, or of an unknown form: {instruction.text}")
        _meet(waiting, place, going)
    elif word == "bra":
        _meet(at, program.labels[instruction.operands[0]], going)


def _meet(where: Threads, place: int, mask: Array) -> None:
    where[place] = mask | where[place] if place in where else mask
