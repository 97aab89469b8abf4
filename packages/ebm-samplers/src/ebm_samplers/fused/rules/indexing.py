"""Elements picked out, or written, by tensors of integers."""

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ebm_samplers.fused.graph import Expr, Index
from ebm_samplers.fused.program import Array, listed
from ebm_samplers.fused.rules.assembly import assembled
from ebm_samplers.fused.rules.elementwise import broadcast
from ebm_samplers.fused.rules.registry import RULES, Rule, rule
from ebm_samplers.fused.rules.views import reshaped
from ebm_samplers.fused.trace import Ref, aten

if TYPE_CHECKING:
    from ebm_samplers.fused.lowering import Lowering


RUNS = 64
"""Up to so many runs of indices a large energy is compiled: each is a loop of its own."""


def _runs(numbers: Sequence[int]) -> list[tuple[int, int, int, int]]:
    """A list of integers as arithmetic progressions: (position, first number, step, length)."""
    runs: list[tuple[int, int, int, int]] = []
    for position, number in enumerate(numbers):
        if runs:
            at, first, step, length = runs[-1]
            if length == 1 or number == first + step * length:
                runs[-1] = (at, first, number - first if length == 1 else step, length + 1)
                continue
        runs.append((position, number, 0, 1))
    if len(runs) > RUNS:
        raise NotImplementedError("indices without a pattern, in an energy of this size")
    return runs


def _along_axis(array: Array, axis: int, first: int, step: int, length: int) -> Array:
    """Elements ``first + step * i`` of an axis."""
    shape = (*array.shape[:axis], length, *array.shape[axis + 1 :])

    def load(index: tuple[Index, ...]) -> Expr:
        return array.load((*index[:axis], index[axis] * step + first, *index[axis + 1 :]))

    return Array(shape, load, None, array.cost, array.varies, array.boolean)


def _shifted(axis: int, first: int, step: int = 1) -> Callable[..., tuple[Index, ...]]:
    return lambda index: (*index[:axis], index[axis] * step + first, *index[axis + 1 :])


def _taken(low: "Lowering", a: Array, axis: int, numbers: np.ndarray[Any, Any]) -> Array:
    """Elements of an axis, copied in any order."""
    axis %= len(a.shape)
    shape = (*a.shape[:axis], len(numbers), *a.shape[axis + 1 :])
    numbers = np.arange(a.shape[axis])[numbers]
    if low.out.straight:
        places = itertools.product(*map(range, shape))
        cells = [a.load((*i[:axis], int(numbers[i[axis]]), *i[axis + 1 :])) for i in places]
        return listed(cells, shape, a.boolean)
    if a.boolean:
        raise NotImplementedError("indexing truth values in an energy of this size")
    pieces = [
        (_along_axis(a, axis, first, step, length), _shifted(axis, at))
        for at, first, step, length in _runs(numbers.tolist())
    ]
    return assembled(low, shape, pieces)


def _picked(low: "Lowering", a: Array, numbers: np.ndarray[Any, Any]) -> Array:
    """Elements of ``a`` (flat numbers) in a new array."""
    flat = _taken(low, reshaped(low, a, (a.size,)), 0, numbers.reshape(-1))
    return reshaped(low, flat, numbers.shape)


@rule(aten.index_select.default)
def _index_select(low: "Lowering", a: Array, axis: int, index: Ref) -> Array:
    return _taken(low, a, axis, low.constant(index).reshape(-1))


@rule(aten.index.Tensor)
def _index(low: "Lowering", a: Array, indices: list[Ref | None]) -> Array:
    given = [(axis, index) for axis, index in enumerate(indices) if index is not None]
    axis, index = given[0]
    if len(given) == 1 and (where := low.constant(index)).dtype != np.bool_:
        taken = _taken(low, a, axis, where.reshape(-1))
        return reshaped(low, taken, (*a.shape[:axis], *where.shape, *a.shape[axis + 1 :]))
    key = tuple(slice(None) if i is None else low.constant(i) for i in indices)
    return _picked(low, a, np.arange(a.size).reshape(a.shape)[key])


def _along(low: "Lowering", a: Array, axis: int, index: Ref) -> np.ndarray[Any, Any]:
    """The flat numbers of the elements that ``gather`` takes and ``scatter_add`` adds to."""
    where = low.constant(index)
    axis %= len(a.shape)
    corner = tuple(slice(None if k == axis else n) for k, n in enumerate(where.shape))
    return np.take_along_axis(np.arange(a.size).reshape(a.shape)[corner], where, axis)


@rule(aten.gather.default)
def _gather(low: "Lowering", a: Array, axis: int, index: Ref, **_: Any) -> Array:
    return _picked(low, a, _along(low, a, axis, index))


@rule(aten.scatter_add.default)
def _scatter_add(low: "Lowering", a: Array, axis: int, index: Ref, source: Array) -> Array:
    numbers = _along(low, a, axis, index)
    if source.shape != numbers.shape:
        raise NotImplementedError("scattering a part of a tensor")
    return _scattered(low, a, numbers, source, accumulate=True)


def _largest(op: str) -> Rule:
    """Extrema along an axis, and where they are: the first, or the first NaN."""

    def lowered(low: "Lowering", a: Array, axis: int, keepdim: bool = False) -> tuple[Array, ...]:
        if not low.out.straight:
            raise NotImplementedError("positions of extrema in an energy of this size")
        p, axis = low.pool, axis % len(a.shape)
        shape = tuple(1 if k == axis else n for k, n in enumerate(a.shape))
        best, place = [], []
        for index in itertools.product(*map(range, shape)):
            value, position = a.load(index), p.const(0.0)
            for k in range(1, a.shape[axis]):
                new = a.load((*index[:axis], k, *index[axis + 1 :]))
                ahead = p("lt", value, new) if op == "max" else p("lt", new, value)
                ahead = p("or", ahead, p("isnan", new))
                taken = p("where", p("isnan", value), p.const(False), ahead)
                value = p("where", taken, new, value)
                position = p("where", taken, p.const(float(k)), position)
            best.append(value)
            place.append(position)
        out = (n for k, n in enumerate(shape) if keepdim or k != axis)
        shape = tuple(out)
        return listed(best, shape), listed(place, shape)

    return lowered


RULES[aten.max.dim], RULES[aten.min.dim] = _largest("max"), _largest("min")


@rule(aten.scatter.src, aten.scatter.value)
def _scatter(low: "Lowering", a: Array, axis: int, index: Array | Ref, source: Any) -> Array:
    if isinstance(index, Ref):
        numbers = _along(low, a, axis, index)
        return _scattered(low, a, numbers, broadcast(low.array(source), numbers.shape), False)
    axis %= len(a.shape)
    if not low.out.straight or index.shape[axis] != 1:
        raise NotImplementedError("scattering to places that depend on the state")
    p, source = low.pool, broadcast(low.array(source), index.shape)
    cells = []
    for place in itertools.product(*map(range, a.shape)):
        first = (*place[:axis], 0, *place[axis + 1 :])
        here = p("eq", index.load(first), p.const(float(place[axis])))
        cells.append(p("where", here, source.load(first), a.load(place)))
    return listed(cells, a.shape)


@rule(aten.index_put.default, aten._unsafe_index_put.default)
def _index_put(
    low: "Lowering", a: Array, indices: list[Ref | None], source: Array, accumulate: bool = False
) -> Array:
    key = tuple(slice(None) if i is None else low.constant(i) for i in indices)
    numbers = np.arange(a.size).reshape(a.shape)[key]
    return _scattered(low, a, numbers, broadcast(source, numbers.shape), accumulate)


def _scattered(
    low: "Lowering", a: Array, numbers: np.ndarray[Any, Any], source: Array, accumulate: bool
) -> Array:
    """``a`` with elements (flat numbers) replaced by, or increased by, those of ``source``."""
    target, values = reshaped(low, a, (a.size,)), reshaped(low, source, (numbers.size,))
    if low.out.straight:
        cells = [target.load((i,)) for i in range(a.size)]
        for place, number in enumerate(numbers.reshape(-1).tolist()):
            value = values.load((place,))
            cells[number] = low.pool("add", cells[number], value) if accumulate else value
        return listed(cells, a.shape)
    runs = _runs(numbers.reshape(-1).tolist())
    written = [
        (_along_axis(values, 0, at, 1, length), _shifted(0, first, step))
        for at, first, step, length in runs
    ]
    if accumulate:
        return reshaped(low, low.out.accumulated(target, written), a.shape)
    whole = assembled(low, (a.size,), [(target, _shifted(0, 0)), *written])
    return reshaped(low, whole, a.shape)
