# mypy: disable-error-code="no-untyped-call"
"""Work on a CUDA device that is issued once and launched many times."""

import gc
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

WAITING = {"_local_scalar_dense", "equal", "is_nonzero", "masked_select", "nonzero", "unique"}
"""Operations for which the host waits, or whose results have shapes that only the device knows."""

_failed: list[Any] = []
"""Graphs whose capture failed. torch's allocator goes on pointing to them, so that they stay; and
it takes no further captures in this process."""


def failed() -> bool:
    """Whether a capture failed, so that there will be no others in this process."""
    return bool(_failed)


class CannotCapture(Exception):  # noqa: N818 - a reason
    """Steps cannot run as CUDA graphs; says why."""


class Graph:
    """A function's work on a device, captured.

    Args:
        body: Issues the work, which is not done yet; may not wait for the device. What it allocates
            belongs to the graph, which writes it anew at each launch.
        stream: To capture on; graphs on one stream share their memory.
        pool: Of this memory; such graphs are launched one after the other.

    Attributes:
        result: What ``body`` returned.

    Raises:
        CannotCapture: If that fails.
    """

    def __init__(self, body: Callable[[], Any], stream: Any, pool: Any) -> None:
        if failed():
            raise CannotCapture("an earlier capture failed, after which torch captures no more")
        self._graph = torch.cuda.CUDAGraph()
        on = stream.device
        before = torch.cuda.current_stream(on)
        capturing = torch.cuda.graph(
            self._graph,
            pool=pool,
            stream=stream,
            capture_error_mode="thread_local",  # other threads may go on using devices
        )
        try:
            with torch.cuda.device(on), _nothing_is_freed(on), capturing:
                self.result = body()
        except BaseException as error:
            _failed.append(self._graph)
            torch.cuda.set_stream(before)  # torch leaves the stream of the capture the current one
            with suppress(Exception):
                torch._C._cuda_endAllocateToPool(on.index, pool)
            if isinstance(error, Exception) and not isinstance(error, CannotCapture):
                raise CannotCapture(first_line(error)) from error
            raise

    def launch(self) -> None:
        """Do the work, on the current stream."""
        self._graph.replay()


class Order:
    """Keeps work on the same memory in order, from whatever streams it is launched.

    Args:
        on: The device.
    """

    def __init__(self, on: torch.device) -> None:
        self._on = on
        self._done = torch.cuda.Event()

    def begin(self) -> None:
        """Let the current stream wait for what was launched before `end`."""
        self._done.wait(torch.cuda.current_stream(self._on))

    def end(self) -> None:
        """Note what has been launched so far on the current stream."""
        self._done.record(torch.cuda.current_stream(self._on))

    def __del__(self) -> None:
        """Wait, before the memory goes to others."""
        with suppress(Exception):
            self._done.synchronize()


def capture_stream(on: torch.device) -> Any:
    """A stream to capture on."""
    return torch.cuda.Stream(on)


def memory_pool() -> Any:
    """Room for graphs that are launched one after the other."""
    return torch.cuda.graph_pool_handle()


@contextmanager
def rehearsing(stream: Any, strictly: bool) -> Iterator[None]:
    """Work on a stream as a capture would, after what came before and before what comes next.

    Args:
        stream: That of the captures.
        strictly: Raise an error where the host waits for the device.
    """
    before, mode = torch.cuda.current_stream(stream.device), torch.cuda.get_sync_debug_mode()
    stream.wait_stream(before)
    try:
        with torch.cuda.stream(stream):
            if strictly:
                _set_debug_mode("error")
            yield
    finally:
        _set_debug_mode(mode)
        before.wait_stream(stream)


def _set_debug_mode(mode: Any) -> None:
    with warnings.catch_warnings():  # torch says once that this is a prototype
        warnings.simplefilter("ignore")
        torch.cuda.set_sync_debug_mode(mode)


class Inputs(TorchDispatchMode):
    """Collects the memory that operations read without having made it: parameters, closures.

    A graph knows addresses only; what lies there must not go to others. Refuses operations that
    wait for the device.

    Attributes:
        tensors: One for each such memory.

    Raises:
        CannotCapture: At an operation that waits.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tensors: dict[int, Tensor] = {}
        self._made: Any = WeakIdKeyDictionary()

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Networks under ``torch.compile`` stay compiled."""
        return True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operation, and note what it reads."""
        name = func.overloadpacket.__name__
        if name.strip("_") in WAITING or name in WAITING:
            raise CannotCapture(f"aten.{name} waits for the device")
        for tensor in _tensors((args, kwargs)):
            if tensor not in self._made:
                self.tensors[tensor.data_ptr()] = tensor.detach()  # whatever its `data` becomes
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            self._made[tensor] = True
        return result


@contextmanager
def _nothing_is_freed(on: torch.device) -> Iterator[None]:
    """Garbage may hold events and memory of Numba's, and to end these may end a capture."""
    from ebm_samplers.fused.cuda._backend import CudaUnavailableError, numba_cuda
    from ebm_samplers.fused.cuda.launch import current

    collects = gc.isenabled()
    gc.disable()
    try:
        with ExitStack() as stack:
            with suppress(CudaUnavailableError):  # graphs need it for random numbers alone
                numba = numba_cuda()
                stack.enter_context(current(on))
                stack.enter_context(numba.defer_cleanup())
            yield
    finally:
        if collects:
            gc.enable()


def first_line(error: Exception) -> str:
    """An error in a line."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (tuple, list)):
        for value in values:
            yield from _tensors(value)
    elif isinstance(values, dict):
        yield from _tensors(tuple(values.values()))
