"""Products of matrices by torch, on the quicker of its two libraries.

MKL, which torch asks, is not always the quicker: on AMD's processors oneDNN took half the time
(Zen 5) or as much (Zen 4), as benchmarks/terms.py measures it. Torch calls oneDNN for float32 in
compiled graphs only, by an operation that is not public: it is tried once, and left if it does not
give what ``@`` gives.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

LARGE = 2**20
"""Multiplications from which the other library is worth its longer way."""


def rows_by_rows(a: Tensor, b: Tensor) -> Tensor:
    """a @ b.T for ``(p, n)`` and ``(q, n)``, on the CPU."""
    if a.dtype == torch.float32 and a.numel() * len(b) >= LARGE:
        product = _onednn()
        if product is not None:
            return product(a.contiguous(), b.contiguous())
    return a @ b.t()


@functools.cache
def _onednn() -> Callable[[Tensor, Tensor], Tensor] | None:
    """a @ b.T by oneDNN, for contiguous float32 matrices; None where there is no such operation."""
    try:
        operation: Any = torch.ops.mkldnn._linear_pointwise.default

        def product(a: Tensor, b: Tensor) -> Tensor:
            found: Tensor = operation(a, b, None, "none", [], "")
            return found

        numbers = torch.arange(96.0).view(12, 8)
        a, b = (numbers * 0.37).cos(), (numbers[:4] * 0.73).sin()
        return product if torch.allclose(product(a, b), a @ b.t(), atol=1e-5) else None
    except Exception:  # of any kind: this torch has it not, or has another
        return None
