"""Rows of the tile as local variables of a loop over lanes, and choices without branches.

After `expansion` a loop over lanes reads and writes rows many times. Here each row is loaded at
most once, before its first use, and stored at most once, at the end of the loop; a row that nothing
else in the function reads is not stored at all. Compilers have less to do, and the tile less
traffic.

Every assignment in such a loop is to a name of its own, so that no compiler has to find out which
of several assignments counts where. For the same reason, and because LLVM makes SIMD code of them,
choices between numbers are calls of ``select`` and not branches.
"""

import ast
from collections.abc import Iterator

from ebm_samplers.fused.expansion import LANE, assigned_names, is_lanes, names_in

TILE = "w"


def simplify(function: ast.FunctionDef, lanes: int) -> dict[str, str]:
    """Rewrite the loops over lanes in which all rows are known numbers.

    Returns:
        Names of numbers that the function uses now, and what they stand for.
    """
    loops = [node for node in ast.walk(function) if is_lanes(node) and _known_rows(node)]
    outside = _rows_outside(function, loops, lanes)
    plans = [(loop, *_uses(loop.body, lanes)) for loop in loops]
    carried = {row for _, first_reads, _ in plans for row in first_reads}  # from loop to loop
    taken = set(names_in(function)) - {name for loop in loops for name in assigned_names([loop])}
    for loop, first_reads, written in plans:
        kept = [row for row in written if outside is None or row in outside | carried]
        names = _Single(lanes, taken)
        body = [names.load(row) for row in first_reads]
        body += [names.statement(statement) for statement in loop.body]
        body += [names.store(row) for row in kept]
        loop.body = body
        loop.target = names.lane
    plain = _Plain()
    plain.visit(function)
    return {name: text for text, name in plain.numbers.items()}


def _is_tile(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id == TILE


def _row(node: ast.AST, lanes: int) -> int | None:
    """The row that an expression reads or writes in a loop over lanes."""
    match node:
        case ast.Subscript(ast.Name("w"), ast.Name("lane")):
            return 0
        case ast.Subscript(
            ast.Name("w"), ast.BinOp(ast.Constant(int(first)), ast.Add(), ast.Name("lane"))
        ):
            return first // lanes
    return None


def _tile_uses(node: ast.AST) -> Iterator[ast.Subscript]:
    for part in ast.walk(node):
        match part:
            case ast.Subscript(ast.Name("w")):
                yield part


def _known_rows(loop: ast.For) -> bool:
    return all(_row(use, 1) is not None for use in _tile_uses(loop)) and not any(
        isinstance(node, ast.For) for statement in loop.body for node in ast.walk(statement)
    )


def _uses(statements: list[ast.stmt], lanes: int) -> tuple[list[int], list[int]]:
    """Rows that are read before they are written, and rows that are written; in order."""
    reads: dict[int, None] = {}
    writes: dict[int, None] = {}
    for statement in statements:
        assert isinstance(statement, ast.Assign | ast.AugAssign)
        for part in ast.walk(statement.value):
            row = _row(part, lanes)
            if row is not None and row not in writes:
                reads[row] = None
        target = statement.targets[0] if isinstance(statement, ast.Assign) else statement.target
        row = _row(target, lanes)
        if row is not None:
            if isinstance(statement, ast.AugAssign) and row not in writes:
                reads[row] = None
            writes[row] = None
    return list(reads), list(writes)


def _rows_outside(function: ast.FunctionDef, loops: list[ast.For], lanes: int) -> set[int] | None:
    """Rows that are used elsewhere; None if that cannot be told."""
    inside = {id(use) for loop in loops for use in _tile_uses(loop)}
    found: set[int] = set()

    def visit(node: ast.AST, turns: dict[str, int]) -> bool:
        match node:
            case ast.For(ast.Name(counter), ast.Call(_, [ast.Constant(int(n))])):
                turns = turns | {counter: n}
            case ast.Call(_, arguments) if any(_is_tile(part) for part in arguments):
                return False
            case ast.Subscript(ast.Name("w"), index) if id(node) not in inside:
                rows = _range_of_rows(index, turns, lanes)
                if rows is None:
                    return False
                found.update(rows)
        return all(visit(child, turns) for child in ast.iter_child_nodes(node))

    return found if visit(function, {}) else None


def _range_of_rows(index: ast.AST, turns: dict[str, int], lanes: int) -> range | None:
    """The rows of ``(first + counter) * lanes + …``."""
    match index:
        case ast.BinOp(left, ast.Add() | ast.Sub(), _) if not isinstance(left, ast.Constant):
            return _range_of_rows(left, turns, lanes)
        case ast.BinOp(
            ast.BinOp(ast.Constant(int(first)), ast.Add(), ast.Name(counter)),
            ast.Mult(),
            ast.Constant(),
        ) if counter in turns:
            return range(first, first + turns[counter])
        case ast.BinOp(ast.Name(counter), ast.Mult(), ast.Constant()) if counter in turns:
            return range(turns[counter])
    return None


class _Single(ast.NodeTransformer):
    """Turns the body of a loop into assignments to names of their own, rows among them."""

    def __init__(self, lanes: int, taken: set[str]) -> None:
        self.lanes, self.taken = lanes, taken
        self.now: dict[str, ast.Name] = {}
        self.lane = self._new(LANE)

    def load(self, row: int) -> ast.stmt:
        """The row as a local variable."""
        return _assignment(self._new(f"r{row}"), self._element(row))

    def store(self, row: int) -> ast.stmt:
        """The other way round."""
        return _assignment(self._element(row), self.now[f"r{row}"])

    def statement(self, statement: ast.stmt) -> ast.stmt:
        """The same with names of now."""
        assert isinstance(statement, ast.Assign | ast.AugAssign)
        value = self.visit(statement.value)
        if isinstance(statement, ast.AugAssign):
            target: ast.expr = statement.target
            value = ast.BinOp(self.visit(target), statement.op, value)
        else:
            target = statement.targets[0]
        row = _row(target, self.lanes)
        if row is not None:
            return _assignment(self._new(f"r{row}"), value)
        assert isinstance(target, ast.Name)
        return _assignment(self._new(target.id), value)

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        row = _row(node, self.lanes)
        return self.generic_visit(node) if row is None else self.now[f"r{row}"]  # type: ignore[return-value]

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return self.now.get(node.id, node)

    def _new(self, name: str) -> ast.Name:
        new, number = name, 1
        while new in self.taken:
            number += 1
            new = f"{name}_{number}"
        self.taken.add(new)
        self.now[name] = ast.Name(new)
        return self.now[name]

    def _element(self, row: int) -> ast.Subscript:
        index = (
            ast.BinOp(ast.Constant(row * self.lanes), ast.Add(), self.lane) if row else self.lane
        )
        return ast.Subscript(ast.Name(TILE), index)


class _Plain(ast.NodeTransformer):
    """Choices as calls of ``select``; numbers of the kernel's dtype as names."""

    def __init__(self) -> None:
        self.numbers: dict[str, str] = {}

    def visit_IfExp(self, node: ast.IfExp) -> ast.expr:
        self.generic_visit(node)
        return ast.Call(ast.Name("select"), [node.test, node.body, node.orelse], [])

    def visit_Call(self, node: ast.Call) -> ast.expr:
        self.generic_visit(node)
        if ast.unparse(node.func) == "real" and set(names_in(node.args[0])) <= {"np"}:
            text = ast.unparse(node)
            return ast.Name(self.numbers.setdefault(text, f"k{len(self.numbers)}"))
        return node


def _assignment(target: ast.expr, value: ast.expr) -> ast.Assign:
    return ast.Assign([target], value, lineno=0)
