"""Elements picked out, or written, by tensors of integers."""

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from ebm_samplers.fused.program import Array, Nest, Store, listed
from ebm_samplers.fused.rules.elementwise import broadcast
from ebm_samplers.fused.rules.registry import RULES, Rule, rule
from ebm_samplers.fused.rules.views import reshaped
from ebm_samplers.fused.trace import Ref, aten

if TYPE_CHECKING:
    from ebm_samplers.fused.lowering import Lowering


def _table(
    low: "Lowering", a: Array, shape: tuple[int, ...], sources: np.ndarray[Any, Any]
) -> Array:
    """Elements of ``a`` (flat numbers ``sources``) in a new array: copies, in any order."""
    flat = reshaped(low, a, (a.size,))
    cells = [flat.load((number,)) for number in sources.reshape(-1).tolist()]
    if low.out.straight:
        return listed(cells, shape, a.boolean)
    if len(cells) > 256:
        raise NotImplementedError("indexing with more than 256 indices")
    base = low.out.allocate(len(cells))
    low.out.nests.append(Nest((), tuple(Store(base + i, cell) for i, cell in enumerate(cells))))
    return low.out.rows(base, shape)


@rule(aten.index_select.default)
def _index_select(low: "Lowering", a: Array, axis: int, index: Ref) -> Array:
    numbers = np.take(np.arange(a.size).reshape(a.shape), low.constant(index), axis)
    return _table(low, a, numbers.shape, numbers)


@rule(aten.index.Tensor)
def _index(low: "Lowering", a: Array, indices: list[Ref | None]) -> Array:
    key = tuple(slice(None) if i is None else low.constant(i) for i in indices)
    numbers = np.arange(a.size).reshape(a.shape)[key]
    return _table(low, a, numbers.shape, numbers)


def _along(low: "Lowering", a: Array, axis: int, index: Ref) -> np.ndarray[Any, Any]:
    """The flat numbers of the elements that ``gather`` takes and ``scatter_add`` adds to."""
    where = low.constant(index)
    axis %= len(a.shape)
    corner = tuple(slice(None if k == axis else n) for k, n in enumerate(where.shape))
    return np.take_along_axis(np.arange(a.size).reshape(a.shape)[corner], where, axis)


@rule(aten.gather.default)
def _gather(low: "Lowering", a: Array, axis: int, index: Ref, **_: Any) -> Array:
    numbers = _along(low, a, axis, index)
    return _table(low, a, numbers.shape, numbers)


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
    if not low.out.straight:
        raise NotImplementedError("scattering in an energy of this size")
    target, values = reshaped(low, a, (a.size,)), reshaped(low, source, (numbers.size,))
    cells = [target.load((i,)) for i in range(a.size)]
    for place, number in enumerate(numbers.reshape(-1).tolist()):
        value = values.load((place,))
        cells[number] = low.pool("add", cells[number], value) if accumulate else value
    return listed(cells, a.shape)
