"""A kernel as text, taken apart.

Source: the ISA, "Syntax" and "Instruction Operands".
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from .basics import FaultError


@dataclass(frozen=True)
class Register:
    """%r12 is the place 12 of the kind "r"."""

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
    """One line of a kernel, and the line that it was made of.

    guard : the register that says which threads take it, and the value that it has in them
    words : its name, at the dots
    operands : of which each is a Register, Address, Bits, a name, or a tuple of these
    """

    text: str
    source: str
    guard: tuple[Register, bool] | None
    words: tuple[str, ...]
    operands: tuple[Any, ...]

    @property
    def moves(self) -> bool:
        """Whether it says which instruction is next, or waits for other warps."""
        return self.words[0] in ("bra", "ret", "bar") and self.words[:2] != ("bar", "warp")


@dataclass(frozen=True, eq=False)
class Program:
    """A kernel: its instructions, where labels stand among them, parameters (name, type) and threads of a block."""

    code: list[Instruction]
    labels: dict[str, int]
    parameters: list[tuple[str, str]]
    threads: int


KINDS = {"p": np.bool_, "rs": np.uint16, "r": np.uint32, "rd": np.uint64, "f": np.uint32, "fd": np.uint64}
"""What a register of each kind holds: bits, which an instruction takes as its type."""

# Other words for the block's own memory, and for a barrier, which need not have all of a warp at once.
_SAME = {"shared::cta": "shared", "barrier.sync": "bar.sync"}
_SCOPED, _SCOPED_FROM = {"pred": "p", "b16": "rs", "b32": "r", "b64": "rd", "f32": "f"}, 1_000_000
_REGISTER = re.compile(r"%(p|rs|rd|r|fd|f)(\d+)$")
_FLOAT = re.compile(r"0[fF][0-9a-fA-F]{8}$|0[dD][0-9a-fA-F]{16}$")
_INTEGER = re.compile(r"-?(0x[0-9a-fA-F]+|\d+)U?$")
_OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+")


def parse(ptx: str) -> Program:
    """The only kernel of a module."""
    head, _, body = ptx.partition("\n{")
    body = _without_scopes(body).partition("\n}")[0]
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


def _without_scopes(body: str) -> str:
    """A kernel whose inner scopes are gone, and what they declare has names of its own."""
    number = 0

    def renamed(found: re.Match[str]) -> str:
        nonlocal number
        text = found.group(1)
        for kind, name in re.findall(r"\.reg \.(\w+) (\w+);", text):
            number += 1
            text = re.sub(rf"(?<![\w%$.]){name}\b", f"%{_SCOPED[kind]}{_SCOPED_FROM + number}", text)
        for name in re.findall(r"^\s*(\w+):", text, flags=re.MULTILINE):
            number += 1
            text = re.sub(rf"(?<![\w%$.]){name}\b", f"{name}.{number}", text)
        return text

    return re.sub(r"^\{\n(.*?)^\}", renamed, body, flags=re.MULTILINE | re.DOTALL)


def _instruction(text: str, source: str) -> Instruction:
    guard, rest = None, text
    if text.startswith("@"):
        name, rest = text[1:].split(maxsplit=1)
        guard = (_operand(name.lstrip("!")), not name.startswith("!"))
    name, _, rest = rest.replace("\t", " ").partition(" ")
    operands = tuple(map(_operand, _OPERAND.findall(rest)))
    for other, usual in _SAME.items():
        name = name.replace(other, usual)
    return Instruction(text, source, guard, tuple(name.split(".")), operands)


def _operand(text: str) -> Any:
    if text.startswith("{"):
        return tuple(_operand(each.strip()) for each in text[1:-1].split(","))
    if text.startswith("["):
        base, _, offset = text[1:-1].replace(" ", "").partition("+")
        return Address(_operand(base), int(offset or "0", 0))
    if "|" in text:
        return tuple(map(_operand, text.split("|")))
    known = _REGISTER.match(text)
    if known:
        return Register(known.group(1), int(known.group(2)))
    if _FLOAT.match(text):
        return Bits(int(text[2:], 16), True)
    if _INTEGER.match(text):
        return Bits(int(text.rstrip("U"), 0))
    return text
