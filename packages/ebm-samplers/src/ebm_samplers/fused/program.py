"""Arrays of expressions, and the loops that a kernel runs.

An `Array` is a shape and a function from an index to an `Expr`: views cost nothing, and only what
is materialised takes rows of the tile. A `Program` collects `Nest`s, loops whose innermost body
works on all lanes.

The same rules of lowering (`rules`) serve two ways of building a program:

- *straight*: every index is a number, every array a list of expressions, and the whole energy one
  body without loops. Common subexpressions, constants and dead code fall away.
- *looped*: indices are affine in loop counters; reductions and what is used more than once become
  rows of the tile.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from ebm_samplers.fused.graph import HEAVY, Affine, Expr, Index, Pool, reachable


@dataclass(frozen=True)
class Array:
    """Expressions by index.

    Attributes: shape: Lengths of the axes. load: The expression at an index (one entry an axis).
        flat: The expression at an index into the flattened array, where that is as direct; else
        None. cost: Roughly the work of one load; 0 for what is stored. varies: Whether it depends
        on the lane. boolean: Whether elements are truth values. number: The value of the trace
        whose elements, in C order, these are, if no lane changes them.
    """

    shape: tuple[int, ...]
    load: Callable[[tuple[Index, ...]], Expr]
    flat: Callable[[Index], Expr] | None = None
    cost: int = 0
    varies: bool = True
    boolean: bool = False
    number: int | None = None

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def listed(cells: Sequence[Expr], shape: tuple[int, ...], boolean: bool = False) -> Array:
    """The array of expressions in C order, which only numbers can index."""

    def flat(index: Index) -> Expr:
        assert isinstance(index, int)
        return cells[index]

    varies = any(cell.varies for cell in cells)
    return Array(shape, lambda index: flat(ravel(index, shape)), flat, 0, varies, boolean)


@dataclass(frozen=True)
class Loop:
    """``for counter in range(start, stop, step)``."""

    counter: str
    start: int
    stop: int
    step: int = 1


@dataclass(frozen=True)
class Store:
    """Row ``row`` becomes ``value``, or ``op(row, value)``."""

    row: Index
    value: Expr
    op: str = ""


@dataclass(frozen=True)
class Nest:
    """Loops, within which stores happen for all lanes.

    Attributes: loops: From the outermost on. stores: In order. lanes: "many" or "one" if it stands
        only in programs for as many lanes, "" if in all.
    """

    loops: tuple[Loop, ...]
    stores: tuple[Store, ...]
    lanes: str = ""


@dataclass(frozen=True)
class Product:
    """Loops, within which rows ``out + j`` become Σ_k row ``row + k`` times a parameter.

    The parameter is number ``matrix + k * n_outputs + j``.
    """

    loops: tuple[Loop, ...]
    out: Index
    row: Index
    matrix: Index
    n_inner: int
    n_outputs: int


ROWS_AT_ONCE, TERMS_AT_ONCE, UNROLLED = 4, 4, 64


@dataclass
class Program:
    """What the kernel of an energy does: nests, in order.

    Attributes: size: Elements of a state, d. Rows 0 … d-1 hold the state, d … 2d-1 the gradient, 2d
        the energy. straight: Without loops. exports: First rows of what else it gives.
    """

    size: int
    straight: bool
    pool: Pool
    nests: list[Nest | Product] = field(default_factory=list)
    n_rows: int = 0
    offset: Expr | None = None
    counters: Iterable[int] = field(default_factory=itertools.count)
    exports: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.n_rows = 2 * self.size + 1

    @property
    def n_operations(self) -> int:
        """Scalar operations of one evaluation, loops counted as often as they run."""
        return sum(
            math.prod(len(range(loop.start, loop.stop, loop.step)) for loop in nest.loops)
            * (
                2 * nest.n_inner * nest.n_outputs
                if isinstance(nest, Product)
                else len(reachable(store.value for store in nest.stores))
            )
            for nest in self.nests_for(2)
        )

    def nests_for(self, lanes: int) -> list[Nest | Product]:
        """The nests of the program for so many lanes."""
        left_out = "many" if lanes == 1 else "one"
        return [n for n in self.nests if isinstance(n, Product) or n.lanes != left_out]

    def rows(self, base: int, shape: tuple[int, ...], boolean: bool = False) -> Array:
        """The rows from ``base`` on as an array in C order; truth values are kept as 0 and 1."""

        def flat(index: Index) -> Expr:
            row = self.pool.row(base + index)
            return self.pool("ne", row, self.pool.const(0.0)) if boolean else row

        return Array(shape, lambda index: flat(ravel(index, shape)), flat, 0, True, boolean)

    def stored(self, array: Array) -> Array:
        """The array with loads that cost nothing."""
        if array.cost == 0 or not array.varies:
            return array
        if self.straight:
            indices = itertools.product(*map(range, array.shape))
            return listed([array.load(index) for index in indices], array.shape, array.boolean)
        base = self.allocate(array.size)
        self.assign(base, array)
        return self.rows(base, array.shape, array.boolean)

    def together(self, first: Array, second: Array, base: int) -> tuple[Array, Array]:
        """Two arrays of one shape in rows, written in one loop, where what they share is done once.

        Args:
            first: Gets new rows.
            second: Goes to the rows from ``base`` on, which the first may read.
            base: See ``second``.
        """
        shape = first.shape
        bases = self.allocate(first.size), base
        loops, index = self._loops(shape)
        place = ravel(index, shape)
        stores = tuple(
            Store(at + place, array.load(index))
            for at, array in zip(bases, (first, second), strict=True)
        )
        self.nests.append(Nest(loops, stores))
        return self.rows(bases[0], shape), self.rows(base, shape)

    def rows_under(self, array: Array) -> int | None:
        """The first of the rows that elements are computed from, each from the next; else None."""
        _, index = self._loops(array.shape)
        rows, firsts = (
            {node.args[0] for node in reachable([array.load(at)]) if node.op == "row"}
            for at in (index, (0,) * len(array.shape))
        )
        if not firsts:
            return None
        first: int = firsts.pop()
        return first if rows == {first + ravel(index, array.shape)} else None

    def exported(self, array: Array) -> int:
        """The first row of an array that the kernel gives: its own rows, or new ones."""
        if not self.straight and array.varies and not array.boolean:
            first = self.rows_under(array)
            if first is not None and array.load((0,) * len(array.shape)).op == "row":
                return first
        base = self.allocate(array.size)
        self.assign(base, array)
        return base

    def allocate(self, n: int) -> int:
        """The first of ``n`` new rows."""
        self.n_rows += n
        return self.n_rows - n

    def assign(
        self, base: int, array: Array, place: Callable[[tuple[Index, ...]], Index] | None = None
    ) -> None:
        """Write an array into rows.

        Args:
            base: The first row.
            array: What to write.
            place: Where an element goes, counted from the first row; None for C order.
        """
        if array.size == 0:
            return
        pool = self.pool
        where = place or (lambda index: ravel(index, array.shape))

        def store(index: tuple[Index, ...]) -> Store:
            value = array.load(index)
            if array.boolean:
                value = pool("where", value, pool.const(1.0), pool.const(0.0))
            return Store(base + where(index), value)

        if self.straight or array.size <= UNROLLED // 4:
            indices = itertools.product(*map(range, array.shape))
            self.nests.append(Nest((), tuple(store(index) for index in indices)))
            return
        loops, index = self._loops(array.shape)
        self.nests.append(Nest(loops, (store(index),)))

    def accumulated(
        self, array: Array, added: Sequence[tuple[Array, Callable[..., tuple[Index, ...]]]]
    ) -> Array:
        """An array of one axis, to which others were added at places ``place(index)``."""
        base = self.allocate(array.size)
        self.assign(base, array)
        for part, place in added:
            loops, index = self._loops(part.shape)
            self.nests.append(
                Nest(loops, (Store(base + place(index)[0], part.load(index), "add"),))
            )
        return self.rows(base, array.shape)

    def running(self, op: str, array: Array, axis: int) -> Array:
        """Each element and, by ``op``, all before it on an axis."""
        base, shape = self.allocate(array.size), array.shape
        if array.size == 0:
            return self.rows(base, shape)

        def later(index: tuple[Index, ...], by: int) -> tuple[Index, ...]:
            return (*index[:axis], index[axis] + by, *index[axis + 1 :])

        first = Array((*shape[:axis], 1, *shape[axis + 1 :]), array.load, None, max(array.cost, 1))
        self.assign(base, first, lambda index: ravel(index, shape))
        if shape[axis] > 1:
            loops, index = self._loops((*shape[:axis], shape[axis] - 1, *shape[axis + 1 :]))
            before = self.pool.row(base + ravel(index, shape))
            value = self.pool(op, before, array.load(later(index, 1)))
            self.nests.append(Nest(loops, (Store(base + ravel(later(index, 1), shape), value),)))
        return self.rows(base, shape)

    def reduce(
        self,
        op: str,
        start: float,
        shape: tuple[int, ...],
        over: tuple[int, ...],
        load: Callable[..., Expr],
        varies: bool = True,
    ) -> Array:
        """The array of op-reductions of ``load(index, inner)`` over all ``inner`` in ``over``."""
        pool = self.pool
        if 0 in over:
            return Array(shape, lambda index: pool.const(start), None, 0, False)
        inners = (
            list(itertools.product(*map(range, over)))
            if self.straight or math.prod(over) <= 4
            else []
        )
        if self.straight or inners:

            def combined(index: tuple[Index, ...]) -> Expr:
                terms = [load(index, inner) for inner in inners]
                return pool.balanced(op, terms) if terms else pool.const(start)

            return self.stored(Array(shape, combined, None, 2 * len(inners), varies))
        base = self.allocate(math.prod(shape))
        self.assign(base, Array(shape, lambda index: pool.const(start), None, 1))
        # With one lane SIMD runs over the terms; with many, sums move less with some terms at once,
        # unless terms are long: LLVM inlines, and makes SIMD code of, few calls at once.
        sample = load((0,) * len(shape), (0,) * len(over))
        heavy = any(node.op in HEAVY for node in reachable([sample]))
        for loops, indices in self._blocks(shape, 1 if heavy else ROWS_AT_ONCE):
            at_once = 1 if heavy else TERMS_AT_ONCE if len(indices) > 1 else 8
            for inner_loops, inner_indices in self._blocks(over, at_once):
                stores = []
                for index in indices:
                    terms = [load(index, inner) for inner in inner_indices]
                    value = terms[0]
                    for term in terms[1:]:
                        value = pool(op, value, term)
                    stores.append(Store(base + ravel(index, shape), value, op))
                self.nests.append(Nest((*loops, *inner_loops), tuple(stores), "many"))
        (loops, places), (inner_loops, inner_places) = self._loops(shape), self._loops(over)
        one = Store(base + ravel(places, shape), load(places, inner_places), op)
        self.nests.append(Nest((*loops, *inner_loops), (one,), "one"))
        return self.rows(base, shape)

    def product(self, a: Array, b: Array) -> Array:
        """``(..., m, k)`` rows times ``(..., k, n)`` parameters, both in C order."""
        *lead, m, k = a.shape
        n = b.shape[-1]
        size = math.prod(lead) * m * n
        base = self.allocate(size)
        if size == 0:
            return self.rows(base, (*lead, m, n))
        loops, index = self._loops((*lead, m))
        row, matrix = a.load((*index, 0)).args[0], b.load((*index[:-1], 0, 0)).args[0]
        out = base + ravel((*index, 0), (*lead, m, n))
        self.nests.append(Product(loops, out, row, matrix, k, n))
        return self.rows(base, (*lead, m, n))

    def _loops(self, shape: tuple[int, ...]) -> tuple[tuple[Loop, ...], tuple[Index, ...]]:
        loops: list[Loop] = []
        index: list[Index] = []
        for length in shape:
            if length == 1:
                index.append(0)
            else:
                loops.append(Loop(f"i{next(self.counters)}", 0, length))  # type: ignore[call-overload]
                index.append(Affine(0, ((loops[-1].counter, 1),)))
        return tuple(loops), tuple(index)

    def _blocks(
        self, shape: tuple[int, ...], block: int
    ) -> list[tuple[tuple[Loop, ...], list[tuple[Index, ...]]]]:
        """Loops over a shape: the longest axis ``block`` at a time, and what remains of it."""
        loops, index = self._loops(shape)
        if not loops:
            return [((), [index])]
        axis = max(range(len(shape)), key=lambda i: (shape[i], i))
        position = [i for i, length in enumerate(shape) if length > 1].index(axis)
        length = shape[axis]
        whole = length - length % block
        parts = []
        for start, stop, step in ((0, whole, block), (whole, length, length - whole)):
            if start < stop:
                loop = Loop(loops[position].counter, start, stop, step)
                new = (*loops[:position], loop, *loops[position + 1 :])
                parts.append(
                    (
                        new,
                        [(*index[:axis], index[axis] + k, *index[axis + 1 :]) for k in range(step)],
                    )
                )
        return parts


def ravel(index: Sequence[Index], shape: Sequence[int]) -> Index:
    """The index into the flattened array, C order."""
    total: Index = 0
    for i, length in zip(index, shape, strict=True):
        total = total * length + i
    return total


def unravel(number: int, shape: Sequence[int]) -> tuple[int, ...]:
    """The inverse of `ravel` for numbers."""
    index = []
    for length in reversed(shape):
        number, i = divmod(number, length)
        index.append(i)
    return tuple(reversed(index))
