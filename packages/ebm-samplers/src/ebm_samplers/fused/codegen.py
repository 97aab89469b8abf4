"""Python source for Numba from programs of expressions.

One module a sampler and energy: constants of the tile, the energy's functions, the text of the kernel. Whatever a loop
over lanes needs that no lane changes is computed before it; the loop itself is straight code on unit strides within
one array, with offsets that are constants or affine in the loop counters, so that LLVM sees it may use SIMD.
"""

import math
from collections.abc import Collection, Iterable
from pathlib import Path

from .arithmetic import function_names
from .graph import Expr, Index, Nest, Program, reachable

OPERATORS = {
    "add": "+", "sub": "-", "mul": "*", "div": "/", "lt": "<", "le": "<=", "eq": "==", "ne": "!=", "and": "and", "or": "or",
}  # fmt: skip
KERNELS = Path(__file__).parent / "kernels"
MARK = "# compiled -"

HEADER = '''"""{title}; generated, do not edit."""

import math

import numba
import numpy as np

from {package} import arithmetic
from {package}.noise import fill_normals_{dtype} as fill_normals
from {package}.noise import fill_uniforms, fill_words

L, SHIFT, D = {lanes}, {shift}, {size}
X, G, E, OWN = 0, {size}, {energy_row}, {rows}
ROWS, CHUNK, PLANE = {rows}, {chunk}, {plane}
BETA, POTENTIAL, CHANCE, WILD, TOTAL, SIZE, FREE = (OWN + i for i in range(7))
NOISE, MOMENTUM, ACCEPT = {streams}
real = np.{dtype}
exp = {exp}


def compiled(function, cache=False):
    return numba.njit(
        function,
        cache=cache,
        error_model="numpy",
        nogil=True,
        fastmath={{"contract", "arcp", "nsz", "afn", "reassoc"}},
    )


def entry(function):
    return compiled(function, "__file__" in globals())

'''


def module_source(program: Program, sampler: str, lanes: int, double: bool, package: str, title: str) -> str:
    """The source of the module that runs ``sampler`` ("" for the energy alone) on an energy."""
    from ebm_samplers.streams import Stream

    size = program.size
    chunk = 4 * max(1, 128 // (size * lanes))
    names = function_names(double)
    header = HEADER.format(
        title=title,
        package=package,
        lanes=lanes,
        shift=lanes.bit_length() - 1,
        size=size,
        energy_row=2 * size,
        rows=program.n_rows,
        chunk=chunk,
        plane=size * chunk // 4 * lanes,
        streams=f"{int(Stream.NOISE)}, {int(Stream.MOMENTUM)}, {int(Stream.ACCEPT)}",
        dtype="float64" if double else "float32",
        exp=names["exp"],
    )
    energy_row, gradient_rows = {2 * size}, set(range(size, 2 * size))
    wanted = {
        "langevin": (("energy", energy_row), ("gradient", gradient_rows)),
        "energy": (("energy_and_gradient", energy_row | gradient_rows),),
    }.get(sampler, (("energy_and_gradient", energy_row | gradient_rows),))
    functions = [energy_function(program, name, rows, names) for name, rows in wanted]
    texts = [_compiled_text("tile"), _compiled_text(sampler)]
    return header + "\n\n".join([*functions, offset_function(program, names), *texts])


def energy_function(program: Program, name: str, wanted: Collection[int], names: dict[str, str]) -> str:
    """The function that computes some rows of the tile."""
    lines = ["@compiled", f"def {name}(w, p):"]
    for nest in _needed(program.nests, set(wanted)):
        lines += _nest_lines(nest, names)
    return "\n".join(lines) + "\n"


def offset_function(program: Program, names: dict[str, str]) -> str:
    """The function that gives the part of the energy that no state changes, in float64."""
    assert program.offset is not None
    text = _Text(names, "np.float64")
    value = text.all([program.offset], varying=False)[0]
    body = [f"    {line}" for line in text.lines]
    return "\n".join(["@entry", "def energy_offset(p):", *body, f"    return np.float64({value})"]) + "\n"


def _compiled_text(kernel: str) -> str:
    text = (KERNELS / f"{kernel}.py").read_text()
    return text[text.index("\n", text.index(MARK)) + 1 :].strip("\n") + "\n"


def _needed(nests: list[Nest], wanted: set[int]) -> list[Nest]:
    """The nests on which the wanted rows depend, each with the stores that matter."""
    kept = []
    for nest in reversed(nests):
        stores = tuple(store for store in nest.stores if not wanted.isdisjoint(_rows(store.row, nest)))
        if stores:
            for node in reachable(store.value for store in stores):
                if node.op == "row":
                    wanted.update(_rows(node.args[0], nest))
            kept.append(Nest(nest.loops, stores))
    return kept[::-1]


def _rows(index: Index, nest: Nest) -> Iterable[int]:
    if isinstance(index, int):
        return (index,)
    ends = {loop.counter: (loop.start, loop.start + (len(range(loop.start, loop.stop, loop.step)) - 1) * loop.step)
            for loop in nest.loops}
    low = index.constant + sum(min(k * end for end in ends[c]) for c, k in index.terms)
    high = index.constant + sum(max(k * end for end in ends[c]) for c, k in index.terms)
    return range(low, high + 1)


def _nest_lines(nest: Nest, names: dict[str, str]) -> list[str]:
    lines = []
    indent = "    "
    for loop in nest.loops:
        lines.append(f"{indent}for {loop.counter} in range({loop.start}, {loop.stop}, {loop.step}):")
        indent += "    "
    text = _Text(names, "real")
    roots = [store.value for store in nest.stores]
    text.all(roots, varying=False)
    before = len(text.lines)
    values = text.all(roots, varying=True)
    lines += [indent + line for line in text.lines[:before]]
    lines.append(f"{indent}for l in range(L):")
    indent += "    "
    lines += [indent + line for line in text.lines[before:]]
    for store, value in zip(nest.stores, values, strict=True):
        place = f"w[{_times_lanes(store.row)} + l]"
        if store.op in ("max", "min"):
            sign = "<" if store.op == "max" else ">"
            value = f"{value} if {place} {sign} {value} else {place}"
        elif store.op:
            value = f"{place} {OPERATORS[store.op]} {value}"
        lines.append(f"{indent}{place} = {value}")
    return lines


def _times_lanes(index: Index) -> str:
    return f"{index} * L" if isinstance(index, int) else f"({index}) * L"


class _Text:
    """Assignments that compute expressions."""

    def __init__(self, names: dict[str, str], real: str) -> None:
        self.names = names
        self.real = real
        self.lines: list[str] = []
        self.known: dict[int, str] = {}

    def all(self, roots: list[Expr], varying: bool) -> list[str]:
        """Compute what is reachable; with ``varying`` False only what no lane changes. Gives the roots' names."""
        for node in reachable(roots):
            if node.number in self.known or (node.varies and not varying):
                continue
            value = self._value(node)
            if node.op in ("const", "bool"):
                self.known[node.number] = value
            else:
                name = self.known[node.number] = f"t{node.number}"
                self.lines.append(f"{name} = {value}")
        return [self.known.get(root.number, "") for root in roots]

    def _value(self, node: Expr) -> str:
        if node.op == "const":
            number = float(node.args[0])
            inner = node.args[0] if math.isfinite(number) else _infinite(number)
            return f"{self.real}({inner})"
        if node.op == "bool":
            return str(node.args[0])
        if node.op == "row":
            return f"w[{_times_lanes(node.args[0])} + l]"
        if node.op == "param":
            index = node.args[0]
            return f"p[{index}]" if self.real == "real" else f"np.float64(p[{index}])"
        args = [self.known[a.number] for a in node.args]
        if node.op in OPERATORS:
            return f"{args[0]} {OPERATORS[node.op]} {args[1]}"
        if node.op == "neg":
            return f"-{args[0]}"
        if node.op == "abs":
            return f"abs({args[0]})"
        if node.op == "where":
            return f"{args[1]} if {args[0]} else {args[2]}"
        if node.op in ("max", "min"):  # one comparison: "or" would be a branch, and keep LLVM from using SIMD
            sign = "<" if node.op == "max" else ">"
            return f"{args[1]} if {args[0]} {sign} {args[1]} else {args[0]}"
        if node.op == "isnan":
            return f"{args[0]} != {args[0]}"
        if node.op == "pow":
            return f"{self.real}({args[0]} ** {args[1]})"
        return f"{self.real}({self.names[node.op]}({', '.join(args)}))"


def _infinite(number: float) -> str:
    return "np.nan" if math.isnan(number) else "np.inf" if number > 0 else "-np.inf"
