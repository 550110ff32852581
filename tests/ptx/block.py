"""A block of threads: its registers, its memory, and the work that it has under way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from .basics import WARP, Array
from .memory import SHARED_AT, Memory, Moment

SPECIAL = ("%tid.x", "%laneid", "%ntid.x", *(f"%{name}.{axis}" for name in ("ctaid", "nctaid") for axis in "xyz"))
NAMES = (*SPECIAL, "global_smem")
"""What an instruction may name beside registers: special registers, and where shared memory begins."""


@dataclass(frozen=True)
class Order:
    """How a launch takes its turns.

    warps : whether each warp runs alone to the next barrier, the last one first, in place of all side by side
    late : whether asynchronous copies and matrix products happen when they are waited for, in place of at once
    blocks_backwards : whether the last block comes first
    """

    warps: bool = False
    late: bool = False
    blocks_backwards: bool = False


SIDE_BY_SIDE = Order()


@dataclass
class Pending:
    """Asynchronous work of one kind, in groups that were committed and what was not yet."""

    groups: list[list[Callable[[], None]]] = field(default_factory=list)
    current: list[Callable[[], None]] = field(default_factory=list)

    def commit(self) -> None:
        self.groups.append(self.current)
        self.current = []

    def wait(self, left: int) -> None:
        while len(self.groups) > left:
            for work in self.groups.pop(0):
                work()


@dataclass(frozen=True)
class Launch:
    """What the blocks of a launch share.

    parameters : of each of the kernel's, its bits
    memory : global memory
    shared : bytes of shared memory
    """

    grid: Sequence[int]
    parameters: Mapping[str, int]
    memory: Memory
    shared: int
    order: Order


class Block:
    """What a block's instructions read and write.

    registers : of each slot None, or bits [threads], of which an instruction never changes an array in place
    thread : int64 [threads], the numbers of the threads
    squad : which of the sets of threads that run together has its turn
    """

    def __init__(self, launch: Launch, place: tuple[int, int, int], index: int, threads: int, slots: int) -> None:
        self.index, self.order, self.parameters = index, launch.order, launch.parameters
        self.memory = {"global": launch.memory, "shared": Memory("shared", SHARED_AT, launch.shared, 1)}
        self.memory["shared"].bytes[:] = 0xFF  # NaN in every format
        self.registers: list[Array | None] = [None] * slots
        self.thread = np.arange(threads)
        self.names = {
            "%tid.x": np.arange(threads, dtype=np.uint32),
            "%laneid": np.arange(threads, dtype=np.uint32) % WARP,
            "%ntid.x": np.full(1, threads, np.uint32),
            **{f"%ctaid.{axis}": np.full(1, n, np.uint32) for axis, n in zip("xyz", place, strict=True)},
            **{f"%nctaid.{axis}": np.full(1, n, np.uint32) for axis, n in zip("xyz", launch.grid, strict=True)},
            "global_smem": np.full(1, SHARED_AT, np.uint32),
        }
        self.now = Moment(index, 0, *np.zeros((2, threads // WARP), np.int32))
        self.squad = 0
        self._copies: dict[int, Pending] = {}
        self._products: dict[int, Pending] = {}

    @property
    def copies(self) -> Pending:
        """The squad's asynchronous copies."""
        return self._copies.setdefault(self.squad, Pending())

    @property
    def products(self) -> Pending:
        """The squad's asynchronous matrix products."""
        return self._products.setdefault(self.squad, Pending())
