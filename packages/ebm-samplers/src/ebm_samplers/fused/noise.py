"""Functions that make noise (`kernels.noise`, `kernels.rows`), compiled once for all kernels."""

import functools
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from numpy.typing import NDArray

from ebm_samplers.fused.codegen import FILL_TEXT, PRELUDE, fill_symbol
from ebm_samplers.fused.kernels import compiled_text
from ebm_samplers.fused.kernels.rows import SHIFT, TILE
from ebm_samplers.fused.native import COMPILING, Native, native


def _module(double: bool, kernel: str, *lines: str) -> str:
    prelude = PRELUDE.format(title="Noise", dtype="float64" if double else "float32")
    return "\n".join([prelude, *lines, "\n", compiled_text(kernel)])


@functools.cache
def provide(double: bool) -> None:
    """Compile or load the function that fills tiles, and make it known to the linker."""
    with COMPILING:
        llvm.add_symbol(fill_symbol(double), native(module_of_fill(double), "fill")[0].address)


def module_of_fill(double: bool) -> str:
    """The source of the module that has it."""
    return _module(
        double,
        "noise",
        "from ebm_samplers.philox import cos_sin_turn, minus_log_unit",
        "from ebm_samplers.philox import cos_sin_turn_float64, minus_log_unit_float64",
        'OPTIONS["fastmath"] = {"contract"}',
        f"DOUBLE = {double}",
    )


@functools.cache
def _rows(double: bool) -> Native:
    provide(double)
    fill = FILL_TEXT.format(fill=fill_symbol(double))
    return native(_module(double, "rows", fill, f"TILE, SHIFT = {TILE}, {SHIFT}"), "fill_rows")[0]


def fill_rows(
    out: NDArray[Any], uniform: bool, key: int, stream: int, first_chain: int, first_index: int
) -> None:
    """Fill ``out[row, j]`` with number first_index + j of chain first_chain + row.

    Args:
        out: Array ``(rows, numbers)`` of float32 or float64, C order.
        uniform: Uniforms, not normals.
        key: The 64-bit seed.
        stream: Below 2³².
        first_chain: Number of the chain of row 0.
        first_index: Number of the first number within its chain, below 2⁶⁴.
    """
    rows, length = out.shape
    if rows == 0 or length == 0:
        return
    words, z = np.empty(4 * TILE, np.uint32), np.empty(4 * TILE, out.dtype)
    _rows(out.dtype == np.float64).call(
        out.ctypes.data, rows, length, uniform, key, stream, first_chain, first_index,
        words.ctypes.data, z.ctypes.data,
    )  # fmt: skip
