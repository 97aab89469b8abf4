"""Functions of generated modules as LLVM IR.

Kernels are written in a small part of Python: numbers and pointers, loops over ranges, choices,
calls of functions that are written likewise. To turn that into LLVM IR takes milliseconds; a
general compiler, which finds types by inference and knows of arrays and exceptions, takes seconds,
most of them to start. What stands elsewhere in Python is refused, by line.

Types follow from the arguments, statement after statement. A variable has one type wherever it is
carried from one turn of a loop, or out of a branch. Numbers meet as in Numba: integers of less than
64 bits widen to 64, and stay unsigned if both are; float32 with float32 is float32, with anything
wider, or an integer, float64. Integers do not overflow in a range; division by zero gives what
floating point says. ``a if c else b`` and ``a and b`` compute all their parts, so these must not
read memory that is not there. Pointers are indexed without a look at the length, and from the
front.

Functions that are called are written out at the call, and compiled with contraction alone: they may
count on the order of operations (`arithmetic`). Elsewhere ``a += b`` alone leaves LLVM the order of
terms, so that sums in memory become SIMD code. With more leave, it would cancel inf - inf.
"""

import ast
import functools
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import llvmlite.ir as ir
import numpy as np

from ebm_samplers.fused.operations import binary, compared, elementary, negation, unary
from ebm_samplers.fused.values import (
    LLVM,
    CannotCompile,
    External,
    Instruction,
    Value,
    cast,
    declared,
    llvm_type,
    select,
)  # fmt: skip

_CONTRACTION = ("contract",)


def compiled(
    source: str, name: str, space: Mapping[str, Any], flags: tuple[str, ...] = _CONTRACTION
) -> ir.Module:
    """The function ``name`` of a module's source as an LLVM module that exports it.

    Args:
        source: The module.
        name: A function of it; annotations give the types of all arguments, and it returns nothing.
        space: What running the module gave.
        flags: What LLVM may do to floating point.

    Raises:
        CannotCompile: If something in it is not known here.
    """
    tree = ast.parse(source)
    (function,) = (
        node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name
    )
    kinds = kinds_of(space[name])
    module = ir.Module(name)
    code = ir.Function(
        module, ir.FunctionType(ir.VoidType(), [llvm_type(k) for k in kinds.values()]), name
    )
    code.attributes.add("nounwind")
    builder = ir.IRBuilder(code.append_basic_block())
    given = {
        argument: Value(kind, part)
        for (argument, kind), part in zip(kinds.items(), code.args, strict=True)
    }
    writer = _Writer(builder, space, flags, function, given)
    writer.statements(function.body)
    builder.ret_void()
    return module


def kinds_of(function: Any) -> dict[str, str]:
    """The types of a function's arguments, by name."""
    return {name: str(kind) for name, kind in function.__annotations__.items()}


class _Writer:
    """Writes one function, or a call of one, into the function of the builder."""

    def __init__(
        self,
        builder: ir.IRBuilder,
        space: Mapping[str, Any],
        flags: tuple[str, ...],
        function: ast.FunctionDef,
        given: dict[str, Value],
    ) -> None:
        self.builder, self.space, self.flags = builder, space, flags
        self.assigned, self.carried = _assigned(function)
        self.places: dict[str, tuple[str, Any]] = {}
        self.scopes: list[dict[str, Value]] = [{}]
        for name, value in given.items():
            self._assign(name, value)

    # statements

    def statements(self, body: list[ast.stmt]) -> None:
        """Write a block."""
        for statement in body:
            match statement:
                case ast.Pass() | ast.Expr(ast.Constant()):
                    pass
                case ast.Expr(ast.Call() as call):
                    self._called(call)
                case ast.Assign(targets, value):
                    self._assignment(statement, targets, value)
                case ast.AnnAssign(target, _, ast.expr() as value):
                    self._assignment(statement, [target], value)
                case ast.AugAssign(target, op, value):
                    old, new = self.value(target), self.value(value)
                    loose = isinstance(op, ast.Add) and self.flags != _CONTRACTION
                    flags = (*self.flags, "reassoc") if loose else self.flags
                    self._store(
                        target, _given(statement, binary(self.builder, flags, op, old, new))
                    )
                case ast.For(ast.Name(counter), ast.Call(ast.Name("range"), bounds), inner, []):
                    self._loop(statement, counter, bounds, inner)
                case ast.While(test, inner, []):
                    self._while(test, inner)
                case ast.If(test, then, other):
                    self._if(test, then, other)
                case _:
                    raise _refused(statement)

    def _assignment(self, statement: ast.stmt, targets: list[ast.expr], value: ast.expr) -> None:
        match targets, value:
            case [ast.Tuple(targets)], ast.Tuple(values):
                results = tuple(map(self.value, values))
            case [ast.Tuple(targets)], ast.Call() as call:
                results = self._called(call)
            case [target], value:
                targets, results = [target], (self.value(value),)
            case _:
                raise _refused(statement)
        for target, result in zip(targets, results, strict=True):
            self._store(target, result)

    def _loop(
        self, statement: ast.For, counter: str, bounds: list[ast.expr], body: list[ast.stmt]
    ) -> None:
        numbers = [self._cast(self.value(bound), "int64") for bound in bounds]
        zero, one = self._constant("int64", 0), self._constant("int64", 1)
        start = zero if len(numbers) == 1 else numbers[0]
        stop = numbers[0] if len(numbers) == 1 else numbers[1]
        step = numbers[2] if len(numbers) == 3 else one
        if counter in self.assigned or step.known is None or step.known < 1:
            raise _refused(statement)
        b = self.builder
        inside, after = b.append_basic_block(), b.append_basic_block()
        before = b.block
        b.cbranch(b.icmp_signed("<", start.code, stop.code), inside, after)
        b.position_at_end(inside)
        turn = b.phi(LLVM["int64"])
        turn.add_incoming(start.code, before)
        with self._scope({counter: Value("int64", turn)}):
            self.statements(body)
        following = b.add(turn, step.code, flags=("nsw",))
        turn.add_incoming(following, b.block)
        b.cbranch(b.icmp_signed("<", following, stop.code), inside, after)
        b.position_at_end(after)

    def _while(self, test: ast.expr, body: list[ast.stmt]) -> None:
        b = self.builder
        inside, after = b.append_basic_block(), b.append_basic_block()
        b.cbranch(self._truth(test).code, inside, after)
        b.position_at_end(inside)
        with self._scope():
            self.statements(body)
        b.cbranch(self._truth(test).code, inside, after)
        b.position_at_end(after)

    def _if(self, test: ast.expr, then: list[ast.stmt], other: list[ast.stmt]) -> None:
        truth = self._truth(test)
        if truth.known is not None:
            with self._scope():
                self.statements(then if truth.known else other)
            return
        b = self.builder
        blocks = [b.append_basic_block() for _ in range(3)]
        b.cbranch(truth.code, *blocks[:2])
        for block, body in zip(blocks, (then, other), strict=False):
            b.position_at_end(block)
            with self._scope():
                self.statements(body)
            b.branch(blocks[2])
        b.position_at_end(blocks[2])

    @contextmanager
    def _scope(self, names: dict[str, Value] | None = None) -> Iterator[None]:
        self.scopes.append(names or {})
        yield
        self.scopes.pop()

    def _store(self, target: ast.expr, value: Value) -> None:
        match target:
            case ast.Name(name):
                self._assign(name, value)
            case ast.Subscript():
                kind, place = self._place(target)
                self.builder.store(self._cast(value, kind).code, place)
            case _:
                raise _refused(target)

    def _assign(self, name: str, value: Value) -> None:
        if name not in self.carried:
            self.scopes[-1][name] = value
            return
        if name not in self.places:
            with self.builder.goto_entry_block():
                self.places[name] = value.kind, self.builder.alloca(llvm_type(value.kind))
        kind, place = self.places[name]
        if kind != value.kind:
            raise CannotCompile(f"{name} is {kind}, and {value.kind} elsewhere")
        self.builder.store(value.code, place)

    # expressions

    def value(self, node: ast.expr) -> Value:
        """What an expression gives."""
        match node:
            case ast.Constant(bool() | int() | float() as number):
                return self._number(number)
            case ast.Name(name):
                return self._named(name)
            case ast.Attribute():
                return self._number(self._object(node))
            case ast.Subscript():
                kind, place = self._place(node)
                return Value(kind, self.builder.load(place))
            case ast.UnaryOp(ast.Not(), operand):
                return negation(self.builder, self._truth(operand))
            case ast.UnaryOp(op, operand):
                return _given(node, unary(self.builder, op, self.value(operand)))
            case ast.BinOp(left, op, right):
                a, b = self.value(left), self.value(right)
                return _given(node, binary(self.builder, self.flags, op, a, b))
            case ast.Compare(left, [op], [right]):
                a, b = self.value(left), self.value(right)
                return compared(self.builder, self.flags, op, a, b)
            case ast.BoolOp(op, parts):
                return self._all_or_any(op, parts)
            case ast.IfExp():
                return self._chosen(node)
            case ast.Call():
                results = self._called(node)
                if len(results) == 1:
                    return results[0]
        raise _refused(node)

    def _named(self, name: str) -> Value:
        for scope in reversed(self.scopes):
            if name in scope:
                return scope[name]
        if name in self.places:
            kind, place = self.places[name]
            return Value(kind, self.builder.load(place))
        if name in self.assigned or name not in self.space:
            raise CannotCompile(f"{name} has no value here")
        return self._number(self.space[name])

    def _object(self, node: ast.expr) -> Any:
        """What stands behind a name with dots."""
        match node:
            case ast.Name(name) if name in self.space:
                return self.space[name]
            case ast.Name("abs"):
                return abs
            case ast.Attribute(inner, name):
                return getattr(self._object(inner), name)
        raise _refused(node)

    def _number(self, number: Any) -> Value:
        """A number of Python or NumPy."""
        kind = {bool: "bool", int: "int64", float: "float64"}.get(type(number)) or str(
            getattr(number, "dtype", "")
        )
        if kind not in LLVM:
            raise CannotCompile(f"{number!r} is not a number")
        return self._constant(kind, number)

    def _constant(self, kind: str, number: Any) -> Value:
        plain = number.item() if isinstance(number, np.generic) else number
        return Value(kind, LLVM[kind](plain), plain)

    def _truth(self, node: ast.expr) -> Value:
        return self._cast(self.value(node), "bool")

    def _all_or_any(self, op: ast.boolop, parts: list[ast.expr]) -> Value:
        stop = isinstance(op, ast.Or)
        found: Value | None = None
        for part in parts:
            value = self._truth(part)
            if value.known is stop:
                return value
            if value.known is None and found is None:
                found = value
            elif value.known is None and found is not None:
                join = self.builder.or_ if stop else self.builder.and_
                found = Value("bool", join(found.code, value.code))
        return found or self._constant("bool", not stop)

    def _chosen(self, node: ast.IfExp) -> Value:
        test = self._truth(node.test)
        if test.known is not None:
            return self.value(node.body if test.known else node.orelse)
        return select(self.builder, test, self.value(node.body), self.value(node.orelse))

    def _place(self, node: ast.Subscript) -> tuple[str, Any]:
        """What kind of number a subscript means, and its address."""
        array = self.value(node.value)
        if not array.kind.endswith("*"):
            raise _refused(node)
        index = self._cast(self.value(node.slice), "int64")
        return array.kind[:-1], self.builder.gep(array.code, [index.code], inbounds=True)

    def _cast(self, value: Value, kind: str) -> Value:
        return cast(self.builder, value, kind)

    # calls

    def _called(self, node: ast.Call) -> tuple[Value, ...]:
        if isinstance(node.func, ast.Attribute) and node.func.attr == "view":
            value = self.value(node.func.value)
            kind = np.dtype(self._object(node.args[0])).name
            return (Value(kind, self.builder.bitcast(value.code, LLVM[kind])),)
        function = self._object(node.func)
        given = [self.value(argument) for argument in node.args]
        if isinstance(function, type) and issubclass(function, np.generic | float | int):
            return (self._cast(given[0], np.dtype(function).name),)
        if isinstance(function, Instruction):
            result = function.write(self.builder, *given)
            return () if result is None else (result,)
        if isinstance(function, External):
            self._called_outside(function.symbol, function.kinds, given)
            return ()
        function = getattr(function, "py_func", function)
        if isinstance(function, FunctionType):
            return self._written_out(function, given)
        return (_given(node, elementary(self.builder, self.flags, function, given)),)

    def _written_out(self, function: FunctionType, given: list[Value]) -> tuple[Value, ...]:
        definition = _definition(function)
        names = [argument.arg for argument in definition.args.args]
        space = function.__globals__
        writer = _Writer(
            self.builder, space, _CONTRACTION, definition, dict(zip(names, given, strict=True))
        )
        *body, last = definition.body
        if not isinstance(last, ast.Return) or last.value is None:
            raise _refused(last)
        writer.statements(body)
        parts = last.value.elts if isinstance(last.value, ast.Tuple) else [last.value]
        return tuple(map(writer.value, parts))

    def _called_outside(self, symbol: str, kinds: tuple[str, ...], given: list[Value]) -> None:
        arguments = [self._cast(v, k).code for v, k in zip(given, kinds, strict=True)]
        self.builder.call(declared(self.builder, symbol, ir.VoidType(), arguments), arguments)


def _assigned(function: ast.FunctionDef) -> tuple[set[str], set[str]]:
    """All variables, and those assigned to in several blocks: they live in memory for LLVM."""
    homes: dict[str, set[int]] = {a.arg: {id(function.body)} for a in function.args.args}

    def visit(body: list[ast.stmt]) -> None:
        for statement in body:
            targets: list[ast.expr] = []
            if isinstance(statement, ast.Assign):
                targets = statement.targets
            elif isinstance(statement, ast.AugAssign | ast.AnnAssign):
                targets = [statement.target]
            for target in targets:
                for part in target.elts if isinstance(target, ast.Tuple) else [target]:
                    if isinstance(part, ast.Name):
                        homes.setdefault(part.id, set()).add(id(body))
            for field in ("body", "orelse"):
                visit(getattr(statement, field, []))

    visit(function.body)
    return set(homes), {name for name, blocks in homes.items() if len(blocks) > 1}


@functools.cache
def _definition(function: FunctionType) -> ast.FunctionDef:
    (definition,) = ast.parse(inspect.getsource(function)).body
    assert isinstance(definition, ast.FunctionDef)
    return definition


def _given(node: ast.AST, value: Value | None) -> Value:
    """What an operation gave, unless nothing."""
    if value is None:
        raise _refused(node)
    return value


def _refused(node: ast.AST) -> CannotCompile:
    return CannotCompile(f"line {getattr(node, 'lineno', 0)}: {ast.unparse(node)}")
