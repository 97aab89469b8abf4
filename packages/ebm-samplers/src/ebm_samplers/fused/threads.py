"""Threads that share the tiles of a kernel: those of torch, where they can be had.

On Linux torch's threads are OpenMP's, which stay awake for some milliseconds after an operation.
They take up a kernel within microseconds, whereas threads of Python's own would first wait for a
processor until those sleep, and for the interpreter's lock. Python's do it elsewhere, and after a
fork, which threads of OpenMP do not survive.
"""

import ctypes
import functools
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import llvmlite.binding as llvm
import llvmlite.ir as ir
import numpy as np
import torch

from ebm_samplers.fused.codegen import ALIGNED
from ebm_samplers.fused.native import Native, this_machine

TEAM_WORK = 1e7
"""Scalar operations, for all lanes together, from which torch's threads share them: some 0.2 ms."""

POOL_WORK = 5e7
"""The same for Python's threads. To wake them took up to 1 ms where it was measured."""

PIECES = 8
"""Into how many pieces a thread's share is cut: whichever thread is free takes the next."""


def threads_for(work: float) -> int:
    """How many threads are to share so many scalar operations."""
    if work < TEAM_WORK or (work < POOL_WORK and team() is None):
        return 1
    return torch.get_num_threads()


class Call(NamedTuple):
    """A call of a kernel, for all tiles.

    Attributes:
        function: The kernel.
        block: Its arguments.
        n_bytes: Memory that a thread needs.
        n_tiles: How many tiles there are.
    """

    function: Native
    block: bytes
    n_bytes: int
    n_tiles: int

    def part(self, first_tile: int, last_tile: int) -> None:
        """Some tiles, in this thread."""
        memory, room = _room(self.n_bytes)
        self.function.call(self.block, room, first_tile, last_tile)
        del memory  # held until here

    def share(self, n_threads: int) -> None:
        """All tiles, in several threads."""
        n_pieces = min(PIECES * n_threads, self.n_tiles)
        threads = team()
        if threads is None:
            _pooled(self, n_threads, n_pieces)
            return
        n_bytes = -(-self.n_bytes // ALIGNED) * ALIGNED
        memory, rooms = _room(n_threads * n_bytes)
        threads(self, n_threads, n_pieces, rooms, n_bytes)
        del memory  # held until here


class Team:
    """The threads of OpenMP that torch has in this process.

    Args:
        library: What has them, by GNU's interface.

    Raises:
        AttributeError: If it has none.
    """

    FIELDS = (
        "kernel",  # where its code is
        "block",  # where its arguments are
        "rooms",  # where the threads' memory is
        "n_bytes",  # how much each of them has
        "n_rooms",  # how many have some: the others have nothing to do
        "n_tiles",
        "n_pieces",
        "thread_number",  # where the code is that tells it
        "next",  # the piece to be taken next
    )
    """What a call hands to the threads, 64 bits each."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._parallel = library.GOMP_parallel
        self._parallel.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
        self._parallel.restype = None
        self._thread_number = ctypes.cast(library.omp_get_thread_num, ctypes.c_void_p).value or 0
        module = llvm.parse_assembly(_member())
        self._engine: Any = llvm.create_mcjit_compiler(module, this_machine())  # owns the code
        self._engine.finalize_object()
        self._member = self._engine.get_function_address("member")

    def __call__(self, call: Call, n_threads: int, n_pieces: int, rooms: int, n_bytes: int) -> None:
        """Run a call in pieces.

        Args:
            call: What to run.
            n_threads: How many threads take pieces, at most.
            n_pieces: Into how many its tiles are cut.
            rooms: Where the memory of so many threads begins.
            n_bytes: How much each has.
        """
        block = ctypes.create_string_buffer(call.block, len(call.block))
        values = {
            "kernel": call.function.address,
            "block": ctypes.addressof(block),
            "rooms": rooms,
            "n_bytes": n_bytes,
            "n_rooms": n_threads,
            "n_tiles": call.n_tiles,
            "n_pieces": n_pieces,
            "thread_number": self._thread_number,
            "next": 0,
        }
        job = (ctypes.c_int64 * len(values))(*(values[field] for field in self.FIELDS))
        # All threads (0): GNU's OpenMP ends those that are not asked for, and starts them anew.
        self._parallel(self._member, ctypes.addressof(job), 0, 0)


def _member() -> str:
    """What a thread of a team does, in LLVM's language: takes pieces while there are any."""
    long, integer = ir.IntType(64), ir.IntType(32)
    module = ir.Module()
    module.triple = llvm.get_process_triple()
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [long.as_pointer()]), "member")
    begin, take, work, end = map(function.append_basic_block, ("begin", "take", "work", "end"))
    builder = ir.IRBuilder(begin)
    places = {
        name: builder.gep(function.args[0], [integer(i)]) for i, name in enumerate(Team.FIELDS)
    }
    given = {name: builder.load(place) for name, place in places.items() if name != "next"}
    thread_number = builder.inttoptr(
        given["thread_number"], ir.FunctionType(integer, []).as_pointer()
    )
    number = builder.zext(builder.call(thread_number, []), long)
    room = builder.add(given["rooms"], builder.mul(number, given["n_bytes"]))
    kernel = builder.inttoptr(
        given["kernel"], ir.FunctionType(ir.VoidType(), [long] * 4).as_pointer()
    )
    builder.cbranch(builder.icmp_signed("<", number, given["n_rooms"]), take, end)
    builder.position_at_end(take)
    piece = builder.atomic_rmw("add", places["next"], long(1), "monotonic")
    builder.cbranch(builder.icmp_signed("<", piece, given["n_pieces"]), work, end)
    builder.position_at_end(work)
    first, last = (
        builder.sdiv(builder.mul(given["n_tiles"], n), given["n_pieces"])
        for n in (piece, builder.add(piece, long(1)))
    )
    builder.call(kernel, [given["block"], room, first, last])
    builder.branch(take)
    builder.position_at_end(end)
    builder.ret_void()
    return str(module)


_forked = threading.Event()
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forked.set)


def team() -> Team | None:
    """The threads of torch; None where there are none that could be asked."""
    return None if _forked.is_set() else _team_of_torch()


@functools.cache
def _team_of_torch() -> Team | None:
    """Where torch itself finds them: a library loaded before it comes first (LD_PRELOAD)."""
    for path in (None, str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")):
        with suppress(OSError, AttributeError, TypeError):
            return Team(ctypes.CDLL(path))
    return None


_rooms = threading.local()


def _room(n_bytes: int) -> tuple[Any, int]:
    """Memory that this thread's kernels work in, one after the other, and where it begins."""
    if getattr(_rooms, "n_bytes", -1) < n_bytes:
        memory = np.empty(n_bytes + ALIGNED, np.uint8)
        _rooms.memory = memory, -(-memory.ctypes.data // ALIGNED) * ALIGNED
        _rooms.n_bytes = n_bytes
    found: tuple[Any, int] = _rooms.memory
    return found


class _Pieces:
    """What is left of a call, for threads of Python's own."""

    def __init__(self, call: Call, n_pieces: int) -> None:
        bounds = [call.n_tiles * i // n_pieces for i in range(n_pieces + 1)]
        self._call, self._left = call, list(pairwise(bounds))
        self._n_running, self._changed = 0, threading.Condition()

    def work(self) -> None:
        """Run pieces while there are any."""
        while True:
            with self._changed:
                if not self._left:
                    return
                piece = self._left.pop()
                self._n_running += 1
            try:
                self._call.part(*piece)
            finally:
                with self._changed:
                    self._n_running -= 1
                    self._changed.notify_all()

    def close(self) -> None:
        """Nothing begins any more, and nothing runs once this has ended."""
        with self._changed:
            self._left.clear()
            self._changed.wait_for(lambda: not self._n_running)


def _pooled(call: Call, n_threads: int, n_pieces: int) -> None:
    """Run a call in threads of Python's own.

    Interrupts, also while it waits for pieces that run, end it when none runs any more.
    """
    pieces, interrupt, closed = _Pieces(call, n_pieces), None, False
    try:
        pool = _pool(n_threads)
        for task in [pool.submit(pieces.work) for _ in range(n_threads)]:
            task.result()
    finally:
        while not closed:
            try:
                pieces.close()
                closed = True
            except KeyboardInterrupt as again:
                interrupt = again
        if interrupt is not None:
            raise interrupt


_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}


def _pool(n_threads: int) -> ThreadPoolExecutor:
    key = (os.getpid(), n_threads)  # threads do not survive a fork
    if key not in _pools:
        _pools[key] = ThreadPoolExecutor(n_threads, thread_name_prefix="ebm-fused")
    return _pools[key]
