"""How exact torch makes products of float32 numbers: as exact as kernels while both are compared.

Users choose by ``torch.set_float32_matmul_precision``, or, from torch 2.9 on, by ``fp32_precision``
of torch.backends and what is below it. Torch does not let them mix: to ask by the former after a
choice by the latter raises an error. So each choice is suspended by what made it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

EXACT = ("none", "ieee")


def preferred_precision() -> tuple[str, ...]:
    """What the user has chosen."""
    try:
        return (torch.get_float32_matmul_precision(),)
    except RuntimeError:
        return tuple(place.fp32_precision for place in _places())


@contextmanager
def exact_products() -> Iterator[None]:
    """Products in float32 are of float32 numbers, whatever the user prefers."""
    preferred = preferred_precision()
    if preferred == ("highest",):
        yield
    elif len(preferred) == 1:
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(*preferred)
    else:
        before = []
        try:
            for place in _places():  # what inherits from one before it is exact by then
                if (chosen := place.fp32_precision) not in EXACT:
                    before.append((place, chosen))
                    place.fp32_precision = "ieee"
            yield
        finally:
            for place, chosen in reversed(before):
                place.fp32_precision = chosen


def _places() -> tuple[Any, ...]:
    """Where ``fp32_precision`` is chosen, from the widest on."""
    backends: Any = torch.backends
    return backends, backends.mkldnn, backends.mkldnn.matmul, backends.cuda.matmul
