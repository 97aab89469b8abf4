"""Kernels as one function: procedures written out where they are called, loops over lanes joined.

A kernel is written as short procedures over rows of the tile (`kernels`), most of which end up as
loops over lanes. Compiled one by one, each loop would read from memory what the one before it wrote
there. Lanes do not touch each other, so that neighbouring loops over lanes are one loop: values
stay in registers, and one loop is quickly compiled.

What `expanded` does to the text of a module:

- a statement that calls a procedure becomes its body; local names are made unique;
- names of integer constants become their values, and arithmetic on them is done; tests of constants
  disappear;
- short loops around lanes (over the elements of a small state) are written out;
- loops over lanes that follow one another become one. Assignments to scalars between them move up,
  where no such loop writes what they read.
"""

import ast
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeGuard, TypeVar

UNROLLED = 9
"""Turns up to which a loop around lanes is written out: 2d + 1 rows of a state of four elements."""

LANE = "lane"
INSIDE = "inside a loop over lanes"
T = TypeVar("T", bound=ast.AST)

_FOLDED: dict[type, Callable[[int, int], int | bool]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.FloorDiv: lambda a, b: a // b,
    ast.RShift: lambda a, b: a >> b,
    ast.Eq: lambda a, b: a == b,
    ast.NotEq: lambda a, b: a != b,
    ast.Lt: lambda a, b: a < b,
    ast.LtE: lambda a, b: a <= b,
    ast.Gt: lambda a, b: a > b,
}


def expanded(
    source: str,
    entry: str,
    constants: Mapping[str, int],
    whole: Iterable[str],
    everywhere: int = 0,
) -> tuple[ast.FunctionDef, dict[str, int]]:
    """Function ``entry`` with all other functions of ``source`` written into it.

    Args:
        source: Functions; and assignments of names in terms of ``constants``, which are constants,
            too.
        entry: The function that stays.
        constants: Names of integers.
        whole: Procedures whose own loops stay as they are.
        everywhere: Turns up to which all other loops are written out, not only those around lanes:
            then constants are all that indexes a small tile, which compilers keep in registers.

    Returns:
        It, and all constants.
    """
    values = dict(constants)
    procedures: dict[str, ast.FunctionDef] = {}
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.FunctionDef):
            procedures[statement.name] = statement
        elif isinstance(statement, ast.Assign):
            assigned: dict[str, int] = {}
            exec(
                compile(ast.Module([statement], []), "<constants>", "exec"), dict(values), assigned
            )
            values |= assigned
    function = procedures.pop(entry)
    expander = _Expander(procedures, values, frozenset(whole), everywhere)
    names: dict[str, ast.expr] = {a.arg: ast.Name(a.arg) for a in function.args.args}
    expander.used.update(list(names))
    function.body = expander.procedure(function, names)
    return function, values


class _Expander:
    def __init__(
        self,
        procedures: dict[str, ast.FunctionDef],
        constants: Mapping[str, int],
        whole: frozenset[str],
        everywhere: int,
    ) -> None:
        self.procedures, self.constants, self.whole = procedures, constants, whole
        self.everywhere = everywhere
        self.used: Counter[str] = Counter()

    def procedure(self, function: ast.FunctionDef, names: dict[str, ast.expr]) -> list[ast.stmt]:
        """The body of a function whose parameters are ``names``."""
        names = names | {name: self._fresh(name) for name in assigned_names(function.body)}
        unroll = function.name not in self.whole
        return self._body(function.body, names, unroll)

    def _fresh(self, name: str) -> ast.expr:
        self.used[name] += 1
        return ast.Name(name if self.used[name] == 1 else f"{name}_{self.used[name]}")

    def _body(
        self,
        statements: list[ast.stmt],
        names: dict[str, ast.expr],
        unroll: bool,
    ) -> list[ast.stmt]:
        out: list[ast.stmt] = []
        for statement in statements:
            match statement:
                case ast.Expr(ast.Constant()):
                    pass  # a docstring
                case ast.Expr(ast.Call(ast.Name(name), arguments)) if name in self.procedures:
                    callee = self.procedures[name]
                    given = dict(
                        zip(
                            (parameter.arg for parameter in callee.args.args),
                            (self._folded(argument, names) for argument in arguments),
                            strict=callee.args.vararg is None,  # which takes what is not wanted
                        )
                    )
                    out += self.procedure(callee, given)
                case ast.For(ast.Name(counter), ast.Call(_, bounds), body):
                    bounds = [self._folded(bound, names) for bound in bounds]
                    turns = _turns(bounds)
                    lanes = is_lanes(statement)
                    around = unroll and any(is_lanes(node) for node in ast.walk(statement))
                    if not lanes and (around or INSIDE in names):
                        most = max(UNROLLED, self.everywhere)
                    else:
                        most = self.everywhere if unroll and not lanes else 0
                    if turns is not None and len(turns) <= most:
                        local = [] if INSIDE in names else _own(body)
                        for turn in turns:
                            fresh = {name: self._fresh(name) for name in local}
                            fresh[counter] = ast.Constant(turn)
                            out += self._body(body, names | fresh, unroll)
                    else:
                        inner = names
                        if lanes:
                            inner = names | {counter: ast.Name(LANE), INSIDE: ast.Name(LANE)}
                        out.append(
                            ast.For(
                                self._folded(statement.target, inner),
                                ast.Call(ast.Name("range"), bounds, []),
                                self._body(body, inner, unroll),
                                [],
                                lineno=0,
                            )
                        )
                case ast.If(test, body, orelse):
                    test = self._folded(test, names)
                    if isinstance(test, ast.Constant):
                        chosen = body if test.value else orelse
                        out += self._body(chosen, names, unroll)
                    else:
                        then = self._body(body, names, unroll)
                        other = self._body(orelse, names, unroll)
                        out.append(ast.If(test, then, other))
                case ast.While(test, body):
                    inside = self._body(body, names, unroll)
                    out.append(ast.While(self._folded(test, names), inside, []))
                case _:
                    out.append(self._folded(statement, names))
        return _joined(out)

    def _folded(self, node: T, names: dict[str, ast.expr]) -> T:
        return _Folding(names, self.constants).visit(_copied(node))  # type: ignore[no-any-return]


class _Folding(ast.NodeTransformer):
    """Puts names and constants in, and does the arithmetic of integers."""

    def __init__(self, names: Mapping[str, ast.expr], constants: Mapping[str, int]) -> None:
        self.names, self.constants = names, constants

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if node.id in self.names:
            new = _copied(self.names[node.id])
            if isinstance(new, ast.Name):
                new.ctx = node.ctx
            return new
        return ast.Constant(self.constants[node.id]) if node.id in self.constants else node

    def visit_BinOp(self, node: ast.BinOp) -> ast.expr:
        self.generic_visit(node)
        return _fold(node, node.left, node.op, node.right)

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.expr:
        self.generic_visit(node)
        first, second = node.values
        if isinstance(first, ast.Constant):
            return first if first.value is isinstance(node.op, ast.Or) else second
        return node

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        self.generic_visit(node)
        return _fold(node, node.left, node.ops[0], node.comparators[0])

    def visit_IfExp(self, node: ast.IfExp) -> ast.expr:
        self.generic_visit(node)
        if isinstance(node.test, ast.Constant):
            return node.body if node.test.value else node.orelse
        return node


def _fold(node: ast.expr, left: ast.expr, op: ast.AST, right: ast.expr) -> ast.expr:
    match left, right:
        case ast.Constant(int(a)), ast.Constant(int(b)) if type(op) in _FOLDED:
            return ast.Constant(_FOLDED[type(op)](a, b))
        case ast.Constant(0), _ if isinstance(op, ast.Add):
            return right
        case _, ast.Constant(0) if isinstance(op, ast.Add | ast.Sub):
            return left
        case _, ast.Constant(1) if isinstance(op, ast.Mult):
            return left
    return node


def _joined(statements: list[ast.stmt]) -> list[ast.stmt]:
    """Neighbouring loops over lanes as one."""
    out: list[ast.stmt] = []
    last: ast.For | None = None
    inside: set[str] = set()  # all names in the last loop
    written: set[str] = set()  # and those of what it writes
    for statement in statements:
        if is_lanes(statement):
            if last is None:
                last, inside, written = statement, set(), set()
                out.append(last)
            else:
                last.body += statement.body
            inside.update(names_in(statement))
            written.update(assigned_names(statement.body, elements=True))
        elif last is not None and _may_precede(statement, inside, written):
            out.insert(len(out) - 1, statement)
        else:
            last = None
            out.append(statement)
    return out


def _may_precede(statement: ast.stmt, inside: set[str], written: set[str]) -> bool:
    """Whether an assignment to a scalar after a loop may as well stand before it."""
    match statement:
        case ast.Assign([ast.Name(name)], value):
            return name not in inside and written.isdisjoint(names_in(value))
    return False


def _own(statements: list[ast.stmt]) -> list[str]:
    """The names that each turn of a loop assigns anew."""
    seen: set[str] = set()
    own = []
    for statement in statements:
        match statement:
            case ast.Assign([ast.Name(name)], value):
                seen.update(names_in(value))
                if name not in seen:
                    own.append(name)
        seen.update(names_in(statement))
    return own


def is_lanes(node: ast.AST) -> TypeGuard[ast.For]:
    """Whether it is a loop over lanes."""
    match node:
        case ast.For(_, ast.Call(_, [ast.Name("L")])) | ast.For(ast.Name("lane"), _):
            return True
    return False


def _turns(bounds: list[ast.expr]) -> range | None:
    numbers = [bound.value for bound in bounds if isinstance(bound, ast.Constant)]
    return range(*numbers) if len(numbers) == len(bounds) else None  # type: ignore[arg-type]


def assigned_names(statements: list[ast.stmt], elements: bool = False) -> list[str]:
    """Names that are assigned to; with ``elements``, also of what is assigned to in part."""
    found: dict[str, None] = {}
    for statement in statements:
        for node in ast.walk(statement):
            match node:
                case ast.Name(name, ast.Store()):
                    found[name] = None
                case ast.Subscript(ast.Name(name), _, ast.Store()) if elements:
                    found[name] = None
    return list(found)


def names_in(node: ast.AST) -> list[str]:
    """All names, as often as they occur."""
    return [part.id for part in ast.walk(node) if isinstance(part, ast.Name)]


def _copied(node: T) -> T:
    if not isinstance(node, ast.AST):
        return node
    fields: dict[str, Any] = {}
    for name, value in ast.iter_fields(node):
        fields[name] = (
            [_copied(part) for part in value]
            if isinstance(value, list)
            else (_copied(value) if isinstance(value, ast.AST) else value)
        )
    return type(node)(**fields)
