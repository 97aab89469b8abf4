"""How fast normals alone are made: the ceiling of every sampler that needs them."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from statistics import median

import numba
import numpy as np
import torch

from ebm_samplers import Stream, fill_normals
from ebm_samplers.fused.noise import fill_normals_float32, fill_words
from rivals.protocol import THREADS, seconds_of

LANES, SHIFT, BLOCKS = 64, 6, 64
"""Chains of a tile, its binary logarithm, and blocks of four normals that each of them gets."""
PLANE = BLOCKS * LANES
AT_ONCE = 2**16


@numba.njit(nogil=True, error_model="numpy")
def _fill_tiles(z, words, repeats):  # type: ignore[no-untyped-def]
    """Fill one tile again and again, as kernels do between their steps."""
    stream, key = np.uint64(1), np.uint64(0)
    for i in range(repeats):
        first_block = np.uint64(i * BLOCKS)
        fill_words(words, PLANE, SHIFT, np.uint64(0), first_block, BLOCKS, stream, key)
        fill_normals_float32(z, words, PLANE, PLANE)


def tile_rate(seconds: float) -> float:
    """Normals per second of all threads, made in tiles by the functions that kernels call."""

    def task() -> Callable[[int], None]:
        z, words = np.empty(4 * PLANE, np.float32), np.empty(4 * PLANE, np.uint32)
        return lambda repeats: _fill_tiles(z, words, repeats)

    return _rate(task, 4 * PLANE, seconds)


def tensor_rate(chains: int, seconds: float) -> float:
    """Normals per second of all threads, by the public `fill_normals` into a tensor in cache."""
    length = max(4, AT_ONCE // chains)

    def task() -> Callable[[int], None]:
        out = torch.empty(chains, length)

        def fill(repeats: int) -> None:
            for index in range(repeats):
                fill_normals(out, 0, Stream.NOISE, 0, index * length)

        return fill

    return _rate(task, chains * length, seconds)


def _rate(task: Callable[[], Callable[[int], None]], normals: int, seconds: float) -> float:
    tasks = [task() for _ in range(THREADS)]
    with ThreadPoolExecutor(THREADS) as pool:

        def run(repeats: int) -> None:
            list(pool.map(lambda fill: fill(repeats), tasks))

        run(1)
        repeats = max(1, round(0.2 * seconds / (seconds_of(run, 10) / 10)))
        taken = median(seconds_of(run, repeats) for _ in range(5))
    return THREADS * normals * repeats / taken
