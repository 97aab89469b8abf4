"""Launches: on the device of the tensors, on torch's current stream, with addresses for tensors."""

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ebm_samplers.fused.cuda._backend import numba_cuda, simulated

BLOCK = 128
"""Threads of a block, where there are enough to give each multiprocessor some blocks."""

SMALL_BLOCK = 32
"""Threads of a block otherwise: they spread over as many multiprocessors as can be."""

FEWEST_BLOCKS = 128
"""Blocks of any grid: with fewer, Numba warns of low occupancy; idle ones cost next to nothing."""

SIMULATED_BLOCK = 4


@contextmanager
def current(on: torch.device) -> Iterator[None]:
    """Make a device the current one, for torch and for numba."""
    if simulated():
        yield
        return
    index = torch.cuda.current_device() if on.index is None else on.index
    with torch.cuda.device(index), numba_cuda().gpus[index]:
        yield


@functools.lru_cache(maxsize=32)
def _stream(handle: int) -> Any:
    """A stream of torch's for Numba; 0 is the default one for both."""
    return numba_cuda().external_stream(handle) if handle else 0


def launch(
    kernel: Any,
    arguments: Mapping[str, str],
    given: Mapping[str, Any],
    n_threads: int,
    on: torch.device,
) -> None:
    """Launch a compiled kernel; returns before it has run.

    Args:
        kernel: What ``numba.cuda.jit`` gave.
        arguments: The kinds of its arguments, by name.
        given: The arguments: numbers, and contiguous tensors on the device.
        n_threads: How many threads it can use, at least 1.
        on: The device.
    """
    if simulated():
        values = [
            value.view(-1).numpy() if isinstance(value := given[name], Tensor) else value
            for name in arguments
        ]
        kernel[-(-n_threads // SIMULATED_BLOCK), SIMULATED_BLOCK](*values)
        return
    processors = torch.cuda.get_device_properties(on).multi_processor_count
    block = BLOCK if n_threads >= 4 * BLOCK * processors else SMALL_BLOCK
    values = [
        value.data_ptr() if isinstance(value := given[name], Tensor) else value
        for name in arguments
    ]
    with current(on):
        stream = _stream(torch.cuda.current_stream(on).cuda_stream)
        kernel[max(FEWEST_BLOCKS, -(-n_threads // block)), block, stream](*values)
