"""A generated module at work: compiled on first use, run over tiles by one thread or several."""

import os
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import pairwise
from operator import is_, itemgetter
from typing import Any

import numpy as np
import torch

from ebm_samplers.fused.codegen import ALIGNED
from ebm_samplers.fused.native import native
from ebm_samplers.fused.noise import provide
from ebm_samplers.fused.trace import CannotFuse, reason_of

counts: Counter[str] = Counter()
"""How often this process has "traced" an energy, loaded a kernel from disk ("cached"), and
"compiled" one."""

THREAD_WORK = 5e7
"""Scalar operations, for all lanes together, below which one thread does all: some 3 ms. To wake
threads took up to 1 ms where it was measured."""

PIECES = 8
"""Into how many pieces a thread's share is cut where chains differ in what they take: whichever
thread is free takes the next."""

LASTING = ("p", "beta", "mass", "root")
"""Arguments that are often the same arrays as in the last call."""

NOTHING = np.zeros(1)

KINDS = {"Reals": "q", "Ints": "q", "Int": "q", "Real": "d", "Key": "Q"}
"""How arguments stand in a block, in the words of ``struct``."""


class Kernel:
    """The compiled chains of a sampler on an energy.

    Args:
        source: The generated module.
        lanes: Chains of a tile.
        even: Whether all tiles take as long.

    Attributes:
        source: The generated module.
        lanes: Chains of a tile.
        seconds: What compiling it, or loading it from disk, took.
        cached: Whether it came from disk.
    """

    def __init__(self, source: str, lanes: int, even: bool = True) -> None:
        self.source, self.lanes, self.even = source, lanes, even
        names: dict[str, Any] = {}
        exec(compile(source, "<kernel>", "exec"), names)
        self._offset: Callable[[Any], float] = names["energy_offset"]
        self._double = names["real"] is np.float64
        kinds: dict[str, str] = names["ARGUMENTS"]
        dtypes = {"Reals": names["real"], "Ints": np.int64}
        self._lasting = {name: np.dtype(dtypes[kinds[name]]) for name in kinds if name in LASTING}
        if list(kinds)[: len(self._lasting)] != list(self._lasting):
            raise TypeError("a kernel's lasting arguments come first")
        self._passing = itemgetter(*list(kinds)[len(self._lasting) :])
        self._last: tuple[list[Any], list[int]] = [], []
        self._block = struct.Struct("=" + "".join(KINDS[kind] for kind in kinds.values()))
        self._memory: int = names["MEMORY"]
        self.seconds = 0.0
        self.cached = False
        self._call: Callable[..., None] | None = None

    def offset(self, p: Any) -> float:
        """The additive constant of the energy."""
        return float(self._offset(p))

    def __call__(self, work: float, given: Mapping[str, Any]) -> None:
        """Run the kernel over all tiles.

        Args:
            work: Roughly the scalar operations of it all.
            given: Arguments of the kernel: numbers, and what `LASTING` names as arrays of its
                dtypes in C order; of other arrays, their addresses.

        Raises:
            CannotFuse: If it cannot be compiled.
        """
        call = self._call or self._compiled()
        lasting = [given[name] for name in self._lasting]
        last = self._last  # held here, so that nothing of it is freed by another thread's call
        if len(last[0]) != len(lasting) or not all(map(is_, lasting, last[0])):
            last = self._last = self._found(lasting)
        block = self._block.pack(*last[1], *self._passing(given))
        n_tiles = -(-given["n_chains"] // self.lanes)
        if work >= THREAD_WORK:
            n_threads = min(torch.get_num_threads(), n_tiles)
            if n_threads > 1:
                self._share(call, block, n_tiles, n_threads)
                return
        memory, room = _room(self._memory)
        call(block, room, 0, n_tiles)
        del memory

    def _share(self, call: Callable[..., None], block: bytes, n_tiles: int, n_threads: int) -> None:
        def part(first_tile: int, last_tile: int) -> None:
            memory, room = _room(self._memory)
            call(block, room, first_tile, last_tile)
            del memory

        n_pieces = n_threads if self.even else min(n_tiles, PIECES * n_threads)
        bounds = [n_tiles * i // n_pieces for i in range(n_pieces + 1)]
        tasks: list[Future[None]] = []
        try:
            for a, b in pairwise(bounds):
                tasks.append(_pool(n_threads).submit(part, a, b))
            for task in tasks:
                task.result()
        finally:
            wait(tasks)  # nothing is written any more once an interrupt has left this call

    def _found(self, lasting: list[Any]) -> tuple[list[Any], list[int]]:
        """The lasting arguments, and their addresses."""
        for (name, dtype), value in zip(self._lasting.items(), lasting, strict=True):
            if value.dtype != dtype:
                raise TypeError(f"a kernel wants {dtype} for {name}, not {value.dtype}")
        return lasting, [address(array) for array in lasting]

    def _compiled(self) -> Callable[..., None]:
        start = time.perf_counter()
        try:
            provide(self._double)
            function, known = native(self.source, "chains")
        except Exception as error:  # the compiler's, or of Numba's own kinds
            raise CannotFuse(f"its kernel does not compile ({reason_of(error)})") from error
        self.seconds = time.perf_counter() - start
        self.cached = known or function.cached
        if not known:
            counts["cached" if self.cached else "compiled"] += 1
        self._call = function.call
        return self._call


def address(array: Any) -> int:
    """Where the numbers of an array are; somewhere, if it has none: they may be looked at."""
    if array.size == 0:
        return _nowhere
    return torch.from_numpy(array).data_ptr()  # twice as quick as NumPy's own ways


_nowhere = address(NOTHING)


_rooms = threading.local()


def _room(n_bytes: int) -> tuple[Any, int]:
    """Memory that this thread's kernels work in, one after the other, and where it begins."""
    if getattr(_rooms, "n_bytes", -1) < n_bytes:
        memory = np.empty(n_bytes + ALIGNED, np.uint8)
        _rooms.memory = memory, -(-address(memory) // ALIGNED) * ALIGNED
        _rooms.n_bytes = n_bytes
    found: tuple[Any, int] = _rooms.memory
    return found


_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}


def _pool(n_threads: int) -> ThreadPoolExecutor:
    key = (os.getpid(), n_threads)  # threads do not survive a fork
    if key not in _pools:
        _pools[key] = ThreadPoolExecutor(n_threads, thread_name_prefix="ebm-fused")
    return _pools[key]
