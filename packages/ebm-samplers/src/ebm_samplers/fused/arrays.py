"""Arrays as kernels take them: in C order, of one dtype, by address."""

import functools
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebm_samplers.fused.kernel import address

Array = NDArray[Any]


def spread(
    step_size: float | Array, noise_scale: float | Array, friction: float | Array | None
) -> float | Array:
    """The second number of each transition: how much noise there is, or how much momentum is kept.

    sqrt(2h)·noise_scale, the standard deviation of Langevin steps; with friction exp(-γh).
    """
    if friction is not None:
        kept: float | Array = np.exp(-np.asarray(friction) * step_size)
        return kept if isinstance(step_size, np.ndarray) else float(kept)
    if isinstance(step_size, np.ndarray):
        spreads: Array = np.sqrt(2.0 * step_size) * noise_scale
        return spreads
    return math.sqrt(2.0 * step_size) * noise_scale


@functools.lru_cache(maxsize=64)
def _same(value: float, dtype: Any) -> tuple[Array, int]:
    """One number as an array, and its address."""
    array = np.full(1, value, dtype)
    return array, address(array)


def column(values: float | Array, dtype: Any) -> tuple[Array, int]:
    """A value for each transition, or one for all, and where they are."""
    if not isinstance(values, np.ndarray):
        return _same(values, dtype)
    array = plain(values, dtype)
    return array, address(array)


def plain(values: Array, dtype: Any) -> Array:
    """In C order and of this dtype."""
    if values.dtype == dtype and values.flags.c_contiguous:
        return values
    plain: Array = np.ascontiguousarray(values, dtype)
    return plain
