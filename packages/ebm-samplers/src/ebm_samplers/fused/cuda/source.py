"""The text of a kernel for CUDA devices.

It is that of the CPU with one lane, in which a thread finds its chain and its memory by itself: the
loop over tiles becomes one over chains a grid apart, and the arrays to work in are the thread's
own. Numbers that it indexes by constants alone end up in registers.
"""

import ast

from ebm_samplers.fused.arithmetic import function_names
from ebm_samplers.fused.codegen import (
    constants_of,
    energy_function,
    expanded_kernel,
    offset_function,
)
from ebm_samplers.fused.program import Product, Program

CHUNK = 4
"""Steps whose noise is made at once: the fewest that use all of each block."""

WRITTEN_OUT = 33
"""Turns up to which loops are written out: 2d + 1 for states of 16 elements."""

PROLOGUE = """
first_tile = cuda.grid(1)
last_tile = n_chains
memory = memory_of_tile()
z = memory_of_normals()
u = memory_of_uniforms()
words = z
stack = memory_of_stack()
"""
OWN = {"first_tile", "last_tile", "memory", "z", "u", "words", "stack"}


def device_source(
    program: Program, sampler: str, double: bool, title: str, dense: bool = False
) -> str:
    """The source of the module that runs ``sampler`` on an energy ("energy": it alone).

    It is run in a namespace with what `device.names` gives, and has

    - ``chains``, the kernel; ``ARGUMENTS``, the kinds of its arguments by name;
    - ``ROWS``, ``NORMALS``, ``UNIFORMS``, ``STACK``: how much memory a thread needs, and
      ``PRODUCTS``, the sizes of the products that it calls;
    - ``energy_offset``, as on the CPU.
    """
    constants = constants_of(program, 1, CHUNK)
    constants |= {"COALESCED": 1, "LOCAL_ROWS": 2**30, "DENSE": int(dense)}
    energy = energy_function(
        program, function_names(double) | {"floor": "floor", "pow": "power"}, 1
    )
    function, constants, names = expanded_kernel(
        energy, sampler, constants, WRITTEN_OUT if program.straight else 0
    )
    arguments = {
        argument.arg: argument.annotation.id
        for argument in function.args.args
        if argument.arg not in OWN and isinstance(argument.annotation, ast.Name)
    }
    function.args.args[:] = [ast.arg(name) for name in arguments]
    _spread_over_threads(function)
    used = {node.id for node in ast.walk(function) if isinstance(node, ast.Name)}
    prologue = ast.parse(PROLOGUE).body
    function.body[:0] = [
        line
        for line in prologue
        if isinstance(line, ast.Assign)
        and isinstance(line.targets[0], ast.Name)
        and line.targets[0].id in used
    ]
    offset = offset_function(program)
    values: dict[str, object] = {
        **names,
        "ARGUMENTS": arguments,
        "ROWS": constants["END"],
        "NORMALS": 4 * constants["PLANE"],
        "UNIFORMS": 4 * constants["UNIFORM_PLANE"],
        "STACK": constants["STACK"],
        "OFFSET_VARIES": "p[" in offset,
        "PRODUCTS": sorted(
            {(n.n_inner, n.n_outputs) for n in program.nests if isinstance(n, Product)}
        ),
    }
    lines = [f'"""{title}; generated, do not edit."""\n']
    lines += [f"{name} = {value}" for name, value in values.items()]
    body = ast.unparse(ast.fix_missing_locations(function))
    return "\n".join([*lines, "", "", offset, "", body]) + "\n"


def _spread_over_threads(function: ast.FunctionDef) -> None:
    """Let the loop over tiles go on with the tile a grid further on."""
    (loop,) = (
        node
        for node in ast.walk(function)
        if isinstance(node, ast.For)
        and isinstance(node.iter, ast.Call)
        and any(isinstance(a, ast.Name) and a.id == "first_tile" for a in node.iter.args)
    )
    assert isinstance(loop.iter, ast.Call)
    loop.iter.args.append(ast.parse("cuda.gridsize(1)", mode="eval").body)
