"""Which engine is quicker for an energy on a device: found out there, by trying both.

How many operations a thread does well to take alone differs by device, by the number of chains, and
by what torch has for the energy. So where neither engine is sure to be quicker, both evaluate the
energy and its gradient at the start states, each in a CUDA graph of its own, as the torch engine's
steps are. Where torch's work cannot be captured it is issued anew each time, as the steps would be.

What was found is kept on disk beside machine code: later processes on this machine take the same
engine, so that a run that is resumed, or done again, is on the same one.
"""

import functools
import math
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import torch

from ebm_samplers.captured import graph as graphs
from ebm_samplers.captured.graph import CannotCapture
from ebm_samplers.fused import cache
from ebm_samplers.fused.precision import preferred_precision

EVALUATIONS = 8
"""Of a graph, so that its own launch counts for little."""

LAUNCHES = 5
"""Of each graph that are timed; the shortest counts."""

CLEAR = 4.0
"""So many times as quick in its first launch, an engine needs no others."""


class Trial(NamedTuple):
    """Seconds of one evaluation of all states.

    Attributes:
        kernel: By a thread each.
        torch: By torch; infinite where it failed.
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
    about: str,
    kernel: Callable[[], object],
    other: Callable[[], object],
    n_chains: int,
    on: torch.device,
) -> Trial:
    """Two ways to evaluate about so many states, timed once on each machine; waits for the device.

    Args:
        about: What tells this kernel and torch's work from others.
        kernel: Launches the kernel.
        other: Issues torch's operations.
        n_chains: How many states they evaluate; within a power of two this makes no difference.
        on: The device.
    """
    chains = str(n_chains.bit_length())
    key = cache.key("\0".join(("trial", *environment(on), chains, about)))
    known = cache.read(key)
    if known is None:
        trial = Trial(*seconds(kernel, other, on), n_chains)
        # what failed, or could not be captured after another failure, tells of this process
        if not math.isfinite(trial.torch) or graphs.failed():
            return trial
        cache.write(key, trial._asdict(), b"", replace=False)
        known = cache.read(key) or (trial._asdict(), b"")  # another may have been the first
    return Trial(**known[0])


def environment(on: torch.device) -> tuple[str, ...]:
    """All that a trial depends on beside the energy and the states."""
    where = torch.cuda.get_device_name(on) if on.type == "cuda" else "simulator"
    return where, torch.__version__, *preferred_precision(), *_versions()


@functools.cache
def _versions() -> tuple[str, ...]:
    try:
        version = metadata.version("numba-cuda")
    except metadata.PackageNotFoundError:
        version = ""
    return version, *(path.read_text() for path in sorted(Path(__file__).parent.glob("*.py")))


def seconds(
    kernel: Callable[[], object], other: Callable[[], object], on: torch.device
) -> tuple[float, float]:
    """What an evaluation takes each of the two, once it was issued.

    Both issue work on the current stream. Where the second fails, for lack of memory for example,
    it takes infinitely long, as it does where the first cannot be captured. On a CPU, where kernels
    are simulated, the host's clock tells.
    """
    kernel()  # compiles it
    by_kernel = _captured(kernel, on)
    if by_kernel is None:  # with what is issued anew no graph can be compared
        return 0.0, math.inf
    try:
        other()
        by_torch = _captured(other, on) or _again(other)
        by_torch()
    except Exception:  # whatever torch met, the kernel has not
        return 0.0, math.inf
    times: list[list[float]] = []
    while len(times) < LAUNCHES and not (times and max(times[0]) > CLEAR * min(times[0])):
        times.append([_timed(launch, on) for launch in (by_kernel, by_torch)])
    of_kernel, of_other = (min(column) / EVALUATIONS for column in zip(*times, strict=True))
    return of_kernel, of_other


def _again(work: Callable[[], object]) -> Callable[[], None]:
    """Does the work some times by issuing it anew."""

    def again() -> None:
        for _ in range(EVALUATIONS):
            work()

    return again


def _captured(work: Callable[[], object], on: torch.device) -> Callable[[], None] | None:
    """Does the work some times by launching a graph; None if that cannot be."""
    again = _again(work)
    if on.type != "cuda":
        return again
    stream = graphs.capture_stream(on)
    try:
        with graphs.rehearsing(stream, strictly=True), graphs.Inputs():
            work()
    except Exception:  # of any kind: a capture that fails would be torch's last
        return None
    try:
        return graphs.Graph(again, stream, graphs.memory_pool()).launch
    except CannotCapture:
        return None


def _timed(launch: Callable[[], None], on: torch.device) -> float:
    """Seconds on the device; the work is issued while the same is still at work there."""
    if on.type != "cuda":
        start = time.perf_counter()
        launch()
        return time.perf_counter() - start
    with torch.cuda.device(on):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        launch()
        begin.record()
        launch()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3
