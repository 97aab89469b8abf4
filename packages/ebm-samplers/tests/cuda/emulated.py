"""A CUDA device emulated on the CPU: numba.cuda compiles for it and launches on it.

Kernels go through numba.cuda's whole compiler to PTX, which `ptx` runs, and their arguments through
its dispatcher and cuda.core's packing. Only what asks the driver is replaced, in torch, too, and
tensors are the CPU's. Streams, captures and several devices are not emulated.
"""

import sys
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch
from ptx import Program

from ebm_samplers.fused.cuda import kernel, launch, noise
from ebm_samplers.fused.cuda._backend import numba_cuda
from ebm_samplers.fused.cuda.energy import CudaEnergy

CAPABILITY = (9, 0)


@contextmanager
def emulated_device():
    """Within it kernels are compiled for, and run by, the emulated device.

    Gives a list to which each launch adds the handle of its stream, its grid and its block.
    """
    cuda, launches = numba_cuda(), []
    names = ("dispatcher", "codegen", "cudadrv.driver")
    dispatcher, codegen, driver = (sys.modules[f"numba.cuda.{name}"] for name in names)

    def launched(stream, config, program, *arguments):
        """In place of cuda.core's, whose packing of arguments it uses."""
        from cuda.core._kernel_arg_handler import ParamHolder

        held = ParamHolder(arguments)
        (grid, *_), (block, *_) = config.grid, config.block
        launches.append((int(stream.handle), grid, block))
        program(held.ptr, block, grid)

    def external_stream(handle):
        return driver.Stream(driver.binding.CUstream(handle), external=True)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            dispatcher, "get_current_device", lambda: SimpleNamespace(compute_capability=CAPABILITY)
        )
        patch.setattr(codegen.CUDACodeLibrary, "_ensure_cc", lambda self, cc: (*CAPABILITY, "a"))
        patch.setattr(codegen.CUDACodeLibrary, "get_cufunc", _loaded)
        patch.setattr(dispatcher, "launch", launched)
        patch.setattr(cuda, "external_stream", external_stream)
        for module in (kernel, noise):
            patch.setattr(module, "require_device", lambda: None)
        for module in (kernel, launch, noise):
            patch.setattr(module, "current", lambda on: nullcontext())
        patch.setattr(CudaEnergy, "runs_on", lambda self, device: True)
        properties = SimpleNamespace(multi_processor_count=2)
        patch.setattr(torch.cuda, "get_device_properties", lambda on: properties)
        patch.setattr(torch.cuda, "get_device_capability", lambda on: CAPABILITY)
        patch.setattr(torch.cuda, "current_stream", lambda on: SimpleNamespace(cuda_stream=0))
        yield launches


def _loaded(library):
    """In place of loading machine code: the program, where numba.cuda expects a function."""
    if not library._cufunc_cache:
        program = Program(library.get_asm_str())
        library._cufunc_cache[0] = SimpleNamespace(
            kernel=program, module=SimpleNamespace(initialized=True)
        )
    return library._cufunc_cache[0]
