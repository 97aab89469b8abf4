"""Derivatives of energies by parameters: what kernels give for them, and how it is put together.

A weight meets each state in a product, so that a state's ∂E/∂W is a product, too: of the cotangent
of the layer's output and the layer's input. A kernel gives both for all states; their sum over
states, weighted by the slopes of whatever the energies go into, is one product of matrices, which
is torch's. Where a weight is met several times, also by derivatives of the network, the factors
stand side by side, as if there were more states: of two layers with cotangents a, b and inputs x, y

    Σ slope · (a xᵀ + b yᵀ) = [slope·a | slope·b] [x | y]ᵀ.

Derivatives that are no such product (by biases) are given element by element.

Values of a trace that a kernel gives are its *exports*. Their elements become *rows* of one array
``(row, state)``, ordered so that ``[a | b]`` and ``[x | y]`` can be read without a copy: `read`
finds the parts of all derivatives in a trace, and says where each export's elements go.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ebm_samplers.fused.algebra import SAME_ORDER, TURNS
from ebm_samplers.fused.matrices import rows_by_rows
from ebm_samplers.fused.trace import Call, CannotFuse, Ref, Trace, aten

MOST_ROWS = 1024
"""Elements up to which a derivative that is no product is given for each state."""

VIEWS = SAME_ORDER | TURNS | {aten.sum.dim_IntList}
"""Operations that only arrange elements anew if there are as many afterwards."""


RESHAPES = {aten.view.default, aten._unsafe_view.default, aten.reshape.default}


@dataclass(frozen=True)
class Copy:
    """Where an export goes: its element (i, j) to row ``first + i · steps[0] + j · steps[1]``.

    Attributes:
        export: Which, by its number.
        first: The row of its first element.
        counts: Its elements as a matrix ``(n, m)``, in C order; a vector has m = 1.
        steps: Rows from an element to the next of its column, and of its row.
    """

    export: int
    first: int
    counts: tuple[int, int]
    steps: tuple[int, int] = (1, 1)

    @property
    def rows(self) -> slice:
        """The rows of a vector."""
        return slice(self.first, self.first + self.counts[0] * self.steps[0], self.steps[0])


@dataclass(frozen=True)
class Product:
    """A derivative ``(p, q)`` of a state that is ``(p, m) @ (m, q)``, m terms for each element.

    Attributes:
        left: First row of ``(p, m)``.
        right: First row of the other factor, transposed, ``(q, m)``.
        p, q, m: The sizes; m is the number of products that were put side by side, if these are
            products of two vectors.
    """

    left: int
    right: int
    p: int
    q: int
    m: int

    def total(self, exported: Tensor, slopes: Tensor) -> Tensor:
        """The sum over states ``n``, weighted by slopes ``(n,)``; ``(p, q)``.

        Args:
            exported: All rows, ``(row, n)``.
            slopes: The weights.
        """
        left = exported[self.left : self.left + self.p * self.m].view(self.p, self.m, -1) * slopes
        right = exported[self.right : self.right + self.q * self.m]
        return rows_by_rows(left.view(self.p, -1), right.reshape(self.q, -1))


@dataclass(frozen=True)
class Sensitivity:
    """∂E/∂θ of one parameter: the sum of all its parts.

    Attributes:
        shape: That of the parameter.
        products: Parts that are products.
        rows: Parts given element by element, by their rows.
        constant: The part that is the same for all states; None for nothing.
    """

    shape: torch.Size
    products: tuple[Product, ...] = ()
    rows: tuple[slice, ...] = ()
    constant: Tensor | None = None

    def total(self, exported: Tensor, slopes: Tensor) -> Tensor | None:
        """Σ slope · ∂E/∂θ over states, of the shape of the parameter; None where there is none.

        Args:
            exported: All rows, ``(row, n)``.
            slopes: ``(n,)``.
        """
        parts = [product.total(exported, slopes).reshape(-1) for product in self.products]
        parts += [exported[rows] @ slopes for rows in self.rows]
        if self.constant is not None:
            parts.append(self.constant.reshape(-1) * slopes.sum())
        if not parts:
            return None
        total = parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)
        return total.view(self.shape)


def read(trace: Trace, parameters: Sequence[Tensor]) -> tuple[list[Sensitivity], list[Copy]]:
    """What the derivatives of a trace are made of; the parts become exports of the trace.

    Scalars that it exports already, the energies among them, have the first rows, one each.

    Returns:
        The derivatives, and where all exports go.

    Raises:
        CannotFuse: If one of them would take too many numbers for each state.
    """
    copies = [Copy(number, number, (1, 1)) for number in range(len(trace.exports))]
    try:
        found = [
            Sensitivity(parameter.shape) if slope is None else _Reading(trace, copies).of(slope)
            for parameter, slope in zip(parameters, trace.slopes, strict=True)
        ]
    except CannotFuse:
        raise
    except Exception as error:  # of a form that nobody foresaw
        raise CannotFuse(
            f"a parameter's derivative cannot be read ({type(error).__name__}: {error})"
        ) from error
    return found, copies


def n_rows(copies: Sequence[Copy]) -> int:
    """How many rows all exports take."""
    return sum(copy.counts[0] * copy.counts[1] for copy in copies)


@dataclass(frozen=True)
class _Factors:
    """A part ``(p, q)``: the product ``(p, k) @ (k, q)``, or, turned, of ``(q, k) @ (k, p)``."""

    left: Ref
    right: Ref
    p: int
    k: int
    q: int
    turned: bool


class _Reading:
    """The parts of one derivative."""

    def __init__(self, trace: Trace, copies: list[Copy]) -> None:
        self.trace, self.values, self.copies = trace, trace.values, copies
        self.found: list[_Factors] = []
        self.constant: Tensor | None = None

    def of(self, slope: Ref) -> Sensitivity:
        """The parts of a value."""
        example = self.values[slope.index].example
        if self._add(slope, ()):
            shapes = dict.fromkeys((part.p, part.q) for part in self.found)
            products = tuple(self._product(*shape) for shape in shapes)
            return Sensitivity(example.shape, products, constant=self.constant)
        if example.numel() > MOST_ROWS:
            raise CannotFuse(
                f"a parameter's derivative has {example.numel():,} numbers for each state, and "
                f"beyond {MOST_ROWS:,} it has to be a product of matrices"
            )
        return Sensitivity(example.shape, rows=(self._rows(slope, example.numel()),))

    def _add(self, ref: Ref, views: tuple[Call, ...]) -> bool:
        """Add a value, seen through views; False if it is no sum of products and constants."""
        value = self.values[ref.index]
        call = value.call
        if value.fixed:
            constant = _viewed(value.example.detach().clone(), views)
            self.constant = constant if self.constant is None else self.constant + constant
            return True
        if call is None:
            return False
        if self._is_view(ref):
            return self._add(call.args[0], (call, *views))
        if call.function is aten.add.Tensor and self._is_plain_sum(call, ref):
            return all(self._add(part, views) for part in call.args)
        if call.function not in (aten.mm.default, aten.bmm.default):
            return False
        left, right = call.args
        *batch, p, k = self.values[left.index].example.shape
        q = self.values[right.index].example.shape[-1]
        turned = _turned(p, q, views, value.example.shape)
        if batch not in ([], [1]) or turned is None or p * k + k * q > p * q:
            return False
        self.found.append(_Factors(left, right, q if turned else p, k, p if turned else q, turned))
        return True

    def _product(self, p: int, q: int) -> Product:
        """All parts of this shape, side by side."""
        parts = [part for part in self.found if (part.p, part.q) == (p, q)]
        m, left = sum(part.k for part in parts), n_rows(self.copies)
        right, at = left + p * m, 0
        for part in parts:
            # a factor lies row by row: (p, k) and (k, q), or (q, k) and (k, p) if turned
            tall, wide = (right, left) if part.turned else (left, right)
            tall_rows, wide_rows = (q, p) if part.turned else (p, q)
            self._copy(part.left, tall + at, (tall_rows, part.k), (m, 1))
            self._copy(part.right, wide + at, (part.k, wide_rows), (1, m))
            at += part.k
        return Product(left, right, p, q, m)

    def _copy(self, ref: Ref, first: int, counts: tuple[int, int], steps: tuple[int, int]) -> None:
        if counts[0] == 1:  # a vector either way, which `_rows` can then find
            counts, steps = counts[::-1], steps[::-1]
        self.copies.append(Copy(self._export(ref), first, counts, steps))

    def _rows(self, ref: Ref, n: int) -> slice:
        """Where the elements of a value are, one row each."""
        export = self._export(ref)
        for copy in self.copies:
            if copy.export == export and copy.counts == (n, 1):
                return copy.rows
        self.copies.append(Copy(export, n_rows(self.copies), (n, 1)))
        return self.copies[-1].rows

    def _is_view(self, ref: Ref) -> bool:
        value = self.values[ref.index]
        if value.call is None or value.call.function not in VIEWS:
            return False
        before: int = self.values[value.call.args[0].index].example.numel()
        return before == value.example.numel()

    def _is_plain_sum(self, call: Call, ref: Ref) -> bool:
        shape = self.values[ref.index].example.shape
        return not call.kwargs and all(
            isinstance(part, Ref) and self.values[part.index].example.shape == shape
            for part in call.args
        )

    def _export(self, ref: Ref) -> int:
        while self._is_view(ref) and sum(n > 1 for n in self.values[ref.index].example.shape) <= 1:
            call = self.values[ref.index].call
            assert call is not None
            ref = call.args[0]  # the same elements in the same order
        exports = self.trace.exports
        if ref not in exports:
            exports.append(ref)
        return exports.index(ref)


def _viewed(tensor: Tensor, views: tuple[Call, ...]) -> Tensor:
    for view in views:
        if view.function in RESHAPES:  # of a tensor whose strides were others
            tensor = tensor.reshape(view.args[1])
        else:
            tensor = view.function(tensor, *view.args[1:], **view.kwargs)
    return tensor


def _turned(p: int, q: int, views: tuple[Call, ...], shape: torch.Size) -> bool | None:
    """Whether views transpose a matrix ``(p, q)``; None if they do something else to it."""
    if shape.numel() != p * q:
        return None
    numbers = torch.arange(p * q)
    seen = _viewed(numbers.view(shape), views).reshape(-1)
    if seen.equal(numbers):
        return False
    return True if seen.equal(numbers.view(p, q).t().reshape(-1)) else None
