"""The function that fills tiles with noise (`kernels.noise`), ready for kernels to call."""

import functools

import llvmlite.binding as llvm

from ebm_samplers.fused.codegen import PRELUDE
from ebm_samplers.fused.kernels import compiled_text
from ebm_samplers.fused.native import native


def symbol(double: bool) -> str:
    """The name that kernels call the function by."""
    return f"ebm_samplers_fill_{'float64' if double else 'float32'}"


@functools.cache
def provide(double: bool) -> None:
    """Compile or load the function, and make it known to the linker."""
    prelude = PRELUDE.format(title="Noise", dtype="float64" if double else "float32")
    lines = "from ebm_samplers.philox import cos_sin_turn, minus_log_unit\n\n"
    source = f"{prelude}{lines}DOUBLE = {double}\n\n\n{compiled_text('noise')}"
    llvm.add_symbol(symbol(double), native(source, "fill")[0].address)
