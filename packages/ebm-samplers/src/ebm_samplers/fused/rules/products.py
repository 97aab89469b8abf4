"""Matrix products."""

from dataclasses import replace
from typing import TYPE_CHECKING

from ebm_samplers.fused.graph import Affine, Expr, Index
from ebm_samplers.fused.program import Array
from ebm_samplers.fused.rules.elementwise import elementwise
from ebm_samplers.fused.rules.registry import rule
from ebm_samplers.fused.rules.views import reshaped
from ebm_samplers.fused.trace import aten

if TYPE_CHECKING:
    from ebm_samplers.fused.lowering import Lowering


def product(low: "Lowering", a: Array, b: Array) -> Array:
    """The matrix product of ``(..., m, k)`` and ``(..., k, n)`` (equal leading axes)."""
    if a.varies:
        a = low.out.stored(a)
    if b.varies:
        b = low.out.stored(b)
    lead, m, k, n = a.shape[:-2], a.shape[-2], a.shape[-1], b.shape[-1]
    if not low.out.straight and k > 1:
        if a.varies and b.number is not None and not b.boolean:
            return low.out.product(_in_order(low, a), low.packed(b))
        if b.varies and a.number is not None and n == 1 and not a.boolean:
            turned = low.out.product(
                _in_order(low, reshaped(low, b, (*lead, 1, k))), low.packed(a, turned=True)
            )
            return reshaped(low, turned, (*lead, m, 1))

    def load(index: tuple[Index, ...], inner: tuple[Index, ...]) -> Expr:
        *batch, i, j = index
        return low.pool("mul", a.load((*batch, i, *inner)), b.load((*batch, *inner, j)))

    if k == 1:
        return Array((*lead, m, n), lambda index: load(index, (0,)), None, 1, a.varies or b.varies)
    return low.out.reduce("add", 0.0, (*lead, m, n), (k,), load)


def _in_order(low: "Lowering", a: Array) -> Array:
    """The array, in rows of the tile that follow each other along the last axis."""
    probe = Affine(0, (("k", 1),))
    start, along = (a.load((*(0,) * (len(a.shape) - 1), last)) for last in (0, probe))
    if start.op == along.op == "row" and along.args[0] == start.args[0] + probe:
        return a
    return low.out.stored(replace(a, cost=1))


@rule(aten.mm.default, aten.bmm.default)
def _mm(low: "Lowering", a: Array, b: Array) -> Array:
    return product(low, a, b)


@rule(aten.addmm.default)
def _addmm(
    low: "Lowering", bias: Array, a: Array, b: Array, beta: float = 1, alpha: float = 1
) -> Array:
    p = low.pool
    return elementwise(
        low,
        lambda e, c: p("add", p("mul", e, p.const(alpha)), p("mul", c, p.const(beta))),
        product(low, a, b),
        bias,
    )


@rule(aten.mv.default)
def _mv(low: "Lowering", a: Array, b: Array) -> Array:
    return reshaped(low, product(low, a, reshaped(low, b, (*b.shape, 1))), a.shape[:1])


@rule(aten.dot.default)
def _dot(low: "Lowering", a: Array, b: Array) -> Array:
    return reshaped(
        low, product(low, reshaped(low, a, (1, *a.shape)), reshaped(low, b, (*b.shape, 1))), ()
    )
