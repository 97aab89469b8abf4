"""A generated module at work on a CUDA device: compiled on first use, launched on a stream."""

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ebm_samplers.fused.cuda import device
from ebm_samplers.fused.cuda._backend import (
    CudaUnavailableError,
    require_device,
)
from ebm_samplers.fused.cuda.compiled import compiled
from ebm_samplers.fused.cuda.launch import current, launch
from ebm_samplers.fused.kernel import counts
from ebm_samplers.fused.native import COMPILING
from ebm_samplers.fused.trace import CannotFuse, reason_of


class CudaKernel:
    """The chains of a sampler on an energy, for CUDA devices.

    Args:
        source: What `source.device_source` gave.
        double: Whether states are float64.

    Attributes:
        source: The generated module.
        lanes: Chains that a thread runs.
        seconds: What compiling it, or loading it from disk, took.
        cached: Whether it came from disk, or this process had it from another energy.
    """

    lanes = 1

    def __init__(self, source: str, double: bool) -> None:
        self.source, self.double = source, double
        self.seconds = 0.0
        self.cached = False
        self.space = namespace(source, double)
        self._offset: Callable[[Any], float] = self.space["energy_offset"]
        self.arguments: dict[str, str] = self.space["ARGUMENTS"]
        self._jitted: Any = None

    def offset(self, p: Any) -> float:
        """The additive constant of the energy."""
        return float(self._offset(p))

    def __call__(self, given: Mapping[str, Any], n_chains: int, on: torch.device) -> None:
        """Launch it for all chains.

        Args:
            given: Arguments: numbers, and contiguous tensors on the device.
            n_chains: How many threads are wanted.
            on: The device.

        Raises:
            CannotFuse: If it cannot be compiled, or run there.
        """
        call = self._jitted or self._compiled(on)
        try:
            launch(call, self.arguments, given, n_chains, on)
        except Exception as error:
            raise CannotFuse(f"its kernel does not run on {on} ({reason_of(error)})") from error

    def _compiled(self, on: torch.device) -> Any:
        with COMPILING:
            if self._jitted is None:
                start, before = time.perf_counter(), counts["compiled"]
                try:
                    require_device()
                    with current(on):
                        self._jitted = jitted(self.source, self.double, on)
                except CudaUnavailableError:
                    raise
                except Exception as error:
                    raise CannotFuse(f"its kernel does not compile ({reason_of(error)})") from error
                self.seconds = time.perf_counter() - start
                self.cached = counts["compiled"] == before
            return self._jitted


@functools.lru_cache(maxsize=256)
def namespace(source: str, double: bool) -> dict[str, Any]:
    """What running a generated module gives."""
    space: dict[str, Any] = dict(device.names(double))
    exec(compile(source, "<kernel>", "exec"), space)
    space["memory_of_tile"] = device.memory(space["ROWS"], double)
    space["memory_of_normals"] = device.memory(space["NORMALS"], double)
    space["memory_of_uniforms"] = device.memory(space["UNIFORMS"], double)
    space["memory_of_stack"] = device.memory(space["STACK"], double)
    for n_inner, n_outputs in space["PRODUCTS"]:
        name = f"product_{n_inner}_{n_outputs}"
        space[name] = device.product(n_inner, n_outputs, double)
    return space


@functools.lru_cache(maxsize=256)
def jitted(source: str, double: bool, on: torch.device) -> Any:
    """The kernel of a module for the current device ``on``: one for all energies alike."""
    space = namespace(source, double)
    return compiled(space["chains"], space["ARGUMENTS"], source, double, device.FAST, on)
