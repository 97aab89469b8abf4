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
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import llvmlite.binding as llvm
import llvmlite.ir as ir
import numpy as np
import torch

from ebm_samplers.fused.codegen import ALIGNED
from ebm_samplers.fused.native import Native, this_machine

TEAM_WORK = 3e6
"""Scalar operations, for all lanes together, from which torch's threads share them: some 0.2 ms."""

POOL_WORK = 5e7
"""The same for Python's threads: some 3 ms. To wake them took up to 1 ms where it was measured."""

PIECES = 8
"""Into how many pieces a thread's share is cut: whichever thread is free takes the next."""


def threads_for(work: float) -> int:
    """How many threads are quickest for so many scalar operations."""
    if work < TEAM_WORK or (work < POOL_WORK and _team() is None):
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
        del memory

    def share(self, n_threads: int) -> None:
        """In several threads."""
        n_threads = min(n_threads, self.n_tiles)
        n_pieces = min(PIECES * n_threads, self.n_tiles)
        team = _team()
        if team is None:
            self._pooled(n_threads, n_pieces)
            return
        n_bytes = -(-self.n_bytes // ALIGNED) * ALIGNED
        memory, rooms = _room(n_threads * n_bytes)
        team(self, n_threads, n_pieces, rooms, n_bytes)
        del memory

    def _pooled(self, n_threads: int, n_pieces: int) -> None:
        bounds = [self.n_tiles * i // n_pieces for i in range(n_pieces + 1)]
        tasks: list[Future[None]] = []
        try:
            for a, b in pairwise(bounds):
                tasks.append(_pool(n_threads).submit(self.part, a, b))
            for task in tasks:
                task.result()
        finally:
            wait(tasks)  # nothing is written any more once an interrupt has left this call


class Team:
    """The threads of OpenMP that torch has in this process.

    Args:
        library: That has them.

    Raises:
        AttributeError: If there is no OpenMP of GNU's interface.
    """

    FIELDS = ("kernel", "block", "rooms", "n_bytes", "n_tiles", "n_pieces", "who", "next")

    def __init__(self, library: ctypes.CDLL) -> None:
        self._parallel = library.GOMP_parallel
        self._parallel.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
        self._parallel.restype = None
        self._who = ctypes.cast(library.omp_get_thread_num, ctypes.c_void_p).value or 0
        self._engine: Any = llvm.create_mcjit_compiler(
            llvm.parse_assembly(_member()), this_machine()
        )
        self._engine.finalize_object()
        self._member = self._engine.get_function_address("member")

    def __call__(self, call: Call, n_threads: int, n_pieces: int, rooms: int, n_bytes: int) -> None:
        """Run a call in pieces.

        Args:
            call: What to run.
            n_threads: How many threads at most.
            n_pieces: Into how many pieces its tiles are cut.
            rooms: Where the threads' memory begins.
            n_bytes: How much each has.
        """
        block = ctypes.create_string_buffer(call.block, len(call.block))
        job = (ctypes.c_int64 * len(self.FIELDS))(
            call.function.address,
            ctypes.addressof(block),
            rooms,
            n_bytes,
            call.n_tiles,
            n_pieces,
            self._who,
            0,
        )
        self._parallel(self._member, ctypes.addressof(job), n_threads, 0)


def _member() -> str:
    """What a thread of a team does, in LLVM's language: takes pieces while there are any."""
    long, integer = ir.IntType(64), ir.IntType(32)
    module = ir.Module()
    module.triple = llvm.get_process_triple()
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [long.as_pointer()]), "member")
    builder = ir.IRBuilder(function.append_basic_block("begin"))
    places = {
        name: builder.gep(function.args[0], [integer(i)]) for i, name in enumerate(Team.FIELDS)
    }
    found = {name: builder.load(place) for name, place in places.items() if name != "next"}
    who = ir.FunctionType(integer, []).as_pointer()
    number = builder.zext(builder.call(builder.inttoptr(found["who"], who), []), long)
    room = builder.add(found["rooms"], builder.mul(number, found["n_bytes"]))
    kernel = builder.inttoptr(
        found["kernel"], ir.FunctionType(ir.VoidType(), [long] * 4).as_pointer()
    )
    take, work, end = (function.append_basic_block(name) for name in ("take", "work", "end"))
    builder.branch(take)
    builder.position_at_end(take)
    piece = builder.atomic_rmw("add", places["next"], long(1), "monotonic")
    builder.cbranch(builder.icmp_signed("<", piece, found["n_pieces"]), work, end)
    builder.position_at_end(work)
    first, last = (
        builder.sdiv(builder.mul(found["n_tiles"], n), found["n_pieces"])
        for n in (piece, builder.add(piece, long(1)))
    )
    builder.call(kernel, [found["block"], room, first, last])
    builder.branch(take)
    builder.position_at_end(end)
    builder.ret_void()
    return str(module)


_forked = threading.Event()
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forked.set)


def _team() -> Team | None:
    """The threads of torch; None where there are none that could be asked."""
    return None if _forked.is_set() else _found()


@functools.cache
def _found() -> Team | None:
    libraries = Path(torch.__file__).parent / "lib"
    try:
        return Team(ctypes.CDLL(str(libraries / "libtorch_cpu.so")))
    except (OSError, AttributeError):
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


_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}


def _pool(n_threads: int) -> ThreadPoolExecutor:
    key = (os.getpid(), n_threads)  # threads do not survive a fork
    if key not in _pools:
        _pools[key] = ThreadPoolExecutor(n_threads, thread_name_prefix="ebm-fused")
    return _pools[key]
