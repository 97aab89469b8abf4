"""How a kernel has the processor work: without numbers below the normal ones; in what registers.

Numbers below the smallest normal one (1e-38 in float32) cost a processor of Intel some 150 cycles
each, for all the numbers of its register. A mixture, or anything else with exponentials, meets them
in most steps. While a kernel runs they are 0, as they are in XLA's code.
"""

import functools
import platform
from typing import Any, NamedTuple

import llvmlite.binding as llvm
import llvmlite.ir as ir

from ebm_samplers.fused.values import Instruction, Value

FLUSHES = platform.machine().lower() in ("x86_64", "amd64")
TINY_TO_ZERO = 0x8040
"""Of results, and of what is read; bits of the register MXCSR."""


class Registers(NamedTuple):
    """Those for SIMD: how many, and how many bytes each holds."""

    number: int
    n_bytes: int


@functools.cache
def registers() -> Registers:
    """What this processor has.

    Code for longer or for more registers than there are moves its sums to memory and back.
    """
    if not FLUSHES:
        return Registers(32, 16)  # of Arm
    features: Any = llvm.get_host_cpu_features()
    if features.get("avx512f"):
        return Registers(32, 64)
    return Registers(16, 32 if features.get("avx") else 16)


@Instruction
def work_fast(builder: ir.IRBuilder) -> Value:
    """A kernel's first statement; gives what `work_as_before` wants."""
    if not FLUSHES:
        return Value("uint32", ir.Constant(ir.IntType(32), 0))
    before = _control(builder)
    _set_control(builder, builder.or_(before, ir.Constant(before.type, TINY_TO_ZERO)))
    return Value("uint32", before)


@Instruction
def use_long_registers(builder: ir.IRBuilder) -> None:
    """SIMD code of the calling function uses registers of 512 bits, where there are such.

    LLVM by itself takes half of each, because a processor slows down for a while after some such
    instructions; see `codegen.MANY_OPERATIONS`.
    """
    # past llvmlite's own test, which knows no attributes with values
    set.add(builder.function.attributes, '"prefer-vector-width"="512"')


@Instruction
def work_as_before(builder: ir.IRBuilder, control: Value) -> None:
    """A kernel's last statement."""
    if FLUSHES:
        _set_control(builder, control.code)


def _control(builder: Any) -> Any:
    place = _place(builder)
    builder.call(_instruction(builder, "stmxcsr"), [_plain(builder, place)])
    return builder.load(place)


def _set_control(builder: Any, value: Any) -> None:
    place = _place(builder)
    builder.store(value, place)
    builder.call(_instruction(builder, "ldmxcsr"), [_plain(builder, place)])


def _place(builder: Any) -> Any:
    with builder.goto_entry_block():
        return builder.alloca(ir.IntType(32))


def _plain(builder: Any, place: Any) -> Any:
    return builder.bitcast(place, ir.PointerType(ir.IntType(8)))


def _instruction(builder: Any, name: str) -> Any:
    name = f"llvm.x86.sse.{name}"
    known = builder.module.globals.get(name)
    kind = ir.FunctionType(ir.VoidType(), [ir.PointerType(ir.IntType(8))])
    return known or ir.Function(builder.module, kind, name)
