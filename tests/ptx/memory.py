"""Memory that knows who was where, and so finds races.

Source: the ISA, "Memory Consistency Model": its asynchronous proxy for the fences of matrix instructions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .basics import WARP, Array, FaultError

SHARED_AT = 1 << 10
GLOBAL_AT = 1 << 32
_WIDEST = 16  # bytes of the widest access
_NOBODY, _SEVERAL = -1, -1 << 33  # in the upper half: -1, -2


@dataclass(frozen=True)
class Pointer:
    """A place in memory of the caller's, uint8, which is written to."""

    memory: Array
    offset: int = 0


@dataclass
class Moment:
    """What a block's threads have behind them.

    block : which block of the launch
    epoch : barriers that it has passed
    clocks : int32 [warps], barriers of each warp's own
    fences : int32 [warps], the epoch of the last fence between ordinary and asynchronous accesses
    """

    block: int
    epoch: int
    clocks: Array
    fences: Array

    @property
    def when(self) -> int:
        """Block and epoch as one number."""
        return self.block << 32 | self.epoch + 1

    def before(self) -> Moment:
        """As if a barrier had come since."""
        return replace(self, epoch=self.epoch - 1)


class Memory:
    """Bytes, and for every ``step`` of them who was last there, to find races.

    A thread is told apart from others that may be there at the same time by a :class:`Moment`.
    """

    def __init__(self, name: str, start: int, size: int, step: int) -> None:
        cells = -(-size // step)
        self.name, self.start, self.step, self.size = name, start, step, cells * step
        self.bytes = np.zeros(-(-self.size // _WIDEST) * _WIDEST, np.uint8)
        self.there = np.ones(cells, np.bool_)
        self.unfenced = np.zeros(cells, np.bool_)
        self.tensors: dict[int, int] = {}  # by where they begin, the argument that points at them
        self._written, self._read = _Visits(cells), _Visits(cells)

    def load(self, address: Array, size: int, thread: Array, now: Moment, awaited: bool = False) -> Array:
        """The bytes uint8 [N, size] from each address int64 [N] on, read by ``thread [N]``.

        awaited : whether whoever comes later has waited for this, and needs no barrier
        """
        place, cells = self._places(address, size)
        self._visit(cells, thread, now, awaited)
        return self._wide(size)[place].view(np.uint8).reshape(-1, size)

    def store(self, address: Array, value: Array, thread: Array, now: Moment, awaited: bool = False) -> None:
        """Write the bytes uint8 [N, size] from each address int64 [N] on, by ``thread [N]``; ``awaited`` as in load."""
        size = value.shape[1]
        place, cells = self._places(address, size)
        who, wide = thread[:, None], self._wide(size)
        # Several threads may write the same.
        other = (wide[place].view(np.uint8).reshape(-1, size) != value).reshape(*cells.shape, -1).any(-1)
        clash = self._written.clash(cells, who, now) | self._read.clash(cells, who, now)
        self._no_race(cells, clash & other, "written")
        wide[place] = value.view(wide.dtype)[:, 0]
        if (wide[place].view(np.uint8).reshape(-1, size) != value).any():
            raise FaultError(f"{self.name} memory: threads write different values to one place in one instruction")
        self._written.add(cells, who, now.before() if awaited else now)
        self.unfenced[cells] = True

    def fetch(self, address: Array, readers: Array, now: Moment) -> Array:
        """The 16-bit values at ``address`` int64 [rows, N], read by a matrix unit.

        readers : int [rows or 1, W], threads of the warps for which it reads a row, the first warp first
        """
        place, cells = self._places(address.reshape(-1), 2)
        # Shown by who wrote it, or by the readers, to whom a barrier had shown it.
        fenced = np.broadcast_to(now.fences[readers // WARP].min(1, keepdims=True), address.shape).reshape(-1, 1)
        if (self.unfenced[cells] & ~self._written.before(cells, fenced, now)).any():
            raise FaultError(f"{self.name} memory: a matrix instruction reads what was written without a fence since")
        # Two warps stand for all: whoever else comes to a place is apart from one of them.
        for reader in {0, readers.shape[1] - 1}:
            self._visit(cells, np.broadcast_to(readers[:, reader, None], address.shape).reshape(-1), now)
        return self._wide(2)[place].view(np.uint16).reshape(address.shape)

    def fence(self, thread: Array, now: Moment) -> None:
        """Show matrix instructions what ``thread [N]`` have written, and those of their warps what they may see."""
        self.unfenced[self._written.by(thread)] = False
        now.fences[thread // WARP] = now.epoch

    def _visit(self, cells: Array, thread: Array, now: Moment, awaited: bool = False) -> None:
        """Read the cells [N, M], ``thread [N]`` those of its row."""
        who = thread[:, None]
        self._no_race(cells, self._written.clash(cells, who, now), "read")
        self._read.add(cells, who, now.before() if awaited else now)

    def _wide(self, size: int) -> Array:
        """All bytes as values of ``size`` bytes, which accesses are aligned to."""
        return self.bytes.view(f"V{size}")

    def _places(self, address: Array, size: int) -> tuple[Array, Array]:
        """Of each address its place [N] among the values of ``size`` bytes, and its cells [N, cells of a value]."""
        offset = address.astype(np.int64) - self.start
        if (offset % size).any():
            raise FaultError(f"{self.name} memory: {size} bytes at an address that is no multiple of it")
        if offset.size and (offset.min() < 0 or offset.max() + size > self.size):
            raise FaultError(
                f"{self.name} memory: an access outside of it, at offset {int(offset.min())} or {offset.max()}"
            )
        cells = (offset // self.step)[:, None] + np.arange(max(1, size // self.step))
        if not self.there[cells].all():
            raise FaultError(f"{self.name} memory: an access outside of every tensor")
        return offset // size, cells

    def _no_race(self, cells: Array, clash: Array, done: str) -> None:
        if clash.any():
            place = int(cells[clash][0]) * self.step
            raise FaultError(f"{self._name(place)}: a race, {done} while another thread may be there")

    def _name(self, place: int) -> str:
        """What a message calls a byte."""
        first = max((each for each in self.tensors if each <= place), default=None)
        if first is None:
            return f"{self.name} memory, byte {place}"
        return f"tensor {self.tensors[first]}, byte {place - first}"


class _Visits:
    """The last to have read or written each cell. Threads are numbered through a block.

    _when : int64 [cells], the moment's ``when``, _NOBODY, or _SEVERAL for several blocks
    _who : int32 [cells], 2 thread; 64 warp + 1 for several of a warp; -1 for several warps
    _clock : int32 [cells], the warp's clock
    """

    def __init__(self, cells: int) -> None:
        self._when = np.full(cells, _NOBODY, np.int64)
        self._who, self._clock = np.full(cells, -1, np.int32), np.full(cells, -1, np.int32)

    def clash(self, cells: Array, thread: Array, now: Moment) -> Array:
        """Where [N, M] a visit of ``thread [N, 1]`` would meet another's, with nothing to keep them in order."""
        when = self._when[cells]
        found = (when >> 32 != now.block) & (when != _NOBODY)
        lately = when == now.when
        if lately.any():
            warp, who = thread // WARP, self._who[cells]
            same_clock = self._clock[cells] == now.clocks[warp]
            found |= lately & ((who >> 6 != warp) | ((who != 2 * thread) & same_clock))
        return found

    def add(self, cells: Array, thread: Array, now: Moment) -> None:
        """Visits of ``thread [N, 1]`` to the cells [N, M]."""
        warp, mine = thread // WARP, 2 * thread
        when, old = self._when[cells], self._who[cells]
        lately = when == now.when
        self._who[cells] = mine
        last = self._who[cells]
        # Others in this very instruction, or before it.
        several, apart = last != mine, last >> 6 != warp
        if lately.any():
            several |= lately & (old != mine)
            apart |= lately & (old >> 6 != warp)
        if several.any():
            self._who[cells[several]] = np.broadcast_to(64 * warp + 1, cells.shape)[several]
            self._who[cells[apart]] = -1
        self._when[cells] = np.where((when >> 32 != now.block) & (when != _NOBODY), _SEVERAL, now.when)
        self._clock[cells] = now.clocks[warp]

    def before(self, cells: Array, epoch: Array, now: Moment) -> Array:
        """Which cells no block but this one visits, and this one not since an ``epoch`` of its own."""
        return self._when[cells] < (now.block << 32) + epoch.astype(np.int64) + 1

    def by(self, thread: Array) -> Array:
        """Which cells one of these threads, or one numbered between them, visited last, alone."""
        return (self._who >= 2 * thread[0]) & (self._who <= 2 * thread[-1]) & (self._who & 1 == 0)
