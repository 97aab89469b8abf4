"""Functions compiled as kernels are, to be called with arrays."""

import textwrap
from collections.abc import Callable
from typing import Any

import numpy as np

from ebm_samplers.fused import codegen
from ebm_samplers.fused.native import native


def machine(text: str, double: bool = False, head: str = "") -> Callable[..., None]:
    """The function ``run`` of a text; its arguments' types are those that kernels have."""
    prelude = codegen.PRELUDE.format(title="Test", dtype="float64" if double else "float32")
    source = "\n".join([prelude, textwrap.dedent(head), textwrap.dedent(text)])
    compiled = native(source, "run")[0]

    def call(*given: Any) -> None:
        compiled.call(*(a.ctypes.data if isinstance(a, np.ndarray) else a for a in given))

    return call
