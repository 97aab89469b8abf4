"""Matrix products that need not be made: linear maps of one vector, composed and added beforehand.

Energies are written for clarity: ½|W(x - μ)|² costs one product forward and one backward, and so
does ½ xᵀPx. A kernel needs one in both cases, since with matrices that torch combines at each call

- maps of one vector compose, (v A) B = v (A B), and add, v A + v B = v (A + B);
- Σ (v A)² = v · (v S) with S = A Aᵀ, and v · (v A) = v · (v S) with S = (A + Aᵀ)/2; S is also what
  the gradient needs.

`simplified` writes each value of a trace that is linear in another one as a sum of such maps, cuts
these chains wherever that is cheaper (a map of low rank is better left in two), and gives the new
trace if it takes fewer multiplications than the old one. Sums of squares lose relative accuracy
when they are written as v · (v S) with an ill-conditioned S: such an S is refused, here and, when
parameters have changed, at each call (`Trace.symmetric`).
"""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ebm_samplers.fused.maps import (
    IDENTITY,
    Factor,
    Linear,
    Map,
    Scalar,
    is_plain,
    normalised,
    plus,
    times,
    transposed,
)
from ebm_samplers.fused.trace import Call, CannotFuse, Ref, Trace, Value, aten

SAME_ORDER = {
    aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten._reshape_alias.default,
    aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.squeeze.default,
    aten.detach.default, aten.alias.default, aten.clone.default, aten.contiguous.default,
    aten.lift_fresh.default, aten.lift_fresh_copy.default, aten.expand.default,
}  # fmt: skip
TURNS = {aten.permute.default, aten.transpose.int, aten.t.default}
VIEWS = SAME_ORDER | TURNS
PRODUCTS = {aten.mm.default, aten.bmm.default, aten.mv.default, aten.dot.default}
SUMS = {aten.sum.dim_IntList, aten.sum.default}
LOSS = 2e-3
"""Largest rounding error of a sum of squares that is written as v · (v S), for typical v."""


def simplified(trace: Trace) -> Trace:
    """The trace, or one of the same energy with fewer multiplications by matrices."""
    analysis = _Analysis(trace)
    if not analysis.products:
        return trace
    cuts: set[int] = set()
    best = _Rewriting(analysis, cuts)
    for candidate in analysis.products:
        trial = _Rewriting(analysis, cuts | {candidate})
        if trial.cost < best.cost:
            cuts, best = cuts | {candidate}, trial
    return best.trace if best.cost < cost(trace) else trace


def cost(trace: Trace) -> int:
    """Multiplications by matrices that one evaluation takes."""
    total, seen, stack = 0, set(), list(trace.results)
    while stack:
        value = trace.values[(ref := stack.pop()).index]
        if ref.index in seen or not value.varies or value.call is None:
            continue
        seen.add(ref.index)
        stack.extend(refs(value.call))
        if value.call.function in PRODUCTS or value.call.function is aten.addmm.default:
            *_, a, b = (trace.values[r.index].example for r in refs(value.call))
            total += a.numel() * (b.shape[-1] if b.ndim > 1 else 1)
    return total


def loss(matrix: Tensor, dtype: torch.dtype) -> float:
    """Rounding error of v · (v S) in a dtype, for v drawn with precision S; infinity if S has none.

    With Σ = S⁻¹, element i of v S is the sum of S_ij v_j, with rounding errors of about eps·|S_ij
    v_j| that do not cancel though the terms may.
    """
    factor, failed = torch.linalg.cholesky_ex(matrix.double())
    if failed or not torch.isfinite(factor).all():
        return math.inf
    spread = torch.cholesky_inverse(factor).diagonal()
    squares = spread @ matrix.double().square() @ spread
    return float(squares.sqrt()) * torch.finfo(dtype).eps


def check_symmetric(matrix: Tensor) -> None:
    """Raise `CannotFuse` if a sum of squares should not be written with this matrix."""
    if not loss(matrix, matrix.dtype) <= LOSS:
        raise CannotFuse("a quadratic form has become ill-conditioned")


def refs(tree: Any) -> list[Ref]:
    """The values that a call, or its arguments, use."""
    if isinstance(tree, Ref):
        return [tree]
    if isinstance(tree, Call):
        return refs((tree.args, tree.kwargs))
    parts = tree.values() if isinstance(tree, dict) else tree
    return (
        [ref for part in parts for ref in refs(part)]
        if isinstance(parts, tuple | list) or isinstance(tree, dict)
        else []
    )


@dataclass
class _Product:
    """Elementwise ``a * b`` of two linear values, or (``total``) its sum."""

    a: Ref
    b: Ref
    total: bool


class _Analysis:
    """What is linear in what, for each operation by itself."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.values = trace.values
        self.quadratic: dict[int, _Product] = {}
        for number, value in enumerate(self.values):
            if value.varies and value.call is not None:
                self._quadratic(number, value.call)
        live = self._live()
        self.products = [
            number
            for number in live
            if (number in self.quadratic and self.quadratic[number].total)
            or (self.values[number].varies and self._is_product(number))
        ]

    def size(self, ref: Ref) -> int:
        return self.values[ref.index].example.numel()

    def varies(self, argument: Any) -> bool:
        return isinstance(argument, Ref) and self.values[argument.index].varies

    def _is_product(self, number: int) -> bool:
        call = self.values[number].call
        return call is not None and call.function in PRODUCTS and number not in self.quadratic

    def _live(self) -> list[int]:
        seen: set[int] = set()
        stack = [ref.index for ref in self.trace.results]
        while stack:
            number = stack.pop()
            call = self.values[number].call
            if number not in seen and self.values[number].varies:
                seen.add(number)
                stack.extend(ref.index for ref in refs(call) if call is not None)
        return sorted(seen)

    def _quadratic(self, number: int, call: Call) -> None:
        function, args, size = call.function, call.args, self.values[number].example.numel()
        if function in (aten.square.default,) or (
            function is aten.pow.Tensor_Scalar and args[1] == 2
        ):
            self.quadratic[number] = _Product(args[0], args[0], False)
        elif function is aten.mul.Tensor and all(map(self.varies, args)):
            if self.size(args[0]) == self.size(args[1]) == size:
                self.quadratic[number] = _Product(args[0], args[1], False)
        elif function in SUMS and size == 1 and args[0].index in self.quadratic:
            inner = self.quadratic[args[0].index]
            if not inner.total:
                self.quadratic[number] = replace(inner, total=True)
        elif (
            function in PRODUCTS
            and all(map(self.varies, args))
            and size == 1
            and self.size(args[0]) == self.size(args[1]) > 1
        ):
            self.quadratic[number] = _Product(args[0], args[1], True)

    def linear(self, call: Call, size: int) -> list[tuple[Ref, Map]] | None:
        """The values that a result is a sum of linear maps of; None if it is something else."""
        function, args = call.function, call.args
        if function in SAME_ORDER or (function in TURNS and self._one_axis(args[0])):
            return [(args[0], {IDENTITY: 1.0})] if self.size(args[0]) == size else None
        if function is aten.neg.default:
            return [(args[0], {IDENTITY: -1.0})]
        if function is aten.pow.Tensor_Scalar and args[1] == 1:
            return [(args[0], {IDENTITY: 1.0})]
        if function in (aten.add.Tensor, aten.sub.Tensor):
            return self._sum(function, args, call.kwargs, size)
        if function in (aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar):
            return self._scaled(function, args, size)
        if function in PRODUCTS and sum(map(self.varies, args)) == 1:
            return self._product(args, size)
        return None

    def _one_axis(self, ref: Ref) -> bool:
        return sum(n > 1 for n in self.values[ref.index].example.shape) <= 1

    def _sum(
        self, function: Any, args: Any, kwargs: Any, size: int
    ) -> list[tuple[Ref, Map]] | None:
        if not all(map(self.varies, args[:2])) or any(self.size(a) != size for a in args[:2]):
            return None
        alpha = float(kwargs.get("alpha", 1)) * (-1 if function is aten.sub.Tensor else 1)
        return [(args[0], {IDENTITY: 1.0}), (args[1], {IDENTITY: alpha})]

    def _scaled(self, function: Any, args: Any, size: int) -> list[tuple[Ref, Map]] | None:
        divides = function in (aten.div.Tensor, aten.div.Scalar)
        a, b = args[:2]
        if not self.varies(a) and not divides:
            a, b = b, a
        if not self.varies(a) or self.varies(b) or self.size(a) != size:
            return None
        factor = self.scalar(b, divides)
        return None if factor is None else [(a, factor)]

    def scalar(self, number: Any, divides: bool) -> Map | None:
        """A number that no lane changes, as a multiple of the identity."""
        if not isinstance(number, Ref):
            known = float(number)
        else:
            value = self.values[number.index]
            while value.call is not None and value.call.function in SAME_ORDER:
                number = value.call.args[0]
                value = self.values[number.index]
            flat = value.example.detach().reshape(-1)
            if value.fixed and flat.numel() and (flat == flat[0]).all():
                known = float(flat[0])
            elif flat.numel() == 1 and value.example.dtype.is_floating_point:
                return {(((number.index, divides),), ()): 1.0}
            else:
                return None
        if not math.isfinite(known) or (divides and known == 0):
            return None
        return {IDENTITY: 1 / known if divides else known}

    def _product(self, args: Any, size: int) -> list[tuple[Ref, Map]] | None:
        left = self.varies(args[0])
        vector, matrix = args if left else args[::-1]
        n, shape = self.size(vector), self.values[matrix.index].example.shape
        if shape[:-2].numel() != 1:
            return None
        if math.prod(shape) == 1:
            scalar = self.scalar(matrix, False)
            return None if scalar is None or n != size else [(vector, scalar)]
        inner = shape[-2] if left and len(shape) > 1 else shape[-1]
        if n != inner or n * size != math.prod(shape):
            return None
        turned = not left and len(shape) > 1
        return [(vector, {((), (self.factor(matrix.index, turned),)): 1.0})]

    def factor(self, number: int, turned: bool) -> Factor:
        """A matrix by the value that it is a view of, so that equal matrices have one name."""
        shape = self.values[number].example.shape
        rows, columns = (*shape, 1) if len(shape) == 1 else shape[-2:]
        chain: list[Call] = []
        root = number
        while (call := self.values[root].call) is not None and call.function in VIEWS:
            if self.size(call.args[0]) != rows * columns:
                break
            chain.append(call)
            root = call.args[0].index
        numbers = torch.arange(rows * columns, device="cpu")
        labels = numbers.view(self.values[root].example.shape)
        for call in reversed(chain):
            labels = call.function(labels, *call.args[1:], **call.kwargs)
        labels = labels.reshape(rows, columns)
        if labels.equal(numbers.view(rows, columns)):
            return root, rows, columns, turned
        if labels.equal(numbers.view(columns, rows).t()):
            return root, columns, rows, not turned
        return number, rows, columns, turned


@dataclass
class _Rewriting:
    """A trace written anew, with each linear value as maps of what is not linear, or is cut."""

    analysis: _Analysis
    cuts: set[int]
    trace: Trace = field(default_factory=Trace)
    cost: int = 0
    place: str = ""

    def __post_init__(self) -> None:
        old = self.analysis.trace
        self.made: dict[Any, Ref] = {}
        self.known: dict[int, Linear] = {}
        self.new: dict[int, Ref] = {0: self._add(old.values[0])}
        self.trace.energy = self.value(old.energy)
        self.trace.gradient = self.value(old.gradient)
        self.trace.exports = [self.value(ref) for ref in old.exports]
        self.trace.constants = [(self.value(ref), was) for ref, was in old.constants]
        self.cost = cost(self.trace)

    def value(self, ref: Ref) -> Ref:
        """An old value in the new trace."""
        number = ref.index
        if number not in self.new:
            value = self.analysis.values[number]
            if value.call is None:
                self.new[number] = self._add(value)
            else:
                self.place = value.call.place
                made = None
                if value.varies:
                    made = self._form(number, value) or self._maps(number, value)
                self.new[number] = made or self._copy(value)
        return self.new[number]

    def _copy(self, value: Value) -> Ref:
        call = value.call
        assert call is not None
        args = self._replaced(call.args)
        key = repr((call.function, args, call.kwargs, value.part))
        if key not in self.made:
            self.made[key] = self._add(
                replace(
                    value, call=Call(call.function, args, self._replaced(call.kwargs), call.place)
                )
            )
        return self.made[key]

    def _replaced(self, tree: Any) -> Any:
        if isinstance(tree, Ref):
            return self.value(tree)
        if isinstance(tree, tuple | list):
            return type(tree)(self._replaced(part) for part in tree)
        if isinstance(tree, dict):
            return {key: self._replaced(part) for key, part in tree.items()}
        return tree

    def linear(self, number: int, whole: bool = False) -> Linear:
        """A value as maps of others; of itself where it is cut, unless its ``whole`` is wanted."""
        if number in self.cuts and not whole:
            return {number: {IDENTITY: 1.0}}
        if number not in self.known:
            value, total = self.analysis.values[number], {}
            parts = None
            if value.call is not None:
                parts = self.analysis.linear(value.call, value.example.numel())
            if parts is None:
                total = {number: {IDENTITY: 1.0}}
            for ref, step in parts or ():
                for base, first in self.linear(ref.index).items():
                    total[base] = plus(total.get(base, {}), times(first, step))
            self.known[number] = {base: way for base, way in total.items() if way}
        return self.known[number]

    def _maps(self, number: int, value: Value) -> Ref | None:
        form = self.linear(number, whole=True)
        if number in form or not form or all(map(is_plain, form.values())):
            return None
        return self._added([self._mapped(base, way, value) for base, way in form.items()])

    def _added(self, terms: list[Ref]) -> Ref:
        total = terms[0]
        for term in terms[1:]:
            total = self._call(aten.add.Tensor, total, term)
        return total

    def _mapped(self, base: int, way: Map, value: Value) -> Ref:
        """A map of a value, in the shape of another."""
        if is_plain(way) and len(way) > 1:
            return self._added([self._mapped(base, {word: x}, value) for word, x in way.items()])
        (scalars, number), rest = normalised(way)
        vector = self.value(Ref(base)) if is_plain(way) else self._multiplied(base, rest)
        vector = self._call(aten.view.default, vector, list(value.example.shape))
        return self._scaled(vector, scalars, number)

    def _scaled(self, ref: Ref, scalars: tuple[Scalar, ...], number: float) -> Ref:
        if number != 1:
            ref = self._call(aten.mul.Tensor, ref, number)
        for scalar, divides in scalars:
            function = aten.div.Tensor if divides else aten.mul.Tensor
            number_ = self._call(aten.reshape.default, self.value(Ref(scalar)), [])
            ref = self._call(function, ref, number_)
        return ref

    def _row(self, base: int) -> Ref:
        size = self.analysis.values[base].example.numel()
        return self._call(aten.reshape.default, self.value(Ref(base)), [1, size])

    def _multiplied(self, base: int, way: Map) -> Ref:
        return self._call(aten.mm.default, self._row(base), self._matrix(way))

    def _matrix(self, way: Map) -> Ref:
        """The matrix of a map, combined in float64."""
        if len(way) == 1:
            ((scalars, factors), number) = next(iter(way.items()))
            if len(factors) == 1 and number == 1 and not scalars:
                return self._factor(factors[0])
        dtype = self.analysis.values[0].example.dtype
        total = None
        for scalars, factors in sorted(way):
            product = None
            for factor in factors:
                matrix = self._call(
                    aten._to_copy.default, self._factor(factor), dtype=torch.float64
                )
                product = (
                    matrix if product is None else self._call(aten.mm.default, product, matrix)
                )
            if product is None:
                _, rows, columns, turned = next(f for _, f in way if f)[0]
                size = columns if turned else rows
                device = self.analysis.values[0].example.device
                product = self._call(aten.eye.default, size, dtype=torch.float64, device=device)
            product = self._scaled(product, scalars, way[scalars, factors])
            total = product if total is None else self._call(aten.add.Tensor, total, product)
        return self._call(aten._to_copy.default, total, dtype=dtype)

    def _factor(self, factor: Factor) -> Ref:
        number, rows, columns, turned = factor
        ref = self.value(Ref(number))
        if self.trace.values[ref.index].example.shape != (rows, columns):
            ref = self._call(aten.reshape.default, ref, [rows, columns])
        return self._call(aten.t.default, ref) if turned else ref

    def _form(self, number: int, value: Value) -> Ref | None:
        product = self.analysis.quadratic.get(number)
        if product is None or not product.total or number in self.cuts:
            return None
        a, b = self.linear(product.a.index), self.linear(product.b.index)
        if len(a) != 1 or a.keys() != b.keys():
            return None
        ((base, first),) = a.items()
        second = b[base]
        if is_plain(first) and is_plain(second):
            return None
        squares = not is_plain(first) and not is_plain(second)
        if squares and normalised(first)[1] != normalised(second)[1]:
            return None
        way = times(first, transposed(second))
        half = {word: x / 2 for word, x in way.items()}
        (scalars, scale), rest = normalised(plus(half, transposed(half)))
        image = self._multiplied(base, rest)
        if squares:
            matrix = self.trace.values[image.index].call.args[1]  # type: ignore[union-attr]
            example = self.trace.values[matrix.index].example
            if not loss(example, example.dtype) <= LOSS:
                return None
            self.trace.symmetric.append(matrix)
        total = self._call(aten.mul.Tensor, self._row(base), image)
        total = self._call(aten.sum.default, total)
        total = self._call(aten.view.default, total, list(value.example.shape))
        return self._scaled(total, scalars, scale)

    def _call(self, function: Any, *args: Any, **kwargs: Any) -> Ref:
        key = repr((function, args, kwargs))
        if key not in self.made:
            old = [self.trace.values[ref.index] for ref in refs(args)]

            def example(argument: Any) -> Any:
                return (
                    self.trace.values[argument.index].example.detach()
                    if isinstance(argument, Ref)
                    else argument
                )

            with torch.no_grad():
                result = function(*map(example, args), **kwargs)
            self.made[key] = self._add(
                Value(
                    result,
                    Call(function, args, kwargs, self.place),
                    varies=any(value.varies for value in old),
                    fixed=all(value.fixed for value in old),
                )
            )
        return self.made[key]

    def _add(self, value: Value) -> Ref:
        self.trace.values.append(value)
        return Ref(len(self.trace.values) - 1)
