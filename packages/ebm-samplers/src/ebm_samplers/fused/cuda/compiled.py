"""Kernels as numba.cuda compiles them: once for all energies of a process, and kept on disk.

Numba takes seconds for a kernel. What it made is kept as its own cache would keep it, but under a
name that tells all that the machine code depends on (`fused.cache`).
"""

import functools
import importlib
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ebm_samplers.fused import cache
from ebm_samplers.fused.cuda import device
from ebm_samplers.fused.cuda._backend import numba_cuda, simulated
from ebm_samplers.fused.kernel import counts


def compiled(
    function: Callable[..., None],
    arguments: Mapping[str, str],
    text: str,
    double: bool,
    fastmath: bool,
    on: torch.device,
) -> Any:
    """A kernel for a device, which is the current one.

    Args:
        function: What the kernel does, in Python.
        arguments: The kinds of its arguments, by name.
        text: Tells it from all others, with the functions of `device`.
        double: Whether it computes in float64.
        fastmath: Whether in fast arithmetic.
        on: The device.
    """
    cuda = numba_cuda()
    if simulated():
        counts["compiled"] += 1
        return cuda.jit(function)
    capability = torch.cuda.get_device_capability(on)
    key = cache.key("\0".join((text, str((double, fastmath, capability)), *_environment())))
    types = device.signature(arguments, double)
    dispatcher = _kept(key, function, types.args)
    if dispatcher is None:
        dispatcher = cuda.jit(types, fastmath=fastmath, lto=False)(function)
        _keep(key, dispatcher)
        counts["compiled"] += 1
    else:
        counts["cached"] += 1
    return dispatcher


def _kept(key: str, function: Callable[..., None], types: tuple[Any, ...]) -> Any:
    """The kernel on disk, loaded onto the device; None if there is none that can be."""
    kept = cache.read(key)
    if kept is None:
        return None
    try:
        states = importlib.import_module("numba.cuda.serialize").loads(kept[1])
        kernel = importlib.import_module("numba.cuda.dispatcher")._Kernel._rebuild(**states)
        kernel.bind()
        dispatcher = numba_cuda().jit(function)
        dispatcher.add_overload(kernel, types)
        dispatcher._specialized = True
        dispatcher.disable_compile()
    except Exception:
        return None  # of a driver that does not take it, or of another numba.cuda: made anew
    return dispatcher


def _keep(key: str, dispatcher: Any) -> None:
    """Write a kernel to disk, where numba.cuda can tell what it is made of."""
    (kernel,) = dispatcher.overloads.values()
    try:
        code = importlib.import_module("numba.cuda.serialize").dumps(kernel._reduce_states())
    except Exception:
        return
    cache.write(key, {}, code)


@functools.cache
def _environment() -> tuple[str, ...]:
    """What machine code for devices depends on, beside what that for the CPU does."""
    found = [Path(device.__file__).read_text()]
    for name in ("numba-cuda", "nvidia-nvvm", "nvidia-cuda-nvcc-cu12", "nvidia-nvjitlink"):
        try:
            found.append(metadata.version(name))
        except metadata.PackageNotFoundError:
            found.append("")
    return tuple(found)
