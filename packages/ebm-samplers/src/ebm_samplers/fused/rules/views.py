"""Operations that only name elements anew; they cost a kernel nothing."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ebm_samplers.fused.graph import Expr, Index
from ebm_samplers.fused.program import Array, ravel, unravel
from ebm_samplers.fused.rules.elementwise import broadcast
from ebm_samplers.fused.rules.registry import rule
from ebm_samplers.fused.trace import aten

if TYPE_CHECKING:
    from ebm_samplers.fused.lowering import Lowering


@rule(
    aten.detach.default,
    aten.alias.default,
    aten.clone.default,
    aten.contiguous.default,
    aten.lift_fresh_copy.default,
    aten.lift_fresh.default,
    view=True,
)
def _same(low: "Lowering", a: Array, **_: Any) -> Array:
    return a


@rule(aten.copy.default)
def _copy(low: "Lowering", a: Array, source: Array, *_: Any) -> Array:
    return broadcast(source, a.shape)


@rule(
    aten.view.default,
    aten._unsafe_view.default,
    aten.reshape.default,
    aten._reshape_alias.default,
    view=True,
)
def _reshape(low: "Lowering", a: Array, shape: list[int], *_: Any) -> Array:
    known = math.prod(n for n in shape if n != -1)
    return reshaped(low, a, tuple(a.size // max(known, 1) if n == -1 else n for n in shape))


def reshaped(low: "Lowering", a: Array, shape: tuple[int, ...]) -> Array:
    """The array with its elements, in C order, in another shape."""
    if tuple(n for n in shape if n != 1) == tuple(n for n in a.shape if n != 1):
        where = [i for i, n in enumerate(a.shape) if n != 1]

        def load(index: tuple[Index, ...]) -> Expr:
            full: list[Index] = [0] * len(a.shape)
            for i, axis in zip(
                (i for i, n in zip(index, shape, strict=True) if n != 1), where, strict=True
            ):
                full[axis] = i
            return a.load(tuple(full))

        return Array(shape, load, a.flat, a.cost, a.varies, a.boolean)
    flat = a.flat
    if flat is None and not low.out.straight:
        if not a.varies:
            raise NotImplementedError("a reshaped view of a parameter")
        a = low.out.stored(Array(a.shape, a.load, None, max(a.cost, 1), a.varies, a.boolean))
        flat = a.flat
    direct = flat or _unravelled(a)
    return Array(
        shape, lambda index: direct(ravel(index, shape)), direct, a.cost, a.varies, a.boolean
    )


def _unravelled(a: Array) -> Callable[[Index], Expr]:
    def flat(number: Index) -> Expr:
        assert isinstance(number, int)
        return a.load(unravel(number, a.shape))

    return flat


@rule(aten.expand.default, view=True)
def _expand(low: "Lowering", a: Array, shape: list[int], **_: Any) -> Array:
    missing = len(shape) - len(a.shape)
    return broadcast(a, [a.shape[i - missing] if n == -1 else n for i, n in enumerate(shape)])


@rule(aten.unsqueeze.default, view=True)
def unsqueeze(low: "Lowering", a: Array, axis: int) -> Array:
    """The array with one more axis, of length 1."""
    axis %= len(a.shape) + 1
    return reshaped(low, a, (*a.shape[:axis], 1, *a.shape[axis:]))


@rule(aten.squeeze.dim, aten.squeeze.dims, aten.squeeze.default, view=True)
def squeeze(low: "Lowering", a: Array, axes: int | list[int] | None = None) -> Array:
    """The array without axes of length 1 (of those given)."""
    axes = list(range(len(a.shape))) if axes is None else [axes] if isinstance(axes, int) else axes
    gone = {axis % max(len(a.shape), 1) for axis in axes}
    return reshaped(low, a, tuple(n for i, n in enumerate(a.shape) if not (i in gone and n == 1)))


@rule(aten.permute.default, view=True)
def _permute(low: "Lowering", a: Array, order: list[int]) -> Array:
    order = [axis % len(a.shape) for axis in order]
    back = [order.index(axis) for axis in range(len(order))]
    shape = tuple(a.shape[axis] for axis in order)
    return Array(
        shape,
        lambda index: a.load(tuple(index[i] for i in back)),
        None,
        a.cost,
        a.varies,
        a.boolean,
    )


@rule(aten.t.default, view=True)
def _t(low: "Lowering", a: Array) -> Array:
    return _permute(low, a, list(range(len(a.shape)))[::-1])


@rule(aten.transpose.int, view=True)
def _transpose(low: "Lowering", a: Array, i: int, j: int) -> Array:
    order = list(range(len(a.shape)))
    order[i], order[j] = order[j], order[i]
    return _permute(low, a, order)


@rule(aten.select.int, view=True)
def _select(low: "Lowering", a: Array, axis: int, position: int) -> Array:
    axis, position = axis % len(a.shape), position % a.shape[axis]
    shape = a.shape[:axis] + a.shape[axis + 1 :]
    return Array(
        shape,
        lambda index: a.load((*index[:axis], position, *index[axis:])),
        None,
        a.cost,
        a.varies,
        a.boolean,
    )


@rule(aten.slice.Tensor, view=True)
def slice_(
    low: "Lowering",
    a: Array,
    axis: int = 0,
    start: int | None = None,
    stop: int | None = None,
    step: int = 1,
) -> Array:
    """A part of an axis."""
    axis %= len(a.shape)
    taken = range(a.shape[axis])[slice(start, stop, step)]
    shape = (*a.shape[:axis], len(taken), *a.shape[axis + 1 :])

    def load(index: tuple[Index, ...]) -> Expr:
        return a.load((*index[:axis], index[axis] * step + taken.start, *index[axis + 1 :]))

    return Array(shape, load, None, a.cost, a.varies, a.boolean)


@rule(aten.flip.default, view=True)
def _flip(low: "Lowering", a: Array, axes: list[int]) -> Array:
    turned = {axis % len(a.shape) for axis in axes}

    def load(index: tuple[Index, ...]) -> Expr:
        return a.load(
            tuple(i * -1 + (a.shape[k] - 1) if k in turned else i for k, i in enumerate(index))
        )

    return Array(a.shape, load, None, a.cost, a.varies, a.boolean)


@rule(aten.split.Tensor, aten.split_with_sizes.default)
def _split(low: "Lowering", a: Array, sizes: int | list[int], axis: int = 0) -> tuple[Array, ...]:
    length = a.shape[axis]
    if isinstance(sizes, int):
        sizes = [min(sizes, length - i) for i in range(0, length, sizes)]
    stops = np.cumsum(sizes).tolist()
    return tuple(slice_(low, a, axis, stop - n, stop) for n, stop in zip(sizes, stops, strict=True))


@rule(aten.unbind.int)
def _unbind(low: "Lowering", a: Array, axis: int = 0) -> tuple[Array, ...]:
    return tuple(_select(low, a, axis, i) for i in range(a.shape[axis]))


@rule(aten.as_strided.default)
def _as_strided(
    low: "Lowering", a: Array, shape: list[int], strides: list[int], offset: int = 0
) -> Array:
    whole = reshaped(low, a, (a.size,))

    def load(index: tuple[Index, ...]) -> Expr:
        number: Index = offset or 0
        for i, stride in zip(index, strides, strict=True):
            number = i * stride + number
        return whole.load((number,))

    return Array(tuple(shape), load, None, a.cost, a.varies, a.boolean)


@rule(aten.diagonal.default, view=True)
def _diagonal(low: "Lowering", a: Array, offset: int = 0, i: int = 0, j: int = 1) -> Array:
    i, j = i % len(a.shape), j % len(a.shape)
    start = (max(-offset, 0), max(offset, 0))
    length = max(min(a.shape[i] - start[0], a.shape[j] - start[1]), 0)
    shape = (*(n for k, n in enumerate(a.shape) if k not in (i, j)), length)

    def load(index: tuple[Index, ...]) -> Expr:
        rest = iter(index[:-1])
        places = {i: index[-1] + start[0], j: index[-1] + start[1]}
        return a.load(tuple(places[k] if k in places else next(rest) for k in range(len(a.shape))))

    return Array(shape, load, None, a.cost, a.varies, a.boolean)


@rule(aten.repeat.default)
def _repeat(low: "Lowering", a: Array, times: list[int]) -> Array:
    missing = len(times) - len(a.shape)
    whole = reshaped(low, a, (*(1,) * missing, *a.shape))
    shape = [part for n, length in zip(times, whole.shape, strict=True) for part in (n, length)]
    ones = tuple(part for length in whole.shape for part in (1, length))
    spread = broadcast(reshaped(low, whole, ones), shape)
    lengths = tuple(n * length for n, length in zip(times, whole.shape, strict=True))
    return reshaped(low, spread, lengths)
