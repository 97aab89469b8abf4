"""Elements picked out, or written, by tensors of integers."""

from typing import TYPE_CHECKING, Any

import numpy as np

from ebm_samplers.fused.graph import Array, ravel
from ebm_samplers.fused.rules.elementwise import broadcast
from ebm_samplers.fused.rules.registry import rule
from ebm_samplers.fused.rules.views import reshaped
from ebm_samplers.fused.trace import Ref, aten

if TYPE_CHECKING:
    from ebm_samplers.fused.lowering import Lowering


def _table(
    low: "Lowering", a: Array, shape: tuple[int, ...], sources: np.ndarray[Any, Any]
) -> Array:
    """Elements of ``a`` (flat numbers ``sources``) in a new array; by copies, since the order is
    arbitrary.
    """
    flat = reshaped(low, a, (a.size,))
    numbers = sources.reshape(-1).tolist()
    if low.out.straight:
        return Array(
            shape,
            lambda index: flat.load((numbers[ravel(index, shape)],)),
            None,
            a.cost,
            a.varies,
            a.boolean,
        )
    if len(numbers) > 256:
        raise NotImplementedError("indexing with more than 256 indices")
    base = low.out.allocate(len(numbers))
    for place, number in enumerate(numbers):
        low.out.assign(
            base + place, Array((), lambda index, number=number: flat.load((number,)), None, 1)
        )
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


@rule(aten.gather.default)
def _gather(low: "Lowering", a: Array, axis: int, index: Ref, **_: Any) -> Array:
    where = low.constant(index)
    full = np.arange(a.size).reshape(a.shape)[
        tuple(
            slice(n) if k != axis % a_ndim else slice(None)
            for k, (n, a_ndim) in enumerate((n, len(a.shape)) for n in where.shape)
        )
    ]
    numbers = np.take_along_axis(full, where, axis)
    return _table(low, a, numbers.shape, numbers)


@rule(aten.index_put.default, aten._unsafe_index_put.default)
def _index_put(
    low: "Lowering", a: Array, indices: list[Ref | None], source: Array, accumulate: bool = False
) -> Array:
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
