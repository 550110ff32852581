"""Bytes that a call of a torch operator must move, from what torch.profiler records of its arguments.

Counted are the elements that the operator has to read and to write, once each, whatever caches and intermediate
results do: an input expanded over a dimension (stride 0) counts as what is stored of it, numbers count nothing.
Operators without a rule here are unknown, and so are types and arguments that a rule cannot read: never guessed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# The profiler's names of types: how many bytes, and whether bool, whole numbers or floating point, which is the order
# in which torch promotes them.
_TYPES = {
    "bool": (1, 0),
    "unsigned char": (1, 1),
    "signed char": (1, 1),
    "short": (2, 1),
    "short int": (2, 1),
    "int": (4, 1),
    "long": (8, 1),
    "long int": (8, 1),
    "long long": (8, 1),
    "c10::Half": (2, 2),
    "c10::BFloat16": (2, 2),
    "float": (4, 2),
    "double": (8, 2),
}
_WHOLE, _FLOATING = 1, 2
_LIST = "a list"


@dataclass(frozen=True)
class Argument:
    """One argument of a call: a tensor's sizes, strides and type as the profiler names it; else ``number``, its text.

    A tensor without dimensions counts as a number.
    """

    sizes: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    type: str = ""
    number: str = ""

    @property
    def is_tensor(self) -> bool:
        """Whether it has dimensions and a known type."""
        return bool(self.sizes) and self.type in _TYPES

    @property
    def is_number(self) -> bool:
        """Whether it is neither a tensor nor a list of them."""
        return not self.sizes and self.type != _LIST

    @property
    def kind(self) -> int:
        """Of a tensor or number, the place of its type in the order of promotion."""
        if self.type in _TYPES:
            return _TYPES[self.type][1]
        if self.number in ("", "True", "False"):
            return 0
        return _FLOATING if re.search(r"[.naife]", self.number) else _WHOLE

    @property
    def width(self) -> int:
        """Bytes an element."""
        return _TYPES[self.type][0]

    @property
    def stored(self) -> int:
        """Bytes of the elements that it is made of."""
        distinct = (n if s != 0 or n == 0 else 1 for n, s in zip(self.sizes, self.strides, strict=True))
        return self.width * math.prod(distinct)

    @property
    def size(self) -> int:
        """Bytes of a tensor of these sizes, all stored."""
        return self.width * math.prod(self.sizes)


Rule = Callable[[list[Argument]], int]


class _UnknownError(Exception):
    """The rule cannot read the arguments."""


def arguments(recorded: dict[str, Any]) -> list[Argument] | None:
    """The arguments of a call, of an operator's ``args`` in the profiler's trace; None where they were not recorded."""
    columns = [recorded.get(name) for name in ("Input Dims", "Input Strides", "Input type", "Concrete Inputs")]
    if any(column is None or len(column) != len(columns[0]) for column in columns):
        return None
    found = []
    for sizes, strides, type_, number in zip(*columns, strict=True):
        flat = all(isinstance(n, int) for n in (*sizes, *strides)) and len(sizes) == len(strides)
        found.append(Argument(tuple(sizes), tuple(strides), type_, str(number)) if flat else Argument(type=_LIST))
    return found


def operator_bytes(name: str, call: list[Argument]) -> int | None:
    """Bytes that a call of an operator, named as ``aten::mm``, must move; None where they are unknown."""
    rule = _RULES.get(name.removeprefix("aten::"))
    if rule is None:
        return None
    try:
        return rule(call)
    except (_UnknownError, IndexError):
        return None


def _tensor(call: list[Argument], place: int) -> Argument:
    if not call[place].is_tensor:
        raise _UnknownError
    return call[place]


def _moved(call: list[Argument], place: int) -> int:
    return 0 if call[place].is_number else _tensor(call, place).stored


def _left_out(call: list[Argument], place: int) -> None:
    """That an argument has its default: any other changes the result's type."""
    if len(call) > place and call[place].number not in ("", "False"):
        raise _UnknownError


def _dims(argument: Argument) -> list[int]:
    found = [int(text) for text in re.findall(r"-?\d+", argument.number)]
    if not found:
        raise _UnknownError
    return found


def _broadcast(tensors: list[Argument]) -> tuple[int, ...]:
    rank = max(len(tensor.sizes) for tensor in tensors)
    columns = zip(*((1,) * (rank - len(t.sizes)) + t.sizes for t in tensors), strict=True)
    return tuple(0 if 0 in column else max(column) for column in columns)


def _tensors(given: list[Argument]) -> list[Argument]:
    """Those that are no numbers, at least one."""
    found = [argument for argument in given if not argument.is_number]
    if not found or not all(argument.is_tensor for argument in found):
        raise _UnknownError
    return found


def _promoted(given: list[Argument]) -> int:
    """Bytes an element of what tensors and numbers make together; unknown where a number's type decides it."""
    tensors = _tensors(given)
    kind = max(tensor.kind for tensor in tensors)
    if any(argument.kind > kind for argument in given):
        raise _UnknownError
    return max(tensor.width for tensor in tensors if tensor.kind == kind)


def _pointwise(inputs: int, result: str = "promoted") -> Rule:
    """Of as many broadcast inputs, the first arguments; the result is "promoted", "floating", "bool" or "first"."""

    def rule(call: list[Argument]) -> int:
        given = call[:inputs]
        tensors = _tensors(given)
        read = sum(tensor.stored for tensor in tensors)
        if result == "first":
            return read + _tensor(call, 0).stored
        if result == "floating" and all(tensor.kind != _FLOATING for tensor in tensors):
            raise _UnknownError
        width = 1 if result == "bool" else _promoted(given)
        return read + width * math.prod(_broadcast(tensors))

    return rule


def _where(call: list[Argument]) -> int:
    tensors = _tensors(call[:3])
    return sum(tensor.stored for tensor in tensors) + _promoted(call[1:3]) * math.prod(_broadcast(tensors))


def _matrix_product(call: list[Argument], left: int = 0) -> int:
    """[(B,) M, K] x [(B,) K, N], the arguments ``left`` and the next; before them, what is added."""
    a, b = _tensor(call, left), _tensor(call, left + 1)
    out = math.prod((*a.sizes[:-1], b.sizes[-1]))
    return sum(_tensor(call, place).stored for place in range(left)) + a.stored + b.stored + a.width * out


def _same_size(call: list[Argument]) -> int:
    """Of one input, a result of its sizes and type, which must be floating point."""
    x = _tensor(call, 0)
    _left_out(call, 2)
    if x.kind != _FLOATING:
        raise _UnknownError
    return x.stored + x.size


def _reduction(width: Callable[[Argument], int]) -> Rule:
    """Over the dimensions that the second argument names, to results of so many bytes."""

    def rule(call: list[Argument]) -> int:
        x = _tensor(call, 0)
        _left_out(call, 3)
        gone = math.prod(x.sizes[dim] for dim in _dims(call[1]))
        return x.stored + width(x) * (math.prod(x.sizes) // max(1, gone))

    return rule


def _gather(call: list[Argument]) -> int:
    """The index, and what it picks, read and written."""
    x, index = _tensor(call, 0), _tensor(call, 2)
    return index.stored + 2 * x.width * math.prod(index.sizes)


def _nll(call: list[Argument]) -> int:
    logits, means, log_stds, target = (_tensor(call, place) for place in range(4))
    return sum(part.stored for part in (logits, means, log_stds, target)) + target.width * target.sizes[0]


def _nll_backward(call: list[Argument]) -> int:
    """The gradient of the loss, the four inputs, and a gradient for each of these."""
    grad, *inputs = (_tensor(call, place) for place in range(5))
    return grad.stored + sum(part.stored + part.size for part in inputs)


def _mdn_sample(call: list[Argument]) -> int:
    """A shared choice needs the chosen means and deviations alone; one a dimension, every sector of memory."""
    logits, means, log_stds, counters = (_tensor(call, place) for place in range(4))
    rows, latent, mixtures = means.sizes
    each = means.stored + log_stds.stored
    if logits.sizes[1] == 1:
        each //= mixtures
    return logits.stored + each + counters.stored + means.width * rows * latent


# Sums of whole numbers have 64 bits.
_SUM = _reduction(lambda x: x.width if x.kind == _FLOATING else 8)
_TWO = (
    "add sub rsub mul maximum minimum bitwise_and bitwise_or bitwise_xor __lshift__ __rshift__ bitwise_left_shift "
    "bitwise_right_shift remainder"
)
_ONE = "neg abs clamp_min clamp_max relu bitwise_not floor"
_ONE_FLOATING = "exp log sqrt rsqrt reciprocal tanh sigmoid cos sin erf log1p expm1"
_COMPARED = "eq ne lt le gt ge logical_and logical_or"
_IN_PLACE = "add_ sub_ mul_ div_ bitwise_and_ bitwise_or_ bitwise_xor_"

_RULES: dict[str, Rule] = {
    **{name: _pointwise(1) for name in _ONE.split()},
    **{name: _pointwise(1, "floating") for name in _ONE_FLOATING.split()},
    **{name: _pointwise(1, "bool") for name in ("isnan", "logical_not")},
    **{name: _pointwise(2) for name in _TWO.split()},
    **{name: _pointwise(2, "bool") for name in _COMPARED.split()},
    **{name: _pointwise(2, "first") for name in _IN_PLACE.split()},
    "div": _pointwise(2, "floating"),
    "clamp": _pointwise(3),
    "where": _where,
    "mm": _matrix_product,
    "bmm": _matrix_product,
    "addmm": lambda call: _matrix_product(call, 1),
    "baddbmm": lambda call: _matrix_product(call, 1),
    "copy_": lambda call: _moved(call, 0) + _moved(call, 1),
    "fill_": lambda call: _moved(call, 0),
    "zero_": lambda call: _moved(call, 0),
    "_softmax": _same_size,
    "_log_softmax": _same_size,
    "cumsum": _same_size,
    "sum": _SUM,
    "mean": _SUM,
    "all": _reduction(lambda x: 1),
    "any": _reduction(lambda x: 1),
    "amax": _reduction(lambda x: x.width),
    "amin": _reduction(lambda x: x.width),
    "gather": _gather,
    "wm_engine::mdn_nll": _nll,
    "wm_engine::mdn_nll_backward": _nll_backward,
    "wm_engine::mdn_sample": _mdn_sample,
}
