# mypy: disable-error-code="no-untyped-def,no-untyped-call"
"""Philox's normals and uniforms straight into CUDA tensors, for the torch engine.

Where the numbers stand in their streams is given by the host, or lies in memory of the device: what
a CUDA graph launches must find it there.
"""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ebm_samplers.fused.cuda import device
from ebm_samplers.fused.cuda._backend import numba_cuda, require_device
from ebm_samplers.fused.cuda.compiled import compiled
from ebm_samplers.fused.cuda.launch import current, launch

cuda: Any = None  # numba.cuda as soon as a kernel is made; a global, for the simulator wants one

_SHAPE = {"out": "Reals", "rows": "Int", "length": "Int"}
_PLACED = {**_SHAPE, "stream": "Key", "place": "Ints", "ahead": "Int"}
ARGUMENTS = {
    "fill": {
        **_SHAPE, "key": "Key", "stream": "Key", "first_chain": "Key", "first_index": "Key",
    },
    "fill_placed": _PLACED,
    "move": {**_PLACED, "x": "Reals", "velocity": "Reals", "h": "Real", "spread": "Real"},
}  # fmt: skip


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
    place = {"key": np.uint64(key), "first_chain": np.uint64(first_chain)}
    skipped = first_index & 3
    _launch("fill", uniform, out, stream, skipped, first_index=np.uint64(first_index), **place)


def fill_placed(out: Tensor, uniform: bool, stream: int, place: Tensor, ahead: int) -> None:
    """Fill ``out[row]`` with the numbers of a step, whose place lies in memory.

    Args:
        out: As in `fill_rows`; a row has the numbers of one step of a chain.
        uniform: Uniforms, not normals.
        stream: Below 2³².
        place: Key (its bits), number of the chain of row 0 and number of a step, int64.
        ahead: By how many steps the wanted one comes later.
    """
    _launch("fill_placed", uniform, out, stream, 3, place=place, ahead=ahead)


def move(
    x: Tensor, velocity: Tensor, h: float, spread: float, stream: int, place: Tensor, ahead: int
) -> Tensor:
    """x - h·velocity + spread·ξ, with the normals ξ of a step.

    Args:
        x: Contiguous tensor ``(rows, *event)`` of float32 or float64 on a CUDA device.
        velocity: The same.
        h: Step size.
        spread: Of the noise.
        stream: As in `fill_placed`.
        place: Likewise.
        ahead: Likewise.
    """
    moved = torch.empty_like(x)
    given = {"x": x, "velocity": velocity, "h": h, "spread": spread}
    out = moved.view(len(x), -1)
    _launch("move", False, out, stream, 3, place=place, ahead=ahead, **given)
    return moved


def _launch(name: str, uniform: bool, out: Tensor, stream: int, skipped: int, **given: Any) -> None:
    """Launch a kernel: a thread for each block of four numbers that a row may touch."""
    rows, length = out.shape
    if rows == 0 or length == 0:
        return
    kernel = _kernel(name, out.dtype == torch.float64, uniform, out.device)
    given |= {"out": out, "rows": rows, "length": length, "stream": np.uint64(stream)}
    launch(kernel, ARGUMENTS[name], given, rows * ((skipped + length + 3) // 4), out.device)


@functools.cache
def _kernel(name: str, double: bool, uniform: bool, on: torch.device) -> Any:
    require_device()
    function = kernel_function(name, double, uniform)
    text = f"{name} {uniform} {Path(__file__).read_text()}"
    with current(on):
        return compiled(function, ARGUMENTS[name], text, double, device.STRICT, on)


def kernel_function(name: str, double: bool, uniform: bool = False) -> Any:
    """A kernel, by name: a thread for each block of four numbers."""
    global cuda
    cuda = numba_cuda()
    numbers = device.block(double, uniform)
    four, three = np.uint64(4), np.uint64(3)

    def store(out, n, length, key, stream, first_chain, first_index):
        """Block n of all rows; gives where its first number would be, and its column."""
        skipped = np.int64(first_index & three)
        n_blocks = (skipped + length + 3) // 4
        row = n // n_blocks
        block = n - row * n_blocks
        number = first_index // four + np.uint64(block)
        a, b, c, d = numbers(key, first_chain + np.uint64(row), number, stream)
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
        return at, column

    store = device.device_function(store, device.STRICT)

    def fill(out, rows, length, key, stream, first_chain, first_index):
        total = rows * ((np.int64(first_index & three) + length + 3) // 4)
        for n in range(cuda.grid(1), total, cuda.gridsize(1)):
            store(out, n, length, key, stream, first_chain, first_index)

    def fill_placed(out, rows, length, stream, place, ahead):
        key, first_chain = np.uint64(place[0]), np.uint64(place[1])
        first_index = np.uint64(place[2] + ahead) * np.uint64(length)
        total = rows * ((np.int64(first_index & three) + length + 3) // 4)
        for n in range(cuda.grid(1), total, cuda.gridsize(1)):
            store(out, n, length, key, stream, first_chain, first_index)

    def move(out, rows, length, stream, place, ahead, x, velocity, h, spread):
        key, first_chain = np.uint64(place[0]), np.uint64(place[1])
        first_index = np.uint64(place[2] + ahead) * np.uint64(length)
        total = rows * ((np.int64(first_index & three) + length + 3) // 4)
        for n in range(cuda.grid(1), total, cuda.gridsize(1)):
            at, column = store(out, n, length, key, stream, first_chain, first_index)
            for j in range(max(0, -column), min(4, length - column)):
                out[at + j] = x[at + j] - h * velocity[at + j] + spread * out[at + j]

    return {"fill": fill, "fill_placed": fill_placed, "move": move}[name]
