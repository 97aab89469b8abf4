"""What kernels need and Python has no words for."""

from typing import Any

from llvmlite import ir

from ebm_samplers.fused import values
from ebm_samplers.fused.values import Instruction, Value


@Instruction
def select(builder: ir.IRBuilder, condition: Value, a: Value, b: Value) -> Value:
    """``a if condition else b``, both computed, without a branch."""
    return values.select(builder, condition, a, b)


@Instruction
def predicted(builder: ir.IRBuilder, condition: Value, a: Value, b: Value) -> Value:
    """As `select`, for a condition that mostly holds.

    A processor then goes on with ``a`` before it knows, which matters where the next step waits for
    the number: one chain alone.
    """
    choice = values.select(builder, condition, a, b)
    often, seldom = (ir.Constant(ir.IntType(32), weight) for weight in (1000, 1))
    name = ir.MetaDataString(builder.module, "branch_weights")
    choice.code.set_metadata("prof", builder.module.add_metadata([name, often, seldom]))
    return choice


def pointer(kind: Any) -> Instruction:
    """A function that takes an address for a pointer of this kind."""

    def pointed(builder: ir.IRBuilder, address: Value) -> Value:
        name = str(kind)
        return Value(name, builder.inttoptr(address.code, values.llvm_type(name)))

    return Instruction(pointed)


@Instruction
def double(builder: ir.IRBuilder, bits: Value) -> Value:
    """The number of 64 bits that an integer has."""
    return Value("float64", builder.bitcast(bits.code, ir.DoubleType()))


def local_memory(n: int) -> Instruction:
    """A function that gives room for ``n`` numbers on the stack, of the kind that it is given.

    Nothing else can point there, so that LLVM may keep the numbers in registers.
    """

    def room(builder: ir.IRBuilder, memory: Value) -> Value:
        kind = values.LLVM[memory.kind[:-1]]
        with builder.goto_entry_block():
            numbers = builder.alloca(ir.ArrayType(kind, n))
            numbers.align = 64
        return Value(memory.kind, builder.bitcast(numbers, kind.as_pointer()))

    return Instruction(room)
