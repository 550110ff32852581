"""PTX, the assembly of NVIDIA's GPUs, run on the CPU: so that what Triton's compiler made of a kernel is checked where
there is no GPU. The instructions are those that it makes for sm_80 and sm_90; others are a :class:`FaultError`.

All threads of a block take an instruction together, as NumPy arrays of one value a thread; where a branch parts them,
those that are furthest behind go first. A block follows another. Beside the numbers, a fault is

- an access outside of the tensors, or of the shared memory that the kernel asked for;
- a race: two threads at one place between two barriers, or two blocks in one launch, of whom one writes another value
- what a matrix instruction reads without a fence since it was written in the ordinary way;
- a register that is read before it is written.

Orders that the hardware may choose otherwise are chosen by :class:`Order`: a kernel without races makes the same bits
in all of them. Not modelled: rounding within the approximate functions and the matrix units (both are exact to float32
here, but for the order of sums), caches, and time.

Source: NVIDIA, Parallel Thread Execution ISA, the chapters on the instruction set and on asynchronous warpgroup
matrix instructions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = Any
Run = Callable[[Array], None]
WARP = 32
SHARED_AT = 1 << 10
GLOBAL_AT = 1 << 32
_SHADOW_STEP = 2  # bytes of global memory that are watched as one; two bytes are the least that the kernels store


class FaultError(Exception):
    """What a GPU would do wrong, or this machine does not know."""


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


@dataclass(frozen=True)
class Register:
    kind: str
    place: int


@dataclass(frozen=True)
class Address:
    base: Register | str
    offset: int


@dataclass(frozen=True)
class Bits:
    """A constant."""

    value: int
    is_float: bool = False


@dataclass(frozen=True)
class Instruction:
    """One line of a kernel, and the line that it was made of."""

    text: str
    source: str
    guard: tuple[Register, bool] | None
    words: tuple[str, ...]
    operands: tuple[Any, ...]

    @property
    def moves(self) -> bool:
        """Whether it says which instruction is next, or waits for other warps."""
        return self.words[0] in ("bra", "ret", "bar") and self.words[:2] != ("bar", "warp")


@dataclass(frozen=True)
class Program:
    """A kernel: its instructions, where labels stand among them, parameters (name, type) and threads of a block."""

    code: list[Instruction]
    labels: dict[str, int]
    parameters: list[tuple[str, str]]
    threads: int


_KINDS = {"p": np.bool_, "rs": np.uint16, "r": np.uint32, "rd": np.uint64, "f": np.uint32, "fd": np.uint64}
_REGISTER = re.compile(r"%(p|rs|rd|r|fd|f)(\d+)$")
_TYPES = {
    "b8": np.uint8, "u8": np.uint8, "s8": np.int8, "b16": np.uint16, "u16": np.uint16, "s16": np.int16,
    "b32": np.uint32, "u32": np.uint32, "s32": np.int32, "f32": np.float32, "f16": np.float16, "bf16": np.uint16,
    "b64": np.uint64, "u64": np.uint64, "s64": np.int64, "f64": np.float64, "pred": np.bool_,
}  # fmt: skip


def parse(ptx: str) -> Program:
    """The only kernel of a module."""
    head, _, body = ptx.partition("\n{")
    body = body.partition("\n}")[0]
    parameters = [(name, kind) for kind, name in re.findall(r"\.param \.(\w+)[^,)]*?(\w+_param_\d+)", head)]
    threads = re.search(r"\.(?:reqntid|maxntid) (\d+)", head)
    if threads is None:
        raise FaultError("the kernel does not say how many threads a block has")
    code: list[Instruction] = []
    labels: dict[str, int] = {}
    source = ""
    for line in body.splitlines():
        text, _, comment = line.partition("//")
        if text.lstrip().startswith(".loc"):
            source = comment.strip()
        for part in text.split(";"):
            part = part.strip()
            if part.endswith(":"):
                labels[part[:-1]] = len(code)
            elif part and not part.startswith("."):
                code.append(_instruction(part, source))
    return Program(code, labels, parameters, int(threads.group(1)))


def _instruction(text: str, source: str) -> Instruction:
    guard, rest = None, text
    if text.startswith("@"):
        name, rest = text[1:].split(maxsplit=1)
        guard = (_operand(name.lstrip("!")), not name.startswith("!"))
    name, _, rest = rest.replace("\t", " ").partition(" ")
    pieces = re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+", rest)
    return Instruction(text, source, guard, tuple(name.split(".")), tuple(map(_operand, pieces)))


def _operand(text: str) -> Any:
    if text.startswith("{"):
        return tuple(_operand(each.strip()) for each in text[1:-1].split(","))
    if text.startswith("["):
        base, _, offset = text[1:-1].replace(" ", "").partition("+")
        name = _operand(base)
        return Address(name, int(offset or "0", 0))
    known = _REGISTER.match(text)
    if known:
        return Register(known.group(1), int(known.group(2)))
    if re.match(r"0[fF][0-9a-fA-F]{8}$", text) or re.match(r"0[dD][0-9a-fA-F]{16}$", text):
        return Bits(int(text[2:], 16), True)
    if re.match(r"-?(0x[0-9a-fA-F]+|\d+)U?$", text):
        return Bits(int(text.rstrip("U"), 0))
    return text


@dataclass(frozen=True)
class Pointer:
    """A place in memory of the caller's, uint8, which is written to."""

    memory: Array
    offset: int = 0


class Memory:
    """Bytes, and for every ``step`` of them who was last there, to find races.

    A thread is told apart from others that may be there at the same time by a :class:`Moment`.
    """

    def __init__(self, name: str, start: int, size: int, step: int) -> None:
        cells = -(-size // step)
        self.name, self.start, self.step = name, start, step
        self.bytes = np.zeros(cells * step, np.uint8)
        self.there = np.ones(cells, np.bool_)
        self.unfenced = np.zeros(cells, np.bool_)
        self.tensors: dict[int, int] = {}  # by where they begin, the argument that points at them
        self._written, self._read = _Visits(cells), _Visits(cells)

    def load(self, address: Array, size: int, thread: Array, now: Moment) -> Array:
        """The bytes [N, size] from each address int64 [N] on, read by ``thread [N]``."""
        at, cells = self._places(address, size)
        who = np.repeat(thread, cells.shape[1]).reshape(cells.shape)
        self._no_race(cells, self._written.clash(cells, who, now), "read")
        self._read.add(cells, who, now)
        return self.bytes[at]

    def store(self, address: Array, value: Array, thread: Array, now: Moment) -> None:
        """Write the bytes [N, size] from each address on."""
        at, cells = self._places(address, value.shape[1])
        who = np.repeat(thread, cells.shape[1]).reshape(cells.shape)
        # Several threads may write the same.
        other = (self.bytes[at] != value).reshape(*cells.shape, -1).any(-1)
        clash = self._written.clash(cells, who, now) | self._read.clash(cells, who, now)
        self._no_race(cells, clash & other, "written")
        self.bytes[at] = value
        if (self.bytes[at] != value).any():
            raise FaultError(f"{self.name} memory: threads write different values to one place in one instruction")
        self._written.add(cells, who, now)
        self.unfenced[cells] = True

    def fetch(self, address: Array, thread: int, now: Moment) -> Array:
        """The 16-bit values at ``address``, of any shape, read by a matrix unit."""
        flat = address.reshape(-1)
        _, cells = self._places(flat, 2)
        # Shown by who wrote it, or by the reader, to whom a barrier had shown it.
        if (self.unfenced[cells] & ~self._written.before(cells, now.fences[thread // WARP])).any():
            raise FaultError(f"{self.name} memory: a matrix instruction reads what was written without a fence since")
        data = self.load(flat, 2, np.full(flat.shape, thread), now)
        return data.reshape(-1).view(np.uint16).reshape(address.shape)

    def _name(self, place: int) -> str:
        """What a message calls a byte."""
        first = max((each for each in self.tensors if each <= place), default=None)
        return (
            f"{self.name} memory, byte {place}"
            if first is None
            else f"tensor {self.tensors[first]}, byte {place - first}"
        )

    def fence(self, thread: Array, now: Moment) -> None:
        """Show matrix instructions what ``thread [N]`` have written, and those of their warps what they may see."""
        self.unfenced[self._written.by(thread)] = False
        now.fences[thread // WARP] = now.epoch

    def _places(self, address: Array, size: int) -> tuple[Array, Array]:
        offset = address.astype(np.int64) - self.start
        if (offset % size).any():
            raise FaultError(f"{self.name} memory: {size} bytes at an address that is no multiple of it")
        if (offset < 0).any() or (offset + size > self.bytes.size).any():
            raise FaultError(
                f"{self.name} memory: an access outside of it, at offset {int(offset.min())} or {offset.max()}"
            )
        cells = offset[:, None] // self.step + np.arange(max(1, size // self.step))
        if not self.there[cells].all():
            raise FaultError(f"{self.name} memory: an access outside of every tensor")
        return offset[:, None] + np.arange(size), cells

    def _no_race(self, cells: Array, clash: Array, done: str) -> None:
        if clash.any():
            place = int(cells[clash][0]) * self.step
            raise FaultError(f"{self._name(place)}: a race, {done} while another thread may be there")


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


class _Visits:
    """The last to have read or written each cell. Threads are numbered through a block; -1: nobody, -2: several."""

    def __init__(self, cells: int) -> None:
        self._thread, self._warp, self._block, self._epoch, self._clock = (
            np.full(cells, -1, np.int32) for _ in range(5)
        )

    def clash(self, cells: Array, thread: Array, now: Moment) -> Array:
        """Where a visit of ``thread`` would meet another's, with nothing to keep them in order."""
        warp, last = thread // WARP, self._warp[cells]
        beside = (last != warp) | ((self._thread[cells] != thread) & (self._clock[cells] == now.clocks[warp]))
        block = self._block[cells]
        return ((block == now.block) & (self._epoch[cells] == now.epoch) & beside) | (
            (block != -1) & (block != now.block)
        )

    def add(self, cells: Array, thread: Array, now: Moment) -> None:
        warp, block = thread // WARP, self._block[cells]
        fresh = (self._epoch[cells] != now.epoch) | (block != now.block)
        old_thread, old_warp = np.where(fresh, thread, self._thread[cells]), np.where(fresh, warp, self._warp[cells])
        self._thread[cells], self._warp[cells] = thread, warp
        # Others in this very instruction, or before it.
        several = (self._thread[cells] != thread) | (old_thread != thread)
        apart = (self._warp[cells] != warp) | (old_warp != warp)
        self._thread[cells[several]], self._warp[cells[apart]] = -2, -2
        self._block[cells] = np.where((block != -1) & (block != now.block), -2, now.block)
        self._epoch[cells], self._clock[cells] = now.epoch, now.clocks[warp]

    def before(self, cells: Array, epoch: int) -> Array:
        """Which cells were visited before a block's epoch."""
        return self._epoch[cells] < epoch

    def by(self, thread: Array) -> Array:
        """Which cells one of these threads visited last."""
        return (self._thread >= thread[0]) & (self._thread <= thread[-1])


@dataclass
class _Pending:
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
    blocks = [(x, y, z) for z in range(grid[2]) for y in range(grid[1]) for x in range(grid[0])]
    if order.blocks_backwards:
        blocks.reverse()
    with np.errstate(all="ignore"):
        for index, block in enumerate(blocks):
            _Block(program, grid, block, index, numbers, memory, shared, order, tally).run()
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


class _Block:
    """A block of threads on its way through a program."""

    def __init__(
        self,
        program: Program,
        grid: Sequence[int],
        block: tuple[int, int, int],
        index: int,
        numbers: Sequence[int],
        memory: Memory,
        shared: int,
        order: Order,
        tally: Array | None,
    ) -> None:
        threads = program.threads
        self.program, self.threads, self.index, self.order, self.tally = program, threads, index, order, tally
        self.memory = {"global": memory, "shared": Memory("shared", SHARED_AT, shared, 1)}
        self.memory["shared"].bytes[:] = 0xFF  # NaN in every format
        self.arguments = {name: number for (name, _), number in zip(program.parameters, numbers, strict=False)}
        self.arguments |= {name: 0 for name, _ in program.parameters[len(numbers) :]}  # scratch that no kernel uses
        self.registers: dict[Register, Array] = {}
        self.special = {
            "%tid.x": np.arange(threads, dtype=np.uint32),
            "%laneid": np.arange(threads, dtype=np.uint32) % WARP,
            **{f"%ctaid.{axis}": np.full(1, n, np.uint32) for axis, n in zip("xyz", block, strict=True)},
            **{f"%nctaid.{axis}": np.full(1, n, np.uint32) for axis, n in zip("xyz", grid, strict=True)},
            "%ntid.x": np.full(1, threads, np.uint32),
            "global_smem": np.full(1, SHARED_AT, np.uint32),
        }
        self.now = Moment(index, 0, *np.zeros((2, threads // WARP), np.int32))
        self.thread = np.arange(threads)
        self.squad = 0
        self.copies: dict[int, _Pending] = {}
        self.products: dict[int, _Pending] = {}
        self.steps = [None if each.moves else _Compiler(self, each).compile() for each in program.code]

    def run(self) -> None:
        count = self.threads
        size = WARP if self.order.warps else count
        squads = [np.arange(count) // size == squad for squad in range(count // size)]
        at: list[dict[int, Array]] = [{0: mask} for mask in squads]
        while any(at):
            waiting: list[dict[int, Array]] = [{} for _ in squads]
            for squad in reversed(range(len(squads))):
                self.squad = squad
                waiting[squad] = self._to_the_barrier(at[squad])
            places = {place for each in waiting for place in each}
            if len(places) > 1:
                raise FaultError(f"threads wait at different barriers: {sorted(places)}")
            at = [{place + 1: mask for place, mask in each.items()} for each in waiting]
            self.now.epoch += 1

    def _to_the_barrier(self, at: dict[int, Array]) -> dict[int, Array]:
        """Run the threads that stand ``at`` instructions until all wait or have ended; who waits where."""
        waiting: dict[int, Array] = {}
        code, steps, labels = self.program.code, self.steps, self.program.labels

        def meet(where: dict[int, Array], place: int, mask: Array) -> None:
            where[place] = mask | where[place] if place in where else mask

        while at:
            place = min(at)
            mask = at.pop(place)
            limit = min(at, default=len(code))
            lanes = None if mask.all() else mask
            while True:
                if place >= limit:
                    if place < len(code):
                        meet(at, place, mask)
                    break
                instruction = code[place]
                word = instruction.words[0]
                step = steps[place]
                if self.tally is not None:
                    self.tally[place] += mask.reshape(-1, WARP).any(1).sum()
                if step is not None:
                    try:
                        step(lanes)
                    except Exception as error:
                        raise FaultError(
                            f"{error}\n  {instruction.source}: {instruction.text}, block {self.index}"
                        ) from error
                    place += 1
                    continue
                going = mask if instruction.guard is None else mask & self.condition(instruction.guard)
                staying = mask & ~going
                if word == "bar" and going.any():
                    if instruction.words[:2] != ("bar", "sync") or staying.any():
                        raise FaultError(f"a barrier that not all reach, or of an unknown form: {instruction.text}")
                    meet(waiting, place, going)
                    break
                if word == "bra" and going.any():
                    meet(at, labels[instruction.operands[0]], going)
                if not staying.any():
                    break
                if going.any():
                    meet(at, place + 1, staying)
                    break
                place += 1
        return waiting

    def condition(self, guard: tuple[Register, bool]) -> Array:
        value = self.value(guard[0])
        return value if guard[1] else ~value

    def value(self, register: Register) -> Array:
        found = self.registers.get(register)
        if found is None:
            raise FaultError(f"register %{register.kind}{register.place} is read before it is written")
        return found


_COMPARE = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
}  # fmt: skip
_EVICTION = {"L1::evict_last", "L1::evict_first", "L1::no_allocate"}


def _bfloat16(x: Array) -> Array:
    """float32 to bfloat16's bits, to the nearest, ties to even; a NaN stays one."""
    bits = x.view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(x), np.uint16(0x7FFF), rounded)


def _wide(bits: Array) -> Array:
    """bfloat16's bits as float32."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def _flushed(x: Array) -> Array:
    return np.where(np.abs(x) < np.float32(2.0**-126), np.copysign(np.float32(0), x), x)


def _shift(a: Array, by: Array, left: bool) -> Array:
    """PTX shifts by more than the width as by the width."""
    width = a.dtype.itemsize * 8
    inside = np.minimum(by, width - 1).astype(a.dtype)
    moved = a << inside if left else a >> inside
    beyond = np.where(a < 0, -1, 0).astype(a.dtype) if a.dtype.kind == "i" and not left else a.dtype.type(0)
    return np.where(by >= width, beyond, moved)


def _divide(a: Array, b: Array) -> Array:
    """Of integers, towards zero."""
    safe = np.where(b == 0, 1, b)
    size = np.abs(a.astype(np.int64)) // np.abs(safe.astype(np.int64))
    return np.where((a < 0) != (b < 0), -size, size).astype(a.dtype)


class _Compiler:
    """One instruction as a function of the mask of threads that take it, None for all."""

    def __init__(self, block: _Block, instruction: Instruction) -> None:
        self.block, self.instruction = block, instruction
        self.words, self.operands = instruction.words, instruction.operands
        self.flush = "ftz" in self.words

    def compile(self) -> Run:
        work = getattr(self, f"_{self.words[0]}", None)
        if work is None:
            raise FaultError(f"an instruction that this machine does not know: {self.instruction.text}")
        return self._guarded(work())

    def _guarded(self, run: Run) -> Run:
        guard, block = self.instruction.guard, self.block
        if guard is None:
            return run

        def guarded(mask: Array) -> None:
            condition = block.condition(guard)
            run(condition if mask is None else condition & mask)

        return guarded

    def _refuse(self) -> FaultError:
        return FaultError(f"a form that this machine does not know: {self.instruction.text}")

    def _in(self, operand: Any, kind: str) -> Callable[[], Array]:
        """What gives an operand's values, of a type, [threads] or [1]."""
        wanted, block = np.dtype(_TYPES[kind]), self.block
        if isinstance(operand, Bits):
            if kind == "pred":
                constant = np.full(1, operand.value != 0)
            elif operand.is_float and wanted == np.float64:
                constant = np.full(1, operand.value, np.uint64).view(wanted)
            else:
                size = 8 * wanted.itemsize
                constant = np.full(1, operand.value % (1 << size), f"u{wanted.itemsize}").view(wanted)
            return lambda: constant
        if isinstance(operand, str):
            special = block.special.get(operand)
            if special is None:
                raise self._refuse()
            return lambda: special.view(wanted)
        if not isinstance(operand, Register):
            raise self._refuse()
        if np.dtype(_KINDS[operand.kind]).itemsize == wanted.itemsize:
            return lambda: block.value(operand).view(wanted)
        narrow = f"u{wanted.itemsize}"
        return lambda: block.value(operand).astype(narrow).view(wanted)

    def _out(self, operand: Any) -> Callable[[Array, Array], None]:
        """What writes values to a register, for the threads of a mask."""
        if operand == "_":
            return lambda value, mask: None
        if not isinstance(operand, Register):
            raise self._refuse()
        block, own = self.block, np.dtype(_KINDS[operand.kind])
        registers, count = block.registers, block.threads

        def put(value: Array, mask: Array) -> None:
            if value.dtype != own:
                value = value.view(own) if value.dtype.itemsize == own.itemsize else value.astype(own)
            if mask is None:
                registers[operand] = value if len(value) == count else np.broadcast_to(value, (count,))
            elif mask.any():
                old = registers.get(operand)
                # Threads that never wrote it hold what nobody should miss.
                old = np.full(count, -1).astype(own) if old is None else old
                registers[operand] = np.where(mask, value, old)

        return put

    def _map(self, function: Callable[..., Array], kind: str, kinds: Sequence[str] = ()) -> Run:
        """The first operand is a function of the others, each of type ``kind``, or of ``kinds``."""
        sources = [
            self._in(operand, each)
            for operand, each in zip(self.operands[1:], kinds or [kind] * (len(self.operands) - 1), strict=True)
        ]
        put, flush = self._out(self.operands[0]), self.flush

        def run(mask: Array) -> None:
            values = [source() for source in sources]
            if flush:
                values = [_flushed(value) for value in values]
            value = function(*values)
            put(_flushed(value) if flush and value.dtype == np.float32 else value, mask)

        return run

    # Arithmetic. The last word is the type.

    def _simple(self, function: Callable[..., Array]) -> Run:
        kind, _, two = self.words[-1].partition("x")
        if kind not in ("bf16", "f16"):
            return self._map(function, kind)

        def by_halves(*values: Array) -> Array:
            halves = [np.ascontiguousarray(value).view(np.uint16) for value in np.broadcast_arrays(*values)]
            if kind == "f16":
                return function(*(half.view(np.float16) for half in halves)).view(values[0].dtype)
            return _bfloat16(function(*map(_wide, halves))).view(values[0].dtype)

        return self._map(by_halves, "b32" if two else "b16")

    def _add(self) -> Run:
        return self._simple(np.add)

    def _sub(self) -> Run:
        return self._simple(np.subtract)

    def _neg(self) -> Run:
        return self._simple(np.negative)

    def _abs(self) -> Run:
        return self._simple(np.abs)

    def _min(self) -> Run:
        return self._simple(np.minimum if "NaN" in self.words else np.fmin)

    def _max(self) -> Run:
        return self._simple(np.maximum if "NaN" in self.words else np.fmax)

    def _and(self) -> Run:
        return self._simple(np.bitwise_and)

    def _or(self) -> Run:
        return self._simple(np.bitwise_or)

    def _xor(self) -> Run:
        return self._simple(np.bitwise_xor)

    def _not(self) -> Run:
        return self._simple(np.invert)

    def _mov(self) -> Run:
        kind = self.words[-1]
        into, source = self.operands
        if isinstance(into, tuple):  # the parts of a wider register
            width = 8 * np.dtype(_TYPES[kind]).itemsize // len(into)
            whole, puts = self._in(source, kind), [self._out(each) for each in into]

            def split(mask: Array) -> None:
                parts = np.ascontiguousarray(np.broadcast_to(whole(), (self.block.threads,)))
                parts = parts.view(f"u{width // 8}").reshape(self.block.threads, -1)
                for part, put in enumerate(puts):
                    put(parts[:, part].copy(), mask)

            return split
        if isinstance(source, tuple):
            width = 8 * np.dtype(_TYPES[kind]).itemsize // len(source)
            pieces, put = [self._in(each, f"b{width}") for each in source], self._out(into)

            def join(mask: Array) -> None:
                parts = [np.broadcast_to(each(), (self.block.threads,)) for each in pieces]
                put(np.stack(parts, axis=1).view(_TYPES[kind]).reshape(-1), mask)

            return join
        return self._simple(lambda a: a)

    def _mul(self) -> Run:
        form, kind = self.words[1], self.words[-1]
        if form == "wide":
            wide = kind[0] + str(2 * int(kind[1:]))
            return self._map(lambda a, b: a.astype(_TYPES[wide]) * b, kind)
        if form == "hi":
            return self._map(lambda a, b: (a.astype(np.dtype(kind[0] + "8")) * b >> 32).astype(a.dtype), kind)
        return self._simple(np.multiply)

    def _mad(self) -> Run:
        form, kind = self.words[1], self.words[-1]
        if form == "wide":
            wide = kind[0] + str(2 * int(kind[1:]))
            return self._map(lambda a, b, c: a.astype(_TYPES[wide]) * b + c, kind, (kind, kind, wide))
        if form != "lo":
            raise self._refuse()
        return self._simple(lambda a, b, c: a * b + c)

    def _fma(self) -> Run:
        # In float64 the product is exact; the sum is rounded twice, which shows once in 2^29.
        return self._simple(lambda a, b, c: (a.astype(np.float64) * b + c).astype(np.float32))

    def _div(self) -> Run:
        return self._simple(np.divide if self.words[-1] == "f32" else _divide)

    def _rem(self) -> Run:
        return self._simple(lambda a, b: a - _divide(a, b) * b)

    def _sqrt(self) -> Run:
        return self._simple(np.sqrt)

    def _rcp(self) -> Run:
        return self._simple(lambda a: np.float32(1) / a)

    def _ex2(self) -> Run:
        return self._simple(np.exp2)

    def _lg2(self) -> Run:
        return self._simple(np.log2)

    def _shl(self) -> Run:
        kind = self.words[-1]
        return self._map(lambda a, by: _shift(a, by, True), kind, (kind, "u32"))

    def _shr(self) -> Run:
        kind = self.words[-1].replace("b", "u")
        return self._map(lambda a, by: _shift(a, by, False), kind, (kind, "u32"))

    def _bfe(self) -> Run:
        kind = self.words[-1]
        if kind not in ("u32", "s32"):
            raise self._refuse()

        def extract(a: Array, first: Array, length: Array) -> Array:
            up = 64 - first.astype(np.int64) - length
            wide = a.astype(np.int64).view(np.uint64 if kind == "u32" else np.int64)
            return (wide << up.astype(wide.dtype) >> (64 - length).astype(wide.dtype)).astype(a.dtype)

        return self._map(extract, kind, (kind, "u32", "u32"))

    def _prmt(self) -> Run:
        def permute(a: Array, b: Array, choice: Array) -> Array:
            both = a.astype(np.uint64) | b.astype(np.uint64) << np.uint64(32)
            out = np.zeros(np.broadcast_shapes(a.shape, b.shape, choice.shape), np.uint32)
            for place in range(4):
                chosen = (choice >> np.uint32(4 * place)) & np.uint32(15)
                byte = (both >> (8 * (chosen & 7)).astype(np.uint64)) & np.uint64(255)
                byte = np.where(chosen & 8, np.where(byte & np.uint64(128), 255, 0), byte)
                out |= byte.astype(np.uint32) << np.uint32(8 * place)
            return out

        return self._simple(permute)

    def _selp(self) -> Run:
        kind = self.words[-1]
        return self._map(lambda a, b, which: np.where(which, a, b), kind, (kind, kind, "pred"))

    def _setp(self) -> Run:
        if len(self.words) != 3 + self.flush or isinstance(self.operands[0], tuple):
            raise self._refuse()
        name, kind = self.words[1], self.words[-1].replace("b", "u")
        if kind == "f32":
            if name.endswith("u"):  # or unordered
                compare = _COMPARE[name[:-1]]
                return self._map(lambda a, b: compare(a, b) | np.isnan(a) | np.isnan(b), kind)
            if name == "ne":
                return self._map(lambda a, b: (a < b) | (a > b), kind)
            if name == "num":
                return self._map(lambda a, b: ~(np.isnan(a) | np.isnan(b)), kind)
            if name == "nan":
                return self._map(lambda a, b: np.isnan(a) | np.isnan(b), kind)
        if name in ("lo", "ls", "hi", "hs"):
            name = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}[name]
        return self._map(_COMPARE[name], kind)

    def _cvt(self) -> Run:
        into, source = self.words[-2:]
        form = [word for word in self.words[1:-2] if word != "ftz"]
        if into in ("bf16x2", "f16x2") and source == "f32" and form == ["rn"]:
            half = _bfloat16 if into == "bf16x2" else (lambda x: x.astype(np.float16).view(np.uint16))
            return self._map(
                lambda high, low: half(high).astype(np.uint32) << np.uint32(16) | half(low), "f32"
            )  # fmt: skip
        if into == "bf16" and source == "f32" and form == ["rn"]:
            return self._map(_bfloat16, "f32")
        if into == "f32" and source == "bf16":
            return self._map(_wide, "b16")
        if into == "tf32" and form == ["rna"]:
            return self._map(lambda x: ((x.view(np.uint32) + 0x1000) & ~np.uint32(0x1FFF)).view(np.float32), "f32")
        if form in (["rmi"], ["rni"], ["rzi"], ["rpi"]) and source == "f32":
            rounded = {"rmi": np.floor, "rni": np.rint, "rzi": np.trunc, "rpi": np.ceil}[form[0]]
            if into == "f32":
                return self._map(rounded, "f32")
            limits = np.iinfo(_TYPES[into])

            def whole(x: Array) -> Array:
                x = np.where(np.isnan(x), 0, rounded(x)).astype(np.float64)
                return np.clip(x, limits.min, limits.max).astype(_TYPES[into])

            return self._map(whole, "f32")
        if form in ([], ["rn"]) and into in _TYPES and source in _TYPES and "bf16" not in (into, source):
            return self._map(lambda x: x.astype(_TYPES[into]), source)
        raise self._refuse()

    # Between the threads of a warp.

    def _whole_warps(self, mask: Array) -> Array:
        """Which warps [warps] take the instruction; a fault where one takes it in part."""
        count = self.block.threads
        if mask is None:
            return np.ones(count // WARP, np.bool_)
        by_warp = mask.reshape(-1, WARP)
        if (by_warp.any(1) != by_warp.all(1)).any():
            raise FaultError("a part of a warp takes what all of it must")
        return by_warp.all(1)

    def _shfl(self) -> Run:
        if self.words[1:] not in (("sync", mode, "b32") for mode in ("bfly", "up", "down", "idx")):
            raise self._refuse()
        mode, into = self.words[2], self.operands[0]
        source, by, clamp = (self._in(each, "b32") for each in self.operands[1:4])
        put, count = self._out(into), self.block.threads
        lane = np.arange(count) % WARP

        def run(mask: Array) -> None:
            self._whole_warps(mask)
            step, limits = by().astype(np.int64), clamp().astype(np.int64)
            segment = (limits >> 8) & 31
            last = (lane & segment) | (limits & 31 & ~segment)
            if mode == "up":
                other = lane - step
                fits = other >= last
            elif mode == "down":
                other = lane + step
                fits = other <= last
            elif mode == "bfly":
                other = lane ^ step
                fits = other <= last
            else:
                other = (lane & segment) | (step & 31 & ~segment)
                fits = other <= last
            other = np.where(fits, other, lane)
            values = np.broadcast_to(source(), (count,))
            put(values[np.arange(count) - lane + other], mask)

        return run

    def _redux(self) -> Run:
        reduce = {"add": np.add, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and, "or": np.bitwise_or}
        function, kind = reduce[self.words[2]], self.words[-1]
        source, put = self._in(self.operands[1], kind), self._out(self.operands[0])

        def run(mask: Array) -> None:
            self._whole_warps(mask)
            values = np.broadcast_to(source(), (self.block.threads,)).reshape(-1, WARP)
            put(np.repeat(function.reduce(values, axis=1).astype(_TYPES[kind]), WARP), mask)

        return run

    def _bar(self) -> Run:
        if self.words[1:] != ("warp", "sync") or self.operands != (Bits(-1),):
            raise self._refuse()
        clocks = self.block.now.clocks

        def run(mask: Array) -> None:
            clocks[self._whole_warps(mask)] += 1

        return run

    # Memory.

    def _address(self, operand: Any) -> Callable[[], Array]:
        if not isinstance(operand, Address):
            raise self._refuse()
        wide = isinstance(operand.base, Register) and operand.base.kind == "rd"
        base = self._in(operand.base, "u64" if wide else "u32")
        return lambda: np.broadcast_to(base().astype(np.int64) + operand.offset, (self.block.threads,))

    def _access(self) -> tuple[str, str, tuple[Any, ...]]:
        """The memory, the type and the registers of a load or a store."""
        space, kind = self.words[1], self.words[-1]
        others = set(self.words[2:-1]) - {"v2", "v4"} - _EVICTION
        if space not in ("global", "shared") or others:
            raise self._refuse()
        registers = self.operands[0] if self.words[0] == "ld" else self.operands[1]
        return space, kind, registers if isinstance(registers, tuple) else (registers,)

    def _ld(self) -> Run:
        block = self.block
        if self.words[1] == "param":
            number, put = block.arguments[self.operands[1].base], self._out(self.operands[0])
            dtype = np.dtype(_TYPES[self.words[-1]])
            constant = np.full(1, number % (1 << 8 * dtype.itemsize), f"u{dtype.itemsize}").view(dtype)
            return lambda mask: put(constant, mask)
        space, kind, registers = self._access()
        address, puts = self._address(self.operands[1]), [self._out(each) for each in registers]
        memory, dtype = block.memory[space], np.dtype(_TYPES[kind])
        size = dtype.itemsize * len(puts)

        def run(mask: Array) -> None:
            at = address()
            there = np.arange(block.threads) if mask is None else np.flatnonzero(mask)
            if not len(there):
                return
            data = memory.load(at[there], size, block.thread[there], block.now).view(dtype)
            for part, put in enumerate(puts):
                value = np.zeros(block.threads, dtype)
                value[there] = data[:, part]
                put(value, mask)

        return run

    def _st(self) -> Run:
        block = self.block
        space, kind, registers = self._access()
        address, values = self._address(self.operands[0]), [self._in(each, kind) for each in registers]
        memory = block.memory[space]

        def run(mask: Array) -> None:
            there = np.arange(block.threads) if mask is None else np.flatnonzero(mask)
            parts = [np.broadcast_to(value(), (block.threads,))[there] for value in values]
            data = np.ascontiguousarray(np.stack(parts, axis=1)).view(np.uint8)
            if len(there):
                memory.store(address()[there], data, block.thread[there], block.now)

        return run

    def _cp(self) -> Run:
        block, memory = self.block, self.block.memory
        if self.words[:2] != ("cp", "async"):
            raise self._refuse()
        if self.words[2] in ("commit_group", "wait_group", "wait_all"):
            left = self.operands[0].value if self.words[2] == "wait_group" else 0

            def settle(mask: Array) -> None:
                if mask is not None and not block.order.warps and not mask.all():
                    raise FaultError("a part of the threads commits or awaits copies")
                pending = block.copies.setdefault(block.squad, _Pending())
                if self.words[2] == "wait_group":
                    pending.wait(left)
                else:
                    pending.commit()
                    if self.words[2] == "wait_all":
                        pending.wait(0)

            return settle
        if self.words[2] not in ("ca", "cg") or self.words[3:] != ("shared", "global"):
            raise self._refuse()
        into, source, size = self._address(self.operands[0]), self._address(self.operands[1]), self.operands[2].value
        given = self._in(self.operands[3] if len(self.operands) > 3 else Bits(size), "u32")

        def run(mask: Array) -> None:
            active = np.ones(block.threads, np.bool_) if mask is None else mask
            to, start, length = into(), source(), np.broadcast_to(given(), (block.threads,))
            if not np.isin(length[active], (0, size)).all():
                raise FaultError("a copy of a part of its bytes")
            there = np.flatnonzero(active)

            def copy() -> None:
                if not len(there):
                    return
                data = np.zeros((block.threads, size), np.uint8)
                read = np.flatnonzero(active & (length == size))
                if len(read):
                    who = block.thread[read]
                    data[read] = memory["global"].load(start[read], size, who, block.now)
                memory["shared"].store(to[there], data[there], block.thread[there], block.now)

            if block.order.late:
                block.copies.setdefault(block.squad, _Pending()).current.append(copy)
            else:
                copy()

        return run

    def _fence(self) -> Run:
        if self.words[1:] != ("proxy", "async", "shared::cta"):
            raise self._refuse()
        shared = self.block.memory["shared"]

        def run(mask: Array) -> None:
            shared.fence(self.block.thread if mask is None else self.block.thread[mask], self.block.now)

        return run

    # Matrices.

    def _rows8(self, count: int, addresses: Array) -> tuple[Array, Array]:
        """The threads [warps, count, 8] that give the rows of ``count`` 8x8 matrices a warp, and the addresses."""
        lanes = np.arange(count * 8).reshape(count, 8)
        threads = np.arange(self.block.threads // WARP)[:, None, None] * WARP + lanes
        return threads, addresses[threads]

    def _matrices(self) -> tuple[int, bool, tuple[Any, ...], Any]:
        words = [word for word in self.words if word != "trans"]
        if words[1:4] != ["sync", "aligned", "m8n8"] or words[5:] != ["shared", "b16"]:
            raise self._refuse()
        registers, address = self.operands if self.words[0] == "ldmatrix" else self.operands[::-1]
        return int(words[4][1:]), "trans" in self.words, registers, address

    def _ldmatrix(self) -> Run:
        block = self.block
        count, transposed, registers, at = self._matrices()
        address, puts = self._address(at), [self._out(each) for each in registers]

        def run(mask: Array) -> None:
            warps = self._whole_warps(mask)
            threads, where = self._rows8(count, address())
            who = block.thread[threads[warps]].reshape(-1)
            # Each row is read for the whole warp: its name stands for all of them.
            data = block.memory["shared"].load(where[warps].reshape(-1), 16, who, block.now)
            rows = data.view(np.uint16).reshape(-1, count, 8, 8)
            if transposed:
                rows = rows.swapaxes(2, 3)
            pairs = np.ascontiguousarray(rows).view(np.uint32)  # [warps, count, 8, 4]: lane 4 row + pair
            for part, put in enumerate(puts):
                value = np.zeros((block.threads // WARP, WARP), np.uint32)
                value[warps] = pairs[:, part].reshape(-1, WARP)
                put(value.reshape(-1), mask)

        return run

    def _stmatrix(self) -> Run:
        block = self.block
        count, transposed, registers, at = self._matrices()
        address, values = self._address(at), [self._in(each, "b32") for each in registers]

        def run(mask: Array) -> None:
            warps = self._whole_warps(mask)
            threads, where = self._rows8(count, address())
            parts = np.stack([np.broadcast_to(each(), (block.threads,)) for each in values])
            rows = np.ascontiguousarray(parts.reshape(count, -1, WARP).swapaxes(0, 1)).view(np.uint16)
            rows = rows.reshape(-1, count, 8, 8)
            if transposed:
                rows = np.ascontiguousarray(rows.swapaxes(2, 3))
            who = block.thread[threads[warps]].reshape(-1)
            data = rows[warps].reshape(-1, 8).view(np.uint8)
            block.memory["shared"].store(where[warps].reshape(-1), data, who, block.now)

        return run

    def _elements(self, values: Array, kind: str) -> Array:
        """Of 32-bit registers [..., N], the float64 elements [..., N or 2N]."""
        if kind == "tf32":
            return (np.ascontiguousarray(values) & ~np.uint32(0x1FFF)).view(np.float32).astype(np.float64)
        return _halves(np.ascontiguousarray(values).view(np.uint16), kind)

    def _mma(self) -> Run:
        shape, kind = self.words[3], self.words[7]
        if self.words[1:3] != ("sync", "aligned") or self.words[4:7] != ("row", "col", "f32"):
            raise self._refuse()
        if (shape, kind) not in (("m16n8k16", "bf16"), ("m16n8k16", "f16"), ("m16n8k8", "tf32")):
            raise self._refuse()
        a, b, c = ([self._in(each, "b32") for each in part] for part in self.operands[1:])
        puts, count = [self._out(each) for each in self.operands[0]], self.block.threads
        together = 1 if kind == "tf32" else 2  # elements of a register
        group, quad = np.arange(WARP) // 4, np.arange(WARP) % 4
        column = quad[:, None] * together + np.arange(together)

        def gather(parts: list[Callable[[], Array]]) -> Array:
            return np.stack([np.broadcast_to(each(), (count,)) for each in parts], axis=-1).reshape(
                -1, WARP, len(parts)
            )

        def run(mask: Array) -> None:
            self._whole_warps(mask)
            warps = count // WARP
            left, right = (self._elements(gather(part), kind).reshape(warps, WARP, -1, together) for part in (a, b))
            sums = gather(c).view(np.float32)
            A, B, C = np.zeros((warps, 16, 8 * together)), np.zeros((warps, 8 * together, 8)), np.zeros((warps, 16, 8))
            for part in range(4):  # rows g and g + 8, then the other half of the depth
                A[:, (group + 8 * (part % 2))[:, None], column + 4 * together * (part // 2)] = left[:, :, part]
                C[:, group + 8 * (part // 2), 2 * quad + part % 2] = sums[:, :, part]
            for part in range(2):
                B[:, column + 4 * together * part, group[:, None]] = right[:, :, part]
            D = (A @ B + C).astype(np.float32)
            for part, put in enumerate(puts):
                put(D[:, group + 8 * (part // 2), 2 * quad + part % 2].reshape(-1), mask)

        return run

    def _wgmma(self) -> Run:
        block, word = self.block, self.words[1]
        if word == "fence":
            return lambda mask: None
        if word in ("commit_group", "wait_group"):

            def settle(mask: Array) -> None:
                pending = block.products.setdefault(block.squad, _Pending())
                if word == "commit_group":
                    pending.commit()
                else:
                    pending.wait(self.operands[0].value)

            return settle
        shape = re.match(r"m64n(\d+)k(\d+)$", self.words[4])
        kind = self.words[6]
        if self.words[1:4] != ("mma_async", "sync", "aligned") or self.words[5] != "f32" or shape is None:
            raise self._refuse()
        if (kind, shape.group(2)) not in (("bf16", "16"), ("f16", "16")):
            raise self._refuse()
        return self._warpgroup(int(shape.group(1)), kind)

    def _warpgroup(self, columns: int, kind: str) -> Run:
        block, (into, left, right, scale, *flags) = self.block, self.operands
        from_registers = isinstance(left, tuple)
        signs = [flag.value for flag in flags]
        if signs[:2] != [1, 1]:
            raise self._refuse()
        a_by_rows, b_by_columns = from_registers or signs[2] == 0, signs[-1] == 0
        A_in = [self._in(each, "b32") for each in left] if from_registers else self._in(left, "u64")
        B_in, scaled = self._in(right, "u64"), self._in(scale, "pred")
        sums, puts = [self._in(each, "f32") for each in into], [self._out(each) for each in into]
        count = block.threads
        if count % 128:
            raise FaultError("a block of warpgroups in part")
        group, quad = np.arange(WARP) // 4, np.arange(WARP) % 4
        whole = lambda value: np.broadcast_to(value, (count,))  # noqa: E731

        def run(mask: Array) -> None:
            warps = self._whole_warps(mask)
            registers = np.stack([whole(each()) for each in A_in], axis=-1) if from_registers else None
            descriptors = [None if from_registers else whole(A_in()), whole(B_in())]
            adds = whole(scaled())

            def multiply() -> None:
                # Where nothing is added to them, the sums may be registers that were never written.
                old = np.stack([whole(each()) for each in sums]) if adds.any() else np.zeros((len(sums), count), "f4")
                new = old.copy()
                for warp in np.flatnonzero(warps):
                    first = warp * WARP
                    lanes = slice(first, first + WARP)
                    rows = 16 * (warp % 4) + np.arange(16)
                    if from_registers:
                        A = np.zeros((16, 16))
                        parts = self._elements(registers[lanes], kind).reshape(WARP, 4, 2)
                        for part in range(4):
                            at = 2 * quad[:, None] + np.arange(2) + 8 * (part // 2)
                            A[(group + 8 * (part % 2))[:, None], at] = parts[:, part]
                    else:
                        A = self._operand_of(descriptors[0][lanes], rows, a_by_rows, kind, first)
                    B = self._operand_of(descriptors[1][lanes], np.arange(columns), b_by_columns, kind, first)
                    D = A @ B.T  # [16, columns]
                    for part in range(len(sums)):
                        tile, corner = part // 4, part % 4
                        value = D[group + 8 * (corner // 2), 8 * tile + 2 * quad + corner % 2]
                        base = np.where(adds[lanes], old[part, lanes].astype(np.float64), 0.0)
                        new[part, lanes] = (base + value).astype(np.float32)
                for part, put in enumerate(puts):
                    put(new[part], mask)

            if block.order.late:
                block.products.setdefault(block.squad, _Pending()).current.append(multiply)
            else:
                multiply()

        return run

    def _operand_of(self, descriptors: Array, rows: Array, by_rows: bool, kind: str, thread: int) -> Array:
        """Rows of a matrix [rows, 16] in shared memory, as a warpgroup's descriptor has it.

        by_rows : whether the 16 of a row (the depth of the product) lie side by side
        """
        if (descriptors != descriptors[0]).any():
            raise FaultError("the threads of a warp give different descriptors")
        word = int(descriptors[0])
        start, leading, stride = ((word >> at & 0x3FFF) << 4 for at in (0, 16, 32))
        swizzle = (0, 128, 64, 32)[word >> 62]
        if word >> 49 & 7:
            raise FaultError("a descriptor with a base offset")
        row, k = rows[:, None], np.arange(16)[None, :]
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
        address = start + offset
        if swizzle:
            address = address ^ ((address >> 7 & (swizzle // 16 - 1)) << 4)
        block = self.block
        values = block.memory["shared"].fetch(address, int(block.thread[thread]), block.now)
        return _halves(values, kind)


def _halves(bits: Array, kind: str) -> Array:
    """bfloat16's or float16's bits, uint16, as float64."""
    if kind == "f16":
        return bits.view(np.float16).astype(np.float64)
    return _wide(bits).astype(np.float64)
