"""Expressions over lanes, arrays of them, and the loops that a kernel runs.

A *lane* is one chain. Everything a kernel computes from a state lives in one flat *tile* ``w``: row
r of it holds one number of each lane, ``w[r * L + lane]``. An `Array` is a shape and a function
from an index to an `Expr`: views cost nothing, and only what is materialised takes rows. A
`Program` collects `Nest`s, loops whose innermost body works on all lanes.

The same rules of lowering (`lowering`) serve two ways of building a program:

- *straight*: every index is a number, every array a list of expressions, and the whole energy one
  body without loops. Common subexpressions, constants and dead code fall away because equal
  expressions are one object (`Pool`).
- *looped*: indices are affine in loop counters; reductions and what is used more than once become
rows of the tile.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class TooLarge(Exception):  # noqa: N818 - a reason, not an error
    """The straight program has grown beyond what is worth compiling."""


@dataclass(frozen=True)
class Affine:
    """constant + Σ coefficient · counter, with at least one counter."""

    constant: int
    terms: tuple[tuple[str, int], ...]

    def __add__(self, other: "Index") -> "Index":
        if isinstance(other, int):
            return Affine(self.constant + other, self.terms)
        total = dict(self.terms)
        for counter, coefficient in other.terms:
            total[counter] = total.get(counter, 0) + coefficient
        terms = tuple(sorted((c, k) for c, k in total.items() if k))
        constant = self.constant + other.constant
        return Affine(constant, terms) if terms else constant

    __radd__ = __add__

    def __mul__(self, factor: int) -> "Index":
        if factor == 0:
            return 0
        return Affine(self.constant * factor, tuple((c, k * factor) for c, k in self.terms))

    __rmul__ = __mul__

    def __str__(self) -> str:
        parts = [counter if k == 1 else f"{k} * {counter}" for counter, k in self.terms]
        return " + ".join(parts + ([str(self.constant)] if self.constant else []))


Index = int | Affine


class Expr(NamedTuple):
    """A node: an operation on earlier nodes of its pool, or a load. Equal nodes are one object."""

    op: str
    args: tuple[Any, ...]
    number: int
    varies: bool


UNARY = {
    "neg": lambda a: -a,
    "exp": math.exp,
    "log": math.log,
    "sin": math.sin,
    "cos": math.cos,
    "sqrt": math.sqrt,
    "abs": abs,
}
BINARY = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "max": lambda a, b: max(a, b) if a == a and b == b else math.nan,
    "min": lambda a, b: min(a, b) if a == a and b == b else math.nan,
    "above": max,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "and": lambda a, b: a and b,
    "or": lambda a, b: a or b,
}
HEAVY = {
    "exp",
    "log",
    "sin",
    "cos",
    "tanh",
    "sigmoid",
    "softplus",
    "pow",
    "erf",
    "log1p",
    "expm1",
    "atan",
    "asin",
    "acos",
}


class Pool:
    """Makes expressions: folds constants, drops neutral operations, and gives equal ones the same
    object.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.nodes: dict[tuple[str, tuple[Any, ...]], Expr] = {}
        self.limit = limit

    def _node(self, op: str, args: tuple[Any, ...], varies: bool) -> Expr:
        key = (op, tuple(a.number if isinstance(a, Expr) else a for a in args))
        node = self.nodes.get(key)
        if node is None:
            if self.limit is not None and len(self.nodes) >= self.limit:
                raise TooLarge
            node = self.nodes[key] = Expr(op, args, len(self.nodes), varies)
        return node

    def const(self, value: float | bool) -> Expr:
        """A number or truth value."""
        if isinstance(value, bool):
            return self._node("bool", (value,), False)
        # repr tells -0.0 from 0.0 and makes nan equal to itself
        return self._node("const", (repr(float(value)),), False)

    def row(self, index: Index) -> Expr:
        """The lane's number in a row of the tile."""
        return self._node("row", (index,), True)

    def param(self, index: Index) -> Expr:
        """An element of the packed parameters, the same for all lanes."""
        return self._node("param", (index,), False)

    def __call__(self, op: str, *args: Expr) -> Expr:
        """The expression ``op(*args)``, simplified."""
        values = [value_of(a) for a in args]
        if all(v is not None for v in values):
            folded = self._fold(op, values)
            if folded is not None:
                return self.const(folded)
        simpler = self._simplify(op, args, values)
        if simpler is not None:
            return simpler
        return self._node(op, args, any(a.varies for a in args))

    def _fold(self, op: str, values: Sequence[Any]) -> float | bool | None:
        rule = UNARY.get(op) if len(values) == 1 else BINARY.get(op)
        try:
            return None if rule is None else rule(*values)
        except (ValueError, ZeroDivisionError, OverflowError):
            return None  # left to the kernel, whose arithmetic knows infinities

    def _simplify(self, op: str, args: tuple[Expr, ...], values: Sequence[Any]) -> Expr | None:
        if op == "where":
            return None if values[0] is None else args[1] if values[0] else args[2]
        if op == "neg":
            return args[0].args[0] if args[0].op == "neg" else None
        if len(args) != 2:
            return None
        (a, b), (u, v) = args, values
        if op == "add":
            if u == 0:
                return b
            if v == 0:
                return a
            if b.op == "neg":
                return self("sub", a, b.args[0])
            if a.op == "neg":
                return self("sub", b, a.args[0])
        elif op == "sub":
            if v == 0:
                return a
            if u == 0:
                return self("neg", b)
            if b.op == "neg":
                return self("add", a, b.args[0])
        elif op == "mul":
            if u is not None and v is None:
                a, b, u, v = b, a, v, u  # numbers on the right
            if v == 1:
                return a
            if v == -1:
                return self("neg", a)
            if a.op == "neg" and b.op == "neg":
                return self("mul", a.args[0], b.args[0])
            if a.op == "neg":
                return (
                    self("neg", self("mul", a.args[0], b))
                    if v is None
                    else self("mul", a.args[0], self.const(-v))
                )
            if b.op == "neg":
                return self("neg", self("mul", a, b.args[0]))
            if v is not None and a.op == "mul" and (w := value_of(a.args[1])) is not None:
                return self("mul", a.args[0], self.const(v * w))
            if (a, b) != args:
                return self._node(op, (a, b), a.varies or b.varies)
        elif op == "div":
            if v == 1:
                return a
            if v is not None and v != 0 and math.frexp(v)[0] in (0.5, -0.5):
                return self("mul", a, self.const(1 / v))  # exact: a power of two
        return None

    def sum(self, terms: Iterable[Expr]) -> Expr:
        """A balanced sum."""
        terms = list(terms)
        if not terms:
            return self.const(0.0)
        while len(terms) > 1:
            pairs = [self("add", a, b) for a, b in zip(terms[::2], terms[1::2], strict=False)]
            terms = pairs + terms[len(terms) & ~1 :]
        return terms[0]

    def split_constant(self, node: Expr) -> tuple[Expr, Expr]:
        """(f, c) with node = f + c, where c does not depend on the lane and f has no such
        addend.
        """
        zero = self.const(0.0)
        known: dict[int, tuple[Expr, Expr]] = {}
        for part in reachable([node]):  # in the order of their making: arguments first
            split = (part, zero) if part.varies else (zero, part)
            if part.varies and part.op in ("add", "sub"):
                (f, c), (g, d) = (known[a.number] for a in part.args)
                if c is not zero or d is not zero:
                    split = self(part.op, f, g), self(part.op, c, d)
            elif part.varies and part.op == "neg":
                f, c = known[part.args[0].number]
                if c is not zero:
                    split = self("neg", f), self("neg", c)
            elif part.varies and part.op in ("mul", "div"):
                a, b = part.args
                (f, c), (g, d) = known[a.number], known[b.number]
                if not b.varies and c is not zero:
                    split = self(part.op, f, b), self(part.op, c, b)
                elif not a.varies and part.op == "mul" and d is not zero:
                    split = self("mul", a, g), self("mul", a, d)
            known[part.number] = split
        return known[node.number]


def value_of(node: Expr) -> float | bool | None:
    """The value of a constant, else None."""
    if node.op == "const":
        return float(node.args[0])
    return node.args[0] if node.op == "bool" else None


@dataclass(frozen=True)
class Array:
    """Expressions by index.

    Attributes: shape: Lengths of the axes. load: The expression at an index (one entry an axis).
        flat: The expression at an index into the flattened array, where that is as direct; else
        None. cost: Roughly the work of one load; 0 for what is stored. varies: Whether it depends
        on the lane. boolean: Whether elements are truth values.
    """

    shape: tuple[int, ...]
    load: Callable[[tuple[Index, ...]], Expr]
    flat: Callable[[Index], Expr] | None = None
    cost: int = 0
    varies: bool = True
    boolean: bool = False

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


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
    """Loops, within which stores happen for all lanes."""

    loops: tuple[Loop, ...]
    stores: tuple[Store, ...]


ROWS_AT_ONCE, TERMS_AT_ONCE, UNROLLED = 4, 4, 64


@dataclass
class Program:
    """What the kernel of an energy does: nests, in order.

    Attributes: size: Elements of a state, d. Rows 0 … d-1 hold the state, d … 2d-1 the gradient, 2d
        the energy. straight: Without loops.
    """

    size: int
    straight: bool
    pool: Pool
    nests: list[Nest] = field(default_factory=list)
    n_rows: int = 0
    offset: Expr | None = None
    counters: Iterable[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        self.n_rows = 2 * self.size + 1

    @property
    def n_operations(self) -> int:
        """Scalar operations of one evaluation, loops counted as often as they run."""
        return sum(
            math.prod(len(range(loop.start, loop.stop, loop.step)) for loop in nest.loops)
            * len(reachable(store.value for store in nest.stores))
            for nest in self.nests
        )

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
            values = [array.load(index) for index in itertools.product(*map(range, array.shape))]
            return Array(
                array.shape,
                lambda index: values[ravel(index, array.shape)],
                values.__getitem__,
                0,
                any(value.varies for value in values),
                array.boolean,
            )
        base = self.allocate(array.size)
        self.assign(base, array)
        return self.rows(base, array.shape, array.boolean)

    def allocate(self, n: int) -> int:
        """The first of ``n`` new rows."""
        self.n_rows += n
        return self.n_rows - n

    def assign(
        self, base: int, array: Array, place: Callable[[tuple[Index, ...]], Index] | None = None
    ) -> None:
        """Write an array into rows: element ``index`` into row base + place(index), C order by
        default.
        """
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
        inners = (
            list(itertools.product(*map(range, over)))
            if self.straight or math.prod(over) <= 4
            else []
        )
        if self.straight or inners:

            def combined(index: tuple[Index, ...]) -> Expr:
                terms = [load(index, inner) for inner in inners]
                if op == "add":
                    return pool.sum(terms)
                total = terms[0]
                for term in terms[1:]:
                    total = pool(op, total, term)
                return total

            return self.stored(Array(shape, combined, None, 2 * len(inners), varies))
        base = self.allocate(math.prod(shape))
        self.assign(base, Array(shape, lambda index: pool.const(start), None, 1))
        for loops, indices in self._blocks(shape, ROWS_AT_ONCE):
            for inner_loops, inner_indices in self._blocks(
                over, TERMS_AT_ONCE if len(indices) > 1 else 8
            ):
                stores = []
                for index in indices:
                    terms = [load(index, inner) for inner in inner_indices]
                    value = terms[0]
                    for term in terms[1:]:
                        value = pool(op, value, term)
                    stores.append(Store(base + ravel(index, shape), value, op))
                self.nests.append(Nest((*loops, *inner_loops), tuple(stores)))
        return self.rows(base, shape)

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
        """Loops over a shape that take the longest axis ``block`` at a time, then those over what
        remains.
        """
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


def reachable(roots: Iterable[Expr]) -> list[Expr]:
    """All expressions that the given ones need, in the order of their making."""
    seen: dict[int, Expr] = {}
    stack = list(roots)
    while stack:
        node = stack.pop()
        if node.number not in seen:
            seen[node.number] = node
            stack.extend(a for a in node.args if isinstance(a, Expr))
    return [seen[number] for number in sorted(seen)]
