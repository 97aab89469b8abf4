"""Extrema that may lose NaN, since whatever uses them is NaN anyway.

The larger of two numbers takes one instruction; that it be NaN if either is takes three. In a sum
of exponentials about their maximum each term also has a way past the maximum, by which NaN comes
through. `unguarded` finds such extrema.
"""

from ebm_samplers.fused.graph import HEAVY, Expr, Pool, reachable

FREE = {"max": "above", "min": "below"}
"""What does the same where NaN may be lost."""

PASSES_NAN = HEAVY - {"pow"} | {"add", "sub", "mul", "div", "neg", "abs", "sqrt", "floor"}
"""Operations that are NaN if an argument is."""


def unguarded(pool: Pool, roots: list[Expr]) -> list[Expr]:
    """The same expressions, with extrema that may lose NaN where no root tells the difference."""
    nodes = reachable(roots)
    extrema = [node for node in nodes if node.op in FREE]
    if not extrema:
        return roots
    certain: dict[int, int] = {}  # sets of those whose NaN makes an expression NaN, as bits
    above: dict[int, int] = {}  # sets of those that lead to an expression
    for node in nodes:
        sets = [certain[a.number] for a in _arguments(node)]
        held, led = 0, 0
        if node.op in PASSES_NAN:
            for part in sets:
                held |= part
        elif node.op in FREE or node.op == "where":  # one of the last two, whichever it is
            held = sets[-1] & sets[-2]
        for a in _arguments(node):
            led |= above[a.number]
        certain[node.number] = held | 1 << node.number
        above[node.number] = led | 1 << node.number

    def shows(node: Expr, root: Expr) -> bool:
        """Whether a NaN there shows in the root without this extremum's, or another's, help."""
        if node.op in FREE:
            return all(shows(a, root) for a in _arguments(node))
        if node.op == "const":
            return node.args != ("nan",)
        return bool(certain[root.number] >> node.number & 1)

    free = {
        node.number
        for node in extrema
        if all(shows(node, r) for r in roots if above[r.number] >> node.number & 1)
    }
    return rewritten(pool, nodes, roots, free) if free else roots


def rewritten(pool: Pool, nodes: list[Expr], roots: list[Expr], free: set[int]) -> list[Expr]:
    """The roots with other operations in place of some extrema."""
    limit, pool.limit = pool.limit, None  # no larger than it was
    new: dict[int, Expr] = {}
    for node in nodes:
        old = _arguments(node)
        args = [new[a.number] for a in old]
        if node.number in free:
            new[node.number] = pool(FREE[node.op], *args)
        else:
            same = all(a is b for a, b in zip(old, args, strict=True))
            new[node.number] = node if same else pool(node.op, *args)
    pool.limit = limit
    return [new[root.number] for root in roots]


def _arguments(node: Expr) -> list[Expr]:
    return [a for a in node.args if isinstance(a, Expr)]
