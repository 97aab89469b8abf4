"""A generated module at work: compiled on first use, run over tiles by one thread or several."""

import struct
import time
from collections import Counter
from collections.abc import Callable, Mapping
from operator import is_, itemgetter
from typing import Any

import numpy as np
import torch

from ebm_samplers.fused.native import Native, native
from ebm_samplers.fused.noise import provide
from ebm_samplers.fused.threads import Call, threads_for
from ebm_samplers.fused.trace import CannotFuse, reason_of

counts: Counter[str] = Counter()
"""How often this process has "traced" an energy, loaded a kernel from disk ("cached"), and
"compiled" one."""

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
        self._function: Native | None = None

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
        function = self._function or self._compiled()
        lasting = [given[name] for name in self._lasting]
        last = self._last  # held here, so that nothing of it is freed by another thread's call
        if len(last[0]) != len(lasting) or not all(map(is_, lasting, last[0])):
            last = self._last = self._found(lasting)
        block = self._block.pack(*last[1], *self._passing(given))
        n_tiles = -(-given["n_chains"] // self.lanes)
        call = Call(function, block, self._memory, n_tiles)
        n_threads = threads_for(work)
        if n_threads > 1 and n_tiles > 1:
            call.share(n_threads)
        else:
            call.part(0, n_tiles)

    def _found(self, lasting: list[Any]) -> tuple[list[Any], list[int]]:
        """The lasting arguments, and their addresses."""
        for (name, dtype), value in zip(self._lasting.items(), lasting, strict=True):
            if value.dtype != dtype:
                raise TypeError(f"a kernel wants {dtype} for {name}, not {value.dtype}")
        return lasting, [address(array) for array in lasting]

    def _compiled(self) -> Native:
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
        self._function = function
        return function


def address(array: Any) -> int:
    """Where the numbers of an array are; somewhere, if it has none: they may be looked at."""
    if array.size == 0:
        return _nowhere
    return torch.from_numpy(array).data_ptr()  # twice as quick as NumPy's own ways


_nowhere = address(NOTHING)
