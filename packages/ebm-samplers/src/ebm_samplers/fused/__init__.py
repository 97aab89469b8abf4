"""The fused engine: energies written in torch, compiled into kernels that run whole chains."""

from ebm_samplers.fused.cache import cache_folder, clear_cache
from ebm_samplers.fused.engine import FusedEnergy, Run, Slots
from ebm_samplers.fused.evaluator import FusedEvaluator
from ebm_samplers.fused.function import fuse
from ebm_samplers.fused.kernel import Kernel, counts
from ebm_samplers.fused.lookup import fused_energy
from ebm_samplers.fused.trace import CannotFuse

__all__ = [
    "CannotFuse",
    "FusedEnergy",
    "FusedEvaluator",
    "Kernel",
    "Run",
    "Slots",
    "cache_folder",
    "clear_cache",
    "counts",
    "fuse",
    "fused_energy",
]
