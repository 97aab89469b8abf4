"""Operations that act on each element by itself."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ebm_samplers.fused.graph import HEAVY, Expr, Index, Pool
from ebm_samplers.fused.program import Array
from ebm_samplers.fused.rules.registry import rule
from ebm_samplers.fused.trace import aten

if TYPE_CHECKING:
    from ebm_samplers.fused.lowering import Lowering

Element = Callable[..., Expr]


def broadcast(array: Array, shape: Sequence[int]) -> Array:
    """The array repeated along new axes and axes of length 1."""
    shape = tuple(shape)
    if array.shape == shape:
        return array
    missing = len(shape) - len(array.shape)
    kept = tuple(length != 1 for length in array.shape)

    def load(index: tuple[Index, ...]) -> Expr:
        return array.load(
            tuple(i if keep else 0 for i, keep in zip(index[missing:], kept, strict=True))
        )

    return Array(shape, load, None, array.cost, array.varies, array.boolean)


def elementwise(
    low: "Lowering",
    function: Element,
    *args: Any,
    work: int = 1,
    boolean: bool = False,
    masks: Sequence[int] = (),
) -> Array:
    """``function`` of broadcast arrays, element by element.

    Args:
        low: The lowering.
        function: Of as many expressions as there are arrays.
        args: Arrays, references or numbers.
        work: Roughly the operations of one element.
        boolean: Whether it gives truth values.
        masks: Positions of arguments that stay truth values; all others become numbers.
    """
    arrays = [low.array(a) for a in args]
    arrays = [a if i in masks else as_numbers(low, a) for i, a in enumerate(arrays)]
    shape = tuple(np.broadcast_shapes(*(a.shape for a in arrays)))
    arrays = [broadcast(a, shape) for a in arrays]
    flats = [a.flat for a in arrays if a.flat is not None]
    flat = (lambda i: function(*(f(i) for f in flats))) if len(flats) == len(arrays) else None
    return Array(
        shape,
        lambda index: function(*(a.load(index) for a in arrays)),
        flat,
        work + sum(a.cost for a in arrays),
        any(a.varies for a in arrays),
        boolean,
    )


def as_numbers(low: "Lowering", a: Array) -> Array:
    """Truth values as 1 and 0."""
    if not a.boolean:
        return a
    p, flat = low.pool, a.flat

    def number(e: Expr) -> Expr:
        return p("where", e, p.const(1.0), p.const(0.0))

    return Array(
        a.shape,
        lambda index: number(a.load(index)),
        None if flat is None else lambda i: number(flat(i)),
        a.cost + 1,
        a.varies,
    )


def formula(
    *functions: Any, work: int = 2, boolean: bool = False, masks: Sequence[int] = ()
) -> Callable[[Element], Element]:
    """Make ``function(pool, *elements, **settings)`` the rule of elementwise operations."""

    def register(function: Element) -> Element:
        @rule(*functions)
        def lowered(low: "Lowering", *args: Any, **settings: Any) -> Array:
            def element(*a: Expr) -> Expr:
                return function(low.pool, *a, **settings)

            return elementwise(low, element, *args, work=work, boolean=boolean, masks=masks)

        return function

    return register


def _simple(op: str, *functions: Any, boolean: bool = False, swap: bool = False) -> None:
    """One operator of `Pool`; ``swap`` turns its two arguments round."""
    work = 8 if op in HEAVY else 1

    @formula(*functions, work=work, boolean=boolean)
    def lowered(p: Pool, *a: Expr) -> Expr:
        return p(op, *(a[::-1] if swap else a))


def _logical(op: str, *functions: Any) -> None:
    """An operator on truth values."""

    @rule(*functions)
    def lowered(low: "Lowering", *args: Any) -> Array:
        arrays = [low.array(a) for a in args]
        if not all(a.boolean for a in arrays):
            raise NotImplementedError(f'"{op}" of numbers')
        return elementwise(low, lambda *e: low.pool(op, *e), *arrays, boolean=True, masks=(0, 1))


for _op in (
    "neg", "exp", "log", "sin", "cos", "tanh", "sigmoid", "sqrt", "abs", "erf", "erfc", "log1p",
    "expm1", "atan", "asin", "acos", "floor",
):  # fmt: skip
    _simple(_op, getattr(aten, _op).default)
_simple("div", aten.div.Tensor, aten.div.Scalar)
_simple("max", aten.maximum.default)
_simple("min", aten.minimum.default)
for _op in ("lt", "le", "eq", "ne"):
    _simple(_op, getattr(aten, _op).Tensor, getattr(aten, _op).Scalar, boolean=True)
for _op, _turned in (("lt", "gt"), ("le", "ge")):
    _simple(
        _op, getattr(aten, _turned).Tensor, getattr(aten, _turned).Scalar, boolean=True, swap=True
    )
_logical("and", aten.logical_and.default, aten.bitwise_and.Tensor)
_logical("or", aten.logical_or.default, aten.bitwise_or.Tensor)


@rule(aten.mul.Tensor, aten.mul.Scalar)
def _mul(low: "Lowering", *args: Any) -> Array:
    arrays = [low.array(a) for a in args]
    if all(a.boolean for a in arrays):
        return elementwise(low, lambda *e: low.pool("and", *e), *arrays, boolean=True, masks=(0, 1))
    return elementwise(low, lambda *e: low.pool("mul", *e), *arrays)


def _times(p: Pool, a: Expr, alpha: Expr | float | None) -> Expr:
    """``a`` scaled by ``alpha``, which torch passes by position or by name."""
    if alpha is None:
        return a
    return p("mul", a, alpha if isinstance(alpha, Expr) else p.const(float(alpha)))


@formula(aten.add.Tensor, aten.add.Scalar)
def _add(p: Pool, a: Expr, b: Expr, alpha: Expr | float | None = None) -> Expr:
    return p("add", a, _times(p, b, alpha))


@formula(aten.sub.Tensor, aten.sub.Scalar)
def _sub(p: Pool, a: Expr, b: Expr, alpha: Expr | float | None = None) -> Expr:
    return p("sub", a, _times(p, b, alpha))


@formula(aten.rsub.Scalar, aten.rsub.Tensor)
def _rsub(p: Pool, a: Expr, b: Expr, alpha: Expr | float | None = None) -> Expr:
    return p("sub", b, _times(p, a, alpha))


@formula(aten.xlogy.Tensor, aten.xlogy.Scalar_Other, aten.xlogy.Scalar_Self, work=8)
def _xlogy(p: Pool, a: Expr, b: Expr) -> Expr:
    zero = p.const(0.0)
    product = p("where", p("eq", a, zero), zero, p("mul", a, p("log", b)))
    return p("where", p("isnan", b), b, product)


@formula(aten.reciprocal.default)
def _reciprocal(p: Pool, a: Expr) -> Expr:
    return p("div", p.const(1.0), a)


@formula(aten.rsqrt.default)
def _rsqrt(p: Pool, a: Expr) -> Expr:
    return p("div", p.const(1.0), p("sqrt", a))


def _scaled(op: str, function: Any, before: float = 1.0, after: float = 1.0) -> None:
    @formula(function, work=8)
    def lowered(p: Pool, a: Expr) -> Expr:
        return p("mul", p(op, p("mul", a, p.const(before))), p.const(after))


_scaled("exp", aten.exp2.default, before=math.log(2))
_scaled("log", aten.log2.default, after=1 / math.log(2))
_scaled("log", aten.log10.default, after=1 / math.log(10))


@formula(aten.cosh.default, work=8)
def _cosh(p: Pool, a: Expr) -> Expr:
    half = p.const(0.5)
    root = p("exp", p("mul", p("abs", a), half))  # two factors, so that neither overflows first
    return p("add", p("mul", p("mul", root, half), root), p("div", p("div", half, root), root))


@formula(aten.sinh.default, work=16)
def _sinh(p: Pool, a: Expr) -> Expr:
    half, one, size = p.const(0.5), p.const(1.0), p("abs", a)
    root = p("exp", p("mul", size, half))
    far = p("sub", p("mul", p("mul", root, half), root), p("div", p("div", half, root), root))
    small = p("expm1", size)
    near = p("mul", half, p("add", small, p("div", small, p("add", small, one))))
    value = p("where", p("lt", size, one), near, far)
    return p("where", p("lt", a, p.const(0.0)), p("neg", value), value)


@formula(aten.tan.default, work=16)
def _tan(p: Pool, a: Expr) -> Expr:
    return p("div", p("sin", a), p("cos", a))


@formula(aten.ceil.default)
def _ceil(p: Pool, a: Expr) -> Expr:
    return p("neg", p("floor", p("neg", a)))


@formula(aten.trunc.default)
def _trunc(p: Pool, a: Expr) -> Expr:
    return p("where", p("lt", a, p.const(0.0)), _ceil(p, a), p("floor", a))


@formula(aten.round.default)
def _round(p: Pool, a: Expr) -> Expr:
    """To the nearest integer, halves to the even one."""
    half, down = p.const(0.5), p("floor", a)
    rest, halved = p("sub", a, down), p("mul", down, half)  # both exact
    odd = p("ne", halved, p("floor", halved))
    tie = p("and", p("eq", rest, half), odd)
    return p("where", p("or", p("lt", half, rest), tie), p("add", down, p.const(1.0)), down)


@formula(aten.square.default)
def _square(p: Pool, a: Expr) -> Expr:
    return p("mul", a, a)


@formula(aten.pow.Tensor_Scalar, aten.pow.Tensor_Tensor, aten.pow.Scalar)
def power(p: Pool, a: Expr, b: Expr) -> Expr:
    """a^b; by multiplications and roots where that is exact."""
    exponent = float(b.args[0]) if b.op == "const" else math.nan
    if exponent.is_integer() and abs(exponent) <= 16:
        power = _integer_power(p, a, abs(int(exponent)))
        return power if exponent >= 0 else p("div", p.const(1.0), power)
    if exponent == 0.5:
        return p("sqrt", a)
    if exponent == 1.5:
        return p("mul", a, p("sqrt", a))
    if exponent == -0.5:
        return p("div", p.const(1.0), p("sqrt", a))
    return p("pow", a, b)


def _integer_power(p: Pool, a: Expr, n: int) -> Expr:
    if n == 0:
        return p.const(1.0)
    half = _integer_power(p, a, n // 2)
    square = p("mul", half, half) if n > 1 else p.const(1.0)
    return p("mul", square, a) if n % 2 else square


@formula(aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf, masks=(0,))
def _where(p: Pool, condition: Expr, a: Expr, b: Expr) -> Expr:
    return p("where", condition, a, b)


@formula(aten.masked_fill.Scalar, aten.masked_fill.Tensor, masks=(1,))
def _masked_fill(p: Pool, a: Expr, mask: Expr, value: Expr) -> Expr:
    return p("where", mask, value, a)


@rule(aten.logical_not.default, aten.bitwise_not.default)
def _not(low: "Lowering", a: Array) -> Array:
    if not a.boolean:
        raise NotImplementedError("the negation of a number")
    p = low.pool
    return elementwise(
        low, lambda e: p("where", e, p.const(False), p.const(True)), a, boolean=True, masks=(0,)
    )


@formula(aten.isnan.default, boolean=True)
def _isnan(p: Pool, a: Expr) -> Expr:
    return p("isnan", a)


@formula(aten.isinf.default, boolean=True)
def _isinf(p: Pool, a: Expr) -> Expr:
    return p("eq", p("abs", a), p.const(math.inf))


@formula(aten.sign.default, aten.sgn.default)
def _sign(p: Pool, a: Expr) -> Expr:
    zero = p.const(0.0)
    negative = p("where", p("lt", a, zero), p.const(-1.0), zero)
    return p("where", p("lt", zero, a), p.const(1.0), negative)


@rule(aten._to_copy.default)
def _to_copy(low: "Lowering", a: Array, dtype: torch.dtype | None = None, **_: Any) -> Array:
    if dtype is None or dtype == low.dtype:
        return a if dtype is None else as_numbers(low, a)
    raise NotImplementedError(f"a value of the state is computed in {dtype}, not {low.dtype}")


@rule(aten.clamp.default, aten.clamp.Tensor, aten.clamp_min.default)
def _clamp(low: "Lowering", a: Array, least: Any = None, most: Any = None, **more: Any) -> Array:
    least, most = more.get("min", least), more.get("max", most)
    p = low.pool
    if least is not None:  # NaN stays NaN
        a = elementwise(low, lambda e, m: _bounded(p, "max", e, m), a, least)
    if most is not None:
        a = elementwise(low, lambda e, m: _bounded(p, "min", e, m), a, most)
    return a


def _bounded(p: Pool, op: str, e: Expr, m: Expr) -> Expr:
    """NaN where either is; to say so of a bound that no lane changes would take an operation."""
    if m.varies:
        return p(op, e, m)
    return p("where", p("lt", e, m) if op == "max" else p("lt", m, e), m, e)


@rule(aten.clamp_max.default)
def _clamp_max(low: "Lowering", a: Array, most: Any) -> Array:
    return _clamp(low, a, None, most)
