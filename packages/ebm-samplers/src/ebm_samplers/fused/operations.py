"""Operations on the numbers of kernels, as LLVM code: what Python's operators and functions give.

Numbers meet by `values.common`. An operation that kernels do not have gives None. ``flags`` say
what LLVM may do to floating point.
"""

import ast
import functools
import math
import operator
from collections.abc import Callable
from typing import Any

import llvmlite.ir as ir
import numpy as np

from ebm_samplers.fused.values import LLVM, Value, cast, common, declared, intrinsic, known_as

_INTEGER: dict[type, str] = {
    ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul",
    ast.BitAnd: "and_", ast.BitOr: "or_", ast.BitXor: "xor",
}  # fmt: skip
_FLOATING: dict[type, str] = {
    ast.Add: "fadd", ast.Sub: "fsub", ast.Mult: "fmul", ast.Div: "fdiv",
}  # fmt: skip
_COMPARISONS: dict[type, tuple[str, Callable[[Any, Any], bool]]] = {
    ast.Lt: ("<", operator.lt), ast.LtE: ("<=", operator.le), ast.Gt: (">", operator.gt),
    ast.GtE: (">=", operator.ge), ast.Eq: ("==", operator.eq), ast.NotEq: ("!=", operator.ne),
}  # fmt: skip
_INTRINSICS = {
    **dict.fromkeys((abs, np.abs, math.fabs), "fabs"),
    np.floor: "floor",
    **dict.fromkeys((math.sqrt, np.sqrt), "sqrt"),
    **{getattr(math, name): name for name in ("sin", "cos", "exp", "log", "pow")},
}
_IN_C = {getattr(math, name): name for name in ("atan", "asin", "acos", "erf", "erfc")}

Flags = tuple[str, ...]


def negation(builder: ir.IRBuilder, truth: Value) -> Value:
    """``not truth``."""
    known = None if truth.known is None else not truth.known
    return Value("bool", builder.not_(truth.code), known)


def unary(builder: ir.IRBuilder, op: ast.unaryop, value: Value) -> Value | None:
    """``-value`` or ``~value``."""
    floating = value.kind.startswith("f")
    if isinstance(op, ast.USub):
        if value.known is not None:
            return known_as(-value.known, value.kind)
        return Value(value.kind, (builder.fneg if floating else builder.neg)(value.code))
    if isinstance(op, ast.Invert) and not floating:
        return Value(value.kind, builder.not_(value.code))
    return None


def binary(
    builder: ir.IRBuilder, flags: Flags, op: ast.operator, left: Value, right: Value
) -> Value | None:
    """``left op right``."""
    if isinstance(op, ast.LShift | ast.RShift):
        return _shifted(builder, op, left, right)
    logical = isinstance(op, ast.BitAnd | ast.BitOr | ast.BitXor)
    if logical and left.kind == right.kind == "bool":
        return Value("bool", getattr(builder, _INTEGER[type(op)])(left.code, right.code))
    kind = common(left.kind, right.kind)
    if isinstance(op, ast.Div) and not kind.startswith("f"):
        kind = "float64"
    if isinstance(op, ast.Pow) and left.known is not None and right.known is not None:
        return known_as(left.known**right.known, kind)
    x, y = cast(builder, left, kind).code, cast(builder, right, kind).code
    if kind.startswith("f"):
        if isinstance(op, ast.Pow):
            return Value(kind, intrinsic(builder, flags, "pow", x, y))
        if type(op) not in _FLOATING:
            return None
        return Value(kind, getattr(builder, _FLOATING[type(op)])(x, y, flags=flags))
    if isinstance(op, ast.FloorDiv | ast.Mod):
        return _divided(builder, kind, x, right, isinstance(op, ast.Mod))
    if type(op) not in _INTEGER:
        return None
    return Value(kind, getattr(builder, _INTEGER[type(op)])(x, y))


def _shifted(builder: ir.IRBuilder, op: ast.operator, left: Value, right: Value) -> Value:
    kind = "uint64" if left.kind.startswith("u") else "int64"
    x, n = cast(builder, left, kind).code, cast(builder, right, kind).code
    if isinstance(op, ast.LShift):
        return Value(kind, builder.shl(x, n))
    return Value(kind, builder.lshr(x, n) if kind == "uint64" else builder.ashr(x, n))


def _divided(builder: ir.IRBuilder, kind: str, x: Any, by: Value, modulo: bool) -> Value | None:
    """The quotient towards -inf, or what it leaves, by a positive constant."""
    if by.known is None or by.known < 1:
        return None
    n = LLVM[kind](by.known)
    if kind == "uint64":
        return Value(kind, builder.urem(x, n) if modulo else builder.udiv(x, n))
    rest = builder.srem(x, n)
    below = builder.icmp_signed("<", rest, n.type(0))
    if modulo:
        return Value(kind, builder.select(below, builder.add(rest, n), rest))
    return Value(kind, builder.add(builder.sdiv(x, n), builder.sext(below, n.type)))


def compared(
    builder: ir.IRBuilder, flags: Flags, op: ast.cmpop, left: Value, right: Value
) -> Value:
    """``left op right``, a bool; all but ``!=`` are false where a number is NaN."""
    name, function = _COMPARISONS[type(op)]
    if left.known is not None and right.known is not None:
        return known_as(function(left.known, right.known), "bool")
    kind = common(left.kind, right.kind)
    x, y = cast(builder, left, kind).code, cast(builder, right, kind).code
    if kind.startswith("f"):
        compare: Any = builder.fcmp_unordered if name == "!=" else builder.fcmp_ordered
        return Value("bool", compare(name, x, y, flags=flags))
    compare = builder.icmp_unsigned if kind.startswith("u") else builder.icmp_signed
    return Value("bool", compare(name, x, y))


def elementary(
    builder: ir.IRBuilder, flags: Flags, function: Any, given: list[Value]
) -> Value | None:
    """A function of `math` or NumPy, in float32 if all arguments are."""
    kind = functools.reduce(common, (value.kind for value in given))
    kind = kind if kind.startswith("f") else "float64"
    arguments = [cast(builder, value, kind).code for value in given]
    if function in _INTRINSICS:
        return Value(kind, intrinsic(builder, flags, _INTRINSICS[function], *arguments))
    if function not in _IN_C:
        return None
    symbol = _IN_C[function] + ("f" if kind == "float32" else "")
    target = declared(builder, symbol, LLVM[kind], arguments)
    target.attributes.add("readnone")
    return Value(kind, builder.call(target, arguments, fastmath=flags))
