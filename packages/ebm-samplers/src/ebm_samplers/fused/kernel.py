"""A generated module at work: compiled on first use, run over tiles by one thread or several."""

import os
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from types import ModuleType
from typing import Any

import numba
import torch
from numba.core.errors import NumbaError

from ebm_samplers.fused import cache
from ebm_samplers.fused.trace import CannotFuse

counts: Counter[str] = Counter()
"""How often this process has "traced" an energy, loaded a kernel from disk ("cached"), and
"compiled" one."""

THREAD_WORK = 2e6
"""Scalar operations, for all lanes together, below which one thread does all."""


class Kernel:
    """The compiled chains of a sampler on an energy.

    Args:
        source: The generated module.
        lanes: Chains of a tile.

    Attributes:
        source: The generated module.
        lanes: Chains of a tile.
        seconds: What compiling it, or loading it from disk, took.
        cached: Whether it came from disk.
    """

    def __init__(self, source: str, lanes: int) -> None:
        self.source, self.lanes = source, lanes
        self.module: ModuleType = cache.load(source)
        self.seconds = 0.0
        self.cached = False
        self._ready = False

    def offset(self, p: Any) -> float:
        """The additive constant of the energy."""
        return float(self.module.energy_offset(p))

    def __call__(self, n_chains: int, work: float, *args: Any) -> None:
        """Run the kernel over all tiles.

        Args:
            n_chains: Number of chains.
            work: Roughly the scalar operations of it all.
            args: The arguments of ``chains``, without tiles.

        Raises:
            CannotFuse: If it cannot be compiled.
        """
        n_tiles = -(-n_chains // self.lanes)
        if not self._ready:
            self._compile((*args, 0, n_tiles))
        n_threads = min(torch.get_num_threads(), n_tiles)
        if n_threads < 2 or work < THREAD_WORK:
            self.module.chains(*args, 0, n_tiles)
            return
        bounds = [n_tiles * i // n_threads for i in range(n_threads + 1)]
        chains = self.module.chains
        submit: Callable[..., Any] = _pool(n_threads).submit
        tasks = [submit(chains, *args, a, b) for a, b in pairwise(bounds)]
        for task in tasks:
            task.result()

    def _compile(self, args: tuple[Any, ...]) -> None:
        chains = self.module.chains
        start = time.perf_counter()
        signature = tuple(numba.typeof(a) for a in args)  # type: ignore[no-untyped-call]
        known = signature in chains.overloads  # by an earlier trace of the same program
        try:
            chains.compile(signature)
        except NumbaError as error:
            reason = str(error).strip().splitlines()[0]
            raise CannotFuse(f"its kernel does not compile ({reason})") from error
        self.seconds = time.perf_counter() - start
        self.cached = known or sum(chains.stats.cache_hits.values()) > 0
        if not known:
            counts["cached" if self.cached else "compiled"] += 1
        self._ready = True


_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}


def _pool(n_threads: int) -> ThreadPoolExecutor:
    key = (os.getpid(), n_threads)  # threads do not survive a fork
    if key not in _pools:
        _pools[key] = ThreadPoolExecutor(n_threads, thread_name_prefix="ebm-fused")
    return _pools[key]
