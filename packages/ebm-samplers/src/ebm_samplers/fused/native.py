"""Functions of generated modules as machine code, compiled once for all processes.

A generated module holds one function that Python calls (and what it calls), whose annotations are
its C signature: pointers and numbers of 64 bits. `compiler` writes it in LLVM's language, LLVM
makes object code of it, in one round of optimisation, and this is kept (`cache`), and called. What
`compiler` refuses Numba compiles (`with_numba`).
"""

import ctypes
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import llvmlite.binding as llvm

from ebm_samplers.fused import cache
from ebm_samplers.fused.compiler import compiled, kinds_of
from ebm_samplers.fused.values import CannotCompile

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

COMPILING = threading.RLock()
"""Held by whoever traces, generates or compiles: one at a time, so that none does it twice, and
since parts of it (Python's own parser among them) do not bear two threads."""


def native(source: str, name: str) -> tuple[Native, bool]:
    """The function ``name`` of a generated module, and whether this process had it before.

    Args:
        source: Python source; what it imports must be a part of `cache.environment`.
        name: The function.
    """
    key = cache.key(source)
    with COMPILING:
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
    if any(llvm.address_of_symbol(symbol) is None for symbol in about["calls"]):
        return None
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), this_machine())
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    address = engine.get_function_address(about["symbol"])
    types: list[Any] = [_C_TYPES.get(name, ctypes.c_void_p) for name in about["arguments"]]
    return ctypes.CFUNCTYPE(None, *types)(address), address, engine


def _compiled(source: str, name: str) -> tuple[dict[str, Any], bytes]:
    """What is to be known about the function, and its object code."""
    space: dict[str, Any] = {}
    exec(compile(source, f"<{name}>", "exec"), space)
    fastmath = space["OPTIONS"]["fastmath"]
    try:
        text = str(compiled(source, name, space, tuple(sorted(fastmath))))
    except CannotCompile:
        from ebm_samplers.fused.with_numba import compiled_by_numba

        return compiled_by_numba(name, space, fastmath)
    module, machine = llvm.parse_assembly(text), this_machine()
    module.data_layout = str(machine.target_data)
    module.verify()
    level = space["OPTIONS"].get("speed", 3)
    options = llvm.create_pipeline_tuning_options(speed_level=level)
    options.loop_vectorization, options.slp_vectorization = True, False
    passes = llvm.create_pass_builder(machine, options)
    first = llvm.create_new_module_pass_manager()
    first.add_instruction_combine_pass()  # without it, some kernels of one lane are slower by 15 %
    first.run(module, passes)
    passes.getModulePassManager().run(module, passes)
    about = {
        "symbol": name,
        "arguments": list(kinds_of(space[name]).values()),
        "calls": calls(str(module)),
    }
    return about, machine.emit_object(module)


def calls(text: str) -> list[str]:
    """The functions outside it that a module in LLVM's language calls."""
    return re.findall(r"^declare [^@]*@\"?((?!llvm\.)[^\"(]+)", text, re.MULTILINE)


def this_machine() -> Any:
    """This computer's processor, with all that it can do."""
    _start_llvm()
    target = llvm.Target.from_triple(llvm.get_process_triple())
    intel = target.name.startswith("x86")
    return target.create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
        opt=3,
        reloc="static" if intel else "default",
        codemodel="jitdefault",
        jit=True,
    )


def _start_llvm() -> None:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
