"""Python source of kernels from programs of expressions.

One module a sampler and energy: constants of the tile, the energy's functions, the text of the
kernel. Whatever a loop over lanes needs that no lane changes is computed before it; the loop itself
is straight code on unit strides within one array, with offsets that are constants or affine in the
loop counters, so that LLVM sees it may use SIMD.
"""

import ast
import math
from collections.abc import Mapping, Sequence

from ebm_samplers.fused.arithmetic import NUMPY_NAMES, function_names
from ebm_samplers.fused.expansion import UNROLLED, expanded
from ebm_samplers.fused.graph import Affine, Expr, Index, reachable
from ebm_samplers.fused.kernels import ALONE, CARRIED, ONE_LANE, USUAL, compiled_text
from ebm_samplers.fused.program import Loop, Nest, Product, Program
from ebm_samplers.fused.registers import simplify
from ebm_samplers.fused.sensitivities import Copy
from ebm_samplers.streams import Stream

OPERATORS = {
    "add": "+", "sub": "-", "mul": "*", "div": "/", "and": "&", "or": "|",
    "lt": "<", "le": "<=", "eq": "==", "ne": "!=",
}  # fmt: skip
VALUES = {
    "Reals": "reals(given[{}])", "Ints": "ints(given[{}])", "Int": "given[{}]",
    "Real": "real(double(given[{}]))", "Key": "np.uint64(given[{}])",
}  # fmt: skip
"""How a kernel finds its arguments in a block of numbers of 64 bits."""

ALIGNED = 64
"""Bytes of a cache line, and of the longest SIMD register."""

MANY_OPERATIONS = 100
"""Scalar operations of an energy from which registers of 512 bits bring a fifth to all samplers;
with fewer, they bring it to MALA alone, and cost a call of some leapfrogs 20 µs."""

SPEED = {"sensitivities": 2}
"""LLVM's levels of optimisation, if not 3, which unrolls the many loops of second derivatives: they
take far longer to compile then."""

LOCAL_NUMBERS = 2**13
"""Numbers of a tile up to which it lies on the stack."""

OWN_ROWS = ("BETA", "SIZE", "POTENTIAL", "CHANCE", "WILD", "TOTAL", "FREE")
EXTREMA = {"max": "<", "min": ">", "above": "<", "below": ">"}

PRELUDE = '''"""{title}; generated, do not edit."""

import math

import numpy as np

from ebm_samplers.fused import arithmetic
from ebm_samplers.fused.values import External
from ebm_samplers.fused.intrinsics import double, local_memory, pointer, predicted, select

Reals, Ints, Words = "{dtype}*", "int64*", "uint32*"
Int, Real, Key = "int64", "{dtype}", "uint64"
OPTIONS = {{"fastmath": {{"contract", "arcp", "nsz", "afn"}}}}
real = np.{dtype}
reals, ints, words_at = map(pointer, (Reals, Ints, Words))
'''

FILL_TEXT = """fill = External("{fill}", (Reals, Words, *(Int,) * 8, Key, Int))
"""
"""The function that makes noise; see `noise`."""


def fill_symbol(double: bool) -> str:
    """The name by which the linker knows it."""
    return f"ebm_samplers_fill_{'float64' if double else 'float32'}"


def module_source(
    program: Program,
    sampler: str,
    lanes: int,
    double: bool,
    title: str,
    dense: bool = False,
    copies: Sequence[Copy] = (),
) -> str:
    """The source of the module that runs ``sampler`` on an energy ("energy": it alone).

    Args:
        program: The energy.
        sampler: The kernel, see `kernels`.
        lanes: Chains of a tile.
        double: Whether states are float64.
        title: A line for whoever reads it.
        dense: Whether masses are matrices, not diagonals.
        copies: Where exports go.
    """
    chunk = 4 * max(1, 128 // (program.size * lanes))
    names = function_names(double)
    dtype = "float64" if double else "float32"
    header = PRELUDE.format(title=title, dtype=dtype)
    if sampler in SPEED:
        header += f'OPTIONS["speed"] = {SPEED[sampler]}\n'
    if sampler not in ALONE:
        header += f"exp = {names['exp']}\n" + FILL_TEXT.format(fill=fill_symbol(double))
    energy = energy_function(program, names, lanes)
    if copies:
        energy += "\n\n" + export_function(program, copies)
    constants = constants_of(program, lanes, chunk) | {"DENSE": int(dense)}
    alone = sampler in ONE_LANE and program.straight
    written_out = UNROLLED if alone and 2 * program.size < UNROLLED else 0  # LLVM does the others
    function, constants, numbers = expanded_kernel(energy, sampler, constants, written_out)
    known: dict[str, object] = {**numbers}
    normals, uniforms = 4 * constants["PLANE"], 4 * constants["UNIFORM_PLANE"]
    words = max(normals, uniforms)
    sizes = {"memory": constants["END"] * lanes, "words": words, "z": normals, "u": uniforms}
    sizes["stack"] = constants["STACK"]
    known |= _in_one_block(function, sizes, 8 if double else 4)
    body = ast.unparse(ast.fix_missing_locations(function)) + "\n"
    known |= {"ROWS": constants["END"], "D": program.size, "L": lanes}
    lines = [f"{name} = {value}" for name, value in known.items()]
    lines.append("local = local_memory(ROWS * L)")
    lines.append(f"accepted = {'predicted' if lanes == 1 else 'select'}")
    parts = [header, *lines, helper_functions(program), "", "", offset_function(program), "", body]
    return "\n".join(parts)


def constants_of(program: Program, lanes: int, chunk: int) -> dict[str, int]:
    """The constants of the tile, see `kernels.tile`."""
    size = program.size
    return {
        "L": lanes,
        "SHIFT": lanes.bit_length() - 1,
        "D": size,
        "X": 0,
        "G": size,
        "E": 2 * size,
        "OWN": program.n_rows,
        "LOCAL_ROWS": LOCAL_NUMBERS // lanes,
        "OPERATIONS": program.n_operations,
        "MANY_OPERATIONS": MANY_OPERATIONS,
        "LOOPED": int(not program.straight),
        "CHUNK": chunk,
        "PLANE": size * chunk // 4 * lanes,
        "UNIFORM_PLANE": chunk // 4 * lanes,
        **{name: program.n_rows + i for i, name in enumerate(OWN_ROWS)},
        "STATISTICS": USUAL,
        "STACK": 0,
        "TREES": 0,
        "COALESCED": 0,
        "DENSE": 0,
        **{stream.name: int(stream) for stream in Stream},
    }


def expanded_kernel(
    energy: str, sampler: str, constants: Mapping[str, int], everywhere: int = 0
) -> tuple[ast.FunctionDef, dict[str, int], dict[str, str]]:
    """The kernel of a sampler with the function of an energy written into it.

    Args:
        energy: What `energy_function` gave.
        sampler: The kernel, see `kernels`.
        constants: What `constants_of` gave.
        everywhere: Turns up to which all loops but the energy's are written out.

    Returns:
        The function ``chains``; all constants; names of numbers in it, and what they stand for.
    """
    constants = {**constants, "CARRIED": CARRIED.get(sampler, 0) * constants["D"]}
    texts = [energy, *map(compiled_text, ("tile", sampler))]
    if sampler not in ALONE:
        texts.append(compiled_text("chains"))
    text = "\n\n".join(texts)
    whole = ["energy_and_gradient", "export"]
    function, known = expanded(text, "chains", constants, whole, everywhere)
    return function, known, simplify(function, constants["L"])


def _in_one_block(
    function: ast.FunctionDef, sizes: dict[str, int], width: int
) -> dict[str, object]:
    """Give a kernel four arguments: to convert some thirty costs a call more than many a run.

    Args:
        function: The kernel; changed.
        sizes: Of the arrays that it works in, in numbers. They lie one after the other.
        width: Bytes of a number.

    Returns:
        Names and values for its module: ``ARGUMENTS``, the kinds of the arguments that now stand
        in ``given``, by name, and ``MEMORY``, the bytes of the arrays.
    """
    taken: list[ast.arg] = []
    kinds: dict[str, str] = {}
    lines, memory = [], 0
    for argument in function.args.args:
        assert isinstance(argument.annotation, ast.Name)
        name, kind = argument.arg, argument.annotation.id
        if name in sizes:
            at = {"Reals": "reals", "Words": "words_at"}[kind]
            lines.append(f"{name} = {at}(room + {memory})")
            memory += -(-sizes[name] * width // ALIGNED) * ALIGNED
        elif name in ("first_tile", "last_tile"):
            taken.append(argument)
        else:
            lines.append(f"{name} = {VALUES[kind].format(len(kinds))}")
            kinds[name] = kind
    names = {node.id for node in ast.walk(function) if isinstance(node, ast.Name)}
    used = [line for line in lines if line.split(" = ")[0] in names]
    function.body[:0] = ast.parse("\n".join(used)).body
    first = [ast.arg("given", ast.Name("Ints")), ast.arg("room", ast.Name("Int"))]
    function.args.args[:] = [*first, *taken]
    return {"ARGUMENTS": kinds, "MEMORY": memory}


def helper_functions(program: Program) -> str:
    """Definitions of what the energy needs beside arithmetic."""
    sizes = {(n.n_inner, n.n_outputs) for n in program.nests if isinstance(n, Product)}
    lines = ["from ebm_samplers.fused.loops import keep_loops"]
    lines += [
        "from ebm_samplers.fused.processor import use_long_registers, work_as_before, work_fast"
    ]
    lines += ["from ebm_samplers.fused.products import tile_product\n"] if sizes else []
    lines += [f"product_{k}_{n} = tile_product({k}, {n}, L)" for k, n in sorted(sizes)]
    return "\n".join(lines)


def energy_function(program: Program, names: dict[str, str], lanes: int) -> str:
    """The function that computes the tile's rows of energy and gradient."""
    lines = ["def energy_and_gradient(w, p):"]
    for nest in program.nests_for(lanes):
        lines += _product_lines(nest) if isinstance(nest, Product) else _nest_lines(nest, names)
    return "\n".join(lines) + "\n"


def export_function(program: Program, copies: Sequence[Copy]) -> str:
    """The procedure that copies a tile's exports into an array ``(row, chain)``."""
    lines = ["def export(w, exported, tile, stride):"]
    for copy in copies:
        (n, m), (step, inner), first = copy.counts, copy.steps, program.exports[copy.export]
        lines += [
            f"    for i in range({n}):",
            f"        for j in range({m}):",
            f"            at = ({copy.first} + {step} * i + {inner} * j) * stride + tile * L",
            "            for l in range(L):",
            f"                exported[at + l] = w[({first} + {m} * i + j) * L + l]",
        ]
    return "\n".join(lines) + "\n"


def offset_function(program: Program) -> str:
    """The function that gives the part of the energy that no state changes.

    It is not compiled: Python's way to a few numbers is shorter.
    """
    assert program.offset is not None
    text = _Text(NUMPY_NAMES, "np.float64")
    value = text.all([program.offset], varying=False)[0]
    body = [*text.lines, f"return {value}"]
    if text.lines:
        body = ['with np.errstate(all="ignore"):', *(f"    {line}" for line in body)]
    return "\n".join(["def energy_offset(p):", *(f"    {line}" for line in body)]) + "\n"


def _loop_lines(loops: Sequence[Loop]) -> tuple[list[str], str]:
    lines, indent = [], "    "
    for loop in loops:
        lines.append(
            f"{indent}for {loop.counter} in range({loop.start}, {loop.stop}, {loop.step}):"
        )
        indent += "    "
    return lines, indent


def _product_lines(product: Product) -> list[str]:
    lines, indent = _loop_lines(product.loops)
    call = f"product_{product.n_inner}_{product.n_outputs}"
    return [*lines, f"{indent}{call}(w, p, {product.out}, {product.row}, {product.matrix})"]


def _nest_lines(nest: Nest, names: dict[str, str]) -> list[str]:
    roots = [store.value for store in nest.stores]
    lanes, loops = "range(L)", nest.loops
    if loops and _in_step(nest, loops[-1].counter):
        # rows that follow each other are one long row: fewer, longer loops for SIMD
        lanes = f"range({loops[-1].start} * L, {loops[-1].stop} * L)"
        at_zero, loops = loops[-1].counter, loops[:-1]
    else:
        at_zero = ""
    lines, indent = _loop_lines(loops)
    text = _Text(names, "real", at_zero)
    text.all(roots, varying=False)
    before = len(text.lines)
    values = text.all(roots, varying=True)
    lines += [indent + line for line in text.lines[:before]]
    lines.append(f"{indent}for l in {lanes}:")
    indent += "    "
    lines += [indent + line for line in text.lines[before:]]
    for store, value in zip(nest.stores, values, strict=True):
        place = text.place(store.row)
        if store.op in EXTREMA:
            value = _extremum(store.op, place, value)
        elif store.op and store.op != "add":
            value = f"{place} {OPERATORS[store.op]} {value}"
        lines.append(f"{indent}{place} {'+=' if store.op == 'add' else '='} {value}")
    return lines


def _in_step(nest: Nest, counter: str) -> bool:
    """Whether each turn of the innermost loop does to the next rows what the last did to its."""
    if nest.loops[-1].step != 1:
        return False
    for node in reachable(store.value for store in nest.stores):
        moves = [_rate(index, counter) for index in node.args if isinstance(index, int | Affine)]
        if (node.op == "row" and moves != [1]) or (node.op == "param" and moves != [0]):
            return False
    return all(_rate(store.row, counter) == 1 for store in nest.stores)


def _rate(index: Index, counter: str) -> int:
    return 0 if isinstance(index, int) else dict(index.terms).get(counter, 0)


def _times_lanes(index: Index) -> str:
    return f"{index} * L" if isinstance(index, int) else f"({index}) * L"


class _Text:
    """Assignments that compute expressions."""

    def __init__(self, names: dict[str, str], real: str, at_zero: str = "") -> None:
        self.names = names
        self.real = real
        self.at_zero = at_zero
        self.lines: list[str] = []
        self.known: dict[int, str] = {}

    def all(self, roots: list[Expr], varying: bool) -> list[str]:
        """Compute what is reachable, and give the roots' names.

        With ``varying`` False only what no lane changes is computed.
        """
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

    def place(self, row: Index) -> str:
        """The lane's element of a row; the counter ``at_zero`` is part of the lane's number."""
        if isinstance(row, Affine) and self.at_zero:
            row += Affine(0, ((self.at_zero, -1),))
        return f"w[{_times_lanes(row)} + l]"

    def _value(self, node: Expr) -> str:
        if node.op == "const":
            number = float(node.args[0])
            inner = node.args[0] if math.isfinite(number) else _infinite(number)
            return f"{self.real}({inner})"
        if node.op == "bool":
            return str(node.args[0])
        if node.op == "row":
            return self.place(node.args[0])
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
        if node.op in EXTREMA:
            return _extremum(node.op, *args)
        if node.op == "isnan":
            return f"{args[0]} != {args[0]}"
        if node.op == "pow" and "pow" not in self.names:
            return f"{self.real}({args[0]} ** {args[1]})"
        return f"{self.real}({self.names[node.op]}({', '.join(args)}))"


def _extremum(op: str, a: str, b: str) -> str:
    """The larger or smaller, NaN if either is NaN; "above" and "below" may lose NaN.

    In comparisons one at a time: "or" would be a branch, and keep LLVM from using SIMD.
    """
    plain = f"{b} if {a} {EXTREMA[op]} {b} else {a}"
    return plain if op in ("above", "below") else f"({plain}) if {b} == {b} else {b}"


def _infinite(number: float) -> str:
    return "np.nan" if math.isnan(number) else "np.inf" if number > 0 else "-np.inf"
