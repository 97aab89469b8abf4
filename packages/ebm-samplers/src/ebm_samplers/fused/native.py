"""Functions of generated modules as machine code, compiled by Numba once for all processes.

A generated module holds one function that Python calls (and what it calls), whose annotations are
its C signature: pointers and numbers of 64 bits. Numba compiles it; what is kept (`cache`), and
called, is the object code. To load it takes LLVM alone: a process that finds its kernels on disk
does not start Numba's compiler, which takes a second by itself.
"""

import ctypes
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import llvmlite.binding as llvm

from ebm_samplers.fused import cache

_C_TYPES = {"int64": ctypes.c_int64, "uint64": ctypes.c_uint64, "float64": ctypes.c_double}


@dataclass(frozen=True)
class Native:
    """A compiled function.

    Attributes:
        call: The function; takes numbers and, for pointers, addresses. Releases the GIL.
        address: Where it is in memory.
        cached: Whether it came from disk.
        seconds: What compiling, or loading, took.
        engine: Owns its memory.
    """

    call: Callable[..., None]
    address: int
    cached: bool
    seconds: float
    engine: Any


_known: dict[str, Native] = {}


def native(source: str, name: str) -> tuple[Native, bool]:
    """The function ``name`` of a generated module, and whether this process had it before.

    Args:
        source: Python source; what it imports must be a part of `cache.environment`.
        name: The function.
    """
    key = cache.key(source)
    if key in _known:
        return _known[key], True
    start = time.perf_counter()
    kept = cache.read(key)
    found = None if kept is None else _linked(*kept)
    cached = found is not None
    if found is None:
        about, code = _compiled(source, name)
        cache.write(key, about, code)
        found = _linked(about, code)
        assert found is not None
    call, address, engine = found
    _known[key] = Native(call, address, cached, time.perf_counter() - start, engine)
    return _known[key], False


def _linked(about: dict[str, Any], code: bytes) -> tuple[Callable[..., None], int, Any] | None:
    """The function in object code; None where something that it calls is missing."""
    _start_llvm()
    if any(llvm.address_of_symbol(symbol) is None for symbol in about["calls"]):
        return None
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _machine())
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    address = engine.get_function_address(about["symbol"])
    types: list[Any] = [_C_TYPES.get(name, ctypes.c_void_p) for name in about["arguments"]]
    return ctypes.CFUNCTYPE(None, *types)(address), address, engine


def _compiled(source: str, name: str) -> tuple[dict[str, Any], bytes]:
    import numba
    from numba import types

    space: dict[str, Any] = {}
    exec(compile(source, f"<{name}>", "exec"), space)
    function = space[name]
    arguments = tuple(function.__annotations__.values())
    options: dict[str, Any] = {"no_cpython_wrapper": True, **space["OPTIONS"]}
    compiled: Any = numba.njit(**options)(function)
    compiled.compile(types.void(*arguments))
    (result,) = compiled.overloads.values()
    text = result.library.get_llvm_str()
    about = {
        "symbol": result.fndesc.llvm_cfunc_wrapper_name,
        "arguments": [str(argument) for argument in arguments],
        "calls": re.findall(r"^declare [^@]*@\"?((?!llvm\.)[^\"(]+)", text, re.MULTILINE),
    }
    return about, result.library.serialize_using_object_code()[2][0]


def _machine() -> Any:
    return llvm.Target.from_triple(llvm.get_process_triple()).create_target_machine(jit=True)


def _start_llvm() -> None:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
