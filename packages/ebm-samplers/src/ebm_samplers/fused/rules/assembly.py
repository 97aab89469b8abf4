"""Arrays put together from pieces, and constants of given shapes."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ebm_samplers.fused.graph import Expr, Index
from ebm_samplers.fused.program import Array, listed, ravel
from ebm_samplers.fused.rules.elementwise import broadcast
from ebm_samplers.fused.rules.registry import RULES, rule
from ebm_samplers.fused.rules.views import reshaped, slice_, unsqueeze
from ebm_samplers.fused.trace import aten

if TYPE_CHECKING:
    from ebm_samplers.fused.lowering import Lowering


def _filled(value: float) -> Callable[..., Array]:
    def lowered(low: "Lowering", a: Array, *rest: Any, **_: Any) -> Array:
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
def _full_like(low: "Lowering", a: Array, value: Any, **_: Any) -> Array:
    return broadcast(low.array(value if isinstance(value, Array) else float(value)), a.shape)


@rule(aten.new_full.default)
def _new_full(low: "Lowering", a: Array, shape: list[int], value: Any, **_: Any) -> Array:
    return broadcast(low.array(float(value)), shape)


def assembled(
    low: "Lowering",
    shape: tuple[int, ...],
    pieces: Sequence[tuple[Array, Callable[..., tuple[Index, ...]]]],
) -> Array:
    """The array in which each piece, in this order, was written to places ``place(index)``."""
    if low.out.straight:
        cells: list[Expr] = [low.pool.const(0.0)] * math.prod(shape)
        for piece, place in pieces:
            for index in itertools.product(*map(range, piece.shape)):
                number = ravel(place(index), shape)
                assert isinstance(number, int)
                cells[number] = piece.load(index)
        return listed(cells, shape)
    base = low.out.allocate(math.prod(shape))
    for piece, place in pieces:
        low.out.assign(base, piece, _ravelled(place, shape))
    return low.out.rows(base, shape)


def _ravelled(
    place: Callable[..., tuple[Index, ...]], shape: tuple[int, ...]
) -> Callable[[tuple[Index, ...]], Index]:
    return lambda index: ravel(place(index), shape)


@rule(aten.cat.default)
def _cat(low: "Lowering", arrays: list[Array], axis: int = 0) -> Array:
    arrays = [low.array(a) for a in arrays if low.array(a).shape != (0,)]
    axis %= len(arrays[0].shape)
    pieces, start = [], 0
    for a in arrays:
        pieces.append(
            (a, lambda index, start=start: (*index[:axis], index[axis] + start, *index[axis + 1 :]))
        )
        start += a.shape[axis]
    return assembled(low, (*arrays[0].shape[:axis], start, *arrays[0].shape[axis + 1 :]), pieces)


@rule(aten.stack.default)
def _stack(low: "Lowering", arrays: list[Array], axis: int = 0) -> Array:
    axis %= len(low.array(arrays[0]).shape) + 1
    return _cat(low, [unsqueeze(low, low.array(a), axis) for a in arrays], axis)


@rule(aten.slice_scatter.default)
def _slice_scatter(
    low: "Lowering",
    a: Array,
    source: Array,
    axis: int = 0,
    start: int | None = None,
    stop: int | None = None,
    step: int = 1,
) -> Array:
    axis %= len(a.shape)
    first = range(a.shape[axis])[slice(start, stop, step)].start

    def place(index: tuple[Index, ...]) -> tuple[Index, ...]:
        return (*index[:axis], index[axis] * step + first, *index[axis + 1 :])

    return assembled(low, a.shape, [(a, lambda index: index), (source, place)])


@rule(aten.slice_backward.default)
def _slice_backward(
    low: "Lowering", gradient: Array, shape: list[int], axis: int, start: int, stop: int, step: int
) -> Array:
    return _slice_scatter(
        low, _filled(0.0)(low, gradient, shape), gradient, axis, start, stop, step
    )


@rule(aten.select_scatter.default)
def _select_scatter(low: "Lowering", a: Array, source: Array, axis: int, position: int) -> Array:
    axis %= len(a.shape)
    position %= a.shape[axis]
    return assembled(
        low,
        a.shape,
        [
            (a, lambda index: index),
            (source, lambda index: (*index[:axis], position, *index[axis:])),
        ],
    )


@rule(aten.as_strided_scatter.default)
def _as_strided_scatter(
    low: "Lowering", a: Array, source: Array, shape: list[int], strides: list[int], offset: int = 0
) -> Array:
    def place(index: tuple[Index, ...]) -> tuple[Index, ...]:
        number: Index = offset or 0
        for i, stride in zip(index, strides, strict=True):
            number = i * stride + number
        return (number,)

    whole = assembled(
        low,
        (a.size,),
        [(reshaped(low, a, (a.size,)), lambda index: index), (broadcast(source, shape), place)],
    )
    return reshaped(low, whole, a.shape)


@rule(aten.select_backward.default)
def _select_backward(
    low: "Lowering", gradient: Array, shape: list[int], axis: int, position: int
) -> Array:
    return _select_scatter(low, _filled(0.0)(low, gradient, shape), gradient, axis, position)


@rule(aten.diagonal_scatter.default)
def _diagonal_scatter(
    low: "Lowering", a: Array, source: Array, offset: int = 0, i: int = 0, j: int = 1
) -> Array:
    i, j = i % len(a.shape), j % len(a.shape)

    def place(index: tuple[Index, ...]) -> tuple[Index, ...]:
        rest = iter(index[:-1])
        places = {i: index[-1] + max(-offset, 0), j: index[-1] + max(offset, 0)}
        return tuple(places[k] if k in places else next(rest) for k in range(len(a.shape)))

    return assembled(low, a.shape, [(a, lambda index: index), (source, place)])


@rule(aten.constant_pad_nd.default)
def _pad(low: "Lowering", a: Array, widths: list[int], value: float = 0.0) -> Array:
    for k in range(len(widths) // 2):  # negative widths cut off
        axis = len(a.shape) - 1 - k
        before_, after = (max(-width, 0) for width in widths[2 * k : 2 * k + 2])
        a = slice_(low, a, axis, before_, a.shape[axis] - after)
    widths = [max(width, 0) for width in widths]
    before = [0] * len(a.shape)
    shape = list(a.shape)
    for k in range(len(widths) // 2):
        before[-1 - k] = widths[2 * k]
        shape[-1 - k] += widths[2 * k] + widths[2 * k + 1]
    empty = broadcast(low.array(float(value)), shape)
    return assembled(
        low,
        tuple(shape),
        [
            (empty, lambda index: index),
            (a, lambda index: tuple(i + b for i, b in zip(index, before, strict=True))),
        ],
    )
