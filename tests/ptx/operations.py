"""What each thread does by itself: arithmetic, logic, comparisons, conversions and moves.

Source: the ISA, "Integer Arithmetic Instructions", "Floating Point Instructions", "Half Precision Floating Point
Instructions", "Comparison and Selection Instructions", "Logic and Shift Instructions", and mov, prmt and cvt of
"Data Movement and Conversion Instructions".
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, reduce

import numpy as np

from .basics import TYPES, Array, from_bfloat16, to_bfloat16
from .block import Block
from .form import Form, Mask, Run

_PLAIN = {"rn", "approx", "full", "ftz", "lo", "NaN"}  # of words between a name and a type: what all here do, or may
_FLOATS = ("f16", "f32", "f64")


def _elementwise(function: Callable[..., Array], form: Form) -> Run:
    """A function of operands whose type is the instruction's last word."""
    if set(form.words[1:-1]) - _PLAIN:
        return _mixed(function, form)
    kind, _, two = form.words[-1].partition("x")
    if not two and kind != "bf16":
        return form.mapped(function, kind)
    if form.flush:
        raise form.refusal()

    def by_parts(*values: Array) -> Array:
        parts = [np.ascontiguousarray(value).view(TYPES[kind]) for value in np.broadcast_arrays(*values)]
        result = to_bfloat16(function(*map(from_bfloat16, parts))) if kind == "bf16" else function(*parts)
        return result.view(values[0].dtype)

    return form.mapped(by_parts, f"b{8 * np.dtype(TYPES[kind]).itemsize * (2 if two else 1)}")


def _mixed(function: Callable[..., Array], form: Form) -> Run:
    """A function of float32 whose operands but the last are halves."""
    kind = form.words[-1]
    if form.words[1:-1] not in (("f32",), ("rn", "f32")) or kind not in ("f16", "bf16"):
        raise form.refusal()

    def of_wide(*values: Array) -> Array:
        wide = from_bfloat16 if kind == "bf16" else (lambda x: x.astype(np.float32))
        return function(*map(wide, values[:-1]), values[-1])

    return form.mapped(of_wide, "f32", [kind] * (len(form.operands) - 2) + ["f32"])


def _min_max(form: Form) -> Run:
    """Of two or three. Of a number and a NaN the number, or with .NaN the NaN."""
    passing, ignoring = {"min": (np.minimum, np.fmin), "max": (np.maximum, np.fmax)}[form.words[0]]
    chosen = passing if "NaN" in form.words else ignoring
    return _elementwise(lambda *values: reduce(chosen, values), form)


def _quotient(a: Array, b: Array) -> Array:
    """Of integers, towards zero."""
    safe = np.where(b == 0, 1, b)
    size = np.abs(a.astype(np.int64)) // np.abs(safe.astype(np.int64))
    return np.where((a < 0) != (b < 0), -size, size).astype(a.dtype)


def _divide(form: Form) -> Run:
    return _elementwise(np.divide if form.words[-1] in _FLOATS else _quotient, form)


def _fused(form: Form) -> Run:
    if form.words[-1] == "f64":
        raise form.refusal()
    # In float64 the product is exact; the sum is rounded twice, which shows once in 2^29.
    return _elementwise(lambda a, b, c: (a.astype(np.float64) * b + c).astype(a.dtype), form)


def _doubled(kind: str) -> str:
    """s64 for s32, and the like."""
    return kind[0] + str(2 * int(kind[1:]))


def _multiply(form: Form) -> Run:
    size, kind = form.words[1], form.words[-1]
    if size == "wide":
        wide = TYPES[_doubled(kind)]
        return form.mapped(lambda a, b: a.astype(wide) * b, kind)
    if size == "hi" and kind in ("s16", "u16", "s32", "u32"):
        wide, width = TYPES[_doubled(kind)], int(kind[1:])
        return form.mapped(lambda a, b: (a.astype(wide) * b >> width).astype(a.dtype), kind)
    if size == "hi":
        raise form.refusal()
    return _elementwise(np.multiply, form)


def _multiply_add(form: Form) -> Run:
    size, kind = form.words[1], form.words[-1]
    if size == "wide":
        wide = _doubled(kind)
        return form.mapped(lambda a, b, c: a.astype(TYPES[wide]) * b + c, kind, (kind, kind, wide))
    if size != "lo":
        raise form.refusal()
    return _elementwise(lambda a, b, c: a * b + c, form)


def _shift(a: Array, by: Array, left: bool) -> Array:
    """PTX shifts by more than the width as by the width."""
    width = a.dtype.itemsize * 8
    inside = np.minimum(by, width - 1).astype(a.dtype)
    moved = a << inside if left else a >> inside
    beyond = np.where(a < 0, -1, 0).astype(a.dtype) if a.dtype.kind == "i" and not left else a.dtype.type(0)
    return np.where(by >= width, beyond, moved)


def _shifts(form: Form) -> Run:
    kind = form.words[-1].replace("b", "u")
    return form.mapped(partial(_shift, left=form.words[0] == "shl"), kind, (kind, "u32"))


def _extract_bits(form: Form) -> Run:
    kind = form.words[-1]
    if kind not in ("u32", "s32"):
        raise form.refusal()

    def extract(a: Array, first: Array, length: Array) -> Array:
        up = 64 - first.astype(np.int64) - length
        wide = a.astype(np.int64).view(np.uint64 if kind == "u32" else np.int64)
        return (wide << up.astype(wide.dtype) >> (64 - length).astype(wide.dtype)).astype(a.dtype)

    return form.mapped(extract, kind, (kind, "u32", "u32"))


def _permute(a: Array, b: Array, choice: Array) -> Array:
    """Of the bytes of a and b, uint32, the four that the nibbles of ``choice`` name, or their signs."""
    both = a.astype(np.uint64) | b.astype(np.uint64) << np.uint64(32)
    out = np.zeros(np.broadcast_shapes(a.shape, b.shape, choice.shape), np.uint32)
    for place in range(4):
        chosen = (choice >> np.uint32(4 * place)) & np.uint32(15)
        byte = (both >> (8 * (chosen & 7)).astype(np.uint64)) & np.uint64(255)
        byte = np.where(chosen & 8, np.where(byte & np.uint64(128), 255, 0), byte)
        out |= byte.astype(np.uint32) << np.uint32(8 * place)
    return out


def _count_bits(a: Array) -> Array:
    return np.unpackbits(np.ascontiguousarray(a).view(np.uint8).reshape(len(a), -1), axis=1).sum(1, dtype=np.uint32)


def _select(form: Form) -> Run:
    kind = form.words[-1]
    return form.mapped(lambda a, b, which: np.where(which, a, b), kind, (kind, kind, "pred"))


def _unordered(a: Array, b: Array) -> Array:
    return np.isnan(a) | np.isnan(b)


_COMPARE = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
}  # fmt: skip
_UNSIGNED = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}
# NumPy's "ne" is true of a NaN; PTX's is not, but its "neu".
_COMPARE_FLOAT: dict[str, Callable[[Array, Array], Array]] = _COMPARE | {
    "ne": lambda a, b: (a < b) | (a > b),
    "num": lambda a, b: ~_unordered(a, b),
    "nan": _unordered,
}


def _compare(form: Form) -> Run:
    if len(form.words) != 3 + form.flush or isinstance(form.operands[0], tuple):
        raise form.refusal()
    name, kind = form.words[1], form.words[-1].replace("b", "u")
    if kind in _FLOATS and name.endswith("u") and name[:-1] in _COMPARE:
        ordered = _COMPARE[name[:-1]]
        return form.mapped(lambda a, b: ordered(a, b) | _unordered(a, b), kind)
    known = (_COMPARE_FLOAT if kind in _FLOATS else _COMPARE).get(_UNSIGNED.get(name, name))
    if known is None:
        raise form.refusal()
    return form.mapped(known, kind)


_ROUND = {"rmi": np.floor, "rni": np.rint, "rzi": np.trunc, "rpi": np.ceil}


def _convert(form: Form) -> Run:
    into, source = form.words[-2:]
    how = [word for word in form.words[1:-2] if word != "ftz"]
    if into in ("bf16x2", "f16x2") and source == "f32" and how == ["rn"]:
        half = to_bfloat16 if into == "bf16x2" else (lambda x: x.astype(np.float16).view(np.uint16))
        return form.mapped(lambda high, low: half(high).astype(np.uint32) << np.uint32(16) | half(low), "f32")
    if into == "bf16" and source == "f32" and how == ["rn"]:
        return form.mapped(to_bfloat16, "f32")
    if into == "f32" and source == "bf16":
        return form.mapped(from_bfloat16, "b16")
    if into == "tf32" and how == ["rna"]:
        return form.mapped(lambda x: ((x.view(np.uint32) + 0x1000) & ~np.uint32(0x1FFF)).view(np.float32), "f32")
    if len(how) == 1 and how[0] in _ROUND and source == "f32":
        return form.mapped(_rounding(_ROUND[how[0]], into), "f32")
    if how in ([], ["rn"]) and into in TYPES and source in TYPES and "bf16" not in (into, source):
        return form.mapped(lambda x: x.astype(TYPES[into]), source)
    raise form.refusal()


def _rounding(rounded: Callable[[Array], Array], into: str) -> Callable[[Array], Array]:
    """float32 to whole numbers, which stop at the ends of their type; a NaN becomes 0."""
    if into == "f32":
        return rounded
    limits = np.iinfo(TYPES[into])

    def whole(x: Array) -> Array:
        x = np.where(np.isnan(x), 0, rounded(x)).astype(np.float64)
        return np.clip(x, limits.min, limits.max).astype(TYPES[into])

    return whole


def _move(form: Form) -> Run:
    into, source = form.operands
    if isinstance(into, tuple):
        return _split(form)
    if isinstance(source, tuple):
        return _join(form)
    return _elementwise(lambda a: a, form)


def _split(form: Form) -> Run:
    """A register into the parts of it."""
    into, source = form.operands
    kind, count = form.words[-1], form.threads
    part = f"u{np.dtype(TYPES[kind]).itemsize // len(into)}"
    whole, puts = form.whole(source, kind), [form.target(each) for each in into]

    def run(block: Block, mask: Mask) -> None:
        parts = np.ascontiguousarray(whole(block)).view(part).reshape(count, -1)
        for place, put in enumerate(puts):
            put(block, parts[:, place].copy(), mask)

    return run


def _join(form: Form) -> Run:
    """A register from the parts of it."""
    into, source = form.operands
    kind = form.words[-1]
    width = 8 * np.dtype(TYPES[kind]).itemsize // len(source)
    pieces, put = [form.part(each, f"b{width}") for each in source], form.target(into)

    def run(block: Block, mask: Mask) -> None:
        put(block, np.stack([piece(block) for piece in pieces], axis=1).view(TYPES[kind]).reshape(-1), mask)

    return run


_ELEMENTWISE: dict[str, Callable[..., Array]] = {
    "add": np.add, "sub": np.subtract, "neg": np.negative, "abs": np.abs,
    "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor, "not": np.invert,
    "sqrt": np.sqrt, "ex2": np.exp2, "lg2": np.log2, "rcp": lambda a: np.float32(1) / a,
    "rsqrt": lambda a: (1 / np.sqrt(a.astype(np.float64))).astype(np.float32),
    "rem": lambda a, b: a - _quotient(a, b) * b, "prmt": _permute, "popc": _count_bits,
}  # fmt: skip

OPERATIONS: dict[str, Callable[[Form], Run]] = {
    **{word: partial(_elementwise, function) for word, function in _ELEMENTWISE.items()},
    "min": _min_max,
    "max": _min_max,
    "div": _divide,
    "fma": _fused,
    "mul": _multiply,
    "mad": _multiply_add,
    "shl": _shifts,
    "shr": _shifts,
    "bfe": _extract_bits,
    "selp": _select,
    "setp": _compare,
    "cvt": _convert,
    "mov": _move,
}
