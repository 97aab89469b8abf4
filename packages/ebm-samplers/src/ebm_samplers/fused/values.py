"""What the code of kernels is made of: numbers, pointers, and functions that are not Python's.

A number has a kind; `cast` and `common` say how one becomes another, and in which two meet.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import llvmlite.ir as ir
import numpy as np

LLVM: dict[str, ir.Type] = {
    "bool": ir.IntType(1),
    **{f"{sign}int{n}": ir.IntType(n) for sign in ("", "u") for n in (32, 64)},
    "float32": ir.FloatType(),
    "float64": ir.DoubleType(),
}
"""Types of numbers; a pointer's has the name of what it points to, and "*"."""


class CannotCompile(Exception):  # noqa: N818 - a refusal
    """Something in a function is not part of the language of kernels."""


@dataclass(frozen=True)
class Value:
    """A number or a pointer.

    Attributes:
        kind: The name of its type.
        code: It, in LLVM.
        known: The number, if it is known now.
    """

    kind: str
    code: Any
    known: Any = None


@dataclass(frozen=True)
class External:
    """A function that the linker knows.

    Attributes:
        symbol: Its name there.
        kinds: The types of its arguments; it returns nothing.
    """

    symbol: str
    kinds: tuple[str, ...]


@dataclass(frozen=True)
class Instruction:
    """A function that writes LLVM code: ``write(builder, arguments)`` gives a `Value` or None."""

    write: Callable[..., Value | None]

    def __call__(self, *_: Any) -> Any:
        """Not in Python."""
        raise CannotCompile("only compiled functions call this")


def llvm_type(kind: str) -> ir.Type:
    """A type by name."""
    return LLVM[kind[:-1]].as_pointer() if kind.endswith("*") else LLVM[kind]


def cast(builder: ir.IRBuilder, value: Value, kind: str) -> Value:
    """A number as another kind; as a bool, whether it is not zero."""
    if value.kind == kind:
        return value
    if value.known is not None:
        return known_as(value.known, kind)
    old, new = LLVM.get(value.kind), LLVM.get(kind)
    if old is None or new is None:
        raise CannotCompile(f"{value.kind} is no {kind}")
    code, signed = value.code, value.kind.startswith("i")
    if kind == "bool":
        if value.kind.startswith("f"):
            return Value(kind, builder.fcmp_unordered("!=", code, old(0.0)))
        return Value(kind, builder.icmp_signed("!=", code, old(0)))
    match value.kind[0], kind[0]:
        case "f", "f":
            code = builder.fpext(code, new) if kind == "float64" else builder.fptrunc(code, new)
        case "f", _:
            code = builder.fptosi(code, new) if kind[0] == "i" else builder.fptoui(code, new)
        case _, "f":
            code = builder.sitofp(code, new) if signed else builder.uitofp(code, new)
        case _ if new.width > old.width:
            code = builder.sext(code, new) if signed else builder.zext(code, new)
        case _ if new.width < old.width:
            code = builder.trunc(code, new)
    return Value(kind, code)


def known_as(number: Any, kind: str) -> Value:
    """A number that is known now, as C casts it."""
    if kind == "bool":
        plain: Any = bool(number)
    elif kind.startswith("f"):
        with np.errstate(over="ignore"):
            plain = float(np.dtype(kind).type(number))
    else:
        width = LLVM[kind].width
        plain = int(number) & (2**width - 1)
        if kind.startswith("i") and plain >= 2 ** (width - 1):
            plain -= 2**width
    return Value(kind, LLVM[kind](plain), plain)


def select(builder: ir.IRBuilder, test: Value, a: Value, b: Value) -> Value:
    """One of two numbers, both computed."""
    kind = a.kind if a.kind == b.kind else common(a.kind, b.kind)
    a, b = cast(builder, a, kind), cast(builder, b, kind)
    return Value(kind, builder.select(cast(builder, test, "bool").code, a.code, b.code))


def common(a: str, b: str) -> str:
    """The kind of number in which two kinds meet."""
    if a not in LLVM or b not in LLVM:
        raise CannotCompile(f"{a} and {b} do not meet")
    if a.startswith("f") or b.startswith("f"):
        return "float32" if a == b == "float32" else "float64"
    return "uint64" if a.startswith("u") and b.startswith("u") else "int64"


def declared(builder: ir.IRBuilder, symbol: str, result: ir.Type, arguments: list[Any]) -> Any:
    """A function outside the module that is written."""
    module = builder.module
    if symbol in module.globals:
        return module.get_global(symbol)
    return ir.Function(module, ir.FunctionType(result, [a.type for a in arguments]), symbol)


def intrinsic(builder: ir.IRBuilder, flags: tuple[str, ...], name: str, *arguments: Any) -> Any:
    """What a function that LLVM has for this kind of number gives."""
    kind = arguments[0].type
    target = declared(builder, f"llvm.{name}.{kind.intrinsic_name}", kind, list(arguments))
    return builder.call(target, arguments, fastmath=flags)
