"""Expressions over lanes: what a kernel computes, as nodes that know nothing of loops.

A *lane* is one chain. Everything a kernel computes from a state lives in one flat *tile* ``w``: row
r of it holds one number of each lane, ``w[r * L + lane]``; `program` says what becomes of rows.
Equal expressions are one object (`Pool`), so that common subexpressions fall away.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
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


UNARY: dict[str, Callable[..., Any]] = {
    "neg": lambda a: -a,
    "exp": math.exp,
    "log": math.log,
    "sin": math.sin,
    "cos": math.cos,
    "sqrt": math.sqrt,
    "abs": abs,
}
BINARY: dict[str, Callable[..., Any]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "max": lambda a, b: max(a, b) if a == a and b == b else math.nan,
    "min": lambda a, b: min(a, b) if a == a and b == b else math.nan,
    "above": max,
    "below": min,
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
    "erfc",
    "log1p",
    "expm1",
    "atan",
    "asin",
    "acos",
}


class Pool:
    """Makes expressions: folds constants, drops neutral operations; equal ones are one object."""

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
            a = args[0]
            if a.op == "sub":
                return self("sub", *a.args[::-1])
            return a.args[0] if a.op == "neg" else None
        if len(args) != 2:
            return None
        (a, b), (u, v) = args, values
        if op == "add":
            if u == 0:
                return b
            if v == 0:
                return a
            if a.op == "neg" and b.op == "neg":
                return self("neg", self("add", a.args[0], b.args[0]))
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
            if _is_scaled(a) and _is_scaled(b):
                (x, c), (y, d) = a.args, b.args
                return self("mul", self("mul", x, y), self("mul", c, d))
            w = value_of(a.args[1]) if v is not None and a.op == "mul" else None
            if w is not None and 1e-30 < abs(v * w) < 1e30:  # also a number in float32
                return self("mul", a.args[0], self.const(v * w))
            if (a, b) != args:
                return self._node(op, (a, b), a.varies or b.varies)
        elif op == "div":
            if v == 1:
                return a
            if a.op == "neg" or (u is not None and u < 0):
                return self("neg", self("div", self("neg", a), b))
            if v is not None and v != 0 and math.frexp(v)[0] in (0.5, -0.5):
                return self("mul", a, self.const(1 / v))  # exact: a power of two
        return None

    def balanced(self, op: str, terms: Sequence[Expr]) -> Expr:
        """All terms in one by an associative operation, in few steps that wait for another."""
        while len(terms) > 1:
            pairs = [self(op, a, b) for a, b in zip(terms[::2], terms[1::2], strict=False)]
            terms = [*pairs, *terms[len(terms) & ~1 :]]
        return terms[0]

    def split_constant(self, node: Expr) -> tuple[Expr, Expr]:
        """(f, c) with node = f + c, where no lane changes c, and f has no such addend."""
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


def _is_scaled(node: Expr) -> bool:
    """Whether it is a multiple by ±2, ±½ or so: exact, and far from what overflows."""
    factor = value_of(node.args[1]) if node.op == "mul" else None
    return factor is not None and math.frexp(abs(factor))[0] == 0.5 and 0.1 < abs(factor) < 10


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
