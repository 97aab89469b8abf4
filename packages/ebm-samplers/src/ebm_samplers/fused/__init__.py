"""The fused engine: energies written in torch, compiled into kernels that run whole chains."""

from .cache import cache_folder, clear_cache
from .engine import FusedEnergy, Kernel, Run, counts, fuse, fused_energy
from .trace import CannotFuse

__all__ = [
    "CannotFuse",
    "FusedEnergy",
    "Kernel",
    "Run",
    "cache_folder",
    "clear_cache",
    "counts",
    "fuse",
    "fused_energy",
]
