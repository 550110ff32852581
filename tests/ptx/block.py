"""A block of threads: its registers, its memory, and the work that it has under way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from .basics import WARP, Array, FaultError
from .memory import SHARED_AT, Memory, Moment

TENSOR_LANES, TENSOR_COLUMNS = 128, 512

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


@dataclass
class Barrier:
    """A barrier in shared memory, for products.

    coming : what was committed to it, of which each part's end is an arrival
    phase : how often all that it counts had arrived
    """

    count: int
    arrived: int = 0
    phase: int = 0
    coming: list[list[Callable[[], None]]] = field(default_factory=list)

    def finish(self) -> None:
        """Let what was committed come to its end."""
        while self.coming:
            for work in self.coming.pop(0):
                work()
            self.arrived += 1
            if self.arrived == self.count:
                self.arrived, self.phase = 0, self.phase + 1


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
    barriers : those in shared memory, by their address
    changes : how often one of them was begun or ended
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
        self._stores: dict[int, list[Callable[[], None]]] = {}
        self._taken: dict[int, int] = {}
        self.barriers: dict[int, Barrier] = {}
        self.changes = 0

    @cached_property
    def tensor(self) -> Memory:
        """Tensor memory, of which nothing is there before it is taken."""
        memory = Memory("tensor", 0, TENSOR_LANES * TENSOR_COLUMNS * 4, 4)
        memory.there[:] = False
        return memory

    def take_tensor(self, columns: int) -> int:
        """The first of so many columns of tensor memory, the last ones that are free."""
        if columns not in (32, 64, 128, 256, 512):
            raise FaultError(f"tensor memory is not taken by {columns} columns")
        start = min(self._taken, default=TENSOR_COLUMNS) - columns
        if start < 0:
            raise FaultError("tensor memory is used up")
        self._taken[start] = columns
        self._columns(self.tensor.there, start, columns)[:] = True
        self._columns(self.tensor.bytes.view(np.uint32), start, columns)[:] = 0xFFFFFFFF  # NaN
        return start

    def give_back_tensor(self, start: int, columns: int) -> None:
        if self._taken.pop(start, None) != columns:
            raise FaultError(f"{columns} columns of tensor memory from {start} on are given back, but were not taken")
        self._columns(self.tensor.there, start, columns)[:] = False

    def end(self) -> None:
        """What a block must not leave behind."""
        if self._taken:
            raise FaultError("tensor memory was not given back")

    @staticmethod
    def _columns(cells: Array, start: int, columns: int) -> Array:
        return cells.reshape(TENSOR_LANES, TENSOR_COLUMNS)[:, start : start + columns]

    @property
    def stores(self) -> list[Callable[[], None]]:
        """The squad's stores to tensor memory that it has not waited for."""
        return self._stores.setdefault(self.squad, [])

    @property
    def copies(self) -> Pending:
        """The squad's asynchronous copies."""
        return self._copies.setdefault(self.squad, Pending())

    @property
    def products(self) -> Pending:
        """The squad's asynchronous matrix products."""
        return self._products.setdefault(self.squad, Pending())
