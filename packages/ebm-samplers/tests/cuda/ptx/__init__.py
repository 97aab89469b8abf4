"""PTX, the assembly language that numba.cuda compiles kernels to, run on a CPU through LLVM.

Each instruction becomes what the PTX ISA (version 9) says that it computes. Those that it lets be
inexact (``div.full``, ``sqrt.approx``) are exact here, and products and sums that an assembler may
yet contract are not contracted. Threads run one after the other. What is not known is an error.
"""

import ctypes

import llvmlite.binding as llvm

from ebm_samplers.fused.native import this_machine
from ptx.module import translated

__all__ = ["Program", "translated"]


class Program:
    """A module with one kernel, ready to be launched.

    Args:
        ptx: Its text.
    """

    def __init__(self, ptx):
        module, machine = llvm.parse_assembly(translated(ptx)), this_machine()
        module.data_layout = str(machine.target_data)
        module.verify()
        options = llvm.create_pipeline_tuning_options(speed_level=1)
        passes = llvm.create_pass_builder(machine, options)
        passes.getModulePassManager().run(module, passes)
        self._engine = llvm.create_mcjit_compiler(module, machine)  # owns the code
        self._engine.finalize_object()
        address = self._engine.get_function_address("launch")
        kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint32)
        self._call = kind(address)

    def __call__(self, params, block, grid):
        """Run all threads.

        Args:
            params: Address of the addresses of the arguments, as cuLaunchKernel wants them.
            block: Threads of a block, of one dimension.
            grid: Blocks.
        """
        self._call(params, block, grid)
