# mypy: disable-error-code="no-untyped-def,no-untyped-call"
"""Philox's normals and uniforms straight into CUDA tensors, for the torch engine."""

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ebm_samplers.fused.cuda import device
from ebm_samplers.fused.cuda._backend import numba_cuda, require_device, simulated
from ebm_samplers.fused.cuda.launch import current, launch

cuda: Any = None  # numba.cuda as soon as a kernel is made; a global, for the simulator wants one

ARGUMENTS = {
    "out": "Reals",
    "rows": "Int",
    "length": "Int",
    "key": "Key",
    "stream": "Key",
    "first_chain": "Key",
    "first_index": "Key",
}


def fill_rows(
    out: Tensor, uniform: bool, key: int, stream: int, first_chain: int, first_index: int
) -> None:
    """Fill ``out[row, j]`` with number first_index + j of chain first_chain + row.

    Args:
        out: Contiguous tensor ``(rows, numbers)`` of float32 or float64 on a CUDA device.
        uniform: Uniforms, not normals.
        key: The 64-bit seed.
        stream: Below 2³².
        first_chain: Number of the chain of row 0.
        first_index: Number of the first number within its chain, below 2⁶⁴.

    Raises:
        CudaUnavailableError: If kernels cannot be made here.
    """
    rows, length = out.shape
    if rows == 0 or length == 0:
        return
    given = {
        "out": out, "rows": rows, "length": length, "key": np.uint64(key),
        "stream": np.uint64(stream), "first_chain": np.uint64(first_chain),
        "first_index": np.uint64(first_index),
    }  # fmt: skip
    n_blocks = ((first_index & 3) + length + 3) // 4
    kernel = _kernel(out.dtype == torch.float64, uniform, out.device)
    launch(kernel, ARGUMENTS, given, rows * n_blocks, out.device)


@functools.cache
def _kernel(double: bool, uniform: bool, on: torch.device) -> Any:
    require_device()
    function = kernel_function(double, uniform)
    if simulated():
        return cuda.jit(function)
    types = device.signature(ARGUMENTS, double)
    with current(on):
        return cuda.jit(types, fastmath=device.STRICT, lto=False)(function)


def kernel_function(double: bool, uniform: bool) -> Any:
    """The kernel: a thread for each block of four numbers, which follow one another in memory."""
    global cuda  # importable where numba-cuda is missing
    cuda = numba_cuda()
    numbers = device.block(double, uniform)
    four, three = np.uint64(4), np.uint64(3)

    def fill(out, rows, length, key, stream, first_chain, first_index):
        first_block = first_index // four
        skipped = np.int64(first_index & three)
        n_blocks = (skipped + length + 3) // 4
        for n in range(cuda.grid(1), rows * n_blocks, cuda.gridsize(1)):
            row = n // n_blocks
            block = n - row * n_blocks
            a, b, c, d = numbers(
                key, first_chain + np.uint64(row), first_block + np.uint64(block), stream
            )
            column = 4 * block - skipped
            at = row * length + column
            if column >= 0:
                out[at] = a
            if column + 1 >= 0 and column + 1 < length:
                out[at + 1] = b
            if column + 2 >= 0 and column + 2 < length:
                out[at + 2] = c
            if column + 3 < length:
                out[at + 3] = d

    return fill
