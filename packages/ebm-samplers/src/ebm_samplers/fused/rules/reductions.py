"""Sums, extrema and products along axes, and what is built on them."""

import itertools
import math
from typing import TYPE_CHECKING, Any

from ebm_samplers.fused.graph import Expr, Index
from ebm_samplers.fused.program import Array
from ebm_samplers.fused.rules.elementwise import as_numbers, elementwise, power
from ebm_samplers.fused.rules.registry import RULES, Rule, rule
from ebm_samplers.fused.rules.views import reshaped, squeeze
from ebm_samplers.fused.trace import aten

if TYPE_CHECKING:
    from ebm_samplers.fused.lowering import Lowering


def _reduced(low: "Lowering", op: str, start: float, a: Array, axes: Any, keep: bool) -> Array:
    a = as_numbers(low, a)
    n = len(a.shape)
    gone = sorted(
        range(n)
        if axes is None or axes == []
        else {i % max(n, 1) for i in ([axes] if isinstance(axes, int) else axes)}
    )
    left = [i for i in range(n) if i not in gone]
    shape, over = tuple(a.shape[i] for i in left), tuple(a.shape[i] for i in gone)

    def load(index: tuple[Index, ...], inner: tuple[Index, ...]) -> Expr:
        full: list[Index] = [0] * n
        for axis, i in zip((*left, *gone), (*index, *inner), strict=True):
            full[axis] = i
        return a.load(tuple(full))

    if math.prod(over) == 1:
        one = (0,) * len(over)
        result = Array(shape, lambda index: load(index, one), a.flat, a.cost, a.varies)
    else:
        result = low.out.reduce(op, start, shape, over, load, a.varies)
    return (
        reshaped(low, result, tuple(1 if i in gone else m for i, m in enumerate(a.shape)))
        if keep
        else result
    )


@rule(aten.sum.dim_IntList, aten.sum.default)
def _sum(low: "Lowering", a: Array, axes: Any = None, keepdim: bool = False, **_: Any) -> Array:
    return _reduced(low, "add", 0.0, a, axes, keepdim)


@rule(aten.any.default, aten.any.dim, aten.any.dims)
def _any(low: "Lowering", a: Array, axes: Any = None, keepdim: bool = False) -> Array:
    count = _reduced(low, "add", 0.0, _truth(low, a), axes, keepdim)
    return elementwise(low, lambda e: low.pool("ne", e, low.pool.const(0.0)), count, boolean=True)


@rule(aten.all.default, aten.all.dim, aten.all.dims)
def _all(low: "Lowering", a: Array, axes: Any = None, keepdim: bool = False) -> Array:
    p = low.pool
    false = elementwise(
        low, lambda e: p("where", e, p.const(0.0), p.const(1.0)), _truth(low, a), masks=(0,)
    )
    count = _reduced(low, "add", 0.0, false, axes, keepdim)
    return elementwise(low, lambda e: p("eq", e, p.const(0.0)), count, boolean=True)


def _truth(low: "Lowering", a: Array) -> Array:
    if a.boolean:
        return a
    return elementwise(low, lambda e: low.pool("ne", e, low.pool.const(0.0)), a, boolean=True)


@rule(aten.linalg_vector_norm.default)
def _vector_norm(
    low: "Lowering", a: Array, order: float = 2, axes: Any = None, keepdim: bool = False, **_: Any
) -> Array:
    p = low.pool
    if order == 1:
        return _reduced(low, "add", 0.0, elementwise(low, lambda e: p("abs", e), a), axes, keepdim)
    if math.isinf(order):
        sizes = elementwise(low, lambda e: p("abs", e), a)
        return _reduced(
            low, *(("max", 0.0) if order > 0 else ("min", math.inf)), sizes, axes, keepdim
        )
    if order == 0:
        raise NotImplementedError("the norm of order 0")
    if order != 2:
        powers = elementwise(
            low, lambda e: power(p, p("abs", e), p.const(float(order))), a, work=16
        )
        total = _reduced(low, "add", 0.0, powers, axes, keepdim)
        return elementwise(low, lambda e: power(p, e, p.const(1 / order)), total, work=16)
    squares = elementwise(low, lambda e: p("mul", e, e), a)
    return elementwise(
        low, lambda e: p("sqrt", e), _reduced(low, "add", 0.0, squares, axes, keepdim)
    )


def _running(op: str) -> Rule:
    def lowered(low: "Lowering", a: Array, axis: int, **_: Any) -> Array:
        axis %= len(a.shape)
        if not low.out.straight:
            return low.out.running(op, a, axis)
        cells: dict[tuple[Index, ...], Expr] = {}
        for index in itertools.product(*map(range, a.shape)):
            before = (*index[:axis], index[axis] - 1, *index[axis + 1 :])
            cells[index] = (
                low.pool(op, cells[before], a.load(index)) if index[axis] else a.load(index)
            )
        return Array(a.shape, cells.__getitem__, None, 0, a.varies)

    return lowered


RULES[aten.cumsum.default], RULES[aten.cumprod.default] = _running("add"), _running("mul")


@rule(aten.mean.dim, aten.mean.default)
def _mean(low: "Lowering", a: Array, axes: Any = None, keepdim: bool = False, **_: Any) -> Array:
    total = _reduced(low, "add", 0.0, a, axes, keepdim)
    count = low.array(float(a.size // max(total.size, 1)))
    return elementwise(low, lambda e, n: low.pool("div", e, n), total, count)


@rule(aten.var.correction)
def _var(
    low: "Lowering", a: Array, axes: Any = None, *, correction: float = 1, keepdim: bool = False
) -> Array:
    p = low.pool
    a = low.out.stored(a)
    mean = low.out.stored(_mean(low, a, axes, True))
    squares = elementwise(
        low, lambda e, m: p("mul", p("sub", e, m), p("sub", e, m)), a, mean, work=4
    )
    total = _reduced(low, "add", 0.0, squares, axes, keepdim)
    count = low.array(max(a.size // max(total.size, 1) - float(correction), 0.0))
    return elementwise(low, lambda e, n: p("div", e, n), total, count)


@rule(aten.std.correction)
def _std(low: "Lowering", a: Array, *args: Any, **settings: Any) -> Array:
    return elementwise(low, lambda e: low.pool("sqrt", e), _var(low, a, *args, **settings))


@rule(aten.amax.default)
def _amax(low: "Lowering", a: Array, axes: Any = None, keepdim: bool = False) -> Array:
    return _reduced(low, "max", -math.inf, a, axes, keepdim)


@rule(aten.amin.default)
def _amin(low: "Lowering", a: Array, axes: Any = None, keepdim: bool = False) -> Array:
    return _reduced(low, "min", math.inf, a, axes, keepdim)


@rule(aten.prod.default, aten.prod.dim_int)
def _prod(low: "Lowering", a: Array, axes: Any = None, keepdim: bool = False, **_: Any) -> Array:
    return _reduced(low, "mul", 1.0, a, axes, keepdim)


def _exponentials(low: "Lowering", a: Array, axes: Any) -> tuple[Array, Array, Array]:
    """a minus its largest element, the sum of the exponentials of that, and the largest element."""
    p = low.pool
    zero, infinity = p.const(0.0), p.const(math.inf)
    # "above" loses NaN, but the exponential of the element that is NaN does not
    largest = _reduced(low, "above", -math.inf, a, axes, True)
    largest = elementwise(
        low, lambda m: p("where", p("eq", p("abs", m), infinity), zero, m), largest
    )
    shifted = elementwise(low, lambda e, m: p("sub", e, m), a, largest)
    exponentials = elementwise(low, lambda e: p("exp", e), shifted, work=8)
    return shifted, _reduced(low, "add", 0.0, exponentials, axes, True), largest


@rule(aten.logsumexp.default)
def _logsumexp(low: "Lowering", a: Array, axes: Any, keepdim: bool = False) -> Array:
    p = low.pool
    _, total, largest = _exponentials(low, low.out.stored(a), axes)
    result = elementwise(low, lambda s, m: p("add", p("log", s), m), total, largest, work=8)
    return result if keepdim else squeeze(low, result, axes)


@rule(aten._log_softmax.default)
def _log_softmax(low: "Lowering", a: Array, axis: int, *_: Any) -> Array:
    p = low.pool
    shifted, total, _largest = _exponentials(low, low.out.stored(a), [axis])
    logarithm = low.out.stored(elementwise(low, lambda s: p("log", s), total, work=8))
    return elementwise(low, lambda e, n: p("sub", e, n), shifted, logarithm)


@rule(aten._softmax.default)
def _softmax(low: "Lowering", a: Array, axis: int, *_: Any) -> Array:
    p = low.pool
    shifted, total, _largest = _exponentials(low, low.out.stored(a), [axis])
    return elementwise(low, lambda e, s: p("div", p("exp", e), s), shifted, total, work=8)


@rule(aten._log_softmax_backward_data.default)
def _log_softmax_backward(
    low: "Lowering", gradient: Array, result: Array, axis: int, *_: Any
) -> Array:
    p = low.pool
    total = _reduced(low, "add", 0.0, gradient, [axis], True)
    return elementwise(
        low, lambda g, r, t: p("sub", g, p("mul", p("exp", r), t)), gradient, result, total, work=8
    )


@rule(aten._softmax_backward_data.default)
def _softmax_backward(low: "Lowering", gradient: Array, result: Array, axis: int, *_: Any) -> Array:
    p = low.pool
    weighted = elementwise(low, lambda g, r: p("mul", g, r), gradient, result)
    total = _reduced(low, "add", 0.0, weighted, [axis], True)
    return elementwise(low, lambda g, r, t: p("mul", r, p("sub", g, t)), gradient, result, total)
