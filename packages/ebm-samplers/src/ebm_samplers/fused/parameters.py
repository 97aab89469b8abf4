"""The numbers of an energy that no state changes, packed for its kernel at each call.

A training step asks for them again and again, so that all that can be is decided once. Tensors are
changed in place without notice (``tensor.data.add_`` does not even touch the version counter), so
that leaves are compared bit by bit with the last copy at each call. Blocks that only arrange a
leaf's elements anew are copied; what torch computes from leaves (a Cholesky factor, a product of
matrices) is computed again only where a leaf that it needs differs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ebm_samplers.fused.algebra import VIEWS, check_symmetric, refs
from ebm_samplers.fused.trace import CannotFuse, Leaf, Ref, Trace, Value, aten

Array = NDArray[Any]

ARRANGED = VIEWS | {aten.select.int, aten.slice.Tensor, aten.flip.default}
SHARING = {
    aten.t.default, aten.transpose.int, aten.permute.default, aten.unsqueeze.default,
    aten.squeeze.dim, aten.squeeze.dims, aten.squeeze.default, aten.detach.default,
    aten.alias.default, aten.view.default, aten.expand.default, aten.select.int, aten.slice.Tensor,
}  # fmt: skip


CHANGED = "a number that forward reads out of a tensor, or an index, has changed"


@dataclass(frozen=True)
class _Block:
    """Where a value stands, and how it gets there.

    Attributes: start, stop: Its place. number: The value. turned: Whether its last two axes are
        swapped. needs: Positions of the leaves that it is computed from. copy: Writes it from the
        bits of its one leaf, if it only arranges them anew.
    """

    start: int
    stop: int
    number: int
    turned: bool
    needs: tuple[int, ...]
    copy: Callable[[Array, Array], None] | None


def arrangement(trace: Trace, number: int, turned: bool) -> tuple[int, Array] | None:
    """A leaf, and which of its elements make a value; None if it is more than arranged anew.

    Args:
        trace: Where they are.
        number: Of the value.
        turned: Whether its last two axes are to be swapped.
    """
    values, chain = trace.values, []
    root = number
    while (call := values[root].call) is not None and call.function in ARRANGED:
        chain.append(call)
        root = call.args[0].index
    leaf = values[root]
    if leaf.leaf is None:
        return None
    numbers = torch.arange(leaf.example.numel(), device="cpu").view(leaf.example.shape)
    for call in reversed(chain):
        numbers = call.function(numbers, *call.args[1:], **call.kwargs)
    order: Array = (numbers.mT if turned else numbers).reshape(-1).numpy()
    return root, order


class Parameters:
    """The flat parameter array of a kernel.

    Args:
        trace: Where the numbers come from.
        blocks: First element of each block, by the number of its value and whether its last two
            axes are swapped.
        size: Elements in all.
    """

    def __init__(self, trace: Trace, blocks: Mapping[tuple[int, bool], int], size: int) -> None:
        self.trace, self.size = trace, size
        self.real = np.float64 if trace.values[0].example.dtype == torch.float64 else np.float32
        self.needs: dict[int, tuple[int, ...]] = {}
        rests_on = trace.symmetric + [ref for ref, _ in trace.constants]
        wanted = [number for number, _ in blocks] + [ref.index for ref in rests_on]
        leaves = sorted({leaf for number in wanted for leaf in self._find_needs(number)})
        self.views: dict[int, Tensor] = {}  # of leaves, whose memory they share
        self.leaves = [_Bits(trace.values[number], self.views) for number in leaves]
        self.place = {number: i for i, number in enumerate(leaves)}
        self.blocks = [self._block(*key, first) for key, first in blocks.items()]
        self.has_constants = not all(block.needs for block in self.blocks)  # that no leaf changes
        self.checks = [(ref.index, self._places(ref.index)) for ref in trace.symmetric]
        self.constants = {
            ref.index: (_as_array(was).tobytes(), self._places(ref.index))
            for ref, was in trace.constants
        }
        self.last: tuple[list[bytes], Array] | None = None

    def now(self) -> Array:
        """The parameters as they are now: the array of the last call if nothing has changed.

        Raises:
            CannotFuse: If a leaf is gone, or has another shape or dtype than when it was traced; or
                if the kernel rests on properties that the numbers no longer have.
        """
        arrays = [leaf.now() for leaf in self.leaves]
        bits = [array.tobytes() for array in arrays]
        last = self.last
        if last is None:
            changed = set(range(len(bits)))
            packed = self._empty()
        else:
            changed = {i for i, new in enumerate(bits) if new != last[0][i]}
            if not changed:
                return last[1]
            packed = (
                last[1].copy() if self.has_constants or len(changed) < len(bits) else self._empty()
            )
        known: dict[int, Tensor] = {}
        for number, needs in self.checks:
            if last is not None and not changed.isdisjoint(needs):
                check_symmetric(self._tensor(number, known))
        for number, (was, needs) in self.constants.items():
            if (
                not changed.isdisjoint(needs)
                and was != _as_array(self._tensor(number, known)).tobytes()
            ):
                raise CannotFuse(CHANGED)
        for block in self.blocks:
            if last is not None and changed.isdisjoint(block.needs):
                continue
            if block.copy is not None:
                block.copy(arrays[block.needs[0]], packed[block.start : block.stop])
                continue
            tensor = self._tensor(block.number, known)
            array = _as_array(tensor.mT if block.turned else tensor)
            packed[block.start : block.stop].reshape(array.shape)[...] = array
        self.last = bits, packed  # at once, so that threads never see half of it
        return packed

    def _empty(self) -> Array:
        return np.empty(max(self.size, 1), self.real)

    def _find_needs(self, number: int) -> tuple[int, ...]:
        """The leaves that a value is computed from."""
        if number not in self.needs:
            value = self.trace.values[number]
            found: set[int] = set()
            if value.leaf is not None:
                found = {number}
            elif value.call is not None and not value.fixed:
                found = {leaf for r in refs(value.call) for leaf in self._find_needs(r.index)}
            self.needs[number] = tuple(sorted(found))
        return self.needs[number]

    def _places(self, number: int) -> tuple[int, ...]:
        return tuple(self.place[leaf] for leaf in self._find_needs(number))

    def _block(self, number: int, turned: bool, first: int) -> _Block:
        size = self.trace.values[number].example.numel()
        copy = self._copy(number, turned)
        return _Block(first, first + size, number, turned, self._places(number), copy)

    def _copy(self, number: int, turned: bool) -> Callable[[Array, Array], None] | None:
        """How to copy a value from its one leaf, if it only arranges elements anew."""
        found = arrangement(self.trace, number, turned)
        if found is None:
            return None
        root, order = found
        n = len(order)
        if n == self.trace.values[root].example.numel():
            if (order == np.arange(n)).all():
                return _plainly
            columns = int(order[1])
            if (
                columns
                and n % columns == 0
                and (order.reshape(columns, -1) == _turned(n, columns)).all()
            ):
                return _Turned(columns)
        return _Picked(order)

    def _tensor(self, number: int, known: dict[int, Tensor]) -> Tensor:
        """A value as it is now, without autograd history: leaves are detached."""
        tensor = known.get(number)
        if tensor is None:
            tensor = self.views.get(number)
        if tensor is not None:
            return tensor
        value = self.trace.values[number]
        call = value.call
        if value.fixed:
            tensor = value.example.detach()
        elif call is None:
            assert value.leaf is not None
            leaf = value.leaf.now()
            assert leaf is not None
            tensor = leaf.detach()
        else:
            args = self._replaced(call.args, known)
            kwargs = self._replaced(call.kwargs, known) if call.kwargs else {}
            result = call.function(*args, **kwargs)
            tensor = result[value.part] if isinstance(result, tuple | list) else result
        shares = call is None or (call.function in SHARING and call.args[0].index in self.views)
        (self.views if value.fixed or shares else known)[number] = tensor
        return tensor

    def _replaced(self, tree: Any, known: dict[int, Tensor]) -> Any:
        if isinstance(tree, Ref):
            return self._tensor(tree.index, known)
        if isinstance(tree, tuple | list):
            return [self._replaced(part, known) for part in tree]
        if isinstance(tree, dict):
            return {key: self._replaced(part, known) for key, part in tree.items()}
        return tree


def _plainly(source: Array, target: Array) -> None:
    target[...] = source


def _turned(n: int, columns: int) -> Array:
    return np.arange(n).reshape(-1, columns).T


class _Turned:
    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __call__(self, source: Array, target: Array) -> None:
        target.reshape(self.rows, -1)[...] = source.reshape(-1, self.rows).T


class _Picked:
    def __init__(self, order: Array) -> None:
        self.order = order.copy()

    def __call__(self, source: Array, target: Array) -> None:
        target[...] = source[self.order]


class _Bits:
    """A leaf as a flat array, looked up with little work at each call."""

    def __init__(self, value: Value, views: dict[int, Tensor]) -> None:
        assert value.leaf is not None
        self.views = views
        self.leaf: Leaf = value.leaf
        example = value.example
        _as_array(example.detach())  # raises where NumPy knows no such numbers
        self.kind = (example.shape, example.dtype, "cpu")
        self.seen: tuple[Tensor, int, tuple[int, ...], Array] | None = None

    def now(self) -> Array:
        """Its elements as they are now, in memory that the leaf shares where that can be."""
        tensor = self.leaf.now()
        if self.seen is not None:
            known, address, strides, array = self.seen
            if tensor is known and known.data_ptr() == address and known.stride() == strides:
                return array
        if tensor is None or (tensor.shape, tensor.dtype, tensor.device.type) != self.kind:
            raise CannotFuse(f"the tensor {self.leaf.key!r} was replaced by one of another kind")
        self.views.clear()
        whole = _as_array(tensor.detach())
        array = whole.reshape(-1)
        copied = tensor.dtype == torch.bfloat16 or tensor.is_neg() or tensor.is_conj()
        if np.shares_memory(array, whole) and not copied:
            self.seen = (tensor, tensor.data_ptr(), tensor.stride(), array)
        return array


def _as_array(tensor: Tensor) -> Array:
    if tensor.dtype == torch.bfloat16:  # unknown to NumPy
        tensor = tensor.float()
    array: Array = tensor.resolve_conj().resolve_neg().numpy()
    return array
