"""What kernels need and Python has no words for."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic


@intrinsic
def select(typingctx, condition, a, b):  # type: ignore[no-untyped-def]
    """``a if condition else b``, both computed, without a branch."""
    kind = typingctx.unify_types(a, b)

    def chosen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.select(*args)

    return kind(types.boolean, kind, kind), chosen


@intrinsic
def predicted(typingctx, condition, a, b):  # type: ignore[no-untyped-def]
    """As `select`, for a condition that mostly holds.

    A processor then goes on with ``a`` before it knows, which matters where the next step waits for
    the number: one chain alone.
    """
    kind = typingctx.unify_types(a, b)

    def chosen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        choice = builder.select(*args)
        often, seldom = (ir.Constant(ir.IntType(32), weight) for weight in (1000, 1))
        name = ir.MetaDataString(builder.module, "branch_weights")
        choice.set_metadata("prof", builder.module.add_metadata([name, often, seldom]))
        return choice

    return kind(types.boolean, kind, kind), chosen


def pointer(kind: Any) -> Any:
    """A function that takes an address for a pointer of this kind."""

    @intrinsic
    def pointed(typingctx, address):  # type: ignore[no-untyped-def]
        def cast(context, builder, signature, args):  # type: ignore[no-untyped-def]
            return builder.inttoptr(args[0], context.get_value_type(kind))

        return kind(types.int64), cast

    return pointed


@intrinsic
def double(typingctx, bits):  # type: ignore[no-untyped-def]
    """The number of 64 bits that an integer has."""

    def cast(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.bitcast(args[0], ir.DoubleType())

    return types.float64(types.int64), cast


def local_memory(n: int) -> Any:
    """A function that gives room for ``n`` numbers on the stack, of the kind that it is given.

    Nothing else can point there, so that LLVM may keep the numbers in registers.
    """

    @intrinsic
    def local(typingctx, memory):  # type: ignore[no-untyped-def]
        def room(context, builder, signature, args):  # type: ignore[no-untyped-def]
            kind = context.get_data_type(memory.dtype)
            with builder.goto_entry_block():
                numbers = builder.alloca(ir.ArrayType(kind, n))
                numbers.align = 64
            return builder.bitcast(numbers, ir.PointerType(kind))

        return memory(memory), room

    return local
