"""An instruction on its way to a function: where its operands come from, and where its results go.

A mask says which threads take an instruction: bool [threads], of which one at least is set, or None for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .basics import TYPES, WARP, Array, FaultError, flushed
from .block import NAMES, Block
from .program import KINDS, Address, Bits, Instruction, Register

Mask = Any
Run = Callable[[Block, Mask], None]
Source = Callable[[Block], Array]
Target = Callable[[Block, Array, Mask], None]


class Form:
    """One instruction of a kernel whose blocks have ``threads``. ``slots`` is where each register is kept."""

    def __init__(self, instruction: Instruction, threads: int, slots: dict[Register, int]) -> None:
        self.instruction, self.threads, self._slots = instruction, threads, slots
        self.words, self.operands = instruction.words, instruction.operands
        self.flush = "ftz" in self.words
        self._written: list[tuple[int, np.dtype[Any]]] = []

    def refusal(self) -> FaultError:
        return FaultError(f"a form that this machine does not know: {self.instruction.text}")

    def source(self, operand: Any, kind: str) -> Source:
        """What gives an operand's values, of a type, [threads] or [1]."""
        wanted = np.dtype(TYPES[kind])
        if isinstance(operand, Register):
            return self._register(operand, wanted)
        if isinstance(operand, str) and operand in NAMES:
            return lambda block: block.names[operand].view(wanted)
        if not isinstance(operand, Bits):
            raise self.refusal()
        if kind == "pred":
            constant = np.full(1, operand.value != 0)
        elif operand.is_float and wanted == np.float64:
            constant = np.full(1, operand.value, np.uint64).view(wanted)
        else:
            constant = as_bits(operand.value, wanted)
        return lambda block: constant

    def _register(self, register: Register, wanted: np.dtype[Any]) -> Source:
        slot, own = self._slot(register), np.dtype(KINDS[register.kind])

        def bits(block: Block) -> Array:
            found = block.registers[slot]
            if found is None:
                raise FaultError(f"register %{register.kind}{register.place} is read before it is written")
            return found

        if own == wanted:
            return bits
        if own.itemsize == wanted.itemsize:
            return lambda block: bits(block).view(wanted)
        narrow = f"u{wanted.itemsize}"
        return lambda block: bits(block).astype(narrow).view(wanted)

    def whole(self, operand: Any, kind: str) -> Source:
        """As ``source``, [threads]."""
        source, count = self.source(operand, kind), self.threads
        return lambda block: spread(source(block), count)

    def part(self, operand: Any, kind: str) -> Source:
        """As ``whole`` for a part of a wider value: what nobody ever wrote may be there, if nobody looks at it."""
        source = self.whole(operand, kind)
        if not isinstance(operand, Register):
            return source
        slot, own = self._slot(operand), np.dtype(KINDS[operand.kind])

        def found(block: Block) -> Array:
            self._touch(block, slot, own)
            return source(block)

        return found

    def target(self, operand: Any) -> Target:
        """What writes values, [threads] or [1], to a register, for the threads of a mask."""
        if operand == "_":
            return lambda block, value, mask: None
        if not isinstance(operand, Register):
            raise self.refusal()
        slot, own, count = self._slot(operand), np.dtype(KINDS[operand.kind]), self.threads
        self._written.append((slot, own))

        def put(block: Block, value: Array, mask: Mask) -> None:
            if value.dtype != own:
                value = value.view(own) if value.dtype.itemsize == own.itemsize else value.astype(own)
            if mask is None:
                block.registers[slot] = spread(value, count)
            else:
                self._touch(block, slot, own)
                block.registers[slot] = np.where(mask, value, block.registers[slot])

        return put

    def _touch(self, block: Block, slot: int, own: np.dtype[Any]) -> None:
        """Threads that never wrote a register hold in it what nobody should miss."""
        if block.registers[slot] is None:
            block.registers[slot] = np.full(self.threads, -1).astype(own)

    def _slot(self, register: Register) -> int:
        return self._slots.setdefault(register, len(self._slots))

    def address(self, operand: Any) -> Source:
        """What gives the int64 [threads] that [register + offset] stands for."""
        if not isinstance(operand, Address):
            raise self.refusal()
        wide = isinstance(operand.base, Register) and operand.base.kind == "rd"
        base, offset, count = self.source(operand.base, "u64" if wide else "u32"), operand.offset, self.threads
        return lambda block: spread(base(block).astype(np.int64) + offset, count)

    def mapped(self, function: Callable[..., Array], kind: str, kinds: Sequence[str] = ()) -> Run:
        """The first operand is a function of the others, each of type ``kind``, or of ``kinds``."""
        kinds = kinds or [kind] * (len(self.operands) - 1)
        if isinstance(function, np.ufunc) and function.nin != len(kinds):
            raise self.refusal()
        sources = [self.source(operand, each) for operand, each in zip(self.operands[1:], kinds, strict=True)]
        put = self.target(self.operands[0])

        def run(block: Block, mask: Mask) -> None:
            put(block, function(*[source(block) for source in sources]), mask)

        def run_flushed(block: Block, mask: Mask) -> None:
            value = function(*[flushed(source(block)) for source in sources])
            put(block, flushed(value) if value.dtype == np.float32 else value, mask)

        return run_flushed if self.flush else run

    def condition(self) -> Source:
        """The threads, bool [threads], whom the instruction's guard lets through."""
        assert self.instruction.guard is not None
        register, wanted = self.instruction.guard
        source = self.source(register, "pred")
        return source if wanted else lambda block: ~source(block)

    def guarded(self, run: Run) -> Run:
        """The same for those threads only. Where there are none, its registers count as written even so: warps without
        a part in a reduction's last step go on with what they hold."""
        if self.instruction.guard is None:
            return run
        condition = self.condition()

        def guarded(block: Block, mask: Mask) -> None:
            taking = condition(block) if mask is None else condition(block) & mask
            if taking.any():
                run(block, taking)
            else:
                for slot, own in self._written:
                    self._touch(block, slot, own)

        return guarded

    def whole_warps(self, mask: Mask) -> Array:
        """Which warps, bool [warps], take the instruction; a fault where one takes it in part."""
        if mask is None:
            return np.ones(self.threads // WARP, np.bool_)
        by_warp = mask.reshape(-1, WARP)
        if (by_warp.any(1) != by_warp.all(1)).any():
            raise FaultError("a part of a warp takes what all of it must")
        return by_warp.all(1)


def spread(value: Array, count: int) -> Array:
    """[count] or [1] as [count]."""
    return value if len(value) == count else np.broadcast_to(value, (count,))


def as_bits(value: int, dtype: np.dtype[Any]) -> Array:
    """The lowest bits of a whole number as one value of a type, [1]."""
    return np.full(1, value % (1 << 8 * dtype.itemsize), f"u{dtype.itemsize}").view(dtype)
