# mypy: disable-error-code="no-untyped-def,no-untyped-call"
"""Generated modules compiled by Numba.

Kernels are written in the part of Python that Numba and `compiler` have in common. Numba finds all
types by inference, and knows much more; it takes some seconds where `compiler` takes a tenth of
one. So it is asked for what `compiler` refuses, and by the tests, which hold one against the other.
"""

import inspect
from typing import Any

import llvmlite.ir as ir

from ebm_samplers.fused.values import External, Instruction, Value, llvm_type


def compiled_by_numba(
    name: str, space: dict[str, Any], fastmath: set[str]
) -> tuple[dict[str, Any], bytes]:
    """The function ``name`` of a module: what is to be known about it, and its object code.

    Args:
        name: A function of the module; its annotations give the types of all arguments.
        space: What running the module gave; instructions in it are replaced by Numba's form.
        fastmath: What LLVM may do to floating point.

    Raises:
        numba.core.errors.NumbaError: If Numba cannot compile it.
    """
    import numba
    from numba import types

    from ebm_samplers.fused.native import calls

    for key, value in space.items():
        if isinstance(value, Instruction):
            space[key] = _intrinsic(value)
        elif isinstance(value, External):
            space[key] = types.ExternalFunction(
                value.symbol, types.void(*map(_numba_type, value.kinds))
            )
    function = space[name]
    kinds = list(map(str, function.__annotations__.values()))
    options: dict[str, Any] = {
        "error_model": "numpy", "nogil": True, "no_rewrites": True, "no_cpython_wrapper": True,
        "fastmath": fastmath,
    }  # fmt: skip
    dispatcher: Any = numba.njit(**options)(function)
    dispatcher.compile(types.void(*map(_numba_type, kinds)))
    (result,) = dispatcher.overloads.values()
    about = {
        "symbol": result.fndesc.llvm_cfunc_wrapper_name,
        "arguments": kinds,
        "calls": calls(result.library.get_llvm_str()),
    }
    return about, result.library.serialize_using_object_code()[2][0]


def _numba_type(kind: str) -> Any:
    from numba import types

    return types.CPointer(_numba_type(kind[:-1])) if kind.endswith("*") else getattr(types, kind)


def _kind(numba_type: Any) -> str:
    from numba import types

    if isinstance(numba_type, types.CPointer):
        return f"{_kind(numba_type.dtype)}*"
    numba_type = types.unliteral(numba_type)
    return "bool" if numba_type == types.boolean else str(numba_type)


def _intrinsic(instruction: Instruction) -> Any:
    """An instruction as a function that Numba knows how to write."""
    from numba import types
    from numba.extending import intrinsic

    names = list(inspect.signature(instruction.write).parameters)[1:]  # Numba wants to know them

    def typed(given: list[Any]) -> Any:
        kinds = list(map(_kind, given))
        result = _tried(instruction, kinds)

        def codegen(context, builder, signature, arguments):
            values = [Value(k, code) for k, code in zip(kinds, arguments, strict=True)]
            written = instruction.write(builder, *values)
            return context.get_dummy_value() if written is None else written.code

        wide = [types.unliteral(kind) for kind in given]
        return (types.void if result is None else _numba_type(result))(*wide), codegen

    space = {"typed": typed}
    listed = ", ".join(names)
    exec(f"def form(context, {listed}):\n    return typed([{listed}])", space)
    return intrinsic(space["form"])


def _tried(instruction: Instruction, kinds: list[str]) -> str | None:
    """The kind of number that an instruction gives, found out in a function of no use."""
    arguments = [llvm_type(kind) for kind in kinds]
    function = ir.Function(ir.Module(), ir.FunctionType(ir.VoidType(), arguments), "tried")
    builder = ir.IRBuilder(function.append_basic_block())
    values = [Value(k, code) for k, code in zip(kinds, function.args, strict=True)]
    written = instruction.write(builder, *values)
    return None if written is None else written.kind
