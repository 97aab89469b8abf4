"""A generated module at work: compiled on first use, run over tiles by one thread or several."""

import os
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from ebm_samplers.fused.codegen import FEW_ELEMENTS, FILL
from ebm_samplers.fused.native import native
from ebm_samplers.fused.noise import provide
from ebm_samplers.fused.trace import CannotFuse

counts: Counter[str] = Counter()
"""How often this process has "traced" an energy, loaded a kernel from disk ("cached"), and
"compiled" one."""

THREAD_WORK = 2e6
"""Scalar operations, for all lanes together, below which one thread does all."""

SCHEDULES = ("step_size", "scale", "lengths")
"""Settings of each transition; arrays of one element hold for all of them."""

LASTING = ("p", "beta", "scale", "lengths", "mass", "root")
"""Arguments that are often the same arrays as in the last call."""

NOTHING = np.zeros(1)

ALIGNED = 64
"""Bytes of a cache line, and of the longest SIMD register."""


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
        names: dict[str, Any] = {}
        exec(compile(source, "<kernel>", "exec"), names)
        self._offset: Callable[[Any], float] = names["energy_offset"]
        self._double = names["real"] is np.float64
        self._names = tuple(names["chains"].__annotations__)
        self._dtypes = tuple(
            np.dtype(str(kind.dtype)) if hasattr(kind, "dtype") else None
            for kind in names["chains"].__annotations__.values()
        )
        rows, plane = names["ROWS"] * lanes, 4 * names["PLANE"]
        # of w, words, z, u, in units of a number
        self._sizes = (rows, plane, plane, plane) if FILL in names else (rows,)
        self._few = names["D"] <= FEW_ELEMENTS
        self._lasting: dict[str, tuple[Any, Any, int]] = {}
        self.seconds = 0.0
        self.cached = False
        self._call: Callable[..., None] | None = None

    def offset(self, p: Any) -> float:
        """The additive constant of the energy."""
        return float(self._offset(p))

    def __call__(self, n_chains: int, work: float, *args: Any, n_steps: int = 0) -> None:
        """Run the kernel over all tiles.

        Args:
            n_chains: Number of chains.
            work: Roughly the scalar operations of it all.
            args: Arrays and numbers: those of ``chains`` up to ``largest``.
            n_steps: Number of transitions; schedules have an element for each, or one for all.

        Raises:
            CannotFuse: If it cannot be compiled.
        """
        call = self._call or self._compiled()
        named = dict(zip(self._names, args, strict=False))
        sizes = [n_chains]
        if "mass" in named:
            sizes += (
                n_steps,
                named["statistics"].shape[2],
                named["draws"].shape[1],
                self._few or len(named["mass"]) > 1,
                *(len(named[schedule]) > 1 for schedule in SCHEDULES),
            )
        held: list[Any] = []  # so that nothing of it is freed by another thread's call
        given = [
            value if dtype is None else self._address(name, value, dtype, held)
            for name, value, dtype in zip(self._names, args, self._dtypes, strict=False)
        ]
        given += sizes

        def part(first_tile: int, last_tile: int) -> None:
            _owner, addresses = self._memory()
            call(*given, *addresses, first_tile, last_tile)

        n_tiles = -(-n_chains // self.lanes)
        n_threads = min(torch.get_num_threads(), n_tiles)
        if n_threads < 2 or work < THREAD_WORK:
            part(0, n_tiles)
            return
        bounds = [n_tiles * i // n_threads for i in range(n_threads + 1)]
        tasks = [_pool(n_threads).submit(part, a, b) for a, b in pairwise(bounds)]
        try:
            for task in tasks:
                task.result()
        finally:
            wait(tasks)  # nothing is written any more once an interrupt has left this call

    def _address(self, name: str, value: Any, dtype: np.dtype[Any], held: list[Any]) -> int:
        if name not in LASTING:
            return _address(value, dtype)
        known = self._lasting.get(name)
        if known is None or known[0] is not value:
            expanded = name in ("mass", "root") and self._few and len(value) == 1
            array = np.diag(value[0]) if expanded else value
            known = self._lasting[name] = (value, array, _address(array, dtype))
        held.append(known)
        return known[2]

    def _memory(self) -> tuple[Any, list[int]]:
        """Room for the tile and its noise: who owns it, and addresses."""
        width = 8 if self._double else 4
        sizes = [-(-size * width // ALIGNED) * ALIGNED for size in self._sizes]
        memory = np.zeros(sum(sizes) + ALIGNED, np.uint8)
        address = -(-_pointer(memory) // ALIGNED) * ALIGNED
        addresses = []
        for size in sizes:
            addresses.append(address)
            address += size
        return memory, addresses

    def _compiled(self) -> Callable[..., None]:
        from numba.core.errors import NumbaError

        start = time.perf_counter()
        provide(self._double)
        try:
            function, known = native(self.source, "chains")
        except NumbaError as error:
            reason = str(error).strip().splitlines()[0]
            raise CannotFuse(f"its kernel does not compile ({reason})") from error
        self.seconds = time.perf_counter() - start
        self.cached = known or function.cached
        if not known:
            counts["cached" if self.cached else "compiled"] += 1
        self._call = function.call
        return self._call


def _address(value: Any, dtype: np.dtype[Any]) -> int:
    """The address of an array, if it is as the kernel wants it."""
    if value.dtype != dtype or not value.flags.c_contiguous:
        raise TypeError(f"a kernel wants {dtype} in C order, not {value.dtype}")
    return _pointer(value)


def _pointer(array: Any) -> int:
    if array.size == 0:
        array = NOTHING  # it may be looked at, if not used
    return torch.from_numpy(array).data_ptr()  # twice as quick as NumPy's own ways


_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}


def _pool(n_threads: int) -> ThreadPoolExecutor:
    key = (os.getpid(), n_threads)  # threads do not survive a fork
    if key not in _pools:
        _pools[key] = ThreadPoolExecutor(n_threads, thread_name_prefix="ebm-fused")
    return _pools[key]
