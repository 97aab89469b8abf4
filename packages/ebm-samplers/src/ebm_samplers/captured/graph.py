# mypy: disable-error-code="no-untyped-call"
"""Work on a CUDA device that is issued once and launched many times."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Graph:
    """A function's work on a device, captured.

    Args:
        body: Issues the work, which is not done yet; may not wait for the device. What it allocates
            belongs to the graph, which writes it anew at each launch.
        on: The device.
        pool: Memory that graphs share which are launched one after the other.

    Attributes:
        result: What ``body`` returned.
    """

    def __init__(self, body: Callable[[], Any], on: torch.device, pool: Any) -> None:
        self._graph = torch.cuda.CUDAGraph()
        capturing = torch.cuda.graph(
            self._graph,
            pool=pool,
            stream=torch.cuda.Stream(on),
            capture_error_mode="thread_local",  # others may go on using devices
        )
        with torch.cuda.device(on), capturing:
            self.result = body()

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


@contextmanager
def aside(on: torch.device) -> Iterator[None]:
    """Work on a stream of its own, after what came before and before what comes next.

    What is captured has to have run so at least once: libraries make handles and room at first use.
    """
    before, side = torch.cuda.current_stream(on), torch.cuda.Stream(on)
    side.wait_stream(before)
    with torch.cuda.stream(side):
        yield
    before.wait_stream(side)


def memory_pool() -> Any:
    """Room for graphs that are launched one after the other."""
    return torch.cuda.graph_pool_handle()


class Inputs(TorchDispatchMode):
    """Collects the tensors that operations read without having made them: parameters, closures.

    A graph knows addresses only; the memory behind them must not go to others.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tensors: dict[int, Tensor] = {}
        self._made: dict[int, Tensor] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operation, and note what it reads."""
        for tensor in _tensors((args, kwargs)):
            if id(tensor) not in self._made:
                self.tensors[id(tensor)] = tensor
        result = func(*args, **(kwargs or {}))
        self._made.update((id(tensor), tensor) for tensor in _tensors(result))
        return result


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (tuple, list)):
        for value in values:
            yield from _tensors(value)
    elif isinstance(values, dict):
        yield from _tensors(tuple(values.values()))
