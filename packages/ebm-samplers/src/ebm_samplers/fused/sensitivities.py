"""Derivatives of energies by parameters: what kernels give for them, and how it is put together.

A weight meets each state in a product, so that a state's ∂E/∂W is a product, too: of the cotangent
of the layer's output and the layer's input. A kernel gives both for all states; their sum over
states, weighted by the slopes of whatever the energies go into, is one product of matrices, which
is torch's. Derivatives that are no such product (by biases) are given element by element.

`read` finds these parts in a trace.
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
class Product:
    """A derivative ``(p, q)`` of a state that is ``(p, k) @ (k, q)``, by numbers of exports.

    Attributes:
        left, right: The factors.
        p, k, q: Their sizes.
        turned: Whether the derivative is the transposed product.
    """

    left: int
    right: int
    p: int
    k: int
    q: int
    turned: bool

    def total(self, exports: Sequence[Tensor], slopes: Tensor) -> Tensor:
        """The sum over states ``n``, weighted by slopes ``(n,)``; elements in C order."""
        left, right = exports[self.left] * slopes, exports[self.right]
        if self.k > 1:  # more terms, as if there were more states
            left = left.view(self.p, -1)
            right = right.reshape(self.k, self.q, -1).transpose(0, 1).reshape(self.q, -1)
        product = rows_by_rows(left, right)
        return (product.t() if self.turned else product).reshape(-1)


@dataclass(frozen=True)
class Sensitivity:
    """∂E/∂θ of one parameter: the sum of all its parts.

    Attributes:
        shape: That of the parameter.
        products: Parts that are products.
        rows: Parts given element by element, by numbers of exports.
        constant: The part that is the same for all states; None for nothing.
    """

    shape: torch.Size
    products: tuple[Product, ...] = ()
    rows: tuple[int, ...] = ()
    constant: Tensor | None = None

    def total(self, exports: Sequence[Tensor], slopes: Tensor) -> Tensor | None:
        """Σ slope · ∂E/∂θ over states, of the shape of the parameter; None where there is none."""
        parts = [product.total(exports, slopes) for product in self.products]
        parts += [exports[row] @ slopes for row in self.rows]
        if self.constant is not None:
            parts.append(self.constant.reshape(-1) * slopes.sum())
        if not parts:
            return None
        total = parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)
        return total.view(self.shape)


def read(trace: Trace, parameters: Sequence[Tensor]) -> list[Sensitivity]:
    """What the derivatives of a trace are made of; the parts become exports of the trace.

    Raises:
        CannotFuse: If one of them would take too many numbers for each state.
    """
    try:
        return [
            Sensitivity(parameter.shape) if slope is None else _Reading(trace).of(slope)
            for parameter, slope in zip(parameters, trace.slopes, strict=True)
        ]
    except CannotFuse:
        raise
    except Exception as error:  # of a form that nobody foresaw
        raise CannotFuse(
            f"a parameter's derivative cannot be read ({type(error).__name__}: {error})"
        ) from error


class _Reading:
    """The parts of one derivative."""

    def __init__(self, trace: Trace) -> None:
        self.trace, self.values = trace, trace.values
        self.found: list[tuple[Ref, Ref, bool]] = []
        self.constant: Tensor | None = None

    def of(self, slope: Ref) -> Sensitivity:
        """The parts of a value."""
        example = self.values[slope.index].example
        if self._add(slope, ()):
            products = tuple(self._product(*factors) for factors in self.found)
            return Sensitivity(example.shape, products, constant=self.constant)
        if example.numel() > MOST_ROWS:
            raise CannotFuse(
                f"a parameter's derivative has {example.numel():,} numbers for each state, and "
                f"beyond {MOST_ROWS:,} it has to be a product of matrices"
            )
        return Sensitivity(example.shape, rows=(self._export(slope),))

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
        self.found.append((left, right, turned))
        return True

    def _product(self, left: Ref, right: Ref, turned: bool) -> Product:
        p, k = self.values[left.index].example.shape[-2:]
        q = self.values[right.index].example.shape[-1]
        return Product(self._export(left), self._export(right), p, k, q, turned)

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
