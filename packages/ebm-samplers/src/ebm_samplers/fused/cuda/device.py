# mypy: disable-error-code="no-untyped-def,no-untyped-call,no-any-return"
"""The functions that kernels call on a device: made for a dtype when first needed.

Most are the CPU's own (`arithmetic`, `philox`), compiled anew. Sine and cosine in float32 differ:
the CPU's reduction of the argument is in float64, which devices are slow at.
"""

import functools
import importlib
import math
from collections.abc import Callable, Mapping
from types import FunctionType, ModuleType
from typing import Any

import numpy as np

from ebm_samplers import philox
from ebm_samplers.fused import arithmetic
from ebm_samplers.fused.cuda._backend import numba_cuda, simulated

FAST = True
"""For kernels: numbers below the smallest normal one are 0, as on the CPU, and division and square
root in float32 are to 2 units in the last place. Guards against what is not finite stay: numba.cuda
does not tell LLVM that numbers are finite."""

STRICT = False
"""For functions that count on the order of operations, and for powers, of which fast ones are NaN
for negative numbers."""

_f, _i = np.float32, np.int32


def floor(x):
    """Stands for libdevice's."""
    return np.floor(x)


def _sine_of_quarters(x, quarters):
    """The sine of x + quarters·π/2; its error grows beyond |x| of some 10⁴."""
    k = floor(x * _f(0.63661977) + _f(0.5))
    r = x - k * _f(1.5703125)  # π/2 in three parts, of which the first two are exact times k
    r = r - k * _f(4.837512969970703e-4)
    r = r - k * _f(7.549789954891882e-8)
    z = r * r
    s = r + r * z * (_f(-1.6666654611e-1) + z * (_f(8.3321608736e-3) + z * _f(-1.9515295891e-4)))
    c = (
        _f(1)
        - _f(0.5) * z
        + z
        * z
        * (
            _f(4.166664568298827e-2)
            + z * (_f(-1.388731625493765e-3) + z * _f(2.443315711809948e-5))
        )
    )
    q = _i(k - _f(4) * floor(_f(0.25) * k)) + quarters
    y = c if (q & _i(1)) != 0 else s
    y = -y if (q & _i(2)) != 0 else y
    return y if abs(x) < _f(np.inf) else _f(np.nan)


def _sin_float32(x):
    return _sine_of_quarters(x, _i(0))


def _cos_float32(x):
    return _sine_of_quarters(x, _i(1))


def _power(x, y):
    return x**y


def _select(condition, a, b):
    return a if condition else b


def _same(memory):
    return memory


def _nothing():
    return 0


def _nothing_with(before):
    return 0


@functools.cache
def block(double: bool, uniform: bool) -> Callable[..., Any]:
    """The function that gives the four numbers of a block of Philox, see `philox`."""
    words_of = compiled(philox.philox_block)
    suffix = "_float64" if double else ""
    minus_log_unit = compiled(getattr(philox, f"minus_log_unit{suffix}"))
    cos_sin_turn = compiled(getattr(philox, f"cos_sin_turn{suffix}"))
    two: Any = np.float64(2) if double else np.float32(2)
    low, high, nine = np.uint64(0xFFFFFFFF), np.uint64(32), np.uint32(9)
    half, unit = np.float32(0.5), np.float32(2.0**-23)

    def uniforms(key, chain, number, stream):
        c0, c1, c2, c3 = words_of(
            chain & low, number & low, number >> high, stream, key & low, key >> high
        )
        a = (np.float32(np.uint32(c0) >> nine) + half) * unit
        b = (np.float32(np.uint32(c1) >> nine) + half) * unit
        c = (np.float32(np.uint32(c2) >> nine) + half) * unit
        d = (np.float32(np.uint32(c3) >> nine) + half) * unit
        return a, b, c, d

    def normals(key, chain, number, stream):
        c0, c1, c2, c3 = words_of(
            chain & low, number & low, number >> high, stream, key & low, key >> high
        )
        first = math.sqrt(two * minus_log_unit(np.uint32(c0)))
        cosine, sine = cos_sin_turn(np.uint32(c1))
        second = math.sqrt(two * minus_log_unit(np.uint32(c2)))
        cosine_2, sine_2 = cos_sin_turn(np.uint32(c3))
        return first * cosine, first * sine, second * cosine_2, second * sine_2

    return device_function(uniforms if uniform else normals, STRICT)


@functools.cache
def noise(double: bool) -> Callable[..., None]:
    """`kernels.noise.fill` for one chain, a block at a time and without memory between."""
    normals, uniforms = block(double, False), block(double, True)

    def fill(
        out, words, plane, at, shift, chain, first_block, apart, n_blocks, stream, key, uniform
    ):
        for i in range(n_blocks):
            q = at + i
            number = np.uint64(first_block + (i << apart))
            if uniform:
                a, b, c, d = uniforms(key, np.uint64(chain), number, np.uint64(stream))
                out[q] = a
                out[plane + q] = b
                out[2 * plane + q] = c
                out[3 * plane + q] = d
            else:
                e, f, g, h = normals(key, np.uint64(chain), number, np.uint64(stream))
                out[q] = e
                out[plane + q] = f
                out[2 * plane + q] = g
                out[3 * plane + q] = h

    return device_function(fill, STRICT)


def product(n_inner: int, n_outputs: int, double: bool) -> Callable[..., None]:
    """`products.tile_product` for one lane."""
    zero: Any = np.float64(0) if double else np.float32(0)

    def multiplied(w, p, out, row, m):
        for j in range(n_outputs):
            total = zero
            for k in range(n_inner):
                total += w[row + k] * p[m + k * n_outputs + j]
            w[out + j] = total

    return device_function(multiplied, FAST)


def memory(n: int, double: bool) -> Callable[[], Any]:
    """A function that gives room for ``n`` numbers that a thread has to itself."""
    if simulated():
        dtype = np.float64 if double else np.float32
        return lambda: np.empty(n, dtype)
    import llvmlite.ir as ir
    from numba.cuda.extending import intrinsic

    types = numba_cuda().types
    kind = types.float64 if double else types.float32
    number = ir.DoubleType() if double else ir.FloatType()

    @intrinsic
    def room(context):
        def codegen(context, builder, signature, arguments):
            with builder.goto_entry_block():
                numbers = builder.alloca(ir.ArrayType(number, n))
            return builder.bitcast(numbers, number.as_pointer())

        return types.CPointer(kind)(), codegen

    made: Any = room
    return made


def _floor(double: bool) -> Any:
    """⌊x⌋: NumPy's is unknown to numba.cuda."""
    if simulated():
        return np.floor
    library = importlib.import_module("numba.cuda.libdevice")
    return library.floor if double else library.floorf


@functools.cache
def names(double: bool) -> dict[str, Any]:
    """What the text of a generated module calls, by name."""
    module = ModuleType("arithmetic")
    named = arithmetic.function_names(double)
    ours = {text.split(".")[1] for text in named.values() if text.startswith("arithmetic.")}
    for name in ours:
        setattr(module, name, compiled(getattr(arithmetic, name)))
    own = {"sin_float32": _sin_float32, "cos_float32": _cos_float32}
    for name in own.keys() & ours:
        setattr(module, name, compiled(own[name]))
    select = device_function(_select, FAST)
    return {
        "np": np,
        "math": math,
        "cuda": numba_cuda(),
        "real": np.float64 if double else np.float32,
        "arithmetic": module,
        "floor": _floor(double),
        "exp": getattr(module, "exp_float64" if double else "exp_float32"),
        "power": device_function(_power, STRICT),
        "select": select,
        "accepted": select,
        "local": device_function(_same, FAST),
        "work_fast": device_function(_nothing, FAST),
        "use_long_registers": device_function(_nothing, FAST),
        "work_as_before": device_function(_nothing_with, FAST),
        "fill": noise(double),
    }


def signature(arguments: Mapping[str, str], double: bool) -> Any:
    """The types of a kernel's arguments, as numba.cuda calls them."""
    types = numba_cuda().types
    real = types.float64 if double else types.float32
    kinds = {
        "Reals": types.CPointer(real),
        "Ints": types.CPointer(types.int64),
        "Int": types.int64,
        "Real": real,
        "Key": types.uint64,
    }
    return types.void(*(kinds[kind] for kind in arguments.values()))


def device_function(function: Callable[..., Any], fastmath: bool) -> Callable[..., Any]:
    """A function for kernels to call."""
    if simulated():
        return function
    made: Callable[..., Any] = numba_cuda().jit(device=True, fastmath=fastmath)(function)
    return made


@functools.cache
def compiled(function: Any) -> Callable[..., Any]:
    """A function of the CPU (and those that it calls) for kernels to call."""
    plain = getattr(function, "py_func", function)
    space = dict(plain.__globals__)
    for name in plain.__code__.co_names:
        callee = space.get(name)
        if callee is floor:
            space[name] = _floor(double=False)
        elif hasattr(callee, "py_func") or (
            isinstance(callee, FunctionType) and callee.__module__ == __name__
        ):
            space[name] = compiled(callee)
    copy = FunctionType(plain.__code__, space, plain.__name__, plain.__defaults__)
    return device_function(copy, STRICT)
