"""The rules by which recorded ATen operations become arrays of expressions, and the program of an energy.

A rule takes the `Lowering` and the operation's arguments, tensors replaced by arrays, and gives an array. Only what
depends on the state is lowered; what depends on parameters alone is computed by torch at each call (`parameters`), so
that a Cholesky factor or a normalised weight costs the kernel nothing. Views are lowered in both cases: a matrix and
its transpose are then one parameter.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .graph import HEAVY, Array, Expr, Index, Nest, Pool, Program, TooLarge, ravel, unravel
from .trace import Call, CannotFuse, Ref, Trace, aten

STRAIGHT_LIMIT = 1500
"""Expressions (loads included) up to which an energy is compiled without loops."""

Rule = Callable[..., Array]
RULES: dict[Any, Rule] = {}
VIEWS: set[Any] = set()


@dataclass(frozen=True)
class Parameters:
    """How the flat parameter array of a kernel is made of the values of a trace.

    Attributes:
        blocks: Number of the value and first element of its block, for each block.
        size: Elements in all.
    """

    blocks: tuple[tuple[int, int], ...]
    size: int


def lower(trace: Trace) -> tuple[Program, Parameters]:
    """The program of a trace: straight if it is small enough, else looped.

    Raises:
        CannotFuse: If an operation is used in a form that no rule knows.
    """
    try:
        return Lowering(trace, straight=True).program()
    except TooLarge:
        return Lowering(trace, straight=False).program()


class Lowering:
    """Goes through a trace once; arrays by number of value."""

    def __init__(self, trace: Trace, straight: bool) -> None:
        self.trace = trace
        self.pool = Pool(STRAIGHT_LIMIT if straight else None)
        self.size = trace.values[0].example.numel()
        self.out = Program(self.size, straight, self.pool)
        self.arrays: dict[int, Array] = {}
        self.blocks: dict[int, int] = {}
        self.n_parameters = 0
        self.done: dict[str, Array] = {}
        self.uses = self._count_uses()

    def program(self) -> tuple[Program, Parameters]:
        """Lower energy and gradient."""
        out, pool = self.out, self.pool
        x = self.trace.values[0].example
        self.arrays[0] = out.rows(0, tuple(x.shape))
        for number in sorted(self.uses):
            if self.trace.values[number].varies and number:
                self._lower(number)
        energy = self.array(self.trace.energy).load((0,))
        energy, out.offset = pool.split_constant(energy)
        gradient = self.array(self.trace.gradient)
        if out.straight:
            out.nests.clear()
        out.assign(2 * self.size, Array((), lambda index: energy, None, 1))
        out.assign(self.size, gradient)
        if out.straight:
            out.nests[:] = [Nest((), tuple(store for nest in out.nests for store in nest.stores))]
        return out, Parameters(tuple(self.blocks.items()), self.n_parameters)

    def array(self, value: Any) -> Array:
        """A value of the trace, or a number, as an array."""
        if isinstance(value, Ref):
            if value.index not in self.arrays:
                self.arrays[value.index] = self._uniform(value.index)
            return self.arrays[value.index]
        if isinstance(value, Array):
            return value
        node = self.pool.const(value)
        return Array((), lambda index: node, lambda index: node, 0, False, isinstance(value, bool))

    def constant(self, ref: Ref) -> np.ndarray[Any, Any]:
        """The value of a tensor of integers, which is taken as a part of the program."""
        value = self.trace.values[ref.index]
        if value.varies:
            raise CannotFuse("an index is computed from the state" + (value.call.place if value.call else ""))
        return value.example.detach().numpy()

    def _count_uses(self) -> dict[int, int]:
        """How often each value that matters is used."""
        uses = {0: 1, self.trace.energy.index: 1, self.trace.gradient.index: 1}
        for number in range(len(self.trace.values) - 1, 0, -1):
            call = self.trace.values[number].call
            if number in uses and call is not None:
                for ref in refs(call):
                    uses[ref.index] = uses.get(ref.index, 0) + 1
        return uses

    def _lower(self, number: int) -> None:
        value = self.trace.values[number]
        call = value.call
        assert call is not None
        key = repr((call.function, call.args, call.kwargs, value.part))
        if key in self.done:
            self.arrays[number] = self.done[key]
            return
        try:
            array = RULES[call.function](self, *self._arguments(call), **_settings(call))
        except (TypeError, KeyError, NotImplementedError) as error:
            raise CannotFuse(f"{call.function} is used in a form that has no rule{call.place}: {error}") from error
        if isinstance(array, tuple):
            array = array[value.part]
        if array.shape != tuple(value.example.shape):
            raise CannotFuse(f"{call.function} gave {array.shape}, not {tuple(value.example.shape)}{call.place}")
        if self.uses[number] > 1 and array.cost > 3:
            array = self.out.stored(array)
        self.arrays[number] = self.done[key] = array

    def _arguments(self, call: Call) -> list[Any]:
        def replaced(argument: Any) -> Any:
            if isinstance(argument, Ref):
                integer = not self.trace.values[argument.index].example.dtype.is_floating_point
                boolean = self.trace.values[argument.index].example.dtype == torch.bool
                return argument if integer and not boolean else self.array(argument)
            if isinstance(argument, tuple | list):
                return [replaced(part) for part in argument]
            return argument

        return [replaced(argument) for argument in call.args]

    def _uniform(self, number: int) -> Array:
        """A value that no lane changes: views are lowered, all else is a block of parameters or a constant."""
        value = self.trace.values[number]
        if value.call is not None and value.call.function in VIEWS:
            try:
                return RULES[value.call.function](self, *self._arguments(value.call), **_settings(value.call))
            except (TypeError, NotImplementedError):
                pass
        shape, pool = tuple(value.example.shape), self.pool
        boolean = value.example.dtype == torch.bool
        numbers = value.example.detach().reshape(-1).tolist() if value.fixed else None
        same = numbers is not None and len(set(numbers)) == 1

        def flat(index: Index) -> Expr:
            if numbers is not None and (same or isinstance(index, int)):
                number_ = numbers[0 if same else index]  # type: ignore[index]
                return pool.const(number_ if boolean else float(number_))
            element = pool.param(self._block(number) + index)
            return pool("ne", element, pool.const(0.0)) if boolean else element

        return Array(shape, lambda index: flat(ravel(index, shape)), flat, 0, False, boolean)

    def _block(self, number: int) -> int:
        if number not in self.blocks:
            self.blocks[number] = self.n_parameters
            self.n_parameters += self.trace.values[number].example.numel()
        return self.blocks[number]


def refs(call: Call) -> list[Ref]:
    """The values that a call uses."""
    found: list[Ref] = []

    def look(tree: Any) -> None:
        if isinstance(tree, Ref):
            found.append(tree)
        elif isinstance(tree, tuple | list):
            for part in tree:
                look(part)
        elif isinstance(tree, dict):
            look(list(tree.values()))

    look(call.args)
    look(call.kwargs)
    return found


def _settings(call: Call) -> dict[str, Any]:
    ignored = ("dtype", "layout", "device", "pin_memory", "memory_format", "implicit", "non_blocking")
    settings = {key: value for key, value in call.kwargs.items() if key not in ignored}
    dtype = call.kwargs.get("dtype")
    if dtype is not None:
        settings["dtype"] = dtype
    return settings


def rule(*functions: Any, view: bool = False) -> Callable[[Rule], Rule]:
    """Make a function the rule of operations."""

    def register(function: Rule) -> Rule:
        for op in functions:
            RULES[op] = function
            if view:
                VIEWS.add(op)
        return function

    return register


# Elementwise operations --------------------------------------------------------------------------


def broadcast(array: Array, shape: Sequence[int]) -> Array:
    """The array repeated along new axes and axes of length 1."""
    shape = tuple(shape)
    if array.shape == shape:
        return array
    missing = len(shape) - len(array.shape)
    kept = tuple(length != 1 for length in array.shape)

    def load(index: tuple[Index, ...]) -> Expr:
        return array.load(tuple(i if keep else 0 for i, keep in zip(index[missing:], kept, strict=True)))

    return Array(shape, load, None, array.cost, array.varies, array.boolean)


def elementwise(low: Lowering, function: Callable[..., Expr], *args: Any, work: int = 1, boolean: bool = False) -> Array:
    """``function`` of broadcast arrays, element by element."""
    arrays = [low.array(a) for a in args]
    shape = tuple(np.broadcast_shapes(*(a.shape for a in arrays)))
    arrays = [broadcast(a, shape) for a in arrays]
    same = [a.flat for a in arrays if a.flat is not None]
    flat = (lambda i: function(*(f(i) for f in same))) if len(same) == len(arrays) else None
    return Array(
        shape,
        lambda index: function(*(a.load(index) for a in arrays)),
        flat,
        work + sum(a.cost for a in arrays),
        any(a.varies for a in arrays),
        boolean,
    )


def _simple(op: str, *functions: Any, boolean: bool = False, swap: bool = False) -> None:
    work = 8 if op in HEAVY else 1

    @rule(*functions)
    def lowered(low: Lowering, *args: Any, **_: Any) -> Array:
        # a scalar that scales the second operand (alpha) has a rule of its own
        return elementwise(low, lambda *a: low.pool(op, *a), *(args[::-1] if swap else args), work=work, boolean=boolean)


for _op in ("neg", "exp", "log", "sin", "cos", "tanh", "sigmoid", "sqrt", "abs", "erf", "log1p", "expm1"):
    _simple(_op, getattr(aten, _op).default)
for _op, _name in (("atan", "atan"), ("asin", "asin"), ("acos", "acos"), ("floor", "floor")):
    _simple(_op, getattr(aten, _name).default)
for _op, _name in (("mul", "mul"), ("div", "div")):
    _simple(_op, getattr(aten, _name).Tensor, getattr(aten, _name).Scalar)
_simple("max", aten.maximum.default)
_simple("min", aten.minimum.default)
for _op, _name in (("lt", "lt"), ("le", "le"), ("eq", "eq"), ("ne", "ne")):
    _simple(_op, getattr(aten, _name).Tensor, getattr(aten, _name).Scalar, boolean=True)
for _op, _name in (("lt", "gt"), ("le", "ge")):
    _simple(_op, getattr(aten, _name).Tensor, getattr(aten, _name).Scalar, boolean=True, swap=True)
_simple("and", aten.logical_and.default, aten.bitwise_and.Tensor, boolean=True)
_simple("or", aten.logical_or.default, aten.bitwise_or.Tensor, boolean=True)


def _formula(*functions: Any, work: int = 2, boolean: bool = False) -> Callable[[Callable[..., Expr]], Callable[..., Expr]]:
    """Make ``function(pool, *elements)`` the rule of elementwise operations."""

    def register(function: Callable[..., Expr]) -> Callable[..., Expr]:
        @rule(*functions)
        def lowered(low: Lowering, *args: Any, **settings: Any) -> Array:
            return elementwise(low, lambda *a: function(low.pool, *a, **settings), *args, work=work, boolean=boolean)

        return function

    return register


@_formula(aten.add.Tensor, aten.add.Scalar)
def _add(p: Pool, a: Expr, b: Expr, *_: Expr, alpha: float = 1) -> Expr:
    return p("add", a, p("mul", b, p.const(alpha)))


@_formula(aten.sub.Tensor, aten.sub.Scalar)
def _sub(p: Pool, a: Expr, b: Expr, *_: Expr, alpha: float = 1) -> Expr:
    return p("sub", a, p("mul", b, p.const(alpha)))


@_formula(aten.rsub.Scalar, aten.rsub.Tensor)
def _rsub(p: Pool, a: Expr, b: Expr, *_: Expr, alpha: float = 1) -> Expr:
    return p("sub", b, p("mul", a, p.const(alpha)))


@_formula(aten.reciprocal.default)
def _reciprocal(p: Pool, a: Expr) -> Expr:
    return p("div", p.const(1.0), a)


@_formula(aten.rsqrt.default)
def _rsqrt(p: Pool, a: Expr) -> Expr:
    return p("div", p.const(1.0), p("sqrt", a))


@_formula(aten.square.default)
def _square(p: Pool, a: Expr) -> Expr:
    return p("mul", a, a)


@_formula(aten.pow.Tensor_Scalar, aten.pow.Tensor_Tensor, aten.pow.Scalar)
def _pow(p: Pool, a: Expr, b: Expr) -> Expr:
    exponent = float(b.args[0]) if b.op == "const" else math.nan
    if exponent == int(exponent) if math.isfinite(exponent) else False:
        power = _integer_power(p, a, abs(int(exponent))) if abs(exponent) <= 16 else None
        if power is not None:
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


@_formula(aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf)
def _where(p: Pool, condition: Expr, a: Expr, b: Expr) -> Expr:
    return p("where", condition, a, b)


@_formula(aten.masked_fill.Scalar, aten.masked_fill.Tensor)
def _masked_fill(p: Pool, a: Expr, mask: Expr, value: Expr) -> Expr:
    return p("where", mask, _real(p, value), a)


@_formula(aten.logical_not.default, aten.bitwise_not.default, boolean=True)
def _not(p: Pool, a: Expr) -> Expr:
    return p("where", a, p.const(False), p.const(True))


@_formula(aten.isnan.default, boolean=True)
def _isnan(p: Pool, a: Expr) -> Expr:
    return p("isnan", a)


@_formula(aten.isinf.default, boolean=True)
def _isinf(p: Pool, a: Expr) -> Expr:
    return p("eq", p("abs", a), p.const(math.inf))


@_formula(aten.sign.default, aten.sgn.default)
def _sign(p: Pool, a: Expr) -> Expr:
    zero = p.const(0.0)
    return p("where", p("lt", zero, a), p.const(1.0), p("where", p("lt", a, zero), p.const(-1.0), a))


@_formula(aten.relu.default)
def _relu(p: Pool, a: Expr) -> Expr:
    return p("where", p("lt", a, p.const(0.0)), p.const(0.0), a)


@_formula(aten.threshold_backward.default)
def _threshold_backward(p: Pool, gradient: Expr, a: Expr, threshold: Expr) -> Expr:
    return p("where", p("le", a, threshold), p.const(0.0), gradient)


@_formula(aten.silu.default, work=8)
def _silu(p: Pool, a: Expr) -> Expr:
    return p("mul", a, p("sigmoid", a))


@_formula(aten.silu_backward.default, work=8)
def _silu_backward(p: Pool, gradient: Expr, a: Expr) -> Expr:
    one, s = p.const(1.0), p("sigmoid", a)
    return p("mul", gradient, p("mul", s, p("add", one, p("mul", a, p("sub", one, s)))))


@_formula(aten.sigmoid_backward.default)
def _sigmoid_backward(p: Pool, gradient: Expr, s: Expr) -> Expr:
    return p("mul", gradient, p("mul", s, p("sub", p.const(1.0), s)))


@_formula(aten.tanh_backward.default)
def _tanh_backward(p: Pool, gradient: Expr, t: Expr) -> Expr:
    return p("mul", gradient, p("sub", p.const(1.0), p("mul", t, t)))


@_formula(aten.softplus.default, work=8)
def _softplus(p: Pool, a: Expr, *beta_threshold: Expr) -> Expr:
    beta = beta_threshold[0] if beta_threshold else p.const(1.0)
    return p("div", p("softplus", p("mul", a, beta)), beta)


@_formula(aten.softplus_backward.default, work=8)
def _softplus_backward(p: Pool, gradient: Expr, a: Expr, beta: Expr, threshold: Expr) -> Expr:
    return p("mul", gradient, p("sigmoid", p("mul", a, beta)))


@_formula(aten.log_sigmoid_forward.default, work=8)
def _log_sigmoid(p: Pool, a: Expr) -> Expr:
    return p("neg", p("softplus", p("neg", a)))


@_formula(aten.log_sigmoid_backward.default, work=8)
def _log_sigmoid_backward(p: Pool, gradient: Expr, a: Expr, *_: Expr) -> Expr:
    return p("mul", gradient, p("sigmoid", p("neg", a)))


@_formula(aten.elu.default, work=8)
def _elu(p: Pool, a: Expr, *more: Expr) -> Expr:
    alpha, scale, input_scale = (*more, *(p.const(1.0),) * 3)[:3]
    negative = p("mul", alpha, p("expm1", p("mul", a, input_scale)))
    return p("mul", scale, p("where", p("lt", p.const(0.0), a), a, negative))


@rule(aten.elu_backward.default)
def _elu_backward(low: Lowering, gradient: Array, alpha: float, scale: float, input_scale: float, is_result: bool,
                  a: Array) -> Array:
    p = low.pool

    def slope(g: Expr, e: Expr) -> Expr:
        inner = p("add", e, p.const(alpha * scale)) if is_result else p(
            "mul", p("exp", p("mul", e, p.const(input_scale))), p.const(alpha * scale)
        )
        negative = p("mul", inner, p.const(input_scale))
        return p("mul", g, p("where", p("lt", p.const(0.0), e), p.const(scale), negative))

    return elementwise(low, slope, gradient, a, work=8)


@_formula(aten.leaky_relu.default)
def _leaky_relu(p: Pool, a: Expr, *slope: Expr) -> Expr:
    return p("where", p("lt", p.const(0.0), a), a, p("mul", a, slope[0] if slope else p.const(0.01)))


@_formula(aten.leaky_relu_backward.default)
def _leaky_relu_backward(p: Pool, gradient: Expr, a: Expr, slope: Expr, _: Expr) -> Expr:
    return p("where", p("lt", p.const(0.0), a), gradient, p("mul", gradient, slope))


def _gelu_parts(p: Pool, a: Expr, approximate: str) -> tuple[Expr, Expr]:
    """gelu(a)/a, and its derivative."""
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
        change = p("mul", p("exp", p("mul", square, p.const(-0.5))), p.const(1 / math.sqrt(2 * math.pi)))
    return weight, p("add", weight, p("mul", a, change))


@_formula(aten.gelu.default, work=8)
def _gelu(p: Pool, a: Expr, approximate: str = "none") -> Expr:
    return p("mul", a, _gelu_parts(p, a, approximate)[0])


@_formula(aten.gelu_backward.default, work=8)
def _gelu_backward(p: Pool, gradient: Expr, a: Expr, approximate: str = "none") -> Expr:
    return p("mul", gradient, _gelu_parts(p, a, approximate)[1])


def _real(p: Pool, a: Expr) -> Expr:
    if a.op == "bool":
        return p.const(float(a.args[0]))
    return a


@rule(aten._to_copy.default)
def _to_copy(low: Lowering, a: Array, dtype: torch.dtype | None = None, **_: Any) -> Array:
    real = low.trace.values[0].example.dtype
    if dtype is None or dtype == real:
        if not a.boolean:
            return a
        p = low.pool
        return elementwise(low, lambda e: p("where", e, p.const(1.0), p.const(0.0)), a)
    raise NotImplementedError(f"a value of the state is computed in {dtype}, and the state is {real}")


@rule(aten.clamp.default, aten.clamp_min.default, aten.clamp_max.default, aten.clamp.Tensor)
def _clamp(low: Lowering, a: Array, least: Any = None, most: Any = None, **more: Any) -> Array:
    least, most = more.get("min", least), more.get("max", most)
    p = low.pool
    if least is not None:  # NaN stays NaN
        a = elementwise(low, lambda e, m: p("where", p("lt", e, m), m, e), a, least)
    if most is not None:
        a = elementwise(low, lambda e, m: p("where", p("lt", m, e), m, e), a, most)
    return a


RULES[aten.clamp_max.default] = lambda low, a, most: _clamp(low, a, None, most)


# Constants of the state's shape ------------------------------------------------------------------


def _filled(value: float) -> Callable[..., Array]:
    def lowered(low: Lowering, a: Array, *rest: Any, **_: Any) -> Array:
        shape = tuple(rest[0]) if rest and isinstance(rest[0], list) else a.shape
        node = low.pool.const(value)
        return Array(shape, lambda index: node, lambda index: node, 0, False)

    return lowered


for _function in (aten.ones_like.default, aten.new_ones.default):
    RULES[_function] = _filled(1.0)
for _function in (
    aten.zeros_like.default,
    aten.empty_like.default,
    aten.new_zeros.default,
    aten.new_empty.default,
    aten.new_empty_strided.default,
):
    RULES[_function] = _filled(0.0)


@rule(aten.full_like.default, aten.fill.Scalar, aten.fill.Tensor)
def _full_like(low: Lowering, a: Array, value: Any, **_: Any) -> Array:
    return broadcast(low.array(value if isinstance(value, Array) else float(value)), a.shape)


@rule(aten.new_full.default)
def _new_full(low: Lowering, a: Array, shape: list[int], value: Any, **_: Any) -> Array:
    return broadcast(low.array(float(value)), shape)


# Views --------------------------------------------------------------------------------------------


@rule(aten.detach.default, aten.alias.default, aten.clone.default, aten.contiguous.default,
      aten.lift_fresh_copy.default, aten.lift_fresh.default, view=True)
def _same(low: Lowering, a: Array, **_: Any) -> Array:
    return a


@rule(aten.copy.default)
def _copy(low: Lowering, a: Array, source: Array, *_: Any) -> Array:
    return broadcast(source, a.shape)


@rule(aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten._reshape_alias.default, view=True)
def _reshape(low: Lowering, a: Array, shape: list[int], *_: Any) -> Array:
    known = math.prod(n for n in shape if n != -1)
    shape = tuple(a.size // max(known, 1) if n == -1 else n for n in shape)
    return reshaped(low, a, shape)


def reshaped(low: Lowering, a: Array, shape: tuple[int, ...]) -> Array:
    """The array with its elements, in C order, in another shape."""
    if tuple(n for n in shape if n != 1) == tuple(n for n in a.shape if n != 1):
        where = [i for i, n in enumerate(a.shape) if n != 1]

        def load(index: tuple[Index, ...]) -> Expr:
            full: list[Index] = [0] * len(a.shape)
            for i, axis in zip((i for i, n in zip(index, shape, strict=True) if n != 1), where, strict=True):
                full[axis] = i
            return a.load(tuple(full))

        return Array(shape, load, a.flat, a.cost, a.varies, a.boolean)
    flat = a.flat
    if flat is None:
        if not low.out.straight:
            if not a.varies:
                raise NotImplementedError("a reshaped view of a parameter")
            stored = low.out.stored(Array(a.shape, a.load, None, max(a.cost, 1), a.varies, a.boolean))
            flat = stored.flat
            assert flat is not None
            a = stored
        else:
            flat = lambda number: a.load(unravel(number, a.shape))  # noqa: E731
    direct = flat
    return Array(shape, lambda index: direct(ravel(index, shape)), direct, a.cost, a.varies, a.boolean)


@rule(aten.expand.default, view=True)
def _expand(low: Lowering, a: Array, shape: list[int], **_: Any) -> Array:
    missing = len(shape) - len(a.shape)
    return broadcast(a, [a.shape[i - missing] if n == -1 else n for i, n in enumerate(shape)])


@rule(aten.unsqueeze.default, view=True)
def _unsqueeze(low: Lowering, a: Array, axis: int) -> Array:
    axis %= len(a.shape) + 1
    return reshaped(low, a, (*a.shape[:axis], 1, *a.shape[axis:]))


@rule(aten.squeeze.dim, aten.squeeze.dims, aten.squeeze.default, view=True)
def _squeeze(low: Lowering, a: Array, axes: int | list[int] | None = None) -> Array:
    axes = list(range(len(a.shape))) if axes is None else [axes] if isinstance(axes, int) else axes
    gone = {axis % max(len(a.shape), 1) for axis in axes}
    return reshaped(low, a, tuple(n for i, n in enumerate(a.shape) if not (i in gone and n == 1)))


@rule(aten.permute.default, view=True)
def _permute(low: Lowering, a: Array, order: list[int]) -> Array:
    order = [axis % len(a.shape) for axis in order]
    back = [order.index(axis) for axis in range(len(order))]
    shape = tuple(a.shape[axis] for axis in order)
    return Array(shape, lambda index: a.load(tuple(index[i] for i in back)), None, a.cost, a.varies, a.boolean)


@rule(aten.t.default, view=True)
def _t(low: Lowering, a: Array) -> Array:
    return _permute(low, a, list(range(len(a.shape)))[::-1])


@rule(aten.transpose.int, view=True)
def _transpose(low: Lowering, a: Array, i: int, j: int) -> Array:
    order = list(range(len(a.shape)))
    order[i], order[j] = order[j], order[i]
    return _permute(low, a, order)


@rule(aten.select.int, view=True)
def _select(low: Lowering, a: Array, axis: int, position: int) -> Array:
    axis, position = axis % len(a.shape), position % a.shape[axis]
    shape = a.shape[:axis] + a.shape[axis + 1 :]
    return Array(
        shape, lambda index: a.load((*index[:axis], position, *index[axis:])), None, a.cost, a.varies, a.boolean
    )


@rule(aten.slice.Tensor, view=True)
def _slice(low: Lowering, a: Array, axis: int = 0, start: int | None = None, stop: int | None = None, step: int = 1) -> Array:
    axis %= len(a.shape)
    taken = range(a.shape[axis])[slice(start, stop, step)]
    shape = (*a.shape[:axis], len(taken), *a.shape[axis + 1 :])

    def load(index: tuple[Index, ...]) -> Expr:
        return a.load((*index[:axis], index[axis] * step + taken.start, *index[axis + 1 :]))

    return Array(shape, load, None, a.cost, a.varies, a.boolean)


@rule(aten.flip.default, view=True)
def _flip(low: Lowering, a: Array, axes: list[int]) -> Array:
    turned = {axis % len(a.shape) for axis in axes}

    def load(index: tuple[Index, ...]) -> Expr:
        return a.load(tuple(i * -1 + (a.shape[k] - 1) if k in turned else i for k, i in enumerate(index)))

    return Array(a.shape, load, None, a.cost, a.varies, a.boolean)


@rule(aten.split.Tensor, aten.split_with_sizes.default)
def _split(low: Lowering, a: Array, sizes: int | list[int], axis: int = 0) -> tuple[Array, ...]:
    length = a.shape[axis]
    if isinstance(sizes, int):
        sizes = [min(sizes, length - i) for i in range(0, length, sizes)]
    stops = np.cumsum(sizes).tolist()
    return tuple(_slice(low, a, axis, stop - n, stop) for n, stop in zip(sizes, stops, strict=True))


@rule(aten.unbind.int)
def _unbind(low: Lowering, a: Array, axis: int = 0) -> tuple[Array, ...]:
    return tuple(_select(low, a, axis, i) for i in range(a.shape[axis]))


@rule(aten.as_strided.default)
def _as_strided(low: Lowering, a: Array, shape: list[int], strides: list[int], offset: int = 0) -> Array:
    whole = reshaped(low, a, (a.size,))

    def load(index: tuple[Index, ...]) -> Expr:
        number: Index = offset or 0
        for i, stride in zip(index, strides, strict=True):
            number = i * stride + number
        return whole.load((number,))

    return Array(tuple(shape), load, None, a.cost, a.varies, a.boolean)


# Pieces put together ------------------------------------------------------------------------------


def assembled(low: Lowering, shape: tuple[int, ...], pieces: Sequence[tuple[Array, Callable[..., tuple[Index, ...]]]]) -> Array:
    """The array in which each piece, in this order, was written to places ``place(index)``."""
    if low.out.straight:
        cells: list[Expr] = [low.pool.const(0.0)] * math.prod(shape)
        for piece, place in pieces:
            for index in itertools.product(*map(range, piece.shape)):
                number = ravel(place(index), shape)
                assert isinstance(number, int)
                cells[number] = piece.load(index)
        varies = any(cell.varies for cell in cells)
        return Array(shape, lambda index: cells[ravel(index, shape)], cells.__getitem__, 0, varies)  # type: ignore[index]
    base = low.out.allocate(math.prod(shape))
    for piece, place in pieces:
        low.out.assign(base, piece, lambda index, place=place: ravel(place(index), shape))
    return low.out.rows(base, shape)


@rule(aten.cat.default)
def _cat(low: Lowering, arrays: list[Array], axis: int = 0) -> Array:
    arrays = [low.array(a) for a in arrays if low.array(a).shape != (0,)]
    axis %= len(arrays[0].shape)
    pieces, start = [], 0
    for a in arrays:
        pieces.append((a, lambda index, start=start: (*index[:axis], index[axis] + start, *index[axis + 1 :])))
        start += a.shape[axis]
    return assembled(low, (*arrays[0].shape[:axis], start, *arrays[0].shape[axis + 1 :]), pieces)


@rule(aten.stack.default)
def _stack(low: Lowering, arrays: list[Array], axis: int = 0) -> Array:
    axis %= len(low.array(arrays[0]).shape) + 1
    return _cat(low, [_unsqueeze(low, low.array(a), axis) for a in arrays], axis)


@rule(aten.slice_scatter.default)
def _slice_scatter(low: Lowering, a: Array, source: Array, axis: int = 0, start: int | None = None,
                   stop: int | None = None, step: int = 1) -> Array:
    axis %= len(a.shape)
    first = range(a.shape[axis])[slice(start, stop, step)].start

    def place(index: tuple[Index, ...]) -> tuple[Index, ...]:
        return (*index[:axis], index[axis] * step + first, *index[axis + 1 :])

    return assembled(low, a.shape, [(a, lambda index: index), (source, place)])


@rule(aten.slice_backward.default)
def _slice_backward(low: Lowering, gradient: Array, shape: list[int], axis: int, start: int, stop: int, step: int) -> Array:
    return _slice_scatter(low, _filled(0.0)(low, gradient, shape), gradient, axis, start, stop, step)


@rule(aten.select_scatter.default)
def _select_scatter(low: Lowering, a: Array, source: Array, axis: int, position: int) -> Array:
    axis %= len(a.shape)
    position %= a.shape[axis]
    return assembled(
        low,
        a.shape,
        [(a, lambda index: index), (source, lambda index: (*index[:axis], position, *index[axis:]))],
    )


@rule(aten.as_strided_scatter.default)
def _as_strided_scatter(low: Lowering, a: Array, source: Array, shape: list[int], strides: list[int], offset: int = 0) -> Array:
    def place(index: tuple[Index, ...]) -> tuple[Index, ...]:
        number: Index = offset or 0
        for i, stride in zip(index, strides, strict=True):
            number = i * stride + number
        return (number,)

    whole = assembled(
        low, (a.size,), [(reshaped(low, a, (a.size,)), lambda index: index), (broadcast(source, shape), place)]
    )
    return reshaped(low, whole, a.shape)


@rule(aten.select_backward.default)
def _select_backward(low: Lowering, gradient: Array, shape: list[int], axis: int, position: int) -> Array:
    return _select_scatter(low, _filled(0.0)(low, gradient, shape), gradient, axis, position)


@rule(aten.constant_pad_nd.default)
def _pad(low: Lowering, a: Array, widths: list[int], value: float = 0.0) -> Array:
    if any(width < 0 for width in widths):
        raise NotImplementedError("negative padding")
    before = [0] * len(a.shape)
    shape = list(a.shape)
    for k in range(len(widths) // 2):
        before[-1 - k] = widths[2 * k]
        shape[-1 - k] += widths[2 * k] + widths[2 * k + 1]
    empty = broadcast(low.array(float(value)), shape)
    return assembled(
        low,
        tuple(shape),
        [(empty, lambda index: index), (a, lambda index: tuple(i + b for i, b in zip(index, before, strict=True)))],
    )


def _table(low: Lowering, a: Array, shape: tuple[int, ...], sources: np.ndarray[Any, Any]) -> Array:
    """Elements of ``a`` (flat numbers ``sources``) in a new array; by copies, since the order is arbitrary."""
    flat = reshaped(low, a, (a.size,))
    numbers = sources.reshape(-1).tolist()
    if low.out.straight:
        return Array(shape, lambda index: flat.load((numbers[ravel(index, shape)],)), None, a.cost, a.varies, a.boolean)
    if len(numbers) > 256:
        raise NotImplementedError("indexing with more than 256 indices")
    base = low.out.allocate(len(numbers))
    for place, number in enumerate(numbers):
        low.out.assign(base + place, Array((), lambda index, number=number: flat.load((number,)), None, 1))
    return low.out.rows(base, shape)


@rule(aten.index_select.default)
def _index_select(low: Lowering, a: Array, axis: int, index: Ref) -> Array:
    numbers = np.take(np.arange(a.size).reshape(a.shape), low.constant(index), axis)
    return _table(low, a, numbers.shape, numbers)


@rule(aten.index.Tensor)
def _index(low: Lowering, a: Array, indices: list[Ref | None]) -> Array:
    key = tuple(slice(None) if i is None else low.constant(i) for i in indices)
    numbers = np.arange(a.size).reshape(a.shape)[key]
    return _table(low, a, numbers.shape, numbers)


@rule(aten.gather.default)
def _gather(low: Lowering, a: Array, axis: int, index: Ref, **_: Any) -> Array:
    where = low.constant(index)
    full = np.arange(a.size).reshape(a.shape)[tuple(slice(n) if k != axis % a_ndim else slice(None)
                                                   for k, (n, a_ndim) in enumerate((n, len(a.shape)) for n in where.shape))]
    numbers = np.take_along_axis(full, where, axis)
    return _table(low, a, numbers.shape, numbers)


@rule(aten.index_put.default, aten._unsafe_index_put.default)
def _index_put(low: Lowering, a: Array, indices: list[Ref | None], source: Array, accumulate: bool = False) -> Array:
    key = tuple(slice(None) if i is None else low.constant(i) for i in indices)
    numbers = np.arange(a.size).reshape(a.shape)[key]
    source = broadcast(source, numbers.shape)
    if not low.out.straight:
        raise NotImplementedError("scattering in an energy of this size")
    target, values = reshaped(low, a, (a.size,)), reshaped(low, source, (numbers.size,))
    cells = [target.load((i,)) for i in range(a.size)]
    for place, number in enumerate(numbers.reshape(-1).tolist()):
        value = values.load((place,))
        cells[number] = low.pool("add", cells[number], value) if accumulate else value
    return Array(a.shape, lambda index: cells[ravel(index, a.shape)], cells.__getitem__, 0, True)  # type: ignore[index]


# Reductions ---------------------------------------------------------------------------------------


def _reduced(low: Lowering, op: str, start: float, a: Array, axes: Any, keep: bool) -> Array:
    n = len(a.shape)
    gone = sorted(range(n) if axes is None or axes == [] else {i % max(n, 1) for i in ([axes] if isinstance(axes, int) else axes)})
    left = [i for i in range(n) if i not in gone]
    shape, over = tuple(a.shape[i] for i in left), tuple(a.shape[i] for i in gone)

    def load(index: tuple[Index, ...], inner: tuple[Index, ...]) -> Expr:
        full: list[Index] = [0] * n
        for axis, i in zip((*left, *gone), (*index, *inner), strict=True):
            full[axis] = i
        return a.load(tuple(full))

    if math.prod(over) == 1:
        result = Array(shape, lambda index: load(index, (0,) * len(over)), a.flat, a.cost, a.varies)
    elif a.boolean:
        raise NotImplementedError("a reduction of truth values")
    else:
        result = low.out.reduce(op, start, shape, over, load, a.varies)
    return reshaped(low, result, tuple(1 if i in gone else m for i, m in enumerate(a.shape))) if keep else result


@rule(aten.sum.dim_IntList, aten.sum.default)
def _sum(low: Lowering, a: Array, axes: Any = None, keepdim: bool = False, **_: Any) -> Array:
    return _reduced(low, "add", 0.0, a, axes, keepdim)


@rule(aten.linalg_vector_norm.default)
def _vector_norm(low: Lowering, a: Array, order: float = 2, axes: Any = None, keepdim: bool = False, **_: Any) -> Array:
    p = low.pool
    if order == 1:
        return _reduced(low, "add", 0.0, elementwise(low, lambda e: p("abs", e), a), axes, keepdim)
    if order != 2:
        raise NotImplementedError(f"the norm of order {order}")
    squares = elementwise(low, lambda e: p("mul", e, e), a)
    return elementwise(low, lambda e: p("sqrt", e), _reduced(low, "add", 0.0, squares, axes, keepdim))


def _running(op: str) -> Rule:
    def lowered(low: Lowering, a: Array, axis: int, **_: Any) -> Array:
        axis %= len(a.shape)
        if not low.out.straight:
            raise NotImplementedError("running sums and products in an energy of this size")
        cells: dict[tuple[Index, ...], Expr] = {}
        for index in itertools.product(*map(range, a.shape)):
            before = (*index[:axis], index[axis] - 1, *index[axis + 1 :])
            cells[index] = low.pool(op, cells[before], a.load(index)) if index[axis] else a.load(index)
        return Array(a.shape, cells.__getitem__, None, 0, a.varies)

    return lowered


RULES[aten.cumsum.default], RULES[aten.cumprod.default] = _running("add"), _running("mul")


@rule(aten.mean.dim, aten.mean.default)
def _mean(low: Lowering, a: Array, axes: Any = None, keepdim: bool = False, **_: Any) -> Array:
    total = _reduced(low, "add", 0.0, a, axes, keepdim)
    count = low.array(float(a.size // max(total.size, 1)))
    return elementwise(low, lambda e, n: low.pool("div", e, n), total, count)


@rule(aten.amax.default)
def _amax(low: Lowering, a: Array, axes: Any = None, keepdim: bool = False) -> Array:
    return _reduced(low, "max", -math.inf, a, axes, keepdim)


@rule(aten.amin.default)
def _amin(low: Lowering, a: Array, axes: Any = None, keepdim: bool = False) -> Array:
    return _reduced(low, "min", math.inf, a, axes, keepdim)


@rule(aten.prod.default, aten.prod.dim_int)
def _prod(low: Lowering, a: Array, axes: Any = None, keepdim: bool = False, **_: Any) -> Array:
    return _reduced(low, "mul", 1.0, a, axes, keepdim)


@rule(aten.logsumexp.default)
def _logsumexp(low: Lowering, a: Array, axes: Any, keepdim: bool = False) -> Array:
    p = low.pool
    a = low.out.stored(a)
    zero, infinity = p.const(0.0), p.const(math.inf)
    largest = _reduced(low, "max", -math.inf, a, axes, True)
    largest = elementwise(low, lambda m: p("where", p("eq", p("abs", m), infinity), zero, m), largest)
    shifted = elementwise(low, lambda e, m: p("exp", p("sub", e, m)), a, largest, work=8)
    total = _reduced(low, "add", 0.0, shifted, axes, True)
    result = elementwise(low, lambda s, m: p("add", p("log", s), m), total, largest, work=8)
    return result if keepdim else _squeeze(low, result, axes)


@rule(aten._log_softmax.default)
def _log_softmax(low: Lowering, a: Array, axis: int, *_: Any) -> Array:
    return elementwise(low, lambda e, n: low.pool("sub", e, n), a, _logsumexp(low, a, [axis], True))


@rule(aten._softmax.default)
def _softmax(low: Lowering, a: Array, axis: int, *_: Any) -> Array:
    return elementwise(low, lambda e: low.pool("exp", e), _log_softmax(low, a, axis), work=8)


@rule(aten._log_softmax_backward_data.default)
def _log_softmax_backward(low: Lowering, gradient: Array, result: Array, axis: int, *_: Any) -> Array:
    p = low.pool
    total = _reduced(low, "add", 0.0, gradient, [axis], True)
    return elementwise(low, lambda g, r, t: p("sub", g, p("mul", p("exp", r), t)), gradient, result, total, work=8)


@rule(aten._softmax_backward_data.default)
def _softmax_backward(low: Lowering, gradient: Array, result: Array, axis: int, *_: Any) -> Array:
    p = low.pool
    weighted = elementwise(low, lambda g, r: p("mul", g, r), gradient, result)
    total = _reduced(low, "add", 0.0, weighted, [axis], True)
    return elementwise(low, lambda g, r, t: p("mul", r, p("sub", g, t)), gradient, result, total)


def product(low: Lowering, a: Array, b: Array) -> Array:
    """The matrix product of ``(..., m, k)`` and ``(..., k, n)`` (equal leading axes)."""
    if a.varies:
        a = low.out.stored(a)
    if b.varies:
        b = low.out.stored(b)
    lead, m, k, n = a.shape[:-2], a.shape[-2], a.shape[-1], b.shape[-1]

    def load(index: tuple[Index, ...], inner: tuple[Index, ...]) -> Expr:
        *batch, i, j = index
        return low.pool("mul", a.load((*batch, i, *inner)), b.load((*batch, *inner, j)))

    if k == 1:
        return Array((*lead, m, n), lambda index: load(index, (0,)), None, 1, a.varies or b.varies)
    return low.out.reduce("add", 0.0, (*lead, m, n), (k,), load)


@rule(aten.mm.default, aten.bmm.default)
def _mm(low: Lowering, a: Array, b: Array) -> Array:
    return product(low, a, b)


@rule(aten.addmm.default)
def _addmm(low: Lowering, bias: Array, a: Array, b: Array, beta: float = 1, alpha: float = 1) -> Array:
    p = low.pool
    return elementwise(
        low,
        lambda e, c: p("add", p("mul", e, p.const(alpha)), p("mul", c, p.const(beta))),
        product(low, a, b),
        bias,
    )


@rule(aten.mv.default)
def _mv(low: Lowering, a: Array, b: Array) -> Array:
    return reshaped(low, product(low, a, reshaped(low, b, (*b.shape, 1))), a.shape[:1])


@rule(aten.dot.default)
def _dot(low: Lowering, a: Array, b: Array) -> Array:
    return reshaped(low, product(low, reshaped(low, a, (1, *a.shape)), reshaped(low, b, (*b.shape, 1))), ())


def parameters_now(trace: Trace, layout: Parameters, dtype: torch.dtype) -> Tensor:
    """The flat parameter array of this moment: leaves as they are now, and what torch computes from them.

    Raises:
        CannotFuse: If a leaf is gone, or has another shape or dtype than when it was traced.
    """
    known: dict[int, Tensor] = {}

    def now(number: int) -> Tensor:
        if number not in known:
            value = trace.values[number]
            if value.fixed:
                tensor: Any = value.example
            elif value.leaf is not None:
                tensor = value.leaf.now()
                if tensor is None or tensor.shape != value.example.shape or tensor.dtype != value.example.dtype:
                    raise CannotFuse(f"the tensor {value.leaf.key!r} was replaced by one of another kind")
            else:
                call = value.call
                assert call is not None
                result = call.function(*replaced(call.args), **replaced(call.kwargs))
                tensor = result[value.part] if isinstance(result, tuple | list) else result
            known[number] = tensor
        return known[number]

    def replaced(tree: Any) -> Any:
        if isinstance(tree, Ref):
            return now(tree.index)
        if isinstance(tree, tuple | list):
            return type(tree)(replaced(part) for part in tree)
        if isinstance(tree, dict):
            return {key: replaced(part) for key, part in tree.items()}
        return tree

    out = torch.empty(max(layout.size, 1), dtype=dtype)
    with torch.no_grad():
        for number, first in layout.blocks:
            tensor = now(number)
            out[first : first + tensor.numel()] = tensor.reshape(-1)
    return out
