"""Products that one thread begins, in a memory of their own, and the barriers in shared memory that tell of their end.

Tensor memory has 128 lanes of 512 columns of 4 bytes; a warp reaches the 32 lanes that are its own. Of a product, row r
is in lane r; where it has 64 rows, each warp's lanes hold 16 of them in their first half.

Source: the ISA, "TensorCore 5th Generation Family Instructions"; "mbarrier" and "elect.sync" of "Parallel
Synchronization and Communication Instructions".
"""

from __future__ import annotations

import re
from collections.abc import Callable
from copy import deepcopy

import numpy as np

from .basics import WARP, Array, FaultError, NotYetError, from_words
from .block import TENSOR_COLUMNS, TENSOR_LANES, Barrier, Block
from .form import Form, Mask, Run
from .matrices import Descriptor, fetched
from .memory import Moment
from .program import Address

_KINDS = {0: "f16", 1: "bf16"}


def _offset(lane: Array, column: Array) -> Array:
    """Where tensor memory's bytes are that the machine keeps of a cell."""
    return (lane * TENSOR_COLUMNS + column) * 4


def _lanes_of(rows: int) -> Array:
    row = np.arange(rows)
    return row if rows == TENSOR_LANES else row // 16 * 32 + row % 16


def _only(mask: Mask) -> int:
    """The one thread of a mask."""
    if mask is None or mask.sum() != 1:
        raise FaultError("several threads begin what one thread must")
    return int(np.flatnonzero(mask)[0])


def _allocation(form: Form) -> Run:
    word = form.words[1]
    if form.words[2] != "cta_group::1":
        raise form.refusal()
    if word == "relinquish_alloc_permit":
        return lambda block, mask: None
    columns = form.operands[1].value
    if word == "dealloc":
        start = form.whole(form.operands[0], "u32")
        return lambda block, mask: block.give_back_tensor(int(start(block)[_first(form, mask)]), columns)
    address = form.address(form.operands[0])

    def run(block: Block, mask: Mask) -> None:
        first = _first(form, mask)
        value = np.array([[block.take_tensor(columns)]], np.uint32).view(np.uint8)
        block.memory["shared"].store(address(block)[first, None], value, block.thread[first, None], block.now)

    return run


def _first(form: Form, mask: Mask) -> int:
    """The first thread of the one warp that takes the instruction."""
    warps = np.flatnonzero(form.whole_warps(mask))
    if len(warps) != 1:
        raise FaultError("several warps take what one warp must")
    return int(warps[0]) * WARP


def _transfer(form: Form) -> Run:
    """Between registers and tensor memory. Late stores happen when they are waited for; loads always at once, as Triton
    uses their registers before it waits: the assembler does that by itself, as its code for sm_100 shows."""
    word, shape, count = form.words[1], form.words[4], re.match(r"x(\d+)$", form.words[5])
    operands = form.operands if word == "st" else (form.operands[1], *form.operands[2:], form.operands[0])
    place, registers = operands[0], operands[-1]
    registers = registers if isinstance(registers, tuple) else (registers,)
    if form.words[2:4] != ("sync", "aligned") or form.words[6:] != ("b32",) or count is None:
        raise form.refusal()
    if shape not in ("16x32bx2", "32x32b") or int(count.group(1)) != len(registers):
        raise form.refusal()
    address = form.address(place)
    thread = np.arange(form.threads)
    lane, column = thread % WARP, np.zeros_like(thread)
    if shape == "16x32bx2":
        lane, column = lane % 16, lane // 16 * operands[1].value
    cells = column[:, None] + np.arange(len(registers))
    puts = [form.target(each) for each in registers] if word == "ld" else []
    values = [form.whole(each, "b32") for each in registers] if word == "st" else []

    def run(block: Block, mask: Mask) -> None:
        form.whole_warps(mask)
        there = thread if mask is None else np.flatnonzero(mask)
        start = address(block)
        lanes = (start >> 16) + lane
        if (lanes[there] // WARP != thread[there] // WARP % 4).any():
            raise FaultError("a warp reaches for lanes of tensor memory that are another's")
        offset = _offset(lanes[:, None], (start & 0xFFFF)[:, None] + cells)[there]
        who = np.repeat(there // WARP * WARP, len(registers))  # the warp's, not any thread's
        held = [value(block)[there] for value in values]
        now = deepcopy(block.now)

        def store() -> None:
            data = np.stack(held, axis=1).reshape(-1, 1).view(np.uint8)
            block.tensor.store(offset.reshape(-1), data, who, now)

        def load() -> None:
            got = block.tensor.load(offset.reshape(-1), 4, who, now).view(np.uint32).reshape(offset.shape)
            for part, put in enumerate(puts):
                value = np.zeros(form.threads, np.uint32)
                value[there] = got[:, part]
                put(block, value, mask)

        if word == "ld":
            load()
        elif block.order.late:
            block.stores.append(store)
        else:
            store()

    return run


def _await_loads(form: Form) -> Run:
    return lambda block, mask: None


def _await_stores(form: Form) -> Run:
    def run(block: Block, mask: Mask) -> None:
        while block.stores:
            block.stores.pop(0)()

    return run


def _product(form: Form) -> Run:
    """D = A B, or D + A B: A [M, 16] by a descriptor or in tensor memory, B [16, N] by a descriptor."""
    into, left, right, shape, adding = form.operands
    if form.words[2:] != ("cta_group::1", "kind::f16"):
        raise form.refusal()
    D_at, B_at = form.address(into), form.whole(right, "u64")
    A_at = form.address(left) if isinstance(left, Address) else form.whole(left, "u64")
    shapes, adds = form.whole(shape, "u32"), form.whole(adding, "pred")

    def run(block: Block, mask: Mask) -> None:
        one = _only(mask)
        word, now = int(shapes(block)[one]), deepcopy(block.now)
        rows, columns = (word >> 24 & 31) << 4, (word >> 17 & 63) << 3
        kinds = _KINDS.get(word >> 7 & 7), _KINDS.get(word >> 10 & 7)
        # Sums in float32, nothing negated, sparse, saturated or shifted, and A and B of one kind.
        if word & 0xE080606F or word >> 4 & 3 != 1 or kinds[0] is None or kinds[0] != kinds[1]:
            raise FaultError(f"an instruction descriptor that this machine does not know: {word:#x}")
        if rows not in (64, 128):
            raise FaultError(f"a product of {rows} rows")
        reader = np.full((1, 1), one)
        A_place, B_place, D_place = int(A_at(block)[one]), int(B_at(block)[one]), int(D_at(block)[one])
        adding = bool(adds(block)[one])

        def part(place: int, count: int, transposed: bool) -> Array:
            where = Descriptor.blackwell(place)
            return fetched(block.memory["shared"], where, np.arange(count), not transposed, reader, kinds[0], now)

        def multiply() -> None:
            if isinstance(left, Address):
                A = from_words(_words(block, A_place, rows, 8, one, now), kinds[0])
            else:
                A = part(A_place, rows, bool(word >> 15 & 1))
            product = A @ part(B_place, columns, bool(word >> 16 & 1)).T
            if adding:
                product += _words(block, D_place, rows, columns, one, now).view(np.float32)
            data = product.astype(np.float32).reshape(-1, 1).view(np.uint8)
            cells = _cells(D_place, rows, columns).reshape(-1)
            block.tensor.store(cells, data, np.full(data.shape[0], one), now, awaited=True)

        if block.order.late:
            block.products.current.append(multiply)
        else:
            multiply()

    return run


def _cells(place: int, rows: int, columns: int) -> Array:
    """Where the cells [rows, columns] of a matrix from an address of tensor memory on are kept."""
    return _offset((place >> 16) + _lanes_of(rows)[:, None], (place & 0xFFFF) + np.arange(columns))


def _words(block: Block, place: int, rows: int, columns: int, thread: int, now: Moment) -> Array:
    """A matrix of tensor memory, uint32 [rows, columns]."""
    cells = _cells(place, rows, columns)
    data = block.tensor.load(cells.reshape(-1), 4, np.full(cells.size, thread), now, awaited=True)
    return data.view(np.uint32).reshape(cells.shape)


def _commit(form: Form) -> Run:
    """What its thread began tells a barrier once it is done."""
    # Without a word for the memory too, Triton gives the place in shared memory.
    where = tuple(word for word in form.words[2:] if word != "shared::cluster")
    if where != ("cta_group::1", "mbarrier::arrive::one", "b64"):
        raise form.refusal()
    address = form.address(form.operands[0])

    def run(block: Block, mask: Mask) -> None:
        barrier = _barrier_at(block, int(address(block)[_only(mask)]))
        barrier.coming.append(block.products.current)
        block.products.current = []

    return run


def _barrier_at(block: Block, address: int) -> Barrier:
    if address not in block.barriers:
        raise FaultError(f"no barrier lies at shared memory's address {address}")
    return block.barriers[address]


def _tensor(form: Form) -> Run:
    word = form.words[1]
    if word in ("alloc", "dealloc", "relinquish_alloc_permit"):
        return _allocation(form)
    known = {"ld": _transfer, "st": _transfer, "mma": _product, "commit": _commit}
    known |= {"wait::ld": _await_loads, "wait::st": _await_stores}
    if word not in known:
        raise form.refusal()
    return known[word](form)


def _barrier(form: Form) -> Run:
    word = form.words[1]
    if form.words[2:] not in (("shared", "b64"), ("parity", "shared", "b64")) or word not in (
        "init",
        "inval",
        "try_wait",
    ):
        raise form.refusal()
    return _try_wait(form) if word == "try_wait" else _begin_or_end(form)


def _begin_or_end(form: Form) -> Run:
    word, address = form.words[1], form.address(form.operands[0])

    def run(block: Block, mask: Mask) -> None:
        one = _only(mask)
        place = int(address(block)[one])
        if word == "init":
            block.barriers[place] = Barrier(form.operands[1].value)
        else:
            _barrier_at(block, place)
            del block.barriers[place]
        # To whoever looks at it, this is a store of another value.
        block.changes += 1
        value = np.array([[block.changes]], np.uint64).view(np.uint8)
        block.memory["shared"].store(np.array([place]), value, block.thread[one, None], block.now)

    return run


def _try_wait(form: Form) -> Run:
    put, address, parity = (
        form.target(form.operands[0]),
        form.address(form.operands[1]),
        form.whole(form.operands[2], "u32"),
    )

    def run(block: Block, mask: Mask) -> None:
        there = block.thread if mask is None else np.flatnonzero(mask)
        places, parities = address(block)[there], parity(block)[there]
        if (places != places[0]).any() or (parities != parities[0]).any():
            raise FaultError("threads wait for different barriers, or phases")
        block.memory["shared"].load(places, 8, there, block.now)
        barrier = _barrier_at(block, int(places[0]))
        barrier.finish()
        if barrier.phase % 2 == int(parities[0]) % 2:
            raise NotYetError
        put(block, np.ones(form.threads, np.bool_), mask)

    return run


def _elect(form: Form) -> Run:
    """One lane of each warp; which, the hardware chooses."""
    if form.words[1:] != ("sync",):
        raise form.refusal()
    lane, chosen = (form.target(each) for each in form.operands[0])

    def run(block: Block, mask: Mask) -> None:
        form.whole_warps(mask)
        leader = WARP - 1 if block.order.warps else 0
        lane(block, np.full(1, leader, np.uint32), mask)
        chosen(block, np.arange(form.threads) % WARP == leader, mask)

    return run


TENSOR: dict[str, Callable[[Form], Run]] = {"tcgen05": _tensor, "mbarrier": _barrier, "elect": _elect}
