"""Which engine is quicker for an energy on a device: found out there, by trying both.

How many operations a thread does well to take alone differs by device, by the number of chains, and
by what torch has for the energy. So where neither engine is sure to be quicker, both evaluate the
energy and its gradient at the start states, each in a CUDA graph of its own, as the torch engine's
steps are. Where torch's work cannot be captured it is issued anew each time, as the steps would be.

What was found is kept on disk beside machine code: later processes on this machine take the same
engine, so that runs that are resumed, or done again, have the same bits.
"""

import math
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from ebm_samplers.captured import graph as graphs
from ebm_samplers.captured.graph import CannotCapture
from ebm_samplers.fused import cache

EVALUATIONS = 8
"""Of a graph, so that its own launch counts for little."""

LAUNCHES = 3
"""That are timed; the shortest counts."""


class Trial(NamedTuple):
    """Seconds of one evaluation of all states.

    Attributes:
        kernel: By a thread each.
        torch: By torch.
        n_chains: How many states these were.
    """

    kernel: float
    torch: float
    n_chains: int

    def __str__(self) -> str:
        return (
            f"torch evaluates {self.n_chains:,} states in {1e6 * self.torch:.3g} µs, its kernel in "
            f"{1e6 * self.kernel:.3g} µs (tried on this device)"
        )


def tried(
    source: str,
    kernel: Callable[[], object],
    other: Callable[[], object],
    n_chains: int,
    on: torch.device,
) -> Trial:
    """Two ways to evaluate about so many states, timed once on each machine; waits for the device.

    Args:
        source: The kernel's module, which tells energies apart.
        kernel: Launches the kernel.
        other: Issues torch's operations.
        n_chains: How many states they evaluate; within a power of two this makes no difference.
        on: The device.
    """
    where = torch.cuda.get_device_name(on) if on.type == "cuda" else "simulator"
    about = "trial", where, torch.__version__, str(n_chains.bit_length()), source
    key = cache.key("\0".join(about))
    known = cache.read(key)
    if known is not None:
        return Trial(**known[0])
    trial = Trial(seconds(kernel, on), seconds(other, on), n_chains)
    cache.write(key, trial._asdict(), b"")
    return trial


def seconds(work: Callable[[], object], on: torch.device) -> float:
    """What ``work`` takes, once it was issued.

    Args:
        work: Issues operations and kernels on the current stream.
        on: The device; on a CPU, where kernels are simulated, the host's clock tells.

    Returns:
        Seconds; infinity where the device has not memory enough.
    """
    if on.type != "cuda":
        return min(_by_host(work) for _ in range(LAUNCHES))
    try:
        launch = _captured(work, on)
        with torch.cuda.device(on):
            launch()
            return min(_by_device(launch) for _ in range(LAUNCHES)) / EVALUATIONS
    except torch.OutOfMemoryError:
        return math.inf


def _captured(work: Callable[[], object], on: torch.device) -> Callable[[], None]:
    """Does the work some times: by launching a graph if that can be, else anew."""

    def again() -> None:
        for _ in range(EVALUATIONS):
            work()

    stream = graphs.capture_stream(on)
    try:
        with graphs.rehearsing(stream, strictly=True), graphs.Inputs():
            work()
    except Exception:  # of any kind: a capture that fails would be torch's last
        return again
    try:
        return graphs.Graph(again, stream, graphs.memory_pool()).launch
    except CannotCapture:
        return again


def _by_device(launch: Callable[[], None]) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    begin.record()
    launch()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


def _by_host(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin
