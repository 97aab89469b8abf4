"""Activation functions of neural networks, with their derivatives."""

import math
from typing import TYPE_CHECKING

import torch

from ebm_samplers.fused.graph import Expr, Pool
from ebm_samplers.fused.program import Array
from ebm_samplers.fused.rules.elementwise import elementwise, formula
from ebm_samplers.fused.rules.registry import rule
from ebm_samplers.fused.trace import aten

if TYPE_CHECKING:
    from ebm_samplers.fused.lowering import Lowering

SLOPES = {
    aten.silu.default: aten.silu_backward.default,
    aten.gelu.default: aten.gelu_backward.default,
}
"""Of functions that share most of their work with their derivative, the operation
``(gradient, argument)`` that multiplies by it."""

SOFTPLUS_IS_LINEAR = {torch.float32: 17.0, torch.float64: 37.0}
"""Where softplus is its argument to rounding, so that torch's threshold beyond changes nothing."""


@formula(aten.relu.default)
def _relu(p: Pool, a: Expr) -> Expr:
    return p("where", p("lt", a, p.const(0.0)), p.const(0.0), a)


@formula(aten.threshold_backward.default)
def _threshold_backward(p: Pool, gradient: Expr, a: Expr, threshold: Expr) -> Expr:
    return p("where", p("le", a, threshold), p.const(0.0), gradient)


@formula(aten.silu.default, work=8)
def _silu(p: Pool, a: Expr) -> Expr:
    return p("mul", a, p("sigmoid", a))


@formula(aten.silu_backward.default, work=8)
def _silu_backward(p: Pool, gradient: Expr, a: Expr) -> Expr:
    one, s = p.const(1.0), p("sigmoid", a)
    return p("mul", gradient, p("mul", s, p("add", one, p("mul", a, p("sub", one, s)))))


@formula(aten.sigmoid_backward.default)
def _sigmoid_backward(p: Pool, gradient: Expr, s: Expr) -> Expr:
    return p("mul", gradient, p("mul", s, p("sub", p.const(1.0), s)))


@formula(aten.tanh_backward.default)
def _tanh_backward(p: Pool, gradient: Expr, t: Expr) -> Expr:
    return p("mul", gradient, p("sub", p.const(1.0), p("mul", t, t)))


@rule(aten.softplus.default)
def _softplus(low: "Lowering", a: Array, beta: float = 1.0, threshold: float = 20.0) -> Array:
    p = low.pool

    def element(e: Expr) -> Expr:
        scaled = p("mul", e, p.const(float(beta)))
        soft = p("div", p("softplus", scaled), p.const(float(beta)))
        if threshold >= SOFTPLUS_IS_LINEAR[low.dtype]:
            return soft
        return p("where", p("lt", p.const(float(threshold)), scaled), e, soft)

    return elementwise(low, element, a, work=8)


@rule(aten.softplus_backward.default)
def _softplus_backward(
    low: "Lowering", gradient: Array, a: Array, beta: float, threshold: float
) -> Array:
    p = low.pool

    def element(g: Expr, e: Expr) -> Expr:
        scaled = p("mul", e, p.const(float(beta)))
        soft = p("mul", g, p("sigmoid", scaled))
        if threshold >= SOFTPLUS_IS_LINEAR[low.dtype]:
            return soft
        return p("where", p("lt", p.const(float(threshold)), scaled), g, soft)

    return elementwise(low, element, gradient, a, work=8)


@formula(aten.log_sigmoid_forward.default, work=8)
def _log_sigmoid(p: Pool, a: Expr) -> Expr:  # its second result is a buffer for the derivative
    return p("neg", p("softplus", p("neg", a)))


@formula(aten.log_sigmoid_backward.default, work=8)
def _log_sigmoid_backward(p: Pool, gradient: Expr, a: Expr, _: Expr) -> Expr:
    return p("mul", gradient, p("sigmoid", p("neg", a)))


@formula(aten.elu.default, work=8)
def _elu(p: Pool, a: Expr, *more: Expr) -> Expr:
    alpha, scale, input_scale = (*more, *(p.const(1.0),) * 3)[:3]
    negative = p("mul", alpha, p("expm1", p("mul", a, input_scale)))
    return p("mul", scale, p("where", p("le", a, p.const(0.0)), negative, a))


@rule(aten.elu_backward.default)
def _elu_backward(
    low: "Lowering",
    gradient: Array,
    alpha: float,
    scale: float,
    input_scale: float,
    is_result: bool,
    a: Array,
) -> Array:
    p = low.pool
    height = p.const(alpha * scale)

    def slope(g: Expr, e: Expr) -> Expr:
        if is_result:
            inner = p("add", e, height)
        else:
            inner = p("mul", p("exp", p("mul", e, p.const(input_scale))), height)
        negative = p("mul", inner, p.const(input_scale))
        return p("mul", g, p("where", p("le", e, p.const(0.0)), negative, p.const(scale)))

    return elementwise(low, slope, gradient, a, work=8)


@formula(aten.leaky_relu.default)
def _leaky_relu(p: Pool, a: Expr, *slope: Expr) -> Expr:
    steep = slope[0] if slope else p.const(0.01)
    return p("where", p("lt", p.const(0.0), a), a, p("mul", a, steep))


@rule(aten.leaky_relu_backward.default)
def _leaky_relu_backward(
    low: "Lowering", gradient: Array, a: Array, slope: float, is_result: bool
) -> Array:
    p = low.pool

    def element(g: Expr, e: Expr) -> Expr:
        return p("where", p("lt", p.const(0.0), e), g, p("mul", g, p.const(float(slope))))

    return elementwise(low, element, gradient, a)


def _gelu_parts(p: Pool, a: Expr, approximate: str) -> tuple[Expr, Expr]:
    """gelu(a)/a, and gelu's derivative."""
    half, one = p.const(0.5), p.const(1.0)
    square = p("mul", a, a)
    if approximate == "tanh":
        k, c = math.sqrt(2 / math.pi), 0.044715
        inner = p("mul", a, p("add", p.const(k), p("mul", square, p.const(k * c))))
        slope = p("add", p.const(k), p("mul", square, p.const(3 * k * c)))
        t = p("tanh", inner)
        weight = p("mul", half, p("add", one, t))
        change = p("mul", p("mul", half, p("sub", one, p("mul", t, t))), slope)
    else:
        weight = p("mul", half, p("add", one, p("erf", p("mul", a, p.const(math.sqrt(0.5))))))
        bell = p("exp", p("mul", square, p.const(-0.5)))
        change = p("mul", bell, p.const(1 / math.sqrt(2 * math.pi)))
    return weight, p("add", weight, p("mul", a, change))


@formula(aten.gelu.default, work=8)
def _gelu(p: Pool, a: Expr, *, approximate: str = "none") -> Expr:
    return p("mul", a, _gelu_parts(p, a, approximate)[0])


@formula(aten.gelu_backward.default, work=8)
def _gelu_backward(p: Pool, gradient: Expr, a: Expr, *, approximate: str = "none") -> Expr:
    return p("mul", gradient, _gelu_parts(p, a, approximate)[1])


@rule(aten.hardtanh.default)
def _hardtanh(low: "Lowering", a: Array, least: float = -1.0, most: float = 1.0) -> Array:
    p = low.pool

    def element(e: Expr) -> Expr:
        least_, most_ = p.const(float(least)), p.const(float(most))
        return p("where", p("lt", e, least_), least_, p("where", p("lt", most_, e), most_, e))

    return elementwise(low, element, a)


@rule(aten.hardtanh_backward.default)
def _hardtanh_backward(
    low: "Lowering", gradient: Array, a: Array, least: float, most: float
) -> Array:
    p = low.pool

    def element(g: Expr, e: Expr) -> Expr:
        zero = p.const(0.0)
        inside = p("where", p("le", p.const(float(most)), e), zero, g)
        return p("where", p("le", e, p.const(float(least))), zero, inside)

    return elementwise(low, element, gradient, a)
